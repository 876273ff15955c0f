"""What each kind of command does to the hypervisor, and what is made of one that was cut short."""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec

from agent.calls import Calls
from agent.drivers.base import Driver, OwnedGuest
from agent.journal import Journal
from agent.ownership import Finder
from agent.phases import Phases
from agent.session import Session
from common import messages as m
from common.errors import (
    BadMessage,
    CallTimeout,
    GuestIsNewer,
    GuestMissing,
    HypervisorError,
    MusterError,
    NotOurs,
    OutcomeUnknown,
)
from common.ownership import Mark, new_bearer
from common.runtime import Runtime, Steps
from common.states import PowerState

LOG = logging.getLogger(__name__)
T = TypeVar("T")

POWERED = frozenset({PowerState.RUNNING, PowerState.BLOCKED})
HALTED = frozenset({PowerState.SHUTOFF, PowerState.CRASHED, PowerState.FAILED})
PAUSED = frozenset({PowerState.PAUSED})
SUSPENDED = frozenset({PowerState.SUSPENDED})
# A polite stop may use this share of the command's time, so that some is left to pull the plug.
POLITE_SHARE = 0.8


class Mode(enum.Enum):
    """Why a command is carried out."""

    FRESH = "never started before"
    BEGUN = "never started before, and written down as started a moment ago"
    RESUME = "started by an agent that died, and still wanted"
    ABANDON = "started by an agent that died, and not wanted any more"


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One command to carry out; `note` is what an earlier try journalled."""

    command: m.Command
    mode: Mode = Mode.FRESH
    note: str | None = None


class StartSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The spec of start_vm: `guest` is what to make when `create` is set and there is none."""

    guest: m.GuestSpec | None = None
    create: bool = False


class PowerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The spec of stop_vm and reboot_vm; `timeout_s` is how long to ask politely."""

    force: bool = False
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 30.0


class ShelveSpec(PowerSpec, frozen=True, kw_only=True):
    """The spec of shelve_vm: `guest` tells which of its disks are new, and where they are."""

    guest: m.GuestSpec
    snapshot: m.SnapshotFiles


class ResizeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The spec of resize_vm, confirm_resize and revert_resize.

    `guest`: what it is to be, or to be again; with `on` it runs afterwards. `timeout_s` is how
    long to ask it politely to go off. `key`: the command of the resize that is confirmed or
    reverted. `undo`: one of which nobody knows what it did; nothing kept of it is fine.
    """

    guest: m.GuestSpec
    key: str = ""
    undo: bool = False
    on: bool = False
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 30.0


# What an agent notes of a resize or a revert, for the next one should it die.
CHANGED, UNDOING = "changed", "undoing"


@dataclass(frozen=True)
class _Turn:
    """A driver's verb without arguments: from which power states, and where it is done already."""

    verb: str
    sources: frozenset[PowerState]
    done: frozenset[PowerState]


_TURNS = {
    m.CommandKind.PAUSE_VM: _Turn("pause", POWERED, PAUSED),
    m.CommandKind.UNPAUSE_VM: _Turn("unpause", PAUSED, POWERED),
    m.CommandKind.SUSPEND_VM: _Turn("suspend", POWERED | PAUSED, SUSPENDED),
    m.CommandKind.RESUME_VM: _Turn("resume", SUSPENDED, POWERED),
}


def bearer_of(command: m.Command) -> str:
    """The hypervisor uuid of the guest that this very command makes, the same at each try."""
    return new_bearer(command.fleet, command.instance, command.generation)


