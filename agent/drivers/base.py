"""The hypervisor port: what a driver must do, and what it may be handed.

Changing verbs take an OwnedGuest and nothing else; only agent/ownership.py makes one, from a
fresh look. A driver checks the mark once more at the moment of the change, since a name or a
uuid can have a new owner by then, and raises NotOurs rather than act.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from common.messages import (
    Attachment,
    Capacity,
    GuestReport,
    GuestSpec,
    Remains,
    SnapshotFiles,
)
from common.ownership import Mark
from common.runtime import Runtime

# Told the name of each phase of a create as it begins ("template", "root disk", "data disks",
# "seed", "network", "filters", "define"), and told it again while that lasts. It raises CallTimeout
# once nobody waits for the guest any more.
Doing = Callable[[str], None]


class OwnedGuest(msgspec.Struct, frozen=True):
    """Proof that the guest at hand carries our mark. Made by agent/ownership.py alone."""

    hypervisor_uuid: str
    mark: Mark
    seen: GuestReport


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """Every guest of the host. `errors` {hypervisor uuid: reason} makes the listing partial."""

    guests: tuple[GuestReport, ...]
    errors: dict[str, str] = {}

    @property
    def complete(self) -> bool:
        return not self.errors


class Driver(Protocol):
    """One hypervisor. Calls block; the agent limits their time and runs them in parallel.

    Every method may raise HypervisorUnavailable (can not be asked) or HypervisorError (it said
    no). No method may read a failed or partial answer as "no guests".
    """

    name: str
    attaches: bool  # its guests may have disks in storage that other hosts reach too

    def open(self, on_change: Callable[[str | None], None]) -> None:
        """Connect in the background and stay connected; never raises for a hypervisor that is
        away. `on_change(hypervisor uuid, or None for "look at everything")` is called, from any
        thread, within a second of a guest's change of state."""

    def close(self) -> None:
        """Disconnect."""

    def health(self) -> str:
        """Empty when the hypervisor answers, else what is wrong, in words."""

    def list_guests(self) -> Listing:
        """All guests, strangers' included."""

    def look(self, hypervisor_uuid: str) -> GuestReport | None:
        """One guest as it is now; None only when the hypervisor says that it is not there."""

    def capacity(self) -> Capacity:
        """Totals of the host and what all its running guests use."""

    def create(self, spec: GuestSpec, mark: Mark, doing: Doing) -> GuestReport:
        """Define a new halted guest under the hypervisor uuid `mark.bearer`, mark included.

        Takes another name when a guest of that name exists. HypervisorError when that uuid
        exists already, BadRequest for a spec that no host could make a guest from, TemplateInvalid
        for a template that is not what it should be. Disks of a snapshot are copied from it, which
        stays. Leaves nothing behind when it fails.
        """

    def remark(self, guest: OwnedGuest, generation: int) -> OwnedGuest:
        """Write a new generation into the mark, before the effect that it stands for."""

    def start(self, guest: OwnedGuest) -> None:
        """Running afterwards; nothing to do when it is."""

    def stop(self, guest: OwnedGuest, *, force: bool, timeout_s: float) -> None:
        """Shut off afterwards: asked politely for `timeout_s`, then (or with force) pulled.

        Memory that was saved is given up.
        """

    def reboot(self, guest: OwnedGuest, *, force: bool, timeout_s: float) -> None:
        """Soft within `timeout_s`, or hard. Hard gives the guest a new domain id."""

    def pause(self, guest: OwnedGuest) -> None:
        """Its processors stand still afterwards; HypervisorError unless it runs."""

    def unpause(self, guest: OwnedGuest) -> None:
        """Running afterwards; HypervisorError unless it is paused."""

    def suspend(self, guest: OwnedGuest) -> None:
        """Off afterwards, its memory saved; HypervisorError for a guest that is off without it."""

    def resume(self, guest: OwnedGuest) -> None:
        """Running afterwards where it was saved; HypervisorError unless it was. Never boots it."""

    def snapshot(
        self, guest: OwnedGuest, spec: GuestSpec, files: SnapshotFiles, doing: Doing
    ) -> None:
        """Each disk that `create` made for it is kept as a flat image apart from it afterwards.

        Over what an earlier try has left. HypervisorError unless the guest is off, and for disks
        that can not be copied. Its phase is "snapshot".
        """

    def resize(self, guest: OwnedGuest, spec: GuestSpec, key: str, doing: Doing) -> None:
        """A guest that is off has the size of `spec` afterwards: vCPUs, memory, first disk.

        What it was, disks included, is kept under `key` until that is confirmed or reverted; called
        again with that key, it goes on where it was cut short. What an earlier resize has kept is
        given up first.
        """

    def keeps(self, guest: OwnedGuest) -> str | None:
        """The key of what is kept of the guest as it was before a resize; None: nothing is."""

    def confirm_resize(self, guest: OwnedGuest, spec: GuestSpec, key: str) -> None:
        """Nothing is kept under this key afterwards.

        When nothing was: ResizeOver if its size is not that of `spec`, or another key is kept.
        """

    def revert_resize(self, guest: OwnedGuest, spec: GuestSpec | None, key: str) -> None:
        """What was kept of a guest under this key is what it is again; it must be off.

        When nothing was, there is nothing to do; ResizeOver if its size is not that of `spec`, or
        another key is kept. Without `spec` neither is asked.
        """

    def attached(self, guest: OwnedGuest) -> tuple[Attachment, ...]:
        """Its disks in storage that others reach too, and from where they are open; asked only of
        drivers that attach, just after a guest was started."""

    def destroy(self, guest: OwnedGuest) -> None:
        """Guest, the disks that `create` made and what `resize` has kept are gone afterwards."""

    def clean_up(self, remains: Remains) -> None:
        """What was left behind is gone afterwards; nothing to do when it is.

        HypervisorError says why it can not go: files of a guest that is there, for one.
        """


class DriverFactory(Protocol):
    """An entry point of group muster.drivers: makes the driver of one host."""

    def __call__(self, host: str, settings: Any, runtime: Runtime) -> Driver: ...
