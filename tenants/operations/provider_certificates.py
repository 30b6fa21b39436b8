"""What follows from a provider's secrets and settings about certificates: facts to show, checks, news for gateways.

Plain functions inside the transaction of whoever changes a provider. Facts hold no secret. Gateways whose certificate
or listening changes get another version of their configuration, and their boundaries are looked at again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from tenants import desired, endpoint_tls, provider_kinds, vault
from tenants.errors import InvalidSpec
from tenants.models import Boundary, Endpoint, Provider, ProviderCredential

SECRETS: Final = (endpoint_tls.AUTHORITY, endpoint_tls.GIVEN)
TOLD: Final = (endpoint_tls.SETTING, "certificate_issuer", "zone", "access", "dns_records")
"""Settings that decide names, certificates and how gateways listen."""


def stored(provider: Provider, name: str, secret: str, *, now: datetime) -> list[UUID]:
    """Keep what may be shown of a secret that was stored. Returns the boundaries whose gateways are to be told."""
    if name not in SECRETS:
        return []
    try:
        if name == endpoint_tls.AUTHORITY:
            facts = endpoint_tls.facts_of_authority(endpoint_tls.read_authority(secret, now=now))
        else:
            facts = endpoint_tls.facts_of_given(endpoint_tls.read_given(secret))
    except endpoint_tls.Unfit as error:
        raise InvalidSpec(str(error), field="secret") from error
    _keep(provider, {**_known(provider), name: facts})
    return look_again(provider, now=now)


def removed(provider: Provider, name: str, *, now: datetime) -> list[UUID]:
    """Forget what was known of a secret that is gone. Gateways go on with what they have until it ends."""
    if name not in SECRETS:
        return []
    _keep(provider, {key: value for key, value in _known(provider).items() if key != name})
    return look_again(provider, now=now)


def check(provider: Provider, config: Mapping[str, Any], *, now: datetime) -> None:
    """Raise `InvalidSpec` at `config.zone` where secrets that are stored would not fit another configuration."""
    described = provider_kinds.kind_of(provider.kind)
    if described is None or not _differ(config, provider.config):
        return
    for row in ProviderCredential.objects.filter(provider=provider, name__in=SECRETS):
        judges = getattr(described.credential(row.name), "judges", None)
        if judges is None:
            continue
        secret = vault.unseal(row.sealed, table=row._meta.db_table, column="sealed", row=row.pk)
        if refusal := judges(secret, config, now):
            raise InvalidSpec(refusal, field="config.zone")


def configured(provider: Provider, before: Mapping[str, Any], *, now: datetime) -> list[UUID]:
    """Return the boundaries whose gateways are to be told, where settings changed that they go by."""
    if not _differ(before, provider.config):
        return []
    return look_again(provider, now=now)


def look_again(provider: Provider, *, now: datetime) -> list[UUID]:
    """Have every boundary and endpoint of a provider be looked at, and return the boundaries.

    The caller raises the version of their gateways (`gateway_config.bump`) last of all, after the chain head.
    """
    boundaries = list(Boundary._base_manager.filter(provider=provider, released_at=None).order_by("pk"))
    for boundary in boundaries:
        desired.nudge_now(boundary, at=now)
    for endpoint in Endpoint._base_manager.filter(boundary__in=boundaries, released_at=None).order_by("pk"):
        desired.nudge_now(endpoint, at=now)
    return [row.pk for row in boundaries]


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations differ in what gateways go by; a form stores what is left out as an empty text."""
    return any((one.get(key) or "") != (other.get(key) or "") for key in TOLD)


def _known(provider: Provider) -> dict[str, Any]:
    return dict(provider.observed.get(endpoint_tls.FACTS, {}))


def _keep(provider: Provider, facts: Mapping[str, Any]) -> None:
    provider.observed = {**provider.observed, endpoint_tls.FACTS: dict(facts)}
    provider.save(update_fields=["observed"])
