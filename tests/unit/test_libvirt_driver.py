"""Without its Python module the libvirt driver is a matter of configuration, not a traceback."""

from __future__ import annotations

import sys

import pytest

from agent.drivers.libvirt.driver import create
from common.conf import Settings
from common.errors import BadConfig
from common.runtime import Runtime


def test_a_missing_module_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("agent.drivers.libvirt.hypervisor", "agent.drivers.libvirt.connection"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(BadConfig, match=r"pip install musterd\[libvirt\]"):
        create("host-1", Settings(), Runtime())
