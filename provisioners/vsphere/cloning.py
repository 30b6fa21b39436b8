"""Full clones of templates: what they are made of, where they go, how many at a time, and which ones are running.

While a clone runs neither a search by name nor one by UUID finds the machine; vCenter's own tasks and the events that
it writes at their start do (`VmBeingClonedEvent` names the machine and its host). So what runs is asked of vCenter,
not of this process: after a lost answer the same clone is waited for, and limits hold over all workers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pyVmomi import vim

from provisioners.driver import Done, DriverRejected, Handle, NotSupported, Ref, TransientDriverError
from provisioners.vsphere import datastore, templates, vms
from provisioners.vsphere.client import MoRef, managed
from provisioners.vsphere.ground import BoundaryPlace, Ground, HostPlace
from provisioners.vsphere.hardware import EFI, options
from provisioners.vsphere.libraries import Libraries
from provisioners.vsphere.names import instance_uuid, vm_name
from provisioners.vsphere.tasks import alive, finish

SOONEST_S: Final = 0.25
SOON_S: Final = 2.0
"""When to ask again for a place among the clones that run, at the earliest and at the latest."""
_SHARE: Final = 0.05
"""Of the age of the oldest clone that runs: so much of a clone's time a place may stay empty."""
_CLONES: Final = "VirtualMachine.clone"
"""Begins the description of a clone's task: `VirtualMachine.clone`; the lab's simulator says `cloneVm`."""
_SLACK: Final = timedelta(seconds=10)
_LOOKING_S: Final = 10.0
_LOCKS: Final[dict[str, threading.Lock]] = {}
"""Of each vCenter, for all drivers of this process."""
_LOCKS_LOCK: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class RunningClone:
    """A clone that vCenter is at work on."""

    task: str
    name: str
    """What the new machine is called, `""` where vCenter does not tell."""
    host: str
    """Name of the host that it goes to, `""` as above."""
    queued: datetime


@dataclass(frozen=True, slots=True)
class _Task:
    id: str
    source: MoRef | None
    chain: int
    queued: datetime


@dataclass(frozen=True, slots=True)
class _Event:
    source: str
    chain: int
    key: int
    created: datetime
    name: str
    host: str


