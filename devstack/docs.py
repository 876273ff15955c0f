"""`make samples`: writes the files that are generated from the code, so that they can not drift.

`generated()` alone says what they must hold; `make lint` compares.
"""

from __future__ import annotations

import collections
import enum
import io
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

from oslo_config import cfg, generator

from common import states
from devstack import delete_path, model_page

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "etc" / "muster" / "muster.conf.sample"
STATES = ROOT / "doc" / "states.md"
DELETE_PATH = ROOT / "doc" / "delete-path.svg"

STATES_HEAD = """\
# States

Generated from the tables of `common/states.py` by `make samples`; do not edit.

Jobs, commands and hosts are machines: a table of (state, event) -> (state, effects). An event that
is not in the table is a mistake of ours and raises INVALID_TRANSITION with the story of the object;
a late or repeated event that meets a final state changes nothing.
"""

MODEL = ROOT / "doc" / "model.md"
ENUMS = (
    states.VmState,
    states.TaskState,
    states.JobState,
    states.CommandState,
    states.HostState,
    states.TombstoneState,
)


def sample() -> str:
    """The sample configuration: every option with its help, range and default."""
    conf = cfg.ConfigOpts()
    generator.register_cli_opts(conf)
    conf(["--namespace", "musterd"], default_config_files=[], default_config_dirs=[])
    out = io.StringIO()
    generator.generate(conf, output_file=out)
    return out.getvalue().strip() + "\n"


def _event_word(event: enum.Enum) -> str:
    return str(event.value).replace("_", " ")


def _diagram(machine: states.Machine[Any, Any, Any]) -> Iterable[str]:
    """A Mermaid state diagram; events that lead nowhere new are left to the table."""
    arrows: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for (state, event), (target, _effects) in machine.table.items():
        if state is not target:
            arrows[state.name, target.name].append(_event_word(event))
    yield "```mermaid"
    yield "stateDiagram-v2"
    for (source, target), events in arrows.items():
        yield f"    {source} --> {target}: {', '.join(events)}"
    yield from (f"    {state.name} --> [*]" for state in _ordered(machine.terminal))
    yield "```"


def _ordered(members: Iterable[enum.Enum]) -> list[enum.Enum]:
    """Members in the order of their class, since sets have none."""
    found = set(members)
    return [member for kind in {type(m) for m in found} for member in kind if member in found]


def _table(machine: states.Machine[Any, Any, Any]) -> Iterable[str]:
    yield "| state | event | state after | effects |"
    yield "| --- | --- | --- | --- |"
    for (state, event), (target, effects) in machine.table.items():
        what = ", ".join(effect.value.replace("_", " ") for effect in effects) or "-"
        yield f"| {state.name} | {_event_word(event)} | {target.name} | {what} |"
    names = ", ".join(state.name for state in _ordered(machine.terminal))
    yield from ("", f"Final: {names}." if names else "None of them is final.")


def states_page() -> str:
    """doc/states.md: the names of every state, and each machine as picture and table."""
    lines = [STATES_HEAD, "## Power states", ""]
    lines += ["| number | name | shown as |", "| --- | --- | --- |"]
    lines += [f"| {power.value} | {power.name} | {power.shown} |" for power in states.PowerState]
    lines += ["", "## Names", ""]
    for kind in ENUMS:
        title = (kind.__doc__ or "").strip().splitlines()[0]
        lines += [f"- **{kind.__name__}** - {title} {' '.join(f'`{s.value}`' for s in kind)}"]
    for machine in (states.JOB, states.COMMAND, states.HOST):
        lines += ["", f"## The {machine.name} machine", ""]
        lines += [*_diagram(machine), "", *_table(machine)]
    return "\n".join(lines) + "\n"


def generated() -> dict[pathlib.Path, str]:
    """Every generated file and what it must hold."""
    return {
        SAMPLE: sample(),
        STATES: states_page(),
        MODEL: model_page.page(),
        DELETE_PATH: delete_path.svg(),
    }


def main() -> int:
    """Write them all."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
