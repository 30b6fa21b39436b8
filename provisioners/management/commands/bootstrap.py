"""`bootstrap`: make what a new installation needs. Safe to repeat; makes only what is missing.

Plain: the first operator (from `--operator EMAIL`; the password is read from standard input), or with
`--first-link` a link by which he makes himself, once, within a day, as long as there is none. `--demo`:
people, tenants, two simulated providers with their hosts open, prices and a served model; the log-ins
are written to `demo-logins.json` in the state folder, readable by its owner only.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any, Final

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from provisioners import connections, inventory
from tenants import models_catalogue
from tenants.actor import SYSTEM
from tenants.models import Host, Person, PlatformMembership, PriceList, Provider, Quota, ServedModel, Tenant
from tenants.operations import accounts, members, people, pricing, providers, quotas, served_models, tenants
from tenants.operations import inventory as hosts
from tenants.operations.served_models import ModelAsk
from tenants.states import HostState, PlatformRole, Role
from tenants.transactions import reading

PEOPLE: Final = (
    ("mia@demo.test", "Mia Member", ()),
    ("omar@demo.test", "Omar Owner", ()),
    ("ana@demo.test", "Ana Approver", (PlatformRole.APPROVER,)),
    ("ole@demo.test", "Ole Operator", (PlatformRole.OPERATOR,)),
    ("aud@demo.test", "Aud Auditor", (PlatformRole.AUDITOR,)),
)
ESTATES: Final = (("k8s-sim", "berlin", "kubernetes"), ("vsphere-sim", "munich", "vsphere"))
PRICES: Final[Mapping[str, str]] = {
    "gpu.H100-80GB.slices": "0.42",
    "gpu.A100-80GB.slices": "0.24",
    "gpu.L40S-48GB.slices": "1.10",
    "vcpu": "0.012",
    "memory_gib": "0.0016",
    "storage_gib": "0.0001",
}
"""Demo prices in EUR per slice-hour and unit-hour; invented, not a market price."""
PARENT_LIMITS: Final[Mapping[str, int]] = {
    "gpu.H100-80GB.slices": 128,
    "gpu.A100-80GB.slices": 64,
    "gpu.L40S-48GB.slices": 8,
    "vcpu": 1024,
    "memory_gib": 8192,
    "storage_gib": 100_000,
    "endpoints": 100,
    "machines": 100,
    "boundaries": 40,
}
CHILD_LIMITS: Final[Mapping[str, int]] = {"boundaries": 10}
DEMO_MODEL: Final = "meta-llama/Llama-3.1-8B-Instruct"
DEMO_COMMIT: Final = "0" * 40
"""The demo loads no weights, so no real commit is pinned; an operator pins one for real use."""


class Command(BaseCommand):
    """Make the first operator, or the whole demo."""

    help = "Make what a new installation needs: the first operator, or with --demo a small simulated world."

    def add_arguments(self, parser: CommandParser) -> None:
        """`--demo`, or `--operator EMAIL [--name NAME]` with the password on standard input."""
        parser.add_argument("--demo", action="store_true")
        parser.add_argument("--operator", metavar="EMAIL")
        parser.add_argument("--first-link", action="store_true", help="print the link that makes the first operator")
        parser.add_argument("--name", default="Operator")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Do it; says what was made."""
        now = timezone.now()
        if options["demo"]:
            if not settings.TENANTRY_SANDBOX_URL:
                msg = "the demo needs a sandbox: set TENANTRY_SANDBOX_URL and TENANTRY_SANDBOX_TOKEN"
                raise CommandError(msg)
            self._demo(now)
        elif options["first_link"]:
            self._first_link(now)
        elif options["operator"]:
            password = sys.stdin.readline().rstrip("\n")
            self._person(options["operator"], options["name"], (PlatformRole.OPERATOR,), password, now)
        else:
            msg = "say --demo, --first-link, or --operator EMAIL"
            raise CommandError(msg)

    def _first_link(self, now: datetime) -> None:
        made = accounts.first_link(actor=SYSTEM, now=now)
        if made is None:
            self.stdout.write("there is an operator already; another operator can recover his account")
            return
        self.stdout.write(f"{settings.TENANTRY_PUBLIC_URL}/accounts/link/{made.secret}/")

    # --- people and tenants --------------------------------------------------------------------

    def _person(self, email: str, name: str, roles: tuple[PlatformRole, ...], password: str, now: datetime) -> Person:
        with reading(SYSTEM):
            person = Person.objects.filter(email__iexact=email).first()
        if person is None:
            person = people.create(
                email=email, display_name=name, password=password, roles=roles, actor=SYSTEM, now=now
            )
            self.stdout.write(f"made {email}")
        elif roles:
            with reading(SYSTEM):
                has = set(PlatformMembership.objects.filter(person=person).values_list("role", flat=True))
            if not has >= {r.value for r in roles}:
                people.set_roles(person=person, roles={*roles, *(PlatformRole(r) for r in has)}, actor=SYSTEM, now=now)
        return person

    def _demo(self, now: datetime) -> None:
        logins = self._logins()
        persons = {email: self._person(email, name, roles, logins[email], now) for email, name, roles in PEOPLE}
        acme = self._tenant("acme", "Acme Research", None, PARENT_LIMITS, now)
        aurora = self._tenant("aurora", "Aurora", acme, CHILD_LIMITS, now)
        self._member(acme, persons["omar@demo.test"], Role.OWNER, now)
        self._member(aurora, persons["omar@demo.test"], Role.OWNER, now)
        self._member(aurora, persons["mia@demo.test"], Role.MEMBER, now)
        self._model(now)
        self._prices(now)
        for name, site, estate in ESTATES:
            self._provider(name, site, estate, now)

    def _logins(self) -> dict[str, str]:
        path = Path(os.environ.get("TENANTRY_STATE_DIR", ".state")) / "demo-logins.json"
        if path.exists():
            stored: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
            return stored
        made = {email: f"{secrets.token_urlsafe(12)}-demo" for email, _, _ in PEOPLE}
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            json.dump(made, out, indent=1)
        return made

    def _tenant(
        self, name: str, display: str, parent: Tenant | None, limits: Mapping[str, int], now: datetime
    ) -> Tenant:
        with reading(SYSTEM):
            tenant = Tenant.objects.filter(name=name).first()
        if tenant is None:
            tenant = tenants.create(name=name, display_name=display, parent=parent, actor=SYSTEM, now=now)
            self.stdout.write(f"made tenant {name}")
        with reading(SYSTEM):
            there = set(Quota.objects.filter(tenant=tenant).values_list("dimension", flat=True))
        for dimension, amount in limits.items():
            if dimension not in there:
                quotas.set_limit(tenant=tenant, dimension=dimension, amount=amount, actor=SYSTEM, now=now)
        return tenant

    def _member(self, tenant: Tenant, person: Person, role: Role, now: datetime) -> None:
        with reading(SYSTEM):
            there = tenant.memberships.filter(person=person).exists()
        if not there:
            members.add(tenant=tenant, email=person.email, role=role, actor=SYSTEM, now=now)

    # --- catalogue and prices ------------------------------------------------------------------

    def _model(self, now: datetime) -> None:
        with reading(SYSTEM):
            there = ServedModel.objects.filter(name="llama-3-1-8b").exists()
        if not there:
            data = models_catalogue.model(DEMO_MODEL)
            ask = ModelAsk(name="llama-3-1-8b", repository=data.id, commit=DEMO_COMMIT, licence="llama3.1")
            served_models.create(ask=ask, actor=SYSTEM, now=now)

    def _prices(self, now: datetime) -> None:
        with reading(SYSTEM):
            there = PriceList.objects.exists()
        if not there:
            prices = {item: Decimal(amount) for item, amount in PRICES.items()}
            pricing.publish(name="Demo prices", prices=prices, valid_from=now, actor=SYSTEM, now=now)

    # --- providers -----------------------------------------------------------------------------

    def _provider(self, name: str, site: str, estate: str, now: datetime) -> None:
        self._put_estate(name, estate)
        with reading(SYSTEM):
            provider = Provider.objects.filter(name=name).first()
        if provider is None:
            provider = providers.create(
                name=name,
                kind="sandbox",
                site=site,
                config={"url": settings.TENANTRY_SANDBOX_URL, "estate": name},
                actor=SYSTEM,
                now=now,
            )
            self.stdout.write(f"made provider {name} (simulated)")
        elif provider.config.get("url") != settings.TENANTRY_SANDBOX_URL:
            # the sandbox took another port this time
            providers.update(
                provider=provider,
                config={**provider.config, "url": settings.TENANTRY_SANDBOX_URL},
                actor=SYSTEM,
                now=now,
            )
        with reading(SYSTEM):
            known = provider.credentials.filter(name="token").exists()
        if not known:
            providers.set_credential(
                provider=provider, name="token", secret=settings.TENANTRY_SANDBOX_TOKEN, actor=SYSTEM, now=now
            )
        with reading(SYSTEM):
            provider.refresh_from_db()
        driver = connections.driver_of(provider)
        inventory.run(provider.pk, driver, timezone.now())
        for host in self._hosts(provider, HostState.JOINING):
            if "requested_at" not in host.acceptance:
                hosts.accept(host=host, actor=SYSTEM, now=timezone.now())
        inventory.run(provider.pk, driver, timezone.now())
        for host in self._hosts(provider, HostState.ACCEPTED):
            hosts.open_host(host=host, actor=SYSTEM, now=timezone.now())

    def _hosts(self, provider: Provider, state: HostState) -> list[Host]:
        with reading(SYSTEM):
            return list(Host.objects.filter(provider=provider, state=state.value).order_by("name"))

    def _put_estate(self, name: str, estate: str) -> None:
        document = json.loads(
            resources.files("provisioners.sandbox").joinpath("estates", f"{estate}.json").read_text(encoding="utf-8")
        )
        answer = httpx.put(
            f"{settings.TENANTRY_SANDBOX_URL}/estates/{name}",
            json=document,
            headers={"Authorization": f"Bearer {settings.TENANTRY_SANDBOX_TOKEN}"},
            timeout=20,
        )
        if answer.status_code not in {200, 201}:
            msg = f"the sandbox refused the estate {estate}: {answer.status_code} {answer.text[:200]}"
            raise CommandError(msg)
