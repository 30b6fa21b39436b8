"""What is known of the certificates at a provider's endpoints without opening a secret: whom to trust, for which names.

Facts of secrets are kept beside them (`Provider.observed`) by the operation that seals them; reading is free for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db.models import Q

from tenants import endpoint_tls
from tenants.models import Endpoint, GatewayReplica, Provider

CA_SETTING: Final = "endpoint_ca_pem"
"""Setting of a provider: who signs its endpoints' certificates, where callers do not trust him already."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of the certificate at an endpoint's address."""

    source: str
    """`none`, `own-ca`, `files` or `cert-manager`."""
    ca_pem: str
    """Whom callers must trust beside the usual authorities; `""` for nobody."""
    ends_at: datetime | None
    """When the first of the certificates ends that its gateways show; None where they do not tell."""
    source_ends_at: datetime | None
    """When what they are made of ends: the authority, or the given certificate."""
    trouble: str
    """Why a gateway has not the one that is wanted, `""` where all have."""


def look(endpoint: Endpoint) -> Look:
    """Return what is known of the certificate at an endpoint's address. In a read block."""
    if endpoint.boundary is None:
        return Look(endpoint_tls.NONE, "", None, None, "")
    provider = endpoint.boundary.provider
    mine = Q(unit__isnull=True) | Q(unit__allocation_id=endpoint.allocation_id)
    replicas = GatewayReplica.objects.filter(mine, boundary=endpoint.boundary, removed_at=None)
    told = [found for replica in replicas if (found := replica.report.get("certificate"))]
    ends = [at for each in told if each.get("version") and (at := endpoint_tls.moment(each.get("not_after")))]
    return Look(
        source=endpoint_tls.source_of(provider.config),
        ca_pem=ca_pem_of(provider),
        ends_at=min(ends, default=None),
        source_ends_at=ends_at(provider, endpoint.tenant.name),
        trouble=next((str(each["trouble"]) for each in told if each.get("trouble")), ""),
    )


def facts(provider: Provider, secret: str) -> Mapping[str, Any]:
    """Return what may be shown of one secret of a provider, {} where it has none."""
    found = provider.observed.get(endpoint_tls.FACTS, {}).get(secret, {})
    return found if isinstance(found, Mapping) else {}


def ca_pem_of(provider: Provider) -> str:
    """Return whom to trust at a provider's endpoints beside the usual authorities, `""` for nobody."""
    own = ""
    if endpoint_tls.source_of(provider.config) == endpoint_tls.OWN_CA:
        own = str(facts(provider, endpoint_tls.AUTHORITY).get("ca_pem") or "")
    given = str(provider.config.get(CA_SETTING) or "")
    return "\n".join(text.strip() for text in (own, given) if text.strip())


def names_of(provider: Provider, tenant: str) -> tuple[str, ...]:
    """Return the names that a tenant's gateways get a certificate for from the control plane; () for none."""
    zone = endpoint_tls.zone_of(provider.config)
    is_ours = endpoint_tls.source_of(provider.config) in endpoint_tls.FROM_HOME
    return (endpoint_tls.wildcard(tenant, zone),) if zone and is_ours else ()


def version_of(provider: Provider, tenant: str) -> str:
    """Return what stands for the certificate that a tenant's gateways are to have, `""` where they get none."""
    names = names_of(provider, tenant)
    if not names:
        return ""
    source = endpoint_tls.source_of(provider.config)
    if source == endpoint_tls.OWN_CA:
        made_from = str(facts(provider, endpoint_tls.AUTHORITY).get("fingerprint") or "")
    else:
        given = facts(provider, endpoint_tls.GIVEN).get("given", ())
        made_from = next((str(each["fingerprint"]) for each in given if _is_of(each["names"], names[0])), "")
    return endpoint_tls.version_of(source, names, made_from)


def ends_at(provider: Provider, tenant: str) -> datetime | None:
    """Return when what the certificates of a tenant are made of ends: the authority, or the given certificate."""
    source = endpoint_tls.source_of(provider.config)
    if source == endpoint_tls.OWN_CA:
        return endpoint_tls.moment(facts(provider, endpoint_tls.AUTHORITY).get("not_after"))
    names = names_of(provider, tenant)
    given = facts(provider, endpoint_tls.GIVEN).get("given", ()) if names else ()
    found = next((each for each in given if _is_of(each["names"], names[0])), None)
    return None if found is None else endpoint_tls.moment(found["not_after"])


def _is_of(names: Any, wildcard: str) -> bool:
    """Whether names are those of the tenant of a wildcard."""
    return bool(names) and all(str(name).partition(".")[2] == wildcard[2:] for name in names)
