"""Estates as files: JSON, CSV, and the node list of a public trace, all into one document shape.

A document is what `PUT /estates/<name>` takes:

    {"schema": "sandbox-estate/1", "settings": {…},
     "hosts": [{"host", "name", "binding", "boundary_kinds", "vcpu", "memory_gib",
                "gpus": [{"product", "count", "layout_change", "layout": [[start, size, profile], …]}]}],
     "foreign_uses": [{"name", "host", "windows": [[gpu number, start, profile], …], "vcpu", "memory_gib"}]}

A GPU's stable id is `<host>-gpu-<number>`. CSV has one row per host: host, name, binding, boundary_kinds
(split at `|`), vcpu, memory_gib, product, gpus, layout_change. Raises `BadEstate` naming what is wrong.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from provisioners.driver import Binding, BoundaryKind, DriverRejected
from provisioners.sandbox import physics
from provisioners.sandbox.records import ForeignUse, GpuRecord, HostRecord, Settings
from provisioners.sandbox.state import State
from tenants import gpu_catalogue

SCHEMA: Final = "sandbox-estate/1"
LAYOUT_CHANGES: Final = frozenset({"fixed", "on-idle", "dynamic"})

SPOT_GPU_PRODUCTS: Final[Mapping[str, str]] = {
    "A100-SXM4-80GB": "A100-80GB",
    "A800-SXM4-80GB": "A100-80GB",  # the same die with slower links
    "H800": "H100-80GB",  # likewise
    "A10": "A10-24GB",
    "GPU-series-1": "L40S-48GB",  # not disclosed in the trace: sold whole, as any product without MIG
    "GPU-series-2": "L40S-48GB",
}
"""`gpu_model` of alibaba/clusterdata cluster-trace-v2026-spot-gpu, node_info_df.csv → product."""
SPOT_GPU_MEMORY_GIB_PER_VCPU: Final = 8
"""That file names no memory."""


class BadEstate(ValueError):
    """An estate's file or document is wrong; the message says where."""


