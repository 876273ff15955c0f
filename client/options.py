"""Options made from the fields of a noun, and what is read from them.

Wrong values are sent as they were typed: a manager tells of all of them at once.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import inspect

from client import usage
from client.base import Answer
from common import fields, nouns
from common.errors import BadRequest
from common.model import NOUNS, USER_DATA_LIMIT_BYTES, Kind

NONE = object()  # an option that was given, to unset its field
# Fields whose option is not simply called as they are.
OPTIONS: Mapping[tuple[Kind, str], str] = {
    (Kind.TEMPLATE, "format"): "--image-format",  # --format is that of the output
    (Kind.SECURITY_GROUP, "rules"): "--rule",
    (Kind.SSH_KEY, "public_key"): "--public-key-file",
    (Kind.USER_DATA, "data"): "--file",
}


def add_fields(
    parser: argparse.ArgumentParser, kind: Kind, names: Sequence[str], *, new: bool
) -> None:
    """An option for each of the fields; what was not given is None."""
    for name in names:
        option = OPTIONS.get((kind, name), f"--{name.replace('_', '-')}")
        plain, nullable = _plain(fields.types(NOUNS[kind])[name])
        more: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if isinstance(plain, inspect.VarTupleType):
            word = NOUNS[kind].refs[name].name if name in NOUNS[kind].refs else "WORD"
            more = {"action": "extend", "type": _words, "metavar": f"{word},..."}
            if name == "rules":
                more |= {"type": rule, "metavar": "RULE"}
        elif option.endswith("file"):
            more = {"type": text_of(name, USER_DATA_LIMIT_BYTES), "metavar": "FILE"}
            if kind is Kind.SSH_KEY:
                more["type"] = _line_of(name)
        elif not isinstance(plain, inspect.BoolType):
            metavar = _metavar(kind, name, plain)
            more = {"type": reader_of(plain, nullable=nullable), "metavar": metavar}
        help_ = _help(kind, name, plain, new=new).replace("%", "%%")
        parser.add_argument(option, dest=f"field_{name}", default=None, help=help_, **more)


def _help(kind: Kind, name: str, plain: inspect.Type, *, new: bool) -> str:
    parts = [nouns.FIELDS[kind][name]]
    if isinstance(plain, inspect.IntType | inspect.FloatType):
        parts.append(fields.may_be(plain))
    if name == "rules":
        parts.append("as direction=ingress,protocol=tcp,ports=22-80,cidr=10.0.0.0/8")
    if isinstance(plain, inspect.VarTupleType):
        parts.append("may be repeated")
    known = fields.defaults(NOUNS[kind])
    if new and name not in known:
        parts.append("required")
    elif new and known[name] not in (None, ()):
        parts.append(f"default {_shown(known[name])}")
    return "; ".join(parts)


def _metavar(kind: Kind, name: str, plain: inspect.Type) -> str:
    if name in NOUNS[kind].refs:
        return NOUNS[kind].refs[name].name
    if isinstance(plain, inspect.EnumType):
        return "|".join(str(member.value) for member in plain.cls)
    words = {inspect.IntType: "N", inspect.FloatType: "RATIO"}
    return words.get(type(plain), "TEXT")


def reader_of(plain: inspect.Type, *, nullable: bool) -> Callable[[str], Any]:
    """A reader of one value; what is no number where one belongs stays what was typed."""

    def read(text: str) -> Any:
        if not text and nullable:
            return NONE
        try:
            if isinstance(plain, inspect.IntType) and usage.WHOLE.fullmatch(text):
                return int(text)
            return float(text) if isinstance(plain, inspect.FloatType) else text
        except ValueError:
            return text

    return read


def given(args: argparse.Namespace) -> Answer:
    """The fields that were given, by name."""
    found = {
        name.removeprefix("field_"): value
        for name, value in vars(args).items()
        if name.startswith("field_") and value is not None
    }
    return {name: None if value is NONE else value for name, value in found.items()}


def _plain(type_: inspect.Type) -> tuple[inspect.Type, bool]:
    """The type without None and without its words, and whether it may be None."""
    if isinstance(type_, inspect.Metadata):
        return _plain(type_.type)
    if isinstance(type_, inspect.UnionType):
        others = [t for t in type_.types if not isinstance(t, inspect.NoneType)]
        return _plain(others[0])[0], True
    return type_, False


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def rule(text: str) -> list[Answer]:
    """One rule of a security group; none at all for the empty string."""
    found: Answer = {}
    for part in _words(text):
        key, equals, value = part.partition("=")
        if not equals or not value or key not in ("direction", "protocol", "ports", "cidr"):
            raise BadRequest(
                f"rules: {part!r} is not possible",
                "direction=ingress|egress,protocol=tcp|udp|icmp|all,ports=N[-M],cidr=SUBNET",
                field="rules",
            )
        if key != "ports":
            found[key] = value
            continue
        first, _, last = value.partition("-")
        port = usage.whole("rules", 0, 65535)
        found["port_first"], found["port_last"] = port(first), port(last or first)
    return [found] if found else []


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _line_of(field: str) -> Callable[[str], str]:
    """A reader of files of one line."""
    read = text_of(field, USER_DATA_LIMIT_BYTES)
    return lambda path: read(path).strip()


def text_of(field: str, limit: int) -> Callable[[str], str]:
    """A reader of text files of at most `limit` bytes on this machine."""

    def read(path: str) -> str:
        try:
            data = pathlib.Path(path).read_bytes()
            text = data.decode()
        except (OSError, ValueError) as exc:
            said = exc.strerror if isinstance(exc, OSError) else "is no UTF-8 text"
            raise BadRequest(
                f"{field}: {path}: {said}", "give the path of a text file", field=field
            ) from exc
        if len(data) > limit:
            raise BadRequest(
                f"{field}: {path} has {len(data)} bytes", f"at most {limit}", field=field
            )
        return text

    return read
