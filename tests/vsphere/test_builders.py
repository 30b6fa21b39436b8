"""The pure builders of a VM: cloud-init, guestinfo, ConfigSpec; hostile texts come out as they went in, or not."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pyVmomi import vim
from pyVmomi.SoapAdapter import Deserialize, SerializeToStr

from provisioners.driver import DriverRejected
from provisioners.vsphere import cloud_init, hardware, vms
from provisioners.vsphere.client import Found, MoRef
from provisioners.vsphere.cloud_init import Seed
from provisioners.vsphere.hardware import Hardware

UID = UUID("6f1c2a52-0d7b-4a8e-9f0e-3a5d9f7b1c11")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHVvZGtqZmhnaGdqZGtzamRoZ2Zoa2Rq"
SEED = Seed(UID, "tn-vm-1", ssh_keys=(f"{KEY} ada@example.com",), ssh_ca=KEY, ssh_principals=("machine:1",))
WANT = Hardware(
    instance_uuid=str(UID),
    bios_uuid="7f1c2a52-0d7b-4a8e-9f0e-3a5d9f7b1c11",
    vcpu=8,
    memory_mib=32768,
    gpus=("vgpu:nvidia_h100xm-1-10c", "vgpu:nvidia_h100xm-1-10c"),
    mmio_gib=512,
    networks=("dvportgroup-7",),
    disk_gib=100,
    locked=True,
)
WORDS = (
    "[Unit]", "$HOME", "%n", "{{ ds }}", "#cloud-config", "- !!python/object", "\0", "\x7f", "\x85", "\u2028", "'", '"',
    "\U0001f600", "\ufeff", "\r\n", "${jndi:x}", "`id`", "]]>", "&amp;", "-----BEGIN", "no", "0x1F", "~", "\t\t", "\\",
)  # fmt: skip
hostile = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.lists(st.sampled_from(WORDS), max_size=8).map("".join),
)


# --- cloud-init -----------------------------------------------------------------------------------


def decoded(seed: Seed) -> tuple[object, object]:
    found = cloud_init.guestinfo(seed)
    assert found["guestinfo.userdata.encoding"] == "gzip+base64"
    user = cloud_init.unpacked(found["guestinfo.userdata"])
    assert user.startswith("#cloud-config\n")
    meta = cloud_init.unpacked(found["guestinfo.metadata"])
    assert json.loads(meta) == yaml.safe_load(meta)
    return json.loads(meta), yaml.safe_load(user)


@given(st.lists(hostile, min_size=1, max_size=5), hostile)
@settings(max_examples=200, deadline=None)
def test_hostile_texts_reach_the_guest_as_they_are(texts, word):
    files = {f"/etc/tenantry/{at}": (text, "0600") for at, text in enumerate(texts)}
    command = ("/usr/bin/install", word.replace("\0", ""))

    _meta, user = decoded(replace(SEED, files=files, commands=(command,)))

    assert isinstance(user, dict)
    written = {one["path"]: one["content"] for one in user["write_files"]}
    assert {path: written[path] for path in files} == {path: text for path, (text, _) in files.items()}
    assert user["runcmd"] == [list(command)]


def refused(seed: Seed) -> str:
    try:
        decoded(seed)
    except DriverRejected as error:
        return error.detail
    return ""


@given(hostile)
@settings(max_examples=400, deadline=None)
def test_a_hostile_text_where_a_name_belongs_is_refused_with_the_field(text):
    seeds = {
        "hostname": replace(SEED, hostname=text),
        "ssh_keys[0]": replace(SEED, ssh_keys=(text,)),
        "ssh_ca": replace(SEED, ssh_ca=text or " "),
        "ssh_principals[0]": replace(SEED, ssh_principals=(text,)),
        "files": replace(SEED, files={text: ("", "0644")}),
    }
    for field, seed in seeds.items():
        refusal = refused(seed)
        assert refusal.startswith(field) or (not refusal and "\n" not in text and text.isascii())


def test_machines_let_in_keys_and_certificates_of_one_ca_for_their_principals_only():
    _meta, user = decoded(SEED)

    assert isinstance(user, dict)
    files = {one["path"]: one["content"] for one in user["write_files"]}
    assert files[cloud_init.SSH_CA_FILE] == f"{KEY}\n"
    assert files[f"{cloud_init.SSH_PRINCIPALS_FOLDER}/{cloud_init.LOGIN}"] == "machine:1\n"
    assert files[cloud_init.SSH_REVOKED_FILE] == ""
    assert f"TrustedUserCAKeys {cloud_init.SSH_CA_FILE}\n" in files[cloud_init.SSHD_FILE]
    [account] = user["users"]
    assert account["ssh_authorized_keys"] == list(SEED.ssh_keys)


def test_where_nobody_is_let_in_there_is_no_account():
    _meta, user = decoded(Seed(UID, "tn-ep-1-0"))

    assert isinstance(user, dict)
    assert user["users"] == []
    assert [one["path"] for one in user["write_files"]] == [cloud_init.SSHD_FILE]


def test_too_much_for_the_guests_channel_is_refused_before_any_call():
    text = "".join(chr(0x4E00 + (at * 7919) % 20_000) for at in range(40_000))

    with pytest.raises(DriverRejected, match=r"userdata: has \d+ characters when packed; 60000 is the most"):
        cloud_init.guestinfo(replace(SEED, files={"/etc/large": (text, "0644")}))


def test_equal_input_gives_equal_bytes():
    assert cloud_init.guestinfo(SEED) == cloud_init.guestinfo(replace(SEED))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"ssh_keys": (f"{KEY}\n{KEY}",)}, r"ssh_keys\[0\]"),
        ({"ssh_keys": (f'command="sh" {KEY}',)}, r"ssh_keys\[0\]"),
        ({"ssh_principals": ("a b",)}, r"ssh_principals\[0\]"),
        ({"files": {"/etc/../root/x": ("", "0644")}}, "files"),
        ({"files": {"etc/x": ("", "0644")}}, "files"),
        ({"files": {"/etc/x": ("", "644")}}, "files"),
        ({"files": {"/etc/x": ("\ud800", "0644")}}, "half a character"),
        ({"commands": ((),)}, r"commands\[0\]"),
        ({"hostname": "a/b"}, "hostname"),
        ({"hostname": "a%2fb"}, "hostname"),
    ],
)
def test_what_would_mean_something_else_in_a_guest_is_refused(changes, field):
    with pytest.raises(DriverRejected, match=field):
        cloud_init.guestinfo(replace(SEED, **changes))


# --- hardware -------------------------------------------------------------------------------------


def bare_devices(disk_gib: int = 20, *, cards: int = 1, switch: str = "") -> list[object]:
    port = vim.dvs.PortConnection(portgroupKey="dvportgroup-1", switchUuid=switch)
    backing = vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(port=port)
    disk = vim.vm.device.VirtualDisk(key=2000, capacityInKB=disk_gib * 2**20)
    made = [vim.vm.device.VirtualVmxnet3(key=4000 + at, backing=backing, macAddress=f"00:50:56:00:00:{at:02x}")
            for at in range(cards)]  # fmt: skip
    return [disk, *made]


def applied(spec: object, devices: list[object]) -> list[object]:
    """Return a VM's devices after a ConfigSpec, as vCenter leaves them."""
    found = {one.key: one for one in devices}
    for number, change in enumerate(spec.deviceChange):
        if change.operation == "remove":
            del found[change.device.key]
        elif change.operation == "edit":
            found[change.device.key] = change.device
        else:
            change.device.key = 13000 + number
            found[change.device.key] = change.device
    return list(found.values())


