"""What is wrong with a command line: the error for its form, and the readers of its values."""

from __future__ import annotations

import argparse
import math
import re
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from common.errors import EXIT_USAGE, BadRequest, MusterError
from common.fields import refused

# As the shell reports a process that the signal ended.
EXIT_INTERRUPTED = 130
WHOLE = re.compile(r"[+-]?[0-9]+")
E = TypeVar("E")


class Usage(MusterError, ValueError):
    """The words do not form a command. A ValueError too: cliff's help expects one."""

    code = "USAGE"
    exit_code = EXIT_USAGE


class Interrupted(MusterError):
    """The operator pressed Ctrl-C."""

    code = "INTERRUPTED"
    exit_code = EXIT_INTERRUPTED


def bounds(struct: type[msgspec.Struct], field: str) -> tuple[int, int]:
    """The range that the messages allow a whole-number field, so that both sides agree."""
    info: Any = next(f for f in msgspec.inspect.type_info(struct).fields if f.name == field).type  # type: ignore[attr-defined]
    for kind in getattr(info, "types", (info,)):
        if isinstance(kind, msgspec.inspect.IntType):
            return int(kind.ge or 0), int(kind.le or 0)
    raise TypeError(f"{struct.__name__}.{field} is no whole number")


class Wrong:
    """A value that could not be read, kept until all the others have been."""

    def __init__(self, error: BadRequest) -> None:
        self.error = error


def keep_wrong(parser: argparse.ArgumentParser) -> None:
    """Have every reader of the parser go on after a wrong value; see `refuse_wrong`."""
    for action in parser._actions:
        if callable(action.type):
            action.type = _patient(action.type)


def refuse_wrong(args: argparse.Namespace) -> None:
    """Raise BadRequest for all values that could not be read, each with its field."""
    given = [
        v for value in vars(args).values() for v in (value if isinstance(value, list) else [value])
    ]
    errors = [value.error for value in given if isinstance(value, Wrong)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        told = [
            (str(e.data.get("field", "")), e.message.partition(": ")[2], e.remedy) for e in errors
        ]
        raise refused(told)


def _patient(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def reader(text: str) -> Any:
        try:
            return read(text)
        except BadRequest as exc:
            return Wrong(exc)

    return reader


def matching(field: str, pattern: str, words: str) -> Callable[[str], str]:
    """A reader of text of a certain form, told in words."""

    def read(text: str) -> str:
        if not re.match(pattern, text):
            raise BadRequest(f"{field}: {text!r:.80} is not possible", words, field=field)
        return text

    return read


def whole(field: str, low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        if not WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise BadRequest(
                f"{field}: {text!r} is not possible",
                f"give a whole number from {low} to {high}",
                field=field,
            )
        return int(text)

    return read


def number(field: str, low: float, high: float) -> Callable[[str], float]:
    """A reader of numbers from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise BadRequest(
                f"{field}: {text!r} is not possible",
                f"give a number from {low:g} to {high:g}",
                field=field,
            )
        return value

    return read


def said(field: str) -> Callable[[str], str]:
    """A reader of words that must not be blank."""

    def read(text: str) -> str:
        if not text.strip():
            raise BadRequest(f"{field}: is empty", "say it in words", field=field)
        return text.strip()

    return read


def absolute(field: str) -> Callable[[str], str]:
    """A reader of paths on a hypervisor host, where no working directory could complete them."""

    def read(text: str) -> str:
        if not text.startswith("/"):
            raise BadRequest(
                f"{field}: {text!r} is not an absolute path",
                "give the path on the host, from /",
                field=field,
            )
        return text

    return read


def one_of(field: str, words: type[E]) -> Callable[[str], str]:
    """A reader of a state's name, in capitals or not."""
    names = [str(word) for word in words]  # type: ignore[attr-defined]

    def read(text: str) -> str:
        for name in names:
            if name.lower() == text.lower():
                return name
        raise BadRequest(f"{field}: {text!r} is unknown", f"one of {', '.join(names)}", field=field)

    return read


def uuid_of(field: str) -> Callable[[str], str]:
    """A reader of uuids, as everyone writes them."""

    def read(text: str) -> str:
        try:
            return str(uuid.UUID(text))
        except ValueError as exc:
            raise BadRequest(
                f"{field}: {text!r} is not a UUID", "give the one that was printed", field=field
            ) from exc

    return read


job_uuid = uuid_of("job")
