"""Masks, the published ranking and packings, for every product of the catalogue unasked."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenants import geometry
from tenants.gpu_catalogue import WHOLE, product, products, profile

H100 = "H100-80GB"
EVERY_PRODUCT = pytest.mark.parametrize("product_id", [p.id for p in products()])


def names_of(product_id: str) -> list[str]:
    return [WHOLE, *(part.name for part in product(product_id).placeable)]


def draw_placements(data: st.DataObject, product_id: str, free: int) -> tuple[int, list[tuple[int, str]]]:
    """Place drawn profiles at drawn legal starts until nothing is drawn; return what is left and where they are."""
    windows: list[tuple[int, str]] = []
    media_free = True
    for name in data.draw(st.lists(st.sampled_from(names_of(product_id)), max_size=8)):
        starts = geometry.legal_starts(product_id, name, free, media_free=media_free)
        if starts:
            start = data.draw(st.sampled_from(starts))
            free &= ~geometry.window_mask(start, profile(product_id, name).size)
            media_free = media_free and not profile(product_id, name).media
            windows.append((start, name))
    return free, windows


def test_a_window_mask_has_its_positions_set():
    assert geometry.window_mask(0, 8) == 0b1111_1111
    assert geometry.window_mask(4, 2) == 0b0011_0000
    assert geometry.full_mask("RTX-PRO-6000-BLACKWELL-96GB") == 0b1111_1111_1111


def test_legal_starts_are_those_inside_the_free_mask():
    assert geometry.legal_starts(H100, "3g.40gb", 0b1111_0000) == (4,)
    assert geometry.legal_starts(H100, "2g.20gb", 0b1111_0000) == (4,)  # 2g may not start at 6
    assert geometry.legal_starts(H100, "1g.20gb", 0b1111_0000) == (4, 6)
    assert geometry.legal_starts(H100, "4g.40gb", 0b1111_0000) == ()
    assert geometry.legal_starts(H100, "1g.10gb", 0b1000_0000) == ()  # position 7 is nobody's alone
    assert geometry.legal_starts(H100, WHOLE, 0b1111_1111) == (0,)


def test_a_media_profile_does_not_fit_where_the_media_unit_is_taken():
    assert geometry.legal_starts(H100, "1g.10gb+me", 0b11) == (0, 1)
    assert geometry.legal_starts(H100, "1g.10gb+me", 0b11, media_free=False) == ()
    assert geometry.legal_starts(H100, "1g.10gb", 0b11, media_free=False) == (0, 1)


def test_products_without_known_placements_have_windows_for_whole_gpus_only():
    assert geometry.legal_masks("RTX-PRO-5000-BLACKWELL-48GB", "1g.24gb") == ()
    assert geometry.legal_masks("RTX-PRO-5000-BLACKWELL-48GB", WHOLE) == ((0b11, 0),)
    assert geometry.ranked_choices("L40S-48GB", WHOLE) == ((1, 0),)


def test_inferred_placements_are_sellable_after_a_report_only():
    assert not geometry.sellable("H200-141GB", "1g.18gb", layout_reported=False)
    assert geometry.sellable("H200-141GB", "1g.18gb", layout_reported=True)
    assert geometry.sellable("H200-141GB", WHOLE, layout_reported=False)
    assert geometry.sellable(H100, "1g.10gb", layout_reported=False)
    assert not geometry.sellable("RTX-PRO-5000-BLACKWELL-48GB", "1g.24gb", layout_reported=True)


@EVERY_PRODUCT
def test_ranked_choices_are_exactly_the_masks_that_fit_each_with_a_legal_start(product_id):
    for name in names_of(product_id):
        choices = geometry.ranked_choices(product_id, name)

        masks = [mask for mask, _ in choices]
        assert len(set(masks)) == len(masks)
        assert set(masks) == {
            m for m in geometry.reachable_masks(product_id) if geometry.legal_starts(product_id, name, m)
        }
        assert all(start in geometry.legal_starts(product_id, name, mask) for mask, start in choices)
        assert [mask.bit_count() for mask in masks] == sorted(mask.bit_count() for mask in masks)
        assert geometry.ranked_arrays(product_id, name) == (masks, [start for _, start in choices])


@EVERY_PRODUCT
def test_a_whole_gpu_has_the_full_mask_as_its_only_choice(product_id):
    full = geometry.full_mask(product_id)

    assert geometry.ranked_choices(product_id, WHOLE) == ((full, 0),)


@EVERY_PRODUCT
def test_reachable_masks_stay_few_and_hold_the_empty_and_the_full_one(product_id):
    masks = geometry.reachable_masks(product_id)

    assert {0, geometry.full_mask(product_id)} <= masks
    assert len(masks) == {"7-slice": 192, "4-slice": 16, "rtx-12": 16}.get(product(product_id).geometry or "", 2)


@EVERY_PRODUCT
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_legal_windows_never_overlap_and_their_sizes_add_up(product_id, data):
    free, windows = draw_placements(data, product_id, geometry.full_mask(product_id))

    sizes = sum(profile(product_id, name).size for _, name in windows)
    assert sizes + free.bit_count() == product(product_id).slices
    assert free in geometry.reachable_masks(product_id)
    assert geometry.legal_packing(product_id, windows)
    assert all(start in profile(product_id, name).starts for start, name in windows)


@pytest.mark.parametrize(
    ("name", "free", "start"),
    [
        ("3g.40gb", 0b1111_1111, 4),  # at 4 it leaves 4g and four 1g, at 0 only three 1g
        ("1g.10gb", 0b1111_1111, 6),  # with position 7 it wastes what nobody else wants
        ("1g.10gb", 0b0111_0000, 6),  # keeps the pair 4, 5
        ("2g.20gb", 0b1111_1111, 4),
        ("1g.20gb", 0b1111_1111, 6),
        ("1g.10gb", 0b1111_0011, 1),  # keeps 3g at 4; of 0 and 1 the larger
    ],
)
def test_the_best_start_destroys_the_fewest_options(name, free, start):
    assert geometry.best_start(H100, name, free) == start


def test_loss_ranks_windows_as_the_published_blocking_number_does():
    sizes = {"1g.10gb": 1, "1g.20gb": 2, "2g.20gb": 2, "3g.40gb": 4, "4g.40gb": 4, "7g.80gb": 8}

    def blk(used: int) -> int:  # section 3 of the openb-MIG specification, as written there
        free = 8 - used.bit_count()
        return sum(
            size
            for name, size in sizes.items()
            for mask, _ in geometry.legal_masks(H100, name)
            if size <= free and mask & used
        )

    by_class: dict[tuple[str, int], set[int]] = {}
    for free in geometry.reachable_masks(H100):
        for name in sizes:
            for mask, _ in geometry.legal_masks(H100, name):
                if free & mask == mask:
                    used = 0xFF & ~free
                    difference = geometry.loss(H100, free, mask) - (blk(used | mask) - blk(used))
                    by_class.setdefault((name, free.bit_count()), set()).add(difference)

    assert all(len(differences) == 1 for differences in by_class.values())
    assert len(by_class) > 20


def test_the_biggest_window_left_is_named_for_people():
    assert geometry.biggest_window(H100, 0b1111_1111).name == WHOLE
    assert geometry.biggest_window(H100, 0b1111_0111).name == "3g.40gb"
    assert geometry.biggest_window(H100, 0b1000_0000) is None


def test_fragmentation_is_the_share_of_free_positions_that_the_next_demand_cannot_use():
    half_free, holes = 0b1111_0000, 0b0101_0101

    assert geometry.fragmentation(H100, [half_free, holes], {"3g.40gb": 1}) == Fraction(4, 8)
    assert geometry.fragmentation(H100, [half_free, holes], {"3g.40gb": 1, "1g.10gb": 3}) == Fraction(1, 8)
    assert geometry.fragmentation(H100, [0], {"3g.40gb": 1}) == 0
    assert geometry.fits_anywhere(H100, "3g.40gb", [holes, half_free])
    assert not geometry.fits_anywhere(H100, "2g.20gb", [holes])


@pytest.mark.parametrize(
    ("windows", "fault"),
    [
        ([(0, "4g.40gb"), (4, "3g.40gb")], None),
        ([(0, "1g.10gb+me"), (1, "1g.10gb")], None),
        ([(6, "2g.20gb")], "2g.20gb cannot start at 6 on H100-80GB"),
        ([(0, "4g.40gb"), (2, "2g.20gb")], "2g.20gb at 2 overlaps another window"),
        ([(0, "1g.10gb+me"), (1, "1g.10gb+me")], "1g.10gb+me needs the media unit that 1g.10gb+me already has"),
        ([(0, WHOLE), (0, "1g.10gb")], "1g.10gb at 0 overlaps another window"),
    ],
)
def test_a_packing_is_legal_or_the_fault_is_named(windows, fault):
    assert geometry.packing_fault(H100, windows) == fault
    assert geometry.legal_packing(H100, windows) == (fault is None)


MAXIMAL = [
    (H100, "7-slice (names of A100/H100 80GB)"), ("A30-24GB", "4-slice (A30)"),
    ("RTX-PRO-6000-BLACKWELL-96GB", "rtx-12 (RTX PRO 6000)"),
]  # fmt: skip


@pytest.mark.parametrize(("product_id", "layouts"), MAXIMAL)
def test_the_maximal_layouts_are_those_of_the_source(product_id, layouts):
    listed = json.loads(files("tenants").joinpath("data/mig-profiles.json").read_text())["maximal_layouts"][layouts]
    parts = [part for part in product(product_id).placeable if part.kind in {"base", "double-memory"}]
    found: set[frozenset[tuple[str, int]]] = set()

    seen: set[tuple[int, tuple[str, ...]]] = set()

    def grow(free: int, names: tuple[str, ...]) -> None:
        if (free, names) in seen:
            return
        seen.add((free, names))
        ways = [
            (mask, part.name)
            for part in parts
            for mask, _ in geometry.legal_masks(product_id, part.name)
            if free & mask == mask
        ]
        if not ways:
            found.add(frozenset(Counter(names).items()))
        for mask, name in ways:
            grow(free & ~mask, tuple(sorted((*names, name))))

    grow(geometry.full_mask(product_id), ())

    def contains(big: frozenset[tuple[str, int]], small: frozenset[tuple[str, int]]) -> bool:
        return big != small and all(dict(big).get(name, 0) >= count for name, count in small)

    maximal = {one for one in found if not any(contains(other, one) for other in found)}
    assert maximal == {frozenset(layout.items()) for layout in listed}


@pytest.mark.parametrize(("product_id", "layouts"), MAXIMAL)
def test_every_layout_of_the_source_can_be_arranged_and_nothing_beside_it(product_id, layouts):
    listed = json.loads(files("tenants").joinpath("data/mig-profiles.json").read_text())["maximal_layouts"][layouts]

    for layout in listed:
        names = list(Counter(layout).elements())
        found = geometry.arrangement(product_id, names)
        assert found is not None, layout
        assert sorted(name for _, _, name in found) == sorted(names)
        assert geometry.packing_fault(product_id, [(start, name) for start, _, name in found]) is None
        smallest = min((part for part in product(product_id).placeable), key=lambda part: part.size)
        assert geometry.arrangement(product_id, [*names, smallest.name]) is None, layout


def test_a_whole_gpu_is_no_part_and_two_parts_share_no_media_unit():
    assert geometry.arrangement("H100-80GB", []) == ()
    assert geometry.arrangement("H100-80GB", [""]) is None
    assert geometry.arrangement("H100-80GB", ["1g.10gb+me", "1g.10gb"]) is not None
    assert geometry.arrangement("H100-80GB", ["1g.10gb+me", "1g.10gb+me"]) is None
