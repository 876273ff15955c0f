"""Logging to standard error, with what the line is about bound once a message."""

from __future__ import annotations

import contextlib
import contextvars
import datetime as dt
import json
import logging
import sys
from collections.abc import Iterator, Sequence

_ABOUT: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar(
    "about", default=None
)
_LINES: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("lines", default=None)


@contextlib.contextmanager
def about(**what: str | None) -> Iterator[None]:
    """Bind command, instance, host or job to every log line of the block."""
    merged = {**(_ABOUT.get() or {}), **{k: v for k, v in what.items() if v}}
    token = _ABOUT.set(merged)
    try:
        yield
    finally:
        _ABOUT.reset(token)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Write the lines of the block at once, at its end.

    Each write lets every other thread go first; who has many lines would wait as often.
    """
    lines: list[str] = []
    token = _LINES.set(lines)
    try:
        yield
    finally:
        _LINES.reset(token)
        write(lines)


def write(lines: Sequence[str]) -> None:
    """Lines to standard error; one that is closed, as by a supervisor that ends, is no error."""
    if lines:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write("\n".join([*lines, ""]))
            sys.stderr.flush()


class _Lines(logging.Handler):
    """A line a record; those of a block that are to be written together are kept for its end."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - logging's own way of telling what can not be told
            self.handleError(record)
            return
        lines = _LINES.get()
        if lines is None:
            write([line])
        else:
            lines.append(line)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = dt.datetime.fromtimestamp(record.created, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
        bound = "".join(f" {k}={v}" for k, v in (_ABOUT.get() or {}).items())
        line = f"{when[:-3]}Z {record.levelname} {record.name}{bound} {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **(_ABOUT.get() or {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def setup(level: str, as_json: bool) -> None:
    """Send the process's log to standard error."""
    handler = _Lines()
    handler.setFormatter(_Json() if as_json else _Text())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # No line of ours tells them, and finding them out takes half the time of a line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as the manual of logging says
    # These tell of every reconnect and every statement; ours say what matters of it.
    logging.getLogger("amqp").setLevel(logging.ERROR)  # warns of what a closing channel still gets
    for noisy in ("kombu", "oslo", "oslo_messaging", "oslo_service", "alembic", "stevedore"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
