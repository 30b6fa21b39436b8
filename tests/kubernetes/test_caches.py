"""Volumes of weights of replicas at zero: kept while there is room, dropped before they take another's."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from provisioners.driver import Power
from provisioners.kubernetes import caches, workloads
from provisioners.kubernetes import objects as marks
from tests.kubernetes.samples import ENDPOINT, PLUGIN, endpoint, settings, unit

GIB = Decimal(2**30)
CACHED = settings(cache_gib=50)

Object = dict[str, Any]


def made(power: Power, count: int = 2) -> list[Object]:
    """Everything of an endpoint's replicas, as it is marked."""
    spec = endpoint(*(unit(at) for at in range(count)), power=power)
    found: list[Object] = []
    for one in spec.units:
        wanted = workloads.replica_objects(spec, one, CACHED, PLUGIN)
        found += marks.marked_set(wanted, ENDPOINT, step=f"serving.replica[{one.index}]", want="x")
    return found


def kind(objects: list[Object], word: str) -> list[Object]:
    return [one for one in objects if one["kind"] == word]


def claim(name: str, gib: int) -> Object:
    """A volume of somebody else."""
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"resources": {"requests": {"storage": f"{gib}Gi"}}},
    }


@pytest.mark.parametrize(("room", "dropped"), [(100, 0), (99, 1), (50, 1), (49, 2), (0, 2)])
def test_no_more_goes_than_the_room_needs(room: int, dropped: int) -> None:
    objects = made(Power.OFF)

    found = caches.to_drop(kind(objects, "Deployment"), kind(objects, "PersistentVolumeClaim"), room * GIB)

    assert len(found) == dropped
    assert {one["metadata"]["name"] for one in found} <= {f"{ENDPOINT.name}-{at}-cache" for at in range(2)}


def test_what_runs_and_what_is_not_ours_keeps_its_volume() -> None:
    on, off = made(Power.ON), made(Power.OFF)
    theirs = claim(f"{uuid4()}-cache", 500)
    unmarked = [claim(workloads.cache_name("theirs"), 50)]

    running = caches.to_drop(kind(on, "Deployment"), kind(on, "PersistentVolumeClaim"), Decimal())
    beside = caches.to_drop(kind(off, "Deployment"), [*kind(off, "PersistentVolumeClaim"), theirs], 600 * GIB)
    foreign = caches.to_drop([{**kind(off, "Deployment")[0], "metadata": {"name": "theirs"}}], unmarked, Decimal())

    assert (running, beside, foreign) == ([], [], [])


def test_what_goes_already_is_not_counted() -> None:
    objects = made(Power.OFF)
    claims = kind(objects, "PersistentVolumeClaim")
    claims[0]["metadata"]["deletionTimestamp"] = "2026-11-22T10:00:00Z"

    assert caches.to_drop(kind(objects, "Deployment"), claims, 50 * GIB) == []
