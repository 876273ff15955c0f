"""The connection to libvirtd: opened and opened again in the background, never waited for.

libvirt's event loop and every call that may hang at opening run on threads outside the runtime;
what they have to tell comes through one inbox to one loop of ours.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import libvirt

from common.errors import GuestMissing, HypervisorError, HypervisorUnavailable, MusterError
from common.runtime import Runtime

LOG = logging.getLogger(__name__)
T = TypeVar("T")

# Probes without an answer until the connection counts as dead.
KEEPALIVE_COUNT = 3
RETRY_MIN_S = 0.25
RETRY_MAX_S = 5.0
# How soon the end of the runtime or of the connection is noticed.
TURN_S = 0.5

# What libvirt says when it is the connection that failed and not the call.
_CONNECTION_ERRORS = frozenset(
    {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_AUTH_CANCELLED,
    }
)
_TRANSPORTS = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_STREAMS})

_event_loop: list[str] = []


class _Opened(NamedTuple):
    link: _Link


class _Failed(NamedTuple):
    reason: str


class _Closed(NamedTuple):
    link: _Link
    reason: str


class _Changed(NamedTuple):
    uuid: str


def _start_event_loop(runtime: Runtime) -> None:
    """libvirt has one event loop a process; it must exist before the first connection."""
    if _event_loop:
        return
    _event_loop.append("running")
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError:
                continue  # a callback's error, already told to its caller

    runtime.native_thread("libvirt-events", run)


class _Link:
    """One opened connection and what was registered on it. Made and closed off the runtime."""

    def __init__(
        self, uri: str, keepalive_s: int, tell: Callable[[Any], None], resets: dict[str, int]
    ) -> None:
        self._tell = tell
        self._resets = resets
        self._events: list[int] = []
        self.conn = libvirt.open(uri)
        try:
            self.conn.setKeepAlive(keepalive_s, KEEPALIVE_COUNT)
        except libvirt.libvirtError as exc:
            # The mock driver within the process has no line to keep alive.
            if exc.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
        self.conn.registerCloseCallback(self._on_close, None)
        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reset),
        ):
            self._events.append(self.conn.domainEventRegisterAny(None, event, callback, None))

    def _on_close(self, _conn: Any, reason: int, _opaque: Any) -> None:
        words = {
            libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "libvirtd closed the connection",
            libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirtd stopped answering",
        }
        self._tell(_Closed(self, words.get(reason, "the connection to libvirtd failed")))

    def _on_lifecycle(
        self, _conn: Any, domain: Any, _event: int, _detail: int, _opaque: Any
    ) -> None:
        self._tell(_Changed(domain.UUIDString()))

    def _on_reset(self, _conn: Any, domain: Any, _opaque: Any) -> None:
        uuid = domain.UUIDString()
        self._resets[uuid] = self._resets.get(uuid, 0) + 1
        self._tell(_Changed(uuid))

    def alive(self) -> bool:
        """False once the socket is closed or keepalive has failed; asks nobody."""
        try:
            return bool(self.conn.isAlive())
        except libvirt.libvirtError:
            return False

    def release(self) -> None:
        """Take back what is registered, so that the connection closes with its last user.

        Never closed outright: libvirt frees a connection that another thread is in a call on.
        """
        for event in self._events:
            with contextlib.suppress(libvirt.libvirtError):
                self.conn.domainEventDeregisterAny(event)
        with contextlib.suppress(libvirt.libvirtError):
            self.conn.unregisterCloseCallback()


class Connection:
    """Keeps one connection to `uri` open; `call` uses it or says at once that there is none."""

    def __init__(self, uri: str, keepalive_s: int, runtime: Runtime) -> None:
        self._uri = uri
        self._keepalive_s = keepalive_s
        self._runtime = runtime
        self._inbox = runtime.inbox()
        self._link: _Link | None = None
        self._closed = False
        self._reason = "not connected to libvirtd yet"
        # {uuid: times it was reset}, counted by libvirt's thread, only ever read by others.
        self._resets: dict[str, int] = {}

    def open(self, on_change: Callable[[str | None], None]) -> None:
        """Connect in the background; `on_change(None)` after each time that it succeeds."""
        _start_event_loop(self._runtime)
        self._runtime.spawn("libvirt-connection", self._keep, on_change)

    def close(self) -> None:
        self._closed = True
        self._inbox.put(None)

    @property
    def problem(self) -> str:
        """Empty while connected, else why not."""
        link = self._in_use()
        return "" if link is not None and link.alive() else self._reason

    def resets(self, uuid: str) -> int:
        """How often this guest was seen to reset."""
        return self._resets.get(uuid, 0)

    def call(self, doing: str, fn: Callable[[Any], T]) -> T:
        """`fn(virConnect)`, with libvirt's errors made ours; `doing` says what failed.

        HypervisorUnavailable when there is no connection or it fails in the call; GuestMissing when
        libvirt says that there is no such domain, and only then; else HypervisorError.
        """
        link = self._in_use()
        if link is None:
            raise self._unavailable(self._reason)
        try:
            return fn(link.conn)
        except libvirt.libvirtError as exc:
            words = exc.get_error_message() or str(exc)
            if _lost(link, exc):
                self._inbox.put(_Closed(link, words))
                raise self._unavailable(words) from exc
            if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise GuestMissing(f"{doing}: {words}", "it was removed meanwhile") from exc
            raise HypervisorError(f"{doing}: {words}", "see libvirtd's log") from exc

    def _in_use(self) -> _Link | None:
        return None if self._closed else self._link

    def _unavailable(self, reason: str) -> HypervisorUnavailable:
        return HypervisorUnavailable(f"{self._uri}: {reason}", "is libvirtd running?")

    # the loop

    def _keep(self, on_change: Callable[[str | None], None]) -> None:
        opening, pause, due = False, RETRY_MIN_S, self._runtime.monotonic()
        while not self._closed and not self._runtime.stopping.is_set():
            wait = TURN_S
            if self._link is None and not opening:
                wait = min(wait, due - self._runtime.monotonic())
                if wait <= 0:
                    opening, wait = True, TURN_S
                    # One attempt at a time, for as long as it takes: a libvirtd that is stopped
                    # accepts and then says nothing, and an attempt can not be called off.
                    self._runtime.native_thread("libvirt-open", self._try_to_open)
            match self._inbox.get(wait):
                case _Opened(link):
                    opening, pause = False, RETRY_MIN_S
                    self._link, self._reason = link, "the connection to libvirtd was lost"
                    LOG.info("connected to %s", self._uri)
                    _tell(on_change, None)
                case _Failed(reason):
                    opening = False
                    if reason != self._reason:
                        LOG.warning("%s: %s; trying again", self._uri, reason)
                    self._reason = reason
                    due = self._runtime.monotonic() + pause * self._runtime.jitter(0.8, 1.2)
                    pause = min(RETRY_MAX_S, pause * 2)
                case _Closed(link, reason) if link is self._link:
                    LOG.warning("%s: %s; connecting again", self._uri, reason)
                    self._reason = reason
                    self._let_go()
                    due = self._runtime.monotonic() + RETRY_MIN_S
                case _Changed(uuid):
                    _tell(on_change, uuid)
                case _:
                    pass  # nothing came, or news of a connection given up, or the end
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            # Taking leave of a libvirtd that hangs would hang too.
            self._runtime.native_thread("libvirt-release", link.release)

    def _try_to_open(self) -> None:
        try:
            link = _Link(self._uri, self._keepalive_s, self._inbox.put, self._resets)
        except libvirt.libvirtError as exc:
            self._inbox.put(_Failed(str(exc)))
            return
        if self._closed:
            link.release()
        else:
            self._inbox.put(_Opened(link))


def _lost(link: _Link, exc: Any) -> bool:
    """True when the connection is to blame."""
    if exc.get_error_code() in _CONNECTION_ERRORS or exc.get_error_domain() in _TRANSPORTS:
        return True
    return not link.alive()


def _tell(on_change: Callable[[str | None], None], uuid: str | None) -> None:
    try:
        on_change(uuid)
    except MusterError as exc:
        LOG.warning("a change of %s was not taken: %s", uuid or "the host", exc)
