"""Two tenants with the same kinds of things, and words in the foreign one that no page may ever show."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from django.utils import timezone

from tenants.models import Endpoint, EndpointKey, Machine, Namespace, Person, Price, PriceList, Provider, Tenant
from tenants.operations import endpoints, machines, namespaces
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, MachineAsk, NamespaceAsk, RevisionAsk, UnitAsk
from tenants.states import Role
from tests import factories
from tests.conftest import NOW
from tests.snapshots import kept

CANARY = "zebrafish"
"""Part of every name in the foreign tenant."""
SSH = "ssh-ed25519 " + "A" * 68 + " me@laptop"
SPEC = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "2g.20gb"), 4, 16),))


@dataclass
class House:
    """One tenant and what it has."""

    tenant: Tenant
    owner: Person
    member: Person
    viewer: Person
    endpoint: Endpoint
    secret: str
    key: EndpointKey
    machine: Machine
    namespace: Namespace


@dataclass
class World:
    """Both."""

    acme: House
    foreign: House
    provider: Provider


@kept
def build() -> World:
    """Make the world on one provider."""
    provider = factories.provider(
        name="estate", capabilities={"boundary_kinds": ["namespace", "vm"], "simulated": True}
    )
    factories.host(provider)
    factories.served_model()
    prices = PriceList.objects.create(name="first", valid_from=NOW, created_at=NOW)
    for item, amount in {"gpu.H100-80GB.slices": "0.3", "vcpu": "0.02", "memory_gib": "0.003"}.items():
        Price.objects.create(price_list=prices, item=item, amount=Decimal(amount))
    return World(house("acme", "Acme Works"), house(f"{CANARY}-inc", f"{CANARY} Inc"), provider)


def house(name: str, title: str) -> House:
    """Make one tenant with one of each."""
    tenant = factories.tenant(name=name, display_name=title)
    factories.generous(tenant)
    prefix = f"{CANARY}-" if CANARY in name else ""
    owner = factories.member(tenant, Role.OWNER, who=factories.person(name=f"{prefix}Owner"))
    member = factories.member(tenant, who=factories.person(name=f"{prefix}Member"))
    who = {"actor": factories.actor(member), "now": timezone.now()}
    made = endpoints.create(tenant=tenant, ask=EndpointAsk(f"{prefix}chat", RevisionAsk("llama-3-1-8b"), SPEC), **who)
    return House(
        tenant=tenant,
        owner=owner,
        member=member,
        viewer=factories.member(tenant, Role.VIEWER, who=factories.person(name=f"{prefix}Viewer")),
        endpoint=made.endpoint,
        secret=made.secret,
        key=made.key,
        machine=machines.create(tenant=tenant, ask=MachineAsk(f"{prefix}box", SPEC, "ubuntu-24.04", 100), **who),
        namespace=namespaces.create(tenant=tenant, ask=NamespaceAsk(f"{prefix}space", SPEC), **who),
    )
