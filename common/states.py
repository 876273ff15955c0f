"""Names of every state and the tables that say how one follows another."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from common.errors import InvalidTransition


class PowerState(enum.IntEnum):
    """What a hypervisor says of a guest; 0-7 are libvirt's virDomainState numbers."""

    NOSTATE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4
    SHUTOFF = 5
    CRASHED = 6
    SUSPENDED = 7
    FAILED = 8
    BUILDING = 9

    @property
    def shown(self) -> str:
        """The word an operator reads for this state."""
        return _POWER_WORDS[self]


_POWER_WORDS = {
    PowerState.NOSTATE: "pending",
    PowerState.RUNNING: "running",
    PowerState.BLOCKED: "blocked",
    PowerState.PAUSED: "paused",
    PowerState.SHUTDOWN: "shutdown",
    PowerState.SHUTOFF: "shutdown",
    PowerState.CRASHED: "crashed",
    PowerState.SUSPENDED: "suspended",
    PowerState.FAILED: "failed to spawn",
    PowerState.BUILDING: "building",
}


class VmState(enum.StrEnum):
    """What Muster holds true of an instance."""

    BUILDING = "BUILDING"
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    SUSPENDED = "SUSPENDED"
    SHUTOFF = "SHUTOFF"
    RESIZED = "RESIZED"
    MIGRATING = "MIGRATING"
    SHELVED = "SHELVED"
    SHELVED_OFFLOADED = "SHELVED_OFFLOADED"
    SOFT_DELETED = "SOFT_DELETED"
    DELETED = "DELETED"
    ERROR = "ERROR"


class SettableState(enum.StrEnum):
    """What an operator may say that a VM is: the VM states that its power states can bear out."""

    ACTIVE = "ACTIVE"
    SHUTOFF = "SHUTOFF"
    PAUSED = "PAUSED"
    SUSPENDED = "SUSPENDED"
    ERROR = "ERROR"


class TaskState(enum.StrEnum):
    """What is under way for an instance."""

    NONE = "none"
    SCHEDULING = "scheduling"
    NETWORKING = "networking"
    BLOCK_DEVICE_MAPPING = "block_device_mapping"
    SPAWNING = "spawning"
    POWERING_ON = "powering_on"
    POWERING_OFF = "powering_off"
    REBOOTING = "rebooting"
    PAUSING = "pausing"
    UNPAUSING = "unpausing"
    SUSPENDING = "suspending"
    RESUMING = "resuming"
    DELETING = "deleting"
    SOFT_DELETING = "soft_deleting"
    RESTORING = "restoring"
    RESIZING = "resizing"
    MIGRATING = "migrating"
    SHELVING = "shelving"
    UNSHELVING = "unshelving"
    ADOPTING = "adopting"


class HostState(enum.StrEnum):
    """What the managers conclude from a host's reports (or their absence)."""

    UP = "UP"
    SUSPECT = "SUSPECT"
    DOWN = "DOWN"


class JobState(enum.StrEnum):
    """How far an accepted wish of an operator has come."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


class CommandState(enum.StrEnum):
    """How far one command to an agent has come.

    UNKNOWN is the honest end of a command whose agent never said what became of it.
    """

    ACCEPTED = "ACCEPTED"
    PUBLISHED = "PUBLISHED"
    RECEIVED = "RECEIVED"
    STARTED = "STARTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    NOT_RUN = "NOT_RUN"
    UNKNOWN = "UNKNOWN"


class GuestKind(enum.StrEnum):
    """What a guest on a host is, first match (decision tables, section 1)."""

    DOOMED = "DOOMED"
    MANAGED = "MANAGED"
    ORPHAN = "ORPHAN"
    ALIEN = "ALIEN"


class TombstoneState(enum.StrEnum):
    """OPEN until the host's agent has answered that the guest is gone."""

    OPEN = "OPEN"
    CLOSED = "CLOSED"


S = TypeVar("S", bound=enum.Enum)
E = TypeVar("E", bound=enum.Enum)
F = TypeVar("F", bound=enum.Enum)


@dataclass(frozen=True)
class Step(Generic[S, F]):
    """What one event did: the state after it and the effects the caller must carry out."""

    state: S
    effects: tuple[F, ...] = ()
    changed: bool = True


@dataclass(frozen=True)
class Machine(Generic[S, E, F]):
    """A transition table; `terminal` states swallow every further event."""

    name: str
    table: Mapping[tuple[S, E], tuple[S, tuple[F, ...]]]
    terminal: frozenset[S]

    def step(self, state: S, event: E, story: Iterable[str] = ()) -> Step[S, F]:
        """The transition for `event` in `state`.

        A late or repeated event that meets a terminal state changes nothing. Any other pair
        that is not in the table is a mistake of ours and raises InvalidTransition with `story`,
        the history of the object.
        """
        if state in self.terminal:
            return Step(state, (), changed=False)
        found = self.table.get((state, event))
        if found is None:
            raise InvalidTransition(
                f"{self.name}: {event.name} is impossible in {state.name}",
                "report this with the story of the object",
                story=list(story),
            )
        return Step(found[0], found[1], changed=found[0] is not state)


class JobEvent(enum.Enum):
    """What can happen to a job."""

    START = "start"
    SUCCEED = "succeed"
    FAIL = "fail"
    EXPIRE = "expire"
    CANCEL = "cancel"


