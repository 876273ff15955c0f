"""Keys of Ceph as libvirt keeps them for its guests: in memory only, and told to QEMU alone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

import libvirt

from agent.drivers.libvirt.rbd import Images


def ensure(conn: Any, images: Images, monitors: Sequence[str]) -> None:
    """Have libvirt's secret for a cluster, with the key of today; it is gone with libvirtd."""
    wanted = images.secret(monitors)
    try:
        secret = conn.secretLookupByUUIDString(wanted)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
            raise
        usage = escape(f"muster client.{images.user} {','.join(sorted(monitors))}")
        secret = conn.secretDefineXML(
            f"<secret ephemeral='yes' private='yes'><uuid>{wanted}</uuid>"
            f"<usage type='ceph'><name>{usage}</name></usage></secret>"
        )
    secret.setValue(base64.b64decode(images.key()))
