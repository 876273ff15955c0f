"""`muster vm ...`: virtual machines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from client import usage
from client.base import (
    DECISION_COLUMNS,
    JOB_COLUMNS,
    ActionCommand,
    Answer,
    ListCommand,
    Rows,
    ShowCommand,
    add_object,
)
from common.errors import AlreadyDeleted, BadRequest, MusterError, RemoteError
from common.messages import DiskSpec, GuestSpec
from common.states import JobState, SettableState, TaskState, VmState


class List(ListCommand):
    """List the VMs"""

    method = "vm_list"
    key = "vms"
    columns = (
        "uuid",
        "name",
        "vm_state",
        "task_state",
        "power_state",
        "power_age_s",
        "host",
        "host_state",
        "address",
    )
    more = ("vcpus", "memory_mib", "mac", "missing", "stale", "protected")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--host", metavar="HOST", help="only those of a host")
        parser.add_argument(
            "--state", metavar="STATE", type=usage.one_of("state", VmState), help="by VM state"
        )
        parser.add_argument(
            "--task-state",
            metavar="STATE",
            type=usage.one_of("task_state", TaskState),
            help="by what is under way",
        )
        parser.add_argument(
            "--stale", action="store_true", help="only those whose power state is old"
        )
        parser.add_argument("--long", action="store_true", help="more columns")
        return parser

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return self.columns + self.more if args.long else self.columns

    def filters(self, args: argparse.Namespace) -> Answer:
        return {
            "host": args.host,
            "state": args.state,
            "task_state": args.task_state,
            "stale": args.stale,
        }


class Show(ShowCommand):
    """Show all that is known of a VM"""

    method = "vm_show"
    noun = "vm"
    columns = List.columns


class _OnVms(ActionCommand):
    """A verb about VMs that are there: of one its job is shown, of several a list."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("vm", metavar="VM", nargs="+", help="its name or UUID")
        return parser

    def wish(self, args: argparse.Namespace) -> Answer:
        return self.wish_for(args, args.vm[0])

    def wish_for(self, args: argparse.Namespace, vm: str) -> Answer:
        """The arguments of the request about one of the VMs."""
        return {"vm": vm}

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        if len(parsed_args.vm) == 1:
            return super().take_action(parsed_args)
        return self.jobs(self.ask_all(parsed_args), parsed_args.wait)

    def ask_all(self, args: argparse.Namespace) -> list[Answer]:
        """The managers' answers; a VM for which it was refused has a line of its own."""
        if args.job is not None:
            raise usage.Usage("--job names the job of one VM", "repeat the request for that VM")
        new_id, vms, found = self.app.runtime.new_id, list(dict.fromkeys(args.vm)), []
        answers = self.app.client.change_all(
            [
                (self.method, {"job": new_id(), "reason": args.reason, **self.wish_for(args, vm)})
                for vm in vms
            ]
        )
        for vm, answer in zip(vms, answers, strict=True):
            if "error" not in answer:
                found.append(answer["answer"])
                continue
            error = RemoteError(answer["error"])
            if (settled := self.settled(args, vm, error)) is not None:
                found.append(settled)
            else:
                self.object_to(error)
        return found

    def settled(self, args: argparse.Namespace, vm: str, error: MusterError) -> Answer | None:
        """What stands for the job of a VM when the refusal is as good as one that succeeded."""
        return None


class Start(_OnVms):
    """Start a VM, or several"""

    method = "vm_start"


class _Forcible(_OnVms):
    """A verb that first asks the guest, unless it is forced."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--force", action="store_true", help="do not ask the guest first")
        return parser

    def wish_for(self, args: argparse.Namespace, vm: str) -> Answer:
        return {"vm": vm, "force": args.force}


class Stop(_Forcible):
    """Stop a VM, or several"""

    method = "vm_stop"


class Reboot(_Forcible):
    """Reboot a VM, or several"""

    method = "vm_reboot"


class Pause(_OnVms):
    """Halt the processors of a VM, or of several; their memory stays where it is"""

    method = "vm_pause"


class Unpause(_OnVms):
    """Let a VM that was paused go on, or several"""

    method = "vm_unpause"


class Suspend(_OnVms):
    """Save the memory of a VM to its host's disk and switch it off, or several"""

    method = "vm_suspend"


class Resume(_OnVms):
    """Let a VM that was suspended go on where it was, or several"""

    method = "vm_resume"


class Shelve(_OnVms):
    """Stop a VM, or several, and keep copies of their disks; then their hosts are free of them"""

    method = "vm_shelve"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--offload",
            action="store_true",
            help="have its guest leave its host at once, whatever shelved_offload_time says",
        )
        return parser

    def wish_for(self, args: argparse.Namespace, vm: str) -> Answer:
        return {"vm": vm, "offload": args.offload}


