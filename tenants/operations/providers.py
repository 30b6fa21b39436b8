"""Providers and their credentials: register, change, switch off, give up.

An operation writes what should be true and makes the provider due; drivers are called by passes alone.
Secrets are sealed before they reach a row and appear in no event. Lock order: provider, hosts, outbox.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from tenants import desired, findings, gateway_config, host_plans, ledger, provider_kinds, vault
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.models import Boundary, Finding, Hold, Host, HostPlan, Provider, ProviderCredential
from tenants.models.fields import SLUG_PATTERN
from tenants.operations import provider_certificates
from tenants.operations.guards import allow, locked
from tenants.provider_kinds import ProviderKind
from tenants.states import HoldKind, HostState, Phase
from tenants.transactions import operation

SECRET_BYTES: Final = 65_536
CONFIG_KEYS: Final = 64
RANGES: Final = "address_ranges"
"""The one entry that is a list: networks in which the control plane may call endpoints."""
MOST_RANGES: Final = 32
ASKED: Final = "test_asked"
TESTED: Final = "test"
"""Entries of `Provider.observed`: a test that waits for a worker, and what the last one found."""


@operation
def create(
    *,
    name: str,
    kind: str,
    site: str,
    config: Mapping[str, Any],
    actor: Actor,
    now: datetime,
    enabled: bool = True,
) -> Provider:
    """Register a vCenter, a cluster or a sandbox estate. Its first snapshot comes with the next sweep.

    `kind` is a driver's slug; one that no driver has shows when it is tested. Without `enabled` it is left alone
    until it is tested or switched on. Raises `InvalidSpec` at `config.<name>` for an entry that the driver does not
    know or could not use, `Conflict` for a name that is taken.
    """
    allow(actor, None, "providers.create")
    for field, value in (("name", name), ("kind", kind), ("site", site)):
        _slug(value, field)
    if Provider.objects.filter(name=name).exists():
        msg = f"A provider is called {name} already."
        raise Conflict(msg, code="name-taken", name=name)
    row = Provider.objects.create(
        name=name, kind=kind, site=site, config=_config(config, kind), enabled=enabled, finalizers=[], due_at=now,
        created_at=now,
    )  # fmt: skip
    desired.created(row, "provider.created", actor=actor, at=now, name=name, kind=kind, site=site)
    return row


@operation
def update(
    *,
    provider: Provider,
    actor: Actor,
    now: datetime,
    site: str | None = None,
    config: Mapping[str, Any] | None = None,
    version: int | None = None,
) -> Provider:
    """Change site or configuration. Raises `InvalidSpec`, `Conflict` while it is being deleted."""
    allow(actor, None, "providers.update")
    row = _live_provider(provider, version)
    changes: dict[str, Any] = {}
    before = dict(row.config)
    if site is not None:
        changes["site"] = _slug(site, "site")
    if config is not None:
        changes["config"] = _config(config, row.kind, stored=row.config)
        provider_certificates.check(row, changes["config"], now=now)
    for field, value in changes.items():
        setattr(row, field, value)
    row.save(update_fields=sorted(changes))
    served = provider_certificates.configured(row, before, now=now)
    desired.changed(row, "provider.updated", actor=actor, at=now, changed=sorted(changes))
    gateway_config.bump(served, now)
    return row


@operation
def test(*, provider: Provider, actor: Actor, now: datetime) -> Provider:
    """Ask for a test: a worker calls the provider, switched on or off, and stores what it found (`observed`).

    One that is asked for already is not asked for twice. Raises `Conflict` while it is being deleted.
    """
    allow(actor, None, "providers.test")
    row = _live_provider(provider, None)
    if ASKED not in row.observed:
        row.observed = {**row.observed, ASKED: {"at": now.isoformat(), "by": actor.name or actor.word}}
        row.save(update_fields=["observed"])
        desired.happened(row, "provider.test-requested", actor=actor, at=now)
    desired.nudge_now(row, at=now)
    return row


@operation
def enable(*, provider: Provider, actor: Actor, now: datetime, version: int | None = None) -> Provider:
    """Let new units be placed on a provider again."""
    allow(actor, None, "providers.enable")
    return _switch(provider, enabled=True, actor=actor, now=now, version=version)


@operation
def disable(*, provider: Provider, actor: Actor, now: datetime, version: int | None = None) -> Provider:
    """Place nothing new on a provider; what runs there goes on and is watched."""
    allow(actor, None, "providers.disable")
    return _switch(provider, enabled=False, actor=actor, now=now, version=version)


def _switch(provider: Provider, *, enabled: bool, actor: Actor, now: datetime, version: int | None) -> Provider:
    row = _live_provider(provider, version)
    if row.enabled != enabled:
        row.enabled = enabled
        row.save(update_fields=["enabled"])
        ledger.refresh_placeable(row.pk)
        desired.changed(row, f"provider.{'enabled' if enabled else 'disabled'}", actor=actor, at=now)
    return row


@operation
def delete(*, provider: Provider, actor: Actor, now: datetime, version: int | None = None) -> Provider:
    """Give up a provider that nobody uses: its hosts are removed, its credentials destroyed.

    Raises `Conflict` (`in-use`) with the numbers while boundaries, allocations or running plans are there.
    """
    allow(actor, None, "providers.delete")
    row = _live_provider(provider, version)
    check_unused(row)  # before thousands of hosts are locked; once more when nothing can come to them any more
    hosts = list(Host.objects.select_for_update(no_key=True).filter(provider=row).order_by("pk"))
    check_unused(row)
    host_plans.empty_all(row.pk, now=now)
    Host.objects.filter(provider=row).update(state=HostState.REMOVED.value)
    row.credentials.all().delete()
    for finding in Finding.objects.filter(provider=row, resolved_at__isnull=True):
        findings.close(finding, "its provider was deleted", now=now)
    row.enabled, row.deletion_requested_at, row.released_at = False, now, now
    row.phase, row.finalizers = Phase.RELEASED.value, []
    row.observed = {key: value for key, value in row.observed.items() if key != ASKED}
    row.save(update_fields=["enabled", "deletion_requested_at", "released_at", "phase", "finalizers", "observed"])
    ledger.refresh_placeable(row.pk)
    desired.changed(row, "provider.deleted", actor=actor, at=now, hosts=len(hosts))
    Provider.objects.filter(pk=row.pk).update(due_at=None)
    return row


def check_unused(provider: Provider) -> None:
    """Raise what keeps a provider from being given up: `Conflict` (`deleting`, or `in-use` with the numbers).

    Reads only, in the caller's transaction: a page asks it before somebody does the deed.
    """
    if provider.deletion_requested_at is not None:
        msg = f"{provider.name} was deleted."
        raise Conflict(msg, code="deleting")
    used = {
        "boundaries": Boundary.objects.filter(provider=provider, released_at__isnull=True).count(),
        "holds": Hold.objects.filter(host__provider=provider, kind=HoldKind.TENANT.value).count(),
        "plans": HostPlan.objects.filter(host__provider=provider, state="running").count(),
    }
    if any(used.values()):
        words = ", ".join(f"{count} {noun}" for noun, count in used.items() if count)
        msg = f"{provider.name} is still used: {words}."
        raise Conflict(msg, code="in-use", used=used)


@operation
def set_credential(
    *, provider: Provider, name: str, secret: str, actor: Actor, now: datetime, version: int | None = None
) -> ProviderCredential:
    """Store or replace one secret of a provider, sealed; it is never shown again. The driver is made anew."""
    allow(actor, None, "providers.set_credential")
    row = _live_provider(provider, version)
    _slug(name, "name")
    if not secret or len(secret.encode()) > SECRET_BYTES or "\x00" in secret:
        msg = f"A secret has 1 to {SECRET_BYTES} bytes and no NUL."
        raise InvalidSpec(msg, field="secret")
    described = provider_kinds.kind_of(row.kind)
    one = described.credential(name) if described is not None else None
    if one is not None and one.refuses is not None and (refusal := one.refuses(secret)):
        raise InvalidSpec(refusal, field="secret")
    if one is not None and one.judges is not None and (refusal := one.judges(secret, row.config, now)):
        raise InvalidSpec(refusal, field="secret")
    credential = ProviderCredential.objects.select_for_update().filter(provider=row, name=name).first()
    key = credential.pk if credential is not None else uuid4()
    sealed = vault.seal(secret, table=ProviderCredential._meta.db_table, column="sealed", row=key)
    if credential is None:
        credential = ProviderCredential.objects.create(id=key, provider=row, name=name, sealed=sealed, created_at=now)
    else:
        credential.sealed, credential.created_at = sealed, now
        credential.save(update_fields=["sealed", "created_at"])
    served = provider_certificates.stored(row, name, secret, now=now)
    desired.changed(row, "provider.credential-set", actor=actor, at=now, credential=name)
    gateway_config.bump(served, now)
    return credential


@operation
def remove_credential(
    *, provider: Provider, name: str, actor: Actor, now: datetime, version: int | None = None
) -> Provider:
    """Destroy one secret of a provider; nothing happens if there is none of that name."""
    allow(actor, None, "providers.remove_credential")
    row = _live_provider(provider, version)
    gone, _ = ProviderCredential.objects.filter(provider=row, name=name).delete()
    if gone:
        served = provider_certificates.removed(row, name, now=now)
        desired.changed(row, "provider.credential-removed", actor=actor, at=now, credential=name)
        gateway_config.bump(served, now)
    return row


def _live_provider(provider: Provider, version: int | None) -> Provider:
    row = locked(provider, version)
    if row.deletion_requested_at is not None:
        msg = f"{row.name} was deleted."
        raise Conflict(msg, code="deleting")
    return row


def _slug(value: str, field: str) -> str:
    if not re.fullmatch(SLUG_PATTERN, value):
        msg = "Use a DNS label: a-z, 0-9, '-', at most 40 characters, a letter first."
        raise InvalidSpec(msg, field=field)
    return value


def _config(config: Mapping[str, Any], kind: str, *, stored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a provider's configuration: plain values that its kind knows and could use, nothing like a secret.

    An entry of `stored` that nobody knows may stay as it is: it was taken before entries were checked, and whoever
    changes another one should not have to find it first. Raises `InvalidSpec` at `config.<name>`.
    """
    if len(config) > CONFIG_KEYS:
        msg = f"At most {CONFIG_KEYS} entries."
        raise InvalidSpec(msg, field="config")
    for key, value in config.items():
        if key == RANGES:
            _ranges(value)
            continue
        if not isinstance(value, str | int | float | bool | None):
            msg = "Values are text, numbers or true and false."
            raise InvalidSpec(msg, field=f"config.{key}")
        if re.search(r"password|secret|token|private[-_]?key", key, re.IGNORECASE):
            msg = "Secrets are stored as credentials, never in the configuration."
            raise InvalidSpec(msg, field=f"config.{key}", code="secret-in-config")
    described = provider_kinds.kind_of(kind)
    if described is not None:
        _check_known(config, described, stored or {})
    return dict(config)


def _check_known(config: Mapping[str, Any], kind: ProviderKind, stored: Mapping[str, Any]) -> None:
    given = {key: value for key, value in config.items() if key != RANGES}
    for key, value in given.items():
        refusal = "" if key in stored and stored[key] == value else kind.unknown(key)
        if refusal:
            raise InvalidSpec(refusal, field=f"config.{key}")
    if (found := kind.refusal(given)) is not None:
        raise InvalidSpec(found[1], field=f"config.{found[0]}")


def _ranges(value: Any) -> None:
    """Raise `InvalidSpec` unless this is a list of networks."""
    field = f"config.{RANGES}"
    if not isinstance(value, list) or len(value) > MOST_RANGES:
        msg = f"Give a list of at most {MOST_RANGES} networks."
        raise InvalidSpec(msg, field=field)
    for each in value:
        try:
            ipaddress.ip_network(str(each))
        except ValueError as error:
            msg = f"{str(each)[:60]!r} is no network such as 10.20.0.0/16."
            raise InvalidSpec(msg, field=field) from error
