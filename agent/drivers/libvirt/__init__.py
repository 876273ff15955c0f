"""The libvirt driver: QEMU and KVM guests, and libvirt's mock driver for tests."""