class Clones:
    """The clones of one vCenter. Thread-safe."""

    def __init__(self, ground: Ground, libraries: Libraries | None = None) -> None:
        """Clone in the vCenter of `ground`, what it has as templates or `libraries` as items."""
        self._ground, self._libraries = ground, libraries
        self._known: dict[str, tuple[int, MoRef]] = {}
        self._lock = threading.Lock()

    # --- templates --------------------------------------------------------------------------------

    def template(self, image: str, host: HostPlace, *, with_gpu: bool) -> MoRef:
        """Return the template of an image, brought to `host` from its library where it is not there yet.

        Raises `NotSupported`, `DriverRejected` with the field, `TransientDriverError` while it is brought.
        """
        name = self._ground.settings.templates.get(image)
        if name is None:
            return self._of_library(image, host, with_gpu=with_gpu)
        ref, told = self._read(name)
        if not _is_called(told, name):  # renamed since it was found, for a newer one perhaps
            with self._lock:
                self._known.pop(name, None)
            ref, told = self._read(name)
        if ref is None or told is None or not _is_called(told, name):
            raise DriverRejected(f"image: vCenter has no template {name}")
        _refuse_unfit(f"template {name}", told, with_gpu=with_gpu)
        return ref

    def _of_library(self, image: str, host: HostPlace, *, with_gpu: bool) -> MoRef:
        item = None if self._libraries is None else self._libraries.find(image)
        if self._libraries is None or item is None:
            beside = " and no item of a content library" if self._ground.settings.libraries else ""
            raise NotSupported(f"image: no template{beside} is configured for {image}")
        ref = self._libraries.template(item, host)
        told = self._ground.client.get(ref, *templates.PATHS)
        if told is None:
            raise TransientDriverError(f"the template that {item.name} was deployed to has gone")
        _refuse_unfit(f"item {item.name} of library {item.library}", told, with_gpu=with_gpu)
        return ref

    def _read(self, name: str) -> tuple[MoRef | None, Mapping[str, Any] | None]:
        ref = self._named(name)
        return ref, None if ref is None else self._ground.client.get(ref, *templates.PATHS)

    def _named(self, name: str) -> MoRef | None:
        client = self._ground.client
        with self._lock:
            known = self._known.get(name)
        if known is not None and known[0] == client.logins:
            return known[1]
        rows = client.rows({"VirtualMachine": ("name", "config.template")})["VirtualMachine"]
        # a content library keeps its own copy under the same name; the oldest is the one that was there first
        found = [one.ref for one in rows if one.values.get("name") == name and one.values.get("config.template")]
        if not found:
            return None
        ref = min(found, key=lambda one: (len(one.id), one.id))
        with self._lock:
            self._known[name] = (client.logins, ref)
        return ref

    # --- what runs --------------------------------------------------------------------------------

    def running(self) -> tuple[RunningClone, ...]:
        """Return the clones that vCenter is at work on, with name and host where it tells them."""
        tasks = self._ground.client.reading(_read_tasks)
        if not tasks:
            return ()
        begin = min(one.queued for one in tasks) - _SLACK
        events = self._ground.client.reading(lambda session: _read_events(session, begin))
        return matched(tasks, events)

    def of(self, ref: Ref, index: int | None) -> RunningClone | None:
        """Return the running clone that will be a VM of ours, None where none is seen."""
        return next((one for one in self.running() if one.name == vm_name(ref, index)), None)

    def check_room(self, running: Sequence[RunningClone], host: str) -> None:
        """Raise `TransientDriverError` while as many clones of ours run as may.

        Processes that look at the same moment may each be let in; then vCenter itself lets the one too many wait.
        """
        settings = self._ground.settings
        running = [one for one in running if not one.name or datastore.OURS.fullmatch(one.name)]
        here = [one for one in running if one.host == host]
        if len(running) >= settings.clones:
            raise _full(f"vCenter makes {len(running)} machines already", running)
        if len(here) >= settings.clones_per_host:
            raise _full(f"host {host} takes {len(here)} new machines already", here)

    # --- starting ---------------------------------------------------------------------------------

    def start(
        self, ref: Ref, index: int | None, template: MoRef, place: BoundaryPlace, *, disk_gib: int, record: str
    ) -> Handle | Done:
        """Start one clone; powered off, without hardware of its own.

        Raises `NoCapacity` without room for its disk, `TransientDriverError` while there is no place for one more.
        """
        client = self._ground.client
        store = datastore.choose(self._ground, place.host, disk_gib)
        policy = self._ground.settings.storage_policy

        def clone(si: Any) -> Any:
            where = vim.vm.RelocateSpec(
                pool=managed(place.pool, si),
                datastore=managed(store, si),
                host=managed(place.host.ref, si),
                profile=[vim.vm.DefinedProfileSpec(profileId=policy)] if policy else [],
            )
            extra = options({vms.key_of(vms.CLONE): record})
            config = vim.vm.ConfigSpec(instanceUuid=instance_uuid(ref, index), extraConfig=extra)
            spec = vim.vm.CloneSpec(location=where, config=config, powerOn=False, template=False)
            return managed(template, si).CloneVM_Task(
                folder=managed(place.folder, si), name=vm_name(ref, index), spec=spec
            )

        with self._one_at_a_time():
            # asked again: many that asked before may all have been let in
            self.check_room(self.running(), place.host.name)
            task = client.start(clone)
        return finish(client, task, within_s=1)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Let one thread of this process look and start; its task is seen by the next."""
        with _LOCKS_LOCK:
            lock = _LOCKS.setdefault(self._ground.client.about()["instance_uuid"], threading.Lock())
        if not lock.acquire(timeout=_LOOKING_S):
            raise TransientDriverError("vCenter is slow to start other machines; this one waits", retry_after_s=SOON_S)
        try:
            yield
        finally:
            lock.release()


def _refuse_unfit(what: str, told: Mapping[str, Any], *, with_gpu: bool) -> None:
    """Raise `DriverRejected` where a template cannot become a machine."""
    if with_gpu and told.get("config.firmware") != EFI:
        raise DriverRejected(f"image: {what} does not start by EFI, which a GPU needs")
    for fault in templates.faults(told, with_gpu=with_gpu):
        raise DriverRejected(f"image: {what} cannot be used: {fault}")


def _is_called(told: Mapping[str, Any] | None, name: str) -> bool:
    return told is not None and bool(told.get("config.template")) and told.get("name") == name


def _full(what: str, running: Sequence[RunningClone]) -> TransientDriverError:
    age_s = (datetime.now(UTC) - min(one.queued for one in running)).total_seconds()
    again_s = min(SOON_S, max(SOONEST_S, _SHARE * age_s))
    return TransientDriverError(f"{what}, as many as may be at a time; this one waits", retry_after_s=again_s)


def matched(tasks: Sequence[_Task], events: Sequence[_Event]) -> tuple[RunningClone, ...]:
    """Return each task with what its event tells; pure. An event is of one task at most.

    vCenter gives both the same chain; where it gives none, the event is the last before the task of the same source.
    """
    left = sorted(events, key=lambda one: one.key)
    found = []
    for task in sorted(tasks, key=lambda one: one.queued):
        own = [one for one in left if task.chain and one.chain == task.chain]
        if not task.chain:
            mine = [one for one in left if task.source is not None and one.source == task.source.id]
            own = [one for one in mine if one.created <= task.queued + timedelta(milliseconds=1)][-1:]
        event = own[0] if own else None
        if event is not None:
            left.remove(event)
        name, host = ("", "") if event is None else (event.name, event.host)
        found.append(RunningClone(task.id, name, host, task.queued))
    return tuple(found)


def _read_tasks(session: Any) -> list[_Task]:
    """Return the clone tasks that are queued or run."""
    found = []
    for one in alive(session):
        if one.what.startswith(_CLONES):
            source = one.entity if one.entity is not None and one.entity.kind == "VirtualMachine" else None
            found.append(_Task(one.id, source, one.chain, one.queued))
    return found


def _read_events(session: Any, begin: datetime) -> list[_Event]:
    spec = vim.event.EventFilterSpec(
        eventTypeId=["VmBeingClonedEvent"], time=vim.event.EventFilterSpec.ByTime(beginTime=begin)
    )
    return [
        _Event(
            source=one.vm.vm._moId if one.vm else "",
            chain=int(one.chainId or 0),
            key=int(one.key),
            created=one.createdTime,
            name=str(one.destName),
            host=str(one.destHost.name) if one.destHost else "",
        )
        for one in session.content.eventManager.QueryEvents(spec) or ()
    ]
