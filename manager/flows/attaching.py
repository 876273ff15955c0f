"""From where images in Ceph are open: kept at a guest's start, for the day its host is silent."""

from __future__ import annotations

import re

from common.messages import Result
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.volumes import Volume

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