@dataclass(frozen=True)
class Effects:
    """Carries out one command at a time for an instance; safe for several instances at once."""

    driver: Driver
    finder: Finder
    calls: Calls
    journal: Journal
    session: Session
    runtime: Runtime
    # (instance, generation) of creates that have not come back: their guests may yet appear.
    making: set[tuple[str, int]] = field(default_factory=set)

    def carry_out(self, work: Work) -> Steps[m.Result]:
        """The effect, then a fresh look; whatever goes wrong is in the result."""
        command = work.command
        attempt = _Attempt(self, work, self.runtime.monotonic() + command.timeout_s)
        error: MusterError | None = None
        try:
            yield from attempt.run()
        except MusterError as exc:
            error = exc
        except Exception as exc:
            LOG.exception("%s failed", command.kind)
            error = MusterError(f"{type(exc).__name__}: {exc}")
        if error is not None:
            LOG.warning("%s of %s failed: %s", command.kind, command.instance, error)
        phases = attempt.phases.told()
        look = None
        if command.kind is not m.CommandKind.CLEAN_UP:  # it is about no guest
            look = yield from self._look(command, attempt.uuid)
        return m.Result(
            id=command.id,
            command=command.id,
            kind=command.kind,
            instance=command.instance,
            generation=command.generation,
            outcome=m.Outcome.SUCCEEDED if error is None else m.Outcome.FAILED,
            attached=(yield from attempt.attached()) if error is None else (),
            left=tuple(attempt.left) if error is None else (),
            error_code=error.code if error else None,
            error=error.message if error else None,
            look=look,
            phases=phases,
        )

    def _look(self, command: m.Command, hypervisor_uuid: str | None) -> Steps[m.Look | None]:
        """What is there now; None when the hypervisor does not say."""
        session, seq = self.session.draw_pair()
        guest: m.GuestReport | None
        try:
            if hypervisor_uuid is None:
                guest = (yield from self.finder.find(command.instance)).seen
            else:
                guest = (yield from self.finder.at(hypervisor_uuid, command.instance)).seen
        except (GuestMissing, NotOurs):
            guest = None
        except MusterError as exc:
            LOG.warning("no look after %s of %s: %s", command.kind, command.instance, exc)
            return None
        return m.Look(session=session, seq=seq, guest=guest)


