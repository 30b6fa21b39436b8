"""Every address of providers, connecting, plans and findings × who asks, with each method; and the form token."""

from __future__ import annotations

import pytest
from django.test import Client
from django.utils import timezone

from frontend.addresses_providers import PROVIDERS
from frontend.kernel.page import routes
from tenants.models import Finding, Host, HostPlan, Provider
from tenants.operations import inventory
from tenants.states import PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
ALL = [(path, method, declared) for path, declared in routes(PROVIDERS) if declared for method in declared.methods]
READS = {"hosts.list", "plans.list", "plans.read", "findings.list", "findings.read"}


@pytest.fixture
def world(db) -> World:
    made = build()
    ole = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    now = timezone.now()
    inventory.drain(host=factories.host(made.provider), reason="a test", actor=ole, now=now)
    Finding.objects.create(kind="orphan", provider=made.provider, subject="vm", first_seen_at=now, last_seen_at=now)
    return made


def filled(path: str) -> str:
    found = {
        "<str:provider>": "estate",
        "<str:credential>": "token",
        "plans/<str:key>": f"plans/{HostPlan.objects.get().short_id}",
        "findings/<str:key>": f"findings/{Finding.objects.get().short_id}",
    }
    for old, new in found.items():
        path = path.replace(old, new)
    assert "<" not in path, path
    return f"/{path}"


def snapshot() -> list[object]:
    """Return what a denied request must not have changed."""
    found: list[object] = list(Provider.objects.values_list("pk", "version", "enabled", "observed", "config"))
    found += HostPlan.objects.values_list("pk", "version", "state", "starts_at")
    found += Finding.objects.values_list("pk", "version", "data")
    found += Host.objects.order_by("pk").values_list("pk", "state", "acceptance")
    return found


@pytest.mark.slow
def test_each_address_answers_each_person_as_declared(world, browse):
    people = {
        "visitor": None,
        "stranger": world.foreign.owner,
        "member": world.acme.member,
        "owner": world.acme.owner,
        "approver": factories.person(platform=(PlatformRole.APPROVER,)),
        "auditor": factories.person(platform=(PlatformRole.AUDITOR,)),
    }
    before = snapshot()
    wrong = []

    for who, person in people.items():
        browser = browse(person)
        for path, method, declared in ALL:
            reader = who in {"approver", "auditor"} and declared.operation_id in READS
            expected = 302 if who == "visitor" else 200 if reader else 403
            status = browser.generic(method, filled(path)).status_code
            if status != expected:
                wrong.append((who, method, path, status, expected))

    assert wrong == []
    assert snapshot() == before
    assert len(ALL) == 30


def test_an_operator_opens_every_page_and_what_is_missing_is_404(world, browse):
    browser = browse(factories.person(platform=(PlatformRole.OPERATOR,)))
    pages = [path for path, method, _declared in ALL if method == "GET"]

    opened = {path: browser.get(filled(path)).status_code for path in pages}
    missing = {
        browser.get("/" + path.replace("<str:provider>", "nowhere").replace("<str:key>", "xx-0000")).status_code
        for path in pages
        if "<" in path
    }

    assert {path: status for path, status in opened.items() if status != 200} == {
        "ops/providers/<str:provider>/connect": 302
    }
    assert missing == {404}


def test_every_change_needs_the_form_token(world):
    browser = Client(headers={"accept": "text/html"}, enforce_csrf_checks=True)
    browser.force_login(factories.person(platform=(PlatformRole.OPERATOR,)), backend="tenants.login.PersonBackend")
    before = snapshot()

    answers = [browser.post(filled(path)).status_code for path, method, _declared in ALL if method == "POST"]

    assert set(answers) == {403}
    assert len(answers) == 15
    assert snapshot() == before
