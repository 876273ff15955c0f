"""A template is fetched once, checked before it is used, and never leans on another file."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.drivers.libvirt import templates
from agent.drivers.libvirt.templates import Templates
from common.errors import CallTimeout, HypervisorError, TemplateInvalid
from common.messages import ImageSource
from common.model import TemplateFormat
from common.runtime import Runtime

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img (qemu-utils)")


def patient() -> None:
    """Somebody still waits."""


def qemu_img(*args: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, args)], check=True, capture_output=True)


def source(path: Path, kind: str = "raw", url: str | None = None) -> ImageSource:
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageSource(url=url or f"file://{path}", sha256=checksum, format=TemplateFormat(kind))


def ensure(pool: Path, wanted: ImageSource) -> Path:
    return Templates(Runtime()).ensure(pool, wanted, patient)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


def kept(pool: Path) -> list[str]:
    return sorted(os.listdir(pool / "templates"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "my image.raw"
    path.write_bytes(os.urandom(3 << 20))
    return path


class Server:
    """A web server that counts what was asked of it, and can break off in the middle."""

    def __init__(self, body: bytes) -> None:
        self.body, self.asked, self.breaks_after = body, 0, len(body)
        self.slow = threading.Event()
        self.slow.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                if self.path != "/image":
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body[: outer.breaks_after // 2])
                outer.slow.wait(30)
                self.wfile.write(outer.body[outer.breaks_after // 2 : outer.breaks_after])

            def log_message(self, *_: object) -> None:
                """It says nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/image"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(image: Path) -> Iterator[Server]:
    made = Server(image.read_bytes())
    yield made
    made.slow.set()
    made.server.shutdown()
    made.server.server_close()


def test_a_file_is_kept_under_its_checksum_and_nobody_can_write_to_it(
    pool: Path, image: Path
) -> None:
    wanted = source(image, url=f"file://{str(image).replace(' ', '%20')}")
    path = ensure(pool, wanted)
    assert path == pool / "templates" / f"{wanted.sha256}.raw"
    assert path.read_bytes() == image.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o444
    assert kept(pool) == [path.name]


def test_what_is_there_is_not_fetched_again(pool: Path, image: Path, server: Server) -> None:
    wanted = source(image, url=server.url)
    assert ensure(pool, wanted) == ensure(pool, wanted)
    assert server.asked == 1
    ensure(pool.parent, wanted)
    assert server.asked == 2, "another folder has a cache of its own"


def test_two_that_want_it_at_once_fetch_it_once(pool: Path, image: Path, server: Server) -> None:
    wanted, found = source(image, url=server.url), []
    server.slow.clear()
    both = [threading.Thread(target=lambda: found.append(ensure(pool, wanted))) for _ in range(3)]
    for one in both:
        one.start()
    server.slow.set()
    for one in both:
        one.join(30)
    assert len(found) == 3
    assert server.asked == 1


def test_another_checksum_is_told_with_the_url_and_both(pool: Path, image: Path) -> None:
    wanted = source(image)
    image.write_bytes(b"somebody has put another one there")
    found = hashlib.sha256(image.read_bytes()).hexdigest()
    with pytest.raises(TemplateInvalid) as refused:
        ensure(pool, wanted)
    for words in (wanted.url, wanted.sha256, found):
        assert words in refused.value.message
    assert kept(pool) == []


@pytest.mark.parametrize(
    ("made", "told", "found"),
    [
        ("raw", "qcow2", "found raw"),
        ("raw", "iso", "found raw"),
        ("qcow2", "raw", "found qcow2"),
        ("vmdk", "raw", "found vmdk"),
        ("vdi", "qcow2", "found vdi"),
        ("broken", "qcow2", "can not read"),
    ],
)
def test_another_format_than_the_templates_is_refused(
    pool: Path, tmp_path: Path, made: str, told: str, found: str
) -> None:
    path = tmp_path / "image"
    if made == "broken":
        path.write_bytes(b"QFI\xfb\0\0\0\x03" + b"\0" * 600)
    else:
        qemu_img("create", "-f", made, path, "1M")
    with pytest.raises(TemplateInvalid, match=f"expected format {told}.*{found}"):
        ensure(pool, source(path, told))
    assert kept(pool) == []


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_an_image_with_a_backing_file_is_refused(pool: Path, tmp_path: Path, version: str) -> None:
    path = tmp_path / "attack"
    options = f"compat={version}"
    qemu_img("create", "-f", "qcow2", "-o", options, "-b", "/etc/passwd", "-F", "raw", path, "1M")
    with pytest.raises(TemplateInvalid, match=r"whole by itself.*backing file"):
        ensure(pool, source(path, "qcow2"))
    with pytest.raises(TemplateInvalid):
        ensure(pool, source(path, "raw"))
    assert kept(pool) == []


