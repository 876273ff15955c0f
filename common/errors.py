"""Every error an operator can meet: one root, a code each, and what to do about it."""

from __future__ import annotations

from typing import Any, ClassVar

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_REFUSED = 4
EXIT_NO_MANAGER = 5


class MusterError(Exception):
    """The root: `message` says what is wrong, `remedy` what the operator can do."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(self, message: str, remedy: str = "", **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.data = data

    def __str__(self) -> str:
        tail = f" ({self.remedy})" if self.remedy else ""
        return f"{self.code}: {self.message}{tail}"

    def to_wire(self) -> dict[str, Any]:
        """The form in which an RPC answer carries this error."""
        return {
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
            "data": self.data,
        }


class RemoteError(MusterError):
    """An error that a manager answered; it keeps the manager's own code."""

    def __init__(self, wire: dict[str, Any]) -> None:
        super().__init__(
            str(wire.get("message", "")), str(wire.get("remedy", "")), **wire.get("data", {})
        )
        self.code = str(wire.get("code", "INTERNAL_ERROR"))  # type: ignore[misc]
        self.exit_code = int(wire.get("exit_code", EXIT_FAILED))  # type: ignore[misc]


class InvalidTransition(MusterError):
    """A state machine was asked for something its table does not know."""

    code = "INVALID_TRANSITION"


class BadRequest(MusterError):
    """A field of a request has an impossible value; `data['field']` names it."""

    code = "BAD_REQUEST"
    exit_code = EXIT_USAGE


class BadConfig(MusterError):
    """An option has a value outside its range, or options contradict each other."""

    code = "BAD_CONFIG"
    exit_code = EXIT_USAGE


class BadMessage(MusterError):
    """A message from the bus that can not be read; it goes to the dead-letter queue."""

    code = "BAD_MESSAGE"


class NotFound(MusterError):
    """No object of this kind has that name or id."""

    code = "NOT_FOUND"
    exit_code = EXIT_NOT_FOUND


class Ambiguous(MusterError):
    """A name fits several objects; `data['candidates']` lists them."""

    code = "AMBIGUOUS"
    exit_code = EXIT_NOT_FOUND


class AlreadyDeleted(MusterError):
    """The instance was deleted within the retention time."""

    code = "ALREADY_DELETED"
    exit_code = EXIT_NOT_FOUND


class Refused(MusterError):
    """A rule says no; subclasses name the rule."""

    code = "REFUSED"
    exit_code = EXIT_REFUSED


class VmProtected(Refused):
    """Delete protection is on."""

    code = "VM_PROTECTED"


class TaskUnderWay(Refused):
    """Another job works on this instance."""

    code = "TASK_UNDER_WAY"


class WrongState(Refused):
    """The verb is not possible in the instance's state."""

    code = "WRONG_STATE"


class NameTaken(Refused):
    """A live instance has this name already."""

    code = "NAME_TAKEN"


class InUse(Refused):
    """Something refers to the object or lives on it; `data['by']` names what."""

    code = "IN_USE"


class NoValidHost(Refused):
    """No host can take the instance; the message says why for each."""

    code = "NO_VALID_HOST"


class QuotaExceeded(Refused):
    """A limit of the project would be broken; the message names each of them."""

    code = "QUOTA_EXCEEDED"


class NoSpace(Refused):
    """No pool has room for it; the message says what is left in each."""

    code = "NO_SPACE"


class NoAddress(Refused):
    """A network has no free address, or the one that was asked for is taken."""

    code = "NO_ADDRESS"


class NotSupported(Refused):
    """A thing the protocol knows but this release does not do yet."""

    code = "NOT_SUPPORTED"


class IdReused(Refused):
    """A job uuid came again with another request, or a command id with another command."""

    code = "ID_REUSED"


class NotOurs(Refused):
    """The guest does not carry this fleet's mark: it is a stranger's."""

    code = "NOT_OURS"


class StaleCommand(Refused):
    """A command at or below the floor; `data['floor']` names it."""

    code = "STALE_COMMAND"


class WrongFleet(Refused):
    """A message that belongs to another fleet."""

    code = "WRONG_FLEET"


class WrongHost(Refused):
    """A command that was meant for another host."""

    code = "WRONG_HOST"


class UnknownKind(Refused):
    """A command of a kind that this agent does not know."""

    code = "UNKNOWN_KIND"


class GuestMissing(MusterError):
    """The hypervisor does not have the guest that a command is about."""

    code = "GUEST_MISSING"


class HypervisorUnavailable(MusterError):
    """The hypervisor can not be asked; says nothing about its guests."""

    code = "HYPERVISOR_UNAVAILABLE"


class HypervisorError(MusterError):
    """The hypervisor refused or failed a call; the message is its own."""

    code = "HYPERVISOR_ERROR"


class NoAccess(HypervisorError):
    """This host can not reach what it would take; another one may."""

    code = "NO_ACCESS"


class GuestIsNewer(MusterError):
    """A guest has been used since what it was to be destroyed for."""

    code = "GUEST_IS_NEWER"


class ResizeOver(MusterError):
    """Nothing is kept from before a resize any more: it was confirmed or reverted before."""

    code = "RESIZE_OVER"


class ResizeReverting(MusterError):
    """A resize is half reverted at its host: it can not be confirmed any more."""

    code = "RESIZE_REVERTING"


class TemplateInvalid(MusterError):
    """What a template's url gave is not what the template says: checksum, format, or safety."""

    code = "TEMPLATE_INVALID"


class CallTimeout(MusterError):
    """A call took longer than its limit; what it did is unknown."""

    code = "CALL_TIMEOUT"


class NoManager(MusterError):
    """No manager answered within the time limit."""

    code = "NO_MANAGER"
    exit_code = EXIT_NO_MANAGER


class BrokerUnavailable(MusterError):
    """The message broker can not be reached."""

    code = "BROKER_UNAVAILABLE"
    exit_code = EXIT_NO_MANAGER


class DbRolledBack(Refused):
    """An agent has seen a later state of the database; `data['floors']` of its floors are known."""

    code = "DB_ROLLED_BACK"


class DatabaseUnavailable(MusterError):
    """The database can not be reached or is not ready."""

    code = "DATABASE_UNAVAILABLE"


class JournalUnavailable(MusterError):
    """The agent can not write down what it is told; it takes nothing until it can."""

    code = "JOURNAL_UNAVAILABLE"


class OutcomeUnknown(MusterError):
    """A command was cut short and nothing tells what it did."""

    code = "OUTCOME_UNKNOWN"


class Conflict(MusterError):
    """A compare-and-swap lost against another manager; the step is run again."""

    code = "CONFLICT"
