"""Moves of endpoints over HTTP: begun, shown, undone; what is refused, with its code."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tenants.models import Allocation, Endpoint, Move, Provider
from tenants.states import ConditionType, Reason, Role, set_condition
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

BODY = {
    "name": "chat",
    "model": "llama-3-1-8b",
    "unit": {"gpu": {"product": "H100-80GB", "profile": "1g.10gb"}, "vcpu": 4, "memory_gib": 16},
    "where": {"kind": "namespace"},
}
HERE = "tenants/acme/endpoints/chat"


@pytest.fixture
def tenant():
    row = factories.tenant(name="acme")
    factories.generous(row)
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace", "vm"], "features": {"move": True}})
    factories.host(provider)
    factories.served_model()
    return row


@pytest.fixture
def me(api, tenant):
    here = api(factories.member(tenant))
    assert here.post("tenants/acme/endpoints", BODY).status == 201
    row = Endpoint.objects.get()
    row.conditions = set_condition(
        row.conditions, ConditionType.READY, "True", Reason.DONE, "", now=NOW, generation=row.generation
    )
    row.ready_at = NOW
    row.save()
    Allocation.objects.update(ready_at=NOW, expires_at=NOW + timedelta(days=30))
    return here


def test_a_move_is_begun_shown_and_undone_and_its_other_place_is_no_endpoint_of_the_list(me):
    made = me.post(f"{HERE}/move", {"kind": "vm", "by_hand": True})

    assert made.status in {200, 201}, made
    assert (made.body["state"], made.body["by_hand"], made.body["watch_s"]) == ("preparing", True, 300)
    assert (made.body["source"]["kind"], made.body["target"]["kind"]) == ("namespace", "vm")
    read = me.get(HERE).body
    assert read["move"]["id"] == made.body["id"]
    assert [row["name"] for row in me.get("tenants/acme/endpoints").body["items"]] == ["chat"]
    assert Endpoint._base_manager.count() == 2
    assert [row["id"] for row in me.get(f"{HERE}/moves").body["items"]] == [made.body["id"]]
    for verb in ("cut-over", "finish"):
        early = me.post(f"{HERE}/move/{verb}", {})
        assert (early.status, early.body["code"]) == (409, "not-ready")
    undone = me.post(f"{HERE}/move/undo", {"reason": "Too far."})
    assert (undone.body["state"], undone.body["reason"]) == ("undoing", "Too far.")


def test_what_cannot_move_is_refused_with_its_code_and_changes_nothing(me):
    assert me.get(HERE).body["move"] is None
    again = me.post(f"{HERE}/move", {"kind": "namespace"})
    nobody = me.post(f"{HERE}/move/undo", {})
    odd = me.post(f"{HERE}/move", {"kind": "cluster"})
    Provider.objects.update(capabilities={"boundary_kinds": ["namespace", "vm"]})
    unable = me.post(f"{HERE}/move", {"kind": "vm"})

    assert (again.status, again.body["code"]) == (409, "moves-nowhere")
    assert (nobody.status, nobody.body["code"]) == (409, "no-move")
    assert odd.status == 400
    assert (unable.status, unable.body["code"]) == (409, "not-supported")
    assert (Move.objects.count(), Allocation.objects.count(), Endpoint._base_manager.count()) == (0, 1, 1)


def test_one_change_at_a_time(me):
    me.post(f"{HERE}/move", {"kind": "vm"})

    twice = me.post(f"{HERE}/move", {"kind": "vm"})
    revised = me.post(f"{HERE}/revisions", {"model": "llama-3-1-8b", "arguments": {"max_model_len": 4096}})

    assert (twice.status, twice.body["code"]) == (409, "move-running")
    assert (revised.status, revised.body["code"]) == (409, "move-running")


def test_a_viewer_may_see_where_it_goes_and_not_send_it(api, me, tenant):
    me.post(f"{HERE}/move", {"kind": "vm"})
    viewer = api(factories.member(tenant, Role.VIEWER))

    assert len(viewer.get(f"{HERE}/moves").body["items"]) == 1
    assert viewer.post(f"{HERE}/move/undo", {}).status == 403
