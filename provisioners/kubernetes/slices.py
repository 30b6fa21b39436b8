"""What DRA drivers publish: ResourceSlices → devices by node, and which device a claim was given. Pure.

Attributes are those that NVIDIA's driver publishes (`type`, `uuid`, `parentUUID`, `profile`, `productName`).
Where a MIG device lies is told by the counters that it consumes (`memory-slice-3`), else by its capacities
(`memorySlice3`), else by its name (`gpu-0-mig-1g10gb-19-3`), else by nobody.

Invariant: of a pool only slices of its newest generation count, and a pool that shows fewer slices than it says
it has is incomplete: from what is missing there nothing follows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from provisioners.kubernetes.objects import Object, dig, name_of

NVIDIA: Final = "gpu.nvidia.com"
"""Name of the DRA driver, and the domain of its attributes for whole GPUs and MIG devices alike."""
GPU: Final = "gpu"
MIG: Final = "mig"

_COUNTER: Final = re.compile(r"^memory-slice-(\d+)$")
_CAPACITY: Final = re.compile(r"^memorySlice(\d+)$")
_MIG_NAME: Final = re.compile(r"^gpu-(?P<gpu>\d+)-mig-(?P<profile>.+)-(?P<id>\d+)-(?P<start>\d+)$")
_GPU_NAME: Final = re.compile(r"^gpu-(?P<gpu>\d+)$")


@dataclass(frozen=True, slots=True)
class Published:
    """One device that a DRA driver offers on a node."""

    node: str
    pool: str
    name: str
    kind: str
    """`gpu` or `mig`."""
    uuid: str
    """Its own id; `""` for a MIG device that exists only once it is claimed."""
    gpu: str
    """UUID of the physical GPU."""
    profile: str
    """MIG profile, `""` for a whole GPU."""
    start: int | None
    """First placement position; None where nothing tells."""
    index: int | None
    """Number of the physical GPU on its node, where the device's name tells."""
    product_name: str
    partition: bool
    """It takes from counters that it shares with others: carved when claimed."""
    taint: str = ""
    """Why nothing may use it, `""` if it may be used."""


@dataclass(frozen=True, slots=True)
class Pools:
    """All that is published in a cluster."""

    devices: Mapping[str, tuple[Published, ...]]
    """Node → its devices, in the order of the slices."""
    incomplete: tuple[str, ...] = ()
    """Pools (`driver/pool`) of which slices are missing."""
    by_name: Mapping[tuple[str, str, str], Published] = field(default_factory=dict)
    """(driver, pool, device) → device: how a claim's allocation names it."""
    doubles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Node → devices that are published more than once."""

    def on(self, node: str) -> tuple[Published, ...]:
        """Return what is published on a node."""
        return self.devices.get(node, ())


def read(slices: Iterable[Object]) -> Pools:
    """Return what ResourceSlices (`resource.k8s.io/v1`) of NVIDIA's driver publish; those of others are left out."""
    pools: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for one in slices:
        if dig(one, "spec", "driver") == NVIDIA:
            pools[NVIDIA, str(dig(one, "spec", "pool", "name", default=""))].append(one)
    devices: dict[str, list[Published]] = defaultdict(list)
    by_name: dict[tuple[str, str, str], Published] = {}
    doubles: dict[str, list[str]] = defaultdict(list)
    incomplete = []
    for (driver, pool), found in sorted(pools.items()):
        newest = max(_generation(one) for one in found)
        current = sorted((one for one in found if _generation(one) == newest), key=name_of)
        if len(current) < int(dig(current[0], "spec", "pool", "resourceSliceCount", default=1)):
            incomplete.append(f"{driver}/{pool}")
        for one in current:
            for raw in dig(one, "spec", "devices", default=[]):
                device = _device(one, raw, pool)
                if device is None:
                    continue
                if (driver, pool, device.name) in by_name:
                    doubles[device.node].append(device.name)
                    continue
                by_name[driver, pool, device.name] = device
                devices[device.node].append(device)
    uuids: dict[str, Published] = {}
    for device in by_name.values():
        if device.uuid and device.uuid in uuids:
            doubles[device.node].append(f"{device.uuid} as {uuids[device.uuid].name} and {device.name}")
        uuids.setdefault(device.uuid, device)
    return Pools(
        {node: tuple(found) for node, found in devices.items()},
        tuple(incomplete),
        by_name,
        {node: tuple(sorted(set(names))) for node, names in doubles.items()},
    )


