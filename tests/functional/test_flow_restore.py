"""A database from a backup is older than its agents: nothing happens until somebody accepts it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from common import messages as m
from common.errors import EXIT_REFUSED, BadRequest, DbRolledBack, WrongState
from common.states import HostState, JobState, PowerState, TaskState, TombstoneState, VmState
from manager.flows import restore
from manager.intake.hello import hello
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.mapping import metadata
from manager.store.rollbacks import AgentFloor, Rollback
from tests.functional.fleet import INTERVAL_S, Cast, Fleet, ScriptedAgent

EVERY_S = 30.0


@pytest.fixture
def fleet(fleet_of: Callable[..., Fleet]) -> Fleet:
    return fleet_of(canary_interval=EVERY_S)


class Backup:
    """All rows, as they were."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        with fleet.store.engine.begin() as conn:
            self._rows = {
                table.name: [dict(row._mapping) for row in conn.execute(sa.select(table))]
                for table in metadata.sorted_tables
            }

    def put_back(self, but: str = "") -> None:
        """`but`: a table that stays as it is."""
        with self._fleet.store.engine.begin() as conn:
            for table in metadata.sorted_tables:
                if table.name == but:
                    continue
                conn.execute(sa.delete(table))
                if self._rows[table.name]:
                    conn.execute(sa.insert(table), self._rows[table.name])


def canaries(fleet: Fleet, *agents: ScriptedAgent) -> list[int]:
    """The marks that canaries carry to the agents, which answer and keep them as real ones do."""
    marks = []
    for cast in fleet.publish():
        for agent in agents:
            if cast.command.kind is m.CommandKind.NOOP and cast.host == agent.host:
                agent.succeed(cast.command, look=None)
                marks.append(cast.command.store_mark)
                agent.mark = max(agent.mark, cast.command.store_mark)
    return marks


def go_on(fleet: Fleet, seconds: float, *agents: ScriptedAgent) -> None:
    while seconds > 0:
        seconds -= INTERVAL_S
        fleet.pass_(INTERVAL_S, *agents)
        canaries(fleet, *agents)


def greet(fleet: Fleet, agent: ScriptedAgent) -> m.Welcome:
    """A hello by the door that agents use."""
    asked = m.builtins(agent.greeting())
    return m.convert(hello(fleet.store, fleet.cfg, {"hello": asked}), m.Welcome)


