"""From a request for another size to what the VM is to be, checked as a create is checked.

Every field that is wrong is told in one answer.
"""

from __future__ import annotations

import msgspec

from common import fields, model
from common.model import Kind
from manager.api.requests import VmResize
from manager.flows import model as nouns
from manager.flows import resize
from manager.rules import offering as rule
from manager.store.engine import Tx
from manager.store.instances import Instance, Shape


def checked(tx: Tx, r: VmResize, vm: Instance) -> Shape:
    """What the VM is to be; BadRequest with every problem."""
    old = resize.shape(tx, vm)
    offering: model.Offering | None = None
    if r.offering is not None:
        offering = nouns.find(tx, Kind.OFFERING, r.offering)
        if offering is None:
            said, remedy = f"no offering {r.offering}", "muster offering list shows all"
            raise fields.refused([("offering", said, remedy)])
    elif (r.vcpus, r.memory_mib, r.root_gib) == (None, None, None):
        said = "nothing is asked for"
        raise fields.refused([("offering", said, "it, or vcpus, memory_mib or root_gib")])
    had = rule.Size(old.vcpus, old.memory_mib, old.root_gib)
    template = resize.template(tx, vm)
    size, problems = rule.resized(had, offering, r.vcpus, r.memory_mib, r.root_gib, template)
    if size is None:
        raise fields.refused(problems)
    spec = msgspec.json.decode(msgspec.json.encode(old.spec))
    spec |= {"vcpus": size.vcpus, "memory_mib": size.memory_mib}
    wishes, name = old.wishes, old.offering
    if offering is not None:
        name = r.offering
        spec |= {"cpu_mhz": offering.cpu_mhz, "cpu_cap": offering.cpu_cap}
        wishes = msgspec.structs.replace(
            wishes,
            host_tags=offering.host_tags,
            cpu_overcommit=offering.cpu_overcommit,
            memory_overcommit=offering.memory_overcommit,
        )
    elif (size.vcpus, size.memory_mib) != (old.vcpus, old.memory_mib):
        name = None  # a size of its own
    if size.root_gib is not None:
        spec["disks"][0]["size_gib"] = size.root_gib
        disks = tuple(
            msgspec.structs.replace(disk, size_gib=size.root_gib) if disk.n == 0 else disk
            for disk in wishes.disks
        )
        wishes = msgspec.structs.replace(wishes, disks=disks)
    return Shape(spec=spec, wishes=wishes, offering=name)
