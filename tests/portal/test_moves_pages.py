"""The page that says where an endpoint is: offered, on its way, over."""

from __future__ import annotations

import pytest

from tenants.models import Endpoint, Move, Provider
from tenants.states import ConditionType, Reason, set_condition
from tests.conftest import NOW
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
PAGE = "/t/acme/endpoints/chat/moves"
ACT = "/t/acme/endpoints/chat/move"


@pytest.fixture
def world(db: None) -> World:
    found = build()
    row = Endpoint.objects.select_related("allocation").get(pk=found.acme.endpoint.pk)
    row.conditions = set_condition(
        row.conditions, ConditionType.READY, "True", Reason.DONE, "", now=NOW, generation=row.generation
    )
    row.ready_at = row.ready_at or NOW
    row.save()
    able("move")
    return found


def able(*features: str) -> None:
    for row in Provider.objects.all():
        kept = {**row.capabilities.get("features", {}), "move": "move" in features}
        row.capabilities = {**row.capabilities, "features": kept}
        row.save()


def test_it_is_offered_begun_and_undone(world, browse):
    me = browse(world.acme.member)
    before = me.get(PAGE).content.decode()
    assert f'action="{ACT}"' in before or "Move elsewhere" in before
    assert "Where it is" in before

    kind = "vm" if Endpoint.objects.get(pk=world.acme.endpoint.pk).boundary.kind == "namespace" else "namespace"
    said = me.post(ACT, {"kind": kind, "gpu": "", "minutes": "3", "by_hand": "on"}, follow=True).content.decode()
    move = Move.objects.get()
    assert "It is built at the other place" in said
    assert (move.by_hand, move.watch_s) == (True, 180)
    on_its_way = me.get(PAGE).content.decode()
    assert "It moves" in on_its_way
    assert "It is built there; it goes on here" in on_its_way

    me.post(f"{ACT}/undo", {"reason": "Not today."})
    assert (Move.objects.get().state, Move.objects.get().reason) == ("undoing", "Not today.")
    assert "Not today." in me.get(PAGE).content.decode()


def test_the_places_that_can_take_it_over_are_named_and_chosen(world, browse):
    me = browse(world.acme.member)
    provider = Provider.objects.filter(capabilities__boundary_kinds__contains=["vm"]).earliest("name")

    page = me.get(PAGE).content.decode()
    me.post(ACT, {"kind": f"vm/{provider.name}", "gpu": "", "minutes": "3"})

    assert f'<option value="vm/{provider.name}"' in page
    assert Move.objects.get().target["provider"] == provider.name


def test_where_it_cannot_go_anywhere_the_page_says_why(world, browse):
    able()

    page = browse(world.acme.member).get(PAGE).content.decode()

    assert "no address that could follow" in page
    assert "Move elsewhere" not in page


def test_a_viewer_reads_and_is_offered_nothing(world, browse):
    page = browse(world.acme.viewer).get(PAGE).content.decode()

    assert "Where it is" in page
    assert "Move elsewhere" not in page
