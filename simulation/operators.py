"""Operators who act at random, repeat themselves and never look where they go."""

from __future__ import annotations

from typing import Any

from common.bus.base import ANY_MANAGER
from common.errors import BrokerUnavailable, MusterError, NoManager
from common.states import SettableState
from manager.store import freezing
from manager.store.rollbacks import Rollback
from simulation.fleet import SimFleet
from simulation.nouns import VM_MIB, Nouns

CALL_S = 10.0
TRIES = 40
TRY_AFTER_S = 30.0
FIRST_CREATES = 4
VERBS = (
    ("create", 3),
    ("delete", 3),
    ("stop", 2),
    ("start", 2),
    ("reboot", 3),
    ("held", 4),
    ("resize", 4),
    ("shelf", 6),
    ("brief", 1),
    ("several", 2),
    ("cancel", 1),
    ("change_of_mind", 4),
    ("undone", 5),
    ("force", 2),
    ("set_down", 2),
    ("fence", 2),
    ("scrap", 2),
    ("freeze", 1),
    ("protect", 1),
    ("set_state", 1),
)
# What is tried on a VM in this state; a start in every other.
OUT_OF = {
    "ACTIVE": "stop",
    "PAUSED": "unpause",
    "SUSPENDED": "resume",
    "SHELVED": "unshelve",
    "SHELVED_OFFLOADED": "unshelve",
    "SOFT_DELETED": "restore",
}


