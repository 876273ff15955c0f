"""Heartbeats: what is on the hypervisor, all of it or what changed, and whether it answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from agent.answers import Identity
from agent.drivers.base import Driver, Listing
from agent.session import Session
from common import messages as m
from common.bus.base import Bus
from common.errors import MusterError
from common.ownership import is_ours
from common.runtime import Runtime

LOG = logging.getLogger(__name__)

COALESCE_S = 0.05
# A heartbeat waits this many intervals for its listing, well within the 2.5 of a late host.
PATIENCE = 1.5
# What a host has free must be known soon, but not at the price of a message for each command.
CAPACITY_S = 1.0
# Guests that changed together and are looked at one by one; of more, a listing costs less.
FEW = 50
CHANGE, NOW, FULL = "change", "now", "full"
Pair = tuple[int, int]


class _Told(NamedTuple):
    """What managers know of one guest and by which look; `fingerprint` None: that it is gone.

    `instance` is that of our own mark, by which a result tells that its guest is not there.
    """

    pair: Pair
    fingerprint: int | None
    instance: str | None


View = dict[str, _Told]


class _Look:
    """One listing under way; `session` and `seq` were drawn before it began.

    `only` names the guests that are looked at; None: all, and the host's capacity and health.
    """

    def __init__(
        self, session: int | None, seq: int, began: float, only: frozenset[str] | None
    ) -> None:
        self.only = only
        self.session = session
        self.seq = seq
        self.began = began
        self.late = False
        self.listing: Listing | None = None
        self.capacity: m.Capacity | None = None
        self.problem = ""


class Inventory:
    """One loop that looks at the hypervisor and tells what it found.

    `sent` is what the managers were last told of each guest, by a heartbeat or by the look in a
    result, whichever is newer. It changes only when that has left, so a delta that was not sent is
    told by the next heartbeat; what was lost on the way shows in the digest.
    """

    def __init__(
        self,
        runtime: Runtime,
        bus: Bus,
        driver: Driver,
        session: Session,
        identity: Identity,
        *,
        interval_s: float,
        full_s: float,
        call_timeout_s: float,
        learn: Callable[[Listing], None],
        receipts: Callable[[], tuple[m.Receipt, ...]],
        dropped: Callable[[], int],
    ) -> None:
        self._runtime = runtime
        self._bus = bus
        self._driver = driver
        self._session = session
        self._identity = identity
        self._interval_s = interval_s
        self._full_s = full_s
        self._patience_s = min(call_timeout_s, PATIENCE * interval_s)
        self._learn = learn
        self._receipts = receipts
        self._dropped = dropped
        self._inbox = runtime.inbox()
        self._done = runtime.event()
        self._out: _Look | None = None
        self._lock = runtime.lock()
        self._sent: View = {}
        self._capacity: m.Capacity | None = None
        self._told_session: int | None = None
        self._full_due = True
        self._full_at = runtime.monotonic()
        self._due = runtime.monotonic()
        self._took_s = 0.0
        self._healthy = True
        self._away = False

    # from anywhere, foreign threads included

    def changed(self, hypervisor_uuid: str | None) -> None:
        """The hypervisor says that a guest changed (None: perhaps all of them)."""
        LOG.debug("a change of %s", hypervisor_uuid or "everything")
        self._inbox.put(hypervisor_uuid or CHANGE)

    def want_full(self) -> None:
        """The next heartbeat, sent at once, tells of every guest."""
        self._inbox.put(FULL)

    def wake(self) -> None:
        """Send a heartbeat at once; also ends the wait of a loop that is to stop."""
        self._inbox.put(NOW)

    def told(self, instance: str, look: m.Look) -> None:
        """A result has told what it saw of its guest; no heartbeat needs to repeat that."""
        pair = (look.session, look.seq)
        with self._lock:
            if look.guest is not None:
                news = {look.guest.hypervisor_uuid: self._entry(look.guest, pair)}
            else:
                gone = _Told(pair, None, instance)
                news = {u: gone for u, known in self._sent.items() if known.instance == instance}
            self._sent = _newest(self._sent, news)

    # the loop

    def loop(self) -> None:
        """Runs until the agent stops."""
        self._due = self._runtime.monotonic()
        while not self._runtime.stopping.is_set():
            left = self._due - self._runtime.monotonic()
            asked = {item} if left > 0 and (item := self._inbox.get(left)) is not None else set()
            if asked:
                # A change seldom comes alone: one look serves all that came close together, and
                # looking may not take more than half of the time.
                self._runtime.sleep(max(COALESCE_S, self._took_s))
            while (item := self._inbox.get(0.0)) is not None:
                asked.add(item)
            if self._runtime.stopping.is_set():
                return
            if FULL in asked:
                self._full_due = True
            regular = self._runtime.monotonic() >= self._due
            only_changes = not regular and not asked & {NOW, FULL}
            if only_changes and CHANGE not in asked and self._all_told(frozenset(asked)):
                # It was our own commands, most likely, and what runs has changed with them.
                self._due = min(self._due, self._runtime.monotonic() + CAPACITY_S)
                continue
            self.beat(only_changes=only_changes)
            if regular:
                self._due = max(self._due + self._interval_s, self._runtime.monotonic())

    def beat(self, *, only_changes: bool = False) -> None:
        """Look and send one heartbeat; with `only_changes`, none if the look shows no news."""
        look = self._look()
        if self._runtime.stopping.is_set():
            return
        session, seq = (look.session, look.seq) if look else self._session.draw()
        if self._told_session != session:
            self._told_session, self._full_due = session, True
        problem = look.problem if look else self._hung()
        healthy = not problem
        if healthy and not self._healthy:
            # What happened meanwhile may have been told by nobody.
            self._full_due = True
        inventory, view, capacity = None, self._sent, look.capacity if look else None
        if look is not None and look.listing is not None:
            self._learn(look.listing)
            # Without a session the pair is never compared with that of a result.
            inventory, view = self._compare(look.listing, (session or 0, seq), bool(problem))
        if only_changes and healthy == self._healthy and not _has_news(inventory):
            if capacity not in (None, self._capacity):
                self._due = min(self._due, self._runtime.monotonic() + CAPACITY_S)
            return
        heartbeat = m.Heartbeat(
            fleet=self._identity.fleet,
            host=self._identity.host,
            session=session,
            agent_run=self._identity.agent_run,
            seq=seq,
            interval_s=self._interval_s,
            driver=m.DriverReport(name=self._driver.name, healthy=healthy, message=problem),
            sent_at=self._runtime.now(),
            # Without a session nobody may act on it.
            inventory=inventory if session is not None else None,
            capacity=capacity,
            receipts=self._receipts(),
            dropped_casts=self._dropped(),
        )
        if healthy != self._healthy:
            LOG.warning("the hypervisor %s", "answers again" if healthy else f"is away: {problem}")
        self._healthy = healthy
        if self._publish(heartbeat) and heartbeat.inventory is not None:
            self._capacity = capacity
            with self._lock:
                # What results told while this was looked at and sent.
                newer = {u: known for u, known in self._sent.items() if known.pair > (session, seq)}
                self._sent = _newest(view, newer)
            if heartbeat.inventory.full:
                self._full_due, self._full_at = False, self._runtime.monotonic()

    # inside

    def _all_told(self, guests: frozenset[str]) -> bool:
        """True when the managers know already what has become of these guests."""
        if len(guests) > FEW:
            return False
        look = self._look(guests)
        if look is None or look.listing is None:
            return False
        now = {g.hypervisor_uuid: g.fingerprint() for g in look.listing.guests}
        known = _present(self._sent)
        return all(now.get(u) == known.get(u) for u in guests)

    def _look(self, only: frozenset[str] | None = None) -> _Look | None:
        """A finished look, or None while one hangs; there is never more than one out."""
        look = self._out
        if look is None:
            session, seq = self._session.draw()
            look = self._out = _Look(session, seq, self._runtime.monotonic(), only)
            self._done.clear()
            self._runtime.spawn("look", self._ask, look)
        if not self._runtime.wait(self._done, 0.0 if look.late else self._patience_s):
            look.late = True
            return None
        self._out = None
        self._took_s = min(self._interval_s, self._runtime.monotonic() - look.began)
        if look.late or look.only != only:
            # Heartbeats with higher numbers have gone out meanwhile: too old to be told.
            return self._look(only)
        return look

    def _ask(self, look: _Look) -> None:
        def ask() -> tuple[Listing, m.Capacity | None, str]:
            driver = self._driver
            if look.only is not None:
                found = [driver.look(guest) for guest in sorted(look.only)]
                return Listing(guests=tuple(g for g in found if g is not None)), None, ""
            return driver.list_guests(), driver.capacity(), driver.health()

        try:
            look.listing, look.capacity, look.problem = self._runtime.offload(ask)
        except MusterError as exc:
            look.problem = exc.message
        except Exception as exc:
            LOG.exception("the look at the hypervisor failed")
            look.problem = f"{type(exc).__name__}: {exc}"
        finally:
            self._done.set()

    def _hung(self) -> str:
        began = self._out.began if self._out else self._runtime.monotonic()
        return f"listing has hung for {self._runtime.monotonic() - began:.0f} s"

    def _entry(self, guest: m.GuestReport, pair: Pair) -> _Told:
        ours = is_ours(
            guest.mark,
            fleet=self._identity.fleet,
            hypervisor_uuid=guest.hypervisor_uuid,
            template=guest.template,
        )
        instance = guest.mark.instance if ours and guest.mark else None
        return _Told(pair, guest.fingerprint(), instance)

    def _compare(self, listing: Listing, pair: Pair, sick: bool) -> tuple[m.Inventory, View]:
        """What to tell of a listing, and what the managers know once they have it.

        Absence counts only when the listing is complete: until then the managers still have the
        guests that it does not name. What a result has told of a later look stands.
        """
        complete = listing.complete and not sick
        sent = self._sent
        seen = {g.hypervisor_uuid: self._entry(g, pair) for g in listing.guests}
        kept = {u: known for u, known in sent.items() if not complete or known.pair > pair}
        view = _newest(kept, seen)
        full = complete and (
            self._full_due or self._runtime.monotonic() - self._full_at >= self._full_s
        )
        before, after = _present(sent), _present(view)
        news = {u for u in seen if full or self._full_due or before.get(u) != after.get(u)}
        inventory = m.Inventory(
            full=full,
            complete=complete,
            digest=m.digest(after.values()),
            guests=tuple(g for g in listing.guests if g.hypervisor_uuid in news),
            gone=() if full else tuple(sorted(before.keys() - after.keys())),
            errors=listing.errors,
        )
        return inventory, view

    def _publish(self, heartbeat: m.Heartbeat) -> bool:
        key = f"heartbeat.{self._identity.host}"
        try:
            self._bus.publish(key, m.encode(heartbeat), ttl_s=self._interval_s)
        except MusterError as exc:
            if not self._away:
                LOG.warning("no heartbeat can be sent: %s", exc)
            self._away = True
            return False
        if self._away:
            LOG.info("heartbeats are sent again")
        self._away = False
        return True


def _newest(old: Mapping[str, _Told], new: Mapping[str, _Told]) -> View:
    """Both together; of a guest that is in both, what is told by the later look."""
    later = {u: known for u, known in new.items() if u not in old or old[u].pair < known.pair}
    return {**old, **later}


def _present(view: View) -> dict[str, int]:
    return {u: known.fingerprint for u, known in view.items() if known.fingerprint is not None}


def _has_news(inventory: m.Inventory | None) -> bool:
    return inventory is not None and bool(inventory.guests or inventory.gone)
