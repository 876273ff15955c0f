"""The simulated hypervisor itself: a folder with one JSON file a guest.

It outlives the agent and belongs to nobody: the console, a test or an editor may read and change
it while an agent works. Every write is an atomic rename, every change is made under one lock.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.drivers.simulated.disks import Disks
from common.errors import HypervisorError, HypervisorUnavailable
from common.messages import DiskSpec, GuestReport, GuestSpec, SnapshotDisk, SnapshotFiles
from common.ownership import Mark
from common.states import PowerState

FAULTS = "faults.json"
ACCOUNT = "account.jsonl"
SNAPSHOTS = "snapshots"
SHARED = ".shared"  # what several hosts reach, beside their own folders


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest was before a resize that nobody has confirmed or reverted yet."""

    key: str
    vcpus: int
    memory_mib: int
    spec: GuestSpec | None = None


class Guest(msgspec.Struct, kw_only=True):
    """One guest's file. `power_state` is written by name so that people can edit it.

    `spec` is what an agent made the guest from; one made by hand has none.
    """

    uuid: str
    name: str
    power_state: str = PowerState.SHUTOFF.name
    vcpus: int = 1
    memory_mib: int = 256
    macs: tuple[str, ...] = ()
    domain_id: int | None = None
    template: bool = False
    mark: Mark | None = None
    spec: GuestSpec | None = None
    before: Before | None = None

    def report(self) -> GuestReport:
        """The guest as a driver reports it; KeyError for a power state that does not exist."""
        return GuestReport(
            hypervisor_uuid=self.uuid,
            name=self.name,
            power_state=PowerState[self.power_state],
            vcpus=self.vcpus,
            memory_mib=self.memory_mib,
            mark=self.mark,
            template=self.template,
            domain_id=self.domain_id,
            macs=self.macs,
        )


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a guest that had its effect; `by` is agent or console."""

    at: dt.datetime
    by: str
    verb: str
    uuid: str
    name: str
    instance: str | None = None
    generation: int | None = None


class Faults(msgspec.Struct, kw_only=True):
    """What is broken: `ops` {operation: fail | fail_after | hang | hang_after | partial}.

    `latency_s` is {operation: seconds}; `down` is the reason why nothing answers.
    """

    ops: dict[str, str] = {}
    latency_s: dict[str, float] = {}
    down: str = ""


class Store:
    """The files of one host. Plain blocking calls, from any thread or process."""

    def __init__(self, state_dir: str, host: str) -> None:
        self.folder = Path(state_dir) / host
        self.guests = self.folder / "guests"
        self.disks = Disks(Path(state_dir), host)

    def make(self) -> None:
        """The host comes into being; harmless when it exists."""
        try:
            self.guests.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise HypervisorUnavailable(f"{self.folder}: {exc.strerror}", "check it") from exc

    def uuids(self) -> list[str]:
        """All guests by their files' names, sorted."""
        try:
            names = os.listdir(self.guests)
        except OSError as exc:
            # The folder was there: its absence is a failure to look, never an empty host.
            raise HypervisorUnavailable(
                f"{self.guests}: {exc.strerror}", "bring the simulated hypervisor back"
            ) from exc
        return sorted(name[:-5] for name in names if name.endswith(".json"))

    def read(self, guest_uuid: str) -> Guest | None:
        """A guest, None when it has no file; HypervisorError when the file can not be read."""
        path = self._path(guest_uuid)
        try:
            guest = msgspec.json.decode(path.read_bytes(), type=Guest)
            guest.report()
        except FileNotFoundError:
            if not self.guests.is_dir():
                raise HypervisorUnavailable(f"{self.guests} is gone", "bring it back") from None
            return None
        except (OSError, KeyError, msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise HypervisorError(f"{path.name}: {exc}", "repair or remove the file") from exc
        if guest.uuid != guest_uuid:
            raise HypervisorError(f"{path.name} says that it is {guest.uuid}", "repair the file")
        return guest

    def write(self, guest: Guest) -> None:
        """Put a guest in place of what was there."""
        self._replace(self._path(guest.uuid), msgspec.json.format(msgspec.json.encode(guest)))

    def remove(self, guest_uuid: str) -> None:
        """Take a guest away; harmless when it is gone."""
        self._path(guest_uuid).unlink(missing_ok=True)

    def write_snapshot(self, files: SnapshotFiles, spec: GuestSpec) -> None:
        """Keep what is known of a guest's disks, where its hosts share it or here alone."""
        path = self._snapshot(files)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._replace(path, msgspec.json.encode(spec.disks))

    def remove_snapshot(self, files: SnapshotFiles) -> None:
        """Take a snapshot away; harmless when it is gone."""
        self._snapshot(files).unlink(missing_ok=True)

    def require_snapshot(self, disk: SnapshotDisk) -> None:
        """HypervisorError unless a snapshot is there, with that disk."""
        files = SnapshotFiles(instance=disk.instance, snapshot=disk.snapshot, folder=disk.folder)
        path = self._snapshot(files)
        try:
            disks = msgspec.json.decode(path.read_bytes(), type=tuple[DiskSpec, ...])
        except (OSError, msgspec.DecodeError) as exc:
            raise HypervisorError(f"no snapshot {path}: {exc}", "is it on another host?") from exc
        if disk.n >= len(disks):
            raise HypervisorError(f"snapshot {path} has no disk {disk.n}", "look at it")

    def _snapshot(self, files: SnapshotFiles) -> Path:
        shared = self.folder.parent / SHARED / urllib.parse.quote(files.folder or "", safe="")
        folder = self.folder / SNAPSHOTS if files.folder is None else shared
        return folder / f"{files.instance}.{files.snapshot}.json"

    def note(self, by: str, verb: str, guest: Guest) -> None:
        """Add a change to the hypervisor's own account; call it under the lock, after the change.

        An agent that is killed between the two leaves a change without its line, never the reverse.
        """
        act = Act(
            at=dt.datetime.now(dt.UTC),
            by=by,
            verb=verb,
            uuid=guest.uuid,
            name=guest.name,
            instance=guest.mark.instance if guest.mark else None,
            generation=guest.mark.generation if guest.mark else None,
        )
        try:
            with (self.folder / ACCOUNT).open("ab") as account:
                account.write(msgspec.json.encode(act) + b"\n")
        except OSError as exc:
            raise HypervisorUnavailable(f"{ACCOUNT}: {exc.strerror}", "check it") from exc

    def account(self) -> list[Act]:
        """Everything that was done to guests here, oldest first; a torn last line is left out."""
        try:
            lines = (self.folder / ACCOUNT).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        acts = []
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):
                acts.append(msgspec.json.decode(line, type=Act))
        return acts

    def next_domain_id(self) -> int:
        """A number that no start on this host has had before; call it under the lock."""
        path = self.folder / "domain_id"
        number = int(path.read_text()) + 1 if path.exists() else 1
        self._replace(path, str(number).encode())
        return number

    def free_name(self, wanted: str, guest_uuid: str) -> str:
        """The name, or `name-<8 hex>` when another guest has it."""
        for other in self.uuids():
            with contextlib.suppress(HypervisorError):
                guest = self.read(other)
                if guest is not None and guest.name == wanted and other != guest_uuid:
                    return f"{wanted}-{guest_uuid[:8]}"
        return wanted

    def faults(self) -> Faults:
        """What is broken just now."""
        try:
            return msgspec.json.decode((self.folder / FAULTS).read_bytes(), type=Faults)
        except FileNotFoundError:
            return Faults()
        except (OSError, msgspec.DecodeError) as exc:
            raise HypervisorError(f"{FAULTS}: {exc}", "repair or remove it") from exc

    def set_faults(self, faults: Faults) -> None:
        """Break or repair something."""
        self._replace(self.folder / FAULTS, msgspec.json.encode(faults))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One change at a time, over all processes; never held across a wait."""
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise HypervisorUnavailable(f"{self.folder}: {exc.strerror}", "bring it back") from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def signature(self) -> dict[str, tuple[int, int, int]]:
        """What changes when any guest's file does; empty when the folder can not be read."""
        seen = {}
        with contextlib.suppress(OSError), os.scandir(self.guests) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    with contextlib.suppress(FileNotFoundError):
                        stat = entry.stat()
                        seen[entry.name[:-5]] = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        return seen

    def _path(self, guest_uuid: str) -> Path:
        try:
            return self.guests / f"{uuid.UUID(guest_uuid)}.json"
        except ValueError as exc:
            raise HypervisorError(f"{guest_uuid!r} is no uuid", "use the guest's uuid") from exc

    def _replace(self, path: Path, body: bytes) -> None:
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            scratch.write_bytes(body)
            scratch.rename(path)
        except OSError as exc:
            raise HypervisorUnavailable(f"{path}: {exc.strerror}", "check the folder") from exc
