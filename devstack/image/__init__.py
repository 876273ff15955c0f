"""A tiny guest built from Debian packages: a cloud kernel and a busybox initramfs."""

from devstack.image.build import Image, ImageError, build

__all__ = ["Image", "ImageError", "build"]
