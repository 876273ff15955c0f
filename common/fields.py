"""Reading the fields of a noun one by one, so that every wrong one is told, and in plain words."""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from common.errors import BadRequest
from common.model import Noun, Problem

SHOWN = 60  # characters of a wrong value that are repeated


def checked(struct: type[Noun], given: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    """The noun, or None when a field can not be read; and all that is wrong with it.

    A noun whose fields contradict each other is returned with the problems that say so.
    """
    values, problems = _values(struct, given)
    readable = Readable(struct, values)
    for check in struct.checks:
        try:
            problems += getattr(struct, check)(readable)
        except Unreadable:
            continue  # it is about a field that has its own problem
    complete = set(values) == set(struct.__struct_fields__)
    return struct(**values) if complete else None, problems


def wrong(struct: type[msgspec.Struct], given: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with each field of a request by itself."""
    return _values(struct, given)[1]


def refused(problems: Sequence[Problem]) -> BadRequest:
    """The error that tells all problems; `data["errors"]` has them one by one."""
    errors = [{"field": f, "message": m, "remedy": r} for f, m, r in problems]
    field, _, remedy = problems[0]
    if len(problems) > 1:
        remedy = "correct each of them"
        told = "; ".join(f"{f}: {m} ({r})" for f, m, r in problems)
    else:
        told = f"{field}: {problems[0][1]}"
    return BadRequest(told, remedy, field=field, errors=errors)


def plain(value: Any) -> Any:
    """A noun or a value of it as it is stored and told: JSON's lists for tuples."""
    return msgspec.json.decode(msgspec.json.encode(value))


def may_be(kind: inspect.Type) -> str:
    """What a field of this type may hold, in words."""
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description") or may_be(inner))
        case inspect.UnionType(types=kinds):
            return may_be(next(k for k in kinds if not isinstance(k, inspect.NoneType)))
        case inspect.EnumType(cls=cls):
            return f"one of {', '.join(str(member.value) for member in cls)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case inspect.FloatType(ge=low, gt=above, le=high):
            return (
                f"a number {f'from {low:g}' if low is not None else f'above {above:g}'} to {high:g}"
            )
        case inspect.StrType(max_length=limit):
            return "text" if limit is None else f"text of at most {limit} characters"
        case inspect.VarTupleType(item_type=item, max_length=limit):
            most = "" if limit is None else f", at most {limit}"
            return f"a list{most}, each {may_be(item)}"
        case inspect.TupleType(item_types=items):
            return f"a list of {len(items)}: {', '.join(may_be(item) for item in items)}"
        case inspect.DictType():
            return "fields with their values"
        case inspect.AnyType():
            return "any value"
        case inspect.StructType(fields=fields):
            return f"fields: {', '.join(field.name for field in fields)}"
    raise TypeError(f"a noun has a field of {kind!r}")


@functools.cache
def hints(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The annotation of each field."""
    found = typing.get_type_hints(struct, include_extras=True)
    return {name: found[name] for name in struct.__struct_fields__}


@functools.cache
def types(struct: type[msgspec.Struct]) -> dict[str, inspect.Type]:
    """The type of each field."""
    return {name: inspect.type_info(hint) for name, hint in hints(struct).items()}


@functools.cache
def defaults(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The fields that may be left out, and what they are then."""
    return {
        field.name: field.default
        for field in msgspec.structs.fields(struct)
        if field.default is not msgspec.NODEFAULT
    }


class Unreadable(Exception):
    """A check needs a field that could not be read."""


class Readable:
    """A noun as far as it could be read, for its checks: a missing field ends a check."""

    def __init__(self, struct: type[Noun], values: Mapping[str, Any]) -> None:
        self._struct, self._fields = struct, values

    def __getattr__(self, name: str) -> Any:
        if name in self._fields:
            return self._fields[name]
        if name in self._struct.__struct_fields__:
            raise Unreadable(name)
        return functools.partial(getattr(self._struct, name), self)


def _values(
    struct: type[msgspec.Struct], given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Problem]]:
    """The fields that could be read, defaults too, and what is wrong with the others."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    refs, kinds = getattr(struct, "refs", {}), types(struct)
    for name in given:
        if name not in kinds:
            problems.append((str(name), "there is no such field", f"one of {', '.join(kinds)}"))
    for name, kind in kinds.items():
        if name not in given:
            if name in defaults(struct):
                values[name] = defaults(struct)[name]
            else:
                wanted = f"the name of a {refs[name].words}" if name in refs else may_be(kind)
                problems.append((name, "missing", f"give {wanted}"))
            continue
        found = list(_wrong(name, kind, given[name], hints(struct)[name]))
        if not found:
            values[name] = msgspec.convert(given[name], type=hints(struct)[name])
        problems += found
    return values, problems


def _wrong(field: str, kind: inspect.Type, value: Any, hint: Any) -> Iterator[Problem]:
    """What is wrong with one value: of a list with each of its items, of a rule with each field."""
    if isinstance(kind, inspect.VarTupleType) and isinstance(value, list | tuple):
        (item_hint, _) = typing.get_args(_bare(hint))
        found = [
            problem
            for n, item in enumerate(value)
            for problem in _wrong(f"{field}[{n}]", kind.item_type, item, item_hint)
        ]
        if found:
            yield from found
            return
    if isinstance(kind, inspect.StructType) and isinstance(value, Mapping):
        _, within = _values(kind.cls, value)
        yield from ((f"{field}.{name}", message, remedy) for name, message, remedy in within)
        return
    try:
        msgspec.convert(value, type=hint)
        if isinstance(value, str):
            value.encode()  # no half of a character, which nobody could keep
    except (msgspec.ValidationError, UnicodeEncodeError):
        yield field, f"{shown(value)} is not possible", f"give {may_be(kind)}"


def _bare(hint: Any) -> Any:
    """A type without its Annotated[]."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def shown(value: Any) -> str:
    """A wrong value, as far as it fits into a line."""
    try:
        text = repr(value) if isinstance(value, str | float) else json.dumps(value, default=repr)
    except (RecursionError, TypeError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
