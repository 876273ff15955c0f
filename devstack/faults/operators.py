"""Operators who command without pause, repeat what got no answer, and write down what was accepted.

Their ledger is the only witness of what was promised: neither the database nor a log is asked.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from typing import Any

import msgspec

from client.follow import PASSING
from common.bus.base import ANY_MANAGER, Bus
from common.errors import MusterError

CALL_S = 4.0
VMS_EACH = 5
MEMORY_MIB = 16
# Asked again as a lost answer would be; a manager that stumbled has promised nothing either.
AGAIN = PASSING | {"INTERNAL_ERROR"}
ENOUGH_S = 0.7  # after which a command has probably ended
# What is done to a VM in each state, and the state that it has then.
MOVES: dict[str, dict[str, str]] = {
    "ACTIVE": {
        "vm_stop": "SHUTOFF",
        "vm_reboot": "ACTIVE",
        "vm_pause": "PAUSED",
        "vm_suspend": "SUSPENDED",
    },
    "SHUTOFF": {"vm_start": "ACTIVE"},
    "PAUSED": {"vm_unpause": "ACTIVE", "vm_stop": "SHUTOFF"},
    "SUSPENDED": {"vm_resume": "ACTIVE"},
    "ERROR": {"vm_start": "ACTIVE", "vm_stop": "SHUTOFF"},
}
AFTER = {verb: after for moves in MOVES.values() for verb, after in moves.items()}
FORCIBLE = ("vm_stop", "vm_reboot", "vm_delete")


class Promise(msgspec.Struct, kw_only=True):
    """A wish that a manager has accepted: what was asked, and the job that it answered."""

    method: str
    asked: dict[str, Any]
    job: str
    instance: str
    at: float
    repeats: int = 0


class Vm(msgspec.Struct, kw_only=True):
    """A VM as the operators remember it."""

    uuid: str
    state: str = "ACTIVE"
    touched: float = 0.0


class Ledger:
    """What was asked and answered; safe for all operators at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.promises: dict[str, Promise] = {}
        self.vms: dict[str, Vm] = {}
        self.refused: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        self.verbs: Counter[str] = Counter()
        self.repeated = 0
        self.broken: list[str] = []

    @property
    def accepted(self) -> int:
        return len(self.promises)

    def promise(self, method: str, asked: dict[str, Any], answer: dict[str, Any]) -> None:
        """A manager has said yes; a second yes must name the same job."""
        job, instance = str(answer["uuid"]), str(answer["instance"])
        with self.lock:
            before = self.promises.get(asked["job"])
            if before is None:
                self.promises[asked["job"]] = Promise(
                    method=method, asked=asked, job=job, instance=instance, at=time.time()
                )
                self.verbs[method] += 1
                return
            before.repeats += 1
            self.repeated += 1
            if (before.job, before.instance) != (job, instance):
                self.broken.append(
                    f"{method} under job {asked['job']} was answered {before.job}, then {job}"
                )


