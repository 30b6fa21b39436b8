"""Images in content libraries: OVF items, each brought into the inventory once as a template of ours, then cloned.

A library deploys an item in one call that answers when all is copied, minutes later. A machine is therefore no deployed
item but a clone of a template that an item was deployed to: clones are what this driver makes exactly once, whatever
gets lost. The template's name is made of the item's id and version, so a second worker finds it, and a new version is
another template.

Invariants: a deployed VM becomes a template only when its deployment has ended; what a worker that died left is
adopted when vCenter is at work on it no more, what a deployment of our own left that failed is not; a deployment delays
machines of its own image only, says how long, and fails none for good.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

from pyVmomi import vim

from provisioners.driver import Conflicting, Done, DriverError, NoCapacity, TransientDriverError
from provisioners.vsphere import datastore
from provisioners.vsphere.client import MoRef, managed, reference
from provisioners.vsphere.failures import LookFirst, error_of, fault_of
from provisioners.vsphere.ground import Ground, HostPlace
from provisioners.vsphere.names import IMAGE_FIELD
from provisioners.vsphere.rest import RestClient, message_of
from provisioners.vsphere.tasks import alive, finish
from provisioners.vsphere.templates import says_cloud_init

OVF: Final = "ovf"
LIBRARY: Final = "/content/library"
ITEM: Final = "/content/library/item"
DEPLOY: Final = "/vcenter/ovf/library-item"
DEPLOY_S: Final = 3600.0
"""How long one answer is waited for; a library on slow storage copies for many minutes."""
LISTED_S: Final = 60.0
"""How long the list of a library is taken as read."""
DETAILS_S: Final = 600.0
AGAIN_S: Final = 5.0
FAILED_S: Final = 300.0
"""After so long a deployment that failed is tried again: each try may copy all of an image."""
SETTLED: Final = timedelta(seconds=120)
"""After so long a VM that vCenter is not at work on is what a deployment has left, and not what one has begun."""
_PATHS: Final = (
    "name", "config.template", "config.createDate", "recentTask", "customValue", "runtime.powerState", "disabledMethod",
)  # fmt: skip
_CLOSED: Final = frozenset({"MarkAsTemplate", "PowerOnVM_Task"})
"""What vCenter lets nobody call while a VM is being brought."""
_DEPLOYS: Final = ("import", "deploy", "instantiate", "ovf")
"""In the descriptions of tasks that bring one, as `ResourcePool.ImportVAppLRO`."""
_NO_YEAR: Final = 1970
"""Of the date that vCenter gives a VM that has none yet."""
_NAMES: Final = UUID("5f6f0f0e-5a58-4f0c-9c35-4a3a4e6b4f6d")
_GIB: Final = 2**30
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One OVF item of a content library."""

    id: str
    name: str
    library: str
    """Name of the library."""
    version: str
    """Of its content; another one is another image."""
    description: str
    size: int = 0
    """Bytes."""

    @property
    def slug(self) -> str:
        """Return the image's name for tenants."""
        return re.sub(r"[^a-z0-9._-]+", "-", self.name.lower()).strip("-._")[:63]


@dataclass(frozen=True, slots=True)
class Listed:
    """What the configured libraries hold."""

    items: tuple[Item, ...] = ()
    missing: tuple[str, ...] = ()
    """Names of libraries that vCenter does not show."""


NOTHING: Final = Listed()


