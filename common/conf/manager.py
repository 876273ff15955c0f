"""[manager]: judgement, deadlines and retries."""

import msgspec
from oslo_config import cfg

GROUP = "manager"

OPTIONS = [
    cfg.FloatOpt(
        "service_down_time",
        default=60.0,
        min=0.5,
        max=86400.0,
        help="Seconds of silence after which a host is DOWN. Must exceed 2.5 x report_interval.",
    ),
    cfg.FloatOpt(
        "silence_budget",
        default=1 / 3,
        min=0.0,
        max=1.0,
        help="The share of enabled hosts that may fall silent before the managers doubt"
        " themselves and suspend DB-only deletes (mass silence).",
    ),
    cfg.FloatOpt(
        "resend_after",
        default=5.0,
        min=0.1,
        max=3600.0,
        help="Seconds without a receipt after which a command is cast again, under the same id.",
    ),
    cfg.FloatOpt(
        "canary_interval",
        default=30.0,
        min=0.0,
        max=3600.0,
        help="Seconds between two canaries, commands without effect that prove that a host's agent"
        " can be told something; 0 sends none. One unanswered for longer than this and than 3 x"
        " resend_after makes the host SUSPECT.",
    ),
    cfg.FloatOpt(
        "command_timeout",
        default=120.0,
        min=1.0,
        max=86400.0,
        help="Seconds that a command may take before it is voided.",
    ),
    cfg.FloatOpt(
        "create_timeout",
        default=600.0,
        min=1.0,
        max=86400.0,
        help="As command_timeout, for the first start of a VM whose template or disks have to be"
        " fetched or made, for suspend and resume, which move its memory, for shelve and"
        " resize, which copy its disks, and for what removes images in Ceph.",
    ),
    cfg.IntOpt(
        "start_retries",
        default=10,
        min=0,
        max=100,
        help="How many more hosts are tried for a new VM when the first refuses it.",
    ),
    cfg.StrOpt(
        "placement_order",
        default="spread",
        choices=["first_fit", "spread", "spread_by_project", "pack"],
        help="Which of the hosts that fit takes a new VM: the first by name, the one with the most"
        " free memory, the one with the fewest VMs of the project, or the fullest that fits.",
    ),
    cfg.FloatOpt(
        "delete_timeout",
        default=600.0,
        min=1.0,
        max=86400.0,
        help="Seconds that a remote delete is tried before its job fails and the VM is owed a"
        " deletion, which goes on in the background.",
    ),
    cfg.FloatOpt(
        "shelved_offload_time",
        default=0.0,
        min=-1.0,
        max=31_536_000.0,
        help="Seconds after which the guest of a shelved VM leaves its host, its snapshot apart; 0:"
        " at once, -1: never by itself.",
    ),
    cfg.FloatOpt(
        "resize_confirm_window",
        default=0.0,
        min=0.0,
        max=31_536_000.0,
        help="Seconds after which a resize that nobody has confirmed or reverted is confirmed; 0,"
        " never.",
    ),
    cfg.FloatOpt(
        "reclaim_interval",
        default=0.0,
        min=0.0,
        max=31_536_000.0,
        help="Seconds that a deleted VM can be restored: above 0 every delete without --force is"
        " soft, and the VM is deleted for good only after this time; at 0 only one with --soft.",
    ),
    cfg.FloatOpt(
        "soft_delete_keep",
        default=604_800.0,
        min=1.0,
        max=31_536_000.0,
        help="As reclaim_interval, for VMs that were deleted with --soft while that is 0.",
    ),
    cfg.FloatOpt(
        "retention",
        default=86400.0,
        min=0.0,
        max=31_536_000.0,
        help="Seconds that a deleted VM is remembered by its name.",
    ),
    cfg.FloatOpt(
        "missing_grace",
        default=30.0,
        min=0.0,
        max=86400.0,
        help="Seconds that a VM must be absent from complete reports to be flagged missing.",
    ),
    cfg.StrOpt(
        "on_unexpected_running",
        default="accept",
        choices=["accept", "stop"],
        help="What to do with a guest that runs although it was stopped here.",
    ),
    cfg.StrOpt(
        "mac_prefix",
        default="0a:4d:75",
        regex=r"^[0-9a-f][26ae]:[0-9a-f]{2}:[0-9a-f]{2}$",
        help="The first three bytes of the fleet's MAC range; locally administered, unicast.",
    ),
    cfg.BoolOpt(
        "auto_enable_hosts",
        default=False,
        help="Enable a host at its first hello (for demos and devstack).",
    ),
    cfg.FloatOpt(
        "tick_interval",
        default=1.0,
        min=0.05,
        max=60.0,
        help="Seconds between two rounds of liveness, deadlines and retries.",
    ),
]


class Manager(msgspec.Struct, frozen=True, kw_only=True):
    """The values of [manager]; times are seconds."""

    service_down_time: float = 60.0
    silence_budget: float = 1 / 3
    resend_after: float = 5.0
    canary_interval: float = 30.0
    command_timeout: float = 120.0
    create_timeout: float = 600.0
    start_retries: int = 10
    placement_order: str = "spread"
    delete_timeout: float = 600.0
    shelved_offload_time: float = 0.0
    resize_confirm_window: float = 0.0
    reclaim_interval: float = 0.0
    soft_delete_keep: float = 604_800.0
    retention: float = 86400.0
    missing_grace: float = 30.0
    on_unexpected_running: str = "accept"
    mac_prefix: str = "0a:4d:75"
    auto_enable_hosts: bool = False
    tick_interval: float = 1.0


SETTINGS = Manager
