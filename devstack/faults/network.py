"""Network namespaces for agents: hosts that can be cut off as if a cable were pulled.

A bridge of this run joins the machine and the namespaces. Nothing of the machine's own network is
changed, and no packet leaves the machine.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Sequence

from devstack.parts.base import PartError, run


class Network:
    """One bridge, and a namespace with one cable to it for each host; needs root."""

    def __init__(self, hosts: Sequence[str]) -> None:
        # Interface names may have 15 letters; two runs at once must not meet.
        self._tag = f"{os.getpid() % 100000:x}"
        self._bridge = f"mfb{self._tag}"
        middle = random.SystemRandom().randrange(64, 250)
        self._subnet = f"10.213.{middle}"
        self._hosts = tuple(hosts)

    @property
    def address(self) -> str:
        """Where the machine itself is reached from within the namespaces."""
        return f"{self._subnet}.1"

    def up(self) -> None:
        """Make it all; PartError where this machine or this user may not."""
        try:
            self._ip("link", "add", self._bridge, "type", "bridge")
            self._ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
            self._ip("link", "set", self._bridge, "up")
            for n, host in enumerate(self._hosts, start=2):
                space, cable = self._space(host), self._cable(host)
                self._ip("netns", "add", space)
                peer = ("peer", "name", "eth0", "netns", space)
                self._ip("link", "add", cable, "type", "veth", *peer)
                self._ip("link", "set", cable, "master", self._bridge, "up")
                self._ip("-n", space, "addr", "add", f"{self._subnet}.{n}/24", "dev", "eth0")
                self._ip("-n", space, "link", "set", "eth0", "up")
                self._ip("-n", space, "link", "set", "lo", "up")
        except (PartError, OSError) as exc:
            self.down()
            raise PartError(f"no network namespaces here: {exc}") from exc

    def prefix(self, host: str) -> list[str]:
        """What makes a program run in the host's namespace."""
        return ["ip", "netns", "exec", self._space(host)]

    def cut(self, host: str) -> None:
        """Pull the host's cable: packets vanish, nobody is told."""
        self._ip("link", "set", self._cable(host), "down")

    def mend(self, host: str) -> None:
        """Plug it in again."""
        self._ip("link", "set", self._cable(host), "up")

    def down(self) -> None:
        """Remove all of it; what is not there is no error."""
        for host in self._hosts:
            # The cable goes with its namespace, but later: the name may be wanted at once.
            for args in (("link", "del", self._cable(host)), ("netns", "del", self._space(host))):
                with contextlib.suppress(PartError, OSError):
                    self._ip(*args)
        with contextlib.suppress(PartError, OSError):
            self._ip("link", "del", self._bridge)

    def _space(self, host: str) -> str:
        return f"muster-{self._tag}-{host}"

    def _cable(self, host: str) -> str:
        return f"mfv{self._tag}n{self._hosts.index(host)}"

    def _ip(self, *args: str) -> str:
        return run(["ip", *args])
