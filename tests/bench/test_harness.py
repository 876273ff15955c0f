"""The benchmark measures what it says: proven on a fleet too small for its figures to mean much."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from devstack.fleet import Scratch
from devstack.parts.base import Part
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.bench import counters, deploys, durable, operators, planner, report
from tests.bench.operators import Load
from tests.conftest import started

TINY = durable.Size(
    hosts=2,
    vms=6,
    single=4,
    idle_s=1.0,
    load_s=1.0,
    rounds=1,
    threads=4,
    deploys=deploys.Size(single=2, vms=6, threads=3, rounds=1),
)
GROUPS = {"managers", "agents", "RabbitMQ", "PostgreSQL", counters.CLIENT}


@pytest.fixture
def counting() -> Iterator[Part]:
    yield from started(lambda: Postgres(durable=True, count_statements=True))


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    scratch = Scratch()
    yield scratch.path
    scratch.remove()


@pytest.mark.real
def test_a_whole_run_finds_every_command_carried_out_once(
    rabbit: RabbitMQ, counting: Postgres, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    done, made = durable.measure(
        rabbit, counting, folder / "fleet", TINY, lambda: 1000.0, told.append
    )

    assert len(done.begun_s) == len(done.floor_s) == TINY.single
    assert min(done.begun_s) > 0.0
    assert min(done.floor_s) > 0.0
    for cost in (*done.single.values(), *(window.cost for window in done.loaded)):
        assert cost.statements > 1
        assert cost.writes > 0
        assert cost.publishes > 1, "a cast of its own, and its part of a request and of answers"
        assert cost.cpu_s.keys() == GROUPS
    assert done.idle.keys() == {1, 2}
    windows = [(window.managers, window.way) for window in done.loaded]
    assert windows == [(managers, way) for managers in (1, 2) for way in operators.WAYS]
    assert all(window.load.succeeded > 0 for window in done.loaded)
    assert done.rate(1) > 0
    assert done.rate(2) > 0

    assert list(made.single) == [burst.verb for burst in made.bursts] == list(deploys.VERBS)
    for cost in (*made.single.values(), *(burst.cost for burst in made.bursts)):
        assert cost.statements > 1
        assert cost.cpu_s.keys() == GROUPS
    assert all(burst.load.succeeded == TINY.deploys.vms for burst in made.bursts)
    planned = planner.measure(counting.new_database(), hosts=20, turns=2)
    assert 0 < planned.queries < 10
    assert min(planned.rule, planned.whole, planned.local, planned.told) > 0

    ways = [SimpleNamespace(name=f"{what}, ours", ratio=1.0) for what in ("casts", "heartbeats")]
    report.show_durable(done)
    report.show_deploys(made, planned)
    report.show_ratios(ways, done, made, planned)  # type: ignore[arg-type] # all that it looks at
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("bench: casts ratio 1.00, heartbeats ratio 1.00, latency ratio ")
    assert f"durable ratio {done.ratio(1):.3f} (1 manager)" in last
    assert f"deploys ratio {made.ratio('deploy'):.3f}, decisions/s " in last


@pytest.mark.parametrize(
    ("load", "effects"),
    [
        (Load(accepted=2, states={"SUCCEEDED": 1}), 2),
        (Load(accepted=2, states={"SUCCEEDED": 1, "FAILED": 1}), 2),
        (Load(accepted=2, states={"SUCCEEDED": 2}), 1),
        (Load(accepted=2, states={"SUCCEEDED": 2}), 3),
        (Load(), 0),
    ],
)
def test_a_window_that_lost_or_doubled_a_command_counts_for_nothing(
    load: Load, effects: int
) -> None:
    with pytest.raises(SystemExit):
        durable.check(load, effects)


def test_an_idle_fleet_is_taken_off_by_its_share_of_the_time() -> None:
    whole = counters.Cost(
        seconds=10, statements=120, commits=30, writes=20, publishes=70, cpu_s={"agents": 3.0}
    )
    idle = counters.Cost(
        seconds=5, statements=10, commits=5, writes=0, publishes=10, cpu_s={"agents": 0.5}
    )
    assert whole.less(idle, 10) == counters.Cost(
        seconds=1, statements=10, commits=2, writes=2, publishes=5, cpu_s={"agents": 0.2}
    )


def test_processor_time_of_children_counts_when_they_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]);"
            " print('burnt', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "burnt\n"
        assert counters.cpu_of([parent.pid]) >= 0.25
        assert counters.cpu_of([parent.pid], without=[parent.pid]) == 0.0
    finally:
        parent.kill()
        parent.communicate()
