"""The sentences of scenarios, and what each of them does to the stage."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from common.bus.base import ANY_MANAGER
from common.errors import BrokerUnavailable, MusterError, NoManager
from common.messages import AGENT_TOPIC
from common.ownership import Mark
from common.states import PowerState
from simulation.fleet import Process
from simulation.hypervisor import Hypervisor, SimGuest
from simulation.scenario import BadScenario, Line, Scenario
from simulation.stage import Stage, StageAgent, Trap

CALL_S = 10.0
ASK_AGAIN_S = 3.0
TRIES = 60
_POWER = {
    "powered off": PowerState.SHUTOFF,
    "started": PowerState.RUNNING,
    "paused": PowerState.PAUSED,
    "suspended": PowerState.SUSPENDED,
    "crashed": PowerState.CRASHED,
}
_HOW = {
    "is lost": "lost",
    "comes twice": "twice",
    "comes late": "late",
    "fails": "fails",
    "fails after its effect": "fails-after",
    "hangs": "hangs",
    "hangs after its effect": "hangs-after",
}

# What a create may be asked for, in words that differ from the request's own.
_ASKED: dict[str, Callable[[str], dict[str, Any]]] = {
    "network": lambda text: {"networks": [{"network": text}]},
    "address": lambda text: {
        "networks": [{"network": text.split("/")[0], "address": text.split("/")[1]}]
    },
    "disk": lambda text: {"disks": [{"size_gib": int(text)}]},
    "group": lambda text: {"affinity_groups": [text]},
}

Act = Callable[..., None]
_SENTENCES: list[tuple[re.Pattern[str], str]] = []


def _pairs(text: str) -> list[tuple[str, str]]:
    found = [word.partition("=") for word in text.split()]
    return [(word, value) for word, _, value in found]


def _value(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1].split(",")
    if text in ("yes", "no"):
        return text == "yes"
    return int(text) if text.isdigit() else text


def says(pattern: str) -> Callable[[Act], Act]:
    """This method does what a sentence of this form says; HOST, VM and NAME are words."""

    def decorate(fn: Act) -> Act:
        regex = re.sub(r"\b(HOST|VM|NAME|PROCESS|KEY)\b", r"([\\w.'-]+)", pattern)
        _SENTENCES.append((re.compile(regex), fn.__name__))
        return fn

    return decorate


class Script:
    """Does the lines of one scenario at their times."""

    def __init__(self, scenario: Scenario, stage: Stage) -> None:
        self._scenario, self._stage = scenario, stage
        self._bus = stage.broker.bus(stage.operator)
        self._last: tuple[str, str, dict[str, Any]] | None = None
        self._taken: dict[str, SimGuest] = {}
        self._deaf: dict[str, Any] = {}

    def lay_out(self) -> None:
        """Put every line on the clock; raises BadScenario for one that says nothing known."""
        for line in self._scenario.lines:
            do = self._doing(line, self._meaning(line))
            if line.at_s:
                self._stage.world.after(line.at_s, do)
            else:
                do()  # before anything else happens

    def _meaning(self, line: Line) -> Callable[[], None]:
        for pattern, name in _SENTENCES:
            found = pattern.fullmatch(line.text)
            if found:
                method = getattr(self, name)
                return lambda: method(*found.groups())
        where = f"{self._scenario.path.name}:{line.number}"
        raise BadScenario(f"{where}: nobody knows how to: {line.text}")

    def _doing(self, line: Line, act: Callable[[], None]) -> Callable[[], None]:
        def do() -> None:
            self._stage.telling = True
            self._stage.tell(f"> {line.text}")
            try:
                act()
            except KeyError as exc:
                where = f"{self._scenario.path.name}:{line.number}"
                raise BadScenario(f"{where}: {exc} is not there: {line.text}") from exc

        return do

    # operators

    @says(r"(\w+): vm create VM(?: on HOST)?(?: with (.+?))?( --no-start)?")
    def create(self, who: str, vm: str, host: str | None, what: str, not_yet: str) -> None:
        asked: dict[str, Any] = {"name": vm, "vcpus": 1, "memory_mib": 128}
        if host:
            asked["host"] = host
        if not_yet:
            asked["start"] = False
        for word, value in _pairs(what or ""):
            asked.update(_ASKED[word](value) if word in _ASKED else {word: _value(value)})
        self._wish(who, "vm_create", asked)

    @says(r"(\w+): (project|pool|network|affinity-group) create NAME((?: [\w.]+=\S+)*)")
    def make(self, who: str, noun: str, name: str, fields: str) -> None:
        asked = {"kind": noun.replace("-", "_"), "name": name}
        given = {word: _value(value) for word, value in _pairs(fields)}
        self._ask(who, "model_create", {**asked, "fields": given, "operator": who})

    @says(r"(\w+): apply a zone NAME with ((?: ?h\d+)+)")
    def zone(self, who: str, zone: str, hosts: str) -> None:
        objects = {
            "zones": [{"name": zone}],
            "pods": [{"name": "p1", "zone": zone}],
            "clusters": [{"name": "c1", "pod": "p1"}],
            "hosts": [{"name": host, "cluster": "c1"} for host in hosts.split()],
        }
        self._ask(who, "model_apply", {"objects": objects, "operator": who})

    @says(r"(\w+): vm (delete|start|stop|reboot) VM( --force)?")
    def change(self, who: str, verb: str, vm: str, force: str | None) -> None:
        self._wish(who, f"vm_{verb}", {"vm": vm, "force": force is not None})

    @says(r"(\w+): vm delete VM --soft")
    def soft(self, who: str, vm: str) -> None:
        self._wish(who, "vm_delete", {"vm": vm, "soft": True})

    @says(r"(\w+): vm (pause|unpause|suspend|resume|restore) VM")
    def turn(self, who: str, verb: str, vm: str) -> None:
        self._wish(who, f"vm_{verb}", {"vm": vm})

    @says(r"(\w+): vm shelve VM( --offload)?")
    def shelve(self, who: str, vm: str, offload: str | None) -> None:
        self._wish(who, "vm_shelve", {"vm": vm, "offload": offload is not None})

    @says(r"(\w+): vm unshelve VM")
    def unshelve(self, who: str, vm: str) -> None:
        self._wish(who, "vm_unshelve", {"vm": vm})

    @says(r"(\w+): vm resize VM((?: [\w.]+=\S+)+)")
    def resize(self, who: str, vm: str, size: str) -> None:
        asked = {word: _value(value) for word, value in _pairs(size)}
        self._wish(who, "vm_resize", {"vm": vm, **asked})

    @says(r"(\w+): vm (confirm|revert)-resize VM")
    def settle_resize(self, who: str, verb: str, vm: str) -> None:
        self._wish(who, f"vm_{verb}_resize", {"vm": vm})

    @says(r"(\w+): vm set-state VM ([A-Z]+)")
    def set_state(self, who: str, vm: str, state: str) -> None:
        self._wish(who, "vm_set_state", {"vm": vm, "vm_state": state})

    @says(r"(\w+): vm set VM --(protected|unprotected)")
    def protect(self, who: str, vm: str, word: str) -> None:
        self._wish(who, "vm_set", {"vm": vm, "protected": word == "protected"})

    @says(r"(\w+): host (enable|disable|set-down|unset-down|fence|unfence|delete) HOST")
    def host(self, who: str, verb: str, host: str) -> None:
        asked = {"host": host, "operator": who, "reason": f"{who} says so"}
        self._ask(who, f"host_{verb.replace('-', '_')}", asked)

    @says(r"(\w+): host maintenance HOST (on|off)")
    def maintenance(self, who: str, host: str, switch: str) -> None:
        asked = {"host": host, "operator": who, "reason": f"{who} says so", "on": switch == "on"}
        self._ask(who, "host_maintenance", asked)

    @says(r"(\w+): tombstone forget VM at HOST")
    def forget(self, who: str, vm: str, host: str) -> None:
        stone = self._stage.stone_of(vm, host)
        asked = {"tombstone": stone, "operator": who, "reason": f"{who} says so"}
        self._ask(who, "tombstone_forget", asked)

    @says(r"(\w+): cleanup (retry|forget) VM")
    def clean_up(self, who: str, verb: str, vm: str) -> None:
        item = self._stage.item_of(vm)
        asked = {"cleanup": item, "operator": who, "reason": f"{who} says so"}
        self._ask(who, f"cleanup_{verb}", asked)

    @says(r"(\w+): job cancel (job \d+)")
    def cancel(self, who: str, job: str) -> None:
        asked = {"job": self._stage.uuid_of(job), "operator": who, "reason": f"{who} says so"}
        self._ask(who, "job_cancel", asked)

    @says(r"(\w+): (freeze|unfreeze)")
    def switch(self, who: str, verb: str) -> None:
        self._ask(who, verb, {"operator": who, "reason": f"{who} says so"})

    @says(r"(\w+): db accept-restore")
    def accept_restore(self, who: str) -> None:
        self._ask(who, "db_accept_restore", {"operator": who, "reason": f"{who} says so"})

    @says(r"(\w+): the same request again")
    def again(self, _who: str) -> None:
        if self._last is not None:
            self._ask(*self._last)

    def _wish(self, who: str, method: str, asked: dict[str, Any]) -> None:
        job = self._stage.world.new_id()
        self._ask(who, method, {"job": job, "operator": who, "reason": f"{who} wants it", **asked})

    def _ask(self, who: str, method: str, kwargs: dict[str, Any]) -> None:
        self._last = (who, method, kwargs)
        self._stage.operator.spawn(f"{who} {method}", self._until_answered, who, method, kwargs)

    def _until_answered(self, who: str, method: str, kwargs: dict[str, Any]) -> None:
        """As the client does it: the same request, same job uuid, until a manager answers."""
        stage, told = self._stage, False
        for _ in range(TRIES):
            try:
                answer: dict[str, Any] = self._bus.call(ANY_MANAGER, method, kwargs, CALL_S)
            except (NoManager, BrokerUnavailable):
                if not told:
                    stage.tell(f"  {who} gets no answer, and goes on asking")
                told = True
                stage.operator.sleep(ASK_AGAIN_S)
                continue
            except MusterError as exc:
                if exc.code in ("DATABASE_UNAVAILABLE", "CONFLICT"):
                    if not told:
                        stage.tell(f"  {who} is told {exc.code}, and goes on asking")
                    told = True
                    stage.operator.sleep(ASK_AGAIN_S)
                    continue
                stage.tell(f"  {who} is refused: {exc.code}: {exc.message}")
                return
            if {"uuid", "kind"} <= answer.keys():
                where = f" on {answer['host']}" if answer["host"] else ""
                job = f"{answer['kind']} {answer['instance']}{where}, {answer['state']}"
                stage.tell(f"  {who} is given {answer['uuid']}: {job}")
            elif isinstance(row := answer.get("host"), dict):
                stage.tell(f"  {who} is told: {row['name']} is {row['state']}")
            else:
                stage.tell(f"  {who} is told: done")
            return

    # processes

    @says(r"kill (?:agent|manager) PROCESS")
    def kill(self, name: str) -> None:
        self._process(name).kill()

    @says(r"start (?:agent|manager) PROCESS")
    def start(self, name: str) -> None:
        self._process(name).start()

    @says(r"freeze (?:agent|manager) PROCESS")
    def freeze(self, name: str) -> None:
        runtime = self._process(name).runtime
        if runtime is not None:
            runtime.freeze()

    @says(r"thaw (?:agent|manager) PROCESS")
    def thaw(self, name: str) -> None:
        runtime = self._process(name).runtime
        if runtime is not None:
            runtime.thaw()

    @says(r"cut off (?:agent|manager) PROCESS")
    def cut_off(self, name: str) -> None:
        self._process(name).bus.inner.cut = True

    @says(r"reconnect (?:agent|manager) PROCESS")
    def reconnect(self, name: str) -> None:
        self._process(name).bus.inner.cut = False

    @says(r"a second agent calls itself HOST")
    def second_agent(self, host: str) -> None:
        rival = StageAgent(self._stage, f"{host}'")
        rival.rivals_queue = self._stage.broker.servers[AGENT_TOPIC][host]
        self._stage.agents[rival.name] = rival
        rival.start()

    # the broker and the database

    @says(r"broker (away|back)")
    def broker(self, word: str) -> None:
        self._stage.broker.up = word == "back"

    @says(r"broker loses its queues")
    def broker_loses(self) -> None:
        self._stage.broker.lose()

    @says(r"database (away|back)")
    def database(self, word: str) -> None:
        self._stage.chaos.database_away = word == "away"

    @says(r"database (kept aside|rolled back)")
    def backup(self, word: str) -> None:
        if word == "kept aside":
            self._stage.keep_database()
        else:
            self._stage.roll_back_database()

    @says(r"agent PROCESS goes deaf")
    def deaf(self, host: str) -> None:
        self._deaf[host] = self._stage.broker.servers[AGENT_TOPIC].pop(host)

    @says(r"agent PROCESS hears again")
    def hears(self, host: str) -> None:
        self._stage.broker.servers[AGENT_TOPIC][host] = self._deaf.pop(host)

    # hosts, hypervisors and journals

    @says(r"hypervisor HOST (down|up)")
    def hypervisor(self, host: str, word: str) -> None:
        self._hv(host).down = word == "down"

    @says(r"listing of HOST (partial|complete)")
    def listing(self, host: str, word: str) -> None:
        self._hv(host).partial = word == "partial"

    @says(r"host HOST loses power")
    def loses_power(self, host: str) -> None:
        self._process(host).kill()
        self._hv(host).reboot()

    @says(r"journal of HOST (lost|kept aside|rolled back)")
    def journal(self, host: str, word: str) -> None:
        agent = self._stage.agents[host]
        if word == "kept aside":
            agent.disk.keep()
            return
        if agent.alive:
            raise BadScenario(f"{self._scenario.path.name}: kill agent {host} first")
        if word == "lost":
            agent.disk.lose()
        else:
            agent.disk.roll_back()

    # other hands

    @says(r"stranger NAME on HOST")
    def stranger(self, name: str, host: str) -> None:
        guest = self._hv(host).make_stranger(name)
        self._stage.call_it(guest.uuid, f"stranger {name}")

    @says(r"guest NAME of another fleet on HOST, which names VM")
    def of_another_fleet(self, name: str, host: str, vm: str) -> None:
        mark = Mark(fleet="another", instance=self._stage.uuid_of(vm), generation=9, bearer="")
        guest = self._hv(host).make_stranger(name, mark)
        guest.mark = msgspec.structs.replace(mark, bearer=guest.uuid)
        self._stage.call_it(guest.uuid, name)

    @says(r"clone of VM on HOST")
    def clone(self, vm: str, host: str) -> None:
        _, guest = self._guest(vm)
        copy = self._hv(host).make_stranger(f"{vm}-clone", guest.mark)
        self._stage.call_it(copy.uuid, copy.name)

    @says(r"VM is (powered off|started|paused|suspended|crashed) by hand")
    def by_hand(self, vm: str, word: str) -> None:
        hv, guest = self._guest(vm)
        hv.set_power(guest, _POWER[word])

    @says(r"VM is moved by hand to HOST")
    def moved(self, vm: str, host: str) -> None:
        hv, guest = self._guest(vm)
        hv.remove(guest)
        self._put(guest, host)

    @says(r"VM is copied by hand to HOST, uuid and all")
    def copied(self, vm: str, host: str) -> None:
        _, guest = self._guest(vm)
        self._put(guest, host)

    @says(r"VM is taken away by hand")
    def taken(self, vm: str) -> None:
        hv, guest = self._guest(vm)
        hv.remove(guest)
        self._taken[vm] = guest

    @says(r"VM is put back on HOST")
    def put_back(self, vm: str, host: str) -> None:
        self._put(self._taken.pop(vm), host)

    def _put(self, guest: SimGuest, host: str) -> None:
        hv = self._hv(host)
        moved = msgspec.structs.replace(guest, domain_id=hv.next_domain_id(), by_hand=True)
        hv.guests[moved.uuid] = moved
        hv.note("hand", "put here", moved)

    @says(r"memory of HOST is (\d+) MiB")
    def memory(self, host: str, mib: str) -> None:
        self._hv(host).memory_mib = int(mib)

    # traps

    @says(r"the next KEY at HOST is refused: (\w+)")
    def trap_refused(self, what: str, host: str, code: str) -> None:
        self._stage.traps.append(Trap(what, host, "refused", code=code))

    @says(r"the next KEY (?:to|of|at) HOST (is lost|fails|fails after its effect)")
    def trap(self, what: str, host: str, how: str) -> None:
        self._stage.traps.append(Trap(what, host, _HOW[how]))

    @says(r"the next KEY (?:to|of|at) HOST (comes twice|comes late), by ([\d.]+) s")
    def trap_timed(self, what: str, host: str, how: str, seconds: str) -> None:
        self._stage.traps.append(Trap(what, host, _HOW[how], float(seconds)))

    @says(r"the next KEY at HOST (hangs|hangs after its effect) for ([\d.]+) s")
    def trap_hangs(self, what: str, host: str, how: str, seconds: str) -> None:
        self._stage.traps.append(Trap(what, host, _HOW[how], float(seconds)))

    @says(r"the (?:agent|manager) dies (before|after) the next KEY (?:to|of|at) HOST")
    def trap_death(self, side: str, what: str, host: str) -> None:
        self._stage.traps.append(Trap(what, host, side))

    @says(r"the manager dies (before|after) its commit of the next (vm \w+|claim|result)")
    def trap_commit(self, side: str, what: str) -> None:
        self._stage.traps.append(Trap(f"commit of {what}", "", side))

    @says(r"the manager freezes after its commit of the next (vm \w+|claim|result)")
    def trap_freeze(self, what: str) -> None:
        self._stage.traps.append(Trap(f"commit of {what}", "", "freezes"))

    # who is meant

    def _process(self, name: str) -> Process:
        stage = self._stage
        return {process.name: process for process in stage.processes}[name]

    def _hv(self, host: str) -> Hypervisor:
        return self._stage.agents[host].hypervisor

    def _guest(self, vm: str) -> tuple[Hypervisor, SimGuest]:
        for agent in self._stage.agents.values():
            for guest in agent.hypervisor.guests.values():
                if guest.name == vm and not guest.stranger:
                    return agent.hypervisor, guest
        raise KeyError(vm)
