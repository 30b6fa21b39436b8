"""What our account must be allowed to do in a vCenter: every method that the driver calls, and what it takes. Pure.

`deploy/vcenter-role.md` is `document()`; a test compares them, and another one that no method is called that does not
stand in `CALLS`. Two roles are enough: one with few privileges at the root, which does not propagate, and one on what
tenants use, which does. vCenter itself is asked which are missing, object by object (`HasPrivilegeOnEntities`).

Sources: the privilege reference of vSphere 8, and `docs/required_vcenter_privileges.md` of
cloudfoundry/bosh-vsphere-cpi-release for what it takes to add a vGPU; neither was tried on a real vCenter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

ACCOUNT_ROLE: Final = "Tenantry"
ROOT_ROLE: Final = "Tenantry root"


class Place(StrEnum):
    """On what a privilege is needed, in words for people."""

    ROOT = "the vCenter itself"
    VMS = "the VM folder"
    TEMPLATES = "templates"
    POOLS = "resource pools of the clusters"
    CLUSTERS = "clusters"
    HOSTS = "hosts"
    DATASTORES = "datastores"
    NETWORKS = "the distributed switch and its folder"


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """One privilege on one kind of object."""

    place: Place
    privilege: str
    """As vCenter's API names it: `VirtualMachine.Config.CPUCount`."""


def _on(place: Place, *privileges: str) -> tuple[Right, ...]:
    return tuple(Right(place, one) for one in privileges)


_READ: Final = tuple(Right(place, "System.Read") for place in Place)
_NONE: Final[tuple[Right, ...]] = ()
_FIELDS: Final = tuple(
    Right(place, "Global.SetCustomField") for place in (Place.VMS, Place.POOLS, Place.HOSTS, Place.NETWORKS)
)

