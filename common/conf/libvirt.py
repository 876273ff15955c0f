"""[libvirt]: QEMU and KVM guests, and libvirt's mock driver."""

import msgspec
from oslo_config import cfg

GROUP = "libvirt"

OPTIONS = [
    cfg.StrOpt(
        "connection_uri",
        default="qemu:///system",
        help="The libvirt connection: qemu:///system, or test+unix:///default for the mock.",
    ),
    cfg.StrOpt(
        "virt_type",
        default="auto",
        choices=["auto", "kvm", "qemu"],
        help="kvm, qemu (software emulation), or auto: boot a small guest under KVM once and"
        " see. A device file proves nothing.",
    ),
    cfg.StrOpt(
        "instances_path",
        default="/var/lib/muster/instances",
        help="Where disks and serial logs of guests are kept, a folder for each instance.",
    ),
    cfg.FloatOpt(
        "stop_timeout",
        default=30.0,
        min=0.0,
        max=3600.0,
        help="Seconds that a guest gets to shut down or reboot by itself before it is forced.",
    ),
    cfg.IntOpt(
        "keepalive_interval",
        default=5,
        min=1,
        max=3600,
        help="Seconds between keepalive probes to libvirtd.",
    ),
]


class Libvirt(msgspec.Struct, frozen=True, kw_only=True):
    """The values of [libvirt]; times are seconds."""

    connection_uri: str = "qemu:///system"
    virt_type: str = "auto"
    instances_path: str = "/var/lib/muster/instances"
    stop_timeout: float = 30.0
    keepalive_interval: int = 5


SETTINGS = Libvirt
