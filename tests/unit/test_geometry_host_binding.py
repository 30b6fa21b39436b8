"""Hosts that choose by themselves: reports move guesses, and admission survives the worst choice."""

from __future__ import annotations

import time
from collections import Counter
from itertools import product as cartesian

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenants import host_binding
from tenants.geometry import full_mask, legal_masks, legal_packing, legal_starts, window_mask
from tenants.gpu_catalogue import WHOLE, product, profile
from tenants.host_binding import Explained, Gpu, HeldUnit, Report, Unexplained, explain_report, worst_case_admits

H100, A30, RTX = "H100-80GB", "A30-24GB", "RTX-PRO-6000-BLACKWELL-96GB"
EMPTY = Gpu(0, 0xFF)


def held(unit: str, name: str, device: int, start: int, *, exact: bool = False) -> HeldUnit:
    return HeldUnit(unit, name, device, start, exact)


# --- reports --------------------------------------------------------------------------------------


def test_a_report_that_agrees_with_the_guess_moves_nothing():
    units = [held("a", "3g.40gb", 0, 4), held("b", "1g.10gb", 0, 0)]

    said = explain_report(H100, [EMPTY], units, [Report("a", 0, 4)])

    assert said == Explained({"a": (0, 4), "b": (0, 0)}, frozenset())


def test_two_units_of_one_profile_swap_when_reported_crosswise():
    units = [held("a", "1g.10gb", 0, 0), held("b", "1g.10gb", 1, 0)]

    said = explain_report(H100, [EMPTY, Gpu(1, 0xFF)], units, [Report("a", 1, 0), Report("b", 0, 0)])

    assert said == Explained({"a": (1, 0), "b": (0, 0)}, frozenset({"a", "b"}))


def test_only_the_unit_in_the_way_of_a_report_makes_room():
    units = [held("a", "3g.40gb", 0, 4), held("b", "3g.40gb", 0, 0), held("c", "1g.10gb", 1, 0)]

    said = explain_report(H100, [EMPTY, Gpu(1, 0xFF)], units, [Report("a", 0, 0)])

    assert said == Explained({"a": (0, 0), "b": (0, 4), "c": (1, 0)}, frozenset({"a", "b"}))


def test_a_report_of_the_device_alone_keeps_the_start_where_it_can():
    units = [held("a", "2g.20gb", 0, 2), held("b", "2g.20gb", 1, 0)]
    gpus = [EMPTY, Gpu(1, 0xFF)]

    stays = explain_report(H100, gpus, units, [Report("a", device=0)])
    moves = explain_report(H100, gpus, units, [Report("a", device=1)])

    assert stays == Explained({"a": (0, 2), "b": (1, 0)}, frozenset())
    assert isinstance(moves, Explained)
    assert moves.moved == {"a"}
    assert moves.windows["a"] in {(1, 2), (1, 4)}


def test_moving_one_guess_may_push_another_along():
    # The 4g may stand at 0 only; the 1g that guesses 0 there has room on its own GPU.
    units = [held("big", "4g.40gb", 0, 0), held("small", "1g.10gb", 1, 0)]

    said = explain_report(H100, [EMPTY, Gpu(1, 0b0001_1111)], units, [Report("big", device=1)])

    assert isinstance(said, Explained)
    assert said.windows["big"] == (1, 0)
    assert said.windows["small"][0] in {0, 1}
    assert said.moved == {"big", "small"}


