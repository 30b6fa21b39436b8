"""Why nothing could be placed: words that say what would help."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tenants import no_room
from tenants.gpu_catalogue import WHOLE
from tenants.models import GpuDevice, Host, MigDevice
from tenants.specs import AllocationSpec, GpuAsk, UnitAsk
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

H100 = "H100-80GB"
PAIR = ((0, 4, "3g.40gb"), (4, 4, "3g.40gb"))
ONES = tuple((start, 1, "1g.10gb") for start in range(7))


@pytest.fixture
def host() -> Host:
    return factories.host(factories.provider(), gpus=2)


def explained(host: Host, profile: str, *, count: int = 1) -> no_room.NoRoom:
    spec = AllocationSpec(units=(UnitAsk(GpuAsk(H100, profile, count), vcpu=1, memory_gib=1),))
    return no_room.explain(spec, [host.provider_id])


def change(host: Host, number: int, *windows: tuple[int, int, str], **columns: object) -> GpuDevice:
    """Carve one GPU of a host and set columns that the ledger keeps; what is asked for is only read here."""
    device = list(host.devices.order_by("number"))[number]
    for start, size, profile in windows:
        MigDevice.objects.create(device=device, start=start, size=size, profile=profile, seen_at=datetime.now(UTC))
    GpuDevice.objects.filter(pk=device.pk).update(**columns)
    return device


def fix(host: Host, number: int, *windows: tuple[int, int, str], free: int = 0xFF) -> GpuDevice:
    mode = "mig" if windows else "empty"
    return change(host, number, *windows, layout_change="fixed", mode=mode, free=free)


@pytest.mark.no_audit
@pytest.mark.parametrize(
    ("free", "profile", "reason"),
    [
        ((0, 0), "1g.10gb", "All 2 open H100-80GB are held."),
        ((0b1100, 0), "3g.40gb", "No H100-80GB has 3g.40gb free; the biggest free window is 1g.20gb."),
        ((0b1100, 0), WHOLE, "No H100-80GB has a whole GPU free; the biggest free window is 1g.20gb."),
        ((0xFF, 0), "1g.10gb", "Free GPU windows exist, but not on a host with enough vCPU and memory, or their place"),
    ],
)
def test_what_is_held_is_told_by_the_biggest_window_that_is_left(
    host: Host, free: tuple[int, int], profile: str, reason: str
) -> None:
    for number, mask in enumerate(free):
        change(host, number, layout_change="dynamic", free=mask)

    assert explained(host, profile).reason.startswith(reason)


@pytest.mark.no_audit
def test_where_nothing_is_carved_as_asked_only_a_layout_change_helps(host: Host) -> None:
    fix(host, 0, *PAIR)
    fix(host, 1, *PAIR, free=0)

    answer = explained(host, "1g.10gb")

    assert answer.reason == (
        "No H100-80GB is carved as 1g.10gb here, and layouts are fixed: ask the operator for a layout change."
    )
    assert answer.data["layout_change"] is True
    assert (answer.data["free_slices"], answer.data["open_gpus"]) == (8, 2)


@pytest.mark.no_audit
def test_windows_that_are_carved_and_held_are_waited_for_and_free_ones_of_another_layout_are_told(host: Host) -> None:
    fix(host, 0, *PAIR, free=0)
    fix(host, 1, *ONES, free=0)
    all_held = explained(host, "3g.40gb")
    GpuDevice.objects.filter(layout__startswith="1g").update(free=0xFF)

    free_beside = explained(host, "3g.40gb")

    assert all_held.reason == "All 2 windows that are carved as 3g.40gb on H100-80GB are held."
    assert "layout_change" not in all_held.data
    assert free_beside.reason == (
        f"{all_held.reason} "
        "1 more is free and carved otherwise by a fixed layout: ask the operator for a layout change."
    )
    assert free_beside.data["layout_change"] is True


@pytest.mark.no_audit
def test_a_carved_gpu_is_never_whole_and_the_words_say_so(host: Host) -> None:
    fix(host, 0, *PAIR)
    fix(host, 1, *PAIR)
    none_whole = explained(host, WHOLE)
    several = explained(host, WHOLE, count=2)
    MigDevice.objects.all().delete()
    GpuDevice.objects.filter(pk=host.devices.order_by("number")[0].pk).update(mode="whole", free=0)
    GpuDevice.objects.filter(pk=host.devices.order_by("number")[1].pk).update(mode="unknown")

    beside = explained(host, WHOLE)

    assert none_whole.reason == (
        "No H100-80GB is left whole here, and layouts are fixed: ask the operator for a layout change."
    )
    assert several.reason == (
        "No host has 2 empty H100-80GB; 0 are empty over all hosts. "
        "2 more are free and carved by a fixed layout: ask the operator for a layout change."
    )
    assert beside.reason == (
        "All 2 open H100-80GB are held. "
        "1 more is free and carved otherwise by a fixed layout: ask the operator for a layout change."
    )


@pytest.mark.no_audit
def test_a_fixed_gpu_has_room_only_in_what_is_carved(host: Host) -> None:
    """Seven free slots of which none is a 2g.20gb were told as room before."""
    fix(host, 0, *ONES)
    change(host, 1, layout_change="dynamic", free=0b1)

    answer = explained(host, "2g.20gb")

    assert answer.reason == (
        "No H100-80GB has 2g.20gb free; the biggest free window is 1g.10gb. "
        "1 more is free and carved otherwise by a fixed layout: ask the operator for a layout change."
    )


@pytest.mark.no_audit
def test_a_held_media_engine_is_named(host: Host) -> None:
    for number in range(2):
        change(host, number, layout_change="dynamic", media_free=False, free=0x7F)

    answer = explained(host, "1g.10gb+me")

    assert answer.reason == "H100-80GB has room for 1g.10gb+me, but the media engines of those GPUs are held."


def test_nothing_there_and_nothing_open_are_told_apart(host: Host) -> None:
    elsewhere = factories.provider()
    none = no_room.explain(
        AllocationSpec(units=(UnitAsk(GpuAsk(H100, WHOLE, 1), vcpu=1, memory_gib=1),)), [elsewhere.pk]
    )
    Host.objects.update(placeable=False)
    GpuDevice.objects.update(placeable=False)

    assert none.reason == "No H100-80GB exists where this may run."
    assert explained(host, WHOLE).reason == "None of the 2 H100-80GB is open for placement at the moment."


@pytest.mark.no_audit
def test_the_answer_is_read_in_one_statement_with_a_row_for_each_kind_of_gpu(host: Host) -> None:
    for _ in range(3):
        factories.host(host.provider, gpus=8)
    GpuDevice.objects.update(layout_change="dynamic", free=0b1)

    with CaptureQueriesContext(connection) as seen:
        answer = explained(host, "3g.40gb")
    alike = no_room._open(H100, [host.provider_id])

    assert len(seen) == 1
    assert [each.count for each in alike] == [26]
    assert answer.data["open_gpus"] == 26
