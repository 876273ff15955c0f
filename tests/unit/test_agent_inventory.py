"""Heartbeats rebuilt on the managers' side agree with the hypervisor, whatever gets lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.answers import Identity
from agent.drivers.base import Listing
from agent.inventory import Inventory
from agent.session import Session
from common import messages as m
from common.bus.base import Bus
from common.errors import BrokerUnavailable, HypervisorUnavailable
from common.ownership import Mark
from common.runtime import Runtime
from common.states import PowerState
from simulation.runtime import SimRuntime
from simulation.world import World
from tests.wait import wait_until

Pair = tuple[int, int]


class Hypervisor:
    """A driver that shows what the test wishes."""

    name = "stub"

    def __init__(self) -> None:
        self.guests: dict[str, PowerState] = {}
        self.errors: set[str] = set()
        self.broken = False
        self.sick = ""
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0
        self.used = 0
        self.after_listing: Callable[[], object] = lambda: None

    def list_guests(self) -> Listing:
        self.asked += 1
        self.gate.wait(30.0)
        if self.broken:
            raise HypervisorUnavailable("gone fishing", "wait")
        listing = Listing(
            guests=tuple(
                g for u in sorted(self.guests) if u not in self.errors and (g := self.look(u))
            ),
            errors={u: "unreadable" for u in self.errors if u in self.guests},
        )
        self.after_listing()
        return listing

    def look(self, uuid: str) -> m.GuestReport | None:
        """A guest of instance i-UUID."""
        if uuid not in self.guests:
            return None
        return m.GuestReport(
            hypervisor_uuid=uuid,
            name=uuid,
            power_state=self.guests[uuid],
            vcpus=1,
            memory_mib=1,
            mark=Mark(fleet="f", instance=f"i-{uuid}", generation=1, bearer=uuid),
        )

    def capacity(self) -> m.Capacity:
        return m.Capacity(
            vcpus_total=4, memory_mib_total=4, vcpus_used=self.used, memory_mib_used=0
        )

    def health(self) -> str:
        return self.sick


class Ear:
    """The managers' end: what came through, and the view it adds up to.

    As managers do it: what is not newer, by (session, seq), than what is held of a guest is not
    taken; a look that shows no guest is about all of its instance.
    """

    def __init__(self) -> None:
        self.beats: list[m.Heartbeat] = []
        self.away = False
        self.lossy = False
        self.held: dict[str, tuple[Pair, m.GuestReport | None]] = {}
        self.agrees = False
        self.while_sending: Callable[[], object] = lambda: None

    @property
    def view(self) -> dict[str, m.GuestReport]:
        return {u: g for u, (_, g) in self.held.items() if g is not None}

    def publish(self, _key: str, body: bytes, ttl_s: float | None = None) -> None:
        assert ttl_s is not None
        if self.away:
            raise BrokerUnavailable("no broker", "wait")
        if self.lossy:
            return
        beat = m.decode(body, m.Heartbeat)
        self.beats.append(beat)
        if beat.inventory is not None:
            self._take(beat.inventory, (beat.session or 0, beat.seq))
        self.while_sending()

    def _take(self, told: m.Inventory, pair: Pair) -> None:
        assert told.complete or not (told.full or told.gone)
        for guest in told.guests:
            self._see(guest.hypervisor_uuid, pair, guest)
        listed = {g.hypervisor_uuid for g in told.guests}
        for uuid in set(self.held) - listed if told.full else told.gone:
            self._see(uuid, pair, None)
        self.agrees = told.digest == m.digest(g.fingerprint() for g in self.view.values())

    def take_look(self, instance: str, look: m.Look) -> None:
        pair = (look.session, look.seq)
        if look.guest is not None:
            self._see(look.guest.hypervisor_uuid, pair, look.guest)
        for uuid, guest in self.view.items() if look.guest is None else ():
            if guest.mark is not None and guest.mark.instance == instance:
                self._see(uuid, pair, None)

    def _see(self, uuid: str, pair: Pair, guest: m.GuestReport | None) -> None:
        if uuid not in self.held or pair > self.held[uuid][0]:
            self.held[uuid] = (pair, guest)


class Rig:
    def __init__(
        self, full_s: float = 3600.0, interval_s: float = 5.0, runtime: Runtime | None = None
    ) -> None:
        self.runtime = runtime or Runtime("inventory")
        self.results: list[tuple[str, m.Look]] = []
        self.driver, self.ear = Hypervisor(), Ear()
        self.session = Session(self.runtime)
        self.session.begin(1)
        bus: Bus = self.ear  # type: ignore[assignment]
        self.inventory = Inventory(
            self.runtime,
            bus,
            self.driver,  # type: ignore[arg-type]
            self.session,
            Identity(fleet="f", host="h", agent_run="r"),
            interval_s=interval_s,
            full_s=full_s,
            call_timeout_s=1.0,
            learn=lambda _listing: None,
            receipts=lambda: (),
            dropped=lambda: 0,
        )

    def beat(self, *, only_changes: bool = False) -> m.Heartbeat | None:
        """The heartbeat that this beat sent, if it sent one."""
        before = len(self.ear.beats)
        self.inventory.beat(only_changes=only_changes)
        return self.ear.beats[-1] if len(self.ear.beats) > before else None

    def command(self, uuid: str, state: PowerState | None) -> None:
        """A command has its effect, and its look; the result is yet to be told."""
        if state is None:
            self.driver.guests.pop(uuid, None)
        else:
            self.driver.guests[uuid] = state
        session, seq = self.session.draw_pair()
        look = m.Look(session=session, seq=seq, guest=self.driver.look(uuid))
        self.results.append((f"i-{uuid}", look))

    def tell(self) -> None:
        """The oldest result is published, and arrives unless messages get lost."""
        if self.results and not self.ear.away:
            instance, look = self.results.pop(0)
            if not self.ear.lossy:
                self.ear.take_look(instance, look)
            self.inventory.told(instance, look)


def _told(beat: m.Heartbeat | None) -> m.Inventory:
    assert beat is not None
    assert beat.inventory is not None
    return beat.inventory


def test_a_stale_event_sends_nothing_and_a_true_one_sends_the_change() -> None:
    rig = Rig()
    rig.driver.guests["a"] = PowerState.RUNNING
    rig.beat()
    assert rig.beat(only_changes=True) is None
    rig.driver.guests["a"] = PowerState.SHUTOFF
    told = _told(rig.beat(only_changes=True))
    assert [(g.hypervisor_uuid, g.power_state) for g in told.guests] == [("a", 5)]
    assert rig.beat(only_changes=True) is None


@pytest.mark.parametrize("state", [PowerState.SHUTOFF, None])
def test_what_a_result_has_told_is_not_told_again(state: PowerState | None) -> None:
    rig = Rig()
    rig.driver.guests = {"a": PowerState.RUNNING, "b": PowerState.RUNNING}
    rig.beat()
    rig.command("a", state)
    rig.tell()
    assert rig.beat(only_changes=True) is None
    told = _told(rig.beat())
    assert (told.full, told.guests, told.gone) == (False, (), ())
    assert rig.ear.agrees
    rig.driver.guests["b"] = PowerState.PAUSED
    assert [g.hypervisor_uuid for g in _told(rig.beat(only_changes=True)).guests] == ["b"]


@pytest.mark.parametrize("state", [PowerState.SHUTOFF, None])
def test_a_result_that_was_lost_shows_in_the_digest_and_a_full_report_heals(
    state: PowerState | None,
) -> None:
    rig = Rig()
    rig.driver.guests = {"a": PowerState.RUNNING}
    rig.beat()
    rig.command("a", state)
    rig.ear.lossy = True
    rig.tell()
    rig.ear.lossy = False
    assert rig.beat(only_changes=True) is None
    told = _told(rig.beat())
    there = [g.fingerprint() for g in (rig.driver.look("a"),) if g is not None]
    assert told.digest == m.digest(there)
    assert not rig.ear.agrees
    rig.inventory._full_due = True
    assert _told(rig.beat()).full
    assert rig.ear.agrees
    assert {u: g.power_state for u, g in rig.ear.view.items()} == rig.driver.guests


def test_a_result_does_not_undo_what_a_later_look_told() -> None:
    rig = Rig()
    rig.driver.guests["a"] = PowerState.RUNNING
    rig.command("a", PowerState.PAUSED)
    rig.driver.guests["a"] = PowerState.SHUTOFF
    rig.beat()
    rig.tell()
    assert rig.beat(only_changes=True) is None
    rig.beat()
    assert rig.ear.agrees
    rig.command("a", None)
    rig.driver.guests["a"] = PowerState.SHUTOFF
    rig.beat()
    rig.tell()
    assert rig.beat(only_changes=True) is None


@pytest.mark.parametrize("state", [PowerState.SHUTOFF, None])
@pytest.mark.parametrize("when", ["after_listing", "while_sending"])
def test_a_look_begun_before_a_result_was_told_says_nothing_against_it(
    when: str, state: PowerState | None
) -> None:
    rig = Rig()
    rig.driver.guests = {"a": PowerState.RUNNING, "b": PowerState.RUNNING}
    rig.beat()

    def meanwhile() -> None:
        if rig.driver.guests["b"] is PowerState.PAUSED:
            rig.driver.guests["b"] = PowerState.BLOCKED
            rig.command("a", state)
            rig.tell()

    setattr(rig.driver if when == "after_listing" else rig.ear, when, meanwhile)
    rig.driver.guests["b"] = PowerState.PAUSED
    told = _told(rig.beat())
    assert ([g.hypervisor_uuid for g in told.guests], told.gone) == (["b"], ())
    if when == "after_listing":
        assert rig.ear.agrees
    again = _told(rig.beat(only_changes=True))
    assert ([g.hypervisor_uuid for g in again.guests], again.gone) == (["b"], ())
    assert rig.ear.agrees
    assert rig.beat(only_changes=True) is None


def test_a_result_of_another_session_teaches_nothing() -> None:
    rig = Rig()
    rig.driver.guests["a"] = PowerState.RUNNING
    rig.command("a", PowerState.SHUTOFF)
    rig.session.end()
    rig.session.begin(2)
    rig.driver.guests["a"] = PowerState.RUNNING
    rig.beat()
    rig.tell()
    assert rig.beat(only_changes=True) is None
    rig.beat()
    assert rig.ear.agrees


def test_capacity_that_changed_with_a_command_is_told_within_a_second() -> None:
    world = World(1)
    rig = Rig(interval_s=10.0, runtime=SimRuntime(world, "agent"))
    rig.driver.guests["a"] = PowerState.RUNNING
    rig.runtime.spawn("heartbeats", rig.inventory.loop)
    told: list[tuple[float, int]] = []

    def heard() -> None:
        capacity = rig.ear.beats[-1].capacity
        assert capacity is not None
        told.append((round(world.now_s, 2), capacity.vcpus_used))

    rig.ear.while_sending = heard

    def ends() -> None:
        rig.driver.used += 1
        rig.command("a", PowerState.SHUTOFF)
        rig.tell()
        rig.inventory.changed("a")

    for n in range(5):
        world.after(2.0 + n * 0.1, ends)
    world.run(20.0)
    rig.runtime.kill()
    assert told == [(0.0, 0), (3.05, 5), (13.05, 5)]


def test_what_could_not_be_sent_is_told_by_the_next_heartbeat() -> None:
    rig = Rig()
    rig.driver.guests = {"a": PowerState.RUNNING, "b": PowerState.RUNNING}
    rig.beat()
    rig.ear.away = True
    del rig.driver.guests["a"]
    rig.driver.guests["b"] = PowerState.SHUTOFF
    assert rig.beat() is None
    rig.ear.away = False
    told = _told(rig.beat())
    assert (told.gone, len(told.guests)) == (("a",), 1)
    assert rig.ear.agrees


def test_what_was_lost_on_the_way_shows_in_the_digest() -> None:
    rig = Rig()
    rig.beat()
    rig.ear.lossy = True
    rig.driver.guests["a"] = PowerState.RUNNING
    rig.beat()
    rig.ear.lossy = False
    rig.beat()
    assert not rig.ear.agrees
    rig.inventory._full_due = True
    rig.beat()
    assert rig.ear.agrees


def test_a_new_session_begins_with_a_full_report() -> None:
    rig = Rig()
    assert _told(rig.beat()).full
    assert not _told(rig.beat()).full
    rig.session.end()
    silent = rig.beat()
    assert silent is not None
    assert (silent.session, silent.inventory) == (None, None)
    rig.session.begin(2)
    assert _told(rig.beat()).full


def test_a_full_report_comes_every_so_often() -> None:
    rig = Rig(full_s=0.0)
    assert [_told(rig.beat()).full for _ in range(3)] == [True, True, True]


def test_session_and_number_are_those_of_the_look_and_not_of_the_sending() -> None:
    rig = Rig()
    rig.driver.gate.clear()
    sending = threading.Thread(target=rig.inventory.beat)
    sending.start()
    wait_until(lambda: rig.driver.asked == 1)
    later = rig.session.draw_pair()
    rig.session.begin(2)
    rig.driver.gate.set()
    sending.join(30.0)
    beat = rig.ear.beats[-1]
    assert (beat.session, beat.seq) < later
    assert beat.session == 1


def test_health_that_is_not_good_makes_a_listing_incomplete() -> None:
    rig = Rig()
    rig.driver.guests["a"] = PowerState.RUNNING
    rig.beat()
    rig.driver.sick = "half of it is away"
    del rig.driver.guests["a"]
    beat = rig.beat()
    assert beat is not None
    assert (beat.driver.healthy, beat.driver.message) == (False, "half of it is away")
    assert (_told(beat).complete, _told(beat).gone) == (False, ())


def test_a_hung_listing_is_waited_for_and_never_doubled() -> None:
    rig = Rig(interval_s=0.05)
    rig.beat()
    rig.driver.gate.clear()
    for _ in range(5):
        beat = rig.beat()
        assert beat is not None
        assert not beat.driver.healthy
        assert "listing has hung for" in beat.driver.message
        assert beat.inventory is None
    assert rig.driver.asked == 2
    rig.driver.gate.set()
    well = wait_until(lambda: (b := rig.beat()) is not None and b.driver.healthy and b)
    assert _told(well).full  # type: ignore[arg-type]
    seqs = [b.seq for b in rig.ear.beats]
    assert seqs == sorted(set(seqs))


Happening = Callable[[Rig], object]


def _set(uuid: str, state: PowerState) -> Happening:
    return lambda rig: rig.driver.guests.__setitem__(uuid, state)


def _flip(name: str) -> Happening:
    def flip(rig: Rig) -> None:
        owner = rig.driver if hasattr(rig.driver, name) else rig.ear
        setattr(owner, name, not getattr(owner, name))

    return flip


UUIDS = ["a", "b", "c"]
happenings = st.one_of(
    st.builds(_set, st.sampled_from(UUIDS), st.sampled_from([PowerState.RUNNING, PowerState(5)])),
    st.sampled_from(UUIDS).map(lambda u: lambda rig: rig.driver.guests.pop(u, None)),
    st.sampled_from(UUIDS).map(
        lambda u: lambda rig: rig.driver.errors.symmetric_difference_update({u})
    ),
    st.sampled_from(["broken", "away", "lossy"]).map(_flip),
    st.builds(
        lambda u, p: lambda rig: rig.command(u, p),
        st.sampled_from(UUIDS),
        st.sampled_from([PowerState.RUNNING, PowerState.PAUSED, None]),
    ),
    st.just(lambda rig: rig.tell()),
    st.just(lambda rig: rig.beat()),
    st.just(lambda rig: rig.beat(only_changes=True)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(happenings, max_size=25))
def test_the_managers_view_comes_to_agree_with_the_hypervisor(story: list[Happening]) -> None:
    rig = Rig()
    for happening in story:
        happening(rig)
    rig.driver.broken = rig.ear.away = rig.ear.lossy = False
    rig.driver.errors = set()
    while rig.results:
        rig.tell()
    rig.beat()
    if not rig.ear.agrees:
        # What a manager does about it.
        rig.inventory._full_due = True
        rig.beat()
    assert rig.ear.agrees
    assert {u: g.power_state for u, g in rig.ear.view.items()} == rig.driver.guests


@pytest.mark.parametrize("broken", [True, False])
def test_a_guest_is_never_told_gone_because_of_what_could_not_be_read(broken: bool) -> None:
    rig = Rig()
    rig.driver.guests = {"a": PowerState.RUNNING, "b": PowerState.RUNNING}
    rig.beat()
    rig.driver.broken = broken
    rig.driver.errors = {"a"}
    for _ in range(3):
        rig.inventory._full_due = True
        rig.beat()
    assert set(rig.ear.view) == {"a", "b"}
