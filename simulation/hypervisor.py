"""A simulated hypervisor in memory: it outlives its agent, and keeps an account of who did what."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from agent.drivers.base import Doing, Listing, OwnedGuest
from agent.drivers.checks import check_size
from agent.drivers.simulated.disks import folders_of, of_ceph
from common.errors import (
    GuestMissing,
    HypervisorError,
    HypervisorUnavailable,
    MusterError,
    NotOurs,
    StaleCommand,
)
from common.messages import (
    Attachment,
    Capacity,
    GuestFiles,
    GuestReport,
    GuestSpec,
    RbdImage,
    Remains,
    SnapshotDisk,
    SnapshotFiles,
)
from common.ownership import Mark, why_not_ours
from common.states import PowerState
from simulation.runtime import SimRuntime
from simulation.world import World

MEMORY_MIB = 8192
CLEAN_UP = "clean_up"
_RUNS = (PowerState.RUNNING, PowerState.BLOCKED)
WRITES = ("start", "reboot", "unpause", "resume")
_ON = (PowerState.RUNNING, PowerState.BLOCKED, PowerState.PAUSED)


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest was before a resize that is neither confirmed nor reverted."""

    key: str
    vcpus: int
    memory_mib: int
    root_gib: int | None


class SimGuest(msgspec.Struct, kw_only=True):
    """One guest; `stranger` is what the simulator knows and Muster must find out.

    `born`: the generation that it was made by; `written`: what its disks hold, a number that rises
    each time that an agent has it run.
    """

    uuid: str
    name: str
    vcpus: int
    memory_mib: int
    power_state: PowerState = PowerState.SHUTOFF
    mark: Mark | None = None
    domain_id: int | None = None
    macs: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    stranger: bool = False
    by_hand: bool = False
    born: int = 0
    written: int = 0
    root_gib: int | None = None
    before: Before | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """All that nobody else may have while it is there."""
        return self.macs + self.ips

    def report(self) -> GuestReport:
        return GuestReport(
            hypervisor_uuid=self.uuid,
            name=self.name,
            power_state=self.power_state,
            vcpus=self.vcpus,
            memory_mib=self.memory_mib,
            mark=self.mark,
            domain_id=self.domain_id,
            macs=self.macs,
        )


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a guest, and whose it was: "agent" or "hand"; with what SimGuest has of it."""

    at_s: float
    by: str
    verb: str
    guest: str
    instance: str | None
    generation: int | None
    stranger: bool
    born: int = 0
    written: int = 0


class Hypervisor:
    """The guests of one host. `down`: it does not answer; `slow_s`: the most that a step takes.

    `ambush`: what happens right after the next change of a guest. `off`: its power is cut, and
    nobody switches anything on there.
    """

    def __init__(self, world: World, host: str) -> None:
        self.world, self.host = world, host
        self.guests: dict[str, SimGuest] = {}
        self.acts: list[Act] = []
        self.down = False
        self.off = False
        self.partial = False
        self.failure_rate = 0.0
        self.untidiness = 0.0  # how often a clean-up fails
        self.after_error_rate = 0.0
        self.hang_rate = 0.0
        self.hung_until_s = 0.0
        self.slow_s = 0.0
        self.ambush: Callable[[], None] | None = None
        # What it answers every create with.
        self.refusal: MusterError | None = None
        self.memory_mib = MEMORY_MIB
        self._domain_ids = 0
        self.watchers: dict[int, Callable[[str | None], None]] = {}

    def next_domain_id(self) -> int:
        self._domain_ids += 1
        return self._domain_ids

    def note(self, by: str, verb: str, guest: SimGuest) -> None:
        mark = guest.mark
        if by == "agent" and verb in WRITES and guest.power_state in _RUNS:
            self.world.written += 1
            guest.written = self.world.written
        self.acts.append(
            Act(
                at_s=self.world.now_s,
                by=by,
                verb=verb,
                guest=guest.uuid,
                instance=mark.instance if mark else None,
                generation=mark.generation if mark else None,
                stranger=guest.stranger,
                born=guest.born,
                written=guest.written,
            )
        )
        self.world.news = True
        for watcher in list(self.watchers.values()):
            watcher(guest.uuid)

    # snapshots: in a store of the host's own, and in folders of pools, which hosts share

    def kept_in(self, files: SnapshotFiles | SnapshotDisk) -> tuple[str, str, str]:
        return (files.folder or self.host, files.instance, files.snapshot)

    def keep(self, files: SnapshotFiles, guest: SimGuest) -> None:
        """What its disks hold is in the snapshot, over what an earlier try has left there."""
        self.world.snapshots[self.kept_in(files)] = guest.written

    def drop(self, files: SnapshotFiles) -> bool:
        """True when there was one."""
        return self.world.snapshots.pop(self.kept_in(files), None) is not None

    # files: in the host's own folder, and in those of pools, which hosts may share

    def places(self, folders: Iterable[str]) -> list[str]:
        return [self.host, *sorted(folders)]

    def remove_disks(self, guest: str, folders: Iterable[str]) -> bool:
        """True when there were any."""
        disks, there = self.world.disks, False
        for place in self.places(folders):
            there = disks.pop((place, guest), None) is not None or there
        return there

    def cleaned(self, instance: str, guest: str = "") -> None:
        """An agent has removed what was left of an instance; `guest`: of one that is not there."""
        act = Act(
            at_s=self.world.now_s,
            by="agent",
            verb=CLEAN_UP,
            guest=guest,
            instance=instance,
            generation=None,
            stranger=False,
        )
        self.acts.append(act)
        self.world.news = True

    # by hand

    def make_stranger(self, name: str, mark: Mark | None = None) -> SimGuest:
        guest = SimGuest(
            uuid=self.world.new_id(),
            name=name,
            vcpus=1,
            memory_mib=128,
            power_state=PowerState.RUNNING,
            mark=mark,
            domain_id=self.next_domain_id(),
            stranger=True,
        )
        self.guests[guest.uuid] = guest
        self.note("hand", "make", guest)
        return guest

    def set_power(self, guest: SimGuest, state: PowerState) -> None:
        if state in _ON and guest.power_state not in _ON:
            guest.domain_id = self.next_domain_id()
        if state not in _ON:
            guest.domain_id = None
        guest.power_state, guest.by_hand = state, True
        self.note("hand", state.name, guest)

    def remove(self, guest: SimGuest) -> None:
        del self.guests[guest.uuid]
        self.note("hand", "remove", guest)

    def reboot(self) -> None:
        """The machine restarts: its guests are defined and off; saved memory is on disk."""
        for guest in self.guests.values():
            if guest.power_state is PowerState.SUSPENDED:
                continue
            guest.power_state, guest.domain_id, guest.by_hand = PowerState.SHUTOFF, None, True
            self.note("hand", "host reboot", guest)


class SimDriver:
    """The driver of one agent's life on a hypervisor that was there before and goes on after."""

    name = "simulation"
    attaches = False

    def __init__(self, hypervisor: Hypervisor, runtime: SimRuntime) -> None:
        self._hv, self._runtime = hypervisor, runtime

    def open(self, on_change: Callable[[str | None], None]) -> None:
        self._hv.watchers[id(self)] = on_change

    def close(self) -> None:
        self._hv.watchers.pop(id(self), None)

    def health(self) -> str:
        return "the hypervisor is down" if self._hv.down else ""

    def list_guests(self) -> Listing:
        self._before("list", changing=False)
        guests = list(self._hv.guests.values())
        if self._hv.partial and guests:
            left_out = guests.pop(self._hv.world.random.randrange(len(guests)))
            return Listing(
                guests=tuple(g.report() for g in guests), errors={left_out.uuid: "unreadable"}
            )
        return Listing(guests=tuple(g.report() for g in guests))

    def look(self, hypervisor_uuid: str) -> GuestReport | None:
        self._before("look", changing=False)
        guest = self._hv.guests.get(hypervisor_uuid)
        return guest.report() if guest else None

    def capacity(self) -> Capacity:
        running = [g for g in self._hv.guests.values() if g.power_state in _ON]
        return Capacity(
            vcpus_total=64,
            memory_mib_total=self._hv.memory_mib,
            vcpus_used=sum(g.vcpus for g in running),
            memory_mib_used=sum(g.memory_mib for g in running),
        )

    def create(self, spec: GuestSpec, mark: Mark, doing: Doing) -> GuestReport:
        doing("define")
        self._before("create")
        if self._hv.refusal is not None:
            raise self._hv.refusal
        if mark.bearer in self._hv.guests:
            raise HypervisorError(f"guest {mark.bearer} exists already", "")
        kept = [disk.snapshot for disk in spec.disks if disk.snapshot is not None]
        lost = [each for each in kept if self._hv.kept_in(each) not in self._hv.world.snapshots]
        if lost:
            raise HypervisorError(f"no snapshot {lost[0].snapshot}", "")
        guest = SimGuest(
            born=mark.generation,
            written=max((self._hv.world.snapshots[self._hv.kept_in(k)] for k in kept), default=0),
            uuid=mark.bearer,
            name=spec.name,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            macs=tuple(n.mac for n in spec.nics),
            ips=tuple(
                ip.partition("/")[0] for n in spec.nics for ip in (n.address, n.address6) if ip
            ),
            folders=tuple(sorted(folders_of(spec))),
            mark=mark,
            root_gib=_root_gib(spec),
        )
        self._hv.guests[guest.uuid] = guest
        for place in self._hv.places(guest.folders):
            self._hv.world.disks[place, guest.uuid] = mark.instance
        self._hv.note("agent", "create", guest)
        self._after("create")
        return guest.report()

    def remark(self, guest: OwnedGuest, generation: int) -> OwnedGuest:
        self._before("remark")
        found = self._ours(guest)
        if found.mark is not None and found.mark.generation > generation:
            raise StaleCommand(f"the mark has generation {found.mark.generation}", "")
        found.mark = msgspec.structs.replace(guest.mark, generation=generation)
        self._after("remark")
        return msgspec.structs.replace(guest, mark=found.mark, seen=found.report())

    def start(self, guest: OwnedGuest) -> None:
        self._before("start")
        found = self._current(guest)
        if found.power_state not in _RUNS:
            if found.power_state not in _ON:
                found.domain_id = self._hv.next_domain_id()
            found.power_state, found.by_hand = PowerState.RUNNING, False
            self._hv.note("agent", "start", found)
        self._after("start")

    def stop(self, guest: OwnedGuest, *, force: bool, timeout_s: float) -> None:
        self._before("stop")
        found = self._current(guest)
        if found.power_state in (*_ON, PowerState.SUSPENDED):
            found.power_state, found.domain_id, found.by_hand = PowerState.SHUTOFF, None, False
            self._hv.note("agent", "stop", found)
        self._after("stop")

    def reboot(self, guest: OwnedGuest, *, force: bool, timeout_s: float) -> None:
        self._before("reboot")
        found = self._current(guest)
        if found.power_state not in _ON:
            raise HypervisorError("it is not running", "")
        if force:
            found.domain_id = self._hv.next_domain_id()
        found.power_state = PowerState.RUNNING
        self._hv.note("agent", "reboot", found)
        self._after("reboot")

    def pause(self, guest: OwnedGuest) -> None:
        self._turn("pause", guest, _RUNS, PowerState.PAUSED)

    def unpause(self, guest: OwnedGuest) -> None:
        self._turn("unpause", guest, (PowerState.PAUSED,), PowerState.RUNNING)

    def suspend(self, guest: OwnedGuest) -> None:
        self._turn("suspend", guest, _ON, PowerState.SUSPENDED)

    def resume(self, guest: OwnedGuest) -> None:
        self._turn("resume", guest, (PowerState.SUSPENDED,), PowerState.RUNNING)

    def _turn(
        self, verb: str, guest: OwnedGuest, sources: tuple[PowerState, ...], to: PowerState
    ) -> None:
        self._before(verb)
        found = self._current(guest)
        if found.power_state is not to:
            if found.power_state not in sources:
                raise HypervisorError(f"it is {found.power_state.name}", "")
            if to not in _ON:
                found.domain_id = None
            elif found.power_state not in _ON:
                found.domain_id = self._hv.next_domain_id()
            found.power_state, found.by_hand = to, False
            self._hv.note("agent", verb, found)
        self._after(verb)

    def snapshot(
        self, guest: OwnedGuest, spec: GuestSpec, files: SnapshotFiles, doing: Doing
    ) -> None:
        doing("snapshot")
        self._before("snapshot")
        found = self._current(guest)
        if found.power_state is not PowerState.SHUTOFF:
            raise HypervisorError(f"it is {found.power_state.name}", "")
        if any(disk.path is None for disk in spec.disks):
            self._hv.keep(files, found)
        self._hv.note("agent", "snapshot", found)
        self._after("snapshot")

    def resize(self, guest: OwnedGuest, spec: GuestSpec, key: str, doing: Doing) -> None:
        doing("resize")
        self._before("resize")
        found = self._off(guest)
        if found.before is None or found.before.key != key:
            found.before = Before(
                key=key,
                vcpus=found.vcpus,
                memory_mib=found.memory_mib,
                root_gib=found.root_gib,
            )
        found.vcpus, found.memory_mib = spec.vcpus, spec.memory_mib
        found.root_gib = _root_gib(spec)
        self._hv.note("agent", "resize", found)
        self._after("resize")

    # What these do is not called as their commands are: traps are laid for either.

    def keeps(self, guest: OwnedGuest) -> str | None:
        self._before("look", changing=False)
        before = self._current(guest).before
        return None if before is None else before.key

    def confirm_resize(self, guest: OwnedGuest, spec: GuestSpec, key: str) -> None:
        self._before("give_up")
        found = self._current(guest)
        if found.before is None or found.before.key != key:
            _check_size(spec, found)
        else:
            found.before = None
            self._hv.note("agent", "give_up", found)
        self._after("give_up")

    def revert_resize(self, guest: OwnedGuest, spec: GuestSpec | None, key: str) -> None:
        self._before("put_back")
        found = self._current(guest)
        before = found.before
        if before is not None and before.key == key:
            self._off(guest)
            found.vcpus, found.memory_mib = before.vcpus, before.memory_mib
            found.root_gib, found.before = before.root_gib, None
            self._hv.note("agent", "put_back", found)
        elif spec is not None:
            _check_size(spec, found)
        self._after("put_back")

    def _off(self, guest: OwnedGuest) -> SimGuest:
        found = self._current(guest)
        if found.power_state in _ON:
            raise HypervisorError(f"it is {found.power_state.name}", "")
        return found

    def attached(self, guest: OwnedGuest) -> tuple[Attachment, ...]:
        return ()

    def destroy(self, guest: OwnedGuest) -> None:
        self._before("destroy")
        found = self._current(guest)
        self._hv.remove_disks(found.uuid, found.folders)
        del self._hv.guests[found.uuid]
        self._hv.note("agent", "destroy", found)
        self._after("destroy")

    def clean_up(self, remains: Remains) -> None:
        self._before("cleaning")
        if self._hv.world.chance(self._hv.untidiness):
            raise HypervisorError("cleaning fails", "")
        match remains:
            case GuestFiles():
                if remains.bearer in self._hv.guests:
                    raise HypervisorError(f"guest {remains.bearer} is there", "")
                places = {*remains.folders, *map(of_ceph, remains.images)}
                if self._hv.remove_disks(remains.bearer, places):
                    self._hv.cleaned(remains.instance, remains.bearer)
            case RbdImage():
                self._remove_image(remains)
            case SnapshotFiles():
                if self._hv.drop(remains):
                    self._hv.cleaned(remains.instance)
        self._after("cleaning")

    def _remove_image(self, image: RbdImage) -> None:
        """The image goes, whoever has it open: they are shut out before."""
        place = (of_ceph(image.target), image.target.guest)
        instance = self._hv.world.disks.get(place)
        if instance is not None:
            del self._hv.world.disks[place]
            self._hv.cleaned(instance)

    def _current(self, guest: OwnedGuest) -> SimGuest:
        """Ours, and not marked by a newer command since this call was made."""
        found = self._ours(guest)
        if found.mark is not None and found.mark.generation > guest.mark.generation:
            raise StaleCommand(f"the mark has generation {found.mark.generation}", "")
        return found

    def _ours(self, guest: OwnedGuest) -> SimGuest:
        found = self._hv.guests.get(guest.hypervisor_uuid)
        if found is None:
            raise GuestMissing("it is gone", "")
        why = why_not_ours(found.mark, fleet=guest.mark.fleet, hypervisor_uuid=found.uuid)
        if why or (found.mark and found.mark.instance != guest.mark.instance):
            raise NotOurs(f"{found.name} is left alone: {why}", "")
        return found

    def _before(self, op: str, changing: bool = True) -> None:
        world = self._hv.world
        self._runtime.point()
        if self._hv.down:
            raise HypervisorUnavailable("the hypervisor is down", "")
        if changing and world.chance(self._hv.hang_rate):
            self._hv.hung_until_s = world.now_s + world.random.choice((20.0, 90.0, 400.0))
        if world.now_s < self._hv.hung_until_s and changing:
            self._runtime.sleep(self._hv.hung_until_s - world.now_s)
        if changing and world.chance(self._hv.failure_rate):
            raise HypervisorError(f"{op} fails", "")
        self._take_time()

    def _after(self, op: str) -> None:
        self._runtime.point()
        ambush, self._hv.ambush = self._hv.ambush, None
        if ambush is not None:
            ambush()
            self._runtime.point()
        self._take_time()
        if self._hv.world.chance(self._hv.after_error_rate):
            raise HypervisorError(f"{op} fails after its effect", "")

    def _take_time(self) -> None:
        if self._hv.slow_s:
            self._runtime.sleep(self._hv.world.random.uniform(0.0, self._hv.slow_s))


def _check_size(spec: GuestSpec, guest: SimGuest) -> None:
    other = None if guest.before is None else guest.before.key
    check_size(spec, guest.vcpus, guest.memory_mib, guest.root_gib, other)


def _root_gib(spec: GuestSpec) -> int | None:
    return spec.disks[0].size_gib if spec.disks else None
