"""The entry point `libvirt` of group muster.drivers."""

from __future__ import annotations

from agent.drivers.base import Driver
from common.conf import Settings
from common.errors import BadConfig
from common.runtime import Runtime


def create(
    host: str,  # noqa: ARG001 - libvirt itself knows no name for its host
    settings: Settings,
    runtime: Runtime,
) -> Driver:
    """The driver of this host. BadConfig when a Python module that it needs is not installed."""
    try:
        from agent.drivers.libvirt.hypervisor import Hypervisor
    except ModuleNotFoundError as exc:
        if exc.name not in ("libvirt", "pycdlib"):
            raise
        raise BadConfig(
            f"[agent] driver = libvirt: the Python module {exc.name} is not installed",
            "pip install musterd[libvirt]",
        ) from exc
    return Hypervisor(settings.libvirt, settings.rbd, runtime)
