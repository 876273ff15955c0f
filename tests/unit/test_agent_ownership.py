"""Only agent/ownership.py makes an OwnedGuest, and only of a guest that carries our mark."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from agent.calls import Calls
from agent.drivers.base import Listing, OwnedGuest
from agent.drivers.simulated.driver import SimulatedDriver
from agent.drivers.simulated.store import Faults, Guest, Store
from agent.ownership import Finder
from common.conf import Settings
from common.errors import (
    Ambiguous,
    CallTimeout,
    GuestMissing,
    HypervisorUnavailable,
    MusterError,
    NotOurs,
)
from common.ownership import Mark
from common.runtime import Runtime
from tests.steps import outcome

ROOT = Path(__file__).parents[2]
A = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
B = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"


def _makers(path: Path) -> list[int]:
    """Lines where OwnedGuest is called, under any name that it was imported or assigned as."""
    tree = ast.parse(path.read_text())
    names = {"OwnedGuest"}
    for node in ast.walk(tree):
        if isinstance(node, ast.alias) and node.name == "OwnedGuest" and node.asname:
            names.add(node.asname)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute):
            value = node.value
            called = value.id if isinstance(value, ast.Name) else value.attr
            if called in names:
                names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id in names)
            or (isinstance(node.func, ast.Attribute) and node.func.attr == "OwnedGuest")
            or any(isinstance(a, ast.Name | ast.Attribute) and _decodes(node, a) for a in node.args)
            or any(
                isinstance(k.value, ast.Name) and k.value.id in names and k.arg == "type"
                for k in node.keywords
            )
        )
    ]


def _decodes(call: ast.Call, argument: ast.expr) -> bool:
    """convert(..., OwnedGuest) and the like make one as well."""
    named = isinstance(argument, ast.Name) and argument.id == "OwnedGuest"
    called = (
        call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    )
    return named and called in {"convert", "decode"}


def test_nobody_else_makes_an_owned_guest() -> None:
    places = {
        str(path.relative_to(ROOT)): lines
        for folder in ("agent", "client", "common", "devstack", "manager")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := _makers(path))
    }
    assert set(places) == {"agent/ownership.py"}


@pytest.mark.parametrize(
    "source",
    [
        "from agent.drivers.base import OwnedGuest\nOwnedGuest(1, 2, 3)",
        "from agent.drivers.base import OwnedGuest as Proof\nProof(1, 2, 3)",
        "from agent.drivers import base\nbase.OwnedGuest(1, 2, 3)",
        "from agent.drivers.base import OwnedGuest\nP = OwnedGuest\nP(1, 2, 3)",
        "import msgspec\nmsgspec.convert({}, OwnedGuest)",
        "import msgspec\nmsgspec.json.decode(b'', type=OwnedGuest)",
    ],
)
def test_the_check_itself_sees_every_way_to_make_one(source: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(source)
    assert _makers(tmp_path / "x.py")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path), "h")
    store.make()
    return store


class Asked:
    """A finder that is asked and answers."""

    def __init__(self, store: Store) -> None:
        self._runtime = runtime = Runtime()
        driver = SimulatedDriver(store, Settings(), runtime)
        self._finder = Finder(driver, "f", Calls(runtime, 5.0, 8))
        self.learn = self._finder.learn

    def find(self, instance: str) -> OwnedGuest:
        return outcome(self._runtime, self._finder.find(instance))

    def at(self, hypervisor_uuid: str, instance: str) -> OwnedGuest:
        return outcome(self._runtime, self._finder.at(hypervisor_uuid, instance))


@pytest.fixture
def finder(store: Store) -> Asked:
    return Asked(store)


def mark(instance: str = "i-1", bearer: str = A, fleet: str = "f") -> Mark:
    return Mark(fleet=fleet, instance=instance, generation=1, bearer=bearer)


def test_our_guest_is_found_by_its_mark_whatever_its_name(store: Store, finder: Asked) -> None:
    store.write(Guest(uuid=A, name="anything", mark=mark()))
    found = finder.find("i-1")
    assert (found.hypervisor_uuid, found.mark) == (A, mark())


@pytest.mark.parametrize(
    ("guests", "error", "copies"),
    [
        ([], GuestMissing, None),
        ([Guest(uuid=A, name="i-1")], GuestMissing, None),
        ([Guest(uuid=A, name="x", mark=mark("i-2"))], GuestMissing, None),
        ([Guest(uuid=A, name="x", mark=mark(fleet="g"))], NotOurs, False),
        ([Guest(uuid=B, name="x", mark=mark())], NotOurs, True),
        ([Guest(uuid=A, name="x", mark=mark(), template=True)], NotOurs, True),
        (
            [
                Guest(uuid=A, name="x", mark=mark(fleet="g")),
                Guest(uuid=B, name="y", mark=mark()),
            ],
            NotOurs,
            False,
        ),
        (
            [Guest(uuid=A, name="x", mark=mark()), Guest(uuid=B, name="y", mark=mark(bearer=B))],
            Ambiguous,
            None,
        ),
    ],
)
def test_what_is_not_plainly_ours_is_refused(
    store: Store,
    finder: Asked,
    guests: list[Guest],
    error: type[MusterError],
    copies: bool | None,
) -> None:
    for guest in guests:
        store.write(guest)
    with pytest.raises(error) as caught:
        finder.find("i-1")
    assert caught.value.data.get("copies") is copies


def test_a_partial_listing_does_not_tell_that_a_guest_is_absent(
    store: Store, finder: Asked
) -> None:
    (store.guests / f"{A}.json").write_text("{")
    with pytest.raises(HypervisorUnavailable, match="partial"):
        finder.find("i-1")


def test_where_a_guest_was_seen_before_proves_nothing(store: Store, finder: Asked) -> None:
    store.write(Guest(uuid=A, name="x", mark=mark()))
    finder.find("i-1")
    for changed in (mark(fleet="g"), mark(bearer=B), mark("i-2"), None):
        store.write(Guest(uuid=A, name="x", mark=changed))
        with pytest.raises((NotOurs, GuestMissing)):
            finder.find("i-1")
        store.write(Guest(uuid=A, name="x", mark=mark()))
        finder.find("i-1")


def test_a_guest_that_was_made_again_elsewhere_is_found_there(store: Store, finder: Asked) -> None:
    store.write(Guest(uuid=A, name="x", mark=mark()))
    finder.find("i-1")
    store.remove(A)
    store.write(Guest(uuid=B, name="x", mark=mark(bearer=B)))
    assert finder.find("i-1").hypervisor_uuid == B


def test_a_known_place_saves_the_listing(store: Store, finder: Asked) -> None:
    store.write(Guest(uuid=A, name="x", mark=mark()))
    report = finder.find("i-1").seen
    store.set_faults(Faults(ops={"list": "fail"}))
    assert finder.find("i-1").seen == report


def test_an_instance_seen_twice_is_looked_for_again(store: Store, finder: Asked) -> None:
    store.write(Guest(uuid=A, name="x", mark=mark()))
    one = finder.find("i-1").seen
    store.write(Guest(uuid=B, name="y", mark=mark(bearer=B)))
    finder.learn(Listing(guests=(one, Guest(uuid=B, name="y", mark=mark(bearer=B)).report())))
    with pytest.raises(Ambiguous):
        finder.find("i-1")


def test_a_look_is_fresh_and_judged(store: Store, finder: Asked) -> None:
    store.write(Guest(uuid=A, name="x", mark=mark(fleet="g")))
    with pytest.raises(NotOurs, match="fleet g"):
        finder.at(A, "i-1")
    store.write(Guest(uuid=A, name="x", mark=mark("i-2")))
    with pytest.raises(NotOurs, match="i-2"):
        finder.at(A, "i-1")
    with pytest.raises(GuestMissing):
        finder.at(B, "i-1")


def test_hung_calls_are_bounded(store: Store) -> None:
    runtime = Runtime()
    calls = Calls(runtime, 0.05, 2)
    forever = runtime.event()
    for _ in range(2):
        with pytest.raises(CallTimeout):
            outcome(runtime, calls.look("list", forever.wait, 30.0))
    with pytest.raises(HypervisorUnavailable, match="2 calls"):
        outcome(runtime, calls.look("list", store.uuids))
    forever.set()