class Unshelve(_OnVms):
    """Let a VM that was shelved run again, or several, on whichever host takes it"""

    method = "vm_unshelve"


class Resize(ActionCommand):
    """Give a VM another size; confirm-resize keeps it, revert-resize brings the old one back"""

    method = "vm_resize"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_object(parser, "vm")
        parser.add_argument("--offering", metavar="OFFERING", help="what it is to get")
        for field, words, what in (
            ("vcpus", ("--vcpus",), "of its CPUs, if it is to have no offering"),
            ("memory_mib", ("--memory-mib", "--memory"), "in MiB, likewise"),
        ):
            kind = usage.whole(field, *usage.bounds(GuestSpec, field))
            parser.add_argument(*words, dest=field, metavar="N", type=kind, help=what)
        parser.add_argument(
            "--root-gib",
            metavar="N",
            type=usage.whole("root_gib", *usage.bounds(DiskSpec, "size_gib")),
            help="of its first disk, which can only grow",
        )
        return parser

    def wish(self, args: argparse.Namespace) -> Answer:
        return {
            "vm": args.vm,
            "offering": args.offering,
            "vcpus": args.vcpus,
            "memory_mib": args.memory_mib,
            "root_gib": args.root_gib,
        }


class ConfirmResize(_OnVms):
    """Keep the new size of a VM, or of several; what they were is removed"""

    method = "vm_confirm_resize"


class RevertResize(_OnVms):
    """Make a VM what it was before its resize, disks included, or several"""

    method = "vm_revert_resize"


class SetState(ActionCommand):
    """Say what a VM is, until its host reports otherwise"""

    method = "vm_set_state"
    needs_reason = True

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_object(parser, "vm")
        parser.add_argument(
            "vm_state",
            metavar="STATE",
            type=usage.one_of("vm_state", SettableState),
            help=", ".join(SettableState),
        )
        return parser

    def wish(self, args: argparse.Namespace) -> Answer:
        return {"vm": args.vm, "vm_state": args.vm_state}


class Set(ActionCommand):
    """Protect a VM from deletion, or no longer"""

    method = "vm_set"
    needs_reason = True

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_object(parser, "vm")
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument(
            "--protected", action="store_true", help="refuse every delete, forced or not"
        )
        which.add_argument("--unprotected", action="store_true", help="it may be deleted")
        return parser

    def wish(self, args: argparse.Namespace) -> Answer:
        return {"vm": args.vm, "protected": args.protected}


class Restore(_OnVms):
    """Bring back a VM that was deleted softly, or several"""

    method = "vm_restore"


class Delete(_OnVms):
    """Delete a VM, or several, also where their host does not answer"""

    method = "vm_delete"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--soft",
            action="store_true",
            help="stop it, and keep it for a while: muster vm restore brings it back",
        )
        how.add_argument(
            "--force",
            action="store_true",
            help="delete the record although the host may still run the guest; needs --reason",
        )
        parser.add_argument(
            "--idempotent", action="store_true", help="succeed if it has been deleted already"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would be done, and do nothing"
        )
        return parser

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return DECISION_COLUMNS if args.dry_run else JOB_COLUMNS

    def wish_for(self, args: argparse.Namespace, vm: str) -> Answer:
        return {
            "vm": vm,
            "force": args.force,
            "soft": args.soft,
            "idempotent": args.idempotent,
            "dry_run": args.dry_run,
        }

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        if parsed_args.force and parsed_args.reason is None:
            raise BadRequest(
                "--force may leave a guest running that nobody knows of",
                "say why with --reason",
                field="reason",
            )
        if len(parsed_args.vm) > 1:
            answers = self.ask_all(parsed_args)
            if parsed_args.dry_run:
                decisions = [each for answer in answers for each in answer.get("decisions", ())]
                return self.rows(DECISION_COLUMNS, decisions)
            return self.jobs(answers, parsed_args.wait)
        try:
            answer = self.ask(parsed_args)
        except MusterError as exc:
            gone = self.settled(parsed_args, parsed_args.vm[0], exc)
            if gone is None:
                raise
            return self.one(JOB_COLUMNS, gone)
        if parsed_args.dry_run:
            self.tell(answer)
            return self.rows(DECISION_COLUMNS, answer.get("decisions", ()))
        return self.job(answer, parsed_args.wait)

    def settled(self, args: argparse.Namespace, vm: str, error: MusterError) -> Answer | None:
        if error.code != AlreadyDeleted.code or not args.idempotent:
            return None
        self.tell({"notices": [error.message]})
        return {"instance": vm, "state": str(JobState.SUCCEEDED)}
