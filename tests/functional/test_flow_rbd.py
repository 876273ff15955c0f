"""Disks in Ceph (section 3, Volumes): who has them open is known, shut out, and then they go."""

from __future__ import annotations

from typing import Any

import pytest

from common import messages as m
from common.errors import BadRequest
from common.ownership import new_bearer
from manager.flows.shared_files import SHUT_OUT_S
from manager.store.cleanups import Cleanup, CleanupState
from manager.store.commands import CommandRow
from manager.store.volumes import Volume
from tests.functional.fleet import DOWN_S, FLEET, INTERVAL_S, Fleet, ScriptedAgent
from tests.functional.zone import ZONE, deploy, make, started

CEPH = {"kind": "rbd", "rbd_pool": "vms", "monitors": ["10.0.0.1:6789", "10.0.0.2:6789"]}
POOLS = [{"name": "ceph", "scope": "zone", "zone": "z1", **CEPH, "capacity_gib": 20}]
ADDRESS = "10.0.0.5:0/1234567"
Agents = dict[str, ScriptedAgent]


@pytest.fixture
def agents(fleet: Fleet) -> Agents:
    """Three hosts of a zone whose pool is in Ceph."""
    make(fleet, **ZONE, pools=POOLS)
    return {name: ScriptedAgent(fleet, name).up() for name in ("h1", "h2", "h3")}


def target(instance: str, generation: int = 1, n: int = 0) -> m.RbdTarget:
    bearer = new_bearer(FLEET, instance, generation)
    return m.RbdTarget(
        pool="vms",
        image=f"muster-{bearer}-disk{n}",
        monitors=("10.0.0.1:6789", "10.0.0.2:6789"),
    )


def disks(command: m.Command) -> list[m.DiskSpec]:
    return list(m.convert(command.spec["guest"], m.GuestSpec).disks)


def attached(instance: str, *addresses: str) -> m.Attachment:
    image = target(instance)
    return m.Attachment(
        pool=image.pool, image=image.image, image_id="10f6", addresses=addresses or (ADDRESS,)
    )


def running(fleet: Fleet, agents: Agents, **changes: Any) -> str:
    """A VM that runs on h1; its uuid."""
    instance: str = deploy(fleet, host="h1")["instance"]
    agents["h1"].succeed(
        started(fleet, "h1"), attached=(attached(instance),), look=_seen(agents["h1"], instance)
    )
    agents["h1"].beat(full=True)
    return instance


def _seen(agent: ScriptedAgent, instance: str) -> m.Look:
    agent.ours(instance)
    return agent.look(instance)


def db_only(fleet: Fleet, agents: Agents) -> str:
    """One that was deleted while h1 was DOWN; its uuid."""
    instance = running(fleet, agents)
    fleet.pass_(DOWN_S + INTERVAL_S, agents["h2"], agents["h3"])
    assert fleet.delete()["state"] == "SUCCEEDED"
    return instance


def clean_ups(fleet: Fleet) -> list[m.Command]:
    return [c.command for c in fleet.publish() if c.method == "clean_up"]


def test_an_image_is_named_by_its_very_guest_so_no_two_attempts_share_one(
    fleet: Fleet, agents: Agents
) -> None:
    instance: str = deploy(fleet)["instance"]
    first = started(fleet)
    assert disks(first)[0].rbd == target(instance, 1)
    assert disks(first)[0].folder is None
    agents[first.host].fail(first, look=agents[first.host].look(instance))
    fleet.tick()
    second = started(fleet)
    assert second.host != first.host
    assert disks(second)[0].rbd == target(instance, second.generation)
    assert disks(second)[0].rbd != disks(first)[0].rbd


def test_a_start_that_is_repeated_on_the_same_host_has_an_image_of_its_own(
    fleet: Fleet, agents: Agents
) -> None:
    instance: str = deploy(fleet, host="h1")["instance"]
    first = started(fleet, "h1")
    agents["h1"].say(
        results=(
            agents["h1"].result(
                first, m.Outcome.NOT_RUN, error_code="STALE_COMMAND", error="old", floor=7
            ),
        )
    )
    second = started(fleet, "h1")
    assert second.generation > 7
    assert disks(second)[0].rbd == target(instance, second.generation)


def test_from_where_an_image_is_open_is_kept_and_follows_the_guest(
    fleet: Fleet, agents: Agents
) -> None:
    instance = running(fleet, agents)
    kept = fleet.one(Volume).connector
    assert kept is not None
    assert kept["addresses"] == [ADDRESS]
    assert (kept["host"], kept["pool"], kept["image_id"]) == ("h1", "vms", "10f6")
    assert kept["image"] == target(instance).image
    (shown,) = fleet.ask("vm_show", vm="web-1")["volumes"]
    assert (shown["pool"], shown["connector"]["addresses"]) == ("ceph", [ADDRESS])

    fleet.ask("vm_reboot", vm="web-1", force=True, operator="ann", job=fleet.store.runtime.new_id())
    [reboot] = [c.command for c in fleet.publish() if c.method == "reboot_vm"]
    agents["h1"].succeed(reboot, attached=(attached(instance, "10.0.0.5:0/7654321"),))
    assert (fleet.one(Volume).connector or {})["addresses"] == ["10.0.0.5:0/7654321"]


