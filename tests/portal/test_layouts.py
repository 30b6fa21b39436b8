"""Changing the layout of a host by clicks: what is chosen, whom it concerns, the plan with its before and after."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from tenants.models import GpuDevice, Host, HostPlan
from tenants.operations import inventory, layouts
from tenants.states import PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def world(db: None) -> World:
    made = build()
    GpuDevice.objects.update(layout_change="fixed")
    factories.host(made.provider)
    return made


@pytest.fixture
def ole():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def carvable() -> Host:
    return Host.objects.filter(units__isnull=False).distinct().get()


def used() -> GpuDevice:
    return GpuDevice.objects.filter(host=carvable(), free__lt=0xFF).order_by("index")[0]


def changed(who, **more) -> HostPlan:
    return layouts.change_layout(
        host=carvable(), layouts={str(used().index): ["3g.40gb", "3g.40gb"]}, reason="larger parts",
        actor=factories.actor(who), now=timezone.now(), **more,
    )  # fmt: skip


def test_it_is_offered_where_a_gpu_can_be_carved_anew(world, browse, ole):
    browser = browse(ole)
    other = Host.objects.exclude(pk=carvable().pk).get()  # its GPUs are carved when something is placed on them

    offered = f'href="/ops/hosts/{carvable().short_id}/layout"'
    assert offered in browser.get(f"/ops/hosts/{carvable().short_id}").content.decode()
    assert offered in browser.get(f"/ops/gpus/{used().short_id}").content.decode()
    assert f"/{other.short_id}/layout" not in browser.get(f"/ops/hosts/{other.short_id}").content.decode()
    assert "There is nothing to set" in text(browser.get(f"/ops/hosts/{other.short_id}/layout"))


def test_what_is_chosen_is_shown_with_whom_it_concerns_and_nothing_is_changed(world, browse, ole):
    host, gpu = carvable(), used()
    before = (host.state, host.version)

    page = browse(ole).get(f"/ops/hosts/{host.short_id}/layout?layout:{gpu.index}=2x3g.40gb")

    said = text(page)
    other = Host.objects.exclude(pk=host.pk).get().name
    assert page.status_code == 200
    assert "Carved after" in said
    assert f"moves to {other}" in said
    assert "stays until its tenant gives it back" in said
    assert f"tenantry host layout {host.name} --gpu {gpu.index}=2x3g.40gb" in said
    assert page.content.decode().count(f'<input type="hidden" name="layout:{gpu.index}" value="2x3g.40gb">') == 1
    host.refresh_from_db()
    assert ((host.state, host.version), HostPlan.objects.count()) == (before, 0)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ("mix&mix=4g.40gb,+4g.40gb", "cannot be carved into 4g.40gb, 4g.40gb at the same time"),
        ("mix&mix=9g.90gb", "9g.90gb"),
        ("3x7g.80gb", "at the same time"),
    ],
)
def test_what_no_gpu_can_be_is_said_at_once(world, browse, ole, chosen, sentence):
    page = browse(ole).get(f"/ops/hosts/{carvable().short_id}/layout?layout:0={chosen}")

    assert page.status_code == 422
    assert sentence in text(page)


def test_a_change_is_begun_by_its_form_and_its_plan_shows_before_and_after(world, browse, ole):
    host, gpu = carvable(), used()
    form = {f"layout:{gpu.index}": "mix", "mix": "4g.40gb, 3g.40gb", "evict": "on", "version": host.version}
    browser = browse(ole)

    wrong = browser.post(f"/ops/hosts/{host.short_id}/layout/start", {**form, "reason": ""})
    begun = browser.post(f"/ops/hosts/{host.short_id}/layout/start", {**form, "reason": "larger parts"})

    assert (wrong.status_code, HostPlan.objects.count()) == (422, 1)
    plan = HostPlan.objects.get()
    assert (begun.status_code, begun.url) == (302, f"/ops/plans/{plan.short_id}")
    assert plan.layout["evict"] is True
    assert [one["after"] for one in plan.layout["gpus"]] == [[[0, 4, "4g.40gb"], [4, 4, "3g.40gb"]]]
    said = text(browser.get(f"/ops/plans/{plan.short_id}"))
    assert f"Layout change: {host.name}" in said
    assert all(word in said for word in ("Tenants told", "Moved and let go", "Carved", "Compared", "In service again"))
    assert "4g.40gb" in browser.get(f"/ops/plans/{plan.short_id}").content.decode()


def test_a_second_plan_is_refused_with_the_first_one_named(world, browse, ole):
    plan = changed(ole, starts_at=timezone.now() + timedelta(days=1))

    page = browse(ole).get(f"/ops/hosts/{plan.host.short_id}/layout?layout:0=whole")

    assert page.status_code == 409
    assert f"A layout change of {plan.host.name} is running ({plan.short_id})" in text(page)


def test_a_plan_says_for_whom_it_waits_and_why_it_failed(world, browse, ole, client: Client):
    plan = changed(ole)
    browser = browse(ole)
    plan.observed |= {
        "started": timezone.now().isoformat(),
        "waits_for": ["acme/space is held until its tenant lets go"],
    }
    plan.save(update_fields=["observed"])
    assert "acme/space is held until its tenant lets go" in text(browser.get(f"/ops/plans/{plan.short_id}"))

    inventory.cancel_plan(plan=plan, actor=factories.actor(ole), now=timezone.now())
    assert "Being rolled back" in text(browser.get(f"/ops/plans/{plan.short_id}"))
    HostPlan.objects.update(state="failed", observed={"why": "The MIG manager failed.", "stage": "restore"})

    said = text(browser.get(f"/ops/plans/{plan.short_id}"))
    assert "It failed; the host is back with the layout that it has The MIG manager failed." in said
    assert "What was, and what was to be" in said
    assert plan.short_id in text(browser.get("/ops/plans?state=failed&kind=layout"))
