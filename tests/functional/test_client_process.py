"""The console script as a process: configuration, start-up, and a reader who has gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = "import sys; from client.main import main; sys.exit(main())"
SILENT = "rabbit://guest:guest@127.0.0.1:9/"  # nobody listens on the discard port


def muster(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "MUSTER_"))}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *argv],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str], code: int, start: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith(f"muster: {start}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_the_version_is_told() -> None:
    done = muster("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("muster ")


def test_a_missing_configuration_file_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.conf")
    for done in (
        muster("--config-file", missing, "vm", "list"),
        muster("vm", "list", MUSTER_CONFIG=missing),
    ):
        one_line(done, 2, f"BAD_CONFIG: no such configuration file: {missing}")


def test_help_needs_no_configuration(tmp_path: Path) -> None:
    assert muster("--help", MUSTER_CONFIG=str(tmp_path / "none.conf")).returncode == 0


@pytest.mark.parametrize("source", ["file", "environment"])
def test_a_value_out_of_range_is_refused_with_its_range(tmp_path: Path, source: str) -> None:
    config = tmp_path / "muster.conf"
    if source == "file":
        config.write_text("[client]\nrpc_timeout = -1\n")
        done = muster("--config-file", str(config), "vm", "list")
    else:
        done = muster("vm", "list", OS_CLIENT__RPC_TIMEOUT="-1")
    one_line(done, 2, "BAD_CONFIG: ")
    assert "rpc_timeout" in done.stderr


def test_a_broker_that_can_not_be_reached_is_one_line_with_the_job(tmp_path: Path) -> None:
    config = tmp_path / "muster.conf"
    config.write_text(f"[DEFAULT]\ntransport_url = {SILENT}\n[client]\nrpc_timeout = 1\n")
    job = "0e8f3f0a-0000-4000-8000-00000000000a"
    done = muster("--config-file", str(config), "vm", "start", "web-1", "--job", job)
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith(f"(repeat with --job {job})\n")


def test_only_what_runs_is_imported() -> None:
    code = (
        "import sys; from client.main import main; main(['vm', 'bogus']); main(['help', 'job']);"
        "print(*sorted({'oslo_messaging', 'kombu', 'sqlalchemy', 'client.vm', 'cmd2'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == ""


def test_closed_outputs_are_no_error() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-c", SCRIPT, "--help"],
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


def test_a_reader_who_has_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""
