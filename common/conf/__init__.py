"""Configuration: one file a group, read once at the start into frozen structs."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from oslo_config import cfg

from common import __version__
from common.conf import (
    agent,
    client,
    database,
    default,
    libvirt,
    manager,
    notifications,
    rbd,
    simulated,
)
from common.errors import BadConfig

GROUPS = (default, database, manager, agent, simulated, libvirt, rbd, client, notifications)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be configured, by group."""

    default: default.Default = default.Default()
    database: database.Database = database.Database()
    manager: manager.Manager = manager.Manager()
    agent: agent.Agent = agent.Agent()
    simulated: simulated.Simulated = simulated.Simulated()
    libvirt: libvirt.Libvirt = libvirt.Libvirt()
    rbd: rbd.Rbd = rbd.Rbd()
    client: client.Client = client.Client()
    notifications: notifications.Notifications = notifications.Notifications()
    config_files: tuple[str, ...] = ()


G = TypeVar("G", bound=msgspec.Struct)


def load(prog: str, argv: Sequence[str] | None = None) -> Settings:
    """The settings from `--config-file F ...` and OS_<GROUP>__<OPTION> of the environment.

    Raises BadConfig naming the option, its range and where the value came from.
    """
    conf = cfg.ConfigOpts()
    for group in GROUPS:
        # oslo.config keeps DEFAULT outside its groups.
        conf.register_opts(group.OPTIONS, group=None if group.GROUP == "DEFAULT" else group.GROUP)
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        conf(args, project="muster", prog=prog, version=__version__)
        return _checked(
            Settings(
                **{g.__name__.rpartition(".")[2]: _group(conf, g) for g in GROUPS},
                config_files=tuple(conf.config_file or ()),
            )
        )
    except cfg.ConfigFilesNotFoundError as exc:
        raise BadConfig(
            f"no such configuration file: {', '.join(exc.config_files)}", "check --config-file"
        ) from exc
    except (cfg.Error, ValueError) as exc:
        # oslo.config names the place of a value in the words of its own insides.
        told = re.sub(r"LocationInfo\(location=<[^>]*>, detail='([^']*)'\)", r"\1", str(exc))
        raise BadConfig(told, _range_of(told)) from exc


def check(settings: Settings) -> Settings:
    """The settings again, if no two of them contradict each other; else BadConfig."""
    return _checked(settings)


def _group(conf: cfg.ConfigOpts, group: Any) -> Any:
    section = conf if group.GROUP == "DEFAULT" else getattr(conf, group.GROUP)
    values = {name: getattr(section, name) for name in group.SETTINGS.__struct_fields__}
    for name, value in values.items():
        # No comparison with NaN is true, so oslo.config lets it through every range.
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"Value for option {name} from [{group.GROUP}] is not valid: nan")
    return group.SETTINGS(**values)


def _range_of(message: str) -> str:
    """What the option named in an oslo.config error may be."""
    for group in GROUPS:
        for option in group.OPTIONS:
            if f" {option.name} " in f" {message} " or f"'{option.name}'" in message:
                low = getattr(option.type, "min", None)
                high = getattr(option.type, "max", None)
                choices = getattr(option.type, "choices", None)
                if choices:
                    return f"[{group.GROUP}] {option.name} is one of {', '.join(choices)}"
                if low is not None or high is not None:
                    return f"[{group.GROUP}] {option.name} is from {low} to {high}"
                return f"[{group.GROUP}] {option.name}: {option.help}"
    return "correct the configuration"


def _checked(settings: Settings) -> Settings:
    interval = settings.default.report_interval
    down = settings.manager.service_down_time
    if down <= 2.5 * interval:
        raise BadConfig(
            f"[manager] service_down_time {down:g} s must exceed 2.5 x [DEFAULT] report_interval"
            f" ({2.5 * interval:g} s)",
            f"set service_down_time above {2.5 * interval:g} or report_interval below"
            f" {down / 2.5:g}",
        )
    return settings


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Every option, for the generator of sample files (entry point oslo.config.opts)."""
    return [(group.GROUP, list(group.OPTIONS)) for group in GROUPS]
