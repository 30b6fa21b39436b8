"""Layout changes over HTTP: whom one would concern, the plan, and what is refused."""

from __future__ import annotations

import pytest

from tenants.models import GpuDevice, Host, HostPlan
from tenants.states import PlatformRole
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

HALVES = {"layouts": [{"device": "0", "profiles": ["3g.40gb", "3g.40gb"]}]}


@pytest.fixture
def host() -> Host:
    row = factories.host(factories.provider(name="estate", capabilities={"features": {"layout-change": True}}), gpus=2)
    GpuDevice.objects.update(layout_change="fixed", mode="empty")
    return row


@pytest.fixture
def me(api, host):
    return api(factories.person(platform=(PlatformRole.OPERATOR,)))


def test_a_preview_says_whom_it_concerns_and_changes_nothing(me, host):
    seen = me.post(f"hosts/{host.pk}/preview-layout", HALVES)

    assert seen.status == 200, seen
    (gpu,) = seen.body["gpus"]
    assert (gpu["index"], gpu["before"], gpu["differs"]) == (0, [], True)
    assert gpu["after"] == [
        {"start": 0, "size": 4, "profile": "3g.40gb"}, {"start": 4, "size": 4, "profile": "3g.40gb"},
    ]  # fmt: skip
    assert (seen.body["touched"], seen.body["foreign"], seen.body["tenants"]) == ([], [], [])
    host.refresh_from_db()
    assert (HostPlan.objects.count(), host.state) == (0, "open")


def test_a_plan_is_made_once_read_and_cancelled(me, host):
    body = {**HALVES, "reason": "larger parts", "evict": True, "starts_at": "2090-01-01T00:00:00Z"}
    assert me.post(f"hosts/{host.pk}/layout", body).status == 400  # longer than any notice
    del body["starts_at"]

    made = me.post(f"hosts/{host.pk}/layout", body, key="once")
    again = me.post(f"hosts/{host.pk}/layout", body, key="once")

    assert made.status == again.status == 201, made
    assert again.body["id"] == made.body["id"]
    assert (made.body["kind"], made.body["state"], made.body["stage"]) == ("layout", "running", "drain")
    assert (made.body["layout"]["evict"], made.body["waits_for"], made.body["why"]) == (True, [], "")
    assert me.get(f"plans/{made.body['short_id']}").body["layout"] == made.body["layout"]
    second = me.post(f"hosts/{host.pk}/layout", {**HALVES, "reason": "again"})
    assert (second.status, second.body["code"]) == (409, "plan-running")
    assert made.body["short_id"] in second.body["detail"]
    ended = me.post(f"plans/{made.body['id']}/cancel")
    assert (ended.status, ended.body["state"]) == (200, "cancelled")


@pytest.mark.parametrize(
    ("layouts", "status", "code"),
    [
        ([], 400, "invalid"),
        ([{"device": "7", "profiles": []}], 400, "layout-impossible"),
        ([{"device": "0", "profiles": ["4g.40gb", "4g.40gb"]}], 400, "layout-impossible"),
        ([{"device": "0", "profiles": ["1g.10gb"] * 17}], 400, "invalid"),
        ([{"device": "0", "profiles": ["$(reboot)"]}], 400, "invalid"),
        ([{"device": "0", "profiles": ["7g.80gb"]}] * 2, 400, "layout-impossible"),
        ([{"device": "0", "profiles": []}], 409, "layout-present"),
    ],
)
def test_what_cannot_be_is_refused_with_its_code(me, host, layouts, status, code):
    answer = me.post(f"hosts/{host.pk}/layout", {"layouts": layouts, "reason": "a test"})

    assert (answer.status, answer.body["code"]) == (status, code)
    assert HostPlan.objects.count() == 0


def test_a_provider_that_cannot_says_so_with_its_remedy(me, host):
    host.provider.capabilities = {"features": {"layout-change": False}, "missing": {"layout-change": "Install it."}}
    host.provider.save(update_fields=["capabilities"])

    answer = me.post(f"hosts/{host.pk}/layout", {**HALVES, "reason": "a test"})

    assert (answer.status, answer.body["code"]) == (409, "not-supported")
    assert answer.body["detail"] == "estate cannot change layouts. Install it."