CALLS: Final[Mapping[str, tuple[Right, ...]]] = {
    # sessions and reading
    "RetrieveContent": _NONE,
    "RetrieveServiceContent": _NONE,
    "Login": _NONE,
    "Logout": _NONE,
    "DropConnections": _NONE,  # of pyVmomi's own connections; a VM has a method of this name
    "CreateContainerView": _READ,
    "RetrievePropertiesEx": _READ,
    "ContinueRetrievePropertiesEx": _READ,
    "CreatePropertyCollector": _NONE,
    "DestroyPropertyCollector": _NONE,
    "CreateFilter": _READ,
    "DestroyPropertyFilter": _NONE,
    "WaitForUpdatesEx": _READ,
    "CancelWaitForUpdates": _NONE,
    "FindChild": _on(Place.VMS, "System.View"),
    "FindAllByUuid": _on(Place.VMS, "System.View"),
    "FetchSoftwarePackages": _NONE,  # what it takes is asked of nobody: without it a driver's version is not told
    "QueryEvents": _on(Place.VMS, "System.View"),
    "HasPrivilegeOnEntities": _on(Place.ROOT, "System.View"),
    # marks
    "AddCustomFieldDef": _on(Place.ROOT, "Global.ManageCustomFields"),
    "SetField": _FIELDS,
    # boundaries
    "CreateFolder": _on(Place.VMS, "Folder.Create"),
    "CreateResourcePool": _on(Place.POOLS, "Resource.CreatePool"),
    "UpdateConfig": _on(Place.POOLS, "Resource.EditPool"),
    "AddDVPortgroup_Task": _on(Place.NETWORKS, "DVPortgroup.Create"),
    "ReconfigureDVPortgroup_Task": _on(Place.NETWORKS, "DVPortgroup.Modify", "DVPortgroup.PolicyOp"),
    "AddAuthorizationRole": _on(Place.ROOT, "Authorization.ModifyRoles"),
    "RetrieveEntityPermissions": _on(Place.VMS, "System.Read"),
    "SetEntityPermissions": _on(
        Place.VMS, "Authorization.ModifyPermissions", "VirtualMachine.Interact.ConsoleInteract"
    ),
    "RemoveEntityPermission": _on(Place.VMS, "Authorization.ModifyPermissions"),
    # machines
    "CloneVM_Task": (
        *_on(Place.TEMPLATES, "VirtualMachine.Provisioning.DeployTemplate", "VirtualMachine.Provisioning.Clone"),
        *_on(Place.VMS, "VirtualMachine.Inventory.CreateFromExisting", "VirtualMachine.Config.AddNewDisk"),
        *_on(Place.POOLS, "Resource.AssignVMToPool"),
        *_on(Place.DATASTORES, "Datastore.AllocateSpace"),
        *_on(Place.NETWORKS, "Network.Assign"),
    ),
    "ReconfigVM_Task": (
        *_on(
            Place.VMS,
            "VirtualMachine.Config.AddRemoveDevice",
            "VirtualMachine.Config.AdvancedConfig",
            "VirtualMachine.Config.CPUCount",
            "VirtualMachine.Config.DiskExtend",
            "VirtualMachine.Config.EditDevice",
            "VirtualMachine.Config.Memory",
            "VirtualMachine.Config.RawDevice",
            "VirtualMachine.Config.Resource",
            "VirtualMachine.Config.Settings",
            "VirtualMachine.Interact.DeviceConnection",
        ),
        *_on(Place.NETWORKS, "Network.Assign"),
    ),
    "RelocateVM_Task": (
        *_on(Place.VMS, "Resource.ColdMigrate"),
        *_on(Place.POOLS, "Resource.AssignVMToPool"),
        *_on(Place.DATASTORES, "Datastore.AllocateSpace"),
    ),
    "MoveIntoFolder_Task": _on(Place.VMS, "VirtualMachine.Inventory.Move"),
    "PowerOnVM_Task": _on(Place.VMS, "VirtualMachine.Interact.PowerOn"),
    "PowerOffVM_Task": _on(Place.VMS, "VirtualMachine.Interact.PowerOff"),
    "AcquireTicket": _on(Place.VMS, "VirtualMachine.Interact.ConsoleInteract"),
    "ShutdownGuest": _on(Place.VMS, "VirtualMachine.Interact.PowerOff"),
    "SearchDatastore_Task": _on(Place.DATASTORES, "Datastore.Browse"),
    "DeleteDatastoreFile_Task": _on(Place.DATASTORES, "Datastore.FileManagement"),
    "Destroy_Task": (
        *_on(Place.VMS, "Folder.Delete", "VirtualMachine.Inventory.Delete"),
        *_on(Place.POOLS, "Resource.DeletePool"),
        *_on(Place.NETWORKS, "DVPortgroup.Delete"),
    ),
    # content libraries, by REST
    "ovf/library-item/deploy": (
        *_on(Place.ROOT, "ContentLibrary.ReadStorage"),
        *_on(Place.POOLS, "VApp.Import"),
        *_on(Place.VMS, "VApp.Import"),
        *_on(Place.DATASTORES, "Datastore.AllocateSpace"),
        *_on(Place.NETWORKS, "Network.Assign"),
    ),
    "MarkAsTemplate": _on(Place.VMS, "VirtualMachine.Provisioning.MarkAsTemplate"),
    # storage policies, by PBM
    "pbm/QueryProfile": _on(Place.ROOT, "StorageProfile.View"),
    # tags, by REST
    "tagging/create": _on(
        Place.ROOT,
        "InventoryService.Tagging.CreateCategory",
        "InventoryService.Tagging.CreateTag",
        "InventoryService.Tagging.DeleteTag",
    ),
    "tagging/attach": tuple(
        Right(place, privilege)
        for place in (Place.VMS, Place.POOLS, Place.NETWORKS)
        for privilege in ("InventoryService.Tagging.AttachTag", "InventoryService.Tagging.ObjectAttachable")
    ),
    # hosts
    "ReconfigureComputeResource_Task": _on(Place.CLUSTERS, "Host.Inventory.EditCluster"),
    "EnterMaintenanceMode_Task": _on(Place.HOSTS, "Host.Config.Maintenance"),
    "ExitMaintenanceMode_Task": _on(Place.HOSTS, "Host.Config.Maintenance"),
}
"""SOAP method, or the end of a REST path with its action → what it takes."""

