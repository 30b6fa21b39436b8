"""Emptying a host before work on it, and taking it back.

vCenter's own way to keep a host empty is maintenance mode, and entering it makes vCenter move or wait for every VM on
the host, whoever's. So the host first gets a mark of ours (a custom attribute, which any worker reads after any
restart): from then on nothing of ours is placed there, and what others run is shown and left alone. Only when nothing
runs on it any more, ours or not, is it taken into maintenance, where nobody's VM is moved by that; `evacuate` is asked
again and again while a host is drained, so that comes by itself.

Maintenance mode that was there before us is left as it is, at the end as at the beginning: the mark says which it was.
"""

from __future__ import annotations

from typing import Any, Final

from provisioners.driver import Handle, NoCapacity, TransientDriverError
from provisioners.vsphere.client import MoRef, managed, reference
from provisioners.vsphere.ground import Ground, HostPlace
from provisioners.vsphere.names import EVACUATED_FIELD
from provisioners.vsphere.tasks import finish

MARKED: Final = "no placement"
"""The mark where nothing else was done."""
ENTERED: Final = "no placement; maintenance entered by us"
_FOREVER: Final = 0
"""Time-out of entering maintenance mode: none; nothing runs there, so it does not wait."""
_RESTS: Final = frozenset({"poweredOff", "suspended"})
"""Anything else runs, or does not tell."""


def evacuate(ground: Ground, host: str) -> None:
    """Keep everything new of ours off a host, and take it into maintenance once nothing runs on it; safe to repeat."""
    place = ground.host(host)
    values = _values(ground, place.ref)
    mark = ground.attribute(values, EVACUATED_FIELD)
    if not mark:
        ground.set_attribute(place.ref, MARKED, EVACUATED_FIELD)
    if values.get("runtime.inMaintenanceMode") or values.get("runtime.connectionState") != "connected":
        return
    if _has_running(ground, values):
        return
    # the mark first: whoever restores after a crash must leave a maintenance mode that may be ours
    ground.set_attribute(place.ref, ENTERED, EVACUATED_FIELD)
    finish(
        ground.client,
        ground.client.start(lambda si: managed(place.ref, si).EnterMaintenanceMode_Task(_FOREVER, False)),
    )


def restore(ground: Ground, host: str) -> None:
    """Undo `evacuate`. Raises `TransientDriverError` while the host is still coming back."""
    place = ground.host(host)
    values = _values(ground, place.ref)
    mark = ground.attribute(values, EVACUATED_FIELD)
    if mark == ENTERED and values.get("runtime.inMaintenanceMode"):
        ended = finish(
            ground.client, ground.client.start(lambda si: managed(place.ref, si).ExitMaintenanceMode_Task(_FOREVER))
        )
        if isinstance(ended, Handle):
            raise TransientDriverError(f"host {host} is still leaving maintenance mode")
    if mark:
        ground.set_attribute(place.ref, "", EVACUATED_FIELD)


def check(ground: Ground, host: HostPlace) -> None:
    """Raise `NoCapacity` for a host that is being emptied: nothing new of ours goes there."""
    told = ground.client.get(host.ref, "customValue")
    if told is not None and ground.attribute(told, EVACUATED_FIELD):
        raise NoCapacity(f"host {host.name} is being emptied")


def _values(ground: Ground, host: MoRef) -> dict[str, Any]:
    told = ground.client.get(host, "customValue", "runtime.inMaintenanceMode", "runtime.connectionState", "vm")
    if told is None:
        ground.forget()
        raise TransientDriverError("the host has just gone from vCenter")
    return dict(told)


def _has_running(ground: Ground, values: dict[str, Any]) -> bool:
    vms = [reference(vm) for vm in values.get("vm") or ()]
    return any(
        one.values.get("runtime.powerState") not in _RESTS for one in ground.client.many(vms, "runtime.powerState")
    )