def test_an_image_with_an_external_data_file_is_refused(pool: Path, tmp_path: Path) -> None:
    path = tmp_path / "attack"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", path, "1M")
    with pytest.raises(TemplateInvalid, match="external data file"):
        ensure(pool, source(path, "qcow2"))


def test_an_iso_is_known_by_its_own_mark(pool: Path, tmp_path: Path) -> None:
    path = tmp_path / "iso"
    path.write_bytes(b"\0" * 32769 + b"CD001" + b"\0" * 4096)
    assert ensure(pool, source(path, "iso")).suffix == ".iso"
    assert ensure(pool, source(path, "raw")).suffix == ".raw", "it boots from a disk as well"


def test_a_kernel_may_be_anything_of_its_checksum(pool: Path, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"MZ")
    assert ensure(pool, source(path, "kernel")).read_bytes() == b"MZ"


@pytest.mark.parametrize("what", ["nothing", "a folder", "a pipe", "no host", "no page"])
def test_what_can_not_be_fetched_is_named_by_its_url(
    pool: Path, tmp_path: Path, image: Path, server: Server, what: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    url = {
        "nothing": f"file://{tmp_path}/nothing",
        "a folder": f"file://{tmp_path}",
        "a pipe": f"file://{tmp_path}/pipe",
        "no host": "http://127.0.0.1:1/image",
        "no page": f"{server.url}s",
    }[what]
    with pytest.raises(HypervisorError) as refused:
        ensure(pool, source(image, url=url))
    assert url in refused.value.message
    assert kept(pool) == []


def test_a_transfer_that_breaks_off_is_no_wrong_checksum(
    pool: Path, image: Path, server: Server
) -> None:
    wanted = source(image, url=server.url)
    server.breaks_after = 1 << 20
    with pytest.raises(HypervisorError, match=r"broke off after 1048576 of 3145728 bytes"):
        ensure(pool, wanted)
    assert kept(pool) == []
    server.breaks_after = len(server.body)
    assert ensure(pool, wanted).exists()


def test_a_fetch_ends_when_nobody_waits_for_it(pool: Path, image: Path, server: Server) -> None:
    def impatient() -> None:
        raise CallTimeout("no time was left")

    with pytest.raises(CallTimeout):
        Templates(Runtime()).ensure(pool, source(image, url=server.url), impatient)
    assert kept(pool) == []


def test_a_fetch_that_was_killed_leaves_a_part_that_the_next_one_takes_over(
    pool: Path, image: Path, server: Server
) -> None:
    wanted = source(image, url=server.url)
    server.slow.clear()
    script = (
        "from tests.functional.test_libvirt_templates import *;"
        f"ensure(Path({str(pool)!r}), ImageSource(url={wanted.url!r}, sha256={wanted.sha256!r},"
        " format=TemplateFormat.RAW))"
    )
    fetching = subprocess.Popen([sys.executable, "-c", script], cwd=Path.cwd())
    part = pool / "templates" / f"{wanted.sha256}.raw.part"
    try:
        while not (part.exists() and part.stat().st_size):
            assert fetching.poll() is None
    finally:
        fetching.kill()
        fetching.wait()
    assert kept(pool) == [part.name]
    server.slow.set()
    assert ensure(pool, wanted).read_bytes() == image.read_bytes()
    assert kept(pool) == [part.name.removesuffix(".part")]


def test_a_file_larger_than_the_room_left_is_not_begun(
    pool: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(templates.shutil, "disk_usage", lambda _path: Full)
    with pytest.raises(HypervisorError, match=r"3145728 bytes.*1000 left"):
        ensure(pool, source(image))
    assert kept(pool) == []
