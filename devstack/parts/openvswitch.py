"""A private Open vSwitch for the guests of a private libvirtd: tagged ports, no kernel module.

libvirt asks the program ovs-vsctl for its ports, and that asks a socket in /run/openvswitch. The
libvirtd of ours has a /run of its own, so the database listens there: nothing needs to be told
where it is, and no other Open vSwitch of the machine is met. The switch works in the libvirtd's
network, with the userspace datapath.
"""

from __future__ import annotations

import pathlib
import signal

from devstack.parts.base import Part, PartError, Process, find_binary, run
from devstack.parts.libvirtd import PATHS, Libvirtd

PACKAGE = "openvswitch-switch"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


class OpenVSwitch(Part):
    """One switch, beside a libvirtd that runs already."""

    name = "openvswitch"

    def __init__(self, libvirtd: Libvirtd, folder: pathlib.Path | None = None) -> None:
        super().__init__(folder)
        self._libvirtd = libvirtd
        self._run = libvirtd.folder / "run" / "openvswitch"
        self._switch: Process | None = None

    def vsctl(self, *args: str) -> str:
        """The output of an ovs-vsctl command, which returns when the switch has obeyed."""
        return run([find_binary("ovs-vsctl", PACKAGE), "--timeout=10", f"--db={self._db}", *args])

    def add_bridge(self, bridge: str) -> None:
        """A bridge with the userspace datapath."""
        netdev = ("--", "set", "Bridge", bridge, "datapath_type=netdev")
        self.vsctl("--may-exist", "add-br", bridge, *netdev)
        run([*self._libvirtd.in_network(), "ip", "link", "set", bridge, "up"])

    def prepare(self) -> None:
        self._run.mkdir(parents=True, exist_ok=True)
        database = self.folder / "conf.db"
        if not database.exists():
            run([find_binary("ovsdb-tool", PACKAGE), "create", str(database), SCHEMA])

    def command(self) -> tuple[list[str], dict[str, str]]:
        server = find_binary("ovsdb-server", PACKAGE, "/usr/sbin")
        sockets = [f"--remote=p{self._db}", f"--unixctl={self.folder / 'database.ctl'}"]
        return [server, str(self.folder / "conf.db"), *sockets], PATHS

    def ready(self) -> bool:
        if self._switch is None:
            try:
                self.vsctl("--no-wait", "init")
            except PartError:
                return False
            self._start_switch()
        try:
            self.vsctl("init")
        except PartError:
            return False
        return True

    def clean_up(self) -> None:
        if self._switch is not None:
            self._switch.end(signal.SIGTERM, 10.0)
            self._switch = None

    def _start_switch(self) -> None:
        switch = find_binary("ovs-vswitchd", PACKAGE, "/usr/sbin")
        folders = {"OVS_RUNDIR": str(self._run), "OVS_LOGDIR": str(self.folder)}
        options = ["--disable-system", f"--unixctl={self.folder / 'switch.ctl'}"]
        self._switch = Process(
            [*self._libvirtd.in_network(), switch, self._db, *options],
            PATHS | folders,
            self.folder / "switch.log",
        )

    @property
    def _db(self) -> str:
        return f"unix:{self._run / 'db.sock'}"