class _Attempt:
    """One try of one command; `uuid` is its guest once that is known."""

    def __init__(self, parts: Effects, work: Work, deadline: float) -> None:
        self._parts = parts
        self._driver = parts.driver
        self._finder = parts.finder
        self._work = work
        self._command = work.command
        self._deadline = deadline
        self.phases = Phases(parts.runtime, deadline)
        self.uuid: str | None = None
        self.left: list[m.Left] = []
        self._started: OwnedGuest | None = None

    def attached(self) -> Steps[tuple[m.Attachment, ...]]:
        """From where the shared disks of the guest that was started are open."""
        guest, calls = self._started, self._parts.calls
        if guest is None or not self._driver.attaches:
            return ()
        try:
            return (yield from calls.look("attached", self._driver.attached, guest))
        except MusterError as exc:
            # Whoever removes them looks at the images themselves as well.
            LOG.warning("from where the disks of %s are open is not known: %s", self.uuid, exc)
            return ()

    def run(self) -> Steps[None]:
        kind = self._command.kind
        if self._work.mode is Mode.ABANDON and kind is not m.CommandKind.TERMINATE_INSTANCE:
            yield from self._abandon()
        elif kind in _TURNS:
            yield from self._turn(_TURNS[kind])
        else:
            yield from _WAYS[kind](self)

    # start_vm

    def _start(self) -> Steps[None]:
        spec = m.convert(self._command.spec, StartSpec)
        try:
            guest = yield from self._remark((yield from self._find()))
        except GuestMissing:
            if not spec.create:
                raise
            if spec.guest is None:
                raise BadMessage("start_vm: create without a guest", "") from None
            guest = yield from self._create(spec.guest)
        self._started = guest
        if guest.seen.power_state in POWERED:
            return
        try:
            yield from self._power_on(guest)
        except MusterError:
            if spec.guest is None or not spec.create:
                raise
            if not (yield from self._half_made_and_gone(guest)):
                raise
            LOG.warning("guest %s of a start that was cut short is made again", self.uuid)
            self._started = yield from self._create(spec.guest)
            yield from self._power_on(self._started)

    def _power_on(self, guest: OwnedGuest) -> Steps[None]:
        self.phases.begin("start")
        try:
            yield from self._effect("start", self._driver.start, guest)
        except MusterError:
            if (yield from self._is_now(guest, POWERED)):
                return
            yield from self._undo()
            raise

    def _half_made_and_gone(self, guest: OwnedGuest) -> Steps[bool]:
        """True for what an agent that died had begun to make for this command, now undone."""
        if self._work.mode is not Mode.RESUME:
            return False
        if guest.hypervisor_uuid != bearer_of(self._command):
            return False
        with contextlib.suppress(MusterError):
            look = self._parts.calls.look
            seen = yield from look("look", self._driver.look, guest.hypervisor_uuid)
            return seen is None
        return False

    def _create(self, spec: m.GuestSpec) -> Steps[OwnedGuest]:
        command = self._command
        self.uuid = bearer_of(command)
        mark = Mark(
            fleet=command.fleet,
            instance=command.instance,
            generation=command.generation,
            bearer=self.uuid,
        )
        making, this = self._parts.making, (command.instance, command.generation)

        def make() -> None:
            making.add(this)
            try:
                self._driver.create(spec, mark, self.phases.begin)
            finally:
                making.discard(this)

        try:
            yield from self._effect("create", make)
            return (yield from self._finder.at(self.uuid, command.instance))
        except MusterError:
            yield from self._undo()
            if self._work.mode is Mode.RESUME:
                yield from self._clean_up_after_a_death(spec)
            raise

    def _clean_up_after_a_death(self, spec: m.GuestSpec) -> Steps[None]:
        """What the agent that died had made is nobody's if its guest was removed meanwhile.

        Its files: an image in Ceph that the create did not remove may be a guest's of another host.
        """
        command = self._command
        if (command.instance, command.generation) in self._parts.making:
            return
        files = m.GuestFiles(
            instance=command.instance,
            bearer=bearer_of(command),
            folders=tuple(sorted({d.folder for d in spec.disks if d.folder is not None})),
        )
        try:
            yield from self._effect("clean up", self._driver.clean_up, files)
        except MusterError as exc:
            LOG.warning("files of a failed start of %s stay behind: %s", command.instance, exc)

    def _undo(self) -> Steps[None]:
        """Remove the guest that this very command made, if it made one and it may go."""
        made = bearer_of(self._command)
        try:
            guest = yield from self._finder.at(made, self._command.instance)
            if guest.mark.generation != self._command.generation:
                return  # later commands have used it: our journal is older than that
            if guest.seen.power_state not in POWERED:
                calls = self._parts.calls
                yield from calls.within(calls.look_s, "destroy", self._driver.destroy, guest)
        except (GuestMissing, NotOurs):
            return
        except MusterError as exc:
            LOG.warning("guest %s of a failed start stays behind: %s", made, exc)

    # the others

    def _stop(self) -> Steps[None]:
        spec = m.convert(self._command.spec, PowerSpec)
        guest = yield from self._remark((yield from self._find()))
        yield from self._off(guest, spec.timeout_s, force=spec.force)

    def _off(self, guest: OwnedGuest, timeout_s: float, *, force: bool = False) -> Steps[None]:
        if guest.seen.power_state not in HALTED:
            polite_s = self._polite(timeout_s)
            yield from self._effect("stop", self._stop_call, guest, force, polite_s)

    def _stop_call(self, guest: OwnedGuest, force: bool, timeout_s: float) -> None:
        self._driver.stop(guest, force=force, timeout_s=timeout_s)

    def _reboot(self) -> Steps[None]:
        spec = m.convert(self._command.spec, PowerSpec)
        guest = yield from self._find()
        if self._work.note is not None:
            # The agent died after writing down the domain id, so the effect may have begun.
            if not spec.force:
                raise OutcomeUnknown("the agent died in a soft reboot", "look at the guest")
            if guest.seen.power_state in HALTED and self._work.note != str(None):
                # Pulled, and not powered on again: the second half is still to be done.
                self._started = guest = yield from self._remark(guest)
                yield from self._effect("start", self._driver.start, guest)
                return
            if self._work.note != str(guest.seen.domain_id):
                return
        self._parts.journal.note(self._command.id, str(guest.seen.domain_id))
        self._started = guest = yield from self._remark(guest)
        polite_s = self._polite(spec.timeout_s)
        yield from self._effect("reboot", self._reboot_call, guest, spec.force, polite_s)

    def _reboot_call(self, guest: OwnedGuest, force: bool, timeout_s: float) -> None:
        self._driver.reboot(guest, force=force, timeout_s=timeout_s)

    def _shelve(self) -> Steps[None]:
        """Off, then all of its disks copied, also those that an earlier try had copied.

        Nobody knows whether the guest was used between two tries.
        """
        spec = m.convert(self._command.spec, ShelveSpec)
        guest = yield from self._remark((yield from self._find()))
        self.phases.begin("stop")
        yield from self._off(guest, spec.timeout_s, force=spec.force)
        doing = self.phases.begin
        snapshot = self._driver.snapshot
        yield from self._effect("snapshot", snapshot, guest, spec.guest, spec.snapshot, doing)
        if not (yield from self._is_now(guest, HALTED)):
            raise HypervisorError(
                "the guest was started while its disks were copied", "who else uses it?"
            )

    def _turn(self, turn: _Turn) -> Steps[None]:
        """Pause, unpause, suspend or resume: nothing to do when it is done, whoever did it."""
        guest = yield from self._remark((yield from self._find()))
        self._started = guest if turn.verb == "resume" else None
        if guest.seen.power_state in turn.done:
            return
        if guest.seen.power_state not in turn.sources:
            raise HypervisorError(
                f"the guest is {guest.seen.power_state.name}: there is nothing to {turn.verb}",
                "muster vm show",
            )
        try:
            yield from self._effect(turn.verb, getattr(self._driver, turn.verb), guest)
        except MusterError:
            if not (yield from self._is_now(guest, turn.done)):
                raise

    # resize_vm, confirm_resize and revert_resize

    def _resize(self) -> Steps[None]:
        spec = m.convert(self._command.spec, ResizeSpec)
        guest = yield from self._remark((yield from self._find()))
        if self._work.note == UNDOING:
            yield from self._unresize(guest, spec)
            raise HypervisorError("it failed, and the agent died while it undid it", "")
        try:
            if self._work.note != CHANGED:
                yield from self._off(guest, spec.timeout_s)
                key, doing = self._command.id, self.phases.begin
                resize = self._driver.resize
                yield from self._effect("resize", resize, guest, spec.guest, key, doing)
                self._parts.journal.note(self._command.id, CHANGED)
            if spec.on:
                yield from self._on(guest)
        except CallTimeout:
            raise  # it may still be under way: what is left of it is undone by a later command
        except MusterError:
            self._parts.journal.note(self._command.id, UNDOING)
            try:
                yield from self._unresize(guest, spec)
            except MusterError as exc:
                LOG.warning("a failed resize of %s is not undone: %s", self.uuid, exc)
            raise

    def _unresize(self, guest: OwnedGuest, spec: ResizeSpec) -> Steps[None]:
        """The guest as it was; where nothing was changed it is only switched on again."""
        key = self._command.id
        if (yield from self._effect("keeps", self._driver.keeps, guest)) == key:
            now = yield from self._finder.at(guest.hypervisor_uuid, self._command.instance)
            yield from self._off(now, 0.0)
            yield from self._effect("revert", self._driver.revert_resize, guest, None, key)
        if spec.on:
            yield from self._on(guest)

    def _revert(self) -> Steps[None]:
        spec = m.convert(self._command.spec, ResizeSpec)
        guest = yield from self._remark((yield from self._find_no_copy()))
        if self._work.note != CHANGED:
            if (yield from self._effect("keeps", self._driver.keeps, guest)) == spec.key:
                yield from self._off(guest, spec.timeout_s)
            was = None if spec.undo else spec.guest
            yield from self._effect("revert", self._driver.revert_resize, guest, was, spec.key)
            self._parts.journal.note(self._command.id, CHANGED)
        if spec.on:
            yield from self._on(guest)

    def _confirm(self) -> Steps[None]:
        spec = m.convert(self._command.spec, ResizeSpec)
        guest = yield from self._remark((yield from self._find_no_copy()))
        confirm = self._driver.confirm_resize
        yield from self._effect("confirm", confirm, guest, spec.guest, spec.key)

    def _find_no_copy(self) -> Steps[OwnedGuest]:
        """As `_find`; somebody's copy of our guest is not our guest, which is gone."""
        try:
            return (yield from self._find())
        except NotOurs as exc:
            if not exc.data.get("copies"):
                raise
            raise GuestMissing(exc.message, exc.remedy) from exc

    def _on(self, guest: OwnedGuest) -> Steps[None]:
        try:
            yield from self._effect("start", self._driver.start, guest)
        except MusterError:
            if not (yield from self._is_now(guest, POWERED)):
                raise

    def _terminate(self) -> Steps[None]:
        """Every guest of the instance, then what is left of those that other hands have removed.

        The answer is about the guests: files that can not go, as of a pool that is not mounted
        here, are told with it.
        """
        spec = m.convert(self._command.spec, m.TerminateSpec)
        destroyed = yield from self._destroy_all(spec.up_to)
        for files in spec.made:
            if files.bearer not in destroyed:
                yield from self._remove_left(files)

    def _remove_left(self, files: m.GuestFiles) -> Steps[None]:
        try:
            yield from self._effect("clean up", self._driver.clean_up, files)
        except (HypervisorError, CallTimeout) as exc:
            look = self._parts.calls.look
            if (yield from look("look", self._driver.look, files.bearer)) is not None:
                raise  # it is there, although it does not pass for ours
            LOG.warning("files of guest %s stay behind: %s", files.bearer, exc)
            self.left.append(m.Left(files=files, why=f"{exc.code}: {exc.message}"))

    def _clean_up(self) -> Steps[None]:
        """What is in no guest's use, as the managers know and the driver looks once more."""
        remains = m.convert(self._command.spec, m.CleanUpSpec).remains
        if any(made == self._command.instance for made, _ in self._parts.making):
            raise CallTimeout(
                "a create of it has not come back: its guest may yet appear", "look at the host"
            )
        yield from self._effect("clean up", self._driver.clean_up, remains)

    def _destroy_all(self, up_to: int | None) -> Steps[frozenset[str]]:
        """The hypervisor uuids of the guests that were there; none goes while one is newer."""
        instance = self._command.instance
        # Asked first: one that comes back meanwhile shows in the look.
        making = any(made == instance for made, _ in self._parts.making)
        try:
            guests = yield from self._finder.find_all(instance)
        except GuestMissing:
            if making:
                raise CallTimeout(
                    "a create of it has not come back: its guest may yet appear", "look at the host"
                ) from None
            return frozenset()
        except NotOurs as exc:
            # Somebody's copy of our guest is not our guest, which is gone.
            if exc.data.get("copies"):
                return frozenset()
            raise
        for guest in guests:
            if up_to is not None and guest.mark.generation > up_to:
                raise GuestIsNewer(
                    f"guest {guest.hypervisor_uuid} was used at generation"
                    f" {guest.mark.generation}, after the {up_to} at which it was to go",
                    "it is left alone",
                )
        for guest in guests:
            self.uuid = guest.hypervisor_uuid
            try:
                # With our own generation in its mark the next try could not tell it from a newer.
                guest = guest if up_to is not None else (yield from self._remark(guest))
            except (HypervisorError, CallTimeout) as exc:
                # A hung guest can refuse its new mark and still be destroyed; what is destroyed
                # needs no generation, and the floor is in the journal.
                LOG.warning("the mark of %s is left as it was: %s", guest.hypervisor_uuid, exc)
            yield from self._effect("destroy", self._driver.destroy, guest)
            with contextlib.suppress(GuestMissing, NotOurs):
                yield from self._finder.at(guest.hypervisor_uuid, instance)
                raise HypervisorError("the guest is still there after its destruction", "")
        return frozenset(guest.hypervisor_uuid for guest in guests)

    def _abandon(self) -> Steps[None]:
        """Not wanted and cut short: never carried further, reported as found.

        What the managers do not want they have seen to. Our journal may be older than the guest,
        which may have been used and stopped since: it is not for us to remove it.
        """
        with contextlib.suppress(GuestMissing, NotOurs):
            yield from self._find()
        raise OutcomeUnknown(
            f"the agent died in {self._command.kind}, which is not wanted any more", ""
        )

    # inside

    def _find(self) -> Steps[OwnedGuest]:
        guest = yield from self._finder.find(self._command.instance)
        self.uuid = guest.hypervisor_uuid
        return guest

    def _is_now(self, guest: OwnedGuest, wanted: frozenset[PowerState]) -> Steps[bool]:
        """True when it is as it should be after all, whatever the call said."""
        with contextlib.suppress(MusterError):
            now = yield from self._finder.at(guest.hypervisor_uuid, self._command.instance)
            return now.seen.power_state in wanted
        return False

    def _remark(self, guest: OwnedGuest) -> Steps[OwnedGuest]:
        """Our generation goes into the mark before the effect that it stands for."""
        generation = self._command.generation
        return (yield from self._effect("remark", self._driver.remark, guest, generation))

    def _effect(self, name: str, fn: Callable[..., T], *args: object) -> Steps[T]:
        left = self._deadline - self._parts.runtime.monotonic()
        if left <= 0:
            raise CallTimeout(f"no time was left for {name}", "look at the host")
        return (yield from self._parts.calls.within(left, name, fn, *args))

    def _polite(self, timeout_s: float) -> float:
        left = self._deadline - self._parts.runtime.monotonic()
        return max(0.0, min(timeout_s, left * POLITE_SHARE))


_WAYS: dict[m.CommandKind, Callable[[_Attempt], Steps[None]]] = {
    m.CommandKind.START_VM: _Attempt._start,
    m.CommandKind.STOP_VM: _Attempt._stop,
    m.CommandKind.REBOOT_VM: _Attempt._reboot,
    m.CommandKind.SHELVE_VM: _Attempt._shelve,
    m.CommandKind.RESIZE_VM: _Attempt._resize,
    m.CommandKind.REVERT_RESIZE: _Attempt._revert,
    m.CommandKind.CONFIRM_RESIZE: _Attempt._confirm,
    m.CommandKind.CLEAN_UP: _Attempt._clean_up,
    m.CommandKind.TERMINATE_INSTANCE: _Attempt._terminate,
}
