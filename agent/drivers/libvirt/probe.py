"""Tells whether KVM works here, by booting a guest under it and under emulation.

A device file that opens proves nothing: inside some virtual machines guests under KVM hang, or take
fifty times as long as emulated ones. The guest is one boot sector that leaves QEMU through its
debug exit; under emulation, and under a KVM worth the name, it takes a tenth of a second.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import tempfile

from common.runtime import Runtime

LOG = logging.getLogger(__name__)

LIMIT_S = 10.0
# Slower than emulation by more than this, and by more than a moment, is not acceleration.
SLOWER_THAN_EMULATED = 3.0
A_MOMENT_S = 1.0
KVM_DEVICE = "/dev/kvm"

_EXIT_PORT = 0xF4
_CODE = 0x2A
# mov dx, 0xf4; mov al, 0x2a; out dx, al; cli; hlt; jmp $-3
_BOOT_SECTOR = (
    bytes([0xBA, _EXIT_PORT, 0x00, 0xB0, _CODE, 0xEE, 0xFA, 0xF4, 0xEB, 0xFD]).ljust(510, b"\0")
    + b"\x55\xaa"
)
# isa-debug-exit makes this of the code that was written to it.
_EXIT_STATUS = _CODE << 1 | 1


_found: dict[str, str] = {}


def best_virt_type(runtime: Runtime) -> str:
    """`kvm` when a guest really runs under it, else `qemu`. Takes some seconds, once a process."""
    if "virt_type" not in _found:
        _found["virt_type"] = _probe(runtime)
    return _found["virt_type"]


def _probe(runtime: Runtime) -> str:
    if platform.machine() != "x86_64":
        LOG.warning("KVM is probed on x86_64 only: set [libvirt] virt_type; using qemu")
        return "qemu"
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        LOG.info("no usable %s: guests are emulated (virt_type qemu)", KVM_DEVICE)
        return "qemu"
    emulated_s = boot_time(runtime, "tcg", LIMIT_S)
    limit_s = max(A_MOMENT_S, SLOWER_THAN_EMULATED * (emulated_s or 0.0))
    if boot_time(runtime, "kvm", limit_s) is not None:
        return "kvm"
    LOG.warning("a guest did not run under KVM within %.1f s: guests are emulated", limit_s)
    return "qemu"


def boot_time(runtime: Runtime, accelerator: str, limit_s: float) -> float | None:
    """Seconds until a guest under this accelerator has run its own code; None when it did not."""
    qemu = shutil.which("qemu-system-x86_64") or shutil.which("qemu-kvm")
    if qemu is None:
        LOG.warning("no qemu-system-x86_64 on PATH: %s can not be probed", accelerator)
        return None
    with tempfile.NamedTemporaryFile(prefix="muster-probe-") as image:
        image.write(_BOOT_SECTOR)
        image.flush()
        command = [qemu, "-accel", accelerator, "-m", "16", "-machine", "pc"]
        command += ["-nodefaults", "-no-user-config", "-display", "none"]
        command += ["-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"]
        command += ["-drive", f"file={image.name},format=raw,if=floppy,readonly=on"]
        began = runtime.monotonic()
        try:
            done = subprocess.run(  # noqa: S603 - a fixed command
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=limit_s,
            )
        except (subprocess.TimeoutExpired, OSError):
            return None
    return runtime.monotonic() - began if done.returncode == _EXIT_STATUS else None
