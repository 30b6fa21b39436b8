"""What a vCenter's estate is made of beside hosts and GPUs: datastores, switches and networks, drivers. `lots` is pure.

Shown to operators with what is to be done about it; nothing is placed by it. What is free is told in steps of a
hundredth, so that a snapshot a minute later says the same.

ESXi tells which packages are installed one host at a time (`FetchSoftwarePackages`), so few are asked at a look and
each one seldom: they change at a boot.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from provisioners.driver import DriverError, Lot
from provisioners.vsphere.client import Found, MoRef, managed
from provisioners.vsphere.ground import Ground
from provisioners.vsphere.network import wiring_of
from provisioners.vsphere.reading_hosts import Host
from provisioners.vsphere.settings import Settings

DATASTORE_PATHS: Final = (
    "name", "summary.type", "summary.capacity", "summary.freeSpace", "summary.accessible", "summary.maintenanceMode",
)  # fmt: skip
SWITCH_PATHS: Final = ("name",)
GROUP_PATHS: Final = ("name", "config.distributedVirtualSwitch", "config.defaultPortConfig", "config.uplink")
NEARLY_FULL: Final = 0.1
"""Part of a datastore below which its room is short."""
PACKAGES_S: Final = 3600.0
AT_ONCE: Final = 4
MOST: Final = 100
"""Lots of one kind that are told."""
_GIB: Final = 2**30
_DRIVER: Final = ("nvidia", "nvd")
_NORMAL: Final = "normal"


def lots(
    stores: Sequence[Found],
    switches: Sequence[Found],
    groups: Sequence[Found],
    hosts: Sequence[Host],
    drivers: Mapping[MoRef, str],
    settings: Settings,
    *,
    ours: frozenset[MoRef] = frozenset(),
) -> tuple[Lot, ...]:
    """Return what there is, kind by kind and by name; `ours`: port groups of our boundaries; pure."""
    offered = [one for one in _by_name(stores) if not settings.datastores or _name(one) in settings.datastores]
    return (
        *(_store(one) for one in offered[:MOST]),
        *(_switch(one, groups, settings, ours) for one in _by_name(switches)[:MOST]),
        *_networks(groups, settings, ours),
        *(_host(one, drivers.get(one.ref, "")) for one in sorted(hosts, key=lambda host: host.name)[:MOST] if one.gpus),
    )


def _store(one: Found) -> Lot:
    values = one.values
    size, free = int(values.get("summary.capacity") or 0), int(values.get("summary.freeSpace") or 0)
    step = max(size // 100, 1)
    free = free // step * step
    kind = str(values.get("summary.type") or "").upper()
    problem = ""
    if not values.get("summary.accessible", True):
        problem = "It cannot be reached: see its storage and the hosts' paths to it."
    elif str(values.get("summary.maintenanceMode") or _NORMAL) != _NORMAL:
        problem = "It is in maintenance: nothing new is put there. Take it out when the work is done."
    elif size and free / size < NEARLY_FULL:
        problem = "It is nearly full: free some of it, or name another datastore in the settings."
    return Lot("datastore", _name(one), kind, free_gib=free // _GIB, size_gib=size // _GIB, problem=problem)


def _switch(one: Found, groups: Sequence[Found], settings: Settings, ours: frozenset[MoRef]) -> Lot:
    on_it = [each for each in groups if _id(each.values.get("config.distributedVirtualSwitch")) == one.ref.id]
    made = sum(1 for each in on_it if each.ref in ours)
    words = f"{len(on_it)} port groups, {made} of them ours"
    if settings.dvs and _name(one) != settings.dvs:
        words += "; not used by us"
    given = sum(last - first + 1 for first, last in settings.vlans)
    left = given - made
    is_used = not settings.dvs or _name(one) == settings.dvs
    problem = ""
    if is_used and given and left < given * NEARLY_FULL:
        problem = f"Of {given} VLANs {max(left, 0)} are left: give it more of them in the settings."
    return Lot("switch", _name(one), words, problem=problem)


def _networks(groups: Sequence[Found], settings: Settings, ours: frozenset[MoRef]) -> Iterator[Lot]:
    """Yield networks that are not ours, with a remark on one that has a VLAN that we would give to somebody."""
    theirs = [one for one in _by_name(groups) if one.ref not in ours and not one.values.get("config.uplink")]
    for one in theirs[:MOST]:
        wiring = wiring_of({"config.policy": None, **one.values})
        if wiring is None:
            yield Lot("network", _name(one), "several VLANs")
            continue
        taken = any(first <= wiring.vlan <= last for first, last in settings.vlans)
        problem = "Its VLAN is among those that we give to tenants: take it out of the settings." if taken else ""
        yield Lot("network", _name(one), f"VLAN {wiring.vlan}" if wiring.vlan else "no VLAN", problem=problem)


def _host(host: Host, driver: str) -> Lot:
    told = driver or ("not told" if host.types else "none")
    words = f"ESXi {host.version or '?'}, vGPU manager {told}, {len(host.types)} vGPU types"
    return Lot("driver", host.name, words, problem=" ".join(host.problems))


class Packages:
    """Which vGPU manager each host has, as far as it tells. Thread-safe."""

    def __init__(self, ground: Ground, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask through `ground`."""
        self._ground, self._clock = ground, clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, str]] = {}

    def of(self, hosts: Sequence[Host]) -> dict[MoRef, str]:
        """Return the manager's version of hosts that offer vGPUs, `""` where it is not told; asks few at a look."""
        wanted, now = [one for one in hosts if one.types and one.connected], self._clock()
        with self._lock:
            known = dict(self._known)
        stale = [one for one in wanted if one.name not in known or now - known[one.name][0] >= PACKAGES_S]
        for one in stale[:AT_ONCE]:
            known[one.name] = (now, self._ask(one.ref))
        with self._lock:
            self._known = {one.name: known[one.name] for one in wanted if one.name in known}
        return {one.ref: known[one.name][1] for one in wanted if one.name in known}

    def _ask(self, host: MoRef) -> str:
        def ask(session: Any) -> str:
            manager = managed(host, session.si).configManager.imageConfigManager
            return "" if manager is None else driver_in(manager.FetchSoftwarePackages() or ())

        with contextlib.suppress(DriverError):  # it needs a right that nothing else here does; without it, not told
            return self._ground.client.reading(ask)
        return ""


def driver_in(packages: Sequence[Any]) -> str:
    """Return the version of NVIDIA's package for ESXi among a host's, `""` without one; pure."""
    for one in packages:
        words = f"{one.name} {one.vendor}".lower()
        if any(word in words for word in _DRIVER):
            return str(one.version).partition("-")[0]
    return ""


def _by_name(found: Sequence[Found]) -> list[Found]:
    return sorted(found, key=_name)


def _name(one: Found) -> str:
    return str(one.values.get("name") or one.ref.id)


def _id(found: Any) -> str:
    return "" if found is None else str(found._moId)