@pytest.mark.parametrize(
    ("reports", "reason"),
    [
        ([Report("x", 0, 0)], "x is reported but holds nothing on this host"),
        ([Report("a", 7, 0)], "a is reported on a GPU that this host does not have"),
        ([Report("a", 0, 2)], "a is reported at 2, where 3g.40gb cannot start"),
        ([Report("a", profile="4g.40gb")], "a holds 3g.40gb but is reported with 4g.40gb"),
        ([Report("a", 0, 4), Report("a", 0, 0)], "a is reported twice, in different places"),
        ([Report("a", 0, 4), Report("b", 0, 4)], "a and b are reported on overlapping windows"),
        ([Report("a", 0, 0)], "a is reported on a part that it cannot have"),
        ([Report("a", device=0), Report("b", device=0)], "no legal packing of this host agrees with what is reported"),
    ],
)
def test_a_report_that_no_packing_explains_is_a_finding_with_its_reason(reports, reason):
    units = [held("a", "3g.40gb", 0, 4), held("b", "1g.20gb", 1, 6)]
    gpus = [Gpu(0, 0b1111_0000), Gpu(1, 0xFF)]  # a foreign 4g stands at 0 of the first

    said = explain_report(H100, gpus, units, reports)

    assert isinstance(said, Unexplained)
    assert said.reason == reason


def test_an_earlier_exact_report_holds_until_a_new_one_says_otherwise():
    units = [held("a", "4g.40gb", 0, 0, exact=True), held("b", "4g.40gb", 1, 0)]
    gpus = [EMPTY, Gpu(1, 0xFF)]

    blocked = explain_report(H100, gpus, units, [Report("b", 0, 0)])
    moved = explain_report(H100, gpus, units, [Report("b", 0, 0), Report("a", 1, 0)])

    assert isinstance(blocked, Unexplained)
    assert blocked.units == ("a", "b")
    assert moved == Explained({"a": (1, 0), "b": (0, 0)}, frozenset({"a", "b"}))


def test_two_media_units_are_never_explained_onto_one_gpu():
    units = [held("a", "1g.10gb+me", 0, 0), held("b", "1g.10gb+me", 1, 0)]

    together = explain_report(H100, [EMPTY, Gpu(1, 0xFF)], units, [Report("a", device=1), Report("b", device=1)])
    apart = explain_report(H100, [EMPTY, Gpu(1, 0xFF)], units, [Report("a", device=1)])

    assert isinstance(together, Unexplained)
    assert isinstance(apart, Explained)
    assert apart.windows["b"][0] == 0


def test_room_is_made_for_one_more_unit_by_moving_guesses_only():
    units = [held("a", "1g.10gb", 0, 0), held("b", "1g.10gb", 0, 4, exact=True)]

    room = host_binding.make_room(H100, [EMPTY], units, "new", "4g.40gb")

    assert isinstance(room, Explained)
    assert room.windows["new"] == (0, 0)
    assert room.windows["b"] == (0, 4)
    assert room.moved == {"a", "new"}


def test_a_full_host_with_every_unit_reported_elsewhere_is_solved_in_time():
    units = [held(f"u{d}{s}", "1g.10gb", d, s) for d in range(8) for s in range(7)]
    gpus = [Gpu(d, 0xFF) for d in range(8)]
    reports = [Report(u.unit, 7 - u.device, 6 - u.start) for u in units[:28]]
    started = time.process_time()

    said = explain_report(H100, gpus, units, reports)

    assert isinstance(said, Explained)
    assert all(said.windows[r.unit] == (r.device, r.start) for r in reports)
    assert time.process_time() - started < 5


@st.composite
def hosts(draw: st.DrawFn) -> tuple[str, list[Gpu], list[HeldUnit]]:
    """One to three GPUs of one product, part of them foreign, with guesses that are a legal packing."""
    product_id = draw(st.sampled_from([H100, A30, RTX]))
    gpus, units = [], []
    for device in range(draw(st.integers(1, 3))):
        full, foreign = full_mask(product_id), 0
        parts = [part.name for part in product(product_id).placeable]
        for index, name in enumerate(draw(st.lists(st.sampled_from(parts), max_size=4))):
            taken = foreign
            for unit in units:
                if unit.device == device:
                    taken |= window_mask(unit.start, profile(product_id, unit.profile).size)
            media = not any(profile(product_id, u.profile).media for u in units if u.device == device)
            starts = legal_starts(product_id, name, full & ~taken, media_free=media)
            if starts:
                start = draw(st.sampled_from(starts))
                if draw(st.integers(0, 4)) == 0 and not profile(product_id, name).media:
                    foreign |= window_mask(start, profile(product_id, name).size)
                else:
                    units.append(held(f"{device}-{index}", name, device, start, exact=draw(st.booleans())))
        gpus.append(Gpu(device, full & ~foreign))
    return product_id, gpus, units


