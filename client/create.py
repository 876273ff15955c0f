"""`muster vm create`: what a new VM is made from, and where it may go."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from client import usage
from client.base import JOB_COLUMNS, ActionCommand, Answer, Rows
from client.options import text_of
from common.errors import BadRequest, NoValidHost
from common.fields import types
from common.messages import VM_NAME, VM_NAME_WORDS, DiskSpec, GuestSpec
from common.model import USER_DATA_LIMIT_BYTES, Cluster

PLAN_COLUMNS = ("host", "decision", "reason")
ORDERS = ("first-fit", "spread", "spread-by-project", "pack")
SIZE_GIB = usage.bounds(DiskSpec, "size_gib")
RATIO: Any = types(Cluster)["cpu_overcommit"]

# The options of which nothing is asked beyond being there: the option, its key, what it says.
NAMED = (
    ("--offering", "offering", "NAME", "what it gets: CPUs, memory, root disk, tags"),
    ("--template", "template", "NAME", "what its root disk is made from"),
    ("--hostname", "hostname", "NAME", "the guest's; else the name of the VM"),
    ("--zone", "zone", "ZONE", "where it is made; may be left out if there is but one"),
    ("--project", "project", "PROJECT", "whose limits it counts against; else `default`"),
    ("--pod", "pod", "POD", "only there"),
    ("--cluster", "cluster", "CLUSTER", "only there"),
    ("--host", "host", "HOST", "only there"),
    ("--pool", "pool", "POOL", "where its disks go"),
)
REPEATED = (
    ("--security-group", "security_groups", "NAME", "what may reach it"),
    ("--affinity-group", "affinity_groups", "NAME", "VMs to be with, or apart from"),
    ("--ssh-key", "ssh_keys", "NAME", "who may log in"),
)


def _disk(text: str) -> Answer:
    """`--disk`: a whole number is the size of a new disk, anything else an image's path."""
    if usage.WHOLE.fullmatch(text):
        return {"size_gib": usage.whole("size_gib", *SIZE_GIB)(text)}
    if text.startswith("/"):
        return {"path": text}
    raise BadRequest(
        f"disk: {text!r} is neither a size nor an absolute path",
        "give whole GiB, or the path of an image on the host",
        field="disk",
    )


def _data_disk(text: str) -> Answer:
    """`--data-disk`: a whole number is a size, else an offering, maybe with a size."""
    size = usage.whole("data_disks", *SIZE_GIB)
    if usage.WHOLE.fullmatch(text):
        return {"size_gib": size(text)}
    offering, colon, gib = text.partition(":")
    return {
        "offering": usage.said("data_disks")(offering),
        **({"size_gib": size(gib)} if colon else {}),
    }


def _network(text: str) -> Answer:
    """`--network NAME[,address=IP][,address6=IP][,default]`."""
    name, *others = text.split(",")
    nic: Answer = {"network": usage.said("networks")(name)}
    for other in others:
        key, equals, value = other.partition("=")
        if key in ("address", "address6") and value:
            nic[key] = value
        elif key == "default" and not equals:
            nic["default"] = True
        else:
            raise BadRequest(
                f"networks: {other!r} is not possible",
                "NAME[,address=IP][,address6=IP][,default]",
                field="networks",
            )
    return nic


