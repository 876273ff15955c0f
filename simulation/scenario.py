"""A scenario: one file with a fleet, timed lines of what is done to it, and what must come of it.

# A title
#
# A few words: what it shows, and the row of the decision tables it is about.

hosts: h1 h2
managers: m1
set: manager.delete_timeout 100

20s   operator: vm create web-1 on h1
30s   kill agent h1
150s  end
---
 20.0  > operator: vm create web-1 on h1
...

What stands below the line is the golden log. Lines of the file's own doing begin with ">".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("scenarios")
SUFFIX = ".scenario"
LINE = "---"
_TIMED = re.compile(r"(\d+(?:\.\d+)?)s\s+(\S.*)")
_HEADER = re.compile(r"(hosts|managers|set):\s*(\S.*)")


class BadScenario(ValueError):
    """A scenario that can not be read; the message names the file, the line and what is wrong."""


@dataclass(frozen=True)
class Line:
    """One thing that is done, `at_s` seconds after the beginning."""

    at_s: float
    text: str
    number: int


@dataclass(frozen=True)
class Scenario:
    """What one file says. `changes` are settings: ("manager", "delete_timeout", "100")."""

    name: str
    title: str
    hosts: tuple[str, ...]
    managers: int
    changes: tuple[tuple[str, str, str], ...]
    lines: tuple[Line, ...]
    end_s: float
    golden: tuple[str, ...]
    path: Path


def names() -> list[str]:
    """Every scenario there is."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def load(name: str) -> Scenario:
    """The scenario of this name, or the one in this file; raises BadScenario."""
    path = Path(name) if name.endswith(SUFFIX) else FOLDER / f"{name}{SUFFIX}"
    try:
        text = path.read_text()
    except OSError as exc:
        raise BadScenario(f"no scenario {name}: {exc}") from exc
    return parse(path, text)


def parse(path: Path, text: str) -> Scenario:
    """Read a scenario; raises BadScenario."""
    play, _, golden = text.partition(f"\n{LINE}\n")
    title, header, lines, changes = "", {"hosts": "h1", "managers": "m1"}, [], []
    end_s = None
    for number, raw in enumerate(play.splitlines(), start=1):
        line = raw.strip()
        if line.startswith("#"):
            title = title or line.lstrip("# ")
        elif found := _HEADER.fullmatch(line):
            if found[1] == "set":
                changes.append(_change(path, number, found[2]))
            header[found[1]] = found[2]
        elif found := _TIMED.fullmatch(line):
            if found[2] == "end":
                end_s = float(found[1])
            else:
                lines.append(Line(float(found[1]), found[2], number))
        elif line:
            raise BadScenario(f"{path.name}:{number}: neither a header nor a timed line: {line}")
    if not title or end_s is None:
        raise BadScenario(f"{path.name}: it needs a title (# ...) and an end (90s  end)")
    return Scenario(
        name=path.stem,
        title=title,
        hosts=tuple(header["hosts"].split()),
        managers=len(header["managers"].split()),
        changes=tuple(changes),
        lines=tuple(lines),
        end_s=end_s,
        golden=tuple(golden.splitlines()),
        path=path,
    )


def write(scenario: Scenario, log: list[str]) -> None:
    """Make this log the golden one."""
    play, _, _ = scenario.path.read_text().partition(f"\n{LINE}\n")
    scenario.path.write_text("\n".join([play.rstrip(), LINE, *log]) + "\n")


def _change(path: Path, number: int, text: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(\w+)\.(\w+)\s+(\S+)", text)
    if found is None:
        raise BadScenario(f"{path.name}:{number}: want GROUP.OPTION VALUE, not: {text}")
    return found[1], found[2], found[3]
