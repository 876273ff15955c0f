"""What is asked of and done to one libvirt domain.

These run within a call of the connection, which makes libvirt's errors ours.
"""

from __future__ import annotations

import logging
from typing import Any

import libvirt

from agent.drivers.base import OwnedGuest
from agent.drivers.libvirt import xml
from common.errors import HypervisorError, NotOurs, StaleCommand
from common.messages import GuestReport
from common.ownership import Mark, why_not_ours
from common.states import PowerState

LOG = logging.getLogger(__name__)

_ON = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED)
# Everything that belongs to a domain goes with it; the mock driver knows the first two.
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)
_UNDEFINE_ALL = (
    _UNDEFINE | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


def read(domain: Any) -> GuestReport:
    """A domain as libvirtd knows it, without a word to the guest's monitor."""
    definition = domain.XMLDesc()
    number = domain.state()[0]
    if number == libvirt.VIR_DOMAIN_SHUTOFF and domain.hasManagedSaveImage():
        return xml.report(definition, PowerState.SUSPENDED)
    known = number <= PowerState.SUSPENDED
    return xml.report(definition, PowerState(number) if known else PowerState.NOSTATE)


def ours(conn: Any, guest: OwnedGuest) -> Any:
    """The domain, looked up and read this moment; NotOurs, or StaleCommand, when not for us."""
    return marked(conn, guest.hypervisor_uuid, guest.mark)


def marked(conn: Any, uuid: str, mark: Mark) -> Any:
    domain = conn.lookupByUUIDString(uuid)
    seen = read(domain)
    why = why_not_ours(seen.mark, fleet=mark.fleet, hypervisor_uuid=seen.hypervisor_uuid)
    if not why and seen.mark is not None and seen.mark.instance != mark.instance:
        why = f"it is instance {seen.mark.instance} now"
    if why or seen.mark is None:
        raise NotOurs(f"guest {seen.name} ({uuid}) is not touched: {why}", "adopt it first")
    if seen.mark.generation > mark.generation:
        # A call that was given up for lost, and goes on when a later command has had its effect.
        raise StaleCommand(
            f"guest {seen.name} is at generation {seen.mark.generation}, this is {mark.generation}",
            "a later command has taken over",
            floor=seen.mark.generation,
        )
    return domain


def write_mark(domain: Any, mark: Mark) -> None:
    for last in (False, True):
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
        try:
            domain.setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                xml.mark_element(mark),
                xml.MARK_PREFIX,
                xml.MARK_URI,
                flags,
            )
            return
        except libvirt.libvirtError as exc:
            # It was started or stopped between the question and the call.
            if last or exc.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                raise


def run(domain: Any, mark: Mark) -> None:
    state = domain.state()[0]
    if state in _ON:
        return
    if state == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
        return
    if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
        domain.pMWakeup()
        return
    if domain.isActive():
        domain.destroy()  # crashed and kept, or switched off and not yet put away
    saved = domain.hasManagedSaveImage()
    try:
        _power_on(domain)
    except libvirt.libvirtError:
        if not domain.isActive():
            raise
    if saved:
        # The saved memory came with the metadata of the day it was saved.
        write_mark(domain, mark)


def _power_on(domain: Any) -> None:
    try:
        domain.create()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_CONFIG_UNSUPPORTED:
            raise
        definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        plain = xml.without_cpu_tuning(definition)
        if plain is None:
            raise
        # In a container, or where another daemon has the cgroups.
        LOG.warning(
            "guest %s has neither CPU weight nor cap: libvirtd has no use of cgroups here (%s)",
            domain.name(),
            exc.get_error_message(),
        )
        domain.connect().defineXML(plain)
        domain.create()


def pause(domain: Any) -> None:
    """Its processors stand still; HypervisorError unless it runs."""
    state = domain.state()[0]
    if state == libvirt.VIR_DOMAIN_PAUSED:
        return
    _must_be(domain, state in _ON, "it does not run")
    domain.suspend()


def unpause(domain: Any) -> None:
    """It runs; HypervisorError unless it was paused."""
    state = domain.state()[0]
    if state in _ON:
        return
    _must_be(domain, state == libvirt.VIR_DOMAIN_PAUSED, "it is not paused")
    domain.resume()


def save(domain: Any) -> None:
    """Off, with its memory in libvirt's managed-save image; it will run when that is restored."""
    if domain.isActive():
        domain.managedSave(libvirt.VIR_DOMAIN_SAVE_RUNNING)
    _must_be(domain, domain.hasManagedSaveImage(), "it is off and has no saved memory")


def restore(domain: Any, mark: Mark) -> None:
    """It runs on where it was saved; HypervisorError rather than boot it."""
    state = domain.state()[0]
    saved = domain.hasManagedSaveImage()
    woken = state == libvirt.VIR_DOMAIN_PMSUSPENDED
    _must_be(domain, saved or woken or state in _ON, "it has no saved memory")
    if saved and state not in _ON:
        _look_into_image(domain)
    run(domain, mark)


def _look_into_image(domain: Any) -> None:
    """libvirt drops an image that it can not read, and boots the guest instead."""
    try:
        domain.managedSaveGetXMLDesc()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # the mock driver
            raise


def _must_be(domain: Any, so: bool, otherwise: str) -> None:
    if not so:
        raise HypervisorError(f"guest {domain.name()}: {otherwise}", "muster vm show")


def pull(domain: Any) -> None:
    """Off, now; memory that was saved is given up like memory that was not."""
    try:
        if domain.isActive():
            domain.destroy()
    except libvirt.libvirtError:
        if domain.isActive():
            raise
    if domain.hasManagedSaveImage():
        domain.managedSaveRemove()


def undefine(domain: Any) -> None:
    try:
        domain.undefineFlags(_UNDEFINE_ALL)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
            raise
        domain.undefineFlags(_UNDEFINE)
