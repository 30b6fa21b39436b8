"""One GPU: who has it, who comes next, who had it, what is wrong with it, and its repair."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta

import pytest
from django.utils import timezone

from tenants import ledger
from tenants.models import GpuDevice, HostPlan, MigDevice, Unit
from tenants.states import HoldKind, PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def ole():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


@pytest.fixture
def aud():
    return factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def of(gpu, step="") -> str:
    return f"/ops/gpus/{gpu.short_id}{step}"


def gpu_of(name) -> GpuDevice:
    return GpuDevice.objects.get(holds__unit__allocation__name=name)


def broken(gpu, message="Xid 79") -> GpuDevice:
    GpuDevice.objects.filter(pk=gpu.pk).update(healthy=False, placeable=False, message=message)
    return gpu


def test_the_page_says_who_has_which_slots(world, browse, aud):
    gpu = gpu_of("chat")
    hold = gpu.holds.get(unit__allocation__name="chat")

    shown = browse(aud).get(of(gpu))

    said = text(shown)
    assert f"chat 2g.20gb slots {hold.start}–{hold.start + 1} Acme Works" in said
    assert 'href="/t/acme/endpoints/chat"' in shown.content.decode()
    assert "Nobody had it before" in said


def test_who_comes_next_and_who_had_it_before(world, browse, aud):
    gpu = gpu_of("chat")
    later = timezone.now() + timedelta(days=2)
    empty = GpuDevice.objects.order_by("-number").first()
    ledger.put(HoldKind.MAINTENANCE, empty.pk, 0, 8, from_at=later, to_at=None, note="plan x", now=timezone.now())
    ledger.release(Unit.objects.get(allocation__name="chat"), now=timezone.now())

    before, next_up = text(browse(aud).get(of(gpu))), text(browse(aud).get(of(empty)))

    assert re.search(r"Who had it before .*chat 2g\.20gb slots", before)
    assert re.search(r"Who comes next .*Kept empty by a plan", next_up)
    assert "Nobody has any of it" in next_up


def test_holders_of_now_and_before_are_exported(world, browse, aud):
    gpu = gpu_of("chat")
    others = set(gpu.holds.exclude(unit__allocation__name="chat").values_list("unit__allocation__name", flat=True))
    ledger.release(Unit.objects.get(allocation__name="chat"), now=timezone.now())

    rows = json.loads(browse(aud).get(of(gpu) + "?format=json").content)

    assert {row["what"] for row in rows} == others | {"chat"}
    assert next(row for row in rows if row["what"] == "chat")["until"] is not None


def test_the_layout_of_the_provider_stands_beside_whom_we_know_there(world, browse, aud):
    gpu = gpu_of("chat")
    start = gpu.holds.get(unit__allocation__name="chat").start
    MigDevice.objects.create(device=gpu, profile="2g.20gb", start=start, size=2, seen_at=timezone.now())
    free = next(at for at in range(8) if not gpu.holds.filter(start__lte=at, start__gt=at - 2).exists())
    MigDevice.objects.create(device=gpu, profile="1g.10gb", start=free, size=1, seen_at=timezone.now())

    said = text(browse(aud).get(of(gpu)))

    assert f"2g.20gb slots {start}–{start + 1} chat" in said
    assert f"1g.10gb slot {free} nobody" in said


def test_a_faulty_gpu_says_what_is_wrong_and_only_operators_repair_it(world, browse, ole, aud):
    gpu = broken(gpu_of("chat"))

    for who, may in ((ole, True), (aud, False)):
        shown = browse(who).get(of(gpu))
        assert "It is faulty Xid 79" in text(shown)
        assert (f'action="{of(gpu, "/repair")}"' in shown.content.decode()) is may
    assert of(gpu, "/repair") not in browse(ole).get(of(GpuDevice.objects.order_by("-number").first())).content.decode()


def test_a_repair_makes_a_plan_and_tells_the_tenants(world, browse, ole):
    gpu = broken(gpu_of("chat"))

    answer = browse(ole).post(of(gpu, "/repair"), {"reason": "memory errors"})

    plan = HostPlan.objects.get(host=gpu.host)
    assert answer.status_code == 302
    assert (plan.kind, plan.reason) == ("repair", "memory errors")
    assert "A plan runs on its host" in text(browse(ole).get(of(gpu)))


def test_mistakes_of_a_repair_come_back_at_their_field(world, browse, ole):
    gpu = broken(gpu_of("chat"))
    well = GpuDevice.objects.order_by("-number").first()

    short = browse(ole).post(of(gpu, "/repair"), {"reason": ""})
    needless = browse(ole).post(of(well, "/repair"), {"reason": "memory errors"})

    assert short.status_code == 422
    assert 'id="reason-error"' in short.content.decode()
    assert needless.status_code == 409
    assert "drain the host instead" in text(needless)
    assert not HostPlan.objects.exists()


def test_a_gpu_that_was_taken_out_keeps_its_page(world, browse, aud):
    gpu = GpuDevice.objects.order_by("-number").first()
    GpuDevice.objects.filter(pk=gpu.pk).update(removed_at=timezone.now(), placeable=False)
    ledger.recount(gpu.host_id, now=timezone.now())

    said = text(browse(aud).get(of(gpu)))

    assert "Taken out" in said
    assert "It was taken out." in said
