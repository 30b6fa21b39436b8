"""Canaries: every text of foreign tenants is marked, every page that somebody can reach is read, none may show a mark.

The world is the small demo. What is foreign to a person: tenants that are neither his, nor above, nor below his.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from django.apps import apps
from django.db import models
from psycopg import sql

from frontend import urls
from frontend.kernel.page import routes
from scripts.crawl import STARTS, Crawl
from tenants.models import (
    AccountLink,
    ApiToken,
    Endpoint,
    Membership,
    Person,
    Request,
    RequestComment,
    ServiceAccount,
    Tenant,
)
from tests import factories
from tests.conftest import NOW
from tests.portal import lived_in
from tests.portal.lived_in import client_of, fetcher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

CANARY = "zebrafish"
PLANTED = {
    "tenants.Tenant": {"name", "display_name", "description", "labels"},
    "tenants.Endpoint": {"name", "description", "labels", "address"},
    "tenants.Machine": {"name", "description", "labels", "address", "ssh_keys"},
    "tenants.Namespace": {"name", "description", "labels"},
    "tenants.Allocation": {"name", "description", "labels"},
    "tenants.Boundary": {"address"},
    "tenants.EndpointKey": {"name"},
    "tenants.Rollout": {"reason", "note"},
    "tenants.Move": {"reason"},
    "tenants.ServedModel": {"name", "repository", "licence"},
    "tenants.EndpointLog": {"lines"},
    "tenants.Benchmark": {"reason"},
    "tenants.AddressCheck": {"address"},
    "tenants.Request": {"reason", "payload"},
    "tenants.Decision": {"reason"},
    "tenants.RequestComment": {"text"},
    "tenants.Suspension": {"reason"},
    "tenants.ServiceAccount": {"name"},
    "tenants.ApiToken": {"name"},
    "tenants.AccountLink": {"email", "reason"},
    "tenants.Event": {"data"},
    "tenants.Notification": {"data"},
    "tenants.Webhook": {"name", "url", "disabled_why"},
    "tenants.Delivery": {"body", "reason"},
    "tenants.AutoApprovalRule": {"name"},
    "tenants.Hold": {"note"},
    "tenants.Notice": {"text"},
    "tenants.UsageSubject": {"name"},
}
"""Model with a tenant → its columns that hold people's words."""
MACHINE = {
    "short_id", "status", "stock_visibility", "managed_by", "kind", "state", "tier", "phase", "conditions", "spec",
    "demand", "priority", "service_class", "on_shortage", "product_kind", "lease_owner", "fingerprint", "observed",
    "finalizers", "public_id", "digest", "runtime", "arguments", "image", "power", "verdict", "granted", "proof",
    "decider", "outcome", "depth", "object_kind", "actor", "previous", "hash", "medium", "key", "kinds", "limits",
    "dimension", "policy", "reachable_from", "token_digest", "credential_digest", "rendered", "report", "body_hash",
    "role", "product", "profile", "spread_group", "avoid_hosts", "rule", "units", "principal", "message_id",
    "step", "handle", "error", "currency", "body", "key_id", "item", "public_key", "kept",
    "strategy", "steps", "on_new", "baseline", "idle_units", "source", "target", "budget", "lineage", "budget_period",
    "scopes", "commit", "gating", "task", "geometry", "config_digest", "quantisation", "load", "result", "findings",
}  # fmt: skip
"""Columns that hold words of the product, never of people; a new column has to be put here or above."""


def test_every_text_of_a_tenant_is_planted_or_known_to_be_the_products_own():
    missing = []
    for model in apps.get_app_config("tenants").get_models():
        fields = {field.name: field for field in model._meta.get_fields() if isinstance(field, models.Field)}
        if "tenant" not in fields and "tenant_id" not in fields and model is not Tenant:
            continue
        for name, field in fields.items():
            if isinstance(field, models.CharField | models.TextField | models.JSONField):
                planted = PLANTED.get(model._meta.label, set())
                if name not in planted and name not in MACHINE:
                    missing.append(f"{model._meta.label}.{name}")

    assert " ".join(missing) == ""


@pytest.fixture(scope="module")
def demo(superuser, _cleaner, django_db_blocker) -> Iterator[Any]:
    with django_db_blocker.unblock(), lived_in.seeded(_cleaner, superuser):
        for tenant in Tenant.objects.all():
            belongings(tenant)
        yield superuser


def belongings(tenant: Tenant) -> None:
    """Give a tenant what the demo leaves out: a robot with a token, an invitation, a comment."""
    member = Membership.objects.filter(tenant=tenant).order_by("role").last()
    who = member.person if member else factories.member(tenant)
    robot = ServiceAccount.objects.create(tenant=tenant, name="robot", role=1, owner=who, created_at=NOW)
    ApiToken.objects.create(
        public_id=f"c{tenant.short_id[-8:]}", digest=tenant.pk.bytes * 2, name="robot's", service_account=robot,
        tenant=tenant, created_at=NOW,
    )  # fmt: skip
    AccountLink.objects.create(
        kind="invitation", digest=tenant.pk.bytes[::-1] * 2, email="new@example.org", tenant=tenant, role=1,
        created_by=who, created_at=NOW, expires_at=NOW.replace(year=2036),
    )  # fmt: skip
    if request := Request.objects.filter(tenant=tenant).first():
        RequestComment.objects.create(
            request=request, tenant=tenant, author=request.requester, text="?", created_at=NOW
        )