class Operator(threading.Thread):
    """One operator, with dice of his own."""

    def __init__(
        self, n: int, bus: Bus, ledger: Ledger, hosts: tuple[str, ...], wanted: int, seed: str
    ) -> None:
        super().__init__(name=f"operator-{n}", daemon=True)
        self._bus, self._ledger, self._hosts, self._wanted = bus, ledger, hosts, wanted
        self._dice = random.Random(f"{seed}/operator-{n}")  # noqa: S311 - chance, no secret
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set() and self._ledger.accepted < self._wanted:
            if self._dice.random() < 0.004:
                self._set_down(self._dice.choice(self._hosts))
            else:
                self._wish()
            self.stopping.wait(self._dice.uniform(0.2, 1.4))

    def _wish(self) -> None:
        vm = self._choose()
        if vm is None:
            name = f"vm-{uuid.UUID(int=self._dice.getrandbits(128)).hex[:8]}"
            self._change("vm_create", name=name, vcpus=1, memory_mib=MEMORY_MIB)
            return
        verbs = list(MOVES.get(vm.state, AFTER))
        if self._dice.random() < 0.1:
            verbs = list(AFTER)  # without looking
        if self._dice.random() < 0.25:
            verbs = ["vm_delete"]
        verb = self._dice.choice(verbs)
        share = 0.3 if verb == "vm_delete" else 0.6
        forced = verb in FORCIBLE and self._dice.random() < share
        self._change(verb, vm, **({"force": True} if forced else {}))

    def _choose(self) -> Vm | None:
        """A VM to do something with; None when another one is to be made."""
        with self._ledger.lock:
            vms = list(self._ledger.vms.values())
        if len(vms) < 3 or self._dice.random() < 0.25 * (len(vms) < VMS_EACH * 8):
            return None
        quiet = [vm for vm in vms if time.monotonic() - vm.touched > ENOUGH_S]
        return self._dice.choice(quiet if quiet and self._dice.random() < 0.85 else vms)

    def _change(self, method: str, vm: Vm | None = None, **fields: Any) -> None:
        asked = {
            "job": str(uuid.UUID(int=self._dice.getrandbits(128), version=4)),
            "operator": self.name,
            "reason": "a storm",
            **fields,
        }
        if vm is not None:
            asked["vm"] = vm.uuid
            vm.touched = time.monotonic()
        answers = self._at_once(method, asked, vm, twice=self._dice.random() < 0.05)
        answer = next((one for one in answers if one is not None), None)
        if answer is None:
            return
        self._ledger.promise(method, asked, answer)
        self._remember(method, vm, str(answer["instance"]))
        if self._dice.random() < 0.04:
            # No wish of its own: the job that it takes back has to end all the same.
            taken_back = {"job": answer["uuid"], "operator": self.name, "reason": "a storm"}
            if self._ask("job_cancel", taken_back, None) is not None:
                self._ledger.verbs["job_cancel"] += 1
        if self._dice.random() < 0.15:
            # As after an answer that was lost on its way.
            again = self._ask(method, asked, vm)
            if again is not None:
                self._ledger.promise(method, asked, again)
            else:
                self._ledger.broken.append(f"{method} {asked['job']} was accepted, then refused")

    def _at_once(
        self, method: str, asked: dict[str, Any], vm: Vm | None, *, twice: bool
    ) -> list[dict[str, Any] | None]:
        """The answers to a request, which an impatient client may have sent to two managers."""
        answers: list[dict[str, Any] | None] = []
        clients = [
            threading.Thread(
                target=lambda: answers.append(self._ask(method, asked, vm)), daemon=True
            )
            for _ in range(1 + twice)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        for answer in answers[1:]:
            if answer is not None:
                self._ledger.promise(method, asked, answer)
        return answers

    def _remember(self, method: str, vm: Vm | None, instance: str) -> None:
        with self._ledger.lock:
            if vm is None:
                self._ledger.vms[instance] = Vm(uuid=instance, touched=time.monotonic())
            elif method == "vm_delete":
                self._ledger.vms.pop(instance, None)
            else:
                vm.state = AFTER[method]
                vm.touched = time.monotonic()

    def _ask(self, method: str, asked: dict[str, Any], vm: Vm | None) -> dict[str, Any] | None:
        """Ask, under the same job, until somebody answers; None when it was refused."""
        while True:
            try:
                answer: dict[str, Any] = self._bus.call(ANY_MANAGER, method, asked, CALL_S)
                return answer
            except MusterError as exc:
                if exc.code not in AGAIN and exc.code not in ("NO_MANAGER", "BROKER_UNAVAILABLE"):
                    if exc.data.get("job") == asked.get("job", ""):
                        # Its twin may have been accepted, which is no reason to refuse it.
                        self._ledger.broken.append(f"{method} was refused for its own doing: {exc}")
                    self._refused(exc, vm)
                    return None
                self._ledger.unanswered[exc.code] += 1
                if exc.code == "INTERNAL_ERROR":
                    self._ledger.broken.append(f"{method}: {exc}")
            # Also after the storm: who was promised nothing has to be told so.
            time.sleep(self._dice.uniform(0.2, 1.0))

    def _refused(self, exc: MusterError, vm: Vm | None) -> None:
        with self._ledger.lock:
            self._ledger.refused[exc.code] += 1
        if vm is None:
            return
        if exc.code == "WRONG_STATE":
            shown = self._ask("vm_show", {"vm": vm.uuid}, None)
            vm.state = str(shown["vm_state"]) if shown is not None else vm.state
        with self._ledger.lock:
            if exc.code in ("NOT_FOUND", "ALREADY_DELETED"):
                self._ledger.vms.pop(vm.uuid, None)

    def _set_down(self, host: str) -> None:
        asked = {"host": host, "operator": self.name, "reason": "a storm"}
        self._ask("host_set_down", asked, None)
        self.stopping.wait(self._dice.uniform(1.0, 6.0))
        self._ask("host_unset_down", asked, None)
        self._ledger.verbs["host_set_down"] += 1
