"""What a lab's vCenter has at its start: hosts with GPUs, templates, VMs of others. Pure data.

GPUs, their MIG placements and the names of their vGPU types come from the product's own catalogue
(`tenants/data/mig-profiles.json` and `vgpu-profiles.json`, which name their sources). The names of fields are those
that the simulator reads (`deploy/labs/vsphere/world.go`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any, Final

from controlplane.labs.errors import LabError

API_VERSION: Final = "8.0.3.0"
"""An id that pyVmomi knows exactly; with any other it falls back to an API without vGPU fields."""
NVIDIA: Final = 0x10DE
MIG: Final = "mig"
TIME_SLICED: Final = "timeSliced"
LINUX: Final = "ubuntu64Guest"


class Policy(StrEnum):
    """How a host chooses GPU and start at power-on."""

    FIRST = "first"
    SPREAD = "spread"
    ADVERSARIAL = "adversarial"
    """Takes most away from others, equal ones by lot."""


@dataclass(frozen=True, slots=True)
class VgpuType:
    """One vGPU type as a GPU carries it."""

    name: str
    sharing: str
    framebuffer_gib: int
    size: int
    """Placement positions taken; 0 for a time-sliced type."""
    starts: tuple[int, ...]
    max_per_gpu: int
    media: bool


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU of a host."""

    pci_id: str
    name: str
    """As the vendor's tools print it."""
    vendor_id: int
    device_id: int
    memory_kib: int
    slices: int
    types: tuple[VgpuType, ...]
    passthrough: bool = False
    """Given to VMs whole by DirectPath I/O, never as a vGPU."""
    label: str = ""
    """Hardware label of Assignable Hardware."""
    fixed_mode: str = ""
    """`mig` or `timeSliced`: a mode that only people can change. Empty: the first VM fixes it."""


@dataclass(frozen=True, slots=True)
class GpuHosts:
    """Hosts with equal GPUs."""

    hosts: tuple[str, ...]
    """Patterns of names such as `DC0_C0_H*`; the first entry that meets a host's name is the one."""
    gpus: tuple[Gpu, ...]
    policy: str = ""
    """Empty: the world's."""


@dataclass(frozen=True, slots=True)
class Template:
    """A VM to clone, also an item of the content library."""

    name: str
    firmware: str = "efi"
    annotation: str = ""
    guest_id: str = LINUX


@dataclass(frozen=True, slots=True)
class Ovf:
    """An OVF item of the content library, with an empty disk."""

    name: str
    description: str = ""
    guest_id: str = LINUX
    disk_gib: int = 8


@dataclass(frozen=True, slots=True)
class OtherVm:
    """A VM that is not ours, in folder `others`."""

    name: str
    host: str
    types: tuple[str, ...] = ()
    """vGPU types of its devices."""
    power_on: bool = True


@dataclass(frozen=True, slots=True)
class World:
    """Everything at the start. Names are the simulator's: DC0, DC0_C0, DC0_C0_H0, LocalDS_0, DVS0, DC0_DVPG0."""

    gpu_hosts: tuple[GpuHosts, ...] = ()
    templates: tuple[Template, ...] = ()
    vms: tuple[OtherVm, ...] = ()
    policy: Policy = Policy.FIRST
    seed: int = 1
    datacenters: int = 1
    clusters: int = 1
    hosts: int = 3
    """Per cluster."""
    host_names: tuple[str, ...] = ()
    """Names of the first hosts; patterns of `gpu_hosts` are compared with them."""
    host_vcpu: int = 128
    """Hardware threads of every host."""
    host_memory_gib: int = 1024
    datastores: int = 1
    portgroups: int = 1
    library: str = "images"
    """Content library with the templates; empty: none."""
    ovfs: tuple[Ovf, ...] = ()
    """Further items of that library."""
    roles: tuple[str, ...] = ()
    guests: bool = True
    """Whether powered-on VMs show tools, a name and an address."""
    api_version: str = API_VERSION
    instance_uuid: str = ""
    """`about.instanceUuid`; empty: the lab gives each vCenter its own."""

    def as_json(self) -> str:
        """Return the text that the simulator reads."""
        return json.dumps(asdict(self), indent=1)


