"""Running tasks of a vCenter as handles of the contract: stored as text and asked; short ones are awaited.

And those that run, whoever started them, for what no search of the inventory finds yet.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pyVmomi import vim, vmodl

from provisioners.driver import Done, Handle, Poll
from provisioners.vsphere.client import MoRef, VCenterClient, managed, reference
from provisioners.vsphere.failures import LookFirst

SHORT_S: Final = 5.0
"""For how long a task is awaited that is over at once on a vCenter that is well."""
ONE_WAIT_S: Final = 10
"""For one call: below the deadline of every call, or waiting would look like a connection that broke."""
_KIND: Final = "vsphere-task"
_Collector: Final = vmodl.query.PropertyCollector


@dataclass(frozen=True, slots=True)
class Alive:
    """A task that is queued or runs."""

    id: str
    what: str
    """vCenter's key of its description: `VirtualMachine.clone`."""
    entity: MoRef | None
    name: str
    """Of the entity; of one that is being made, what it will be called."""
    chain: int
    queued: datetime


def handle_of(client: VCenterClient, task_id: str) -> Handle:
    """Return the handle of a task that was just started; it names its vCenter, for another one counts anew."""
    return Handle(f"{_KIND} {client.about()['instance_uuid']} {task_id}")


def task_of(client: VCenterClient, handle: Handle) -> str | None:
    """Return the task's id of a handle, None for a handle of something else or of another vCenter."""
    match handle.value.split(" "):
        case [kind, vcenter, task_id] if kind == _KIND and vcenter == client.about()["instance_uuid"]:
            return task_id
    return None


def poll_of(client: VCenterClient, handle: Handle) -> Poll:
    """Look at a task; `unknown` where only the inventory can tell: a forgotten one, or somebody was there before us."""
    task_id = task_of(client, handle)
    if task_id is None:
        return Poll("unknown")
    told = client.task(task_id)
    if told.state == "success":
        return Poll("done")
    if told.state != "error":
        return Poll("running" if told.state in {"queued", "running"} else "unknown")
    # of two clones of one name either may win: the loser's DuplicateName says nothing about the VM
    return Poll("unknown") if isinstance(told.error, LookFirst) else Poll("failed", error=told.error)


def finish(client: VCenterClient, task_id: str, *, within_s: float | None = None) -> Handle | Done:
    """Wait for a short task (`SHORT_S`); its handle where it takes longer. Raises what it failed with."""
    _await_end(client, task_id, SHORT_S if within_s is None else within_s)
    told = client.task(task_id)
    if told.error is not None:
        raise told.error
    return Done() if told.state == "success" else handle_of(client, task_id)


def _await_end(client: VCenterClient, task_id: str, within_s: float) -> None:
    """Return when a task is over or forgotten, or the time is. Its own collector: a shared one shows others' ends."""

    def look(session: Any) -> None:
        collector = session.content.propertyCollector.CreatePropertyCollector()
        try:
            wanted = _Collector.ObjectSpec(obj=managed(MoRef("Task", task_id), session.si))
            paths = _Collector.PropertySpec(type=vim.Task, pathSet=["info.state"])
            collector.CreateFilter(_Collector.FilterSpec(objectSet=[wanted], propSet=[paths]), False)
            end, version = time.monotonic() + within_s, ""
            while (left := end - time.monotonic()) > 0:
                wait = min(ONE_WAIT_S, math.ceil(left))
                told = collector.WaitForUpdatesEx(version, _Collector.WaitOptions(maxWaitSeconds=wait))
                if told is not None:
                    version = told.version
                    if _states(told) & {"success", "error"}:
                        return
        finally:
            with contextlib.suppress(vmodl.MethodFault, OSError, http.client.HTTPException):
                collector.DestroyPropertyCollector()

    with contextlib.suppress(LookFirst):  # forgotten, or the connection broke: the task itself is asked next
        client.reading(look)


def _states(told: Any) -> set[str]:
    changes = (change for part in told.filterSet for one in part.objectSet for change in one.changeSet)
    return {str(change.val) for change in changes}


def alive(session: Any) -> list[Alive]:
    """Return the tasks that are queued or run, in two calls however many there are; in one where none does.

    Of most tasks, which have ended, only that is read: a busy vCenter tells two hundred of them.
    """
    manager = session.content.taskManager
    walk = _Collector.TraversalSpec(name="recent", type=type(manager), path="recentTask", skip=False)
    recent = _Collector.ObjectSpec(obj=manager, skip=True, selectSet=[walk])
    running = [one.obj for one in _pages(session, [recent], "info.state") if _is_alive(one)]
    if not running:
        return []
    asked = [_Collector.ObjectSpec(obj=task) for task in running]
    paths = ("descriptionId", "entity", "entityName", "queueTime", "eventChainId")
    found = []
    for one in _pages(session, asked, "info.state", *(f"info.{path}" for path in paths)):
        values = {prop.name.removeprefix("info."): prop.val for prop in one.propSet}
        if _is_alive(one):
            entity = values.get("entity")
            found.append(
                Alive(
                    id=one.obj._moId,
                    what=str(values.get("descriptionId", "")),
                    entity=None if entity is None else reference(entity),
                    name=str(values.get("entityName") or ""),
                    chain=int(values.get("eventChainId") or 0),
                    queued=values.get("queueTime") or datetime.now(UTC),
                )
            )
    return found


def _is_alive(task: Any) -> bool:
    return any(prop.name == "info.state" and str(prop.val) in {"queued", "running"} for prop in task.propSet)


def _pages(session: Any, objects: list[Any], *paths: str) -> Iterator[Any]:
    collector = session.content.propertyCollector
    spec = _Collector.FilterSpec(
        objectSet=objects, propSet=[_Collector.PropertySpec(type=vim.Task, pathSet=list(paths))]
    )
    page = collector.RetrievePropertiesEx([spec], _Collector.RetrieveOptions())
    while page:
        yield from page.objects
        page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None
