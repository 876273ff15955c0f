"""The report streams: decode, refuse what can not be read, hand the rest to one flow."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from common import logs
from common.bus.base import Report
from common.conf import Settings
from common.errors import BadMessage, Conflict, DatabaseUnavailable, WrongFleet
from common.messages import Answers, Heartbeat, decode
from manager.flows import reports as flow
from manager.store.engine import Store

LOG = logging.getLogger(__name__)
BODY_LIMIT_BYTES = 8 * 1024 * 1024


class Intake:
    """What the consumers of both streams call, one message at a time."""

    def __init__(self, store: Store, cfg: Settings) -> None:
        self._store, self._cfg = store, cfg

    def __call__(self, key: str, body: bytes, sender: str | None) -> None:
        """Apply one report; BadMessage once it is stored as a dead letter with its reason."""
        try:
            if len(body) > BODY_LIMIT_BYTES:
                raise BadMessage(
                    f"{len(body)} bytes are more than {BODY_LIMIT_BYTES}", "find who sends this"
                )
            self._apply(key, body)
        except (BadMessage, WrongFleet) as exc:
            self._store.run(flow.dead_letter, key, sender, exc.code, exc.message, body)
            why = exc.message if isinstance(exc, BadMessage) else f"{exc.code}: {exc.message}"
            raise BadMessage(why, exc.remedy) from exc
        except (Conflict, DatabaseUnavailable):
            raise  # it comes again
        except Exception as exc:
            # Whatever it is that we can not handle must not stand in the way of all other hosts.
            LOG.exception("a report of %s can not be applied", key)
            reason = f"{type(exc).__name__}: {exc}"
            self._store.run(flow.dead_letter, key, sender, "INTERNAL_ERROR", reason, body)
            raise BadMessage(f"INTERNAL_ERROR: {reason}", "report this with the log") from exc

    def together(self, reports: Sequence[Report]) -> None:
        """Answers that have come together, in one transaction: all of them or none."""
        told = [self._read_answers(key, body) for key, body, _sender in reports]
        self._store.run(flow.answers_all, self._cfg, told)

    def _read_answers(self, key: str, body: bytes) -> Answers:
        kind, _, host = key.partition(".")
        if kind != "result" or len(body) > BODY_LIMIT_BYTES:
            raise BadMessage(f"{key} is to be looked at by itself", "")
        answers = decode(body, Answers)
        _same_host(host, answers.host)
        return answers

    def _apply(self, key: str, body: bytes) -> None:
        kind, _, host = key.partition(".")
        if kind == "heartbeat":
            heartbeat = decode(body, Heartbeat)
            _same_host(host, heartbeat.host)
            with logs.about(host=host):
                self._store.run(flow.heartbeat, self._cfg, heartbeat)
        elif kind == "result":
            answers = decode(body, Answers)
            _same_host(host, answers.host)
            with logs.about(host=host):
                self._store.run(flow.answers, self._cfg, answers)
        else:
            raise BadMessage(f"routing key {key!r} is of no known kind", "find who sends this")


def _same_host(of_key: str, of_body: str) -> None:
    """The broker vouches for the routing key; a body that names another host is a forgery."""
    if of_key != of_body:
        raise BadMessage(
            f"host: the body says {of_body}, its routing key {of_key}", "find who sends this"
        )
