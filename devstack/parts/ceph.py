"""A private Ceph: one monitor and one OSD that keeps everything in memory, on loopback.

cephx is on. Clients meet it at 127.0.0.1, each under a nonce of its own, as the processes of
one machine do anywhere.
"""

from __future__ import annotations

import pathlib
import signal
import uuid

from devstack.parts.base import Part, Process, answers, find_binary, free_port, run

TOOLS = "ceph-common"
POOL = "muster"
USER = "muster"
# What doc/ceph.md tells an operator to give to the agents.
CAPS = ("mon", "profile rbd", "osd", f"profile rbd pool={POOL}")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
OSD_PORTS = 100

CONFIG = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
ms_bind_port_min = {osd_port}
ms_bind_port_max = {osd_ports_end}
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = {folder}/admin.keyring
run_dir = {folder}
admin_socket =
pid_file =
log_file =
log_to_stderr = true
err_to_stderr = true
log_to_file = false
mon_cluster_log_to_file = false
# What is proposed now and then in a large cluster is proposed at once here.
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 1000
osd_objectstore = memstore
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
memstore_device_bytes = 4294967296

[mon.a]
mon_data = {folder}/mon

[osd.0]
osd_data = {folder}/osd
keyring = {folder}/osd.keyring
"""


class Ceph(Part):
    """A cluster with the RBD pool `muster` and the user client.muster, as an agent needs them.

    A kill loses what is in it: the OSD's store is its memory.
    """

    name = "ceph"

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.pool = POOL
        self.user = USER
        self._osd_port = free_port()
        self._osd: Process | None = None

    @property
    def monitor(self) -> str:
        """host:port of the monitor, as a pool names it."""
        return f"127.0.0.1:{self.port}"

    @property
    def config(self) -> pathlib.Path:
        return self.folder / "ceph.conf"

    @property
    def keyring(self) -> pathlib.Path:
        """The key of client.muster."""
        return self.folder / "muster.keyring"

    @property
    def osd_pid(self) -> int:
        """The process id of the OSD, 0 while there is none."""
        return self._osd.pid if self._osd is not None else 0

    def ceph(self, *args: str) -> str:
        """The output of the `ceph` command, as administrator."""
        return self._tool("ceph", *args)

    def rbd(self, *args: str) -> str:
        """The output of the `rbd` command, as administrator."""
        return self._tool("rbd", *args)

    def prepare(self) -> None:
        if self.config.exists():
            return
        for name in ("mon", "osd"):
            (self.folder / name).mkdir()
        fsid = str(uuid.uuid4())
        self.config.write_text(
            CONFIG.format(
                fsid=fsid,
                port=self.port,
                osd_port=self._osd_port,
                osd_ports_end=self._osd_port + OSD_PORTS,
                folder=self.folder,
            )
        )
        everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
        osd = ("--cap", "mon", "allow profile osd", "--cap", "osd", "allow *")
        mon_keyring = self._new_key("mon", "mon.", "--cap", "mon", "allow *")
        for file, name, caps in (("admin", "client.admin", everything), ("osd", "osd.0", osd)):
            keyring = self._new_key(file, name, *caps)
            self._helper("ceph-authtool", TOOLS, mon_keyring, "--import-keyring", keyring)
        monmap = str(self.folder / "monmap")
        address = f"[v2:127.0.0.1:{self.port}]"
        self._helper(
            "monmaptool", TOOLS, "--create", "--fsid", fsid, "--addv", "a", address, monmap
        )
        made = ("--mkfs", "--monmap", monmap, "--keyring", mon_keyring)
        self._helper("ceph-mon", "ceph-mon", *self._as("a"), *made)

    def command(self) -> tuple[list[str], dict[str, str]]:
        return [find_binary("ceph-mon", "ceph-mon"), *self._as("a"), "-f"], ENVIRONMENT

    def ready(self) -> bool:
        return answers(self.port)

    def wait_ready(self, timeout_s: float | None = None) -> None:
        super().wait_ready(timeout_s)
        if not (self.folder / "osd" / "fsid").exists():
            osd = str(uuid.uuid4())
            self.ceph("osd", "new", osd, "0")
            made = ("--mkfs", "--osd-uuid", osd)
            self._helper("ceph-osd", "ceph-osd", *self._as("0"), *made)
        if self._osd is None:
            self._osd = Process(
                [find_binary("ceph-osd", "ceph-osd"), *self._as("0"), "-f"],
                ENVIRONMENT,
                self.folder / "osd.log",
            )
        if not self.keyring.exists():
            self.ceph("osd", "pool", "create", POOL, "8")
            self.ceph("osd", "pool", "application", "enable", POOL, "rbd")
            self.keyring.write_text(self.ceph("auth", "get-or-create", f"client.{USER}", *CAPS))
            self.keyring.chmod(0o600)
        # Answered once the OSD serves the pool.
        self.rbd("ls", POOL)

    def stop(self) -> None:
        self._end_osd(signal.SIGTERM)
        super().stop()

    def kill(self) -> None:
        self._end_osd(signal.SIGKILL)
        super().kill()

    def _end_osd(self, number: int) -> None:
        if self._osd is not None:
            self._osd.end(number, self.stop_timeout_s)
            self._osd = None

    def _as(self, name: str) -> tuple[str, ...]:
        return ("-c", str(self.config), "-i", name)

    def _new_key(self, file: str, name: str, *caps: str) -> str:
        path = str(self.folder / f"{file}.keyring")
        self._helper("ceph-authtool", TOOLS, "-C", path, "--gen-key", "-n", name, *caps)
        return path

    def _tool(self, name: str, *args: str) -> str:
        return self._helper(name, TOOLS, "-c", str(self.config), *args)

    def _helper(self, name: str, package: str, *args: str) -> str:
        return run([find_binary(name, package), *args], ENVIRONMENT)
