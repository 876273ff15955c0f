"""Folders for what the hypervisor's own user has to reach."""

from __future__ import annotations

import os
from pathlib import Path

# Anybody may pass through to a file whose name he knows, and nobody needs to list them.
MODE = 0o711


def make(folder: Path) -> None:
    """Have this folder, whatever the umask of the agent is. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(MODE)


def sync(folder: Path) -> None:
    """What was renamed in this folder stays so when the power is lost. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