@dataclass(slots=True)
class _Deployment:
    """One that this process waits for."""

    began: float
    error: DriverError | None = None
    refused: bool = False
    """Whether vCenter itself said that it failed: what it left then is half an image."""
    ended: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether its answer has come, or will not come."""
        return self.ended > 0


_RUNNING: Final[dict[tuple[str, str], _Deployment]] = {}
"""(vCenter, name of the template) → the deployment, for all drivers of this process."""
_RUNNING_LOCK: Final = threading.Lock()


def image_name(vcenter: str, item: Item) -> str:
    """Return the name of the template that an item is deployed to; none of a directory that a sweep looks for."""
    return f"tn-image-{uuid5(_NAMES, f'{vcenter}/{item.id}/{item.version}').hex}"


class Libraries:
    """The content libraries of one vCenter. Thread-safe."""

    def __init__(self, ground: Ground, rest: RestClient) -> None:
        """Read through `rest`; look at what was deployed through `ground`."""
        self._ground, self._rest = ground, rest
        self._lock = threading.Lock()
        self._listed: tuple[float, Listed] | None = None
        self._details: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._seen: dict[MoRef, float] = {}

    # --- what there is ----------------------------------------------------------------------------

    def listed(self) -> Listed:
        """Return the OVF items of the configured libraries. Raises `DriverError`."""
        wanted = self._ground.settings.libraries
        if not wanted:
            return Listed()
        with self._lock:
            if self._listed is not None and time.monotonic() - self._listed[0] < LISTED_S:
                return self._listed[1]
        by_name = {name: found for name in wanted if (found := self._library(name))}
        items: list[Item] = []
        for name, library in by_name.items():
            asked = {"spec": {"library_id": library, "type": OVF}}
            for each in self._rest.post(ITEM, asked, action="find") or ():
                told = self._detail(f"{ITEM}/id:{each}")
                if str(told.get("type", "")) == OVF:
                    items.append(_item(told, name))
        listed = Listed(
            tuple(sorted(items, key=lambda one: (wanted.index(one.library), one.name, one.id))),
            tuple(name for name in wanted if name not in by_name),
        )
        with self._lock:
            self._listed = (time.monotonic(), listed)
        return listed

    def _library(self, name: str) -> str:
        """Return the id of a library, `""` where there is none; vCenter's search takes capitals for small letters."""
        for found in self._rest.post(LIBRARY, {"spec": {"name": name}}, action="find") or ():
            if self._detail(f"{LIBRARY}/id:{found}").get("name") == name:
                return str(found)
        return ""

    def _detail(self, path: str) -> Mapping[str, Any]:
        """Return what is at a path, nothing where it has gone; what stays as it is is not asked for at every look."""
        known = self._details.get(path)
        if known is not None and time.monotonic() - known[0] < DETAILS_S:
            return known[1]
        try:
            told = self._rest.get(path)
        except DriverError as error:
            if fault_of(error) != "ManagedObjectNotFound":
                raise
            return {}  # gone since it was listed
        found = told if isinstance(told, Mapping) else {}
        self._details[path] = (time.monotonic(), found)
        return found

    def find(self, slug: str) -> Item | None:
        """Return the item of an image. Raises `DriverError`."""
        return next((one for one in usable(self.listed()) if one.slug == slug), None)

    # --- a template of it -------------------------------------------------------------------------

    def template(self, item: Item, host: HostPlace) -> MoRef:
        """Return the template of an item; where there is none its deployment is begun.

        Raises `TransientDriverError` until it is there, with the reason where it could not be deployed.
        """
        ground = self._ground
        vcenter = ground.client.about()["instance_uuid"]
        name, folder = image_name(vcenter, item), ground.root_folder()
        if folder is None:
            raise TransientDriverError(f"folder {ground.settings.root_folder} is not there yet")
        with _RUNNING_LOCK:
            running = _RUNNING.get((vcenter, name))
        if running is not None and not running.is_over:
            raise _wait(item, time.monotonic() - running.began)
        found = ground.child(folder, name)
        if found is None and running is not None and time.monotonic() - running.ended < FAILED_S:
            raise _told(item, running.error)
        if found is None:
            self._begin(item, name, folder, host, vcenter)
            raise _wait(item, 0)
        return self._finished(item, found, running)

    def _finished(self, item: Item, vm: MoRef, running: _Deployment | None) -> MoRef:
        """Make a template of what was deployed, once vCenter is done with it; `running` is our own deployment."""
        client = self._ground.client
        told = client.get(vm, *_PATHS)
        if told is None:
            raise TransientDriverError(f"what image {item.slug} was deployed to has gone")
        if told.get("config.template"):
            return vm
        mark = self._ground.attribute(told, IMAGE_FIELD)
        if mark and mark != _mark(item):
            raise Conflicting(f"the VM that is called like our copy of {item.name} is another one's")
        if told.get("runtime.powerState") != "poweredOff":
            raise Conflicting(f"our copy of {item.name} was switched on; switch it off, or remove it")
        age = self._age(vm, told)
        tasks = [client.task(reference(one).id).state for one in told.get("recentTask") or ()]
        if {"running", "queued"} & set(tasks) or _CLOSED & set(told.get("disabledMethod") or ()):
            raise _wait(item, age.total_seconds())
        if running is not None and running.refused and not mark:
            raise TransientDriverError(
                f"image {item.slug} could not be deployed and left the VM {told.get('name')}; "
                "remove it in vCenter, and the image is tried again",
                raw="" if running.error is None else running.error.raw or running.error.detail,
                retry_after_s=FAILED_S,
            )
        answered = running is not None and running.error is None
        if not answered and not mark and (age < SETTLED or self._is_deploying(vm, str(told.get("name")))):
            raise _wait(item, age.total_seconds())
        if not mark:
            notes = vim.vm.ConfigSpec(annotation=item.description)
            if finish(client, client.start(lambda si: managed(vm, si).ReconfigVM_Task(notes))) != Done():
                raise _wait(item, age.total_seconds())
            self._ground.set_attribute(vm, _mark(item), IMAGE_FIELD)
        client.changing(lambda si: managed(vm, si).MarkAsTemplate())
        return vm

    def _age(self, vm: MoRef, told: Mapping[str, Any]) -> timedelta:
        """Return how old a VM is; where vCenter does not tell, since when we have known it."""
        born: datetime | None = told.get("config.createDate")
        if born is not None and born.year > _NO_YEAR:
            return datetime.now(UTC) - born
        with self._lock:
            return timedelta(seconds=time.monotonic() - self._seen.setdefault(vm, time.monotonic()))

    def _is_deploying(self, vm: MoRef, name: str) -> bool:
        """Whether vCenter is at work on a deployment that may be the one that makes this VM."""
        ground = self._ground
        where = {vm, ground.root_folder(), *(one.pool for one in ground.estate().clusters)}
        running = [one for one in ground.client.reading(alive) if any(word in one.what.lower() for word in _DEPLOYS)]
        return any(one.name == name or (one.entity is not None and one.entity in where) for one in running)

    # --- deploying --------------------------------------------------------------------------------

    def _begin(self, item: Item, name: str, folder: MoRef, host: HostPlace, vcenter: str) -> None:
        """Start a deployment and leave its answer to a thread: it comes long after a step may last."""
        settings = self._ground.settings
        store = datastore.choose(self._ground, host, -(-item.size // _GIB))
        spec: dict[str, Any] = {
            "name": name,
            "annotation": item.description,
            "accept_all_EULA": True,
            "storage_provisioning": "thin",
            "default_datastore_id": store.id,
        }
        if settings.storage_policy:
            spec["storage_profile_id"] = settings.storage_policy
        target = {"resource_pool_id": host.cluster.pool.id, "host_id": host.ref.id, "folder_id": folder.id}
        with _RUNNING_LOCK:
            running = _RUNNING.get((vcenter, name))
            if running is not None and not running.is_over:
                return
            state = _RUNNING[vcenter, name] = _Deployment(time.monotonic())

        def wait() -> None:
            rest = RestClient(settings)  # of its own: the driver may be closed before the answer comes
            try:
                told = rest.post(
                    f"{DEPLOY}/id:{item.id}",
                    {"deployment_spec": spec, "target": target},
                    action="deploy",
                    deadline_s=DEPLOY_S,
                )
                state.error = _outcome(item, told)
                state.refused = state.error is not None and not isinstance(state.error, LookFirst)
            except DriverError as error:
                state.error, state.refused = error, _is_refusal(error)
            except Exception as error:  # noqa: BLE001  nobody else would tell, and no error would mean success
                _log.exception("image %s: the answer of vCenter was not understood", item.slug)
                state.error = TransientDriverError(f"image {item.slug} could not be deployed", raw=repr(error))
            finally:
                state.ended = time.monotonic()
                rest.close()
            if state.error is not None:
                _log.warning("image %s was not deployed: %s %s", item.slug, state.error.detail, state.error.raw)

        threading.Thread(target=wait, name=f"deploy-{name}", daemon=True).start()


def _is_refusal(error: DriverError) -> bool:
    """Whether vCenter said that it does nothing; else nobody knows whether it does."""
    return not isinstance(error, LookFirst) and fault_of(error) not in {"SystemError", "Timedout"}


def _told(item: Item, error: DriverError | None) -> DriverError:
    """Return what waiting machines are told of a deployment: nothing that is wrong with it is wrong with them."""
    if error is None:
        return TransientDriverError(f"what image {item.slug} was deployed to has gone")
    if isinstance(error, TransientDriverError | NoCapacity):
        return error
    return TransientDriverError(
        f"image {item.slug} could not be deployed: {error.detail}", raw=error.raw, retry_after_s=FAILED_S
    )


def _outcome(item: Item, told: object) -> DriverError | None:
    """Return why a deployment failed by its answer, None where it did not."""
    if isinstance(told, Mapping) and told.get("succeeded"):
        return None
    error = told.get("error") if isinstance(told, Mapping) else None
    errors = error.get("errors") if isinstance(error, Mapping) else None
    texts = [message_of(one.get("error")) for one in errors or () if isinstance(one, Mapping)]
    why = "; ".join(text for text in texts if text) or "vCenter gives no reason"
    if any("already_exists" in str(one.get("error")) for one in errors or () if isinstance(one, Mapping)):
        return error_of("AlreadyExists", why)  # another worker's, which is no failure
    return TransientDriverError(
        f"image {item.slug}: item {item.name} of content library {item.library} could not be deployed: {why}",
        retry_after_s=FAILED_S,
    )


def _wait(item: Item, for_s: float) -> TransientDriverError:
    return TransientDriverError(
        f"image {item.slug} is being brought from content library {item.library}, for {for_s:.0f} s now; "
        "machines of it wait",
        retry_after_s=AGAIN_S,
    )


def _mark(item: Item) -> str:
    return f"{item.id}@{item.version}"


def _item(told: Mapping[str, Any], library: str) -> Item:
    return Item(
        id=str(told.get("id", "")),
        name=str(told.get("name", "")),
        library=library,
        version=str(told.get("content_version") or told.get("version") or ""),
        description=str(told.get("description") or ""),
        size=int(told.get("size") or 0),
    )


def usable(listed: Listed) -> tuple[Item, ...]:
    """Return the items that are images, in their order: of several of one name the first that can be one."""
    found: dict[str, Item] = {}
    for item in listed.items:
        if item.slug and says_cloud_init(item.description):
            found.setdefault(item.slug, item)
    return tuple(found.values())


def gaps(listed: Listed, taken: Iterable[str] = ()) -> tuple[str, ...]:
    """Return what keeps items from being images, each with what mends it; `taken` are slugs of templates."""
    said = [f"vCenter shows no content library {name}" for name in listed.missing]
    others = set(taken)
    images = {one.id for one in usable(listed) if one.slug not in others}
    for item in listed.items:
        if not item.slug:
            said.append(f"item {item.name!r}: its name has no letter or digit to call an image by")
        elif not says_cloud_init(item.description):
            said.append(
                f"item {item.name}: its description does not say that cloud-init with the VMware datasource is in "
                "it: write “cloud-init” into it where that is so"
            )
        elif item.id not in images:
            said.append(f"item {item.name}: another image is called {item.slug} already; give it another name")
    return tuple(said)


def slugs(listed: Listed, taken: Iterable[str] = ()) -> frozenset[str]:
    """Return the images that items give, beside those of templates."""
    return frozenset(one.slug for one in usable(listed)) - set(taken)
