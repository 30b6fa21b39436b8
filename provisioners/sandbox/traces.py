"""Public GPU traces as requests to replay: what was asked for, when it came and when it went.

Reads the openb pod list (Alibaba cluster-trace-gpu-v2023, as used by FGD, USENIX ATC '23) and maps each pod
to a kind that can be placed on MIG GPUs of 80 GB: whole GPUs for `num_gpu` > 1, else the profile nearest to
the pod's share of seven compute slices. Pure apart from reading the file; the trace itself is not ours to ship.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

COMPUTE_SLICES: Final = 7
BIG_MEMORY_MIB: Final = 16384
"""From here on a pod of one slice gets the profile with twice the memory."""
WHOLE: Final = ""
_PROFILES: Final = ((1.5, "1g.10gb"), (2.5, "2g.20gb"), (3.5, "3g.40gb"), (5.5, "4g.40gb"))
"""Upper end of the share, in compute slices → profile; above the last one: the whole GPU."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace, on the replay's own clock."""

    name: str
    tenant: int
    """Number of the tenant that asks, from 0."""
    profile: str
    """MIG profile, `WHOLE` for whole GPUs."""
    gpu_count: int
    """Whole GPUs on one host; 0 with a profile."""
    vcpu: int
    memory_gib: int
    arrives_s: float
    leaves_s: float
    """Never before it arrives."""


def openb_requests(path: Path, *, last: int, tenants: int, within_s: float) -> list[TraceRequest]:
    """Return the `last` GPU requests of an openb pod list in order of arrival.

    Time is compressed so that they arrive within `within_s` seconds; a life is compressed alike and may end
    later. Each goes to one of `tenants` tenants by a hash of its name. Raises `ValueError` for a row that is
    no pod.
    """
    with path.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if int(row["num_gpu"] or 0) > 0]
    rows.sort(key=lambda row: (int(row["creation_time"]), row["name"]))
    rows = rows[-last:] if last > 0 else []
    if not rows:
        return []
    begin, end = int(rows[0]["creation_time"]), int(rows[-1]["creation_time"])
    scale = within_s / max(end - begin, 1)
    return [_request(row, tenants, begin, scale) for row in rows]


def _request(row: Mapping[str, str], tenants: int, begin: int, scale: float) -> TraceRequest:
    profile, gpu_count = kind_of(int(row["num_gpu"]), int(row["gpu_milli"] or 0), int(row["memory_mib"]))
    arrives, leaves = int(row["creation_time"]), int(row["deletion_time"])
    digest = hashlib.sha256(row["name"].encode()).digest()
    return TraceRequest(
        name=row["name"],
        tenant=int.from_bytes(digest[:8]) % tenants,
        profile=profile,
        gpu_count=gpu_count,
        vcpu=max(1, math.ceil(int(row["cpu_milli"]) / 1000)),
        memory_gib=max(1, math.ceil(int(row["memory_mib"]) / 1024)),
        arrives_s=(arrives - begin) * scale,
        leaves_s=max(leaves - begin, arrives - begin) * scale,
    )


def kind_of(num_gpu: int, gpu_milli: int, memory_mib: int) -> tuple[str, int]:
    """Return (profile, whole GPUs) for a pod; `gpu_milli` are thousandths of one GPU."""
    if num_gpu > 1:
        return WHOLE, num_gpu
    share = COMPUTE_SLICES * gpu_milli / 1000
    for end, profile in _PROFILES:
        if share < end:
            big = profile == "1g.10gb" and memory_mib >= BIG_MEMORY_MIB
            return ("1g.20gb", 0) if big else (profile, 0)
    return WHOLE, 1