_WHY: Final[Mapping[str, str]] = {
    "System.Read": "read it",
    "System.View": "find it",
    "Global.ManageCustomFields": "define the attributes that say whose an object is",
    "Global.SetCustomField": "mark what is ours",
    "Folder.Create": "make a folder for each tenant",
    "Folder.Delete": "remove a tenant's folder when it is empty",
    "Resource.CreatePool": "make a pool for each tenant",
    "Resource.EditPool": "set a pool's limits",
    "Resource.DeletePool": "remove a tenant's pool when it is empty",
    "DVPortgroup.Create": "make a network for each tenant",
    "DVPortgroup.Modify": "keep a tenant's network as it should be",
    "DVPortgroup.PolicyOp": "keep its VLAN and security switches as they should be",
    "DVPortgroup.Delete": "remove a tenant's network when nothing is in it",
    "Authorization.ModifyRoles": "make the role of tenants' groups (only where groups are let into vCenter)",
    "Authorization.ModifyPermissions": "let a tenant's group into its folder (only where groups are let into vCenter)",
    "VirtualMachine.Interact.ConsoleInteract": "open consoles for people, and let their group do so",
    "VirtualMachine.Provisioning.DeployTemplate": "clone templates",
    "VirtualMachine.Provisioning.Clone": "clone templates",
    "VirtualMachine.Inventory.CreateFromExisting": "put the clone into the tenant's folder",
    "VirtualMachine.Inventory.Delete": "remove machines",
    "VirtualMachine.Inventory.Move": "bring a machine back into its tenant's folder",
    "Resource.AssignVMToPool": "put machines into their tenant's pool",
    "Resource.ColdMigrate": "place a machine that is off on another host",
    "Datastore.AllocateSpace": "put disks there",
    "Datastore.Browse": "find what was left behind",
    "Datastore.FileManagement": "remove what was left behind",
    "Network.Assign": "put machines into their tenant's network",
    "VirtualMachine.Config.AddRemoveDevice": "add GPUs and network cards",
    "VirtualMachine.Config.AddNewDisk": "give a clone its disks",
    "VirtualMachine.Config.AdvancedConfig": "hand the guest its configuration",
    "VirtualMachine.Config.CPUCount": "set the number of vCPU",
    "VirtualMachine.Config.DiskExtend": "set the size of the disk",
    "VirtualMachine.Config.EditDevice": "set the network of a card",
    "VirtualMachine.Config.Memory": "set the memory",
    "VirtualMachine.Config.RawDevice": "give whole GPUs by passthrough",
    "VirtualMachine.Config.Resource": "lock the memory, as GPUs need it",
    "VirtualMachine.Config.Settings": "set firmware and identity",
    "VirtualMachine.Interact.DeviceConnection": "cut a machine off the network, and back",
    "VirtualMachine.Interact.PowerOn": "switch machines on",
    "VirtualMachine.Interact.PowerOff": "switch machines off",
    "ContentLibrary.ReadStorage": "deploy items of content libraries (only where libraries are named)",
    "VApp.Import": "deploy items of content libraries (only where libraries are named)",
    "VirtualMachine.Provisioning.MarkAsTemplate": "make a template of an item (only where libraries are named)",
    "StorageProfile.View": "see whether the storage policy is there (only where one is named)",
    "InventoryService.Tagging.CreateCategory": "make the categories of our tags (only where tags are switched on)",
    "InventoryService.Tagging.CreateTag": "make a tag for each tenant (only where tags are switched on)",
    "InventoryService.Tagging.DeleteTag": "remove a tenant's tag with its last object (only where tags are on)",
    "InventoryService.Tagging.AttachTag": "tag what is ours (only where tags are switched on)",
    "InventoryService.Tagging.ObjectAttachable": "tag what is ours (only where tags are switched on)",
    "Host.Inventory.EditCluster": "keep a machine on the host that was chosen for it",
    "Host.Config.Maintenance": "empty a host before work on it",
}
ONLY_FOR_GROUPS: Final = frozenset({"AddAuthorizationRole", "SetEntityPermissions", "RemoveEntityPermission"})
"""Methods that are called only where tenants' groups are let into vCenter."""
ONLY_FOR_LIBRARIES: Final = frozenset({"ovf/library-item/deploy", "MarkAsTemplate"})
"""Those that are called only where content libraries are named."""
ONLY_FOR_TAGS: Final = frozenset({"tagging/create", "tagging/attach"})
"""Those that are called only where tags are switched on."""
ONLY_FOR_POLICIES: Final = frozenset({"pbm/QueryProfile"})
"""Those that are called only where a storage policy is named."""
SENTENCES: Final = (
    "Read hosts, GPUs, virtual machines, datastores and networks of the datacenter",
    "Mark what is ours by attributes of its own",
    "Make and remove folders, pools and port groups, and grant a tenant's group its folder",
    "Clone templates, fit machines with vGPUs or GPUs, switch and remove them",
    "Take hosts into maintenance on which nothing runs",
)


