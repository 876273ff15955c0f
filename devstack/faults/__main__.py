"""`python -m devstack.faults`: two thousand commands in a storm of faults, and the reckoning."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from common import logs
from devstack.faults import stories
from devstack.faults.field import Field
from devstack.faults.operators import Ledger, Operator
from devstack.faults.reckoning import Reckoning
from devstack.faults.storm import Storm, Supervisor
from devstack.parts.base import PartError

OPERATORS = 8
STORIES = 6
PROGRESS_S = 5.0
CONVERGENCE_S = 240.0


class Run:
    """One storm from its first command to its last line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self._seed = args, str(args.seed)
        self._began = time.monotonic()
        self._dice = random.Random(f"{self._seed}/strangers")  # noqa: S311 - chance, no secret
        self._made = 0

    def tell(self, line: str) -> None:
        sys.stdout.write(f"{time.monotonic() - self._began:6.1f} s  {line}\n")
        sys.stdout.flush()

    def run(self) -> int:
        self.tell(f"seed {self._seed}: repeat the faults with SEED={self._seed}")
        field = Field(self._args.agents, self._args.managers, self.tell)
        try:
            return self._storm(field)
        except BaseException:
            field.keep = True
            raise
        finally:
            field.close()

    def _storm(self, field: Field) -> int:
        ledger = Ledger()
        for host in field.hosts:
            field.make_stranger(host, f"payroll-{host}")
        operators = [
            Operator(n, field.bus, ledger, field.hosts, self._args.commands, self._seed)
            for n in range(1, OPERATORS + 1)
        ]
        storm, supervisor = Storm(field, self._seed), Supervisor(field)
        try:
            supervisor.start()
            for operator in operators:
                operator.start()
            storm.begin()
            self._watch(field, ledger, storm, operators)
            self.tell("the storm is over; everything is started again")
            storm.end()
            field.calm()
            reckoning = self._converge(field, ledger)
        finally:
            # Before the field is closed: they would start again what is ended there.
            for operator in operators:
                operator.stopping.set()
            storm.end()
            supervisor.end()
        return self._verdict(field, ledger, storm, supervisor, reckoning)

    def _watch(self, field: Field, ledger: Ledger, storm: Storm, operators: list[Operator]) -> None:
        """Returns when every operator has commanded enough and been answered."""
        deadline, told = time.monotonic() + self._args.limit, time.monotonic()
        while any(operator.is_alive() for operator in operators):
            time.sleep(0.5)
            if storm.failure is not None:
                raise PartError(f"the storm broke off: {storm.failure}")
            late_s = time.monotonic() - deadline
            if late_s > 0:
                for operator in operators:
                    operator.stopping.set()
                storm.end()
            if late_s > CONVERGENCE_S:
                raise PartError("operators are left without an answer, with everything running")
            self._meddle(field)
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                self._progress(ledger, storm)

    def _meddle(self, field: Field) -> None:
        """Now and then somebody makes a guest by hand, or copies one of ours."""
        if self._made >= 10 * len(field.hosts) or self._dice.random() > 0.1:
            return
        host = self._dice.choice(field.hosts)
        self._made += 1
        if self._dice.random() < 0.4:
            field.make_stranger(host, f"by-hand-{self._made}")
        else:
            field.make_clone(host, f"clone-{self._made}", self._dice)

    def _progress(self, ledger: Ledger, storm: Storm) -> None:
        refused = sum(ledger.refused.values())
        self.tell(
            f"{ledger.accepted} of {self._args.commands} accepted, {refused} refused,"
            f" {ledger.repeated} repeated, {sum(ledger.unanswered.values())} without an answer;"
            f" {storm.faults.total()} faults, last: {storm.last}"
        )

    def _converge(self, field: Field, ledger: Ledger) -> Reckoning:
        """The reckoning that finds nothing, or the last one within the limit."""
        deadline = time.monotonic() + CONVERGENCE_S
        told = 0.0
        while True:
            reckoning = Reckoning(field, ledger)
            if not reckoning.findings or time.monotonic() > deadline:
                return reckoning
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                first = reckoning.findings[0]
                self.tell(f"{len(reckoning.findings)} things open still, as: {first.text}")
            time.sleep(1.0)

    def _verdict(
        self,
        field: Field,
        ledger: Ledger,
        storm: Storm,
        supervisor: Supervisor,
        reckoning: Reckoning,
    ) -> int:
        self.tell(f"accepted: {_counted(ledger.verbs)}")
        self.tell(f"refused: {_counted(ledger.refused)}")
        self.tell(f"no answer: {_counted(ledger.unanswered)}; repeated: {ledger.repeated}")
        self.tell(f"faults: {_counted(storm.faults)}")
        self.tell(f"guests made by hand: {len(field.strangers)}")
        for line in supervisor.ended:
            self.tell(f"note: {line}")
        for line, times in Counter(stories.tracebacks(field)).items():
            self.tell(f"note: {times} x traceback in {line}")
        for finding in reckoning.findings[:STORIES]:
            for line in stories.tell(field, finding):
                sys.stdout.write(f"{line}\n")
        for finding in reckoning.findings[STORIES:]:
            sys.stdout.write(f"== {finding.kind}: {finding.text}\n")
        for line in ledger.broken:
            sys.stdout.write(f"== answers: {line}\n")
        bad = bool(reckoning.findings or ledger.broken)
        short = ledger.accepted < self._args.commands
        if short:
            sys.stdout.write(f"only {ledger.accepted} commands were accepted in time\n")
        field.keep = bad
        untrue = reckoning.count("untrue")
        if untrue:
            sys.stdout.write(f"and {untrue} things are not as they are said to be\n")
        sys.stdout.write(reckoning.last_line() + "\n")
        return 1 if bad or short else 0


def _counted(what: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in what.most_common()) or "none"


def interruptible(run: Callable[[], int]) -> int:
    """Ends in good order on SIGTERM as on Ctrl-C: nothing may be left running."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    return run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m devstack.faults", description=__doc__)
    parser.add_argument("--commands", type=int, default=2000, metavar="N")
    parser.add_argument("--agents", type=int, default=5, metavar="N")
    parser.add_argument("--managers", type=int, default=2, metavar="N")
    parser.add_argument(
        "--seed", default=str(random.SystemRandom().randrange(10**6)), help="of the faults' order"
    )
    parser.add_argument(
        "--limit", type=float, default=1800.0, metavar="S", help="longest time for the storm"
    )
    args = parser.parse_args()
    logs.setup("CRITICAL", as_json=False)
    threading.excepthook = _tell_thread
    return interruptible(Run(args).run)


def _tell_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else "a thread"
    sys.stderr.write(f"{name}: {args.exc_type.__name__}: {args.exc_value}\n")


if __name__ == "__main__":
    sys.exit(main())
