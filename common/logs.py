"""Logging to standard error, with what the line is about bound once a message."""

from __future__ import annotations

import contextlib
import contextvars
import datetime as dt
import json
import logging
import sys
from collections.abc import Iterator

_ABOUT: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar(
    "about", default=None
)


@contextlib.contextmanager
def about(**what: str | None) -> Iterator[None]:
    """Bind command, instance, host or job to every log line of the block."""
    merged = {**(_ABOUT.get() or {}), **{k: v for k, v in what.items() if v}}
    token = _ABOUT.set(merged)
    try:
        yield
    finally:
        _ABOUT.reset(token)


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # What our lines do not tell is not looked up for each of them.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # These tell of every reconnect and every statement; ours say what matters of it.
    logging.getLogger("amqp").setLevel(logging.ERROR)  # warns of what a closing channel still gets
    for noisy in ("kombu", "oslo", "oslo_messaging", "oslo_service", "alembic", "stevedore"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