def needed(
    *, groups: bool = True, libraries: bool = True, tags: bool = True, policies: bool = True
) -> tuple[Right, ...]:
    """Return every right, each once; `groups`: tenants' groups are let into vCenter, the others as settings say."""
    without: set[str] = set()
    for is_used, methods in (
        (groups, ONLY_FOR_GROUPS),
        (libraries, ONLY_FOR_LIBRARIES),
        (tags, ONLY_FOR_TAGS),
        (policies, ONLY_FOR_POLICIES),
    ):
        without |= set() if is_used else methods
    found = {right for method, rights in CALLS.items() if method not in without for right in rights}
    return tuple(sorted(found, key=lambda one: (list(Place).index(one.place), one.privilege)))


def why(right: Right) -> str:
    """Return what a right is for, to follow on `Needed to`."""
    return _WHY[right.privilege]


def by_place(rights: Iterable[Right]) -> dict[Place, list[str]]:
    """Return privileges by where they are needed."""
    found: dict[Place, list[str]] = defaultdict(list)
    for right in rights:
        found[right.place].append(right.privilege)
    return dict(found)


def roles(rights: Collection[Right] = ()) -> dict[str, list[str]]:
    """Return the two roles that give all rights: name → privileges, without those that every role has."""
    given = rights or needed()
    root = {one.privilege for one in given if one.place is Place.ROOT}
    rest = {one.privilege for one in given if one.place is not Place.ROOT}
    return {
        ROOT_ROLE: sorted(name for name in root if not name.startswith("System.")),
        ACCOUNT_ROLE: sorted(name for name in rest if not name.startswith("System.")),
    }


def document() -> str:
    """Return `deploy/vcenter-role.md`."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    made = roles()
    yield "# What Tenantry's account needs in a vCenter"
    yield ""
    yield "Generated from `provisioners/vsphere/privileges.py`. Testing a provider names each right that is missing."
    yield ""
    yield "1. Make a user of its own for Tenantry, in a local or central directory, and use it for nothing else."
    yield "2. Make two roles. With `govc`, as an administrator:"
    yield ""
    yield "   ```sh"
    for name, privileges in made.items():
        yield f"   govc role.create '{name}' \\"
        for at, privilege in enumerate(privileges):
            yield f"     {privilege}{' ' + chr(92) if at < len(privileges) - 1 else ''}"
    yield "   ```"
    yield ""
    yield "3. Grant them to the user (`DATACENTER` is the datacenter with the GPU hosts):"
    yield ""
    yield "   ```sh"
    yield f"   govc permissions.set -principal USER -role '{ROOT_ROLE}' -propagate=false /"
    yield f"   govc permissions.set -principal USER -role '{ACCOUNT_ROLE}' -propagate=true /DATACENTER"
    yield "   ```"
    yield ""
    yield "The second role may also be granted on single objects: the table says on which. Whoever narrows it this way"
    yield "must leave the right to read hosts and the VMs on them, or what others use there is not seen."
    yield ""
    for place, privileges in by_place(needed()).items():
        yield f"## On {place}"
        yield ""
        yield "| Privilege | Needed to |"
        yield "| --- | --- |"
        for name in privileges:
            yield f"| `{name}` | {_WHY[name]} |"
        yield ""
    yield "## Not needed"
    yield ""
    yield "No right to change hosts beyond maintenance and rules of DRS, no right over other folders' machines, no"
    yield "administrator's role."
    yield "What it takes to add a vGPU device (`VirtualMachine.Config.AddRemoveDevice`) is public in few places;"
    yield "acceptance of a host tries it before any tenant does."
