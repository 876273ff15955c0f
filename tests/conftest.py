"""Fixtures that start the real parts, once a session, on ports and folders of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn

import hypothesis
import pytest

from agent.drivers.libvirt.ceph import libraries
from common.errors import BadConfig
from devstack.fleet import image_folder
from devstack.image import Image, ImageError, build
from devstack.parts.base import Part, PartMissing
from devstack.parts.ceph import Ceph
from devstack.parts.libvirtd import Libvirtd
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ

# The same examples in every run: what passed once does not fail a change that it has nothing to
# do with. `make test-long` looks for new ones.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "new", hypothesis.settings.get_profile("same"), derandomize=False
)
hypothesis.settings.load_profile("same")


def pytest_sessionstart(session: pytest.Session) -> None:
    """End like on Ctrl-C when terminated: else the parts of this session would live on."""

    def interrupt(*_: object) -> None:
        # The `muster` command, run in this process, takes the interrupt for its own.
        session.shouldstop = "terminated"
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _required() -> bool:
    return os.environ.get("CI") == "true" or os.environ.get("MUSTER_REQUIRE_REAL") == "1"


def _missing(why: str) -> NoReturn:
    """A skip on a laptop, with its reason, and a failure in CI."""
    if _required():
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


def started(make: Callable[[], Part]) -> Iterator[Part]:
    """The running part; when it is missing, a skip on a laptop and a failure in CI."""
    try:
        running = make().__enter__()
    except PartMissing as exc:
        _missing(str(exc))
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Part]:
    """A RabbitMQ of this session; `new_vhost()` gives a test's fleet a place of its own."""
    yield from started(RabbitMQ)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Part]:
    """A PostgreSQL of this session; `new_database()` gives a test an empty database."""
    yield from started(Postgres)


@pytest.fixture(scope="session")
def ceph() -> Iterator[Part]:
    """A Ceph cluster of this session, with a pool and a user as agents need them."""

    def make() -> Part:
        try:
            libraries()
        except BadConfig as exc:  # the system's Python is another one
            raise PartMissing(f"{exc.message}: {exc.remedy}") from exc
        return Ceph()

    yield from started(make)


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[Part]:
    """A libvirtd of this session, with its guests."""
    yield from started(Libvirtd)


@pytest.fixture(scope="session")
def libvirtd_near() -> Iterator[Part]:
    """A libvirtd of this session whose guests reach what listens on the machine's loopback."""
    yield from started(lambda: Libvirtd(apart=False))


@pytest.fixture(scope="session")
def image() -> Image:
    """The guest that boots in a moment and tells what it was given."""
    try:
        return build(image_folder())
    except ImageError as exc:
        _missing(str(exc))


@pytest.fixture
def libvirt_mock(libvirtd: Libvirtd) -> Libvirtd:
    """libvirt's mock driver through a daemon (`mock_uri`): every client sees the same guests."""
    return libvirtd


@pytest.fixture
def libvirt_qemu(libvirtd: Libvirtd) -> Iterator[Libvirtd]:
    """Real QEMU guests through a daemon (`qemu_uri`); what a test leaves behind is ended."""
    yield libvirtd
    for name in libvirtd.virsh("list", "--all", "--name").split():
        if name in libvirtd.virsh("list", "--name").split():
            libvirtd.virsh("destroy", name)
        libvirtd.virsh("undefine", name)