class Operators:
    """A number of wishes, spread over the time in which the faults happen."""

    def __init__(self, fleet: SimFleet) -> None:
        self._fleet = fleet
        self._bus = fleet.broker.bus(fleet.operator)
        self.accepted: dict[str, str] = {}
        self.refused: list[str] = []
        self.set_down: set[str] = set()
        self.fenced: set[str] = set()
        self.freezes = 0  # that somebody wants to last
        # Guests that were switched off with their host before it was fenced.
        self.cut_off: set[str] = set()
        self.vouched: set[str] = set()  # VMs whose tombstone somebody has forgotten
        self.let_be: set[str] = set()  # VMs with a clean-up item that somebody has forgotten
        self.forgotten: set[str] = set()  # jobs that a restored database does not know
        self._requests: dict[str, tuple[str, dict[str, Any]]] = {}
        self._names = [f"vm{n}" for n in range(1, 7)]
        self.nouns = Nouns(fleet.world, list(fleet.agents))
        for agent in fleet.agents.values():
            agent.hypervisor.memory_mib = self.nouns.memory_mib or agent.hypervisor.memory_mib

    def act(self, count: int, first_s: float, last_s: float) -> None:
        """`count` wishes between two times."""
        world = self._fleet.world
        if self.nouns.there:
            asked = {"objects": self.nouns.objects(), "operator": "op", "request": world.new_id()}
            self._fleet.operator.spawn("apply", self.ask, "model_apply", asked)
        words = [word for word, weight in VERBS for _ in range(weight)]
        for n in range(count):
            name = world.random.choice(self._names)
            if n < FIRST_CREATES:
                # Without VMs there is nothing to go wrong with.
                world.after(
                    world.random.uniform(first_s, first_s + 40), self._starter("create", name)
                )
            else:
                verb = world.random.choice(words)
                world.after(world.random.uniform(first_s, last_s), self._starter(verb, name))

    def _starter(self, verb: str, name: str) -> Any:
        return lambda: self._fleet.operator.spawn(f"{verb} {name}", self._wish, verb, name)

    def _wish(self, verb: str, name: str, asked: dict[str, Any] | None = None) -> None:
        world = self._fleet.world
        if verb == "set_down":
            self._set_down(world.random.choice(list(self._fleet.agents)))
            return
        if verb == "fence":
            self._fence(world.random.choice(list(self._fleet.agents)))
            return
        if verb == "scrap":
            rows = (self.ask("host_list", {}) or {}).get("hosts", ())
            used = [row["name"] for row in sorted(rows, key=lambda row: -row["vms"])]
            self._fence(used[0] if used else "h1", scrap=True)
            return
        if verb == "freeze":
            self._freeze()
            return
        if verb == "brief":
            self._wish("create", f"{name}-brief")
            self._fleet.operator.sleep(world.random.uniform(0.0, 5.0))
            self._wish("delete", f"{name}-brief")
            return
        if verb == "change_of_mind":
            verb = world.random.choice(
                ("stop", "start", "reboot", "pause", "suspend", "resize", "shelve", "unshelve")
            )
            self._wish(verb, name)
            self._fleet.operator.sleep(world.random.uniform(0.0, 5.0))
            self._wish(world.random.choice(("delete", "delete", "soft")), name)
            return
        if verb == "undone":
            self._wish("soft", name)
            for n in range(world.random.choice((0, 2))):
                # What was released is wanted by others.
                self._wish("create", f"{name}-next{n}")
            for then in ("restore", "start") if world.chance(0.6) else ():
                self._fleet.operator.sleep(world.random.uniform(0.0, 40.0))
                self._wish(then, name)
            return
        if verb == "protect":
            for protected in (True, False):
                why = {"vm": name, "operator": "op", "reason": "at random"}
                self.ask("vm_set", {"job": world.new_id(), "protected": protected, **why})
                self._fleet.operator.sleep(world.random.uniform(0.0, 60.0))
            return
        if verb == "held":
            there, back = world.random.choice((("pause", "unpause"), ("suspend", "resume")))
            self._wish(there, name)
            self._fleet.operator.sleep(world.random.uniform(0.0, 40.0))
            self._wish(back, name)
            return
        if verb == "shelf":
            shown = self.ask("vm_list", {"state": "ACTIVE"}) or {}
            name = world.random.choice([row["name"] for row in shown.get("vms", ())] or [name])
            self._wish("shelve", name)
            self._fleet.operator.sleep(world.random.uniform(0.0, 60.0))
            self._wish(world.random.choice(("unshelve", "unshelve", "delete")), name)
            return
        if verb == "resize":
            self._resize(name)
            self._fleet.operator.sleep(world.random.uniform(0.0, 40.0))
            self._wish(world.random.choice(("confirm_resize", "revert_resize")), name)
            return
        if verb == "several":
            # At once and alike: the last of something is wanted twice.
            asked = self.nouns.of_create()
            for n in range(3):
                about = "one of several", self._wish, "create", f"{name}-{n}", asked
                self._fleet.operator.spawn(*about)
            return
        if verb == "cancel":
            self._wish("create", name)
            self._fleet.operator.sleep(world.random.uniform(0.0, 20.0))
            if self.accepted:
                last = list(self.accepted)[-1]
                self.ask("job_cancel", {"job": last, "operator": "op", "reason": "at random"})
            return
        job = world.new_id()
        common = {"job": job, "operator": "op", "reason": "at random"}
        if verb == "create":
            size = {"name": name, "vcpus": 1, "memory_mib": VM_MIB}
            more = self.nouns.of_create() if asked is None else asked
            self.ask("vm_create", {**common, **size, **more})
        elif verb in ("delete", "force"):
            self.ask("vm_delete", {**common, "vm": name, "force": verb == "force"})
        elif verb == "soft":
            self.ask("vm_delete", {**common, "vm": name, "soft": True})
        elif verb == "set_state":
            state = world.random.choice(list(SettableState))
            self.ask("vm_set_state", {**common, "vm": name, "vm_state": state})
        else:
            flag = {"reboot": "force", "shelve": "offload"}.get(verb)
            more = {flag: world.chance(0.5)} if flag is not None else {}
            self.ask(f"vm_{verb}", {**common, "vm": name, **more})
        if world.chance(0.2):
            # The same request once more, as after a lost answer.
            self._fleet.operator.sleep(world.random.uniform(0.0, 30.0))
            if job in self.accepted:
                again = self.ask_again(job)
                forgotten = job in self.forgotten
                if again is not None and again["uuid"] != self.accepted[job] and not forgotten:
                    raise AssertionError(f"job {job} came back as {again['uuid']}")

    def _resize(self, name: str) -> None:
        world = self._fleet.world
        asked: dict[str, Any] = {"memory_mib": VM_MIB * world.random.choice((1, 2, 3))}
        if world.chance(0.5):
            asked["vcpus"] = world.random.choice((1, 2))
        shown = self.ask("vm_show", {"vm": name})
        disks = shown["spec"]["disks"] if shown is not None else []
        if disks and world.chance(0.5):
            asked["root_gib"] = disks[0]["size_gib"] + 1
        common = {"job": world.new_id(), "operator": "op", "reason": "at random"}
        self.ask("vm_resize", {**common, "vm": name, **asked})

    def _set_down(self, host: str) -> None:
        world = self._fleet.world
        asked = {"host": host, "operator": "op", "reason": "at random"}
        self.ask("host_set_down", asked)
        self.set_down.add(host)
        self._fleet.operator.sleep(world.random.uniform(5.0, 100.0))
        self.ask("host_unset_down", asked)
        self.set_down.discard(host)

    def _fence(self, host: str, *, scrap: bool = False) -> None:
        """Cut the power of a host and say so; some time later it is switched on again.

        `scrap`: as if it were never to be, so that what was there is deleted and forgotten.
        """
        agent, operator, world = self._fleet.agents[host], self._fleet.operator, self._fleet.world
        if agent.hypervisor.off:
            return
        self._fleet.tell(f"the power of {host} is cut")
        agent.kill()
        agent.hypervisor.off = True
        agent.hypervisor.reboot()
        self.cut_off |= set(agent.hypervisor.guests)
        asked = {"host": host, "operator": "op", "reason": "its power is cut"}
        self.fenced.add(host)
        if self.ask("host_fence", asked) is not None and scrap:
            self._scrap(host)
        operator.sleep(world.random.uniform(5.0, 150.0))
        late = world.chance(0.5)  # it may well speak before the operator takes his word back
        for turn in (self._switch_on, self._unfence)[:: 1 if late else -1]:
            turn(host)
            operator.sleep(world.random.uniform(0.0, 30.0))

    def _scrap(self, host: str) -> None:
        """What is on a host without power goes, and its tombstones hold nothing any more."""
        asked = {"operator": "op", "reason": "it is scrapped"}
        for row in (self.ask("vm_list", {"host": host}) or {}).get("vms", ()):
            self.ask("vm_delete", {**asked, "job": self._fleet.world.new_id(), "vm": row["uuid"]})
        for row in (self.ask("tombstone_list", {"state": "OPEN"}) or {}).get("tombstones", ()):
            if row["host"] == host:
                self.vouched.add(row["instance"])
                self.ask("tombstone_forget", {**asked, "tombstone": row["uuid"]})
        for row in (self.ask("cleanup_list", {}) or {}).get("cleanups", ()):
            if row["kind"] == "files" and self._fleet.world.chance(0.2):
                self.let_be.add(row["instance"])
                self.ask("cleanup_forget", {**asked, "cleanup": row["uuid"]})
            else:
                self.ask("cleanup_retry", {**asked, "cleanup": row["uuid"]})

    def _freeze(self) -> None:
        asked = {"operator": "op", "reason": "at random"}
        self.freezes += 1
        self.ask("freeze", asked)
        self._fleet.operator.sleep(self._fleet.world.random.uniform(5.0, 150.0))
        self.freezes -= 1
        while self.ask("unfreeze", asked) is None:
            self._fleet.operator.sleep(TRY_AFTER_S)

    def see_what_is_frozen(self) -> None:
        """A freeze that was carried out after its own unfreeze is told by every listing."""
        if not self.freezes and self._fleet.read(freezing.current) is not None:
            asked = {"operator": "op", "reason": "it came late"}
            self._fleet.operator.spawn("unfreeze", lambda: self.ask("unfreeze", asked))

    def _switch_on(self, host: str) -> None:
        agent = self._fleet.agents[host]
        self._fleet.tell(f"{host} is switched on")
        agent.hypervisor.off = False
        agent.start()

    def _unfence(self, host: str) -> None:
        asked = {"host": host, "operator": "op", "reason": "it is mended"}
        while self.ask("host_unfence", asked) is None:
            self._fleet.operator.sleep(TRY_AFTER_S)
        self.fenced.discard(host)

    def accept_restore(self) -> None:
        """Go on with a restored database, and set right what an operator had set since."""
        self._fleet.operator.spawn("accept-restore", self._accept_restore)

    def _accept_restore(self) -> None:
        asked = {"operator": "op", "reason": "it was restored from a backup"}
        ahead = self._fleet.read(lambda tx: tx.first(Rollback))  # as doctor says
        if ahead is not None and self.ask("db_accept_restore", asked) is not None:
            self._fleet.tell("op: the restored database is accepted")
            self._fleet.operator.spawn("try all", self._try_all)
        if not self.freezes:
            self.ask("unfreeze", asked)
        for row in (self.ask("host_list", {}) or {}).get("hosts", ()):
            if row["state"] == "DOWN" and row["name"] not in self.set_down:
                self.ask("host_unset_down", {"host": row["name"], **asked})
            if row["fenced"] and row["name"] not in self.fenced:
                self.ask("host_unfence", {"host": row["name"], **asked})

    def _try_all(self) -> None:
        """Does every VM still do as it is told?"""
        self._fleet.operator.sleep(TRY_AFTER_S)
        for row in (self.ask("vm_list", {}) or {}).get("vms", ()):
            verb = OUT_OF.get(row["vm_state"], "start")
            asked = {"job": self._fleet.world.new_id(), "operator": "op", "reason": "does it work?"}
            self.ask(f"vm_{verb}", {**asked, "vm": row["uuid"]})

    def ask(self, method: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Ask until somebody answers; None when a rule refused it."""
        about = f"{method} {kwargs.get('vm') or kwargs.get('name') or kwargs.get('host')}"
        for _ in range(TRIES):
            try:
                answer: dict[str, Any] = self._bus.call(ANY_MANAGER, method, kwargs, CALL_S)
            except (NoManager, BrokerUnavailable):
                self._fleet.operator.sleep(3.0)
                continue
            except MusterError as exc:
                if exc.code in ("INTERNAL_ERROR", "BAD_REQUEST"):
                    raise AssertionError(f"{about}: {exc}") from exc
                if exc.code in ("DATABASE_UNAVAILABLE", "CONFLICT"):
                    self._fleet.operator.sleep(3.0)
                    continue
                self.refused.append(exc.code)
                self._fleet.tell(f"op: {about}: {exc.code}")
                return None
            if "job" in kwargs and "uuid" in answer:
                self._fleet.tell(
                    f"op: {about}:"
                    f" job {answer['uuid'][:8]} on {answer['host']} of {answer['instance'][:8]}"
                )
                self.accepted[kwargs["job"]] = answer["uuid"]
                self._requests[kwargs["job"]] = (method, kwargs)
            return answer
        return None

    def ask_again(self, job: str) -> dict[str, Any] | None:
        """A repetition, letter for letter."""
        method, kwargs = self._requests[job]
        try:
            answer: dict[str, Any] = self._bus.call(ANY_MANAGER, method, kwargs, CALL_S)
        except MusterError:
            return None
        return answer