def spec_of(
    want: Hardware, devices: list[object], *, connected: bool = True, extra: dict[str, str] | None = None
) -> object:
    return hardware.config_spec(want, devices, switch_uuid="50 11", connected=connected, extra=extra or {})


@pytest.mark.parametrize("gpus", [(), WANT.gpus, ("pci:10de:2330", "pci:10de:2330:tenants"), ("vgpu:grid_a100-3-20c",)])
def test_the_second_application_changes_no_device(gpus):
    want = replace(WANT, gpus=gpus)
    devices = applied(spec_of(want, bare_devices()), bare_devices())

    again = spec_of(want, devices)

    assert again.deviceChange == []
    have = hardware.read({"config.hardware.device": devices})
    assert (have.gpus, have.networks, have.disk_gib) == (gpus, ("dvportgroup-7",), 100)
    assert hardware.is_connected(devices)


def test_gpus_are_compared_by_count_per_type_and_only_what_differs_is_changed():
    devices = applied(spec_of(WANT, bare_devices()), bare_devices())

    changed = spec_of(replace(WANT, gpus=("vgpu:nvidia_h100xm-1-10c", "vgpu:nvidia_h100xm-3-40c")), devices)

    assert [(one.operation, one.device.backing.vgpu) for one in changed.deviceChange] == [
        ("remove", "nvidia_h100xm-1-10c"),
        ("add", "nvidia_h100xm-3-40c"),
    ]


