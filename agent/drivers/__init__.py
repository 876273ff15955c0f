"""Hypervisor drivers: base is the port, each other module or folder one hypervisor."""
