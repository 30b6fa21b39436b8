"""What a VM should be made of, what it is made of, and the one change that leads from here to there. Pure.

`Hardware` is both the want and what was read, so they are compared field by field; `config_spec` builds the whole
ConfigSpec as one object. Applied twice, the second has no change of a device in it. GPUs are compared by count per
type: which physical one a VM gets is the host's choice at every power-on.

Sources of the numbers: reference of the driver, 3.5 (EFI, locked memory); `vim.vm.ConfigSpec`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from pyVmomi import vim

EFI: Final = "efi"
PATHS: Final = (
    "config.instanceUuid",
    "config.uuid",
    "config.hardware.numCPU",
    "config.hardware.memoryMB",
    "config.hardware.device",
    "config.memoryReservationLockedToMax",
    "config.firmware",
    "config.extraConfig",
)
"""What `read` needs of a VM."""
USE_MMIO: Final = "pciPassthru.use64bitMMIO"
MMIO_SIZE: Final = "pciPassthru.64bitMMIOSizeGB"
MAC: Final = "mac"
NETWORK: Final = "network"
"""The one aspect that is mended on a running VM: what sits in a foreign network is not left there."""
_VGPU: Final = "vgpu"
_PCI: Final = "pci"
_FIRST_NEW_KEY: Final = -101
_KIB_PER_GIB: Final = 2**20
_Gpu: Final = vim.vm.device.VirtualPCIPassthrough
_Operation: Final = vim.vm.device.VirtualDeviceSpec.Operation


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a VM is made of, as wanted or as read."""

    instance_uuid: str
    bios_uuid: str
    """What the guest sees as its own identity."""
    vcpu: int
    memory_mib: int
    gpus: tuple[str, ...]
    """In order: `vgpu:<type>`, `pci:<vendor>:<device>[:<label>]` for any such device, `pci:<id>` for that one."""
    mmio_gib: int
    """Room for the GPUs' memory windows; 0 without a GPU."""
    networks: tuple[str, ...]
    """Key of each card's port group, `""` for a card on something else."""
    disk_gib: int
    """Of the first disk; one that is larger than wanted is as good."""
    locked: bool
    """Whether all memory is reserved."""
    firmware: str = EFI
    macs: tuple[str, ...] = ()
    """MAC address of each card, in small letters; empty where they are not known, and then not compared."""

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Hardware:
        """Return what was written. Raises `TypeError` for something else."""
        given = dict(value)
        lists = {name: tuple(given.get(name, ())) for name in ("gpus", "networks", "macs")}
        return cls(**{**given, **lists})


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be."""

    aspect: str
    text: str
    """For people."""

    @property
    def is_of_cards(self) -> bool:
        """Whether it is about who can hear the VM."""
        return self.aspect in {NETWORK, MAC}

    @property
    def needs_off(self) -> bool:
        """Whether it can be mended only while the VM is off."""
        return self.aspect != NETWORK


def vgpu(type_name: str) -> str:
    """Return how a vGPU of a type is written among GPUs."""
    return f"{_VGPU}:{type_name}"


def passthrough(vendor: int, device: int, label: str = "") -> str:
    """Return how any device of a kind is written, of a hardware label where the hosts' owner gave one."""
    return f"{_PCI}:{vendor:04x}:{device:04x}" + (f":{label}" if label else "")


# --- reading --------------------------------------------------------------------------------------


def read(values: Mapping[str, Any]) -> Hardware:
    """Return what a VM is made of, from `PATHS`."""
    devices = values.get("config.hardware.device") or ()
    extra = extra_of(values)
    disks = [one for one in devices if isinstance(one, vim.vm.device.VirtualDisk)]
    size = extra.get(MMIO_SIZE, "") if extra.get(USE_MMIO, "").upper() == "TRUE" else ""
    return Hardware(
        instance_uuid=str(values.get("config.instanceUuid", "")),
        bios_uuid=str(values.get("config.uuid", "")),
        vcpu=int(values.get("config.hardware.numCPU", 0)),
        memory_mib=int(values.get("config.hardware.memoryMB", 0)),
        gpus=tuple(sorted(_written(one) for one in devices if isinstance(one, _Gpu))),
        mmio_gib=int(size) if size.isdecimal() else 0,
        networks=tuple(_network(one) for one in cards(devices)),
        disk_gib=disks[0].capacityInKB // _KIB_PER_GIB if disks else 0,
        locked=bool(values.get("config.memoryReservationLockedToMax", False)),
        firmware=str(values.get("config.firmware", "")),
        macs=tuple(str(one.macAddress).lower() for one in cards(devices) if one.macAddress),
    )


def extra_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Return a VM's extra configuration as texts."""
    return {str(one.key): str(one.value) for one in values.get("config.extraConfig") or ()}


