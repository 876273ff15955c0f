"""macs, addresses, hostnames: who holds what; the primary keys are what makes them unique.

They outlive the VM while it may still be running somewhere: that is their quarantine.
"""

from __future__ import annotations

import datetime as dt

from manager.store.mapping import Row, table


@table("macs", "mac", index=(("instance",),))
class Mac(Row, frozen=True, kw_only=True):
    """A MAC address in use or in quarantine."""

    mac: str
    instance: str
    since: dt.datetime


@table("addresses", "network", "ip", index=(("instance",), ("network", "number")))
class Address(Row, frozen=True, kw_only=True):
    """An IP address in use or in quarantine; `number` is that of an IPv4 one, else None."""

    network: str
    ip: str
    number: int | None
    instance: str
    mac: str
    since: dt.datetime


@table("hostnames", "network", "hostname", index=(("instance",),))
class Hostname(Row, frozen=True, kw_only=True):
    """A hostname in use in a network."""

    network: str
    hostname: str
    instance: str
