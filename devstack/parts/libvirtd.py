"""A private libvirtd, the kind that qemu:///system means, reached through a socket of its own.

libvirt's paths for the system daemon are compiled in. So it runs in a mount namespace in which
/run, /etc/libvirt, /var/lib/libvirt and their like are folders of this part: neither the machine's
own daemon nor another test run can meet it. Its guests live in that namespace too and outlive the
daemon, as they do on a real host; a restarted daemon finds them again. Their network is a namespace
of this part as well, which lasts as long as the part: its bridges, filters and Open vSwitch ports
meet nobody's.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import uuid

from devstack.parts.base import (
    Part,
    PartError,
    PartMissing,
    Process,
    find_binary,
    is_root,
    run,
    wait_for,
)

PACKAGE = "libvirt-daemon-system"
# Where libvirt keeps things, and the name of our folder for it. All of /run: the system's D-Bus,
# and with it machined and polkit, must not be met either.
MOUNTS = {
    "/run": "run",
    "/etc/libvirt": "etc",
    "/var/lib/libvirt": "lib",
    "/var/cache/libvirt": "cache",
    "/var/log/libvirt": "log",
}

PACKAGED_FILTERS = pathlib.Path("/usr/share/libvirt/nwfilter")
PATHS = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}

DAEMON_CONF = """\
unix_sock_dir = "{sockets}"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{host_uuid}"
log_outputs = "3:stderr"
"""

# No virtlogd (files), no cgroups, no security labels, no change of owners: a guest is one plain
# QEMU process that needs nobody else to live.
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""


class Libvirtd(Part):
    """A daemon that serves QEMU and the mock driver; needs root.

    `apart` False: its guests have the machine's own network, to reach what listens on loopback.
    """

    name = "libvirtd"

    def __init__(self, folder: pathlib.Path | None = None, *, apart: bool = True) -> None:
        super().__init__(folder)
        self._apart = apart
        self._host_uuid = str(uuid.uuid4())
        self._namespaces: set[str] = set()
        self._network: Process | None = None

    @property
    def qemu_uri(self) -> str:
        """The URI of its QEMU driver, for any process on this machine."""
        return f"qemu+unix:///system?socket={self._socket}"

    @property
    def mock_uri(self) -> str:
        """The URI of its mock driver, whose state all clients share."""
        return f"test+unix:///default?socket={self._socket}"

    def qemu_pids(self) -> dict[str, int]:
        """The guests that run, by name, as the machine sees them: also without the daemon."""
        found = {}
        for file in (self.folder / "run" / "libvirt" / "qemu").glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(file.read_text())
                # driver.pid is the daemon's own.
                if file.stem != "driver" and os.readlink(f"/proc/{pid}/ns/mnt") in self._namespaces:
                    found[file.stem] = pid
        return found

    def in_network(self) -> list[str]:
        """The command prefix that runs a program in the network of the guests."""
        if not self._apart:
            return []
        if self._network is None:
            raise PartError("libvirtd has no network yet: start it")
        return [find_binary("nsenter", "util-linux"), f"--net=/proc/{self._network.pid}/ns/net"]

    def virsh(self, *args: str) -> str:
        """The output of a virsh command on the QEMU driver."""
        return run([find_binary("virsh", "libvirt-clients"), "-c", self.qemu_uri, *args])

    def prepare(self) -> None:
        if not is_root():
            raise PartMissing("a private libvirtd needs root, for a mount namespace of its own")
        for name in (*MOUNTS.values(), "sockets", "run/libvirt"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "etc" / "libvirtd.conf").write_text(
            DAEMON_CONF.format(sockets=self._socket.parent, host_uuid=self._host_uuid)
        )
        (self.folder / "etc" / "qemu.conf").write_text(QEMU_CONF)
        # The packaged filters that security groups are made of.
        filters = self.folder / "etc" / "nwfilter"
        if PACKAGED_FILTERS.is_dir() and not filters.exists():
            shutil.copytree(PACKAGED_FILTERS, filters)
        if self._network is None and self._apart:
            unshare = find_binary("unshare", "util-linux")
            self._network = Process(
                [
                    unshare,
                    "--net",
                    "sh",
                    "-c",
                    "ip link set lo up && echo up && exec sleep infinity",
                ],
                PATHS,
                self.folder / "network.log",
            )
            log = self.folder / "network.log"
            wait_for(lambda: "up" in log.read_text(), 10.0, lambda: self._failure("has no network"))

    def command(self) -> tuple[list[str], dict[str, str]]:
        daemon = find_binary("libvirtd", PACKAGE, "/usr/sbin")
        mounts = [
            f"mount --bind {shlex.quote(str(self.folder / name))} {place}"
            for place, name in MOUNTS.items()
            # Without the package's own folder nothing of the kind is in use.
            if os.path.isdir(place)
        ]
        if self._apart:
            # What /sys shows of networks is that of the namespace it was mounted in.
            mounts.append("mount -t sysfs sysfs /sys")
        script = " && ".join([*mounts, f"exec {daemon} --config /etc/libvirt/libvirtd.conf"])
        unshare = find_binary("unshare", "util-linux")
        own = [unshare, "--mount", "--propagation", "private", "sh", "-c", script]
        return [*self.in_network(), *own], PATHS

    def ready(self) -> bool:
        if not self._socket.exists():
            return False
        try:
            self.virsh("version")
        except PartError:
            return False
        self._namespaces.add(os.readlink(f"/proc/{self.pid}/ns/mnt"))
        return True

    def clean_up(self) -> None:
        """Guests outlive their daemon; here they end with the part."""
        guests = self.qemu_pids()
        for pid in guests.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda: not self.qemu_pids(),
            10.0,
            lambda: PartError(f"guests do not end: {self.qemu_pids()}"),
        )
        if self._network is not None:
            self._network.end(signal.SIGKILL, 10.0)
            self._network = None

    @property
    def _socket(self) -> pathlib.Path:
        return self.folder / "sockets" / "libvirt-sock"