def test_new_devices_of_one_change_have_different_negative_keys():
    keys = [one.device.key for one in spec_of(WANT, bare_devices(cards=0)).deviceChange if one.operation == "add"]

    assert len(set(keys)) == 3
    assert all(key < 0 for key in keys)


def test_a_second_card_of_the_template_is_taken_away():
    devices = applied(spec_of(WANT, bare_devices(cards=2)), bare_devices(cards=2))

    assert [one.macAddress for one in hardware.cards(devices)] == ["00:50:56:00:00:00"]


def test_a_disk_only_grows():
    assert hardware.differences(replace(WANT, disk_gib=10), replace(WANT, disk_gib=20)) == []
    assert [
        one.operation for one in spec_of(replace(WANT, gpus=(), networks=()), bare_devices(200, cards=0)).deviceChange
    ] == []


def test_a_pulled_plug_stays_pulled_over_a_power_cycle_and_the_guest_cannot_put_it_in():
    devices = applied(spec_of(WANT, bare_devices(), connected=False), bare_devices())

    [card] = hardware.cards(devices)
    assert (card.connectable.connected, card.connectable.startConnected) == (False, False)
    assert not card.connectable.allowGuestControl
    assert not hardware.is_connected(devices)
    assert hardware.connection_changes(devices, connected=False) == []
    assert len(hardware.connection_changes(devices, connected=True)) == 1


def test_every_difference_is_named_once():
    other = Hardware("x", "y", 1, 2, (), 0, ("",), 10, locked=False, firmware="bios")

    found = hardware.differences(WANT, other)

    aspects = [one.aspect for one in found]
    assert aspects == [
        "identity",
        "identity",
        "vcpu",
        "memory",
        "gpus",
        "mmio",
        "locked",
        "firmware",
        "network",
        "disk",
    ]
    assert [one.aspect for one in found if not one.needs_off] == ["network"]
    assert found[4].text == "GPUs: none in the place of 2 × vgpu:nvidia_h100xm-1-10c"
    assert hardware.differences(WANT, replace(WANT, instance_uuid=WANT.instance_uuid.upper())) == []


def test_hardware_survives_being_written_down():
    assert Hardware.from_json(json.loads(json.dumps(WANT.as_json()))) == WANT


@given(hostile)
@settings(max_examples=150, deadline=None)
def test_a_config_spec_comes_out_of_its_xml_as_it_went_in(text):
    values = cloud_init.guestinfo(replace(SEED, files={"/etc/x": (text, "0600")}))
    spec = spec_of(WANT, bare_devices(), extra={**values, "tenantry.want.configure": json.dumps({"text": text})})

    back = Deserialize(SerializeToStr(spec))

    assert SerializeToStr(back) == SerializeToStr(spec)
    assert {one.key: one.value for one in back.extraConfig} == {one.key: one.value for one in spec.extraConfig}


# --- the address ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "taken"),
    [
        ("10.20.0.7", "10.20.0.7"), ("127.0.0.1", ""), ("127.8.0.1", ""), ("0.0.0.0", ""), ("224.0.0.9", ""),
        ("255.255.255.255", ""), ("169.254.3.4", ""), ("fe80::1", ""), ("10.0.0.1/x?", ""), ("control.internal", ""),
        ("10.0.0.1\n", ""), ("010.0.0.1", ""), ("", ""),
    ],
)  # fmt: skip
def test_what_a_guest_tells_is_an_address_of_its_own_or_none(told, taken):
    card = vim.vm.device.VirtualVmxnet3(key=4000, macAddress="00:50:56:00:00:01")
    ip = vim.net.IpConfigInfo(ipAddress=[vim.net.IpConfigInfo.IpAddress(ipAddress=told, prefixLength=24)])
    net = vim.vm.GuestInfo.NicInfo(macAddress="00:50:56:00:00:01", ipConfig=ip, connected=True, deviceConfigId=4000)
    at = MoRef("VirtualMachine", "vm-1")
    for values in ({"guest.net": [net]}, {"guest.ipAddress": told}):
        found = Found(at, {"config.hardware.device": [card], **values})
        assert vms.address(vms.vm_of(found, None, "")) == taken
