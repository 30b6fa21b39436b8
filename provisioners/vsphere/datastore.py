"""Where a VM's files go, and what of ours was left behind on a datastore: directories that no VM names.

A directory of ours is named like a VM of ours, by ids alone. A name is no proof: another vCenter may have the same
datastore, and a VM that somebody took out of the inventory is data all the same. So a directory is removed by itself
only when this process itself was to remove its VM, and no VM names a file in it at two looks with a pause between them.
Everything else that is stray is remarked on, whoever left it and however often processes have ended since: whose id it
has, the core knows, and people have it removed.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pyVmomi import vim

from provisioners.driver import Conflicting, DriverError, NoCapacity, TransientDriverError
from provisioners.vsphere.client import Found, MoRef, VCenterClient, managed, reference
from provisioners.vsphere.ground import Ground, HostPlace
from provisioners.vsphere.tasks import finish

GRACE_S: Final = 1800.0
"""Between the two looks: longer than a clone may take."""
EVERY_S: Final = 600.0
"""Between looks; the first is after so long too."""
SEARCH_S: Final = 20.0
OURS: Final = re.compile(r"(?P<vm>tn-(?:vm|ep)-[0-9a-f]{32}(?:-(?:0|[1-9][0-9]{0,3}))?)(?:_[0-9]{1,4})?")
"""Names of the directories that vCenter makes for our VMs; a second one of a name gets `_1`."""
ACCEPTANCE: Final = re.compile(r"(?P<vm>tn-accept-[0-9a-f]{32})(?:_[0-9]{1,4})?")
"""The same for VMs that try a host; whose host, the id tells (`acceptance.name_for`)."""
_GIB: Final = 2**30
_STORE: Final = (
    "name",
    "summary.accessible",
    "summary.freeSpace",
    "summary.maintenanceMode",
    "summary.multipleHostAccess",
)
_NAMED: Final = ("name", "config.files.vmPathName", "summary.config.vmPathName", "layoutEx.file")
"""What tells where the files of a VM are; of one that is out of reach the second alone does."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Directory:
    """A directory on a datastore."""

    datastore: str
    path: str
    """Without slashes at its ends."""

    @property
    def written(self) -> str:
        """As vCenter takes it: `[store] dir`."""
        return f"[{self.datastore}] {self.path}"


def check_host(client: VCenterClient, host: HostPlace) -> None:
    """Raise `NoCapacity` for a host that takes nothing now: its VMs belong elsewhere until it is back."""
    told = client.get(host.ref, "runtime.inMaintenanceMode", "runtime.connectionState") or {}
    if told.get("runtime.inMaintenanceMode"):
        raise NoCapacity(f"host {host.name} is in maintenance")
    if told.get("runtime.connectionState") != "connected":
        raise NoCapacity(f"host {host.name} is not connected to vCenter")


def choose(ground: Ground, host: HostPlace, disk_gib: int) -> MoRef:
    """Return the allowed datastore that a host sees with the most free room. Raises `NoCapacity`."""
    told = ground.client.get(host.ref, "datastore")
    if told is None:
        raise TransientDriverError(f"host {host.name} has gone")
    refs = [reference(one) for one in told.get("datastore") or ()]
    return best(ground.client.many(refs, *_STORE), ground.settings.datastores, host.name, disk_gib)


def best(stores: Iterable[Found], allowed: tuple[str, ...], host: str, disk_gib: int) -> MoRef:
    """Return the one of the datastores with the most free room; pure. Raises `NoCapacity`."""
    usable = [one for one in stores if _is_usable(one) and (not allowed or one.values.get("name") in allowed)]
    if not allowed:  # what only one host sees pins a VM to it; taken where there is nothing else
        usable = [one for one in usable if one.values.get("summary.multipleHostAccess")] or usable
    if not usable:
        raise NoCapacity(f"host {host} sees no datastore that may be used")
    found = max(usable, key=lambda one: (int(one.values.get("summary.freeSpace", 0)), one.ref.id))
    if int(found.values.get("summary.freeSpace", 0)) < disk_gib * _GIB:
        raise NoCapacity(f"no datastore of host {host} has {disk_gib} GiB free")
    return found.ref


def _is_usable(store: Found) -> bool:
    return bool(store.values.get("summary.accessible")) and store.values.get("summary.maintenanceMode") == "normal"


# --- what was left behind -------------------------------------------------------------------------


def normal(path: str) -> Directory | None:
    """Return what `[ds]/dir`, `[ds] dir/` or `[ds] dir/x.vmx` names, None for something else."""
    match = re.fullmatch(r"\[(?P<store>[^\]]+)\](?P<rest>.*)", path, re.DOTALL)
    return None if match is None else Directory(match["store"], match["rest"].strip(" /"))


def stray_directories(ground: Ground) -> tuple[Directory, ...]:
    """Return the directories of ours that no VM names, on every datastore that may be used; one look.

    Raises `TransientDriverError` where a VM does not tell of its files: then nothing is known to be stray.
    """
    client, allowed = ground.client, ground.settings.datastores
    rows = client.rows({"Datastore": ("name", "browser", "summary.accessible")}, root=ground.estate().datacenter)
    found: set[Directory] = set()
    for store in rows["Datastore"]:
        name = str(store.values.get("name", ""))
        if store.values.get("summary.accessible") and (not allowed or name in allowed):
            found |= set(_ours_on(ground, name, reference(store.values["browser"])))
    if not found:
        return ()
    # asked after the search: a clone that ended meanwhile is named by now
    used: set[Directory] = set()
    for vm in client.rows({"VirtualMachine": _NAMED})["VirtualMachine"]:
        used |= used_by(vm)
    return tuple(sorted(found - used))


