"""`make lint`: every check that needs no running part, all of them even when one fails.

Exit status 0 only when each is clean. The output of a clean check is not shown.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable

from devstack import docs

BIN = pathlib.Path(sys.executable).parent

# Where a developer's machine shows through. Installed paths (/var/lib, /etc) are fine.
MACHINE_PATH = re.compile(r"/(?:work|root|home|Users|tmp)/[A-Za-z0-9_.-]+/")


def command(name: str, *args: str) -> Callable[[], str]:
    """A check that is a program of .venv/bin; what it says is the complaint when it fails."""

    def run() -> str:
        done = subprocess.run(
            [BIN / name, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return (done.stdout.strip() or f"exit status {done.returncode}") if done.returncode else ""

    return run


def machine_paths() -> str:
    """Lines of tracked files that name a path of somebody's machine."""
    found = []
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        try:
            text = pathlib.Path(name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        found += [
            f"{name}:{number}: {line.strip()}"
            for number, line in enumerate(text.splitlines(), 1)
            if MACHINE_PATH.search(line)
        ]
    return "\n".join(found)


def generated_files() -> str:
    """The generated files that no longer say what the code says."""
    return "\n".join(
        f"{path}: out of date; run `make samples` and commit it"
        for path, text in docs.generated().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    )


CHECKS: dict[str, Callable[[], str]] = {
    "style (ruff check)": command("ruff", "check", "--quiet", "--output-format=concise", "."),
    "format (ruff format)": command("ruff", "format", "--check", "--quiet", "."),
    "types (mypy --strict)": command("mypy", "--no-error-summary"),
    "who imports whom (import-linter)": command("lint-imports", "--no-logo"),
    "generated files": generated_files,
    "machine paths": machine_paths,
}


def main() -> int:
    """Run all checks; the number that failed decides the exit status."""
    failed = 0
    for name, check in CHECKS.items():
        began = time.monotonic()
        complaint = check()
        print(f"{'FAILED' if complaint else 'ok':6} {name}  {time.monotonic() - began:.1f} s")
        if complaint:
            failed += 1
            print("  " + complaint.replace("\n", "\n  "), flush=True)
    print(f"lint: {len(CHECKS) - failed} of {len(CHECKS)} checks clean")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
