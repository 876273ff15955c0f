"""Clean-up items: whatever a delete could not remove itself is removed later (section 3)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from common import messages as m
from common.errors import BadRequest, NotFound, WrongState
from common.ownership import new_bearer
from common.states import CommandState, HostState, TombstoneState
from manager.flows import found, retention
from manager.store.cleanups import Cleanup, CleanupState
from manager.store.commands import CommandRow, Void
from manager.store.instances import Instance
from manager.store.volumes import Volume
from tests.functional.fleet import DOWN_S, FLEET, INTERVAL_S, Fleet, ScriptedAgent
from tests.functional.zone import ZONE, deploy, make, refuse, started

OPEN, DONE = CleanupState.OPEN, CleanupState.DONE
POOLS = [{"name": "wide", "scope": "zone", "zone": "z1", "path": "/wide", "capacity_gib": 20}]
Agents = dict[str, ScriptedAgent]


@pytest.fixture
def agents(fleet: Fleet) -> Agents:
    """Three hosts of a zone that all reach one pool."""
    make(fleet, **ZONE, pools=POOLS)
    return {name: ScriptedAgent(fleet, name).up() for name in ("h1", "h2", "h3")}


def deployed(fleet: Fleet, agents: Agents) -> str:
    """A VM with a disk in the pool that runs on h1; its uuid."""
    instance: str = deploy(fleet, host="h1")["instance"]
    agents["h1"].carry_out(started(fleet, "h1"))
    agents["h1"].beat(full=True)
    return instance


def db_only(fleet: Fleet, agents: Agents) -> str:
    """One that was deleted while h1 was DOWN; its uuid."""
    instance = deployed(fleet, agents)
    fleet.pass_(DOWN_S + INTERVAL_S, agents["h2"], agents["h3"])
    assert agents["h1"].row.state is HostState.DOWN
    assert fleet.delete()["state"] == "SUCCEEDED"
    return instance


def forget_stone(fleet: Fleet) -> None:
    stone = fleet.stone().uuid
    fleet.ask("tombstone_forget", tombstone=stone, operator="ann", reason="scrapped")


def told(fleet: Fleet) -> list[m.Command]:
    """The clean-ups that were cast since the last look."""
    return [c.command for c in fleet.publish() if c.method == "clean_up"]


def item(fleet: Fleet) -> Cleanup:
    return fleet.one(Cleanup)


def test_section3_files_in_a_shared_pool_go_by_another_host_once_their_tombstone_is_forgotten(
    fleet: Fleet, agents: Agents
) -> None:
    instance = db_only(fleet, agents)
    forget_stone(fleet)
    (command,) = told(fleet)
    files = m.GuestFiles(
        instance=instance, bearer=new_bearer(FLEET, instance, 1), folders=("/wide",)
    )
    assert command.host in ("h2", "h3")
    assert m.convert(command.spec, m.CleanUpSpec).remains == files
    assert command.generation == 2  # above its start
    assert item(fleet).state is OPEN
    assert "what is in folders of h1 alone goes with it" in item(fleet).reason
    agents[command.host].succeed(command, look=None)
    assert (item(fleet).state, item(fleet).next_try_at) == (DONE, None)


def test_section3_the_space_that_an_item_stands_for_stays_taken_until_it_ends(
    fleet: Fleet, agents: Agents
) -> None:
    instance = db_only(fleet, agents)
    forget_stone(fleet)
    assert fleet.one(Volume).instance == instance
    (command,) = told(fleet)
    agents[command.host].succeed(command, look=None)
    assert fleet.rows(Volume) == []


def test_a_clean_up_that_fails_is_tried_again_by_another_host_of_the_pool(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    forget_stone(fleet)
    (first,) = told(fleet)
    agents[first.host].fail(first)
    after = item(fleet)
    assert (after.state, after.tries, fleet.rows(Volume) != []) == (OPEN, 1, True)
    assert after.answer == f"{first.host}: HYPERVISOR_ERROR: it said no"
    fleet.pass_(INTERVAL_S, agents["h2"], agents["h3"])
    (second,) = told(fleet)
    assert second.host != first.host
    assert second.generation > first.generation
    agents[second.host].succeed(second, look=None)
    assert item(fleet).state is DONE


def test_a_clean_up_whose_host_dies_goes_to_another_one_and_owes_no_void(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    forget_stone(fleet)
    (first,) = told(fleet)
    (other,) = {"h2", "h3"} - {first.host}
    fleet.pass_(DOWN_S + fleet.cfg.manager.command_timeout, agents[other])
    assert fleet.row(CommandRow, first.id).state is CommandState.UNKNOWN
    assert fleet.rows(Void) == []
    seen = fleet.rows(CommandRow, kind="clean_up", host=other)
    assert [row.state for row in seen] == [CommandState.PUBLISHED]


def test_what_was_tried_in_vain_and_answered_late_is_done(fleet: Fleet, agents: Agents) -> None:
    db_only(fleet, agents)
    forget_stone(fleet)
    (first,) = told(fleet)
    agents[first.host].fail(first)
    fleet.pass_(INTERVAL_S, agents["h2"], agents["h3"])
    (second,) = told(fleet)
    agents[second.host].succeed(second, look=None)
    agents[second.host].succeed(second, look=None)
    assert len(fleet.events("cleanup.done")) == 1


def test_a_stale_clean_up_is_tried_again_at_once_above_the_floor(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    forget_stone(fleet)
    (first,) = told(fleet)
    stale: dict[str, Any] = {"error_code": "STALE_COMMAND", "error": "old", "floor": 40}
    agents[first.host].say(results=(agents[first.host].result(first, m.Outcome.NOT_RUN, **stale),))
    fleet.tick()
    assert [command.generation for command in told(fleet)] == [41]


def two_stones(fleet: Fleet, agents: Agents) -> None:
    """A VM that was deleted without h1, where it was started, and h2, which shows it too."""
    instance = deployed(fleet, agents)
    agents["h2"].ours(instance, generation=1)
    agents["h2"].beat(full=True)
    for host in ("h1", "h2"):
        agents[host].end_session()
        fleet.ask("host_set_down", host=host, operator="ann", reason="smoke")
    assert fleet.delete()["state"] == "SUCCEEDED"
    assert {stone.host for stone in fleet.stones(state=TombstoneState.OPEN)} == {"h1", "h2"}


def test_section3_space_in_a_pool_stays_taken_while_another_tombstone_holds_the_disk(
    fleet: Fleet, agents: Agents
) -> None:
    two_stones(fleet, agents)
    stone = fleet.stone(host="h1").uuid
    fleet.ask("tombstone_forget", tombstone=stone, operator="ann", reason="scrapped")
    (command,) = told(fleet)
    agents[command.host].succeed(command, look=None)
    assert item(fleet).state is DONE
    assert fleet.one(Volume).cleanup is None
    agents["h2"].restart().hello()
    (terminate,) = [c.command for c in fleet.publish() if c.method == "terminate_instance"]
    agents["h2"].carry_out(terminate)
    assert fleet.rows(Volume) == []


def test_space_that_two_items_stand_for_is_given_back_with_the_last_of_them(
    fleet: Fleet, agents: Agents
) -> None:
    instance = deployed(fleet, agents)
    first = fleet.vm().made[0]
    fleet.put(fleet.vm(), made=(first, msgspec.structs.replace(first, bearer=instance)))
    fleet.pass_(DOWN_S + INTERVAL_S, agents["h2"], agents["h3"])
    fleet.delete()
    forget_stone(fleet)
    one, other = told(fleet)
    agents[one.host].succeed(one, look=None)
    assert fleet.one(Volume).cleanup == fleet.one(Cleanup, state=OPEN).uuid
    agents[other.host].succeed(other, look=None)
    assert fleet.rows(Volume) == []


# a guest that may be using it


def test_section3_files_wait_for_the_terminate_of_a_host_that_speaks(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    agents["h1"].restart().hello()
    (terminate,) = [c.command for c in fleet.publish() if c.method == "terminate_instance"]
    forget_stone(fleet)
    fleet.pass_(4 * INTERVAL_S, *agents.values())
    assert told(fleet) == []
    assert item(fleet).waits_for == "h1 to answer its terminate, which removes them"
    agents["h1"].carry_out(terminate)
    assert item(fleet).state is DONE
    assert fleet.rows(Volume) == []


def test_section3_files_of_a_deleted_host_wait_until_somebody_vouches_for_it(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    fleet.ask("host_delete", host="h1", operator="ann", reason="scrapped")
    fleet.pass_(4 * INTERVAL_S, agents["h2"], agents["h3"])
    assert told(fleet) == []
    assert item(fleet).waits_for.startswith("somebody to vouch that it does not run on h1")
    forget_stone(fleet)
    assert len(told(fleet)) == 1
    assert len(fleet.rows(Cleanup)) == 1


def test_section3_a_fence_does_not_let_a_disk_go(fleet: Fleet, agents: Agents) -> None:
    db_only(fleet, agents)
    fleet.ask("host_fence", host="h1", operator="ann", reason="its power is cut")
    fleet.ask("host_delete", host="h1", operator="ann", reason="scrapped")
    fleet.pass_(4 * INTERVAL_S, agents["h2"], agents["h3"])
    assert told(fleet) == []
    assert fleet.rows(Volume) != []


def test_section3_row_6_a_vm_whose_host_was_deleted_leaves_an_item(
    fleet: Fleet, agents: Agents
) -> None:
    deployed(fleet, agents)
    fleet.pass_(DOWN_S + INTERVAL_S, agents["h2"], agents["h3"])
    fleet.ask("host_set_down", host="h1", operator="ann", reason="smoke")
    fleet.ask("host_delete", host="h1", operator="ann", reason="scrapped")
    assert fleet.rows(Cleanup) == []
    assert fleet.delete()["state"] == "SUCCEEDED"
    assert item(fleet).reason.startswith("there is no host h1 any more")


def test_files_in_a_pool_of_the_host_alone_are_nobodys_to_remove(
    fleet: Fleet, agents: Agents
) -> None:
    own = {"name": "own", "scope": "host", "host": "h1", "path": "/own", "capacity_gib": 20}
    make(fleet, pools=[{**POOLS[0], "enabled": False}, own])
    db_only(fleet, agents)
    forget_stone(fleet)
    assert fleet.rows(Cleanup) == []
    assert fleet.rows(Volume) == []


def test_section3_files_of_a_guest_that_was_seen_to_run_wait_although_it_was_forgotten(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    agents["h1"].restart().hello()
    agents["h1"].beat(full=True)
    forget_stone(fleet)
    agents["h1"].beat(full=True)  # its guest runs
    fleet.pass_(DOWN_S + 4 * INTERVAL_S, agents["h2"], agents["h3"])
    assert agents["h1"].row.state is HostState.DOWN
    assert told(fleet) == []
    assert item(fleet).waits_for.startswith("somebody to vouch that it does not run on h1")
    forget_stone(fleet)
    fleet.pass_(4 * INTERVAL_S, agents["h2"], agents["h3"])
    assert told(fleet) != []


# a VM that lives meanwhile


def moved_on(fleet: Fleet, agents: Agents) -> str:
    """The host of a VM that was started on another one first, of which nothing is known since."""
    deploy(fleet)
    first = started(fleet)
    others = {name: agent for name, agent in agents.items() if name != first.host}
    fleet.pass_(DOWN_S + INTERVAL_S, *others.values())
    said = {"operator": "ann", "reason": "its power is cut"}
    fleet.ask("host_fence", host=first.host, **said)
    fleet.pass_(fleet.cfg.manager.create_timeout, *others.values())
    second = fleet.wire.take("start_vm")[-1].command
    agents[second.host].carry_out(second)
    agents[second.host].beat(full=True)
    fleet.ask("host_delete", host=first.host, **said)
    forget_stone(fleet)
    return second.host


def test_the_host_of_a_vm_that_lives_cleans_up_only_when_nobody_else_can(
    fleet: Fleet, agents: Agents
) -> None:
    lives_on = moved_on(fleet, agents)
    (first,) = told(fleet)
    agents[first.host].fail(first)
    fleet.pass_(INTERVAL_S, *agents.values())
    (second,) = told(fleet)
    assert lives_on not in (first.host, second.host)
    agents[second.host].fail(second)
    fleet.ask("host_set_down", host=second.host, operator="ann", reason="smoke")
    fleet.pass_(4 * INTERVAL_S, agents[lives_on])
    assert {command.host for command in told(fleet)} == {lives_on}


def test_a_clean_up_waits_until_its_host_has_answered_a_verb_on_the_same_vm(
    fleet: Fleet, agents: Agents
) -> None:
    lives_on = moved_on(fleet, agents)
    (command,) = told(fleet)
    fleet.ask("host_set_down", host=command.host, operator="ann", reason="smoke")
    agents[command.host].fail(command)
    job = fleet.ask("vm_stop", vm="web-1")
    (stop,) = [c.command for c in fleet.wire.take("stop_vm")]
    fleet.pass_(4 * INTERVAL_S, agents[lives_on])
    assert told(fleet) == []
    assert item(fleet).waits_for == f"{lives_on} to answer what was asked for web-1 before"
    agents[lives_on].carry_out(stop)
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    fleet.pass_(4 * INTERVAL_S, agents[lives_on])
    assert {command.host for command in told(fleet)} == {lives_on}


def test_a_guest_on_a_host_that_only_cleaned_up_there_is_one_that_nobody_has_started(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    forget_stone(fleet)
    (command,) = told(fleet)

    def is_on_record(generation: int) -> bool:
        asked = command.instance, command.host, generation
        return fleet.store.run(lambda tx: found.is_on_record(tx, *asked))

    assert command.generation == 2
    assert not is_on_record(1)


# what terminates tell


def test_a_terminate_tells_what_its_starts_have_made_there(fleet: Fleet, agents: Agents) -> None:
    instance = deployed(fleet, agents)
    fleet.delete()
    (cast,) = fleet.wire.take("terminate_instance")
    bearer = new_bearer(FLEET, instance, 1)
    made = m.convert(cast.command.spec, m.TerminateSpec).made
    assert made == (m.GuestFiles(instance=instance, bearer=bearer, folders=("/wide",)),)


def test_a_start_that_failed_may_have_left_files_although_no_guest_is_seen_there(
    fleet: Fleet, agents: Agents
) -> None:
    """Somebody may have undefined it by hand before its agent undid it."""
    deploy(fleet)
    refused_by = refuse(fleet, *agents.values())
    fleet.tick()
    second = started(fleet)
    agents[second.host].carry_out(second)
    fleet.delete()
    casts = {cast.host: cast.command for cast in fleet.wire.take("terminate_instance")}
    assert set(casts) == {refused_by, second.host}
    for host, generation in ((refused_by, second.generation - 1), (second.host, second.generation)):
        (made,) = m.convert(casts[host].spec, m.TerminateSpec).made
        assert made.bearer == new_bearer(FLEET, second.instance, generation)


def test_an_open_tombstone_tells_it_when_record_and_commands_are_forgotten(
    fleet: Fleet, agents: Agents
) -> None:
    instance = db_only(fleet, agents)
    fleet.clock.move(fleet.cfg.manager.retention + DOWN_S)
    fleet.run(retention.prune)
    assert fleet.rows(Instance) == []
    agents["h1"].restart().hello()
    (cast,) = [c for c in fleet.publish() if c.method == "terminate_instance"]
    made = m.convert(cast.command.spec, m.TerminateSpec).made
    assert [files.bearer for files in made] == [new_bearer(FLEET, instance, 1)]


# what a terminate leaves behind


def behind(terminate: m.Command) -> tuple[m.Left, ...]:
    """Nothing of what a terminate tells of could be removed."""
    made = m.convert(terminate.spec, m.TerminateSpec).made
    return tuple(m.Left(files=files, why="HYPERVISOR_ERROR: it is not mounted") for files in made)


def test_section3_a_vm_is_deleted_although_its_hosts_pool_is_not_mounted_there(
    fleet: Fleet, agents: Agents
) -> None:
    instance = deployed(fleet, agents)
    h1 = agents["h1"]
    h1.lose(instance)
    job = fleet.delete()
    (cast,) = fleet.wire.take("terminate_instance")
    h1.succeed(cast.command, left=behind(cast.command))
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.stone().state is TombstoneState.CLOSED
    by_host = {row.host: row for row in fleet.rows(Cleanup)}
    assert set(by_host) == {"h1", None}
    assert by_host[None].reason == "h1 could not remove it: HYPERVISOR_ERROR: it is not mounted"
    files = m.GuestFiles(instance=instance, bearer=new_bearer(FLEET, instance, 1))
    (own,) = [command for command in told(fleet) if command.spec["cleanup"] == by_host["h1"].uuid]
    assert (own.host, m.convert(own.spec, m.CleanUpSpec).remains) == ("h1", files)
    h1.succeed(own, look=None)
    assert fleet.one(Volume).cleanup == by_host[None].uuid  # its space stays taken
    fleet.pass_(4 * INTERVAL_S, *agents.values())
    command = told(fleet)[-1]
    remains = msgspec.structs.replace(files, folders=("/wide",))
    assert m.convert(command.spec, m.CleanUpSpec).remains == remains
    agents[command.host].succeed(command, look=None)
    assert fleet.rows(Cleanup, state=OPEN) == []
    assert fleet.rows(Volume) == []


def test_section3_what_is_left_in_a_pool_of_the_host_alone_waits_for_that_host(
    fleet: Fleet, agents: Agents
) -> None:
    own = {"name": "own", "scope": "host", "host": "h1", "path": "/own", "capacity_gib": 20}
    make(fleet, pools=[{**POOLS[0], "enabled": False}, own])
    instance = deployed(fleet, agents)
    agents["h1"].lose(instance)
    fleet.delete()
    (cast,) = fleet.wire.take("terminate_instance")
    agents["h1"].succeed(cast.command, left=behind(cast.command))
    assert (item(fleet).host, item(fleet).pool) == ("h1", None)
    assert fleet.one(Volume).cleanup == item(fleet).uuid
    said = {"operator": "ann", "reason": "that disk is gone"}
    fleet.ask("cleanup_forget", cleanup=item(fleet).uuid, **said)
    assert fleet.rows(Volume) == []


def test_an_item_that_waits_for_a_terminate_goes_on_when_that_could_not_remove_its_files(
    fleet: Fleet, agents: Agents
) -> None:
    instance = db_only(fleet, agents)
    h1 = agents["h1"].restart()
    h1.lose(instance)
    h1.hello()
    (terminate,) = [c.command for c in fleet.publish() if c.method == "terminate_instance"]
    forget_stone(fleet)
    waiting = item(fleet).uuid
    h1.succeed(terminate, left=behind(terminate), look=None)
    assert fleet.row(Cleanup, waiting).state is OPEN
    fleet.pass_(4 * INTERVAL_S, *agents.values())
    assert waiting in {command.spec["cleanup"] for command in told(fleet)}


def test_space_of_what_one_host_has_left_is_kept_while_the_vm_is_deleted_on_another(
    fleet: Fleet, agents: Agents
) -> None:
    instance = deployed(fleet, agents)
    agents["h2"].ours(instance, generation=1)
    agents["h2"].beat(full=True)
    (made,) = fleet.vm().made
    elsewhere = msgspec.structs.replace(made, host="h2", bearer=instance)
    fleet.put(fleet.vm(), made=(made, elsewhere))
    fleet.delete()
    casts = {cast.host: cast.command for cast in fleet.wire.take("terminate_instance")}
    agents["h2"].succeed(casts["h2"], left=behind(casts["h2"]), look=None)
    for row in fleet.rows(Cleanup):
        said = {"operator": "ann", "reason": "scrapped"}
        fleet.ask("cleanup_forget", cleanup=row.uuid, **said)
    assert fleet.one(Volume).cleanup is None
    agents["h1"].carry_out(casts["h1"])
    assert fleet.rows(Volume) == []


# freeze, deleted hosts


def test_a_freeze_holds_clean_ups_back_until_its_end(fleet: Fleet, agents: Agents) -> None:
    db_only(fleet, agents)
    fleet.ask("freeze", operator="ann", reason="a test")
    forget_stone(fleet)
    fleet.pass_(4 * INTERVAL_S, agents["h2"], agents["h3"])
    assert told(fleet) == []
    assert item(fleet).waits_for.startswith("FROZEN since")
    fleet.ask("unfreeze", operator="ann")
    fleet.tick()
    assert len(told(fleet)) == 1


def test_voids_that_are_owed_to_a_host_go_with_it(fleet: Fleet, agents: Agents) -> None:
    deploy(fleet, host="h1")
    fleet.pass_(DOWN_S + fleet.cfg.manager.create_timeout, agents["h2"], agents["h3"])
    assert [void.host for void in fleet.rows(Void)] == ["h1"]
    fleet.ask("host_delete", host="h1", operator="ann", reason="scrapped")
    assert fleet.rows(Void) == []


# what operators see and say


def listed(fleet: Fleet, **asked: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = fleet.ask("cleanup_list", **asked)["cleanups"]
    return rows


def test_open_items_are_listed_with_their_age_their_next_try_and_the_last_answer(
    fleet: Fleet, agents: Agents
) -> None:
    instance = db_only(fleet, agents)
    forget_stone(fleet)
    (command,) = told(fleet)
    fleet.clock.move(5.0)
    agents[command.host].fail(command)
    (row,) = listed(fleet)
    assert (row["kind"], row["instance"], row["pool"]) == ("files", instance, "wide")
    assert (row["age_s"], row["tries"], row["next_try_s"]) == (5.0, 1, 1.0)
    assert row["answer"].endswith("it said no")
    assert row["waits_for"] == "try 2"
    shown = fleet.ask("cleanup_show", cleanup=row["uuid"])
    assert shown["holds"] == ["5 GiB in pool wide"]
    assert shown["remains"]["type"] == "guest_files"


def test_items_that_have_ended_are_listed_only_when_asked_for_and_forgotten_in_time(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    forget_stone(fleet)
    (command,) = told(fleet)
    agents[command.host].succeed(command, look=None)
    assert listed(fleet) == []
    assert [row["state"] for row in listed(fleet, all=True)] == ["DONE"]
    fleet.clock.move(fleet.cfg.manager.retention + 1.0)
    fleet.run(retention.prune)
    assert fleet.rows(Cleanup) == []


def test_an_item_that_is_forgotten_gives_back_what_it_stood_for_and_says_who_and_why(
    fleet: Fleet, agents: Agents
) -> None:
    instance = db_only(fleet, agents)
    forget_stone(fleet)
    (row,) = listed(fleet)
    with pytest.raises(BadRequest, match="reason"):
        fleet.ask("cleanup_forget", cleanup=row["uuid"])
    said = {"operator": "ann", "reason": "the pool is gone"}
    assert fleet.ask("cleanup_forget", cleanup=row["uuid"], **said)["state"] == "FORGOTTEN"
    assert fleet.rows(Volume) == []
    (event,) = fleet.events("cleanup.forgotten")
    assert (event.object, event.source) == (instance, "ann")
    assert event.text.endswith("the pool is gone")
    fleet.wire.take()
    fleet.pass_(DOWN_S, agents["h2"], agents["h3"])
    assert told(fleet) == []


def test_who_retries_an_item_and_why_is_on_record(fleet: Fleet, agents: Agents) -> None:
    db_only(fleet, agents)
    forget_stone(fleet)
    said = {"operator": "ann", "reason": "it is mounted"}
    fleet.ask("cleanup_retry", cleanup=item(fleet).uuid, **said)
    (event,) = fleet.events("cleanup.retry")
    assert (event.source, event.text.endswith(": it is mounted")) == ("ann", True)


def test_an_item_is_retried_before_its_time_and_not_once_it_has_ended(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    forget_stone(fleet)
    for _ in range(6):
        (command,) = told(fleet)
        agents[command.host].fail(command)
        (row,) = listed(fleet)
        fleet.ask("cleanup_retry", cleanup=row["uuid"], operator="ann")
    (command,) = told(fleet)
    agents[command.host].succeed(command, look=None)
    with pytest.raises(WrongState, match="is DONE"):
        fleet.ask("cleanup_retry", cleanup=row["uuid"], operator="ann")
    with pytest.raises(NotFound, match="no clean-up item"):
        fleet.ask("cleanup_show", cleanup=command.id)


def test_a_deletion_that_is_owed_is_listed_as_an_item_and_its_terminate_issued_on_request(
    fleet: Fleet, agents: Agents
) -> None:
    instance = deployed(fleet, agents)
    fleet.delete()
    h1 = agents["h1"]
    (cast,) = fleet.wire.take("terminate_instance")
    h1.fail(cast.command)
    fleet.pass_(fleet.cfg.manager.delete_timeout + 1, *agents.values(), step=20.0)
    for cast in fleet.wire.take("terminate_instance"):
        h1.fail(cast.command)
    assert fleet.vm().deletion_owed
    (row,) = listed(fleet)
    assert (row["kind"], row["host"], row["instance"]) == ("deletion", "h1", instance)
    assert row["uuid"] == fleet.stone().uuid
    with pytest.raises(WrongState, match="still to be deleted on h1"):
        fleet.ask("cleanup_forget", cleanup=row["uuid"], operator="ann", reason="x")
    fleet.ask("freeze", operator="ann", reason="a test")
    said = {"cleanup": row["uuid"], "operator": "ann", "reason": "it is mounted"}
    assert fleet.ask("cleanup_retry", **said)["waits_for"].startswith("FROZEN since")
    fleet.ask("unfreeze", operator="ann")
    assert fleet.ask("cleanup_retry", **said)["waits_for"] == "h1 to answer"
    assert h1.terminates()[-1].trail[-1].text == "asked for by ann: it is mounted"
    command = h1.terminates()[-1]
    assert command.state is CommandState.PUBLISHED
    h1.carry_out(m.convert(fleet.wire.take("terminate_instance")[-1].kwargs["command"], m.Command))
    fleet.tick()
    assert listed(fleet) == []


def test_doctor_tells_of_items_that_do_not_get_on_and_counts_the_others(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    forget_stone(fleet)

    def found() -> list[tuple[str, str]]:
        findings = fleet.ask("doctor")["findings"]
        return [(f["level"], f["message"]) for f in findings if f["code"] == "CLEANUP_OWED"]

    assert found() == [("INFO", "1 more items are still to be removed")]
    for _ in range(3):
        (command,) = told(fleet)
        agents[command.host].fail(command)
        fleet.pass_(INTERVAL_S, agents["h2"], agents["h3"])
    ((level, message),) = found()
    assert level == "WARNING"
    assert message.startswith("still to be removed after 3 tries")
    assert message.endswith("it said no")