class Create(ActionCommand):
    """Create a VM and start it"""

    method = "vm_create"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        name = usage.matching("name", VM_NAME, VM_NAME_WORDS)
        parser.add_argument("name", metavar="NAME", type=name)
        parser.add_argument(
            "--vcpus",
            metavar="N",
            type=usage.whole("vcpus", *usage.bounds(GuestSpec, "vcpus")),
            help="virtual CPUs; of an offering that leaves them open, or without one",
        )
        parser.add_argument(
            "--memory",
            metavar="MIB",
            dest="memory_mib",
            type=usage.whole("memory_mib", *usage.bounds(GuestSpec, "memory_mib")),
            help="memory in MiB, likewise",
        )
        for option, key, metavar, help_ in NAMED:
            parser.add_argument(option, dest=key, metavar=metavar, type=usage.said(key), help=help_)
        for option, key, metavar, help_ in REPEATED:
            parser.add_argument(
                option,
                dest=key,
                metavar=metavar,
                action="append",
                type=usage.said(key),
                help=f"{help_}; may be repeated",
            )
        self._add_disks(parser)
        self._add_boot(parser)
        parser.add_argument(
            "--network",
            dest="networks",
            metavar="NAME[,address=IP][,address6=IP][,default]",
            action="append",
            type=_network,
            help="a NIC there; one is the default route's; may be repeated",
        )
        parser.add_argument("--order", choices=ORDERS, help="which of the hosts that could take it")
        for option, key in (("cpu", "cpu_overcommit"), ("memory", "memory_overcommit")):
            parser.add_argument(
                f"--{option}-overcommit",
                dest=key,
                metavar="RATIO",
                type=usage.number(key, RATIO.ge, RATIO.le),
                help="its own, instead of its cluster's",
            )
        parser.add_argument(
            "--no-start",
            dest="start",
            action="store_const",
            const=False,
            help="reserve all it needs and leave it off",
        )
        parser.add_argument(
            "--dry-run",
            action="store_const",
            const=True,
            help="say of each host why it would be chosen or not, and do nothing",
        )
        usage.keep_wrong(parser)
        return parser

    def _add_disks(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--full-copy",
            action="store_const",
            const=True,
            help="copy the template rather than lay a disk over it",
        )
        parser.add_argument(
            "--root-disk",
            dest="root_gib",
            metavar="GIB",
            type=usage.whole("root_gib", *SIZE_GIB),
            help="the size of the root disk",
        )
        parser.add_argument(
            "--data-disk",
            dest="data_disks",
            metavar="SIZE_GIB|OFFERING[:SIZE_GIB]",
            action="append",
            type=_data_disk,
            help="one more disk in a pool; may be repeated",
        )
        parser.add_argument(
            "--disk",
            dest="disks",
            metavar="SIZE_GIB|PATH",
            action="append",
            type=_disk,
            help="a new disk of so many GiB beside the pools, or an image on the host, which is"
            " kept at the VM's deletion; may be repeated",
        )

    def _add_boot(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--kernel", metavar="FILE", type=usage.absolute("kernel"), help="kernel on the host"
        )
        parser.add_argument(
            "--initrd", metavar="FILE", type=usage.absolute("initrd"), help="its initial ramdisk"
        )
        parser.add_argument("--cmdline", metavar="TEXT", help="its command line")
        told = parser.add_mutually_exclusive_group()
        told.add_argument(
            "--user-data",
            dest="user_data_name",
            metavar="NAME",
            type=usage.said("user_data_name"),
            help="what cloud-init is told in it: the stored one of this name",
        )
        told.add_argument(
            "--user-data-file",
            dest="user_data",
            metavar="FILE",
            type=text_of("user_data", USER_DATA_LIMIT_BYTES),
            help="the same, from a file here",
        )

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return PLAN_COLUMNS if args.dry_run else JOB_COLUMNS

    def wish(self, args: argparse.Namespace) -> Answer:
        usage.refuse_wrong(args)
        for field in ("initrd", "cmdline"):
            if getattr(args, field) is not None and args.kernel is None:
                raise BadRequest(
                    f"{field}: has no meaning without a kernel", "give --kernel", field=field
                )
        missing = [
            option
            for option, value in (("--vcpus", args.vcpus), ("--memory", args.memory_mib))
            if value is None and args.offering is None
        ]
        if missing:
            raise usage.Usage(
                f"without --offering these are required: {', '.join(missing)}",
                "see: muster vm create --help",
            )
        wish: Answer = {key: getattr(args, key) for key in KEYS}
        if args.order is not None:
            wish["order"] = args.order.replace("-", "_")
        # A manager knows the difference between what was said and what it may choose.
        return {key: value for key, value in wish.items() if value is not None}

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        answer = self.ask(parsed_args)
        if not parsed_args.dry_run:
            return self.job(answer, parsed_args.wait)
        chosen = answer.get("host")
        found = f"it would be made on {chosen}" if chosen else "no host can take it"
        self.tell({"notices": [*answer.get("notices", ()), found]})
        if chosen is None:
            self.verdict = NoValidHost(found, "each host's reason is above")
        return self.rows(PLAN_COLUMNS, answer.get("decisions", ()))


KEYS = (
    "name",
    "vcpus",
    "memory_mib",
    *(key for _, key, _, _ in NAMED),
    *(key for _, key, _, _ in REPEATED),
    "full_copy",
    "root_gib",
    "data_disks",
    "disks",
    "kernel",
    "initrd",
    "cmdline",
    "user_data_name",
    "user_data",
    "networks",
    "cpu_overcommit",
    "memory_overcommit",
    "start",
    "dry_run",
)
