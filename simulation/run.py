"""One seed from its beginning to its end, and the story of what broke."""

from __future__ import annotations

from dataclasses import dataclass, field

from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.events import Event
from manager.store.instances import Instance
from simulation.faults import Faults
from simulation.fleet import SimFleet
from simulation.invariants import Broken, Invariants
from simulation.operators import Operators

COMMANDS = 15
FAULTS = 12
# They come close together: simulated time in which little happens costs as much as any other.
FIRST_S, LAST_S = 15.0, 215.0
FAULTS_END_S = 280.0
LOOK_EVERY_S = 10.0
PATIENCE_S = 1800.0
# What is deleted softly is reclaimed soon, or is there to the end.
KEEP_S = (60.0, 7200.0)
# A resize is confirmed soon by itself, or waits for its operator.
WINDOW_S = (0.0, 0.0, 20.0)


@dataclass
class Outcome:
    """What became of a seed."""

    seed: int
    broken: str | None = None
    about: str | None = None
    simulated_s: float = 0.0
    steps: int = 0
    accepted: int = 0
    story: list[str] = field(default_factory=list)


OFFLOADS_S = (0.0, 0.0, 20.0, -1.0)  # when shelved VMs leave their hosts


class CalmFleet(SimFleet):
    """Managers that look at their clocks less often: most of a seed's time went into that."""

    tick_s = 10.0
    resend_after_s = 10.0


def run_seed(seed: int, *, told: bool = False, patience_s: float = PATIENCE_S) -> Outcome:
    """Run one seed; `broken` is None when everything held, within `patience_s` of the faults.

    Its story is kept when something broke, or when it is to be `told`.
    """
    fleet = CalmFleet(seed)
    fleet.keep_s = KEEP_S[seed % len(KEEP_S)]
    fleet.offload_s = OFFLOADS_S[seed // 2 % len(OFFLOADS_S)]
    fleet.window_s = WINDOW_S[seed % len(WINDOW_S)]
    outcome = Outcome(seed)
    try:
        operators, faults = Operators(fleet), Faults(fleet)
        invariants = Invariants(fleet, operators, faults)
        faults.accept_restore = operators.accept_restore
        operators.forgotten = faults.lost.jobs
        fleet.world.judge = invariants.judge
        try:
            fleet.start()
            operators.act(COMMANDS, FIRST_S, LAST_S)
            faults.plan(FAULTS, FIRST_S, LAST_S)
            fleet.run(FAULTS_END_S)
            faults.end()
            fleet.tell("the faults are over")
            _converge(fleet, operators, invariants, patience_s)
        except Broken as exc:
            outcome.broken, outcome.about = str(exc), exc.about
        except Exception as exc:  # noqa: BLE001 - a loop of ours that ends by an error is a defect
            outcome.broken = f"{type(exc).__name__}: {exc}"
            outcome.story = _traceback(exc)
        outcome.simulated_s, outcome.steps = fleet.world.now_s, fleet.world.steps
        outcome.accepted = len(operators.accepted)
        if told or outcome.broken is not None:
            outcome.story += _story(fleet, outcome.about)
    finally:
        fleet.world.judge = lambda: None
        fleet.close()
    return outcome


def _converge(
    fleet: SimFleet, operators: Operators, invariants: Invariants, patience_s: float
) -> None:
    deadline = fleet.world.now_s + patience_s
    while True:
        fleet.run(LOOK_EVERY_S)
        for process in fleet.processes:
            process.start()  # what died by chance at the very end
        operators.see_what_is_frozen()
        problems = invariants.problems()
        if not problems:
            return
        if fleet.world.now_s >= deadline:
            text = "; ".join(what for what, _ in problems[:5])
            raise Broken(f"not converged in {patience_s:g} s: {text}", problems[0][1])


def _traceback(exc: BaseException) -> list[str]:
    import traceback

    return "".join(traceback.format_exception(exc)).splitlines()[-25:]


def _story(fleet: SimFleet, about: str | None) -> list[str]:
    """The fleet's account and, for the instance concerned, all that the database tells of it."""
    lines = [*fleet.lines]

    def tell(tx: Tx) -> None:
        if about is None:
            return
        vm = tx.find(Instance, about)
        lines.append(f"instance: {vm}")
        for row in tx.all(CommandRow, CommandRow.__table__.c.instance == about):
            lines.append(f"command: {row}")
        events = Event.__table__.c
        for event in tx.all(Event, events.object == about, order=[events.at]):
            lines.append(f"event {event.at:%H:%M:%S.%f} {event.kind} {event.text} ({event.source})")

    fleet.read(tell)
    return lines
