"""Folders for what the hypervisor's own user has to reach."""

from __future__ import annotations

from pathlib import Path

# Anybody may pass through to a file whose name he knows, and nobody needs to list them.
MODE = 0o711


def make(folder: Path) -> None:
    """Have this folder, whatever the umask of the agent is. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(MODE)