def gpus(
    product: str,
    count: int,
    *,
    board: str = "",
    time_sliced: bool = True,
    passthrough: bool = False,
    label: str = "",
    fixed_mode: str = "",
) -> tuple[Gpu, ...]:
    """Return equal GPUs of one product of the catalogue with every vGPU type of their board.

    `board` is the first code of the catalogue that has the product unless given (`H100XM` is the SXM5 board of
    H100-80GB). Raises `LabError` for what the catalogue does not have.
    """
    entry = next((one for one in _read("mig-profiles.json")["products"] if one["id"] == product), None)
    boards = [
        one
        for one in _read("vgpu-profiles.json")["products"]
        if one["mig_product"] == product and one["board"] and board in {"", one["board"]}
    ]
    if entry is None or not boards:
        raise LabError(f"the catalogue has no vGPU board {board} of {product}")
    placements = {one["name"]: one["placements"] for one in entry["profiles"]}
    types = [
        _mig_type(one, placements[one["mig_profile"]])
        for one in boards[0]["mig_backed"]
        if one["name"] and placements.get(one["mig_profile"], {}).get("starts")
    ]
    if time_sliced:
        types += [_time_sliced_type(one) for one in boards[0]["time_sliced"] if one["name"]]
    device = int(entry["pci_device_ids"][0][:6], 16) if entry.get("pci_device_ids") else 0
    return tuple(
        Gpu(
            pci_id=f"0000:{0x1B + 0x20 * at:02x}:00.0",
            name=entry["product_names"][0],
            vendor_id=NVIDIA,
            device_id=device,
            memory_kib=boards[0]["memory_gb"] * 2**20,
            slices=entry["memory_slices"],
            types=() if passthrough else tuple(types),
            passthrough=passthrough,
            label=label,
            fixed_mode=fixed_mode,
        )
        for at in range(count)
    )


def usual() -> World:
    """Return what `up` starts: hosts with H100s, with A100s, with GPUs for passthrough, and without; two templates."""
    return World(
        hosts=5,
        gpu_hosts=(
            GpuHosts(("DC0_C0_H0", "DC0_C0_H1"), gpus("H100-80GB", 2, board="H100XM")),
            GpuHosts(("DC0_C0_H2",), gpus("A100-80GB", 2, fixed_mode=MIG)),
            GpuHosts(("DC0_C0_H3",), gpus("H100-80GB", 2, board="H100XM", passthrough=True, label="tenants")),
        ),
        templates=(
            Template("ubuntu-24.04-gpu", annotation="cloud-init with the VMware datasource; vGPU guest driver 580"),
            Template("legacy-bios", firmware="bios", annotation="no cloud-init"),
        ),
        ovfs=(
            Ovf("Debian 12 GPU", "cloud-init with the VMware datasource; vGPU guest driver 580"),
            Ovf("appliance", "somebody's own"),
        ),
    )


def _mig_type(entry: Mapping[str, Any], placement: Mapping[str, Any]) -> VgpuType:
    return VgpuType(
        name=entry["name"],
        sharing=MIG,
        framebuffer_gib=entry["framebuffer_gb"],
        size=placement["size"],
        starts=tuple(placement["starts"]),
        max_per_gpu=entry["max_per_gpu"],
        media=entry["media_extensions"],
    )


def _time_sliced_type(entry: Mapping[str, Any]) -> VgpuType:
    return VgpuType(entry["name"], TIME_SLICED, entry["framebuffer_gb"], 0, (), entry["max_per_gpu"], media=False)


@cache
def _read(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((files("tenants") / "data" / name).read_text())
    return read
