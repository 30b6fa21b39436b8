"""The rights of our account: every method that the driver calls stands in the table, and the file is the table."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pyVmomi.VmomiSupport import _managedDefMap

from provisioners.vsphere import privileges
from provisioners.vsphere.privileges import CALLS, Place, Right

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "vcenter-role.md"
DRIVER = sorted((ROOT / "provisioners" / "vsphere").glob("*.py"))


def methods() -> frozenset[str]:
    """Return the names of vCenter's methods: those of SOAP, and the shorter ones that pyVmomi takes too."""
    found: set[str] = set()
    for name, definition in list(_managedDefMap.items()):
        if name.startswith(("vim.", "vmodl.")):
            for method in definition[5] or ():
                found |= {method[1], method[0][:1].upper() + method[0][1:]}
    return frozenset(found)


def called(file: Path) -> set[str]:
    """Return the SOAP methods that a module names in calls or, as a task's, in texts."""
    known = methods()
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(attr=name)) if name[0].isupper() and name in known:
                found.add(name)
            case ast.Constant(value=str(name)) if name.endswith("_Task") and name in known:
                found.add(name)
    return found


@pytest.mark.parametrize("file", DRIVER, ids=lambda file: file.name)
def test_every_method_that_is_called_stands_in_the_table(file):
    assert called(file) <= set(CALLS), f"add to provisioners/vsphere/privileges.py: {called(file) - set(CALLS)}"


def test_the_scan_sees_calls():
    assert "CloneVM_Task" in set().union(*map(called, DRIVER))
    assert {"PowerOn", "PowerOnVM_Task", "RetrieveContent"} <= methods()


def test_every_right_has_a_reason_and_every_reason_a_right():
    named = {right.privilege for right in privileges.needed()}

    assert {privileges.why(right) for right in privileges.needed()}
    assert named == set(privileges._WHY)
    assert set(CALLS) >= privileges.ONLY_FOR_GROUPS


def test_without_groups_nothing_about_permissions_is_asked_for():
    without = {right.privilege for right in privileges.needed(groups=False)}

    assert not {name for name in without if name.startswith("Authorization.")}
    assert Right(Place.VMS, "Folder.Create") in privileges.needed(groups=False)


def test_the_file_is_the_table():
    assert FILE.read_text(encoding="utf-8") == privileges.document(), (
        "python -c \"from provisioners.vsphere import privileges; print(privileges.document(), end='')\""
    )


def test_the_roles_hold_every_right():
    made = privileges.roles()

    for right in privileges.needed():
        role = privileges.ROOT_ROLE if right.place is Place.ROOT else privileges.ACCOUNT_ROLE
        assert right.privilege in made[role] or right.privilege.startswith("System.")
    assert made[privileges.ROOT_ROLE] == [
        "Authorization.ModifyRoles",
        "ContentLibrary.ReadStorage",
        "Global.ManageCustomFields",
        "InventoryService.Tagging.CreateCategory",
        "InventoryService.Tagging.CreateTag",
        "InventoryService.Tagging.DeleteTag",
        "StorageProfile.View",
    ]


def test_without_libraries_and_tags_nothing_about_them_is_asked_for():
    without = {right.privilege for right in privileges.needed(libraries=False, tags=False)}

    assert not {name for name in without if "Tagging" in name or name.startswith(("ContentLibrary", "VApp"))}
    assert "VirtualMachine.Provisioning.MarkAsTemplate" not in without
