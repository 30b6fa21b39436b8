"""Whose an object of a vCenter is, and by what a pass sees that it has changed. Pure.

A VM is ours by its mark and by lying in the folder of a boundary of the same tenant below our root folder: another
installation may use the same vCenter under another root folder, and what carries its mark is no orphan of ours. A copy
that somebody made of a VM of ours carries our mark too; it has neither our name for it nor our instance UUID.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pyVmomi import vim

from provisioners.driver import Kind, ObservedObject, Ref
from provisioners.vsphere import names
from provisioners.vsphere.client import Found, MoRef, reference
from provisioners.vsphere.names import MARK_FIELD

Attribute = Callable[[Mapping[str, Any], str], str]
"""(values with `customValue`, name) → a custom attribute, `""` where it is not set."""
_CustomValue: Final = vim.CustomFieldsManager.StringValue


class Owners:
    """Which folders are ours, and whose what lies in them is."""

    def __init__(self, folders: Iterable[Found], root: str, vm_folder: MoRef, attribute: Attribute) -> None:
        """Read the folders of a datacenter; ours is the one called `root` in its `vm_folder`."""
        self.attribute = attribute
        self._folders = tuple(folders)
        self._parents = {one.ref: parent for one in self._folders if (parent := ref_at(one, "parent")) is not None}
        roots = {
            one.ref
            for one in self._folders
            if one.values.get("name") == root and self._parents.get(one.ref) == vm_folder
        }
        self.boundaries: dict[MoRef, Ref] = {}
        """Folder of a boundary → whose."""
        for one in self._folders:
            mark = self.of_mark(one)
            if mark is not None and mark.kind is Kind.BOUNDARY and self._parents.get(one.ref) in roots:
                self.boundaries[one.ref] = mark

    def of_mark(self, found: Found) -> Ref | None:
        """Return whose mark an object carries, wherever it lies."""
        mark = names.parse_marker(self.attribute(found.values, MARK_FIELD))
        return None if mark is None else mark[0]

    def of_folders(self) -> Iterable[tuple[Ref, Found]]:
        """Return boundaries with their folders."""
        return [(self.boundaries[one.ref], one) for one in self._folders if one.ref in self.boundaries]

    def of_vm(self, vm: Found) -> Ref | None:
        """Return whose a VM is: by its mark, or by its name while it has none, in a folder of the same tenant."""
        boundary = self._boundary_of(ref_at(vm, "parent"))
        if boundary is None:
            return None
        name = str(vm.values.get("name", ""))
        mark = self.attribute(vm.values, MARK_FIELD)
        whose = names.parse_marker(mark) if mark else names.parse_vm_name(name, boundary)
        if whose is None or whose[0].tenant_uid != boundary.tenant_uid:
            return None
        uuid = str(vm.values.get("config.instanceUuid", "")).lower()
        is_itself = name == names.vm_name(*whose) or uuid == names.instance_uuid(*whose)
        return whose[0] if is_itself else None

    def strangers(self, vms: Iterable[Found]) -> Iterable[tuple[Found, Ref]]:
        """Return VMs that lie in the folder of a boundary and are not of its tenant's, with that boundary."""
        for vm in vms:
            boundary = self._boundary_of(ref_at(vm, "parent"))
            if boundary is not None and self.of_vm(vm) is None:
                yield vm, boundary

    def _boundary_of(self, folder: MoRef | None) -> Ref | None:
        while folder is not None and folder not in self.boundaries:
            folder = self._parents.get(folder)
        return None if folder is None else self.boundaries[folder]


def objects_of(owners: Owners, beside: Iterable[Found], vms: Iterable[Found]) -> tuple[ObservedObject, ...]:
    """Return one entry per ref of ours, with what a pass cares for in its fingerprint.

    `beside` are pools and port groups: they belong to a boundary that has its folder, and are nothing without it.
    """
    of: dict[Ref, list[Found]] = defaultdict(list)
    for ref, folder in owners.of_folders():
        of[ref].append(folder)
    for one in beside:
        mark = owners.of_mark(one)
        if mark is not None and mark in of:
            of[mark].append(one)
    for one in vms:
        whose = owners.of_vm(one)
        if whose is not None:
            of[whose].append(one)
    return tuple(
        ObservedObject(ref, _fingerprint(found)) for ref, found in sorted(of.items(), key=lambda item: item[0].name)
    )


def ref_at(found: Found, path: str) -> MoRef | None:
    """Return the reference that was read at a path, None where there is none."""
    value = found.values.get(path)
    return None if value is None else reference(value)


def _fingerprint(found: Iterable[Found]) -> str:
    lines = (f"{one.ref} {sorted((path, _text(value)) for path, value in one.values.items())}" for one in found)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _text(value: Any) -> str:
    """Return a value as text; of a list the order does not matter."""
    if not isinstance(value, list):
        return str(value)
    # a custom value is written by hand: pyVmomi's own text of one costs more than the read
    return str(sorted(f"{one.key}={one.value}" if isinstance(one, _CustomValue) else str(one) for one in value))
