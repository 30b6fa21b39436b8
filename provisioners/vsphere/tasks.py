"""Running tasks of a vCenter as handles of the contract: stored as text, asked, never waited for."""

from __future__ import annotations

from typing import Final

from provisioners.driver import Handle, Poll
from provisioners.vsphere.client import VCenterClient
from provisioners.vsphere.failures import LookFirst

_KIND: Final = "vsphere-task"


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
