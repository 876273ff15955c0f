"""A guest that nobody reaches writes on, and is shut out before its disk goes (section 3)."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt")

from agent.drivers.libvirt import ceph as link
from agent.drivers.libvirt.rbd import Images
from common.conf.rbd import Rbd
from common.messages import DiskSpec, RbdTarget
from common.runtime import Runtime
from devstack.fleet import Times
from devstack.image import Image
from devstack.parts.ceph import Ceph
from devstack.parts.libvirtd import Libvirtd
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.conftest import started
from tests.faults.stage import Stage, staged
from tests.wait import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

BOOT_S = 120.0  # three seconds on an idle machine
TIMES = Times(report_interval=1.0, service_down_time=30.0)


@pytest.fixture(scope="module")
def libvirtd_far() -> Iterator[Any]:
    """The other host's."""
    yield from started(lambda: Libvirtd(apart=False))


@pytest.fixture
def stage(
    rabbit: RabbitMQ,
    postgres: Postgres,
    ceph: Ceph,
    libvirtd_near: Libvirtd,
    libvirtd_far: Libvirtd,
    tmp_path: Path,
) -> Iterator[Stage]:
    """Two hosts of a zone whose pool is in Ceph."""
    rbd = {"user": ceph.user, "keyring": ceph.keyring, "timeout": 10}
    uris = {"alpha": libvirtd_near.qemu_uri, "beta": libvirtd_far.qemu_uri}
    parts = (rabbit.new_vhost(), postgres.new_database(), TIMES)
    pool = {"kind": "rbd", "rbd_pool": ceph.pool, "monitors": [ceph.monitor], "capacity_gib": 2}
    zone = {
        "zones": [{"name": "z"}],
        "pods": [{"name": "p", "zone": "z"}],
        "clusters": [{"name": "c", "pod": "p"}],
        "hosts": [{"name": host, "cluster": "c"} for host in uris],
        "pools": [{"name": "fast", "scope": "zone", "zone": "z", **pool}],
    }
    file = tmp_path / "zone.yaml"
    file.write_text(json.dumps(zone))
    with staged(list(uris), *parts, connection_uris=uris, options={"rbd": rbd}) as stage:
        done = stage.fleet.muster("apply", str(file))
        assert done.code == 0, done.err
        yield stage


class Guest:
    """web-1 on alpha, which writes to its disk in Ceph for ever."""

    def __init__(self, stage: Stage, image: Image) -> None:
        boot = ["--kernel", str(image.kernel), "--initrd", str(image.initrd)]
        boot += ["--cmdline", "console=ttyS0 quiet muster.token=web-1 muster.write=vda"]
        size = ["--vcpus", "1", "--memory", "128", "--data-disk", "1"]
        stage.done("vm", "create", "web-1", "--zone", "z", "--host", "alpha", *size, *boot)
        folder = stage.fleet.folder / "instances" / "alpha" / stage.vm("web-1")["uuid"]
        self._console = folder / "serial.log"

    def said(self, word: str) -> int:
        text = self._console.read_text(errors="replace")
        return len(re.findall(rf"MUSTER GUEST {word}\b", text))

    def says(self, word: str, times: int) -> None:
        goal = self.said(word) + times
        wait_until(lambda: self.said(word) >= goal, BOOT_S, f"the guest says {word} again")


def images(ceph: Ceph) -> list[str]:
    return [name for name in ceph.rbd("ls", ceph.pool).split() if "-disk" in name]


def blocklist(ceph: Ceph) -> list[str]:
    return [line.split()[0] for line in ceph.ceph("osd", "blocklist", "ls").splitlines() if line]


def new_image(ceph: Ceph, name: str) -> RbdTarget:
    target = RbdTarget(pool=ceph.pool, image=name, monitors=(ceph.monitor,))
    disks = Images(Rbd(user=ceph.user, keyring=str(ceph.keyring)), Runtime("new"))
    disks.make(target, DiskSpec(size_gib=1, rbd=target), lambda: None)
    return target


def begins(ceph: Ceph, target: RbdTarget) -> bytes:
    settings, libraries = Rbd(user=ceph.user, keyring=str(ceph.keyring)), link.libraries()
    with (
        link.Cluster(settings, libraries, target.monitors).pool(target.pool, "read") as (_, ioctx),
        libraries.rbd.Image(ioctx, target.image, read_only=True) as image,
    ):
        body: bytes = image.read(0, 4 << 20)
        return body


def test_section3_a_guest_that_still_writes_is_shut_out_before_its_image_goes(
    stage: Stage, ceph: Ceph, image: Image, libvirtd_near: Libvirtd
) -> None:
    guest = Guest(stage, image)
    guest.says("WROTE", 2)
    [connector] = [json.loads(row[0]) for row in stage.rows("SELECT connector FROM volumes")]
    [address] = connector["addresses"]
    name = connector["image"]
    assert name in images(ceph)

    # Its agent is cut off; the guest knows nothing of that.
    agent = stage.fleet.agents["alpha"]
    agent.signal(signal.SIGSTOP)
    assert stage.muster("host", "set-down", "alpha", "--reason", "not heard").code == 0
    guest.says("WROTE", 2)
    assert address not in blocklist(ceph)
    stage.done("vm", "delete", "web-1")

    def cleaned() -> bool:
        return [i["state"] for i in stage.ask("cleanup", "list", "--all")] == ["DONE"]

    wait_until(cleaned, 60, "beta has removed the image")
    assert name not in images(ceph)
    assert address in blocklist(ceph)
    steps = re.findall(rf"{name}: (fenced \S+|broke the lock|removed)", stage.log("beta"))
    assert steps == [f"fenced {address}", "broke the lock", "removed"]

    # The next one of that name, at once, while the guest tries and tries.
    target = new_image(ceph, name)
    assert libvirtd_near.qemu_pids() != {}, "nobody has told the guest"
    wrote = guest.said("WROTE")
    guest.says("FAILED", 5)
    assert guest.said("WROTE") == wrote
    assert not any(begins(ceph, target))
    assert stage.tombstone("web-1")["state"] == "OPEN"

    agent.signal(signal.SIGCONT)
    assert stage.muster("host", "unset-down", "alpha", "--reason", "it is back").code == 0
    wait_until(lambda: libvirtd_near.qemu_pids() == {}, 60, "its guest is destroyed")
    wait_until(lambda: stage.tombstone("web-1")["state"] == "CLOSED", 60, "its tombstone closes")