class JobEffect(enum.Enum):
    """What the end of a job requires of the flow that ended it."""

    STAMP_END = "stamp_end"
    SETTLE_INSTANCE = "settle_instance"


_ENDS = (JobEffect.STAMP_END, JobEffect.SETTLE_INSTANCE)

JOB: Machine[JobState, JobEvent, JobEffect] = Machine(
    "job",
    {
        (JobState.PENDING, JobEvent.START): (JobState.RUNNING, ()),
        (JobState.RUNNING, JobEvent.START): (JobState.RUNNING, ()),
        **{
            (state, event): (end, _ENDS)
            for state in (JobState.PENDING, JobState.RUNNING)
            for event, end in (
                (JobEvent.SUCCEED, JobState.SUCCEEDED),
                (JobEvent.FAIL, JobState.FAILED),
                (JobEvent.EXPIRE, JobState.EXPIRED),
                (JobEvent.CANCEL, JobState.CANCELLED),
            )
        },
    },
    frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED}),
)


class CommandEvent(enum.Enum):
    """What can happen to a command, as told by the publisher or by its agent."""

    PUBLISH = "publish"
    RECEIVE = "receive"
    START = "start"
    SUCCEED = "succeed"
    FAIL = "fail"
    NOT_RUN = "not_run"
    GIVE_UP = "give_up"


class CommandEffect(enum.Enum):
    """What a command's transition requires."""

    STAMP = "stamp"
    STOP_PUBLISHING = "stop_publishing"
    TELL_JOB = "tell_job"


_OPEN = (
    CommandState.ACCEPTED,
    CommandState.PUBLISHED,
    CommandState.RECEIVED,
    CommandState.STARTED,
)
_DONE = (CommandEffect.STAMP, CommandEffect.STOP_PUBLISHING, CommandEffect.TELL_JOB)

COMMAND: Machine[CommandState, CommandEvent, CommandEffect] = Machine(
    "command",
    {
        (CommandState.ACCEPTED, CommandEvent.PUBLISH): (
            CommandState.PUBLISHED,
            (CommandEffect.STAMP,),
        ),
        # Sent again after silence, or the row of a publish was lost with a manager: all no-ops.
        (CommandState.PUBLISHED, CommandEvent.PUBLISH): (CommandState.PUBLISHED, ()),
        (CommandState.RECEIVED, CommandEvent.PUBLISH): (CommandState.RECEIVED, ()),
        (CommandState.STARTED, CommandEvent.PUBLISH): (CommandState.STARTED, ()),
        # A receipt can overtake the commit that records its own publish.
        **{
            (state, CommandEvent.RECEIVE): (
                CommandState.RECEIVED,
                (CommandEffect.STAMP, CommandEffect.STOP_PUBLISHING),
            )
            for state in (CommandState.ACCEPTED, CommandState.PUBLISHED)
        },
        (CommandState.RECEIVED, CommandEvent.RECEIVE): (CommandState.RECEIVED, ()),
        (CommandState.STARTED, CommandEvent.RECEIVE): (CommandState.STARTED, ()),
        **{
            (state, CommandEvent.START): (
                CommandState.STARTED,
                (CommandEffect.STAMP, CommandEffect.STOP_PUBLISHING),
            )
            for state in (CommandState.ACCEPTED, CommandState.PUBLISHED, CommandState.RECEIVED)
        },
        (CommandState.STARTED, CommandEvent.START): (CommandState.STARTED, ()),
        **{
            (state, event): (end, _DONE)
            for state in _OPEN
            for event, end in (
                (CommandEvent.SUCCEED, CommandState.SUCCEEDED),
                (CommandEvent.FAIL, CommandState.FAILED),
                (CommandEvent.NOT_RUN, CommandState.NOT_RUN),
                (CommandEvent.GIVE_UP, CommandState.UNKNOWN),
            )
        },
    },
    frozenset(
        {
            CommandState.SUCCEEDED,
            CommandState.FAILED,
            CommandState.NOT_RUN,
            CommandState.UNKNOWN,
        }
    ),
)


class HostEffect(enum.Enum):
    """What a host's change of state requires."""

    TELL = "tell"
    END_SESSION = "end_session"
    RELEASE_WAITING = "release_waiting"


# The event of a host's table is the state that the liveness rule asks for.
HOST: Machine[HostState, HostState, HostEffect] = Machine(
    "host",
    {
        (HostState.UP, HostState.UP): (HostState.UP, ()),
        (HostState.UP, HostState.SUSPECT): (HostState.SUSPECT, (HostEffect.TELL,)),
        (HostState.SUSPECT, HostState.SUSPECT): (HostState.SUSPECT, ()),
        (HostState.SUSPECT, HostState.UP): (HostState.UP, (HostEffect.TELL,)),
        (HostState.DOWN, HostState.DOWN): (HostState.DOWN, ()),
        (HostState.DOWN, HostState.SUSPECT): (HostState.SUSPECT, (HostEffect.TELL,)),
        (HostState.DOWN, HostState.UP): (HostState.UP, (HostEffect.TELL,)),
        **{
            (state, HostState.DOWN): (
                HostState.DOWN,
                (HostEffect.TELL, HostEffect.END_SESSION, HostEffect.RELEASE_WAITING),
            )
            for state in (HostState.UP, HostState.SUSPECT)
        },
    },
    frozenset(),
)