def test_the_mark_rises_by_the_clock_and_reaches_every_agent(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    before = h1.mark
    go_on(fleet, 120.0, h1)
    assert before + 5 <= h1.mark <= before + 13
    # Hellos do not raise it: many of them must not let a restored database catch up.
    assert len({greet(fleet, h1).store_mark for _ in range(5)}) == 1


def test_an_agent_that_is_ahead_gets_no_session_until_the_restore_is_accepted(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    kept, gone = fleet.deploy(h1, "kept"), fleet.deploy(h1, "gone")
    fleet.delete("gone")
    backup = Backup(fleet)
    (terminate,) = [c for c in fleet.publish() if c.command.instance == gone.uuid]
    h1.carry_out(terminate.command)
    for _ in range(3):
        fleet.ask("vm_reboot", vm="kept")
        for cast in fleet.publish():
            if cast.command.instance == kept.uuid:
                h1.carry_out(cast.command)
    told = fleet.vm("kept").generation
    go_on(fleet, 300.0, h1, h2)

    backup.put_back()
    fleet.pass_(1.0, h1, h2, step=1.0)
    (mark,) = set(canaries(fleet, h1, h2))
    assert mark < h1.mark  # a real agent says hello now
    with pytest.raises(DbRolledBack) as refused:
        greet(fleet, h1)
    assert refused.value.data == {"floors": 0}
    h1.session = None
    floors = (m.FloorEntry(kept.uuid, told), m.FloorEntry(gone.uuid, 2), m.FloorEntry("?", 9))
    h1.say(floors=floors)
    h1.say(floors=floors)
    with pytest.raises(DbRolledBack) as refused:
        greet(fleet, h1)
    assert refused.value.data == {"floors": 3}
    fleet.pass_(INTERVAL_S, h1, h2)
    assert h1.row.state is HostState.SUSPECT
    assert "DB_ROLLED_BACK" in h1.row.reason
    found = [f for f in fleet.ask("doctor")["findings"] if f["code"] == "DB_ROLLED_BACK"]
    assert [(f["object"], f["level"]) for f in found] == [("h1", "ERROR")]
    assert "3 floors" in found[0]["message"]
    assert len(fleet.events("DB_ROLLED_BACK")) == 1
    # However long nobody accepts: it does not catch up.
    fleet.pass_(3600.0, h1, h2, step=60.0)
    with pytest.raises(DbRolledBack):
        greet(fleet, h1)
    assert not [c for c in fleet.publish() if c.host == "h1"]

    with pytest.raises(BadRequest):
        fleet.ask("db_accept_restore", operator="ann")
    done = fleet.ask("db_accept_restore", operator="ann", reason="disk died")
    assert done["hosts"] == ["h1"]
    assert done["raised"] == {kept.uuid: told}  # that of the other is in the backup already
    assert fleet.rows(Rollback) == fleet.rows(AgentFloor) == []
    welcome = greet(fleet, h1)
    assert welcome.store_mark > h1.mark
    h1.session, h1.mark = welcome.session, welcome.store_mark
    h1.beat(full=True)
    fleet.tick()
    assert h1.row.state is HostState.UP
    # The delete of the backup goes on, and what is new goes above what agents know.
    casts = fleet.publish()
    (again,) = [c for c in casts if c.command.instance == gone.uuid]
    h1.carry_out(again.command)
    assert fleet.stone(name="gone").state is TombstoneState.CLOSED
    fleet.ask("vm_stop", vm="kept")
    (stop,) = [c for c in fleet.publish() if c.command.instance == kept.uuid]
    assert stop.command.generation > told
    with pytest.raises(WrongState):
        fleet.ask("db_accept_restore", operator="ann", reason="again")


def test_open_tombstones_are_raised_and_listed_but_never_doom_a_live_vm(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1, "dead")
    fleet.ask("host_set_down", host="h1", reason="smoke")
    fleet.delete("dead")
    stone = fleet.stone()
    fleet.ask("host_unset_down", host="h1")
    h1.mark = 1000
    with pytest.raises(DbRolledBack):
        greet(fleet, h1)
    h1.say(floors=(m.FloorEntry(vm.uuid, 40),))
    done = fleet.ask("db_accept_restore", operator="ann", reason="disk died")
    assert [t["uuid"] for t in done["tombstones"]] == [stone.uuid]
    assert fleet.stone().generation >= 40
    welcome = greet(fleet, h1)
    h1.session = welcome.session
    (reap,) = [c for c in fleet.publish() if c.command.instance == vm.uuid]
    assert reap.command.generation > 40
    h1.carry_out(reap.command)
    assert fleet.stone().state is TombstoneState.CLOSED


def test_agents_of_another_timeline_are_taken_over_only_when_accepted(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    strange = ScriptedAgent(fleet, "h3")
    strange.timeline, strange.mark = "another", 7
    with pytest.raises(DbRolledBack, match="another"):
        greet(fleet, strange)
    strange.guest(power_state=PowerState.RUNNING)
    fleet.ask("db_accept_restore", operator="ann", reason="a new database on purpose")
    welcome = greet(fleet, strange)
    assert welcome.store_timeline == h1.timeline
    ahead = ScriptedAgent(fleet, "h4")
    ahead.timeline, ahead.mark = "another", 8
    with pytest.raises(DbRolledBack):
        greet(fleet, ahead)


def test_what_was_seen_in_sessions_that_the_backup_does_not_know_blocks_no_news(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """The agent answers a command of the backup from its journal, with the look of that time."""
    vm = fleet.deploy(h1, "web-1")
    fleet.ask("vm_stop", vm="web-1")
    (stop,) = [c for c in fleet.publish() if c.command.instance == vm.uuid]
    backup = Backup(fleet)
    for _ in range(5):
        h1.hello()
    h1.beat(full=True)
    h1.power(vm.uuid, PowerState.SHUTOFF)
    old = h1.succeed(stop.command)  # in session 6
    h1.power(vm.uuid, PowerState.RUNNING)  # started again, and lost with the database
    go_on(fleet, 300.0, h1)

    backup.put_back()
    with pytest.raises(DbRolledBack):
        greet(fleet, h1)
    fleet.ask("db_accept_restore", operator="ann", reason="disk died")
    h1.session = greet(fleet, h1).session
    h1.say(results=(old,))  # from the journal: cast again under its id
    h1.beat(full=True)
    assert fleet.vm().power_state is PowerState.RUNNING


@pytest.mark.parametrize("verb", ["vm_start", "vm_stop", "vm_reboot", "vm_delete"])
def test_a_wish_about_a_host_that_is_ahead_is_refused(
    fleet: Fleet, h1: ScriptedAgent, verb: str
) -> None:
    fleet.deploy(h1, "web-1")
    h1.mark = 1000
    with pytest.raises(DbRolledBack):
        greet(fleet, h1)
    before = fleet.everything()
    with pytest.raises(DbRolledBack, match="nothing is changed there") as refused:
        fleet.ask(verb, vm="web-1")
    assert refused.value.exit_code == EXIT_REFUSED
    assert "db accept-restore" in refused.value.remedy
    assert fleet.everything() == before
    fleet.ask("db_accept_restore", operator="ann", reason="disk died")
    assert fleet.ask(verb, vm="web-1")["kind"] == verb.removeprefix("vm_")


def test_a_forced_delete_is_taken_though_its_host_is_ahead(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1, "web-1")
    h1.mark = 1000
    with pytest.raises(DbRolledBack):
        greet(fleet, h1)
    job = fleet.delete("web-1", force=True, reason="whatever it knows")
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.stone().state is TombstoneState.OPEN


@pytest.mark.parametrize("listing", ["vm_list", "host_list", "job_list", "alien_list"])
def test_every_listing_says_which_hosts_are_ahead(
    fleet: Fleet, h1: ScriptedAgent, listing: str
) -> None:
    assert fleet.ask(listing)["notices"] == []
    h1.mark = 1000
    with pytest.raises(DbRolledBack):
        greet(fleet, h1)
    (notice,) = fleet.ask(listing)["notices"]
    assert "older than the agents of 1 hosts (h1)" in notice
    assert "muster doctor" in notice


def test_accepting_tells_which_hosts_were_not_compared_and_how_many_jobs_go_on(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    h3 = ScriptedAgent(fleet, "h3").up()
    for name in ("web-1", "web-2"):
        fleet.deploy(h1, name)
    go_on(fleet, EVERY_S, h1, h2, h3)
    fleet.ask("vm_stop", vm="web-1")
    backup = Backup(fleet)
    go_on(fleet, EVERY_S, h1, h2, h3)

    backup.put_back()
    fleet.clock.move(INTERVAL_S)
    with pytest.raises(DbRolledBack):
        greet(fleet, h1)
    fleet.clock.move(1.0)
    h2.hello(store_mark=0)  # it has seen nothing that this database has not
    fleet.tick()
    canaries(fleet, h2)
    # Its session was in the backup, it reports in it, and no canary has told it the mark yet.
    h3.beat()
    done = fleet.ask("db_accept_restore", operator="ann", reason="disk died")
    assert (done["hosts"], done["not_compared"], done["open_jobs"]) == (["h1"], ["h3"], 1)
    (event,) = fleet.events("db.restore_accepted")
    assert "not compared: h3; open jobs of the backup that go on: 1" in event.text


def test_an_agent_of_another_database_does_not_hold_up_the_mark(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    strange = ScriptedAgent(fleet, "h3")
    strange.timeline, strange.mark = "another", 7
    with pytest.raises(DbRolledBack, match="another"):
        greet(fleet, strange)
    (found,) = [f for f in fleet.ask("doctor")["findings"] if f["code"] == "DB_ROLLED_BACK"]
    assert "h3 belongs to another database" in found["message"]
    before = h1.mark
    go_on(fleet, 120.0, h1)
    assert h1.mark >= before + 5
    done = fleet.ask("db_accept_restore", operator="ann", reason="a new database on purpose")
    assert (done["hosts"], done["not_compared"], done["open_jobs"]) == (["h3"], [], 0)


def test_every_command_carries_the_mark_of_its_managers_store(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1, "web-1")
    go_on(fleet, 60.0, h1)
    fleet.ask("vm_stop", vm="web-1")
    (stop,) = [c.command for c in fleet.publish()]
    assert (stop.store_timeline, stop.store_mark) == (h1.timeline, h1.mark)
    fleet.clock.move(20.0)
    fleet.tick()
    (again,) = [c.command for c in fleet.publish() if c.command.id == stop.id]
    assert again.store_mark == stop.store_mark + 1


def start_of(fleet: Fleet, vm: Instance) -> Cast:
    """The start_vm that is cast for it now."""
    (cast,) = [c for c in fleet.publish() if c.command.instance == vm.uuid]
    assert cast.command.kind is m.CommandKind.START_VM
    return cast


def being_tried_elsewhere(fleet: Fleet, h1: ScriptedAgent) -> tuple[Instance, Backup]:
    """A VM that h1 has refused, and a backup of that moment."""
    h1.beat(full=True, capacity_mib=1 << 20)
    vm = fleet.row(Instance, fleet.create("web-1")["instance"])
    start = start_of(fleet, vm)
    assert start.host == "h1"  # it has the most memory
    h1.fail(start.command, error_code="HYPERVISOR_ERROR", error="no", look=h1.look(vm.uuid))
    assert (fleet.vm().host, fleet.vm().vm_state) == (None, VmState.BUILDING)
    return vm, Backup(fleet)


@pytest.mark.parametrize("seen", ["after the restore", "before the backup"])
def test_a_vm_is_not_started_once_more_while_a_guest_is_there_that_a_restored_database_forgot(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent, seen: str
) -> None:
    vm, backup = being_tried_elsewhere(fleet, h1)
    fleet.tick()
    start = start_of(fleet, vm)
    h2.carry_out(start.command)

    if seen == "after the restore":
        backup.put_back()
        h2.beat(full=True)
    else:
        backup.put_back(but="sightings")
    fleet.tick()
    assert not [c for c in fleet.publish() if c.command.instance == vm.uuid]
    vm = fleet.vm()
    assert (vm.host, vm.vm_state, vm.power_state) == ("h2", VmState.ACTIVE, PowerState.RUNNING)
    assert vm.generation >= start.command.generation
    (job,) = fleet.rows(Job)
    assert (job.state, job.error_code) == (JobState.FAILED, "OUTCOME_UNKNOWN")
    assert "this database has no record of it" in (job.error or "")
    claims = {h.name: h.memory_mib_claimed for h in fleet.rows(Host)}
    assert claims == {"h1": 0, "h2": vm.memory_mib}
    # It is a VM as any other.
    fleet.ask("vm_stop", vm="web-1")
    (stop,) = [c for c in fleet.publish() if c.command.instance == vm.uuid]
    h2.carry_out(stop.command)
    assert fleet.vm().task_state is TaskState.NONE


def test_a_vm_without_a_guest_that_was_started_in_the_forgotten_time_is_what_its_guest_is(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.row(Instance, fleet.create("web-1", start=False)["instance"])
    backup = Backup(fleet)
    fleet.ask("vm_start", vm="web-1")
    h1.carry_out(start_of(fleet, vm).command)
    h1.power(vm.uuid, PowerState.PAUSED)

    backup.put_back()
    assert fleet.vm().host is None
    h1.beat(full=True)
    vm = fleet.vm()
    assert (vm.host, vm.vm_state, vm.power_state) == ("h1", VmState.PAUSED, PowerState.PAUSED)
    (event,) = fleet.events("instance.taken_over")
    assert "h1 shows its guest" in event.text


def test_accepting_ends_the_start_of_a_vm_of_which_an_agent_knows_a_forgotten_one(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    vm, backup = being_tried_elsewhere(fleet, h1)
    fleet.tick()
    forgotten = start_of(fleet, vm).command
    h2.carry_out(forgotten)

    backup.put_back()
    h2.guests, guests = {}, h2.guests  # its session is over before it could report
    h2.mark = 1000
    with pytest.raises(DbRolledBack):
        greet(fleet, h2)
    h2.say(floors=(m.FloorEntry(vm.uuid, forgotten.generation),))
    h2.guests = guests
    assert fleet.vm().vm_state is VmState.BUILDING
    fleet.ask("db_accept_restore", operator="ann", reason="disk died")
    vm = fleet.vm()
    assert (vm.host, vm.vm_state, vm.task_state) == ("h2", VmState.ERROR, TaskState.NONE)
    assert "the agent of h2 knows a later command of it" in vm.error
    assert not [c for c in fleet.publish() if c.command.instance == vm.uuid]
    h2.session = greet(fleet, h2).session
    h2.beat(full=True)
    assert (fleet.vm().vm_state, fleet.vm().error) == (VmState.ACTIVE, "")


def test_a_vm_is_not_tried_elsewhere_before_every_host_has_shown_its_guests_after_a_restore(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    h3 = ScriptedAgent(fleet, "h3").up()
    fleet.ask("host_disable", host="h3")
    vm, backup = being_tried_elsewhere(fleet, h1)
    fleet.tick()
    forgotten = start_of(fleet, vm).command
    h2.carry_out(forgotten)

    backup.put_back()
    h2.mark = 1000
    with pytest.raises(DbRolledBack):
        greet(fleet, h2)
    fleet.ask("host_enable", host="h3")
    fleet.tick()
    (job,) = fleet.rows(Job)
    assert job.waiting_for == "agents to compare what they know with this database"
    fleet.ask("db_accept_restore", operator="ann", reason="its floors were not told yet")
    fleet.pass_(INTERVAL_S, h1, h3)
    assert not [c for c in fleet.publish() if c.command.instance == vm.uuid]
    (job,) = fleet.rows(Job)
    assert job.waiting_for == "h2 to show its guests, since a restore was accepted"
    h2.session = greet(fleet, h2).session
    h2.beat(full=True)
    fleet.pass_(INTERVAL_S, h1, h2, h3)
    assert (fleet.vm().host, fleet.vm().vm_state) == ("h2", VmState.ACTIVE)
    assert not [c for c in fleet.publish() if c.command.instance == vm.uuid]


def test_a_host_that_stays_away_after_a_restore_does_not_hold_up_a_create_for_ever(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    wished_at = fleet.clock.now()
    h2.mark += 1000
    with pytest.raises(DbRolledBack):
        greet(fleet, h2)
    fleet.ask("db_accept_restore", operator="ann", reason="the disk died")

    def awaited() -> str:
        return fleet.store.run(restore.untold, fleet.cfg, wished_at)

    go_on(fleet, INTERVAL_S, h1)
    assert "h2 to show its guests" in awaited()
    go_on(fleet, fleet.cfg.manager.service_down_time, h1)
    assert awaited() == ""
