"""Reports of everything: cheap where nothing has changed, and in order with all that is older."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from common import messages as m
from common.states import GuestKind, PowerState, VmState
from manager.store.instances import Instance
from manager.store.sightings import Sighting
from tests.functional.fleet import INTERVAL_S, Fleet, ScriptedAgent


@pytest.fixture
def h1(fleet: Fleet) -> ScriptedAgent:
    """A host with a dozen VMs and as many strangers, all told of."""
    agent = ScriptedAgent(fleet).up(memory_mib=1 << 20)
    for n in range(12):
        fleet.deploy(agent, f"web-{n}")
        agent.guest(name=f"byhand-{n}")
    agent.beat(full=True)
    fleet.wire.take()
    return agent


def statements(fleet: Fleet, act: Callable[[], object]) -> list[str]:
    said: list[str] = []

    def note(_conn: object, _cursor: object, text: str, *_rest: object) -> None:
        said.append(re.sub(r"\s+", " ", text))

    sa.event.listen(fleet.store.engine, "before_cursor_execute", note)
    act()
    sa.event.remove(fleet.store.engine, "before_cursor_execute", note)
    return [text for text in said if not text.startswith("BEGIN")]


def test_a_whole_report_without_news_costs_the_same_for_many_guests(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    said = statements(fleet, lambda: h1.beat(full=True))
    assert len(said) < 10
    assert not [text for text in said if "UPDATE sightings" in text or "UPDATE instances" in text]


def test_what_has_changed_is_written_whoever_stays_as_he_was(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.vm("web-3")
    h1.power(vm.uuid, PowerState.SHUTOFF)
    said = statements(fleet, lambda: h1.beat(full=True))
    assert fleet.vm("web-3").vm_state is VmState.SHUTOFF
    assert len([text for text in said if "UPDATE sightings" in text]) == 1
    assert len([text for text in said if "UPDATE instances" in text]) == 1


def test_a_look_from_before_a_whole_report_changes_nothing(fleet: Fleet, h1: ScriptedAgent) -> None:
    """It was drawn before and arrives after: its pair is older than that of everything."""
    vm = fleet.vm("web-0")
    guest = h1.of(vm.uuid)
    early = h1.draw()
    h1.beat(full=True)
    stopped = m.GuestReport(
        **{f: getattr(guest, f) for f in guest.__struct_fields__ if f != "power_state"},
        power_state=PowerState.SHUTOFF,
    )
    h1.send(
        h1.heartbeat(
            seq=early,
            inventory=h1.inventory(guests=(stopped,), digest="0", gone=()),
        )
    )
    assert fleet.row(Instance, vm.uuid).power_state is PowerState.RUNNING
    assert fleet.row(Sighting, "h1", guest.hypervisor_uuid).power_state is PowerState.RUNNING


def test_a_guest_that_a_whole_report_did_not_show_is_not_seen_by_an_older_one(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    uuid = h1.guest(name="short-lived")
    early = h1.heartbeat()
    del h1.guests[uuid]
    h1.beat(full=True)
    h1.send(early)
    assert fleet.rows(Sighting, hypervisor_uuid=uuid) == []


def test_an_unchanged_guest_is_judged_anew_in_every_whole_report(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """Its fingerprint is the same; what we know of its instance is not."""
    vm = fleet.vm("web-5")
    fleet.store.run(lambda tx: tx.delete(tx.get(Instance, vm.uuid)))
    h1.beat(full=True)
    assert fleet.row(Sighting, "h1", h1.of(vm.uuid).hypervisor_uuid).kind is GuestKind.ORPHAN


def test_a_host_at_work_is_asked_for_everything_only_when_it_disagrees_for_long(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """Between a result and a heartbeat that crossed it the two views differ for a moment."""
    fleet.ask("vm_stop", vm="web-1")
    (cast,) = fleet.publish()
    receipt = m.Receipt(command=cast.command.id, step=m.Step.STARTED, age_s=0.1)

    def beat() -> bool:
        h1.beat(inventory=h1.inventory(digest="0" * 16), receipts=(receipt,))
        return bool(fleet.wire.take("report_inventory"))

    assert not beat()
    for _ in range(2):
        fleet.clock.move(INTERVAL_S)
        assert not beat()
    fleet.clock.move(INTERVAL_S)
    assert beat()


def test_a_result_that_is_on_its_way_keeps_a_host_from_being_asked_for_everything(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """Its heartbeat tells of no command: the result was sent, and has not been taken yet."""
    fleet.ask("vm_stop", vm="web-1")
    (cast,) = fleet.publish()
    h1.beat(inventory=h1.inventory(digest="0" * 16))
    assert not fleet.wire.take("report_inventory")
    h1.carry_out(cast.command)
    h1.beat(inventory=h1.inventory(digest="0" * 16))
    assert fleet.wire.take("report_inventory")


def test_an_idle_host_that_disagrees_is_asked_at_once(fleet: Fleet, h1: ScriptedAgent) -> None:
    h1.beat(inventory=h1.inventory(digest="0" * 16))
    assert fleet.wire.take("report_inventory")


def test_views_that_agree_again_start_the_time_anew(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.ask("vm_stop", vm="web-1")
    (cast,) = fleet.publish()
    receipt = m.Receipt(command=cast.command.id, step=m.Step.STARTED, age_s=0.1)
    for digest in ("0" * 16, None, "0" * 16):
        fleet.clock.move(2 * INTERVAL_S)
        inventory = h1.inventory() if digest is None else h1.inventory(digest=digest)
        h1.beat(inventory=inventory, receipts=(receipt,))
    assert not fleet.wire.take("report_inventory")
