"""Rows of gateway replicas, and their one-time enrolment tokens.

A namespace boundary has one gateway, a VM boundary one in each endpoint VM (its id is the unit's). A token
is made in the transaction of the intent that delivers it, kept sealed until it is used, valid for 15
minutes. A gateway that must be started anew has lost its credential: arming it ends the old one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings

from provisioners.driver import GatewaySpec, Secret, machine_uuid
from provisioners.gateway.keys import make_enrolment_token
from tenants import endpoint_tls, endpoint_trust, vault
from tenants.models import Boundary, GatewayReplica, Provider, Unit

TOKEN_LIFE: Final = timedelta(minutes=15)
KINDS_THAT_SHOW_THE_MACHINE: Final = frozenset({"vsphere"})
"""Kinds of providers that give a machine the identity of its unit; a gateway in it must show it when it enrols."""


def of_boundary(boundary: Boundary, *, now: datetime) -> GatewayReplica:
    """Return the gateway of a namespace boundary, made if there is none yet."""
    found = GatewayReplica.objects.filter(boundary=boundary, unit__isnull=True, removed_at__isnull=True).first()
    if found is not None:
        return found
    return GatewayReplica.objects.create(
        tenant_id=boundary.tenant_id, boundary=boundary, config_version=1, created_at=now
    )


def of_units(boundary: Boundary, units: Iterable[Unit], *, now: datetime) -> list[GatewayReplica]:
    """Return the gateways of endpoint VMs in the order of their units, made where there are none yet."""
    rows = list(units)
    known = {replica.pk: replica for replica in GatewayReplica.objects.filter(pk__in=[unit.pk for unit in rows])}
    for unit in rows:
        if unit.pk not in known:
            known[unit.pk] = GatewayReplica.objects.create(
                id=unit.pk, tenant_id=unit.tenant_id, boundary=boundary, unit=unit, config_version=1, created_at=now
            )
    return [known[unit.pk] for unit in rows]


def spec_of(replica: GatewayReplica, token: Secret | None = None) -> GatewaySpec:
    """Return what a driver is told of a gateway; only the step that delivers the token gets it."""
    provider, tenant = replica.boundary.provider, replica.boundary.tenant.name
    zone = endpoint_tls.zone_of(provider.config)
    return GatewaySpec(
        replica.pk,
        settings.TENANTRY_PUBLIC_URL,
        token,
        names=(endpoint_tls.wildcard(tenant, zone),) if zone else (),
        certificates=_source(provider, tenant),
        issuer=str(provider.config.get("certificate_issuer") or ""),
    )


def _source(provider: Provider, tenant: str) -> str:
    if endpoint_trust.names_of(provider, tenant):
        return "home"
    is_made_there = endpoint_tls.source_of(provider.config) == endpoint_tls.CERT_MANAGER
    return endpoint_tls.CERT_MANAGER if is_made_there and endpoint_tls.zone_of(provider.config) else ""


def too_late(replica: GatewayReplica, *, now: datetime) -> bool:
    """Whether a gateway's token ran out before it enrolled: it never will, unless it is simulated."""
    ends = replica.token_expires_at
    return replica.enrolled_at is None and ends is not None and ends <= now


def shows_its_machine(replica: GatewayReplica, shown: UUID | None) -> bool:
    """Whether a gateway that enrols shows the machine that it was made for, where its provider makes it show one.

    Firmware writes the first three fields of a UUID in the machine's byte order; a guest shows one or the other.
    """
    if replica.unit_id is None or replica.boundary.provider.kind not in KINDS_THAT_SHOW_THE_MACHINE:
        return True
    expected = machine_uuid(replica.unit_id)
    return shown in {expected, UUID(bytes_le=expected.bytes)}


def arm(replica: GatewayReplica, *, now: datetime) -> Secret:
    """Give a gateway a new one-time token and end its old credential; returns the token.

    Called only when the provider shows no such gateway: whoever had the old credential is gone.
    """
    made = make_enrolment_token()
    replica.token_sealed = vault.seal(made.plain, table=replica._meta.db_table, column="token_sealed", row=replica.pk)
    replica.token_digest = made.digest
    replica.token_expires_at = now + TOKEN_LIFE
    replica.credential_digest = ""
    replica.enrolled_at = None
    replica.save(update_fields=["token_sealed", "token_digest", "token_expires_at", "credential_digest", "enrolled_at"])
    return Secret(made.plain)


def removed(boundary: UUID, *, units: Iterable[UUID] | None, now: datetime) -> None:
    """Note that gateways are gone: those of some units, or (None) all of a boundary. Their credentials end.

    The digests stay: who proves to be one that was removed, and runs on all the same, is told so (410).
    """
    rows = GatewayReplica.objects.filter(boundary_id=boundary, removed_at__isnull=True)
    if units is not None:
        rows = rows.filter(unit_id__in=list(units))
    rows.update(removed_at=now, token_sealed=None)
