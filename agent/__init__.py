"""The agent of one hypervisor host: carries out commands, reports what is there."""
