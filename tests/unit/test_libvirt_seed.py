"""A guest's seed tells it its name, its addresses, and whom to let in."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

pycdlib = pytest.importorskip("pycdlib")

from agent.drivers.libvirt import seed
from common.messages import GuestSpec, NicSpec

INSTANCE = "11111111-1111-4111-8111-111111111111"
KEYS = ("ssh-ed25519 AAAA one", "ssh-rsa BBBB two")


def spec(**changes: Any) -> GuestSpec:
    plain = {"name": "web", "vcpus": 1, "memory_mib": 128, "hostname": "web-1"}
    return GuestSpec(**{**plain, **changes})


def cloud_config(text: str) -> Any:
    head, _, body = text.partition("\n")
    assert head == "#cloud-config"
    return json.loads(body)


def test_the_seed_is_an_iso_that_cloud_init_finds_by_its_label() -> None:
    wanted = spec(ssh_keys=KEYS, user_data="#!/bin/sh\necho привет\n")
    image = pycdlib.PyCdlib()
    image.open_fp(io.BytesIO(seed.iso(wanted, INSTANCE)))
    assert image.pvd.volume_identifier.strip() == b"cidata"
    for kind in ("rr_path", "joliet_path"):
        for name, text in seed.files(wanted, INSTANCE).items():
            found = io.BytesIO()
            image.get_file_from_iso_fp(found, **{kind: f"/{name}"})
            assert found.getvalue().decode() == text
    image.close()


def test_the_guest_is_told_its_name_and_that_it_is_a_new_one() -> None:
    plain = json.loads(seed.files(spec(), INSTANCE)["meta-data"])
    assert plain == {"instance-id": INSTANCE, "local-hostname": "web-1"}
    full = json.loads(seed.files(spec(domain="example.org"), INSTANCE)["meta-data"])
    assert full["local-hostname"] == "web-1.example.org"


def test_keys_are_user_data_when_the_user_gave_none() -> None:
    files = seed.files(spec(ssh_keys=KEYS), INSTANCE)
    assert cloud_config(files["user-data"]) == {"ssh_authorized_keys": list(KEYS)}
    assert "vendor-data" not in files
    assert cloud_config(seed.files(spec(), INSTANCE)["user-data"]) == {}


@pytest.mark.parametrize("data", ["#!/bin/sh\necho hello\n", "#cloud-config\nruncmd: [ls]\n", ""])
def test_user_data_is_handed_on_as_it_is_and_keys_go_beside_it(data: str) -> None:
    files = seed.files(spec(ssh_keys=KEYS, user_data=data), INSTANCE)
    assert files["user-data"] == data
    assert cloud_config(files["vendor-data"]) == {"ssh_authorized_keys": list(KEYS)}


def test_cards_are_known_by_their_macs_and_told_their_addresses() -> None:
    nics = (
        NicSpec(
            mac="52:54:00:AA:00:01",
            address="10.1.0.5/24",
            gateway="10.1.0.1",
            address6="2001:db8::5/64",
            gateway6="2001:db8::1",
            dns=("10.1.0.2", "2001:db8::2"),
        ),
        NicSpec(mac="52:54:00:aa:00:02", address="10.2.0.5/24"),
        NicSpec(mac="52:54:00:aa:00:03"),
    )
    assert json.loads(seed.files(spec(nics=nics), INSTANCE)["network-config"]) == {
        "version": 2,
        "ethernets": {
            "nic0": {
                "match": {"macaddress": "52:54:00:aa:00:01"},
                "addresses": ["10.1.0.5/24", "2001:db8::5/64"],
                "routes": [
                    {"to": "0.0.0.0/0", "via": "10.1.0.1"},
                    {"to": "::/0", "via": "2001:db8::1"},
                ],
                "nameservers": {"addresses": ["10.1.0.2", "2001:db8::2"]},
            },
            "nic1": {
                "match": {"macaddress": "52:54:00:aa:00:02"},
                "addresses": ["10.2.0.5/24"],
            },
            "nic2": {"match": {"macaddress": "52:54:00:aa:00:03"}, "dhcp4": True},
        },
    }