def cards(devices: Iterable[Any]) -> list[Any]:
    """Return the network cards among devices."""
    return [one for one in devices if isinstance(one, vim.vm.device.VirtualEthernetCard)]


def is_connected(devices: Iterable[Any]) -> bool:
    """Whether any card is connected, or will be at the next power-on."""
    states = [one.connectable for one in cards(devices)]
    return any(state is None or state.connected or state.startConnected for state in states)


def _written(device: Any) -> str:
    backing = device.backing
    if isinstance(backing, _Gpu.VmiopBackingInfo):
        return vgpu(str(backing.vgpu))
    if isinstance(backing, _Gpu.DynamicBackingInfo):
        kinds = sorted({(one.vendorId & 0xFFFF, one.deviceId & 0xFFFF) for one in backing.allowedDevice or ()})
        if len(kinds) == 1:
            return passthrough(*kinds[0], str(backing.customLabel or ""))
        return f"{_PCI}:{len(kinds)} kinds"
    return f"{_PCI}:{getattr(backing, 'id', None) or 'unknown'}"


def _network(card: Any) -> str:
    port = getattr(card.backing, "port", None)
    return "" if port is None else str(port.portgroupKey or "")


# --- comparing ------------------------------------------------------------------------------------


def differences(want: Hardware, have: Hardware) -> list[Difference]:
    """Return what is not as wanted, in a fixed order."""
    found: list[Difference] = []

    def compare(aspect: str, wanted: object, seen: object, words: str) -> None:
        if wanted != seen:
            found.append(Difference(aspect, f"{words} {seen or 'none'} in the place of {wanted or 'none'}"))

    compare("identity", want.instance_uuid, have.instance_uuid.lower(), "instance UUID")
    compare("identity", want.bios_uuid, have.bios_uuid.lower(), "BIOS UUID")
    compare("vcpu", want.vcpu, have.vcpu, "vCPUs:")
    compare("memory", want.memory_mib, have.memory_mib, "MiB of memory:")
    compare("gpus", _counted(want.gpus), _counted(have.gpus), "GPUs:")
    compare("mmio", want.mmio_gib, have.mmio_gib, "GiB of MMIO:")
    compare("locked", want.locked, have.locked, "memory reserved as a whole:")
    compare("firmware", want.firmware, have.firmware, "firmware:")
    compare(NETWORK, ", ".join(want.networks), ", ".join(have.networks), "port groups of cards:")
    if want.macs:
        compare(MAC, ", ".join(want.macs), ", ".join(have.macs), "MAC addresses of cards:")
    if have.disk_gib < want.disk_gib:
        compare("disk", want.disk_gib, have.disk_gib, "GiB of disk:")
    return found


def _counted(gpus: Iterable[str]) -> str:
    counted = Counter(one.lower() for one in gpus)
    return ", ".join(f"{count} × {one}" for one, count in sorted(counted.items()))


# --- changing -------------------------------------------------------------------------------------


def config_spec(
    want: Hardware, devices: Sequence[Any], *, switch_uuid: str, connected: bool, extra: Mapping[str, str]
) -> Any:
    """Return the ConfigSpec that makes a VM with these devices what is wanted; `extra`: more of its configuration."""
    flags = {USE_MMIO: "TRUE", MMIO_SIZE: str(want.mmio_gib)} if want.mmio_gib else {}
    return vim.vm.ConfigSpec(
        instanceUuid=want.instance_uuid,
        uuid=want.bios_uuid,
        numCPUs=want.vcpu,
        memoryMB=want.memory_mib,
        memoryReservationLockedToMax=want.locked,
        firmware=want.firmware,
        vAppConfigRemoved=True,  # an OVF's own properties would win over ours in the guest
        deviceChange=[
            *_gpu_changes(want.gpus, devices),
            *card_changes(devices, want.networks, switch_uuid=switch_uuid, connected=connected, macs=want.macs),
            *_disk_changes(want.disk_gib, devices),
        ],
        extraConfig=options({**flags, **extra}),
    )


def network_spec(
    devices: Sequence[Any], want: Hardware, *, switch_uuid: str, connected: bool, extra: Mapping[str, str]
) -> Any:
    """Return the ConfigSpec that changes cards and extra configuration alone; it is taken by a running VM too."""
    changes = card_changes(
        devices, want.networks, switch_uuid=switch_uuid, connected=connected, macs=want.macs, is_off=False
    )
    return vim.vm.ConfigSpec(deviceChange=changes, extraConfig=options(extra))


def bare_spec(devices: Sequence[Any], *, extra: Mapping[str, str]) -> Any:
    """Return the ConfigSpec that takes the GPUs away again, and what was set for them."""
    changes = [_change(_Operation.remove, one) for one in devices if isinstance(one, _Gpu)]
    return vim.vm.ConfigSpec(
        memoryReservationLockedToMax=False,
        deviceChange=changes,
        extraConfig=options({USE_MMIO: "", MMIO_SIZE: "", **extra}),
    )


