"""The strip as a member sees it: his own windows, and one grey for the rest. In the caller's read block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _

from frontend.design.strip import Gpu, Run, SlotState
from tenants import gpu_catalogue


def own(placement: Sequence[Mapping[str, Any]], *, label: str) -> list[Gpu]:
    """Return one strip per GPU that a placement (`queries.placement_of`) uses; whatever else is there is grey."""
    found: dict[tuple[str, int], tuple[str, str, list[tuple[int, int]]]] = {}
    for unit in placement:
        for window in unit["windows"]:
            key = (window["host"], window["gpu"])
            entry = found.setdefault(key, (unit["product"], unit["profile"], []))
            entry[2].append((int(window["start"]), int(window["size"])))
    return [
        Gpu(
            name=_("GPU %(n)d") % {"n": index},
            runs=_runs(product, profile, sorted(windows), label),
            note=f"{product}, {host}",
        )
        for (host, index), (product, profile, windows) in sorted(found.items())
    ]


def _runs(product: str, profile: str, windows: Sequence[tuple[int, int]], label: str) -> list[Run]:
    slots = gpu_catalogue.product(product).slices
    runs: list[Run] = []
    at = 0
    for start, size in windows:
        if start > at:
            runs.append(Run(SlotState.OTHERS, start - at))
        runs.append(Run(SlotState.MINE, size, label=label, note=profile or product, holder="mine"))
        at = start + size
    if at < slots:
        runs.append(Run(SlotState.OTHERS, slots - at))
    return runs