def test_section3_row9_the_image_goes_by_another_host_which_shuts_the_guest_out(
    fleet: Fleet, agents: Agents
) -> None:
    instance = db_only(fleet, agents)
    (command,) = clean_ups(fleet)
    assert command.host in ("h2", "h3")
    assert m.convert(command.spec, m.CleanUpSpec).remains == m.RbdImage(
        target=target(instance), addresses=(ADDRESS,), expiry_s=SHUT_OUT_S
    )
    assert fleet.one(Volume).cleanup == fleet.one(Cleanup).uuid
    agents[command.host].succeed(command, look=None)
    assert fleet.one(Cleanup).state is CleanupState.DONE
    assert fleet.rows(Volume) == [], "its space is free, while its tombstone is still open"
    assert fleet.stone().holds != ()


def test_section3_row8_a_host_that_answers_has_removed_its_images_itself(
    fleet: Fleet, agents: Agents
) -> None:
    instance = running(fleet, agents)
    fleet.delete()
    [terminate] = [c.command for c in fleet.publish() if c.method == "terminate_instance"]
    (made,) = m.convert(terminate.spec, m.TerminateSpec).made
    assert made.images == (target(instance),)
    agents["h1"].lose(instance)
    agents["h1"].succeed(terminate)
    assert fleet.rows(Cleanup) == fleet.rows(Volume) == []


def test_section3_row9_a_clean_up_that_fails_is_owed_until_it_is_done(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    (first,) = clean_ups(fleet)
    agents[first.host].fail(first)
    assert fleet.rows(Volume) != []
    fleet.pass_(INTERVAL_S, agents["h2"], agents["h3"])
    (second,) = clean_ups(fleet)
    assert second.host != first.host
    agents[second.host].succeed(second, look=None)
    assert fleet.one(Cleanup).state is CleanupState.DONE


def test_what_removes_images_has_the_time_that_making_disks_has(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    (command,) = clean_ups(fleet)
    assert command.timeout_s == fleet.cfg.manager.create_timeout
    agents["h1"].hello()
    agents["h1"].beat(full=True)
    fleet.tick()
    (reap,) = fleet.wire.take("terminate_instance")
    assert reap.command.timeout_s == fleet.cfg.manager.create_timeout


def test_a_delete_that_removes_images_has_that_time_too(fleet: Fleet, agents: Agents) -> None:
    running(fleet, agents)
    fleet.delete()
    (sent,) = fleet.wire.take("terminate_instance")
    assert sent.command.timeout_s == fleet.cfg.manager.create_timeout


def test_a_host_without_access_does_not_make_the_next_one_wait(
    fleet: Fleet, agents: Agents
) -> None:
    db_only(fleet, agents)
    asked, waits = [], []
    for _ in range(6):
        (command,) = clean_ups(fleet)
        agents[command.host].fail(command, error_code="NO_ACCESS", error="no keyring")
        item = fleet.one(Cleanup)
        assert item.next_try_at is not None
        asked.append(command.host)
        waits.append((item.next_try_at - fleet.clock.now()).total_seconds())
        fleet.pass_(INTERVAL_S, agents["h2"], agents["h3"])
    assert set(asked[::2]).isdisjoint(asked[1::2])
    assert waits == [1, 2, 1, 4, 1, 8], "longer after each round of both"


def test_a_simulated_host_beside_real_ones_is_not_asked_to_remove_an_image(fleet: Fleet) -> None:
    make(fleet, **ZONE, pools=POOLS)
    drivers = {"h1": "libvirt", "h2": "simulated", "h3": "libvirt"}
    agents = {name: ScriptedAgent(fleet, name, driver=d).up() for name, d in drivers.items()}
    db_only(fleet, agents)
    for _ in range(2):
        (command,) = clean_ups(fleet)
        assert command.host == "h3"
        agents["h3"].fail(command)
        fleet.pass_(INTERVAL_S, agents["h2"], agents["h3"])


def test_addresses_of_an_earlier_guest_are_not_taken_for_those_of_this_one(
    fleet: Fleet, agents: Agents
) -> None:
    instance = running(fleet, agents)
    volume = fleet.one(Volume)
    other = {**(volume.connector or {}), "image": target(instance, 99).image}
    fleet.put(volume, connector=other)
    fleet.pass_(DOWN_S + INTERVAL_S, agents["h2"], agents["h3"])
    fleet.delete()
    (command,) = clean_ups(fleet)
    remains = m.convert(command.spec, m.CleanUpSpec).remains
    assert isinstance(remains, m.RbdImage)
    assert remains.addresses == ()


def test_the_monitors_of_a_pool_stay_while_a_vm_or_a_clean_up_of_its_image_names_them(
    fleet: Fleet, agents: Agents
) -> None:
    def moved() -> None:
        fields = {"monitors": ["10.0.0.9:6789"]}
        fleet.ask("model_set", kind="pool", name="ceph", fields=fields)

    running(fleet, agents)
    with pytest.raises(BadRequest, match="monitors"):
        moved()
    fleet.pass_(DOWN_S + INTERVAL_S, agents["h2"], agents["h3"])
    assert fleet.delete()["state"] == "SUCCEEDED"
    (command,) = clean_ups(fleet)
    with pytest.raises(BadRequest, match="monitors"):
        moved()
    agents[command.host].succeed(command, look=None)
    moved()


def test_every_attempt_that_was_never_answered_for_has_its_image_removed(
    fleet: Fleet, agents: Agents
) -> None:
    instance: str = deploy(fleet, host="h1")["instance"]
    started(fleet, "h1")
    fleet.pass_(DOWN_S + INTERVAL_S, agents["h2"], agents["h3"])
    fleet.delete()
    assert "clean_up" in [row.kind for row in fleet.rows(CommandRow)]
    images = {m.convert(i.remains, m.RbdImage).target for i in fleet.rows(Cleanup)}
    assert images == {target(instance)}
