"""What may be asked for here: products with room somewhere, kinds of places, models; as the tenant's policy allows.

Reads only, in the caller's read block; the number of queries does not depend on the estate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db import connection

from tenants import gpu_catalogue, served_facts
from tenants.feasibility import policy_of
from tenants.models import Provider, ServedModel, Tenant
from tenants.models_catalogue import ServedModelData
from tenants.policy import EffectivePolicy


@dataclass(frozen=True, slots=True)
class Stock:
    """What a tenant may choose from."""

    policy: EffectivePolicy
    products: tuple[str, ...]
    """Catalogue ids that an open host has and policy allows."""
    kinds: frozenset[str]
    """Kinds of boundaries that some provider offers: `namespace`, `vm`."""
    sites: tuple[str, ...]
    simulated: bool
    """Whether every provider is a simulation."""

    def tier_allowed(self, tier: str) -> bool:
        """Whether policy allows a tier."""
        return self.policy.forbids("tiers", tier) is None


@dataclass(frozen=True, slots=True)
class Served:
    """One model that may be deployed, with its facts where the catalogue has them."""

    row: ServedModel
    facts: ServedModelData | None

    @property
    def name(self) -> str:
        """Return the name that is asked for."""
        return str(self.row.name)


def of(tenant: Tenant) -> Stock:
    """Return what the tenant may choose from."""
    policy = policy_of(tenant)
    providers = [
        row
        for row in Provider.objects.filter(enabled=True, deletion_requested_at__isnull=True)
        if policy.forbids("sites", row.site) is None
    ]
    known = [product.id for product in gpu_catalogue.products() if policy.forbids("products", product.id) is None]
    kinds = {kind for row in providers for kind in row.capabilities.get("boundary_kinds", [])}
    return Stock(
        policy=policy,
        products=_present(known),
        kinds=frozenset(kinds),
        sites=tuple(sorted({row.site for row in providers})),
        simulated=bool(providers) and all(row.capabilities.get("simulated") for row in providers),
    )


def models(policy: EffectivePolicy, path: Sequence[UUID] = ()) -> list[Served]:
    """Return the models that may be deployed, those with known facts first; `path`: of the tenant whose own count."""
    found = [
        served(row)
        for row in ServedModel.objects.filter(enabled=True).order_by("name")
        if row.tenant_id is None or row.tenant_id in path
        if policy.forbids("models", row.name) is None
    ]
    return sorted(found, key=lambda one: (one.facts is None, one.facts.params_total if one.facts else 0, one.name))


def served(row: ServedModel) -> Served:
    """Return a model with its facts where the catalogue has them."""
    return Served(row, served_facts.of(row))


def _present(known: list[str]) -> tuple[str, ...]:
    """Return those products of which any GPU can be placed on, in one statement.

    Hosts say what they have; only of what is there one GPU is looked for, which is found at once unless all are broken.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "WITH p AS MATERIALIZED (SELECT DISTINCT gpu_product AS name FROM tenants_host "
            "WHERE placeable AND gpu_product = ANY (%s) UNION SELECT d.product FROM tenants_host h "
            "JOIN tenants_gpudevice d ON d.host_id = h.id "
            "WHERE h.placeable AND h.gpu_product = '' AND h.gpu_count > 0 AND d.placeable) "
            "SELECT p.name FROM p CROSS JOIN LATERAL "
            "(SELECT 1 FROM tenants_gpudevice d WHERE d.product = p.name AND d.placeable LIMIT 1) AS one",
            [known],
        )
        found = {row[0] for row in cursor.fetchall()}
    return tuple(name for name in known if name in found)