def foreign_to(person: Person) -> set[UUID]:
    """Return the tenants that a person has nothing to do with."""
    mine = list(Tenant.objects.filter(memberships__person=person))
    near = {key for tenant in mine for key in tenant.path}
    near |= {row.pk for row in Tenant.objects.all() if set(row.path) & {tenant.pk for tenant in mine}}
    return set(Tenant.objects.values_list("pk", flat=True)) - near


def plant(superuser: Any, tenants: set[UUID], person: Person) -> int:
    """Mark all texts of some tenants and of the people who are nowhere else; return how many rows were marked.

    What `person` asked of such a tenant, and what was said to that, is his own to read.
    """
    keys, marked = list(tenants), 0
    with superuser.transaction():
        superuser.execute("SET LOCAL session_replication_role = replica")
        for label, names in PLANTED.items():
            model = apps.get_model(label)
            fields = {field.name: field for field in model._meta.concrete_fields}
            column = "id" if model is Tenant else (fields.get("tenant") or fields["tenant_id"]).column
            sets = sql.SQL(", ").join(_marked(fields[name]) for name in sorted(names & set(fields)))
            table = sql.Identifier(model._meta.db_table)
            where = sql.SQL("UPDATE {} SET {} WHERE {} = ANY(%s)").format(table, sets, sql.Identifier(column))
            if "requester" in fields:
                where += sql.SQL(" AND requester_id <> {}").format(person.pk)
            marked += superuser.execute(where, [keys]).rowcount
        outside = "SELECT person_id FROM tenants_membership GROUP BY 1 HAVING bool_and(tenant_id = ANY(%s))"
        marked += superuser.execute(
            f"UPDATE tenants_person SET display_name = '{CANARY} ' || left(md5(id::text), 6),"
            f" email = '{CANARY}-' || left(md5(id::text), 6) || '@demo.test' WHERE id IN ({outside})",
            [keys],
        ).rowcount
    return marked


def _marked(field: models.Field) -> sql.Composable:
    column = sql.Identifier(field.column)
    if isinstance(field, models.JSONField):
        mark = f'{{"{CANARY}": "{CANARY}", "name": "{CANARY}", "reason": "{CANARY}", "display_name": "{CANARY}"}}'
        value = f'["{CANARY}"]' if field.name == "ssh_keys" else mark
        how = "{} = {}::jsonb" if field.name in {"ssh_keys", "labels"} else "{} = {} || {}::jsonb"
        parts = [column, sql.Literal(value)] if "||" not in how else [column, column, sql.Literal(value)]
        return sql.SQL(how).format(*parts)
    return sql.SQL("{} = {} || left(md5({}::text), 8)").format(
        column, sql.Literal(f"{CANARY}-"), sql.Identifier(field.model._meta.pk.column)
    )


@pytest.mark.parametrize("who", ["mia", "omar", "noor", "petra", "sam"])
def test_no_page_that_somebody_reaches_names_what_is_foreign_to_him(who, demo):
    person = Person.objects.get(email=f"{who}@demo.test")
    with putting_back(demo):
        marked = plant(demo, foreign_to(person), person)
        client = client_of(who)
        seen = Crawl(fetcher(client)).walk([*STARTS, "/search?q=zebra"])
        names = list(Tenant.objects.filter(name__startswith=CANARY).values_list("name", flat=True))
        others = list(Endpoint.objects.filter(name__startswith=CANARY).values_list("name", flat=True))
        guessed = {path: client.get(path) for path in guesses(names[0], others[0])}

    shown = [one.path for one in seen if CANARY in one.answer.body]
    assert shown == []
    assert marked > 100
    assert len({one.route for one in seen if one.is_page}) >= 20
    assert {path: answer.status_code for path, answer in guessed.items() if answer.status_code not in {403, 404}} == {}
    told = [path for path, answer in guessed.items() if CANARY in re.sub(re.escape(path), "", answer.content.decode())]
    assert told == []


def guesses(tenant: str, name: str) -> list[str]:
    """Return every address below a tenant by GET, for a foreign tenant's real names."""
    found = []
    for path, declared in routes(urls.urlpatterns):
        if declared and "GET" in declared.methods and path.startswith("t/<str:tenant>"):
            filled = path.replace("<str:tenant>", tenant).replace("<str:kind>", "endpoint").replace("<int:number>", "1")
            filled = re.sub(r"<uuid:\w+>", "00000000-0000-0000-0000-000000000001", filled)
            found.append("/" + re.sub(r"<\w+:\w+>", name, filled))
    return found


@contextmanager
def putting_back(superuser: Any) -> Iterator[None]:
    """Let texts be marked in the block and be as before afterwards, for the next person."""
    tables = [*(apps.get_model(label)._meta.db_table for label in PLANTED), "tenants_person"]
    for table in tables:
        superuser.execute(f"CREATE TABLE kept_{table} AS TABLE {table}")
    try:
        yield
    finally:
        with superuser.transaction():
            superuser.execute("SET LOCAL session_replication_role = replica")
            for table in tables:
                superuser.execute(f"DELETE FROM {table}")
                superuser.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
        for table in tables:
            superuser.execute(f"DROP TABLE kept_{table}")
