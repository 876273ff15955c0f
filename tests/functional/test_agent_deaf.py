"""A whole agent that speaks and hears nothing: it listens anew, or says that it can not go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import ears
from common.bus.memory import MemoryBus
from common.messages import AGENT_TOPIC
from tests.functional.agent_rig import HOST, Rig, eventually


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(ears, "LEAST_S", 0.5)
    rig = Rig(tmp_path)
    rig.manager.canary_interval_s = 0.1
    yield rig
    rig.close()


def _deafen(rig: Rig) -> None:
    """What is cast to the host reaches nobody."""
    rig.broker.servers[AGENT_TOPIC].pop(HOST)


def test_an_agent_that_hears_nothing_listens_anew_and_says_hello(rig: Rig) -> None:
    agent = rig.up()
    first = rig.manager.session
    _deafen(rig)
    eventually(lambda: rig.broker.servers[AGENT_TOPIC].get(HOST), "it listens again")
    eventually(lambda: agent.session.current not in (None, first), "another session")
    rig.running("i-1")
    assert agent.failure is None


@pytest.mark.parametrize("what", ["confirm", "noop", "of another session"])
def test_an_agent_that_hears_anything_at_all_goes_on(rig: Rig, what: str) -> None:
    agent = rig.up()
    seen = len(rig.manager.heartbeats)

    def enough() -> bool:
        if what == "confirm":
            rig.manager.cast("confirm", ids=[])
        else:
            changes = {} if what == "noop" else {"session": 99}
            command = rig.manager.command("noop", "", 1, **changes)
            rig.manager.cast("noop", command=command)
        return len(rig.manager.heartbeats) > seen + 15

    eventually(enough, "six silences have passed")
    assert (len(rig.manager.hellos), agent.failure) == (1, None)


def test_an_agent_that_stays_deaf_while_managers_answer_can_not_go_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = rig.up()
    _deafen(rig)
    serve = MemoryBus.serve

    def in_vain(bus: MemoryBus, at: Any, endpoint: Any) -> Any:
        handle = serve(bus, at, endpoint)
        if at.server == HOST:
            _deafen(rig)
        return handle

    monkeypatch.setattr(MemoryBus, "serve", in_vain)
    eventually(lambda: agent.failure, "it says so")
    assert len(rig.manager.hellos) == 4


def test_an_agent_whose_managers_are_gone_waits_for_them(rig: Rig) -> None:
    agent = rig.up()
    manager = rig.broker.servers["muster-manager"].pop("m1")
    eventually(lambda: agent.session.current is None, "it has asked for a session")
    rig.broker.servers["muster-manager"]["m1"] = manager
    rig.manager.canary_interval_s = 0.0
    eventually(lambda: agent.session.current is not None, "they are back")
    rig.running("i-1")
    assert agent.failure is None
