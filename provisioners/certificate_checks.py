"""What the test of a provider says of certificates at its endpoints: what is missing, what ends, whom they miss."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from tenants import addresses, endpoint_tls, endpoint_trust
from tenants.actor import SYSTEM
from tenants.models import Endpoint, Provider
from tenants.transactions import reading

SOON: Final = timedelta(days=60)
"""With less left an authority or a given certificate should be replaced: certificates of 30 days are made of it."""
SHOWN: Final = 5
"""So many names are written out."""


def gap(provider: Provider, *, now: datetime) -> tuple[str, str]:
    """Return (sentence, field that mends it) of what is wrong with a provider's certificates; both `""` for nothing."""
    source = endpoint_tls.source_of(provider.config)
    if source == endpoint_tls.OWN_CA:
        known = endpoint_trust.facts(provider, endpoint_tls.AUTHORITY)
        if not known:
            return "There is no authority yet that could sign.", f"secret.{endpoint_tls.AUTHORITY}"
        ends = endpoint_tls.moment(known.get("not_after"))
        if ends is not None and ends - now < SOON:
            return f"The authority {known['subject']} ends on {ends:%Y-%m-%d}.", f"secret.{endpoint_tls.AUTHORITY}"
    if source == endpoint_tls.FILES:
        return _of_files(provider, now)
    return "", ""


def _of_files(provider: Provider, now: datetime) -> tuple[str, str]:
    field = f"secret.{endpoint_tls.GIVEN}"
    given = endpoint_trust.facts(provider, endpoint_tls.GIVEN).get("given", ())
    names = [str(name) for each in given for name in each["names"]]
    missed = [host for host in _hosts(provider) if not endpoint_tls.covers(names, host)]
    if missed:
        more = f" and {len(missed) - SHOWN} more" if len(missed) > SHOWN else ""
        return f"None of the given certificates is good for {', '.join(missed[:SHOWN])}{more}.", field
    for each in given:
        ends = endpoint_tls.moment(each["not_after"])
        if ends is not None and ends - now < SOON:
            return f"The certificate for {', '.join(each['names'][:SHOWN])} ends on {ends:%Y-%m-%d}.", field
    return "", ""


def _hosts(provider: Provider) -> list[str]:
    """Return the names of a provider's endpoints."""
    zone = endpoint_tls.zone_of(provider.config)
    with reading(SYSTEM):
        rows = Endpoint.objects.filter(boundary__provider=provider, released_at=None).select_related("tenant")
        return sorted(addresses.host_of(row.name, row.tenant.name, zone) for row in rows)
