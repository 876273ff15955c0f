"""`muster zone|network|offering|... VERB`: one set of verbs for all nouns of the model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from client import options, usage
from client.base import Answer, Command, ListCommand, Rows, add_reason
from client.rpc import operator
from common import fields, nouns
from common.model import NOUNS, Kind

# What a listing shows of the nouns with many fields or long ones, unless asked for more.
LISTED: Mapping[Kind, tuple[str, ...]] = {
    Kind.POOL: (
        *("kind", "scope", "host", "cluster", "zone"),
        *("path", "rbd_pool", "capacity_gib", "enabled"),
    ),
    Kind.OFFERING: ("vcpus", "memory_mib", "root_gib", "cpu_mhz", "ha", "host_tags"),
    Kind.TEMPLATE: ("format", "url", "zones", "project", "public", "enabled"),
    Kind.NETWORK: ("zone", "kind", "backend", "source", "vlan", "cidr", "gateway", "enabled"),
    Kind.SSH_KEY: ("project",),
    Kind.USER_DATA: ("project",),
}


def columns(kind: Kind) -> tuple[str, ...]:
    """Everything that is known of a noun."""
    return ("name", *NOUNS[kind].__struct_fields__, "created_at")


class _OfKind:
    """A verb of one noun."""

    kind: ClassVar[Kind]


class List(_OfKind, ListCommand):
    method = "model_list"
    key = "objects"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--long", action="store_true", help="all columns")
        return parser

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        if args.long or self.kind not in LISTED:
            return columns(self.kind)
        return ("name", *LISTED[self.kind])

    def filters(self, args: argparse.Namespace) -> Answer:
        return {"kind": self.kind.value}


class _Named(_OfKind, Command):
    """A verb about one object."""

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return columns(self.kind)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("name", metavar="NAME", type=usage.said("name"), help="its name")
        return parser

    def ask(self, method: str, args: argparse.Namespace, **asked: Any) -> Answer:
        """The answer to a change; asked again under the same id when it is lost."""
        return self.app.client.ask(
            method,
            kind=self.kind.value,
            name=args.name,
            reason=args.reason,
            operator=operator(),
            request=self.app.runtime.new_id(),
            **asked,
        )


class Show(_Named):
    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return (*columns(self.kind), "changed_at")

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        answer = self.app.client.ask("model_show", kind=self.kind.value, name=parsed_args.name)
        return self.one(self.columns_of(parsed_args), answer)


class Create(_Named):
    def get_description(self) -> str:
        return f"{self.__doc__}: {nouns.ABOUT[self.kind]}"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_reason(parser)
        options.add_fields(parser, self.kind, NOUNS[self.kind].__struct_fields__, new=True)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        answer = self.ask("model_create", parsed_args, fields=options.given(parsed_args))
        return self.one(columns(self.kind), answer.get("object", {}))


class Set(_Named):
    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_reason(parser)
        options.add_fields(parser, self.kind, NOUNS[self.kind].__struct_fields__, new=False)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        asked = options.given(parsed_args)
        if not asked:
            raise usage.Usage("nothing is to be set", f"see: muster {self.kind.noun} set --help")
        answer = self.ask("model_set", parsed_args, fields=asked)
        self.tell({"notices": [said(answer.get("changes", ())) or "nothing had to be changed"]})
        return self.one(columns(self.kind), answer.get("object", {}))


class SetHost(Set):
    """A host needs no place: without a cluster it has none, and serves VMs without a zone."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--no-cluster", action="store_true", help="take it out of its cluster")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        if not parsed_args.no_cluster:
            return super().take_action(parsed_args)
        self.ask("model_delete", parsed_args)
        self.tell({"notices": [f"{parsed_args.name} is in no cluster any more, and has no tags"]})
        return self.one(columns(self.kind), {"name": parsed_args.name})


class Delete(_Named):
    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return ("kind", "name", "action")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_reason(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        answer = self.ask("model_delete", parsed_args)
        return self.one(self.columns_of(parsed_args), answer)


def said(changes: Sequence[Answer]) -> str:
    """What changed, in a line: `enabled: true -> false`."""
    return "; ".join(
        f"{each['field']}: {fields.shown(each.get('old'))} -> {fields.shown(each.get('new'))}"
        for each in changes
    )


class Verbs:
    """The commands of one noun, as entry points name them: `client.model:zone.List`."""

    Set: type[Set]

    def __init__(self, kind: Kind) -> None:
        several = kind.plural.replace("_", " ")
        one = f"{'' if kind is Kind.USER_DATA else _article(kind)}{kind.words}"
        for name, verb, about in (
            ("List", List, f"List the {several}"),
            ("Show", Show, f"Show all that is known of {one}"),
            ("Create", Create, f"Make {one}"),
            ("Set", Set, f"Change {one}; an empty value unsets a field"),
            ("Delete", Delete, f"Delete {one} that nothing uses"),
        ):
            setattr(self, name, type(name, (verb,), {"kind": kind, "__doc__": about}))


def _article(kind: Kind) -> str:
    return "an " if kind.value[0] in "aeiou" or kind is Kind.SSH_KEY else "a "


zone = Verbs(Kind.ZONE)
pod = Verbs(Kind.POD)
cluster = Verbs(Kind.CLUSTER)
host = Verbs(Kind.HOST)
host.Set = type("Set", (SetHost,), {"kind": Kind.HOST, "__doc__": f"Say {nouns.ABOUT[Kind.HOST]}"})
pool = Verbs(Kind.POOL)
offering = Verbs(Kind.OFFERING)
disk_offering = Verbs(Kind.DISK_OFFERING)
template = Verbs(Kind.TEMPLATE)
network = Verbs(Kind.NETWORK)
security_group = Verbs(Kind.SECURITY_GROUP)
affinity_group = Verbs(Kind.AFFINITY_GROUP)
project = Verbs(Kind.PROJECT)
ssh_key = Verbs(Kind.SSH_KEY)
user_data = Verbs(Kind.USER_DATA)
