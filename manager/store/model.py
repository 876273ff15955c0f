"""model: zones, networks, offerings and the other nouns; uses: which of them a VM uses."""

from __future__ import annotations

import datetime as dt
from typing import Any

from common.model import Kind
from manager.store.mapping import Row, table


@table("model", "kind", "name")
class Object(Row, frozen=True, kw_only=True):
    """One noun; `spec` holds the fields of its struct in `common.model`, defaults too."""

    kind: Kind
    name: str
    spec: dict[str, Any]
    created_at: dt.datetime
    changed_at: dt.datetime
    version: int = 0


@table("uses", "kind", "name", "instance", index=(("instance",),))
class Use(Row, frozen=True, kw_only=True):
    """A VM was made from a noun, or lives on it: it stays while the VM does."""

    kind: Kind
    name: str
    instance: str