def _generation(one: Object) -> int:
    return int(dig(one, "spec", "pool", "generation", default=0))


def _device(one: Object, raw: Mapping[str, Any], pool: str) -> Published | None:
    attributes = raw.get("attributes") or {}
    node = str(dig(one, "spec", "nodeName", default="") or raw.get("nodeName") or "")
    kind = _text(attributes, "type")
    if not node or kind not in {GPU, MIG}:
        return None  # devices without a node, passthrough functions and network things are nobody's window
    name = str(raw["name"])
    uuid = _text(attributes, "uuid")
    match = (_MIG_NAME if kind == MIG else _GPU_NAME).match(name)
    return Published(
        node=node,
        pool=pool,
        name=name,
        kind=kind,
        uuid=uuid,
        gpu=uuid if kind == GPU else _text(attributes, "parentUUID"),
        profile=_text(attributes, "profile") if kind == MIG else "",
        start=0 if kind == GPU else _start(raw, match),
        index=int(match["gpu"]) if match else None,
        product_name=_text(attributes, "productName"),
        partition=bool(raw.get("consumesCounters")),
        taint=_taint(raw),
    )


def _text(attributes: Mapping[str, Any], name: str) -> str:
    value = attributes.get(name) or attributes.get(f"{NVIDIA}/{name}") or {}
    return str(value.get("string") or "")


def _start(raw: Mapping[str, Any], match: re.Match[str] | None) -> int | None:
    counters = [name for entry in raw.get("consumesCounters") or () for name in entry.get("counters") or ()]
    capacities = [name.rpartition("/")[2] for name in raw.get("capacity") or ()]
    for pattern, names in ((_COUNTER, counters), (_CAPACITY, capacities)):
        slots = [int(found[1]) for name in names if (found := pattern.match(name))]
        if slots:
            return min(slots)
    return int(match["start"]) if match else None


def _taint(raw: Mapping[str, Any]) -> str:
    for taint in raw.get("taints") or ():
        if taint.get("effect") in {"NoSchedule", "NoExecute"}:
            return f"{taint.get('key', '')}={taint.get('value', '')}:{taint['effect']}"
    return ""


# --- claims ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Given:
    """One device that a claim was allocated."""

    request: str
    pool: str
    name: str
    device: Published | None
    """None where it is not published any more (its layout was changed under it)."""


def allocated(claim: Object, pools: Pools) -> tuple[Given, ...]:
    """Return the GPU devices that a ResourceClaim has been given, in the order of its requests; empty while none.

    What is given for administration (`adminAccess`) takes nothing and is left out.
    """
    results: Sequence[Mapping[str, Any]] = dig(claim, "status", "allocation", "devices", "results", default=[])
    order = {
        str(request.get("name", "")): position
        for position, request in enumerate(dig(claim, "spec", "devices", "requests", default=[]))
    }
    found = [
        Given(
            str(one.get("request", "")),
            str(one.get("pool", "")),
            str(one.get("device", "")),
            pools.by_name.get((str(one.get("driver", "")), str(one.get("pool", "")), str(one.get("device", "")))),
        )
        for one in results
        if one.get("driver") == NVIDIA and not one.get("adminAccess")
    ]
    return tuple(sorted(found, key=lambda one: (order.get(one.request.partition("/")[0], 99), one.request, one.name)))
