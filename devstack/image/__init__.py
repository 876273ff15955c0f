"""A tiny guest built from Debian packages: a cloud kernel and a busybox initramfs."""

from devstack.image.build import Image, ImageError, build
from devstack.image.disk import bootable

__all__ = ["Image", "ImageError", "bootable", "build"]
