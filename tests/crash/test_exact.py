"""What counts as exactly one VM where it belongs: each way in which it may not be is told."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from provisioners.driver import BoundaryKind, Kind, Ref
from tests.conformance.specs import endpoint, machine, unit, vm_boundary
from tests.crash import exact
from tests.crash.exact import Machine, Place

TENANT = uuid4()
HOME = replace(vm_boundary(TENANT), kind=BoundaryKind.VM, vlan=1207)
BOX = machine(HOME, unit(host="esx-a"))
PAIR = endpoint(HOME, unit(0, host="esx-a"), unit(1, host="esx-b"))
KINDS = ("Folder", "ResourcePool", "DistributedVirtualPortgroup")
PLACES = [Place(kind, HOME.ref, 1207 if kind == KINDS[2] else None) for kind in KINDS]
THERE = [*exact.wanted(BOX), *exact.wanted(PAIR)]
OTHER = Ref(Kind.BOUNDARY, uuid4(), TENANT)


def problems(machines: list[Machine], places: list[Place] = PLACES) -> list[str]:
    return exact.misplaced([HOME, BOX, PAIR], machines, places)


def test_one_vm_per_unit_is_wanted_by_its_name_its_own_uuid_and_that_of_its_unit() -> None:
    assert [(one.name, one.host) for one in THERE] == [
        (BOX.ref.name, "esx-a"),
        (f"{PAIR.ref.name}-0", "esx-a"),
        (f"{PAIR.ref.name}-1", "esx-b"),
    ]
    assert len({one.instance_uuid for one in THERE} | {one.machine_uuid for one in THERE}) == 6
    assert problems(THERE) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "tn-vm-other"},
        {"instance_uuid": str(uuid4())},
        {"machine_uuid": str(uuid4())},
        {"host": "esx-b"},
        {"folder": OTHER},
        {"folder": None},
        {"pool": OTHER},
        {"networks": (OTHER,)},
        {"networks": ()},
        {"networks": (HOME.ref, None)},
        {"mark": None},
    ],
    ids=" ".join,
)
def test_a_vm_that_is_another_or_lies_elsewhere_is_told_as_one_too_few_and_one_too_many(
    changed: dict[str, object],
) -> None:
    told = problems([replace(THERE[0], **changed), *THERE[1:]])  # type: ignore[arg-type]

    assert [line.split(":")[0] for line in told] == ["not there as wanted", "there and not wanted"]


def test_a_second_vm_and_a_vm_of_nobody_are_told() -> None:
    assert len(problems([*THERE, THERE[0]])) == 1
    assert len(problems([*THERE, Machine("left", "", "", "esx-a", None, None, (), None)])) == 1
    assert len(problems(THERE[1:])) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_boundary_without_one_of_its_places_is_told_and_so_is_another_vlan(kind: str) -> None:
    assert problems(THERE, [one for one in PLACES if one.kind != kind]) != []
    assert problems(THERE, [*PLACES[:2], replace(PLACES[2], vlan=1208)]) != []
    assert problems(THERE, [*PLACES, PLACES[0]]) != []
