"""The small demo in the test database for a whole module, and all pages that its people reach from their home."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.models import Q
from django.test import Client
from django.utils import timezone

from controlplane.demo import seed
from scripts.crawl import ENTRANCES, STARTS, Answer, Crawl, Seen, richest
from tenants import login
from tenants.demo import PERSONAS
from tenants.models import GpuDevice, Host, Person, Tenant
from tenants.operations import inventory, requests
from tests import environment

VISITOR = "visitor"
NEWCOMER = "nia"
"""Somebody without a tenant, who has asked for one."""


@dataclass(frozen=True)
class LivedIn:
    """What each person of the demo saw, by key; `visitor` is nobody."""

    seen: Mapping[str, list[Seen]]

    def pages(self, who: str) -> list[Seen]:
        """Return one page of each route that this person is the first to reach."""
        taken: set[str] = set()
        for other, seen in self.seen.items():
            mine = richest(seen)
            if other == who:
                return [page for route, page in mine.items() if route not in taken]
            taken |= set(mine)
        raise KeyError(who)

    def routes(self) -> set[str]:
        """Return all routes that anybody reached."""
        return {one.route for seen in self.seen.values() for one in seen}


@contextmanager
def lived_in(cleaner: str, superuser: Any) -> Iterator[LivedIn]:
    """Seed the small demo and crawl it as everybody. Needs an unblocked database."""
    with seeded(cleaner, superuser):
        yield LivedIn({key: crawl(key) for key in (*(one.key for one in PERSONAS), NEWCOMER, VISITOR)})


@contextmanager
def seeded(cleaner: str, superuser: Any) -> Iterator[None]:
    """Seed the small demo as a demo's web process would show it; empty the tables at the end."""
    before = settings.TENANTRY_DEMO, settings.PASSWORD_HASHERS
    settings.TENANTRY_DEMO = True
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    try:
        now = timezone.now()
        seed.seed(url="http://sandbox.invalid", now=now, small=True)
        furnish(now)
        yield
    finally:
        settings.TENANTRY_DEMO, settings.PASSWORD_HASHERS = before
        connections.close_all()
        superuser.execute(cleaner)


def furnish(now: datetime) -> None:
    """Add what the demo leaves out and a page needs: a newcomer, equal requests, hosts at rest, one carved for good."""
    newcomer = Person.objects.create(email=f"{NEWCOMER}@demo.test", display_name="Nia Newcomer", created_at=now)
    requests.submit(
        kind="tenant", payload={"name": "vision", "display_name": "Vision", "limits": {"vcpu": 4}}, reason="New here.",
        actor=login.actor_of(newcomer), now=now,
    )  # fmt: skip
    actors = {key: login.actor_of(Person.objects.get(email=f"{key}@demo.test")) for key in ("omar", "ole", "noor")}
    for tenant, key in (("acme", "omar"), ("helios", "noor"), ("aurora", "omar")):
        requests.submit(
            kind="quota", payload={"mode": "add", "limits": {"vcpu": 2}}, reason="A little more.",
            tenant=Tenant.objects.get(name=tenant), actor=actors[key], now=now,
        )  # fmt: skip
    free = list(Host.objects.filter(state="open").exclude(holds__isnull=False).order_by("name")[:3])
    inventory.cordon(host=free[0], actor=actors["ole"], now=now)
    Host.objects.filter(pk=free[1].pk).update(state="maintenance")
    GpuDevice.objects.filter(host=free[2]).update(layout_change="fixed")


def fixed_hosts() -> Any:
    """Return the hosts whose GPUs only a plan carves anew."""
    return GpuDevice.objects.filter(layout_change="fixed").values("host")


def client_of(key: str) -> Client:
    """Return a browser of somebody of the demo."""
    client = Client(headers={"accept": "text/html"}, raise_request_exception=False)
    if key != VISITOR:
        client.force_login(Person.objects.get(email=f"{key}@demo.test"), backend="tenants.login.PersonBackend")
    return client


def crawl(key: str) -> list[Seen]:
    """Follow all links as somebody of the demo."""
    starts = ENTRANCES if key == VISITOR else STARTS
    if key == "ole":  # a list shows many hosts, and only some are opened: begin at those that are special, too
        rest = Q(state__in=["cordoned", "maintenance"]) | Q(pk__in=fixed_hosts())
        starts = (*starts, *(f"/ops/hosts/{host.short_id}" for host in Host.objects.filter(rest).order_by("name")))
    return Crawl(fetcher(client_of(key))).walk(starts)


def fetcher(client: Client) -> Any:
    """Return how a crawl opens addresses with a test client."""

    def fetch(path: str) -> Answer:
        answer = client.get(path)
        kind = answer.headers.get("Content-Type", "").split(";")[0]
        body = "" if answer.streaming else answer.content.decode()
        if answer.streaming:
            answer.close()
        return Answer(answer.status_code, kind, body, answer.headers.get("Location", ""))

    return fetch


def site_environment() -> dict[str, str]:
    """Return what a web process needs besides its database to show the demo."""
    return {"TENANTRY_DEMO": "1", "TENANTRY_ENVIRONMENT": environment.ENVIRONMENT["TENANTRY_ENVIRONMENT"]}
