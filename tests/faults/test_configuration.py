"""A wrong configuration value is refused: the option by its name, its range, one line, exit 2."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from devstack.fleet import BIN

MANAGER, AGENT, MUSTER = "muster-manager", "muster-agent", "muster"
ALL = (MANAGER, AGENT, MUSTER)

# What is written, who must refuse it, and what the line must say.
WRONG = [
    ("[DEFAULT]\nreport_interval = 0\n", ALL, ["[DEFAULT] report_interval", "0.1", "3600"]),
    (
        "[DEFAULT]\nreport_interval = soon\n",
        (MUSTER,),
        ["[DEFAULT] report_interval", "0.1", "3600"],
    ),
    ("[DEFAULT]\nreport_interval = nan\n", ALL, ["[DEFAULT] report_interval", "0.1", "3600"]),
    ("[DEFAULT]\nexecutor = fibers\n", (AGENT,), ["[DEFAULT] executor", "threading", "eventlet"]),
    ("[DEFAULT]\nlog_level = LOUD\n", (MANAGER,), ["[DEFAULT] log_level", "DEBUG", "ERROR"]),
    ("[DEFAULT]\nfleet_id = my fleet\n", (AGENT,), ["[DEFAULT] fleet_id"]),
    ("[DEFAULT]\nhost = a/../b\n", (AGENT,), ["[DEFAULT] host"]),
    ("[manager]\nsilence_budget = 1.5\n", (MANAGER,), ["[manager] silence_budget", "0.0", "1.0"]),
    ("[agent]\nmax_parallel = 0\n", (AGENT,), ["[agent] max_parallel", "1", "256"]),
    (
        "[DEFAULT]\nreport_interval = 30\n[manager]\nservice_down_time = 60\n",
        ALL,
        ["[manager] service_down_time", "60", "2.5", "[DEFAULT] report_interval", "75"],
    ),
    ("[DEFAULT]\ntransport_url = memory://\n", ALL, ["[DEFAULT] transport_url", "rabbit://"]),
    ("[DEFAULT]\ntransport_url = amqp-ish\n", (AGENT,), ["[DEFAULT] transport_url", "rabbit://"]),
    ("[agent]\ndriver = vmware\n", (AGENT,), ["[agent] driver", "libvirt", "simulated"]),
    ("[agent]\nstate_dir =\n", (AGENT,), ["[agent] state_dir"]),
    ("[database]\nconnection = nowhere\n", (MANAGER,), ["[database] connection", "postgresql"]),
    ("[database]\nconnection = mysql://h/d\n", (MANAGER,), ["[database] connection", "postgresql"]),
    ("[database]\npool_size = none\n", (MANAGER,), ["[database] pool_size", "1", "200"]),
    ("[client]\nrpc_timeout = -1\n", (MUSTER,), ["[client] rpc_timeout", "0.1", "3600"]),
    ("not a configuration\n", (MANAGER,), ["not a configuration"]),
]


def start(command: str, config: Path) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "MUSTER_"))}
    question = ["vm", "list"] if command == MUSTER else []
    return subprocess.Popen(
        [str(BIN / command), "--config-file", str(config), *question],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("text", "commands", "words"), WRONG, ids=[w[0].strip() for w in WRONG])
def test_a_wrong_value_is_refused_with_its_name_and_range(
    tmp_path: Path, text: str, commands: tuple[str, ...], words: list[str]
) -> None:
    config = tmp_path / "muster.conf"
    # Should one of them start after all, it must not find the machine's own places.
    here = f"[database]\nconnection = sqlite:///{tmp_path}/db\n[agent]\nstate_dir = {tmp_path}\n"
    config.write_text(here + text)
    running = {command: start(command, config) for command in commands}
    said = {}
    for command, process in running.items():
        try:
            said[command] = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            said[command] = process.communicate()
    for command, (out, err) in said.items():
        process = running[command]
        assert process.returncode == 2, f"{command}: {err}"
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith(f"{command}: BAD_CONFIG: "), err
        for word in words:
            assert word in err, err


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for command in ALL:
        _, err = start(command, tmp_path / "none.conf").communicate(timeout=30)
        assert err.count("\n") == 1
        assert err.startswith(f"{command}: BAD_CONFIG: no such configuration file: ")
