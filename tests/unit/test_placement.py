"""Where units go and why not: the published rule, gangs, spread, hosts that choose, and the words of a refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenants import geometry, host_binding, placement
from tenants.gpu_catalogue import WHOLE, UnknownProfile, profile
from tenants.placement import Alternative, Gpu, Guess, Host, NoFit, Obstacle, Placed, Placement, Rule, Wish, place
from tenants.specs import GpuAsk, UnitAsk
from tenants.states import Binding

H100, L40S, H200, PRO5000 = "H100-80GB", "L40S-48GB", "H200-141GB", "RTX-PRO-5000-BLACKWELL-48GB"
FULL = 0xFF
FRAGMENTED = "3g.40gb of H100-80GB does not fit on 2 hosts: too fragmented, the biggest window left is 1g.20gb"
NOT_SOLD = "1g.18gb of H200-141GB is not sold on 1 host until a provider reports a layout that the table explains"


def host(name: str, *masks: int, product: str = H100, binding: Binding = Binding.DEVICE, **more: object) -> Host:
    first = more.pop("first", 10 * int(name[1:]))
    gpus = tuple(Gpu(first + index, product, mask) for index, mask in enumerate(masks))
    made = Host(name, "p1", "berlin", binding, gpus, free_vcpu=64, free_memory_gib=512)
    return replace(made, **more)


def ask(name: str = "1g.10gb", *, product: str = H100, count: int = 1, vcpu: int = 1, group: str = "") -> UnitAsk:
    return UnitAsk(GpuAsk(product, name, count), vcpu, 8, group)


def reasons(said: Placed | NoFit) -> list[tuple[Obstacle, int, str]]:
    assert isinstance(said, NoFit)
    return [(reason.obstacle, reason.hosts, reason.sentence) for reason in said.reasons]


# --- the rule -------------------------------------------------------------------------------------


def test_a_window_goes_to_the_fullest_gpu_that_still_has_it():
    said = place([ask("2g.20gb")], [host("h1", FULL, 0b0000_1100), host("h2", 0b0011_1111)])

    assert said == Placed((Placement("h1", ((11, 2),), settled=True),))


def test_of_equally_full_gpus_the_one_that_loses_fewest_options_is_taken():
    # Both have four free positions. A 1g destroys the 3g window of the first; the second has none to lose.
    said = place([ask("1g.10gb")], [host("h1", 0b1111_0000), host("h2", 0b0011_1100)])

    assert isinstance(said, Placed)
    assert said.placements[0].host == "h2"


def test_of_gpus_that_are_quite_alike_the_lowest_number_is_taken():
    said = place([ask("3g.40gb")], [host("h2", FULL, FULL), host("h1", FULL)])

    assert said == Placed((Placement("h1", ((10, 4),), settled=True),))


def test_whole_gpus_of_one_unit_lie_on_the_host_with_the_fewest_empty_ones():
    said = place([ask(WHOLE, count=2)], [host("h1", FULL, FULL, FULL), host("h2", FULL, 0, FULL), host("h3", FULL)])

    assert said == Placed((Placement("h2", ((20, 0), (22, 0)), settled=True),))


def test_a_unit_without_a_gpu_goes_to_the_fullest_host_that_has_room():
    hosts = [host("h1", free_vcpu=64), host("h2", free_vcpu=8), host("h3", free_vcpu=4)]

    assert place([UnitAsk(None, 6, 1)], hosts) == Placed((Placement("h2", (), settled=True),))


@settings(deadline=None)
@given(
    masks=st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=3), min_size=1, max_size=3),
    name=st.sampled_from(["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", WHOLE]),
)
def test_one_unit_takes_the_best_of_all_windows_by_the_published_tuple(masks, name):
    reachable = geometry.reachable_masks(H100)
    hosts = [host(f"h{i}", *(m if m in reachable else FULL for m in row)) for i, row in enumerate(masks)]
    size = profile(H100, name).size

    said = place([ask(name)], hosts)

    every = [
        ((gpu.free.bit_count(), geometry.loss(H100, gpu.free, geometry.window_mask(start, size)), -start), gpu.number)
        for one in hosts
        for gpu in one.gpus
        for start in geometry.legal_starts(H100, name, gpu.free)
    ]
    if not every:
        assert isinstance(said, NoFit)
        return
    assert isinstance(said, Placed)
    ((number, start),) = said.placements[0].windows
    free = next(gpu.free for one in hosts for gpu in one.gpus if gpu.number == number)
    chosen = (free.bit_count(), geometry.loss(H100, free, geometry.window_mask(start, size)), -start)
    assert chosen == min(every)[0]


# --- gangs ----------------------------------------------------------------------------------------


def test_a_gang_is_placed_on_one_provider_or_not_at_all():
    here, there = host("h1", 0b1111_0000), host("h2", 0b1111_0000, provider="p2")
    both = host("h3", FULL, provider="p3")

    said = place([ask("3g.40gb"), ask("3g.40gb")], [here, there, both])
    without = place([ask("3g.40gb"), ask("3g.40gb")], [here, there])

    assert isinstance(said, Placed)
    assert [p.host for p in said.placements] == ["h3", "h3"]
    assert {p.windows[0][1] for p in said.placements} == {0, 4}
    assert reasons(without) == [
        (
            Obstacle.NOT_TOGETHER,
            2,
            "each of the 2 units has room by itself, but no way to place all on one provider was found",
        )
    ]


def test_large_units_come_first_and_answers_keep_the_order_asked_for():
    said = place([ask("1g.10gb"), ask("4g.40gb")], [host("h1", FULL, 0b0000_1111)])

    assert said == Placed((Placement("h1", ((10, 6),), settled=True), Placement("h1", ((11, 0),), settled=True)))


def test_units_of_a_spread_group_get_hosts_of_their_own():
    units = [ask(group="a"), ask(group="a")]

    apart = place(units, [host("h1", FULL), host("h2", FULL)])
    together = place(units, [host("h1", FULL, FULL)])

    assert isinstance(apart, Placed)
    assert {p.host for p in apart.placements} == {"h1", "h2"}
    assert reasons(together) == [(Obstacle.SPREAD, 1, "2 units want hosts of their own; 1 hosts have room for one")]


def test_a_gang_backs_out_of_a_choice_that_leaves_no_room_for_the_rest():
    # The best place for the first is the small host, but only there is there room for the second's memory.
    small, large = host("h1", FULL, free_memory_gib=100), host("h2", FULL, free_memory_gib=10)
    units = [UnitAsk(GpuAsk(H100), 1, 8), UnitAsk(GpuAsk(H100), 1, 80)]

    said = place(units, [small, large])

    assert isinstance(said, Placed)
    assert [p.host for p in said.placements] == ["h2", "h1"]


@settings(deadline=None, max_examples=150)
@given(
    masks=st.lists(st.sampled_from(sorted(geometry.reachable_masks(H100))), min_size=1, max_size=4),
    names=st.lists(
        st.sampled_from(["1g.10gb", "1g.10gb+me", "2g.20gb", "3g.40gb", "4g.40gb", WHOLE]), min_size=1, max_size=6
    ),
    binding=st.sampled_from(Binding),
)
def test_what_a_gang_gets_is_free_legal_and_given_once(masks, names, binding):
    hosts = [host(f"h{i}", *masks[i::2], binding=binding) for i in range(2) if masks[i::2]]
    said = place([ask(name) for name in names], hosts)

    if isinstance(said, NoFit):
        return
    assert len(said.placements) == len(names)
    at: dict[str, tuple[int, int]] = {}
    for index, one in enumerate(said.placements):
        at[f"#{index}/0"] = one.windows[0]
    # Guesses of units placed earlier may have moved since: the last word counts.
    order = sorted(range(len(names)), key=lambda i: (-profile(H100, names[i]).size, i))
    for index in order:
        at[f"#{index}/0"] = said.placements[index].windows[0]
        at.update(said.placements[index].moved_guesses)
    for one in hosts:
        for gpu in one.gpus:
            windows = [(at[f"#{i}/0"][1], name) for i, name in enumerate(names) if at[f"#{i}/0"][0] == gpu.number]
            assert geometry.legal_packing(H100, windows)
            for start, name in windows:
                mask = geometry.window_mask(start, profile(H100, name).size)
                assert gpu.free & mask == mask


# --- hosts that choose ----------------------------------------------------------------------------


def test_on_a_host_that_chooses_the_place_is_a_guess_and_the_worst_case_decides():
    empty = host("h1", FULL, binding=Binding.HOST)
    first = place([ask("1g.10gb")], [empty])
    assert first == Placed((Placement("h1", ((10, 6),), settled=False),))
    busy = placement.taking(empty, ask("1g.10gb"), first.placements[0], unit="a")

    small = place([ask("1g.10gb")], [busy])
    large = place([ask("4g.40gb")], [busy])

    assert isinstance(small, Placed)
    assert busy.gpus[0].guesses == (Guess("a/0", "1g.10gb", 6),)
    assert busy.gpus[0].free == 0b1011_1111
    assert reasons(large) == [
        (
            Obstacle.NOT_REPORTED,
            1,
            "1 host where units not reported yet could leave no room for 4g.40gb of H100-80GB",
        )
    ]


def test_hosts_with_all_units_reported_are_preferred_to_guessing():
    guessing = replace(host("h1", 0b1011_1111, binding=Binding.HOST))
    guessing = replace(guessing, gpus=(replace(guessing.gpus[0], guesses=(Guess("a", "1g.10gb", 6),)),))

    said = place([ask("1g.10gb")], [guessing, host("h2", FULL)])

    assert said == Placed((Placement("h2", ((20, 6),), settled=True),))


def test_a_guess_moves_out_of_the_way_of_one_more_unit():
    gpus = (
        Gpu(1, H100, 0b1111_1110, guesses=(Guess("a", "1g.10gb", 0),)),
        Gpu(2, H100, FULL & ~0b1111, guesses=(Guess("b", "4g.40gb", 0),)),
        Gpu(3, H100, 0b0000_0001),
    )
    at = Placement("h1", ((1, 0),), settled=False, moved_guesses={"a": (3, 0)})

    after = placement.taking(replace(host("h1"), gpus=gpus, binding=Binding.HOST), ask("4g.40gb"), at, unit="n")

    assert [gpu.free for gpu in after.gpus] == [0b1111_0000, 0b1111_0000, 0]
    assert [gpu.guesses for gpu in after.gpus] == [
        (Guess("n/0", "4g.40gb", 0),), (Guess("b", "4g.40gb", 0),), (Guess("a", "1g.10gb", 0),),
    ]  # fmt: skip


def test_a_driver_that_chooses_the_start_is_judged_gpu_by_gpu():
    one = host("h1", 0b1111_1110, FULL, binding=Binding.GPU)
    one = replace(one, gpus=(replace(one.gpus[0], guesses=(Guess("a", "1g.10gb", 0),)), one.gpus[1]))

    said = place([ask("4g.40gb")], [one])

    assert said == Placed((Placement("h1", ((11, 0),), settled=False),))
    assert host_binding.worst_case_admits(H100, [(FULL, True), (FULL, True)], ["1g.10gb"], "4g.40gb")


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "hosts", "expected"),
    [
        (ask(WHOLE, product=L40S), [host("h1", FULL)], [(Obstacle.NO_PRODUCT, 0, "there is no L40S-48GB here")]),
        (
            ask("3g.40gb"),
            [host("h1", 0b0101_0101), host("h2", 0b0011_1100)],
            [(Obstacle.TOO_FRAGMENTED, 2, FRAGMENTED)],
        ),
        (
            ask("3g.40gb"),
            [host("h1", 0b11), host("h2", 0)],
            [(Obstacle.HELD, 2, "3g.40gb of H100-80GB does not fit on 2 hosts: all held")],
        ),
        (ask(WHOLE, count=2), [host("h1", FULL, 1)],
         [(Obstacle.TOO_FEW_EMPTY, 1, "1 host with fewer than 2 whole H100-80GB empty")]),
        (ask(vcpu=65), [host("h1", FULL)],
         [(Obstacle.HOST_VCPU, 1, "1 host with fewer than 65 vCPUs left, the most is 64")]),
        (ask(), [host("h1", FULL, free_memory_gib=7)],
         [(Obstacle.HOST_MEMORY, 1, "1 host with less than 8 GiB left, the most is 7 GiB")]),
        (ask(), [host("h1", FULL, placeable=False)], [(Obstacle.NOT_OPEN, 1, "1 host not open for placement")]),
        (ask(), [host("h1", FULL, dedicated_to="t2")],
         [(Obstacle.DEDICATED, 1, "1 host not free of other tenants, or kept for one")]),
        (ask("1g.18gb", product=H200), [host("h1", FULL, product=H200)],
         [(Obstacle.NOT_SOLD, 1, NOT_SOLD)]),
    ],
)  # fmt: skip
def test_a_refusal_says_what_is_in_the_way(unit, hosts, expected):
    assert reasons(place([unit], hosts)) == expected


def test_each_host_counts_for_its_own_first_obstacle():
    wish = Wish(rules=(Rule("only Berlin", "site", frozenset({"berlin"})),))
    hosts = [host("h1", FULL, site="paris"), host("h2", 0), host("h3", FULL, free_vcpu=0), host("h4", 0)]

    said = place([ask()], hosts, wish)

    assert [(o, n) for o, n, _ in reasons(said)] == [
        (Obstacle.FORBIDDEN, 1),
        (Obstacle.HELD, 2),
        (Obstacle.HOST_VCPU, 1),
    ]
    assert isinstance(said, NoFit)
    assert (said.reasons[0].rule, said.reasons[0].sentence) == ("only Berlin", "rule 'only Berlin' forbids 1 host")


@pytest.mark.parametrize(
    ("kind", "allowed"), [("site", "berlin"), ("provider", "p1"), ("binding", "device"), ("product", H100)]
)
def test_a_rule_allows_its_values_only(kind, allowed):
    one = host("h1", FULL)

    assert isinstance(place([ask()], [one], Wish(rules=(Rule("r", kind, frozenset({allowed})),))), Placed)
    assert isinstance(place([ask()], [one], Wish(rules=(Rule("r", kind, frozenset({"else"})),))), NoFit)


def test_a_taken_media_unit_is_named():
    one = host("h1", FULL)
    taken = replace(one, gpus=(replace(one.gpus[0], media_free=False),))

    assert reasons(place([ask("1g.10gb+me")], [taken])) == [
        (Obstacle.MEDIA_TAKEN, 1, "the media unit is taken wherever 1g.10gb+me of H100-80GB would fit on 1 host")
    ]


def test_inferred_placements_are_used_once_a_provider_has_shown_them():
    one = host("h1", FULL, product=H200)
    shown = replace(one, gpus=(replace(one.gpus[0], layout_reported=True),))

    assert isinstance(place([ask("1g.18gb", product=H200)], [shown]), Placed)
    assert isinstance(place([ask(WHOLE, product=H200)], [one]), Placed)
    assert isinstance(place([ask("1g.24gb", product=PRO5000)], [host("h1", 3, product=PRO5000)]), NoFit)


def test_a_dedicated_host_is_an_empty_one_or_the_tenants_own():
    hosts = [host("h1", FULL, 0), host("h2", FULL, FULL), host("h3", FULL, 0, dedicated_to="me")]
    wish = Wish(tenant="me", dedicated=True)

    mine = place([ask(WHOLE)], hosts, wish)
    fresh = place([ask(WHOLE)], hosts[:2], wish)

    assert isinstance(mine, Placed)
    assert mine.placements[0].host == "h2"  # lowest number of the alike
    assert isinstance(fresh, Placed)
    assert placement.taking(hosts[1], ask(WHOLE), fresh.placements[0], wish=wish).dedicated_to == "me"
    assert isinstance(place([ask(WHOLE)], hosts[:1], wish), NoFit)


def test_what_fits_instead_is_named_nearest_first():
    said = place([ask("4g.40gb")], [host("h1", 0b1111_1000), host("h2", 1, product=L40S)])

    assert isinstance(said, NoFit)
    assert said.instead == (
        Alternative(H100, "3g.40gb"),
        Alternative(H100, "1g.20gb"),
        Alternative(H100, "2g.20gb"),
        Alternative(H100, "1g.10gb"),
        Alternative(L40S, WHOLE),
    )


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match="nothing to place"):
        place([], [])
    with pytest.raises(ValueError, match="one MIG device"):
        place([ask("1g.10gb", count=2)], [])
    with pytest.raises(UnknownProfile):
        place([ask("5g.50gb")], [])
    with pytest.raises(ValueError, match="no rule is about 'colour'"):
        place([ask()], [host("h1", FULL)], Wish(rules=(Rule("r", "colour", frozenset()),)))
