"""A machine beside the guests: a network namespace with one cable, to a bridge or a tagged port."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

from devstack.parts.base import Process, find_binary, run, wait_for
from devstack.parts.libvirtd import PATHS, Libvirtd
from devstack.parts.openvswitch import OpenVSwitch

ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 3) as there:
    there.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(there.makefile().read().split()[-1])
"""


class Neighbour:
    """What is seen from there."""

    def __init__(self, holder: Process) -> None:
        self._inside = [find_binary("nsenter", "util-linux"), f"--net=/proc/{holder.pid}/ns/net"]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._inside, *args], capture_output=True, text=True, check=False)

    def pings(self, address: str) -> bool:
        """True when one of three echo requests comes back."""
        ping = [find_binary("busybox", "busybox-static"), "ping", "-c", "3", "-W", "1", address]
        return self.run(*ping).returncode == 0

    def reads(self, address: str, port: int) -> str | None:
        """The last word of the page that is served there; None when nobody answers."""
        done = self.run(sys.executable, "-c", ASK, address, str(port))
        return done.stdout.strip() if done.returncode == 0 else None


@contextlib.contextmanager
def beside(
    libvirtd: Libvirtd,
    bridge: str,
    address: str,
    *,
    switch: OpenVSwitch | None = None,
    tag: int | None = None,
) -> Iterator[Neighbour]:
    """A neighbour with an address; with a `switch` its cable ends at a port with this tag."""
    log = libvirtd.folder / "neighbour.log"
    log.unlink(missing_ok=True)
    unshare = [find_binary("unshare", "util-linux"), "--net"]
    holder = Process([*unshare, "sh", "-c", "echo up; exec sleep infinity"], PATHS, log)
    cable = f"nb{holder.pid}"
    there = libvirtd.in_network()
    try:
        wait_for(lambda: "up" in log.read_text(), 10.0, lambda: AssertionError("no namespace"))  # type: ignore[arg-type,return-value]
        peer = ["peer", "name", "eth0", "netns", str(holder.pid)]
        run([*there, "ip", "link", "add", cable, "type", "veth", *peer])
        if switch is None:
            run([*there, "ip", "link", "set", cable, "master", bridge])
        else:
            switch.vsctl("add-port", bridge, cable, *([] if tag is None else [f"tag={tag}"]))
        run([*there, "ip", "link", "set", cable, "up"])
        neighbour = Neighbour(holder)
        neighbour.run("ip", "addr", "add", address, "dev", "eth0")
        neighbour.run("ip", "link", "set", "eth0", "up")
        yield neighbour
    finally:
        if switch is not None:
            switch.vsctl("--if-exists", "del-port", bridge, cable)
        holder.end(signal.SIGKILL, 10.0)
