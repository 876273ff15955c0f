"""The only maker of OwnedGuest: proof, from a fresh look, that a guest is ours to change."""

from __future__ import annotations

from agent.calls import Calls
from agent.drivers.base import Driver, Listing, OwnedGuest
from common.errors import Ambiguous, GuestMissing, HypervisorUnavailable, NotOurs
from common.messages import GuestReport
from common.ownership import is_ours, why_not_ours
from common.runtime import Steps


class Finder:
    """Finds the guest of an instance on this hypervisor.

    Remembers where each instance was last seen. That saves listings and proves nothing: the
    guest found there is looked at again, and judged by its mark alone.
    """

    def __init__(self, driver: Driver, fleet: str, calls: Calls) -> None:
        self._driver = driver
        self._fleet = fleet
        self._calls = calls
        self._seen: dict[str, str] = {}

    def learn(self, listing: Listing) -> None:
        """Remember where the instances of a listing are, but for those seen twice."""
        ours: dict[str, list[str]] = {}
        for guest in listing.guests:
            if guest.mark is not None and self._is_ours(guest):
                ours.setdefault(guest.mark.instance, []).append(guest.hypervisor_uuid)
        self._seen = {instance: uuids[0] for instance, uuids in ours.items() if len(uuids) == 1}

    def find(self, instance: str) -> Steps[OwnedGuest]:
        """The one guest that carries our mark for `instance`.

        Raises GuestMissing when a complete listing has none, NotOurs when it only has guests
        whose mark names the instance without being ours (`data["copies"]` True: all of them
        copies of our own), Ambiguous when two are ours, HypervisorUnavailable when a partial
        listing can not tell.
        """
        hint = self._seen.get(instance)
        if hint is not None:
            try:
                return (yield from self.at(hint, instance))
            except (GuestMissing, NotOurs):
                self._seen.pop(instance, None)
        found = yield from self.find_all(instance)
        if len(found) > 1:
            uuids = [g.hypervisor_uuid for g in found]
            raise Ambiguous(
                f"{len(uuids)} guests carry our mark for instance {instance}: {', '.join(uuids)}",
                "look at the host and remove the wrong one",
                candidates=uuids,
            )
        self._seen[instance] = found[0].hypervisor_uuid
        return found[0]

    def find_all(self, instance: str) -> Steps[tuple[OwnedGuest, ...]]:
        """As `find`, from a new listing, and every one if there are several."""
        listing = yield from self._calls.look("list", self._driver.list_guests)
        named = [g for g in listing.guests if g.mark is not None and g.mark.instance == instance]
        ours = tuple(
            OwnedGuest(g.hypervisor_uuid, g.mark, g)
            for g in named
            if g.mark is not None and self._is_ours(g)
        )
        if ours:
            return ours
        if not listing.complete:
            raise HypervisorUnavailable(
                f"the listing is partial ({len(listing.errors)} guests could not be read): it does"
                f" not tell whether instance {instance} is here",
                "look at the host",
            )
        if named:
            strangers = "; ".join(f"guest {g.hypervisor_uuid}: {self._why(g)}" for g in named)
            raise NotOurs(
                f"instance {instance}: {strangers}",
                "the guest is left alone",
                copies=all(g.mark is not None and g.mark.fleet == self._fleet for g in named),
            )
        raise GuestMissing(f"no guest of instance {instance} is on this host", "")

    def at(self, hypervisor_uuid: str, instance: str) -> Steps[OwnedGuest]:
        """The guest of `instance` at a known place, looked at now; GuestMissing or NotOurs."""
        guest = yield from self._calls.look("look", self._driver.look, hypervisor_uuid)
        if guest is None:
            raise GuestMissing(f"guest {hypervisor_uuid} is not on this host", "")
        if guest.mark is None or not self._is_ours(guest):
            raise NotOurs(f"guest {hypervisor_uuid}: {self._why(guest)}", "it is left alone")
        if guest.mark.instance != instance:
            raise NotOurs(
                f"guest {hypervisor_uuid} belongs to instance {guest.mark.instance}",
                "it is left alone",
            )
        return OwnedGuest(guest.hypervisor_uuid, guest.mark, guest)

    def _is_ours(self, guest: GuestReport) -> bool:
        return is_ours(
            guest.mark,
            fleet=self._fleet,
            hypervisor_uuid=guest.hypervisor_uuid,
            template=guest.template,
        )

    def _why(self, guest: GuestReport) -> str:
        return why_not_ours(
            guest.mark,
            fleet=self._fleet,
            hypervisor_uuid=guest.hypervisor_uuid,
            template=guest.template,
        )
