"""`python -m simulation`: many seeds, one seed with its story, or the mutants.

python -m simulation --seeds 1000 [--from 0]
python -m simulation --seed 42            the story of one seed
python -m simulation --seeds 2000 --mutant no_tombstone
python -m simulation --mutants            each mutant until a seed catches it
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator

from simulation import mutants
from simulation.run import PATIENCE_S, Outcome, run_seed

MUTANT_SEEDS = 2000
MUTANT_PATIENCE_S = 900.0  # simulated, after the faults
MUTANTS_LIMIT_S = 600.0  # of real time, for all of them
PROGRESS_S = 5.0
STORIES = 3  # are told of the seeds that fail
COLLECT_EVERY = 8  # seeds


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED")
    parser.add_argument("--seed", type=int, help="one seed, with its whole story")
    parser.add_argument("--mutant", choices=mutants.names(), help="run a known-bad variant")
    parser.add_argument("--mutants", action="store_true", help="run them all until each is caught")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set must not depend on the process, or no seed could be replayed.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "simulation", *sys.argv[1:]])  # noqa: S606 - ourselves
    logging.basicConfig(level=logging.CRITICAL)
    if args.seed is not None:
        return one(args.seed, args.mutant)
    if args.mutants:
        return all_mutants(args.jobs)
    return many(range(args.first, args.first + args.seeds), args.mutant, args.jobs)


def one(seed: int, mutant: str | None) -> int:
    """One seed with everything that happened."""
    with mutants.switched_on(mutant):
        outcome = run_seed(seed, told=True)
    for line in outcome.story:
        say(line)
    say(_verdict(outcome))
    return 1 if outcome.broken else 0


def many(seeds: range, mutant: str | None, jobs: int) -> int:
    """Many seeds on all processors; the failing ones with their stories."""
    began, last = time.monotonic(), time.monotonic()
    broken: list[Outcome] = []
    accepted = simulated_s = 0.0
    for done, outcome in enumerate(outcomes(seeds, mutant, jobs), start=1):
        accepted += outcome.accepted
        simulated_s += outcome.simulated_s
        if outcome.broken:
            broken.append(outcome)
            for line in outcome.story if len(broken) <= STORIES else ():
                say(line)
            say(_verdict(outcome))
        if time.monotonic() - last > PROGRESS_S:
            last = time.monotonic()
            say(f"  {done} of {len(seeds)} seeds, {len(broken)} broken")
    took_s = time.monotonic() - began
    say(
        f"simulate: {len(seeds)} seeds, {len(broken)} broken; {accepted:.0f} commands accepted,"
        f" {simulated_s / 3600:.1f} simulated hours in {took_s:.0f} s"
    )
    return 1 if broken else 0


def all_mutants(jobs: int) -> int:
    """Each mutant until a seed catches it."""
    uncaught = []
    end = time.monotonic() + MUTANTS_LIMIT_S
    for name in mutants.names():
        began = time.monotonic()
        tried, caught = hunt(name, jobs, end)
        took_s = time.monotonic() - began
        if caught is None:
            uncaught.append(name)
            say(f"NOT CAUGHT {name} in {tried} seeds, {took_s:.0f} s: {mutants.about(name)}")
        else:
            what = (caught.broken or "").split(";")[0][:90]
            say(f"caught {name} by seed {caught.seed} in {took_s:.0f} s: {what}")
    total = len(mutants.names())
    say(f"mutants: {total - len(uncaught)} of {total} caught")
    return 1 if uncaught else 0


def hunt(name: str, jobs: int, end: float) -> tuple[int, Outcome | None]:
    """How many seeds were tried, and the one that a mutant breaks and the real thing holds."""
    tried = 0
    for outcome in outcomes(range(MUTANT_SEEDS), name, jobs, MUTANT_PATIENCE_S):
        tried += 1
        if outcome.broken:
            if run_seed(outcome.seed, patience_s=MUTANT_PATIENCE_S).broken is None:
                return tried, outcome
            say(f"seed {outcome.seed} is broken without a mutant")
        if time.monotonic() > end:
            break
    return tried, None


def outcomes(
    seeds: Iterable[int], mutant: str | None, jobs: int, patience_s: float = PATIENCE_S
) -> Iterator[Outcome]:
    """What became of each seed, as they end."""
    run = functools.partial(_run, patience_s=patience_s)
    if jobs <= 1:
        _collect_seldom()
        for seed in seeds:
            with mutants.switched_on(mutant):
                outcome = run(seed)
            yield outcome
        return
    context = multiprocessing.get_context("fork")
    with context.Pool(jobs, initializer=_begin, initargs=(mutant,)) as pool:
        yield from pool.imap_unordered(run, seeds, chunksize=2)


def _run(seed: int, patience_s: float) -> Outcome:
    outcome = run_seed(seed, patience_s=patience_s)
    if seed % COLLECT_EVERY == 0:
        gc.collect()
    return outcome


def _collect_seldom() -> None:
    """A seed leaves little behind, and looking for it took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.disable()


_LASTING = contextlib.ExitStack()


def _begin(mutant: str | None) -> None:
    """For the whole life of a process of the pool."""
    _collect_seldom()
    _LASTING.enter_context(mutants.switched_on(mutant))


def _verdict(outcome: Outcome) -> str:
    if outcome.broken is None:
        return f"seed {outcome.seed}: all held, {outcome.accepted} commands accepted"
    return f"seed {outcome.seed}: BROKEN: {outcome.broken}"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
