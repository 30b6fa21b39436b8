"""Whether a template can become a tenant's machine, and what mends it. `faults` is pure; `read` asks.

From outside a template shows its firmware, its hardware, its operating system and its notes. Whether cloud-init is in
it with the VMware datasource cannot be seen before it has booted: whoever built it says so in its notes, and a template
whose notes do not speak of cloud-init is refused. What is said there wrongly shows at the first boot, in acceptance.

A content library keeps its own copy of a template under the same name; the oldest of several is the one that is cloned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pyVmomi import vim

from provisioners.vsphere.client import Found, MoRef
from provisioners.vsphere.ground import Ground

PATHS: Final = (
    "name", "config.template", "config.firmware", "config.version", "config.guestId", "config.annotation",
    "config.hardware.device",
)  # fmt: skip
OLDEST_HARDWARE: Final = 17
"""Of which on Dynamic DirectPath and Assignable Hardware work; newer ones know more GPUs per machine."""
_LINUX: Final = ("linux", "ubuntu", "debian", "rhel", "centos", "rocky", "alma", "oracle", "sles", "suse", "photon")
_WITHOUT: Final = re.compile(r"\b(no|without|lacks|not)\b[^.;,]{0,20}\bcloud-init\b", re.IGNORECASE)


def faults(values: Mapping[str, Any], *, with_gpu: bool = True) -> tuple[str, ...]:
    """Return what keeps a VM, read with `PATHS`, from being a template for machines; nothing if it is one."""
    found = []
    if not values.get("config.template"):
        found.append("it is a virtual machine and no template: convert it (Template, Convert to Template)")
    if with_gpu and values.get("config.firmware") != "efi":
        found.append("it starts by BIOS: GPUs need EFI, which is chosen before the system is installed")
    if not any(word in str(values.get("config.guestId") or "").lower() for word in _LINUX):
        found.append("its guest OS is not set to a Linux")
    if not says_cloud_init(str(values.get("config.annotation") or "")):
        found.append(
            "its notes do not say that cloud-init with the VMware datasource is in it: install it, and write "
            "“cloud-init” into the notes"
        )
    devices = values.get("config.hardware.device") or ()
    if any(isinstance(one, vim.vm.device.VirtualPCIPassthrough) for one in devices):
        found.append("it has a GPU or another passthrough device: take it out, for a clone would need the same one")
    if not any(isinstance(one, vim.vm.device.VirtualEthernetCard) for one in devices):
        found.append("it has no network card: add one")
    return tuple(found)


def says_cloud_init(notes: str) -> bool:
    """Whether whoever built an image says that a machine of it can be told who it is."""
    return "cloud-init" in notes.lower() and _WITHOUT.search(notes) is None


def hardware_version(values: Mapping[str, Any]) -> int:
    """Return the number of `vmx-20`; 0 where it cannot be read."""
    match = re.fullmatch(r"vmx-0*([0-9]{1,3})", str(values.get("config.version") or ""))
    return int(match[1]) if match else 0


def gaps(name: str, found: Iterable[Found]) -> tuple[str, ...]:
    """Return what is wrong with the template of a name: it is not there, or not fit."""
    templates = sorted(found, key=lambda one: (len(one.ref.id), one.ref.id))
    if not templates:
        return (f"vCenter shows no template {name}",)
    said = [f"{name}: {fault}" for fault in faults(templates[0].values)]
    version = hardware_version(templates[0].values)
    if 0 < version < OLDEST_HARDWARE:
        said.append(
            f"{name}: its hardware version is {version}; upgrade it to {OLDEST_HARDWARE} or newer "
            "(Compatibility, Upgrade VM Compatibility)"
        )
    return tuple(said)


def read(ground: Ground, names: Iterable[str]) -> dict[str, tuple[Found, ...]]:
    """Return VMs by the names of configured templates, in two calls. Raises `DriverError`."""
    wanted = set(names)
    listed = ground.client.rows({"VirtualMachine": ("name", "config.template")}, root=ground.estate().datacenter)
    refs = [one.ref for one in listed["VirtualMachine"] if one.values.get("name") in wanted]
    # a plain VM of the name is shown too: that it is no template is what is to be said of it
    templates = {one.ref for one in listed["VirtualMachine"] if one.values.get("config.template")}
    found: dict[str, list[Found]] = {name: [] for name in wanted}
    for one in ground.client.many(refs, *PATHS):
        found[str(one.values["name"])].append(one)
    return {name: _preferred(ones, templates) for name, ones in found.items()}


def _preferred(found: list[Found], templates: set[MoRef]) -> tuple[Found, ...]:
    real = tuple(one for one in found if one.ref in templates)
    return real or tuple(found)
