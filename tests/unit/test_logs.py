"""The log: lines with what they are about, and those of one moment written together."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import logs
from common.conf.database import Database
from manager.store.engine import Store, Tx, create_all
from tests.functional.fleet import Clock

LOG = logging.getLogger("test")
Said = Callable[[], list[str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    """The lines that were written to standard error since it was last asked."""
    for name in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))  # as they are now, afterwards
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = []  # pytest's own, which are put back
    logs.setup("INFO", as_json=False)
    yield lambda: capsys.readouterr().err.splitlines()
    root.handlers[:] = before[0]
    root.setLevel(before[1])


def test_lines_of_a_block_are_written_at_its_end_each_with_what_it_is_about(said: Said) -> None:
    with logs.together():
        with logs.about(host="h1"):
            LOG.info("first")
        LOG.warning("second")
        assert said() == []
    first, second = said()
    assert first.endswith("INFO test host=h1 first")
    assert second.endswith("WARNING test second")
    LOG.info("third")
    assert said()[0].endswith("INFO test third")


def test_a_block_that_fails_still_writes_its_lines(said: Said) -> None:
    with contextlib.suppress(RuntimeError), logs.together():
        LOG.info("last words")
        raise RuntimeError
    assert said()[0].endswith("last words")


def test_an_event_is_logged_once_it_is_committed_and_not_before(said: Said) -> None:
    store = Store(Database(connection="sqlite://"), Clock())
    create_all(store)

    def happens(tx: Tx) -> None:
        tx.event("power", "web-1", "host h1", "web-1 is RUNNING")
        tx.event("job.succeeded", "web-1", "manager", "start SUCCEEDED")
        assert said() == []

    def fails(tx: Tx) -> None:
        happens(tx)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.run(fails)
    assert said() == []
    store.run(happens)
    assert [line.partition("engine ")[2] for line in said()] == [
        "power web-1: web-1 is RUNNING (host h1)",
        "job.succeeded web-1: start SUCCEEDED (manager)",
    ]


def test_lines_that_nobody_reads_any_more_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = (tmp_path / "gone").open("w")
    gone.close()
    monkeypatch.setattr("sys.stderr", gone)
    logs.write(["a line"])