def every_packing_agrees(product_id, gpus, units, reports):
    """Brute force: yield each legal packing that honours exact units and reports."""
    said = {report.unit: report for report in reports}

    def ways(unit: HeldUnit) -> list[tuple[int, int]]:
        report = said.get(unit.unit)
        found = [(g.device, start) for g in gpus for start in legal_starts(product_id, unit.profile, g.free)]
        if report is not None and (report.device is not None or report.start is not None):
            found = [w for w in found if report.device in {None, w[0]} and report.start in {None, w[1]}]
            if unit.exact and (unit.device, unit.start) in found:
                return [(unit.device, unit.start)]
        elif unit.exact:
            found = [w for w in found if w == (unit.device, unit.start)]
        return found

    def place(index: int, placed: dict[str, tuple[int, int]]):
        if index == len(units):
            yield dict(placed)
            return
        unit = units[index]
        for way in ways(unit):
            mates = [(placed[u.unit][1], u.profile) for u in units[:index] if placed[u.unit][0] == way[0]]
            if legal_packing(product_id, [*mates, (way[1], unit.profile)]):
                yield from place(index + 1, {**placed, unit.unit: way})

    return place(0, {})


@settings(max_examples=150, deadline=None)
@given(host=hosts(), data=st.data())
def test_rebinding_honours_reports_with_the_fewest_moves_and_fails_only_where_nothing_fits(host, data):
    product_id, gpus, units = host
    units = units[:6]
    reports = []
    for unit in units:
        if data.draw(st.integers(0, 2)) == 0:
            starts = [start for _, start in legal_masks(product_id, unit.profile)]
            device = data.draw(st.sampled_from([None, *(g.device for g in gpus)]))
            reports.append(Report(unit.unit, device, data.draw(st.sampled_from([None, *starts]))))

    said = explain_report(product_id, gpus, units, reports)

    packings = list(every_packing_agrees(product_id, gpus, units, reports))
    if isinstance(said, Unexplained):
        assert packings == []
        return
    assert dict(said.windows) in packings

    def moves(windows: dict[str, tuple[int, int]]) -> int:
        return sum(windows[u.unit] != (u.device, u.start) for u in units)

    assert len(said.moved) == moves(dict(said.windows)) == min(moves(packing) for packing in packings)


# --- the worst case -------------------------------------------------------------------------------


def brute_force_block(product_id, gpus, crowd, name):
    """Tell whether some packing of some part of `crowd` leaves `name` without a window."""
    seen = set()

    def block(gpus, crowd):
        key = (tuple(sorted(gpus)), tuple(sorted(crowd.items())))
        if key in seen:
            return False
        seen.add(key)
        if not any(legal_starts(product_id, name, free, media_free=media) for free, media in gpus):
            return True
        for kind in [k for k, count in crowd.items() if count]:
            part = profile(product_id, kind)
            for index, (free, media) in enumerate(gpus):
                for start in legal_starts(product_id, kind, free, media_free=media):
                    left = list(gpus)
                    left[index] = (free & ~window_mask(start, part.size), media and not part.media)
                    if block(left, crowd - Counter([kind])):
                        return True
        return False

    return block(list(gpus), crowd)


def test_an_empty_host_admits_until_the_worst_choice_could_be_full():
    gpus = [(0xFF, True)]

    assert worst_case_admits(H100, gpus, [], "3g.40gb")
    assert worst_case_admits(H100, gpus, ["3g.40gb"], "3g.40gb")
    assert not worst_case_admits(H100, gpus, ["1g.10gb", "1g.10gb"], "3g.40gb")  # one at 0..3, one at 4..6
    assert not worst_case_admits(H100, gpus, ["1g.10gb"], WHOLE)
    assert worst_case_admits(H100, [*gpus, (0xFF, True)], ["1g.10gb"], WHOLE)


