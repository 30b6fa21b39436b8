"""Uses of others whose place on a GPU is not told: as long as a packing of all of them exists, the ledger has one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provisioners.driver import ObservedProvider, ObservedUse
from tenants.models import Hold
from tests.drive import world
from tests.provisioners.test_inventory_units import estate, look, open_findings, show

pytestmark = pytest.mark.usefixtures("db")


def use(name: str, profile: str, size: int) -> ObservedUse:
    return ObservedUse("esxi", "esxi-gpu-0", None, size, profile, None, None, name, 1, 1)


@pytest.mark.parametrize("gone", [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], ids=str)
def test_a_guess_makes_room_for_one_that_fits_beside_it_elsewhere(gone: tuple[int, ...]) -> None:
    here = world(estate(("esxi", "host", 1)), snapshots=True)
    look(here)
    there: list[ObservedUse] = []

    def shown(seen: ObservedProvider) -> ObservedProvider:
        return replace(seen, uses=tuple(there))

    def look_twice() -> list[Any]:
        show(here, shown)
        show(here, shown)
        return sorted((hold.note.split()[0], hold.size) for hold in Hold.objects.all())

    for at in range(4):
        there.append(use(f"small-{at}", "2g.20gb" if at < 3 else "1g.20gb", 2))
        look_twice()
    there[:] = [one for at, one in enumerate(there) if at not in gone]
    look_twice()
    there.append(use("wide", "3g.40gb", 4))

    assert look_twice() == [*((one.name, one.size) for one in there)]
    assert open_findings() == []


def test_what_was_missing_once_makes_way_for_one_that_has_room_nowhere_else() -> None:
    here = world(estate(("esxi", "host", 1)), snapshots=True)
    look(here)
    there = [use(f"old-{at}", "3g.40gb", 4) for at in range(2)]

    def shown(seen: ObservedProvider) -> ObservedProvider:
        return replace(seen, uses=tuple(there))

    show(here, shown)
    there[:] = [there[0], use("new", "3g.40gb", 4)]
    show(here, shown)

    assert sorted(hold.note.split()[0] for hold in Hold.objects.all()) == ["new", "old-0"]
    assert open_findings() == []


def test_one_that_fits_nowhere_is_told_and_moves_nobody() -> None:
    here = world(estate(("esxi", "host", 1)), snapshots=True)
    look(here)
    there = [use(f"old-{at}", "3g.40gb", 4) for at in range(2)]

    def shown(seen: ObservedProvider) -> ObservedProvider:
        return replace(seen, uses=tuple(there))

    show(here, shown)
    before = {(hold.pk, hold.start) for hold in Hold.objects.all()}
    there.append(use("third", "3g.40gb", 4))
    show(here, shown)

    assert {(hold.pk, hold.start) for hold in Hold.objects.all()} == before
    assert open_findings() == ["use-without-place"]