def used_by(vm: Found) -> set[Directory]:
    """Return the directories in which a VM, read with `_NAMED`, has files; pure. Raises `TransientDriverError`.

    Its disks may lie elsewhere than its configuration, and in another VM's directory.
    """
    paths = [vm.values.get("config.files.vmPathName"), vm.values.get("summary.config.vmPathName")]
    if not any(paths):
        raise TransientDriverError(f"{vm.values.get('name') or vm.ref.id} does not tell where its files are")
    paths += [one.name for one in vm.values.get("layoutEx.file") or ()]
    return {Directory(one.datastore, one.path.partition("/")[0]) for path in paths if (one := normal(str(path or "")))}


def _ours_on(ground: Ground, name: str, browser: MoRef) -> Iterator[Directory]:
    spec = vim.host.DatastoreBrowser.SearchSpec(query=[vim.host.DatastoreBrowser.FolderQuery()], matchPattern=["tn-*"])
    task = ground.client.start(lambda si: managed(browser, si).SearchDatastore_Task(f"[{name}]", spec))
    finish(ground.client, task, within_s=SEARCH_S)
    told = ground.client.task(task)
    if told.state != "success":
        raise TransientDriverError(f"datastore {name} is still being searched")
    for entry in getattr(told.result, "file", None) or ():
        if _name(str(entry.path)) is not None:
            yield Directory(name, str(entry.path))


@dataclass(frozen=True, slots=True)
class Swept:
    """What came of a look for what was left behind."""

    removed: tuple[Directory, ...]
    left: tuple[Directory, ...] | None
    """Stray and not to be removed by itself; None where a clone whose name is not told may be making one of them."""


class Sweeper:
    """Removes what is left of VMs that were removed here, stray at two looks. Thread-safe; remembers the first look."""

    def __init__(
        self, ground: Ground, *, grace_s: float = GRACE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Sweep the datastores of one vCenter."""
        self._ground, self._grace_s, self._clock = ground, grace_s, clock
        self._first: dict[Directory, float] = {}
        self._removed: dict[str, float] = {}
        """VM that was to be removed → when."""
        self._looked = clock()
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        """Whether it is time for a look; true once per look, however many ask."""
        with self._lock:
            if self._clock() - self._looked < EVERY_S:
                return False
            self._looked = self._clock()
            return True

    def expect(self, vm: str) -> None:
        """Take what is left of a VM for rubbish from now on: it is being removed."""
        with self._lock:
            self._removed[vm] = self._clock()

    def keep(self, vm: str) -> None:
        """Take nothing of a VM for rubbish any more: it is made again."""
        with self._lock:
            self._removed.pop(vm, None)

    def sweep(self, *, making: Collection[str] = ()) -> Swept:
        """Look once; say what was removed now, and what is stray. One that cannot be removed keeps no other.

        `making` are the VMs that are being cloned, here or elsewhere, `""` for one whose name is not told.
        """
        found = stray_directories(self._ground)
        now = self._clock()
        with self._lock:
            self._first = {one: self._first.get(one, now) for one in found}
            names = {vm_of(one) for one in found}
            self._removed = {
                vm: at for vm, at in self._removed.items() if vm in names or now - at < self._grace_s + EVERY_S
            }
            old = {one for one, since in self._first.items() if now - since >= self._grace_s}
            wanted = self._removed.keys() - set(making) if "" not in making else set()
            due = sorted(one for one in old if vm_of(one) in wanted)
            expected = set(self._removed)
        removed = tuple(one for one in due if self._try(one))
        if "" in making:
            return Swept(removed, None)
        left = tuple(one for one in found if vm_of(one) not in expected | set(making))
        return Swept(removed, left)

    def _try(self, directory: Directory) -> bool:
        try:
            return self.remove(directory)
        except DriverError as error:
            _log.warning("%s could not be removed: %s", directory.written, error.detail)
            return False

    def remove_left(self, written: str, *, making: Collection[str]) -> bool:
        """Remove a directory that people want removed, if it still is stray; whether it is gone.

        Raises `Conflicting` for one that is in use, or is not named like one of ours.
        """
        directory = normal(written)
        if directory is None or _name(directory.path) is None:
            raise Conflicting(f"{written} is not named like a machine of ours")
        if vm_of(directory) in making or "" in making:
            raise TransientDriverError("a machine is being cloned that may be its owner")
        if directory not in stray_directories(self._ground):
            if self._exists(directory):
                raise Conflicting(f"a VM has files in {written}")
            return True
        return self.remove(directory)

    def _exists(self, directory: Directory) -> bool:
        ground = self._ground
        wanted = {"Datastore": ("name", "browser", "summary.accessible")}
        for store in ground.client.rows(wanted, root=ground.estate().datacenter)["Datastore"]:
            if store.values.get("name") == directory.datastore:
                return directory in set(_ours_on(ground, directory.datastore, reference(store.values["browser"])))
        raise TransientDriverError(f"datastore {directory.datastore} is not there")

    def remove(self, directory: Directory) -> bool:
        """Remove one directory of ours; False while it is still being removed."""
        client, datacenter = self._ground.client, self._ground.estate().datacenter
        task = client.start(
            lambda si: si.content.fileManager.DeleteDatastoreFile_Task(
                name=directory.written, datacenter=managed(datacenter, si)
            )
        )
        finish(client, task, within_s=SEARCH_S)
        return client.task(task).state == "success"


def vm_of(directory: Directory) -> str:
    """Return the name of the VM that a directory was made for, `""` for one that is not named like one of ours."""
    return _name(directory.path) or ""


def _name(path: str) -> str | None:
    match = OURS.fullmatch(path) or ACCEPTANCE.fullmatch(path)
    return None if match is None else match["vm"]
