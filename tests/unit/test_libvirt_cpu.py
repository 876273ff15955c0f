"""A guest's weight and cap follow from the speed that its offering promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drivers.libvirt import cpu
from agent.drivers.libvirt.xml import Cpu
from common.messages import GuestSpec


def spec(vcpus: int, mhz: int | None, cap: bool = False) -> GuestSpec:
    return GuestSpec(name="w", vcpus=vcpus, memory_mib=64, cpu_mhz=mhz, cpu_cap=cap)


@pytest.mark.parametrize(("version", "usual"), [(1, 1024), (2, 100)])
def test_a_vcpu_of_the_usual_speed_weighs_what_the_kernel_gives_by_default(
    version: int, usual: int
) -> None:
    assert cpu.tuning(spec(1, 2000), 2600, version=version) == Cpu(usual)
    assert cpu.tuning(spec(2, 4000), 2600, version=version) == Cpu(4 * usual)


def test_a_guest_without_a_speed_has_no_tuning() -> None:
    assert cpu.tuning(spec(4, None), 2600, version=2) is None


def test_a_cap_is_the_share_of_the_hosts_speed_for_each_vcpu() -> None:
    assert cpu.tuning(spec(4, 650, cap=True), 2600, version=2) == Cpu(130, 25_000)
    assert cpu.tuning(spec(1, 100, cap=True), 100_000, version=2) == Cpu(5, 1000)


def test_a_host_that_does_not_tell_its_speed_caps_nothing() -> None:
    assert cpu.tuning(spec(1, 2000, cap=True), 0, version=2) == Cpu(100)


@given(
    vcpus=st.integers(1, 512),
    mhz=st.integers(100, 10_000),
    host_mhz=st.integers(1, 10_000),
    version=st.sampled_from([1, 2]),
)
def test_the_kernel_takes_whatever_comes_of_any_spec(
    vcpus: int, mhz: int, host_mhz: int, version: int
) -> None:
    made = cpu.tuning(spec(vcpus, mhz, cap=True), host_mhz, version=version)
    assert made is not None
    least, most = (2, 262_144) if version == 1 else (1, 10_000)
    assert least <= made.shares <= most
    assert made.quota is not None
    assert made.quota >= 1000