def test_a_unit_that_could_take_the_only_place_of_an_unreported_one_is_refused():
    gpus = [(0xFF, True)]

    assert worst_case_admits(H100, gpus, ["4g.40gb"], "1g.10gb", any_order=False)
    assert not worst_case_admits(H100, gpus, ["4g.40gb"], "1g.10gb")  # started first, the 1g may sit at 0


def test_the_media_unit_counts_in_the_worst_case():
    assert worst_case_admits(H100, [(0xFF, True)], ["1g.10gb"], "1g.10gb+me")
    assert not worst_case_admits(H100, [(0xFF, True)], ["1g.10gb+me"], "1g.10gb+me")
    assert not worst_case_admits(H100, [(0xFF, False)], [], "1g.10gb+me")
    # The 2g cannot stand on position 0, but beside it takes the media unit.
    assert not worst_case_admits(A30, [(0b1101, True)], ["2g.12gb+me"], "1g.6gb+me")


def test_a_search_beyond_its_bound_refuses(monkeypatch):
    # Blocking a 3g takes something at 0..3 and at 4..6; a 4g cannot be the second, and one 1g is not two.
    gpus, crowd = [(0xFF, True)] * 2, ["4g.40gb", "4g.40gb", "4g.40gb", "1g.10gb"]
    assert worst_case_admits(H100, gpus, crowd, "3g.40gb", any_order=False)

    monkeypatch.setattr(host_binding, "WORST_CASE_STATES", 0)

    assert not worst_case_admits(H100, gpus, crowd, "3g.40gb", any_order=False)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_worst_case_equals_brute_force_on_small_hosts(data):
    product_id = data.draw(st.sampled_from([H100, A30, RTX]))
    names = [part.name for part in product(product_id).placeable] + [WHOLE]
    masks = st.integers(0, full_mask(product_id))
    gpus = data.draw(st.lists(st.tuples(st.one_of(st.just(full_mask(product_id)), masks), st.booleans()), max_size=2))
    crowd = Counter(data.draw(st.lists(st.sampled_from(names), max_size=4)))
    name = data.draw(st.sampled_from(names))

    fixed_order = worst_case_admits(product_id, gpus, crowd.elements(), name, any_order=False)
    any_order = worst_case_admits(product_id, gpus, crowd.elements(), name)

    assert fixed_order == (not brute_force_block(product_id, gpus, crowd, name))
    everyone = crowd + Counter([name])
    stuck = any(brute_force_block(product_id, gpus, everyone - Counter([one]), one) for one in everyone)
    assert any_order == (not stuck)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_the_worst_case_admits_always_has_a_best_guess(data):
    names = [part.name for part in product(H100).placeable]
    gpus, units = [Gpu(0, 0xFF), Gpu(1, 0xFF)], []
    for index, name in enumerate(data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=6))):
        if worst_case_admits(H100, [(g.free, True) for g in gpus], [u.profile for u in units], name):
            room = host_binding.make_room(H100, gpus, units, str(index), name)
            assert isinstance(room, Explained)
            units = [held(u.unit, u.profile, *room.windows[u.unit]) for u in units]
            units.append(held(str(index), name, *room.windows[str(index)]))

    for device in (0, 1):
        assert legal_packing(H100, [(u.start, u.profile) for u in units if u.device == device])


def test_a_full_size_host_is_judged_quickly():
    names = ["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb"]
    crowd = [names[i % 5] for i in range(10)]
    masks = [0xFF, 0b1111_0000, 0xFF, 0b0111_1100, 0xFF, 0xFF, 0b0000_1111, 0xFF]
    gpus = [(mask, True) for mask in masks]
    for name in names:
        worst_case_admits(H100, gpus, crowd, name)  # fills the cache of blockers

    spent = []
    for name, at in cartesian(names, range(4)):
        started = time.process_time()
        worst_case_admits(H100, gpus[at:] + gpus[:at], crowd, name)
        spent.append(time.process_time() - started)

    assert sorted(spent)[len(spent) // 2] < 0.05  # ten times what it takes on a slow core
