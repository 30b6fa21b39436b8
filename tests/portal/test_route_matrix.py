"""Every address of the portal × who asks: visitor, foreign member, viewer, member; and what pages never say."""

from __future__ import annotations

import re

import pytest

from frontend import urls
from frontend.kernel.page import routes
from tenants import endpoint_trust
from tenants.models import Endpoint, Machine, Namespace
from tests.portal.world import CANARY, World, build

pytestmark = pytest.mark.usefixtures("db")

OTHERS = {"login", "logout", "style", ""}
"""Addresses that belong to nobody's tenant."""
MEMBERS_ONLY = {
    "endpoints.create", "machines.create", "namespaces.create", "endpoint-keys.list", "endpoints.create_key",
    "endpoints.promote", "endpoints.hold", "endpoints.resume", "endpoints.abort", "endpoints.rollback",
    "endpoints.sleep", "endpoints.wake", "endpoints.set_idle",
    "endpoints.move", "endpoints.cut_over", "endpoints.finish_move", "endpoints.undo_move",
    "endpoints.roll_key", "endpoints.limit_key", "endpoints.revoke_key", "endpoints.revise", "endpoints.delete",
    "machines.delete",
    "namespaces.delete", "machines.power", "machines.rebuild", "machines.resize", "machines.console",
    "machines.read_console", "allocations.renew", "boundaries.certify",
    "endpoints.log", "endpoints.read_log", "endpoints.benchmark", "endpoints.cancel_benchmark",
}  # fmt: skip
OWNERS_ONLY = {"budgets.set", "budgets.remove"}
OURS = re.compile(
    r"^t/<str:tenant>(/live|/new|/endpoints|/machines|/namespaces|/cost|/activity|/renew|/models|/isolation|$)"
)
MINE = [(path, declared) for path, declared in routes(urls.urlpatterns) if declared and OURS.match(path)]


def filled(path: str, world: World) -> str:
    """Return an address with its parameters filled in for the own tenant."""
    home = world.acme
    values = {
        "<str:tenant>": "acme",
        "endpoints/<str:name>": "endpoints/chat",
        "machines/<str:name>": "machines/box",
        "namespaces/<str:name>": "namespaces/space",
        "cost/<str:name>": f"cost/{home.endpoint.allocation.short_id}",
        "<int:number>": "1",
        "<str:place>": home.endpoint.allocation.boundary.short_id,
        "<str:key>": home.key.public_id,
        "<str:kind>/<uuid:key>": f"endpoint/{home.endpoint.pk}",
        "<uuid:log>": str(home.machine.pk),  # of none: it is gone after minutes
        "<str:benchmark>": "bm-none",
        "<uuid:console>": str(home.machine.pk),  # of none: its minute is over
    }
    for old, new in values.items():
        path = path.replace(old, new)
    assert "<" not in path, path
    return f"/{path}"


def snapshot() -> list[object]:
    """Return what a denied request must not have changed."""
    found: list[object] = []
    for model in (Endpoint, Machine, Namespace):
        found += model.objects.order_by("pk").values_list("pk", "version", "phase")
    return found


@pytest.fixture
def world(db: None) -> World:
    return build()


def test_every_route_of_work_stands_in_the_matrix():
    assert len(MINE) >= 30
    assert {declared.operation_id for _path, declared in MINE} >= {"endpoints.create", "endpoints.delete"}


def test_nobody_but_members_gets_through_and_nothing_changes(world, browse):
    visitor, stranger, viewer = browse(None), browse(world.foreign.owner), browse(world.acme.viewer)
    before = snapshot()
    wrong = []

    for path, declared in MINE:
        for method in declared.methods:
            url = filled(path, world)
            expected = {"visitor": 302, "stranger": 404}
            if declared.operation_id in MEMBERS_ONLY | OWNERS_ONLY:
                expected["viewer"] = 403
            for who, client in (("visitor", visitor), ("stranger", stranger), ("viewer", viewer)):
                if who not in expected:
                    continue
                status = client.generic(method, url).status_code
                if status != expected[who]:
                    wrong.append((method, url, who, status, expected[who]))

    assert wrong == []
    assert snapshot() == before


def test_members_open_every_page_and_no_page_names_the_foreign_tenant(world, browse):
    provider = world.provider
    provider.config = {**provider.config, endpoint_trust.CA_SETTING: "a certificate"}  # without one there is no file
    provider.save(update_fields=["config"])
    member, owner = browse(world.acme.member), browse(world.acme.owner)
    wrong = []

    for path, declared in MINE:
        if "GET" not in declared.methods or "/live" in path:
            continue
        browser = owner if declared.operation_id in OWNERS_ONLY else member
        for query in ("", "?format=json", "?format=csv") if path.endswith("s") else ("",):
            answer = browser.get(filled(path, world) + query)
            text = answer.content.decode()
            if answer.status_code != 200 or CANARY in text:
                wrong.append((path, answer.status_code, CANARY in text))

    assert wrong == []


def test_every_change_needs_the_form_token(world, browse):
    from django.test import Client

    browser = Client(headers={"accept": "text/html"}, enforce_csrf_checks=True)
    browser.force_login(world.acme.owner, backend="tenants.login.PersonBackend")
    before = snapshot()

    answers = {
        filled(path, world): browser.post(filled(path, world)).status_code
        for path, declared in MINE
        if "POST" in declared.methods
    }

    assert answers == dict.fromkeys(answers, 403)
    assert len(answers) >= 14
    assert snapshot() == before


def test_no_page_for_tenants_uses_words_of_the_ledger(world, browse):
    browser = browse(world.acme.member)
    words = re.compile(r"\b(boundary|ledger|mask|claim|allocation|hold)s?\b", re.IGNORECASE)
    found = {}

    for path, declared in MINE:
        if "GET" not in declared.methods or "/live" in path or path.endswith("/built"):
            continue
        text = re.sub(r"<[^>]*>", " ", browser.get(filled(path, world)).content.decode())
        if hits := sorted({hit.lower() for hit in words.findall(text)}):
            found[path] = hits

    assert found == {}
