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


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml publishes no types
    """YAML's plain values; a key that is there twice, of which one would be lost, is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _value in node.value:
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
    try:
        # Dates and the like become text, as all that is no number, no word and no list of them.
        plain: dict[str, Any] = msgspec.to_builtins(found, str_keys=True)
    except RecursionError as exc:
        raise BadRequest(f"{path}: an alias is a part of itself", "write it out") from exc
    return plain


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