def estate_from_file(path: Path) -> dict[str, Any]:
    """Return the document of a `.json` or `.csv` estate."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as lines:
            return {"schema": SCHEMA, "hosts": [_host_of_row(row) for row in csv.DictReader(lines)]}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is no JSON: {error}"
        raise BadEstate(msg) from error
    if not isinstance(document, dict):
        msg = f"{path} holds no JSON object"
        raise BadEstate(msg)
    return document


def _host_of_row(row: Mapping[str, str]) -> dict[str, Any]:
    try:
        return {
            "host": row["host"],
            "name": row.get("name") or row["host"],
            "binding": row["binding"],
            "boundary_kinds": row["boundary_kinds"].split("|"),
            "vcpu": int(row["vcpu"]),
            "memory_gib": int(row["memory_gib"]),
            "gpus": [
                {
                    "product": row["product"],
                    "count": int(row["gpus"]),
                    "layout_change": row.get("layout_change") or "dynamic",
                }
            ],
        }
    except (KeyError, ValueError) as error:
        msg = f"host {row.get('host')!r}: {error!r}"
        raise BadEstate(msg) from error


def estate_from_spot_gpu(
    path: Path, *, binding: Binding = Binding.DEVICE, boundary_kinds: tuple[str, ...] = ("namespace",)
) -> dict[str, Any]:
    """Return the estate of a spot-gpu-2026 node list: one host per node, products by `SPOT_GPU_PRODUCTS`."""
    hosts = []
    with path.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            product = SPOT_GPU_PRODUCTS.get(row["gpu_model"])
            if product is None:
                msg = f"node {row['node_name']}: no product stands for {row['gpu_model']!r}"
                raise BadEstate(msg)
            vcpu = int(row["cpu_num"])
            hosts.append(
                {
                    "host": f"node-{row['node_name']}",
                    "name": f"node-{row['node_name']}",
                    "binding": str(binding),
                    "boundary_kinds": list(boundary_kinds),
                    "vcpu": vcpu,
                    "memory_gib": vcpu * SPOT_GPU_MEMORY_GIB_PER_VCPU,
                    "gpus": [{"product": product, "count": int(row["gpu_capacity_num"]), "layout_change": "dynamic"}],
                }
            )
    return {"schema": SCHEMA, "hosts": hosts}


# --- document → state -----------------------------------------------------------------------------


def build(document: Mapping[str, Any]) -> State:
    """Return the state of a new estate, every record marked as changed. Raises `BadEstate`."""
    if document.get("schema") != SCHEMA:
        msg = f"schema must be {SCHEMA!r}"
        raise BadEstate(msg)
    state = State()
    known = {field.name for field in fields(Settings)}
    unknown = set(document.get("settings", {})) - known
    if unknown:
        msg = f"no setting is called {min(unknown)!r}"
        raise BadEstate(msg)
    state.settings = Settings(**document.get("settings", {}))
    state.touch("settings", "")
    try:
        for host in document["hosts"]:
            _add_host(state, host)
        state.index()
        for use in document.get("foreign_uses", ()):
            _add_foreign(state, use)
    except (KeyError, TypeError) as error:
        msg = f"a host or use lacks {error}"
        raise BadEstate(msg) from error
    return state


def _add_host(state: State, entry: Mapping[str, Any]) -> None:
    host = str(entry["host"])
    if host in state.hosts:
        msg = f"host {host!r} stands twice"
        raise BadEstate(msg)
    try:
        kinds = [str(BoundaryKind(kind)) for kind in entry["boundary_kinds"]]
        binding = str(Binding(entry["binding"]))
    except ValueError as error:
        msg = f"host {host!r}: {error}"
        raise BadEstate(msg) from error
    name = str(entry.get("name", host))
    state.put("hosts", host, HostRecord(host, name, binding, kinds, int(entry["vcpu"]), int(entry["memory_gib"])))
    number = 0
    for group in entry.get("gpus", ()):
        try:
            gpu_catalogue.product(group["product"])
        except gpu_catalogue.UnknownProduct as error:
            msg = f"host {host!r}: {error.args[0]}"
            raise BadEstate(msg) from error
        for _ in range(int(group.get("count", 1))):
            gpu = _gpu(host, number, group)
            state.put("gpus", gpu.device, gpu)
            number += 1


def _gpu(host: str, number: int, group: Mapping[str, Any]) -> GpuRecord:
    change = str(group.get("layout_change", "dynamic"))
    layout = [list(window) for window in group.get("layout", ())]
    if change not in LAYOUT_CHANGES:
        msg = f"host {host!r}: layout_change is one of {', '.join(sorted(LAYOUT_CHANGES))}"
        raise BadEstate(msg)
    try:
        physics.check_layout(group["product"], [(start, size, profile) for start, size, profile in layout])
    except DriverRejected as error:
        msg = f"host {host!r}: {error.detail}"
        raise BadEstate(msg) from error
    mode = "mig" if layout else "empty"
    return GpuRecord(f"{host}-gpu-{number}", host, group["product"], number, change, mode, layout)


def _add_foreign(state: State, entry: Mapping[str, Any]) -> None:
    use = ForeignUse(
        str(entry["name"]), str(entry["host"]), [], int(entry.get("vcpu", 0)), int(entry.get("memory_gib", 0))
    )
    if use.host not in state.hosts or use.name in state.foreign_uses:
        msg = f"foreign use {use.name!r}: stands twice or has no host"
        raise BadEstate(msg)
    for number, start, profile_name in entry.get("windows", ()):
        gpu = state.gpus.get(f"{use.host}-gpu-{number}")
        if gpu is None:
            msg = f"foreign use {use.name!r}: {use.host} has no GPU {number}"
            raise BadEstate(msg)
        profile = physics.profile_of(gpu.product, profile_name)
        mine = [(at, size, other) for device, at, size, other in use.windows if device == gpu.device]
        if start not in physics.free_starts(state, gpu, profile) or physics.overlaps(start, profile.size, mine):
            msg = f"foreign use {use.name!r}: {profile_name or 'the whole GPU'} at {start} on {gpu.device} is not free"
            raise BadEstate(msg)
        use.windows.append([gpu.device, start, profile.size, profile_name])
    state.occupy(f"foreign:{use.name}", use.host, use.windows, use.vcpu, use.memory_gib)
    state.put("foreign_uses", use.name, use)
