"""The RPC methods of the managers: parse, find what it is about, call one flow, show the result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from common.conf import Settings
from common.errors import (
    AlreadyDeleted,
    Ambiguous,
    BadRequest,
    MusterError,
    NotFound,
    Refused,
)
from common.model import Kind
from common.since import earliest
from common.states import JobState, VmState
from manager.api import cleanups, doctor, history, holders, larger, model, order, services, views
from manager.api import requests as ask
from manager.flows import (
    attaching,
    cancel,
    delete,
    deploy,
    freeze,
    hosts,
    jobs,
    power,
    quarantine,
    record,
    resize,
    restore,
    shelve,
    snapshots,
    soft,
    unshelve,
)
from manager.flows import model as nouns
from manager.store.engine import Store, Tx
from manager.store.hosts import Host
from manager.store.jobs import Job

Method = Callable[[Tx, Settings, Any], Any]


def vm_create(tx: Tx, cfg: Settings, r: ask.VmCreate) -> Any:
    ordered = order.checked(tx, r)
    if r.dry_run:
        return deploy.foresee(tx, cfg, ordered)
    return views.job(tx, deploy.request(tx, cfg, r.wish("create"), ordered))


def vm_start(tx: Tx, cfg: Settings, r: ask.VmPower) -> Any:
    vm = views.find_vm(tx, r.vm)
    if vm.host is None and not vm.deletion_owed:
        return views.job(tx, deploy.start(tx, cfg, r.wish("start"), vm))
    return _power(tx, cfg, "start", r)


def vm_stop(tx: Tx, cfg: Settings, r: ask.VmPower) -> Any:
    return _power(tx, cfg, "stop", r)


def vm_reboot(tx: Tx, cfg: Settings, r: ask.VmPower) -> Any:
    return _power(tx, cfg, "reboot", r)


def vm_pause(tx: Tx, cfg: Settings, r: ask.VmVerb) -> Any:
    return _power(tx, cfg, "pause", r)


def vm_unpause(tx: Tx, cfg: Settings, r: ask.VmVerb) -> Any:
    return _power(tx, cfg, "unpause", r)


def vm_suspend(tx: Tx, cfg: Settings, r: ask.VmVerb) -> Any:
    return _power(tx, cfg, "suspend", r)


def vm_resume(tx: Tx, cfg: Settings, r: ask.VmVerb) -> Any:
    return _power(tx, cfg, "resume", r)


def vm_shelve(tx: Tx, cfg: Settings, r: ask.VmShelve) -> Any:
    vm = views.find_vm(tx, r.vm)
    return views.job(tx, shelve.request(tx, cfg, r.wish("shelve"), vm, offload=r.offload))


def vm_unshelve(tx: Tx, cfg: Settings, r: ask.VmVerb) -> Any:
    return views.job(tx, unshelve.request(tx, cfg, r.wish("unshelve"), views.find_vm(tx, r.vm)))


def _power(tx: Tx, cfg: Settings, verb: str, r: ask.VmVerb) -> Any:
    vm = views.find_vm(tx, r.vm)
    force = isinstance(r, ask.VmPower) and r.force
    return views.job(tx, power.request(tx, cfg, r.wish(verb), verb, vm, force=force))


def vm_resize(tx: Tx, cfg: Settings, r: ask.VmResize) -> Any:
    vm = views.find_vm(tx, r.vm)
    resize.admit(tx, "resize", vm)
    return views.job(tx, resize.request(tx, cfg, r.wish("resize"), vm, larger.checked(tx, r, vm)))


def vm_confirm_resize(tx: Tx, cfg: Settings, r: ask.VmVerb) -> Any:
    vm = views.find_vm(tx, r.vm)
    return views.job(tx, resize.confirm(tx, cfg, r.wish("confirm-resize"), vm))


def vm_revert_resize(tx: Tx, cfg: Settings, r: ask.VmVerb) -> Any:
    vm = views.find_vm(tx, r.vm)
    return views.job(tx, resize.revert(tx, cfg, r.wish("revert-resize"), vm))


def vm_set_state(tx: Tx, _cfg: Settings, r: ask.VmSetState) -> Any:
    vm = views.find_vm(tx, r.vm, deleted=True)
    return views.job(tx, record.set_state(tx, r.wish("set-state"), vm, VmState(r.vm_state)))


def vm_set(tx: Tx, _cfg: Settings, r: ask.VmSet) -> Any:
    vm = views.find_vm(tx, r.vm, deleted=True)
    return views.job(tx, record.set_protected(tx, r.wish("set"), vm, r.protected))


def vm_delete(tx: Tx, cfg: Settings, r: ask.VmDelete) -> Any:
    if r.force and not r.reason:
        raise BadRequest("reason: --force needs one", "say why in --reason TEXT", field="reason")
    if r.force and r.soft:
        raise BadRequest(
            "soft: --force deletes for good", "say --soft or --force, not both", field="soft"
        )
    vm = views.find_vm(tx, r.vm, deleted=True)
    if r.dry_run:
        foreseen = delete.foresee(tx, cfg, vm, force=r.force, softly=r.soft)
        return {"decisions": msgspec.to_builtins(foreseen)}
    try:
        job = delete.request(tx, cfg, r.wish("delete"), vm, force=r.force, softly=r.soft)
    except AlreadyDeleted:
        # Nothing is written here that would meet another job of this uuid: looked for first.
        if not (r.idempotent and tx.attempt):
            raise
        return views.job(tx, _done_before(tx, r, vm.uuid))
    return views.job(tx, job)


def vm_restore(tx: Tx, _cfg: Settings, r: ask.VmVerb) -> Any:
    vm = views.find_vm(tx, r.vm, deleted=True)
    return views.job(tx, soft.restore_vm(tx, r.wish("restore"), vm))


def _done_before(tx: Tx, r: ask.VmDelete, instance: str) -> Job:
    """The job that deleted it; AlreadyDeleted when that is forgotten, or had given up before."""
    columns = Job.__table__.c
    done = tx.all(
        Job,
        columns.instance == instance,
        columns.kind == "delete",
        columns.state == JobState.SUCCEEDED,
        columns.same_as.is_(None),
        order=[columns.accepted_at.desc()],
        limit=1,
    )
    if not done:
        raise AlreadyDeleted(f"{r.vm} was deleted already", "nothing to do")
    return done[0]


def vm_list(tx: Tx, _cfg: Settings, r: ask.VmList) -> Any:
    if r.host is not None:
        hosts.named(tx, r.host)
    found = views.vms(tx, host=r.host, state=r.state, task_state=r.task_state, stale=r.stale)
    return {"vms": found, "notices": views.notices(tx)}


def vm_show(tx: Tx, _cfg: Settings, r: ask.VmShow) -> Any:
    vm = views.find_vm(tx, r.vm, deleted=True)
    host = tx.find(Host, vm.host) if vm.host else None
    told = {
        "snapshot": snapshots.shown(vm),
        "offload_at": vm.offload_at,
        "resize": resize.shown(vm),
        "volumes": attaching.shown(tx, vm.uuid),
        "spec": vm.spec,
    }
    return {**views.vm(tx, vm, host), **told}


def vm_history(tx: Tx, _cfg: Settings, r: ask.VmHistory) -> Any:
    since = earliest(r.since, tx.now) if r.since is not None else None
    return history.of_vm(tx, views.find_vm(tx, r.vm, deleted=True), since, r.limit)


def host_history(tx: Tx, _cfg: Settings, r: ask.HostHistory) -> Any:
    since = earliest(r.since, tx.now) if r.since is not None else None
    return history.of_host(tx, hosts.named(tx, r.host), since, r.limit)


def event_list(tx: Tx, _cfg: Settings, r: ask.EventList) -> Any:
    return history.events(tx, r.object, r.kind, r.limit)


def host_list(tx: Tx, _cfg: Settings, _r: ask.Nothing) -> Any:
    return {"hosts": views.hosts(tx), "notices": views.notices(tx)}


def host_show(tx: Tx, _cfg: Settings, r: ask.HostShow) -> Any:
    return _host(tx, hosts.named(tx, r.host))


def _host(tx: Tx, row: Host) -> dict[str, Any]:
    return views.host(tx, row, hosts.counts(tx).get(row.name, {}))


def host_enable(tx: Tx, _cfg: Settings, r: ask.HostChange) -> Any:
    return _set_enabled(tx, r, enabled=True)


def host_disable(tx: Tx, _cfg: Settings, r: ask.HostChange) -> Any:
    return _set_enabled(tx, r, enabled=False)


def _set_enabled(tx: Tx, r: ask.HostChange, *, enabled: bool) -> Any:
    if r.dry_run:  # it decides nothing about the VMs that are there
        return {"host": _host(tx, hosts.named(tx, r.host)), "decisions": []}
    row = hosts.set_enabled(tx, r.host, enabled, r.operator, r.reason)
    return {"host": _host(tx, row), "decisions": []}


def host_set_down(tx: Tx, cfg: Settings, r: ask.HostChange) -> Any:
    return _set_down(tx, cfg, r, down=True)


def host_unset_down(tx: Tx, cfg: Settings, r: ask.HostChange) -> Any:
    return _set_down(tx, cfg, r, down=False)


def _set_down(tx: Tx, cfg: Settings, r: ask.HostChange, *, down: bool) -> Any:
    if down:
        _reason(r, "set-down")
    foreseen = msgspec.to_builtins(hosts.foresee_down(tx, r.host, down))
    if r.dry_run:
        return {"host": _host(tx, hosts.named(tx, r.host)), "decisions": foreseen}
    row = hosts.set_down(tx, cfg, r.host, down, r.operator, r.reason)
    return {"host": _host(tx, row), "decisions": foreseen}


def host_maintenance(tx: Tx, _cfg: Settings, r: ask.HostMaintenance) -> Any:
    if r.dry_run:
        return {"host": _host(tx, hosts.named(tx, r.host)), "decisions": []}
    row = hosts.set_maintenance(tx, r.host, r.on, r.operator, r.reason)
    return {"host": _host(tx, row), "decisions": []}


def host_fence(tx: Tx, cfg: Settings, r: ask.HostChange) -> Any:
    reason = _reason(r, "fence")
    foreseen = msgspec.to_builtins(hosts.foresee_fence(tx, cfg, r.host, True))
    if r.dry_run:
        return {"host": _host(tx, hosts.named(tx, r.host)), "decisions": foreseen}
    row = hosts.fence(tx, cfg, r.host, r.operator, reason)
    return {"host": _host(tx, row), "decisions": foreseen}


def host_unfence(tx: Tx, cfg: Settings, r: ask.HostChange) -> Any:
    foreseen = msgspec.to_builtins(hosts.foresee_fence(tx, cfg, r.host, False))
    if r.dry_run:
        return {"host": _host(tx, hosts.named(tx, r.host)), "decisions": foreseen}
    row = hosts.unfence(tx, cfg, r.host, r.operator, r.reason)
    return {"host": _host(tx, row), "decisions": foreseen}


def host_delete(tx: Tx, cfg: Settings, r: ask.HostChange) -> Any:
    reason = _reason(r, "delete")
    shown = _host(tx, hosts.named(tx, r.host))
    foreseen = msgspec.to_builtins(hosts.foresee_removal(tx, cfg, r.host))
    if not r.dry_run:
        hosts.remove(tx, cfg, r.host, r.operator, reason)
    return {"host": shown, "decisions": foreseen}


def _reason(r: ask.HostChange, verb: str) -> str:
    if not r.reason:
        raise BadRequest(f"reason: {verb} needs one", "say why in --reason TEXT", field="reason")
    return r.reason


def job_list(tx: Tx, _cfg: Settings, r: ask.JobList) -> Any:
    return {"jobs": views.jobs(tx, everything=r.all), "notices": views.notices(tx)}


def job_show(tx: Tx, _cfg: Settings, r: ask.JobShow) -> Any:
    job = tx.find(Job, r.job)
    if job is None:
        raise NotFound(f"no job {r.job}", "muster job list --all shows all")
    return views.job_whole(tx, jobs.resolve(tx, job))


def job_cancel(tx: Tx, cfg: Settings, r: ask.JobCancel) -> Any:
    return views.job(tx, cancel.cancel(tx, cfg, r.job, r.operator, r.reason))


def freeze_(tx: Tx, _cfg: Settings, r: ask.Freeze) -> Any:
    frozen = freeze.begin(tx, r.operator, r.reason)
    return {"frozen": True, **msgspec.to_builtins(frozen)}


def unfreeze(tx: Tx, _cfg: Settings, r: ask.Unfreeze) -> Any:
    freeze.end(tx, r.operator, r.reason)
    return {"frozen": False}


def db_accept_restore(tx: Tx, cfg: Settings, r: ask.AcceptRestore) -> Any:
    done = restore.accept(tx, r.operator, r.reason)
    soft.after_restore(tx, cfg, done["raised"])
    shelve.after_restore(tx)
    alive = {stone.uuid for stone in done["tombstones"]}
    stones = [t for t in views.tombstones(tx, "OPEN") if t["uuid"] in alive]
    return {**done, "tombstones": stones}


def alien_list(tx: Tx, _cfg: Settings, r: ask.AlienList) -> Any:
    if r.host is not None:
        hosts.named(tx, r.host)
    return {"aliens": views.aliens(tx, r.host), "notices": views.notices(tx)}


def tombstone_list(tx: Tx, _cfg: Settings, r: ask.TombstoneList) -> Any:
    return {"tombstones": views.tombstones(tx, r.state), "notices": views.notices(tx)}


def tombstone_show(tx: Tx, _cfg: Settings, r: ask.TombstoneShow) -> Any:
    return views.tombstone_whole(tx, quarantine.named(tx, r.tombstone))


def tombstone_forget(tx: Tx, cfg: Settings, r: ask.TombstoneForget) -> Any:
    stone = quarantine.named(tx, r.tombstone)
    return views.tombstone(tx, quarantine.forget(tx, cfg, stone, r.operator, r.reason))


def address_list(tx: Tx, _cfg: Settings, r: ask.AddressList) -> Any:
    if r.network is not None:
        nouns.named(tx, Kind.NETWORK, r.network)
    vm = views.find_vm(tx, r.vm, deleted=True) if r.vm is not None else None
    held = holders.addresses(tx, network=r.network, instance=vm.uuid if vm else None)
    return {"addresses": held, "notices": views.notices(tx)}


def service_list(tx: Tx, cfg: Settings, _r: ask.Nothing) -> Any:
    return {"services": services.services(tx, cfg), "notices": views.notices(tx)}


def doctor_(tx: Tx, cfg: Settings, _r: ask.Nothing) -> Any:
    return {"findings": doctor.findings(tx, cfg)}


METHODS: dict[str, tuple[type[ask.Request], Method]] = {
    "vm_create": (ask.VmCreate, vm_create),
    "vm_start": (ask.VmPower, vm_start),
    "vm_stop": (ask.VmPower, vm_stop),
    "vm_reboot": (ask.VmPower, vm_reboot),
    "vm_pause": (ask.VmVerb, vm_pause),
    "vm_unpause": (ask.VmVerb, vm_unpause),
    "vm_suspend": (ask.VmVerb, vm_suspend),
    "vm_resume": (ask.VmVerb, vm_resume),
    "vm_shelve": (ask.VmShelve, vm_shelve),
    "vm_unshelve": (ask.VmVerb, vm_unshelve),
    "vm_resize": (ask.VmResize, vm_resize),
    "vm_confirm_resize": (ask.VmVerb, vm_confirm_resize),
    "vm_revert_resize": (ask.VmVerb, vm_revert_resize),
    "vm_set_state": (ask.VmSetState, vm_set_state),
    "vm_set": (ask.VmSet, vm_set),
    "vm_delete": (ask.VmDelete, vm_delete),
    "vm_restore": (ask.VmVerb, vm_restore),
    "vm_list": (ask.VmList, vm_list),
    "vm_show": (ask.VmShow, vm_show),
    "vm_history": (ask.VmHistory, vm_history),
    "host_history": (ask.HostHistory, host_history),
    "event_list": (ask.EventList, event_list),
    "host_list": (ask.Nothing, host_list),
    "host_show": (ask.HostShow, host_show),
    "host_enable": (ask.HostChange, host_enable),
    "host_disable": (ask.HostChange, host_disable),
    "host_set_down": (ask.HostChange, host_set_down),
    "host_unset_down": (ask.HostChange, host_unset_down),
    "host_maintenance": (ask.HostMaintenance, host_maintenance),
    "host_fence": (ask.HostChange, host_fence),
    "host_unfence": (ask.HostChange, host_unfence),
    "host_delete": (ask.HostChange, host_delete),
    "job_list": (ask.JobList, job_list),
    "job_show": (ask.JobShow, job_show),
    "job_cancel": (ask.JobCancel, job_cancel),
    "freeze": (ask.Freeze, freeze_),
    "unfreeze": (ask.Unfreeze, unfreeze),
    "db_accept_restore": (ask.AcceptRestore, db_accept_restore),
    "alien_list": (ask.AlienList, alien_list),
    "tombstone_list": (ask.TombstoneList, tombstone_list),
    "tombstone_show": (ask.TombstoneShow, tombstone_show),
    "tombstone_forget": (ask.TombstoneForget, tombstone_forget),
    "address_list": (ask.AddressList, address_list),
    "service_list": (ask.Nothing, service_list),
    "doctor": (ask.Nothing, doctor_),
    **cleanups.METHODS,
    **model.METHODS,
}


# The methods that an operator's client may repeat under the same job uuid.
WISHES = {
    "vm_create": "create",
    "vm_start": "start",
    "vm_stop": "stop",
    "vm_reboot": "reboot",
    "vm_pause": "pause",
    "vm_unpause": "unpause",
    "vm_suspend": "suspend",
    "vm_resume": "resume",
    "vm_shelve": "shelve",
    "vm_unshelve": "unshelve",
    "vm_resize": "resize",
    "vm_confirm_resize": "confirm-resize",
    "vm_revert_resize": "revert-resize",
    "vm_set_state": "set-state",
    "vm_set": "set",
    "vm_delete": "delete",
    "vm_restore": "restore",
}


class Api:
    """The operators' methods over one store."""

    def __init__(self, store: Store, cfg: Settings) -> None:
        self._store, self._cfg = store, cfg

    def __call__(self, method: str, kwargs: dict[str, Any]) -> Any:
        if method in WISHES:
            return self._accept(_wished(method, kwargs))
        if method == "wishes":
            return {"answers": self._accept_all(ask.parse(ask.Wishes, kwargs))}
        found = METHODS.get(method)
        if found is None:
            raise BadRequest(f"this manager has no method {method}", "upgrade the managers first")
        kind, handler = found
        request = ask.parse(kind, kwargs)
        return msgspec.to_builtins(self._store.run(handler, self._cfg, request))

    def _accept(self, wished: Wished) -> Any:
        try:
            answer = self._store.run(_granted, self._cfg, wished)
        except (Refused, NotFound, AlreadyDeleted, Ambiguous, BadRequest):
            # What it is refused for may be its own doing, if an earlier copy of it was accepted,
            # and what that one named may be gone.
            answer = self._store.run(_granted, self._cfg, wished, attempt=1)
        return msgspec.to_builtins(answer)

    def _accept_all(self, asked: ask.Wishes) -> list[dict[str, Any]]:
        """In one transaction if none of them is refused, else each in its own.

        Either way each has its own answer or error, as if they had been asked one after the other.
        """
        with contextlib.suppress(Refused, NotFound, AlreadyDeleted, Ambiguous, BadRequest):
            wished = [_wished(method, kwargs) for method, kwargs in asked.wishes]
            answers = self._store.run(_all_granted, self._cfg, wished)
            return [{"answer": msgspec.to_builtins(answer)} for answer in answers]
        return [self._answer(method, kwargs) for method, kwargs in asked.wishes]

    def _answer(self, method: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"answer": self._accept(_wished(method, kwargs))}
        except MusterError as exc:
            # Whatever it is: those before it may have been accepted, and must be told.
            return {"error": exc.to_wire()}


class Wished(msgspec.Struct, frozen=True):
    """A request for a job, parsed."""

    verb: str
    handler: Method
    request: ask.Change


def _wished(method: str, kwargs: dict[str, Any]) -> Wished:
    if method not in WISHES:
        raise BadRequest(f"{method} asks for no job", f"one of: {', '.join(sorted(WISHES))}")
    kind, handler = METHODS[method]
    request = ask.parse(kind, kwargs)
    if not isinstance(request, ask.Change):
        raise AssertionError(f"{method} is a wish and not a change")
    return Wished(WISHES[method], handler, request)


def _granted(tx: Tx, cfg: Settings, wished: Wished) -> Any:
    known = jobs.known(tx, wished.request.wish(wished.verb))
    return wished.handler(tx, cfg, wished.request) if known is None else views.job(tx, known)


def _all_granted(tx: Tx, cfg: Settings, wished: list[Wished]) -> list[Any]:
    named = [getattr(each.request, "vm", None) for each in wished]
    views.look_up_vms(tx, [name for name in named if name])
    return [_granted(tx, cfg, each) for each in wished]
