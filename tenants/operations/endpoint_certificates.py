"""Certificates that gateways get from the control plane: signed by a provider's own authority, or given by an operator.

Acts under the gateway's own id: it is shown the one sealed secret of its own provider that its certificate is made of
(`gateway_certificate_secret`). Names are worked out from its boundary's tenant and its provider's zone; nothing that
the gateway says counts but its public key. Lock order: outbox, chain head.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import connection

from tenants import access, desired, endpoint_tls, vault
from tenants.actor import Actor
from tenants.endpoint_tls import Issued, Unfit
from tenants.errors import Conflict, Gone, InvalidSpec, NotVisible, RateLimited
from tenants.models import Event, GatewayReplica, ProviderCredential
from tenants.policies import ROUTES
from tenants.transactions import operation

MOST_AN_HOUR: Final = 20
"""Certificates of one gateway: it asks at its start, at two thirds of their life, and when another one is wanted."""
ISSUED: Final = "gateway.certificate-issued"


@operation
def issue(*, gateway: UUID, request_pem: str, actor: Actor, now: datetime) -> Issued:
    """Return the certificate of a gateway's tenant; the key as well where it was given with it.

    Raises `Gone`, `NotVisible` where the provider has no certificates from here, `InvalidSpec` for a request that
    cannot be used, `Conflict` (`no-certificate`) with the reason where none can be made, `RateLimited`.
    """
    access.require_principal(actor, ROUTES["agents.certificate"])
    row = (
        GatewayReplica.objects.select_related("boundary__provider", "tenant")
        .filter(pk=gateway, removed_at=None)
        .first()
    )
    if row is None or row.boundary.tenant_id != row.tenant_id:
        raise Gone
    provider, tenant = row.boundary.provider, row.tenant.name
    zone, source = endpoint_tls.zone_of(provider.config), endpoint_tls.source_of(provider.config)
    if not zone or source not in endpoint_tls.FROM_HOME:
        raise NotVisible
    _limit(row, now)
    try:
        text = _secret(row)
        if source == endpoint_tls.OWN_CA:
            made = _signed(text, request_pem, endpoint_tls.wildcard(tenant, zone), zone, now)
        else:
            made = endpoint_tls.hand_out(endpoint_tls.read_given(text), tenant=tenant, zone=zone, now=now)
    except Unfit as error:
        raise Conflict(str(error), code="no-certificate") from error
    desired.happened(
        row, ISSUED, actor=actor, at=now, nudge=False, source=source, names=list(made.names),
        serial=f"{made.serial:x}", not_after=made.not_after.isoformat(),
    )  # fmt: skip
    return made


def _signed(text: str, request_pem: str, name: str, zone: str, now: datetime) -> Issued:
    try:
        key = endpoint_tls.public_key_of(request_pem)
    except Unfit as error:
        raise InvalidSpec(str(error), field="request_pem") from error
    authority = endpoint_tls.read_authority(text, now=now)
    endpoint_tls.judge_authority(authority, zone)
    return endpoint_tls.sign(authority, key, names=(name,), now=now)


def _secret(row: GatewayReplica) -> str:
    """Return what a gateway's certificate is made of. Raises `Unfit` while nothing was given, `VaultError`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, sealed FROM gateway_certificate_secret(%s)", [row.pk])
        found = cursor.fetchone()
    if found is None:
        msg = (
            f"{row.boundary.provider.name} has no secret yet that certificates could be made of: an operator stores it."
        )
        raise Unfit(msg)
    return vault.unseal(found[1], table=ProviderCredential._meta.db_table, column="sealed", row=found[0])


def _limit(row: GatewayReplica, now: datetime) -> None:
    made = Event.objects.filter(kind=ISSUED, object_id=row.pk, at__gt=now - timedelta(hours=1)).count()
    if made >= MOST_AN_HOUR:
        msg = f"This gateway got {made} certificates within an hour; it may ask again later."
        raise RateLimited(msg, retry_after_s=600)
