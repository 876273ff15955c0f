"""A VM's volumes, and from where its images in Ceph were open at its start: for a silent host."""

from __future__ import annotations

import re
from typing import Any

from common.messages import Result
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.statements import Query, ask
from manager.store.volumes import Volume

V = Volume.__table__.c
OF = Query(Volume, V.instance == ask("instance"), order=[V.n])
_DISK = re.compile(r"-disk([0-9]{1,3})")


def record(tx: Tx, command: CommandRow, result: Result) -> None:
    """Keep what the agent tells of the disks of the guest that it has started."""
    for seen in result.attached:
        found = _DISK.search(seen.image)
        volume = tx.find(Volume, command.instance, int(found[1])) if found is not None else None
        if volume is None:
            continue
        connector = {
            "host": command.host,
            "pool": seen.pool,
            "image": seen.image,
            "image_id": seen.image_id,
            "addresses": list(seen.addresses),
            "at": tx.now.isoformat(),
        }
        tx.put(volume, connector=connector)


def shown(tx: Tx, instance: str) -> list[dict[str, Any]]:
    """What an operator is told of a VM's volumes."""
    fields = ("n", "kind", "size_gib", "pool", "connector")
    return [{name: getattr(row, name) for name in fields} for row in tx.ask(OF, instance=instance)]
