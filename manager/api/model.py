"""What operators ask about the nouns of the model: zones, networks, offerings and the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from common.conf import Settings
from common.fields import plain
from common.model import Kind
from manager.api import views
from manager.api.requests import NameOrId, Request, Text
from manager.flows import apply, limits, model
from manager.store.engine import Tx
from manager.store.model import Object


class ModelList(Request, frozen=True, kw_only=True):
    kind: Kind


class ModelShow(ModelList, frozen=True, kw_only=True):
    name: NameOrId


class _Asked(Request, frozen=True, kw_only=True):
    """`request` is the client's: the same one when it asks again because no answer came."""

    operator: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "unknown"
    reason: Text | None = None
    request: Text | None = None

    def who(self) -> apply.Who:
        return apply.Who(self.operator, self.reason, self.request)


class ModelChange(_Asked, frozen=True, kw_only=True):
    kind: Kind
    name: NameOrId
    fields: dict[str, Any]


class ModelDelete(_Asked, frozen=True, kw_only=True):
    kind: Kind
    name: NameOrId


class ModelApply(_Asked, frozen=True, kw_only=True):
    objects: dict[str, Any]
    dry_run: bool = False


class QuotaShow(Request, frozen=True, kw_only=True):
    project: NameOrId = model.DEFAULT_PROJECT


def model_list(tx: Tx, _cfg: Settings, r: ModelList) -> Any:
    rows = tx.ask(model.OF_KIND, kind=r.kind)
    return {"objects": [_shown(row) for row in rows], "notices": views.frozen(tx)}


def model_show(tx: Tx, _cfg: Settings, r: ModelShow) -> Any:
    noun = model.named(tx, r.kind, r.name)
    row = tx.find(Object, r.kind, r.name)
    if row is None:
        return {"name": r.name, **plain(noun), "created_at": None}
    return {**_shown(row), "changed_at": row.changed_at}


def model_create(tx: Tx, _cfg: Settings, r: ModelChange) -> Any:
    made = apply.create(tx, r.kind, r.name, r.fields, r.who())
    return _answer(tx, made)


def model_set(tx: Tx, _cfg: Settings, r: ModelChange) -> Any:
    made = apply.change(tx, r.kind, r.name, r.fields, r.who())
    return _answer(tx, made)


def model_delete(tx: Tx, _cfg: Settings, r: ModelDelete) -> Any:
    apply.delete(tx, r.kind, r.name, r.who())
    return {"kind": r.kind, "name": r.name, "action": "delete"}


def model_apply(tx: Tx, _cfg: Settings, r: ModelApply) -> Any:
    return {"objects": apply.apply(tx, r.objects, r.who(), dry_run=r.dry_run)}


def quota_show(tx: Tx, _cfg: Settings, r: QuotaShow) -> Any:
    project = model.named(tx, Kind.PROJECT, r.project)
    used = limits.usage(tx, r.project)
    return {
        "project": r.project,
        "quota": [
            {"resource": resource, "used": used[resource], "limit": getattr(project, resource)}
            for resource in limits.RESOURCES
        ],
    }


def _answer(tx: Tx, made: apply.Made) -> dict[str, Any]:
    """What became of it, and the noun as it is now."""
    row = tx.get(Object, made.kind, made.name)
    return {"action": made.action, "changes": made.changes, "object": _shown(row)}


def _shown(row: Object) -> dict[str, Any]:
    # Read and written again, so that a field of a newer release is there too.
    return {"name": row.name, **plain(model.noun(row)), "created_at": row.created_at}


METHODS: dict[str, tuple[type[Request], Callable[[Tx, Settings, Any], Any]]] = {
    "model_list": (ModelList, model_list),
    "model_show": (ModelShow, model_show),
    "model_create": (ModelChange, model_create),
    "model_set": (ModelChange, model_set),
    "model_delete": (ModelDelete, model_delete),
    "model_apply": (ModelApply, model_apply),
    "quota_show": (QuotaShow, quota_show),
}