def options(extra: Mapping[str, str]) -> list[Any]:
    """Return extra configuration; an empty value takes a key away."""
    return [vim.option.OptionValue(key=key, value=value) for key, value in sorted(extra.items())]


def _gpu_changes(want: Sequence[str], devices: Sequence[Any]) -> list[Any]:
    # a host may spell a type otherwise tomorrow; that is no other type
    spelled = {one.lower(): one for one in want}
    missing = Counter(one.lower() for one in want)
    changes = []
    for device in devices:
        if not isinstance(device, _Gpu):
            continue
        written = _written(device).lower()
        if missing[written] > 0:
            missing[written] -= 1
        else:
            changes.append(_change(_Operation.remove, device))
    added = [spelled[one] for one in sorted(missing.elements())]
    # the keys of new devices in one spec are negative and differ, or all but one are dropped
    return changes + [_change(_Operation.add, _gpu(one, _FIRST_NEW_KEY - at)) for at, one in enumerate(added)]


def _gpu(written: str, key: int) -> Any:
    kind, _, rest = written.partition(":")
    if kind == _VGPU:
        return _Gpu(key=key, backing=_Gpu.VmiopBackingInfo(vgpu=rest))
    vendor, device, *label = rest.split(":", 2)
    allowed = _Gpu.AllowedDevice(vendorId=int(vendor, 16), deviceId=int(device, 16))
    backing = _Gpu.DynamicBackingInfo(allowedDevice=[allowed], deviceName="", customLabel="".join(label))
    return _Gpu(key=key, backing=backing)


def card_changes(
    devices: Sequence[Any],
    networks: Sequence[str],
    *,
    switch_uuid: str,
    connected: bool,
    macs: Sequence[str] = (),
    is_off: bool = True,
) -> list[Any]:
    """Return the changes that leave one card per port group; a further card would be a way around the boundary.

    `macs` are given to new cards, and to the others of a VM that is off: a running one's card keeps its address.
    """
    have = cards(devices)
    changes = [_change(_Operation.remove, card) for card in have[len(networks) :]]
    for at, network in enumerate(networks):
        card = have[at] if at < len(have) else vim.vm.device.VirtualVmxnet3(key=_FIRST_NEW_KEY - 100 - at)
        is_new = at >= len(have)
        mac = macs[at] if at < len(macs) and (is_new or is_off) else card.macAddress
        is_same_mac = str(card.macAddress).lower() == str(mac).lower()
        if not is_new and _network(card) == network and is_same_mac and _is_set(card, connected=connected):
            continue
        port = vim.dvs.PortConnection(portgroupKey=network, switchUuid=switch_uuid)
        edited = type(card)(
            key=card.key,
            controllerKey=card.controllerKey,
            unitNumber=card.unitNumber,
            macAddress=mac,
            addressType="assigned" if is_new and mac else card.addressType,
            backing=vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(port=port),
            connectable=_connectable(connected=connected),
        )
        changes.append(_change(_Operation.add if is_new else _Operation.edit, edited))
    return changes


def connection_changes(devices: Sequence[Any], *, connected: bool) -> list[Any]:
    """Return the changes that pull every card's plug, or put it in again; networks stay as they are."""
    changes = []
    for card in cards(devices):
        if not _is_set(card, connected=connected):
            card.connectable = _connectable(connected=connected)
            changes.append(_change(_Operation.edit, card))
    return changes


def _connectable(*, connected: bool) -> Any:
    # a guest that may connect its own card could end its own isolation
    return vim.vm.device.VirtualDevice.ConnectInfo(
        startConnected=connected, connected=connected, allowGuestControl=False
    )


def _is_set(card: Any, *, connected: bool) -> bool:
    state = card.connectable
    if state is None or state.allowGuestControl:
        return False
    # a VM that is off shows no card as connected, so only the plug that should be pulled is asked for both
    return bool(state.startConnected) if connected else not (state.startConnected or state.connected)


def _disk_changes(disk_gib: int, devices: Sequence[Any]) -> list[Any]:
    disk = next((one for one in devices if isinstance(one, vim.vm.device.VirtualDisk)), None)
    if disk is None or disk.capacityInKB >= disk_gib * _KIB_PER_GIB:
        return []
    disk.capacityInKB = disk_gib * _KIB_PER_GIB
    if disk.capacityInBytes is not None:
        disk.capacityInBytes = disk_gib * _KIB_PER_GIB * 1024
    return [_change(_Operation.edit, disk)]


def _change(operation: Any, device: Any) -> Any:
    return vim.vm.device.VirtualDeviceSpec(operation=operation, device=device)
