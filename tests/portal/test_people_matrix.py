"""People, settings and first steps: every address × who asks; nothing changes for who may not; no foreign names."""

from __future__ import annotations

import re
from uuid import uuid4

import pytest
from django.test import Client

from frontend.addresses_people import PEOPLE
from frontend.kernel.page import routes
from tenants.models import AccountLink, ApiToken, Membership, ServiceAccount, Tenant, Webhook
from tenants.operations import accounts, notifications, service_accounts
from tenants.states import Role
from tests import factories
from tests.conftest import NOW
from tests.portal.world import CANARY, World, build

pytestmark = pytest.mark.usefixtures("db")

EVERY = [(path, declared) for path, declared in routes(PEOPLE) if declared]
MINE = [(path, declared) for path, declared in EVERY if path.startswith("t/")]
READ_BY_VIEWERS = {"members.list", "service-accounts.list", "service-accounts.read", "members.leave"}
ABOVE_ONLY = {"tenants.suspend", "tenants.resume"}
WORDS = re.compile(r"\b(boundary|ledger|mask|claim|allocation|hold)s?\b", re.IGNORECASE)


@pytest.fixture
def world(db: None, settings) -> World:
    settings.TENANTRY_WEBHOOK_NETWORKS = "127.0.0.0/8"
    world = build()
    for house in (world.acme, world.foreign):
        prefix = f"{CANARY}-" if house is world.foreign else ""
        owner = factories.actor(house.owner)
        account = service_accounts.create(
            tenant=house.tenant, name=f"{prefix}robot", role=Role.MEMBER, actor=owner, now=NOW
        )
        service_accounts.issue_token(account=account, name=f"{prefix}pipeline", actor=owner, now=NOW)
        accounts.invite(tenant=house.tenant, email=f"{prefix}new@example.org", role=Role.MEMBER, actor=owner, now=NOW)
        hook, _secret = notifications.create_webhook(
            tenant=house.tenant, name=f"{prefix}hook", url="http://127.0.0.1:9999/x", kinds=[], actor=owner, now=NOW
        )
        notifications.try_webhook(webhook=hook, actor=owner, now=NOW)
    return world


def filled(path: str, world: World) -> str:
    """Return an address of the own tenant."""
    tenant = world.acme.tenant
    values = {
        "<str:tenant>": "acme",
        "accounts/<str:name>": "accounts/robot",
        "webhooks/<str:name>": "webhooks/hook",
        "<uuid:member>": str(Membership.objects.get(tenant=tenant, person=world.acme.member).pk),
        "<uuid:person>": str(world.acme.member.pk),
        "<uuid:link>": str(AccountLink.objects.get(tenant=tenant).pk),
        "<uuid:delivery>": str(Webhook.objects.get(tenant=tenant).deliveries.get().pk),
        "<str:token>": ApiToken.objects.get(tenant=tenant).public_id,
    }
    for old, new in values.items():
        path = path.replace(old, new)
    assert "<" not in path, path
    return f"/{path}"


def snapshot() -> list[object]:
    found: list[object] = []
    found += Membership.objects.order_by("pk").values_list("pk", "role")
    found += AccountLink.objects.order_by("pk").values_list("pk", "withdrawn_at")
    found += ServiceAccount.objects.order_by("pk").values_list("pk", "role", "disabled_at")
    found += ApiToken.objects.order_by("pk").values_list("pk", "revoked_at")
    found += Webhook.objects.order_by("pk").values_list("pk", "version", "removed_at")
    found += Tenant.objects.order_by("pk").values_list("pk", "version", "status")
    return found


def test_every_route_is_here():
    assert len(MINE) >= 35
    assert {path for path, _declared in EVERY if not path.startswith("t/")} >= {"first", "first/tenant", "first/join"}


@pytest.mark.slow
def test_visitors_log_in_strangers_find_nothing_viewers_are_refused_and_nothing_changes(world, browse):
    visitor, stranger, viewer = browse(None), browse(world.foreign.owner), browse(world.acme.viewer)
    before, wrong = snapshot(), []

    for path, declared in MINE:
        url = filled(path, world)
        for method in declared.methods:
            expected = {"visitor": 302, "stranger": 404}
            if declared.operation_id not in READ_BY_VIEWERS:
                expected["viewer"] = 403
            clients = {"visitor": visitor, "stranger": stranger, "viewer": viewer}
            for who, status in expected.items():
                got = clients[who].generic(method, url).status_code
                if got != status:
                    wrong.append((method, url, who, got, status))

    assert wrong == []
    assert snapshot() == before


def test_every_change_needs_the_form_token(world, browse):
    browser = Client(headers={"accept": "text/html"}, enforce_csrf_checks=True)
    browser.force_login(world.acme.owner, backend="tenants.login.PersonBackend")
    before = snapshot()

    posts = [filled(path, world) for path, declared in MINE if "POST" in declared.methods]
    answers = {url: browser.post(url).status_code for url in posts}

    assert answers == dict.fromkeys(answers, 403)
    assert len(answers) >= 28
    assert snapshot() == before


def test_owners_open_every_page_and_none_names_a_foreign_tenant_or_speaks_of_the_machinery(world, browse):
    browser, wrong = browse(world.acme.owner), []

    for path, declared in MINE:
        if "GET" not in declared.methods or declared.operation_id in ABOVE_ONLY:
            continue
        answer = browser.get(filled(path, world))
        text = re.sub(r"<[^>]*>", " ", answer.content.decode())
        if answer.status_code != 200 or CANARY in answer.content.decode() or WORDS.search(text):
            wrong.append((path, answer.status_code, WORDS.findall(text)))

    assert wrong == []


def test_owners_see_tokens_and_members_do_not(world, browse):
    public_id = ApiToken.objects.get(tenant=world.acme.tenant).public_id
    url = "/t/acme/people/accounts/robot"

    assert public_id in browse(world.acme.owner).get(url).content.decode()
    assert public_id not in browse(world.acme.member).get(url).content.decode()


def test_objects_of_another_tenant_are_not_there_in_ones_own(world, browse):
    browser = browse(world.acme.owner)
    foreign = Membership.objects.get(tenant=world.foreign.tenant, person=world.foreign.member)
    link = AccountLink.objects.get(tenant=world.foreign.tenant)

    answers = [
        browser.get(f"/t/acme/people/{foreign.pk}/remove"),
        browser.post(f"/t/acme/people/{foreign.pk}/role", {"role": "viewer"}),
        browser.post(f"/t/acme/people/invitations/{link.pk}/withdraw"),
        browser.get(f"/t/acme/people/accounts/{CANARY}-robot"),
        browser.get(f"/t/acme/settings/webhooks/{CANARY}-hook"),
        browser.get(f"/t/acme/people/{uuid4()}/remove"),
    ]

    assert [answer.status_code for answer in answers] == [404] * 6
