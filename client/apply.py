"""`muster apply`: a zone with all that is in it, from one file."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import msgspec
import yaml

from client.base import Command, Rows, add_reason
from client.model import said
from client.rpc import operator
from common.errors import BadRequest
from common.messages import RPC_LIMIT_BYTES

MOST = 500_000  # values; more do not fit into a message
ROOM_BYTES = 4096  # what a message holds besides


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml publishes no types
    """YAML's plain values; a key that is there twice, of which one would be lost, is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        scalars = [key for key, _value in node.value if isinstance(key, yaml.ScalarNode)]
        for key in scalars:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


def read(path: str) -> dict[str, Any]:
    """What an apply file holds; BadRequest names the line and column of what is no YAML."""
    try:
        text = pathlib.Path(path).read_bytes().decode()
        found = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "is no UTF-8 text"
        raise BadRequest(f"{path}: {why}", "give the path of a YAML file") from exc
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise BadRequest(f"{path}:{where}: {exc.problem}", "correct the YAML there") from exc
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise BadRequest(f"{path}: {exc}", "correct the YAML") from exc
    if not isinstance(found, dict):
        raise BadRequest(
            f"{path}: holds no nouns", "lists of objects under zones:, networks: and the others"
        )
    if _weight(found, {}) > MOST:
        raise BadRequest(f"{path}: holds too much once its aliases are written out", "split it")
    # Dates and the like become text, as all that is no number, no word and no list of them.
    plain: dict[str, Any] = msgspec.to_builtins(found, str_keys=True)
    try:
        size = len(msgspec.json.encode(plain))
    except UnicodeEncodeError as exc:
        raise BadRequest(f"{path}: {exc.object!r:.60} is no text", "write it again") from exc
    if size > RPC_LIMIT_BYTES - ROOM_BYTES:
        said = f"{path}: {size} bytes are more than a manager takes at once"
        raise BadRequest(said, f"split it into files of at most {RPC_LIMIT_BYTES - ROOM_BYTES}")
    return plain


def _weight(value: Any, known: dict[int, int]) -> int:
    """How many values there are, those that aliases repeat as often as they do."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST + 1  # as long as this is not done: of what is a part of itself
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_weight(part, known) for part in parts)
    return known[id(value)]


class Apply(Command):
    """Make all that a file describes, or change what differs; nothing else is touched"""

    words = {"changes": said}

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return ("kind", "name", "action", "changes")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("file", metavar="FILE", help="YAML: lists of objects under zones: ...")
        add_reason(parser)
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would be changed, and do nothing"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        answer = self.app.client.ask(
            "model_apply",
            objects=read(parsed_args.file),
            dry_run=parsed_args.dry_run,
            reason=parsed_args.reason,
            operator=operator(),
        )
        if parsed_args.dry_run:
            self.tell({"notices": ["nothing was changed: it is a dry run"]})
        return self.rows(self.columns_of(parsed_args), answer.get("objects", ()))
