"""How answers are printed: keys and true values for machines, titles and words for people."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from cliff.columns import FormattableColumn
from cliff.formatters.base import ListFormatter, SingleFormatter
from cliff.formatters.commaseparated import CSVLister
from cliff.formatters.json_format import JSONFormatter
from cliff.formatters.table import TableFormatter
from cliff.formatters.value import ValueFormatter
from cliff.formatters.yaml_format import YAMLFormatter

_WORDS = {"uuid": "UUID", "vm": "VM", "vms": "VMs", "vcpus": "vCPUs", "mib": "MiB", "mac": "MAC"}
_WORDS |= {"gib": "GiB", "cpu": "CPU", "mhz": "MHz", "vlan": "VLAN", "cidr": "CIDR", "dns": "DNS"}
_WORDS |= {"cidr6": "CIDR6", "ha": "HA", "ip": "IP", "ssh": "SSH", "url": "URL"}
_SPELT = {"s": "(s)"}


class Worded(FormattableColumn[Any]):
    """A value that machines get as it is and people read in the words of `words`."""

    def __init__(self, value: Any, words: Callable[[Any], str]) -> None:
        super().__init__(value)
        self._words = words

    def human_readable(self) -> str:
        return self._words(self._value)


def title(column: str) -> str:
    """A table's heading: `power_age_s` is read as `Power age (s)`."""
    first, *others = column.split("_")
    words = [_WORDS.get(first, first.capitalize())]
    words += [_WORDS.get(word) or _SPELT.get(word, word) for word in others]
    return " ".join(words)


def printable(text: str) -> str:
    """Text that can do nothing to a terminal: strangers' VMs are named by strangers."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def readable(value: Any) -> Any:
    """A value in a table's cell; numbers stay numbers, so that they are aligned as such."""
    if isinstance(value, FormattableColumn):
        return printable(value.human_readable())
    if isinstance(value, str):
        return printable(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return round(value, 1)
    if isinstance(value, dict):
        return " ".join(f"{k}={readable(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return "\n".join(str(readable(item)) for item in value)
    return value


def plain(value: Any) -> Any:
    """A value in a line of text: what has parts is written as JSON."""
    if isinstance(value, FormattableColumn):
        value = value.machine_readable()
    return json.dumps(value) if isinstance(value, dict | list) else value


class Table(TableFormatter):
    """Cliff's table with titles for headings and without a word for what is not known."""

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        rows = [[readable(value) for value in row] for row in data]
        if rows or parsed_args.print_empty:
            super().emit_list([title(name) for name in column_names], rows, stdout, parsed_args)

    def emit_one(
        self,
        column_names: Sequence[str],
        data: Sequence[Any],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        names = [title(name) for name in column_names]
        super().emit_one(names, [readable(value) for value in data], stdout, parsed_args)


class Csv(CSVLister, SingleFormatter):
    """Cliff's CSV, for one object too, with JSON in the cells that have parts."""

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        rows = [[plain(value) for value in row] for row in data]
        super().emit_list(column_names, rows, stdout, parsed_args)

    def emit_one(
        self,
        column_names: Sequence[str],
        data: Sequence[Any],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        self.emit_list(column_names, [data], stdout, parsed_args)


class Value(ValueFormatter):
    """Cliff's bare values, with JSON for what has parts."""

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        rows = [[plain(value) for value in row] for row in data]
        super().emit_list(column_names, rows, stdout, parsed_args)

    def emit_one(
        self,
        column_names: Sequence[str],
        data: Sequence[Any],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        super().emit_one(column_names, [plain(value) for value in data], stdout, parsed_args)


class Plugin:
    """A formatter in the shape in which cliff looks for it."""

    def __init__(self, obj: ListFormatter) -> None:
        self.obj = obj


class Formatters:
    """The formats of every command, listings and single objects alike."""

    def __init__(self) -> None:
        self._plugins = {
            "csv": Plugin(Csv()),
            "json": Plugin(JSONFormatter()),
            "table": Plugin(Table()),
            "value": Plugin(Value()),
            "yaml": Plugin(YAMLFormatter()),
        }

    def names(self) -> list[str]:
        """The values of `--format`."""
        return list(self._plugins)

    def __iter__(self) -> Iterator[Plugin]:
        return iter(self._plugins.values())

    def __getitem__(self, name: str) -> Plugin:
        return self._plugins[name]
