"""The first day: people, tenants, limits, prices, models, rules and providers with their hosts open.

Makes only what is missing, so that it also stands on what `bootstrap --demo` has made.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from django.conf import settings

from controlplane.demo.cast import HOUSES, MODELS, PEOPLE, PLAIN_ROOM, PRICES, ROOM, TRIALS, House, Player
from controlplane.demo.programme import Item
from controlplane.demo.sites import SITES
from controlplane.demo.stage import Stage
from tenants import login, models_catalogue
from tenants.actor import SYSTEM, Actor
from tenants.gpu_catalogue import slices_of
from tenants.models import Host, Membership, Person, PriceList, Quota, ServedModel, Tenant
from tenants.operations import auto_approval_rules, members, people, pricing, providers, quotas, served_models, tenants
from tenants.operations import inventory as hosts
from tenants.operations.allocations import PRODUCT_DIMENSION
from tenants.operations.served_models import ModelAsk
from tenants.states import HostState
from tenants.transactions import reading

MARK = {"simulated": "history"}
"""Label of everything that was made under the simulated clock."""
COMMIT = "0" * 40
"""The demo loads no weights, so no real commit is pinned."""


class Company:
    """The demo's people as actors and its tenants as rows, by their short names."""

    def __init__(self) -> None:
        """Nobody is there yet."""
        self.people: dict[str, UUID] = {}
        self.tenants: dict[str, Tenant] = {}

    def actor(self, key: str) -> Actor:
        """Return somebody with his roles of now."""
        with reading(SYSTEM):
            person = Person.objects.get(pk=self.people[key])
        return login.actor_of(person)


def open_up(stage: Stage, items: tuple[Item, ...]) -> Company:
    """Make the company and its hardware."""
    company = Company()
    for player in PEOPLE:
        company.people[player.key] = _person(player, now=stage.now)
    operator = company.actor("ole")
    for house in HOUSES:
        company.tenants[house.name] = _tenant(house, company, operator, now=stage.now)
    for player in PEOPLE:
        for name, role in (player.roles or {}).items():
            tenant = company.tenants[name]
            with reading(SYSTEM):
                there = Membership.objects.filter(tenant=tenant, person_id=company.people[player.key]).exists()
            if not there:
                members.add(tenant=tenant, email=f"{player.key}@demo.test", role=role, actor=operator, now=stage.now)
    _limits(company, items, operator, now=stage.now)
    _catalogue(operator, now=stage.now)
    _hardware(stage, operator)
    return company


def _person(player: Player, *, now: datetime) -> UUID:
    email = f"{player.key}@demo.test"
    with reading(SYSTEM):
        found = Person.objects.filter(email=email).first()
    if found is None:
        found = people.create(email=email, display_name=player.name, roles=player.platform, actor=SYSTEM, now=now)
    key: UUID = found.pk
    return key


def _tenant(house: House, company: Company, operator: Actor, *, now: datetime) -> Tenant:
    with reading(SYSTEM):
        found = Tenant.objects.filter(name=house.name).first()
    if found is not None:
        return found
    parent = company.tenants[house.parent] if house.parent else None
    return tenants.create(
        name=house.name, display_name=house.title, parent=parent, labels=MARK, actor=operator, now=now
    )


def _limits(company: Company, items: tuple[Item, ...], operator: Actor, *, now: datetime) -> None:
    """Roots get numbers, children inherit; aurora gets what it will hold, so that its next wish needs a decision."""
    for name, room in ROOM.items():
        for dimension, amount in {**PLAIN_ROOM, **room}.items():
            _limit(company.tenants[name], dimension, amount, operator, now=now)
    aurora = _held_by("aurora", items)
    for house in HOUSES:
        if not house.parent:
            continue
        tenant = company.tenants[house.name]
        if house.name == "aurora":
            for dimension, amount in {**aurora, "storage_gib": 500, "boundaries": 10}.items():
                _limit(tenant, dimension, amount, operator, now=now)
            continue
        for dimension in (*PLAIN_ROOM, *ROOM[house.parent]):
            quotas.set_limit(tenant=tenant, dimension=dimension, inherit=True, actor=operator, now=now)


def _limit(tenant: Tenant, dimension: str, amount: int, operator: Actor, *, now: datetime) -> None:
    with reading(SYSTEM):
        there = Quota.objects.filter(tenant=tenant, dimension=dimension, until=None, amount__gte=amount).exists()
    if not there:
        quotas.set_limit(tenant=tenant, dimension=dimension, amount=amount, actor=operator, now=now)


def _held_by(tenant: str, items: tuple[Item, ...]) -> dict[str, int]:
    """Return dimension → what a tenant's items ask for together."""
    total: Counter[str] = Counter()
    for item in items:
        if item.tenant == tenant:
            demand = item.spec().demand(slices_of())
            total.update({d: amount for d, amount in demand.items() if not d.startswith("gpu.") or "slices" in d})
            total.update({PRODUCT_DIMENSION[item.kind]: 1} if item.kind in PRODUCT_DIMENSION else {})
    return {dimension: amount for dimension, amount in total.items() if amount}


def _catalogue(operator: Actor, *, now: datetime) -> None:
    with reading(SYSTEM):
        there = set(ServedModel.objects.values_list("name", flat=True))
        priced = PriceList.objects.filter(valid_from__lte=now, provider=None, site="").exists()
    for model in MODELS:
        if model.name not in there:
            data = models_catalogue.model(model.id)
            ask = ModelAsk(name=model.name, repository=data.id, commit=COMMIT, licence=model.licence)
            served_models.create(ask=ask, actor=operator, now=now)
    if not priced:
        prices = {item: Decimal(amount) for item, amount in PRICES.items()}
        pricing.publish(name="Demo prices of the past", prices=prices, valid_from=now, actor=operator, now=now)
    auto_approval_rules.create(**TRIALS, actor=operator, now=now)


def _hardware(stage: Stage, operator: Actor) -> None:
    """Connect all estates, accept their hosts and open them."""
    for site in SITES:
        name = site.provider
        url = stage.estates[name].url.removesuffix(f"/estates/{name}")
        config = {"url": url, "estate": name, "history": "simulated"}
        provider = providers.create(
            name=name, kind="sandbox", site=site.site, config=config, actor=operator, now=stage.now
        )
        if settings.TENANTRY_SANDBOX_TOKEN:
            providers.set_credential(
                provider=provider, name="token", secret=settings.TENANTRY_SANDBOX_TOKEN, actor=operator, now=stage.now
            )
    stage.look(1)
    for host in _hosts(HostState.JOINING):
        hosts.accept(host=host, actor=operator, now=stage.now)
    stage.look(2)
    for host in _hosts(HostState.ACCEPTED):
        hosts.open_host(host=host, actor=operator, now=stage.now)
    stage.look(1)


def _hosts(state: HostState) -> list[Host]:
    names = [site.provider for site in SITES]
    with reading(SYSTEM):
        return list(Host.objects.filter(provider__name__in=names, state=state.value).order_by("name"))
