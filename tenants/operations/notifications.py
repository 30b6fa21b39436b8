"""What people change about notifications: read marks, wishes, webhooks and their secrets, sending again.

Read marks and wishes are a person's own and leave no event; everything about a webhook does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from django.conf import settings
from django.db.models import F

from tenants import desired, vault
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec, NotVisible
from tenants.models import Delivery, Notification, NotificationPreference, Tenant, Webhook
from tenants.models.fields import slug_validator
from tenants.notifications import addresses, messages, reads, registry, signing
from tenants.notifications.fanout import KEEP_TRYING
from tenants.operations.guards import accountable, allow, expect_version, lock_path, locked
from tenants.states import TenantStatus
from tenants.transactions import operation

MOST_WEBHOOKS: Final = 10
MOST_MARKED: Final = 500
LONGEST_OVERLAP: Final = timedelta(days=7)
TABLE: Final = "webhook"
"""Of sealed secrets."""


# --- a person's own -------------------------------------------------------------------------------------


@operation
def mark_read(*, ids: Sequence[UUID] | None, actor: Actor, now: datetime) -> int:
    """Mark rows of the actor's bell as read, all of them with None; return how many are unread then.

    Rows that are not his, gone or read already are passed over.
    """
    allow(actor, None, "notifications.mark_read")
    rows = reads.bell(actor, unread=True).select_related(None).order_by()
    if ids is not None:
        if len(ids) > MOST_MARKED:
            raise InvalidSpec(f"Name at most {MOST_MARKED} at once.", field="ids", code="too-many")
        rows = rows.filter(pk__in=ids)
    Notification.objects.filter(pk__in=rows.values("pk"), read_at__isnull=True).update(read_at=now)
    return reads.unread_count(actor)


@operation
def set_preference(*, kind: str, bell: bool, mail: str, actor: Actor, now: datetime) -> NotificationPreference:
    """Say how the actor wants one kind from now on. Raises `InvalidSpec`."""
    del now
    allow(actor, None, "notification-preferences.set")
    person = accountable(actor)
    if kind not in {each.id for each in reads.kinds_for(actor)}:
        raise InvalidSpec("There is no such kind of notification.", field="kind", code="unknown-notification")
    if mail not in set(registry.Mail):
        raise InvalidSpec(f"Use one of {', '.join(registry.Mail)}.", field="mail")
    row, _ = NotificationPreference.objects.update_or_create(
        person_id=person, kind=kind, defaults={"bell": bell, "mail": str(mail)}
    )
    return row


# --- webhooks -------------------------------------------------------------------------------------------


@operation
def create_webhook(
    *, tenant: Tenant, name: str, url: str, kinds: Sequence[str], actor: Actor, now: datetime
) -> tuple[Webhook, str]:
    """Make a webhook; returns it with its secret (`whsec_…`), shown once. It gets what happens from now on.

    Raises `InvalidSpec` for a URL that may not be reached or an unknown kind, `Conflict` for a taken name, too many
    webhooks or a closed tenant.
    """
    allow(actor, tenant, "webhooks.create")
    _check_name(name)
    checked = _check(url=url, kinds=kinds)
    lock_path(tenant.pk)
    if Tenant.objects.filter(pk=tenant.pk, status=TenantStatus.CLOSED.value).exists():
        raise Conflict("The tenant is closed.", code="tenant-closed")
    live = Webhook.objects.filter(tenant=tenant, removed_at__isnull=True)
    if live.filter(name=name).exists():
        raise Conflict(f"There is a webhook called {name} already.", code="name-taken")
    if live.count() >= MOST_WEBHOOKS:
        raise Conflict(f"A tenant has at most {MOST_WEBHOOKS} webhooks; remove one.", code="too-many-webhooks")
    key, secret = uuid4(), signing.new_secret()
    row = Webhook.objects.create(
        id=key,
        tenant=tenant,
        name=name,
        url=url,
        kinds=checked["kinds"],
        secret_sealed=vault.seal(secret, table=TABLE, column="secret", row=key),
        author_id=actor.person_id,
        created_at=now,
    )
    desired.happened(row, "webhook.created", actor=actor, at=now, nudge=False, host=_host(url), kinds=row.kinds)
    return row, secret


@operation
def update_webhook(
    *, webhook: Webhook, changes: Mapping[str, Any], actor: Actor, now: datetime, version: int | None = None
) -> Webhook:
    """Change `url` or `kinds`. What waits to be sent goes to the new URL. Raises `InvalidSpec`."""
    allow(actor, webhook.tenant, "webhooks.update")
    checked = _check(**changes)
    row = _live(webhook, version)
    for field, value in checked.items():
        setattr(row, field, value)
    row.version += 1
    row.save(update_fields=[*checked, "version"])
    desired.happened(
        row, "webhook.updated", actor=actor, at=now, nudge=False, fields=sorted(checked), host=_host(row.url)
    )
    return row


@operation
def roll_webhook(
    *, webhook: Webhook, overlap_s: int, actor: Actor, now: datetime, version: int | None = None
) -> tuple[Webhook, str]:
    """Make a new secret; messages are signed with the old one as well for `overlap_s` seconds. Raises `InvalidSpec`."""
    allow(actor, webhook.tenant, "webhooks.roll")
    if not 0 <= overlap_s <= LONGEST_OVERLAP.total_seconds():
        raise InvalidSpec(f"The overlap lasts 0 seconds to {LONGEST_OVERLAP.days} days.", field="overlap_s")
    row = _live(webhook, version)
    assert row.secret_sealed is not None  # a live one has a secret
    old = vault.unseal(row.secret_sealed, table=TABLE, column="secret", row=row.pk)
    secret = signing.new_secret()
    row.secret_sealed = vault.seal(secret, table=TABLE, column="secret", row=row.pk)
    row.previous_sealed = vault.seal(old, table=TABLE, column="previous", row=row.pk) if overlap_s else None
    row.previous_until = now + timedelta(seconds=overlap_s) if overlap_s else None
    row.version += 1
    row.save(update_fields=["secret_sealed", "previous_sealed", "previous_until", "version"])
    desired.happened(row, "webhook.rolled", actor=actor, at=now, nudge=False, overlap_s=overlap_s)
    return row, secret


@operation
def enable_webhook(*, webhook: Webhook, actor: Actor, now: datetime, version: int | None = None) -> Webhook:
    """Let a webhook get messages again. What happened meanwhile is not sent. Safe to repeat."""
    allow(actor, webhook.tenant, "webhooks.enable")
    row = _live(webhook, version)
    if row.disabled_at is not None:
        row.disabled_at, row.disabled_why, row.failing_since = None, "", None
        row.version += 1
        row.save(update_fields=["disabled_at", "disabled_why", "failing_since", "version"])
        desired.happened(row, "webhook.enabled", actor=actor, at=now, nudge=False)
    return row


@operation
def disable_webhook(*, webhook: Webhook, actor: Actor, now: datetime, version: int | None = None) -> Webhook:
    """Send nothing more to a webhook until it is enabled. Safe to repeat."""
    allow(actor, webhook.tenant, "webhooks.disable")
    row = _live(webhook, version)
    if row.disabled_at is None:
        switch_off(row, "somebody switched it off", actor=actor, now=now)
    return row


@operation
def remove_webhook(*, webhook: Webhook, actor: Actor, now: datetime, version: int | None = None) -> None:
    """Remove a webhook and forget its secrets; its log stays for 30 days."""
    allow(actor, webhook.tenant, "webhooks.delete")
    row = _live(webhook, version)
    row.removed_at, row.secret_sealed, row.previous_sealed, row.previous_until = now, None, None, None
    row.save(update_fields=["removed_at", "secret_sealed", "previous_sealed", "previous_until"])
    desired.happened(row, "webhook.removed", actor=actor, at=now, nudge=False, name=row.name)


@operation
def try_webhook(*, webhook: Webhook, actor: Actor, now: datetime) -> Delivery:
    """Send a test message, signed like all others; its delivery says how it went. Raises `Conflict` when disabled."""
    allow(actor, webhook.tenant, "webhooks.test")
    row = _live(webhook, None)
    _refuse_disabled(row)
    key = uuid4()
    return Delivery.objects.create(
        id=key,
        medium="webhook",
        key=f"test:{key}",
        tenant_id=row.tenant_id,
        webhook=row,
        kind=registry.TEST,
        body=messages.test_body(row.tenant.name, row.name, now=now),
        created_at=now,
        next_at=now,
        give_up_at=now + timedelta(minutes=1),
    )


@operation
def send_again(*, delivery: Delivery, actor: Actor, now: datetime) -> Delivery:
    """Send a message once more, under the same id: a dead or delivered one anew, a waiting one at once.

    Raises `NotVisible` for a mail, `Conflict` when the webhook is disabled.
    """
    if delivery.webhook is None:
        raise NotVisible
    allow(actor, delivery.webhook.tenant, "webhooks.send_again")
    webhook = _live(delivery.webhook, None)
    _refuse_disabled(webhook)
    row = locked(delivery)
    if row.state == "pending":
        row.next_at = min(row.next_at, now)
    else:
        row.state, row.done_at, row.attempts, row.next_at = "pending", None, 0, now
    row.give_up_at = max(row.give_up_at, now + KEEP_TRYING)
    row.save(update_fields=["state", "done_at", "attempts", "next_at", "give_up_at"])
    desired.happened(webhook, "webhook.sent-again", actor=actor, at=now, nudge=False, delivery=row.pk)
    return row


# --- plain ----------------------------------------------------------------------------------------------


def switch_off(row: Webhook, why: str, *, actor: Actor, now: datetime) -> None:
    """Disable a locked webhook, in the caller's transaction."""
    row.disabled_at, row.disabled_why = now, why[:300]
    Webhook.objects.filter(pk=row.pk).update(disabled_at=now, disabled_why=why[:300], version=F("version") + 1)
    row.version += 1
    desired.happened(row, "webhook.disabled", actor=actor, at=now, nudge=False, why=f"{why[:300]}.")


def secrets_of(row: Webhook, *, now: datetime) -> list[str]:
    """Return the secrets that sign now, the current one first. Raises `VaultError`."""
    found = []
    if row.secret_sealed is not None:
        found.append(vault.unseal(row.secret_sealed, table=TABLE, column="secret", row=row.pk))
    if row.previous_sealed is not None and row.previous_until is not None and row.previous_until > now:
        found.append(vault.unseal(row.previous_sealed, table=TABLE, column="previous", row=row.pk))
    return found


def allowed_networks() -> tuple[addresses.Network, ...]:
    """Return the networks beyond the public Internet that the operator lets webhooks reach."""
    return addresses.networks(settings.TENANTRY_WEBHOOK_NETWORKS)


def _live(webhook: Webhook, version: int | None) -> Webhook:
    row = Webhook.objects.select_for_update(no_key=True, of=("self",)).select_related("tenant").filter(
        pk=webhook.pk, removed_at__isnull=True
    ).first()  # fmt: skip
    if row is None:
        raise NotVisible
    expect_version(row, version)
    return row


def _refuse_disabled(row: Webhook) -> None:
    if row.disabled_at is not None:
        raise Conflict("The webhook is switched off; enable it first.", code="disabled")


def _check_name(name: str) -> None:
    from django.core.exceptions import ValidationError

    try:
        slug_validator(name)
    except ValidationError as error:
        raise InvalidSpec("Use a DNS label: a-z, 0-9, '-', at most 40 characters.", field="name") from error


def _check(**given: Any) -> dict[str, Any]:
    """Return URL and kinds as stored. Raises `InvalidSpec`."""
    checked: dict[str, Any] = {}
    if "url" in given:
        try:
            addresses.parse(given["url"], allowed_networks())
        except addresses.BadUrl as error:
            raise InvalidSpec(str(error), field="url", code="bad-url") from error
        checked["url"] = given["url"]
    if "kinds" in given:
        unknown = sorted(set(given["kinds"]) - set(registry.WEBHOOK_KINDS))
        if unknown:
            raise InvalidSpec(
                f"Webhooks get no {unknown[0][:60]!r}; see the list of kinds.",
                field="kinds",
                code="unknown-notification",
            )
        checked["kinds"] = sorted(set(given["kinds"]))
    return checked


def _host(url: str) -> str:
    """Return the host of a checked URL: all of it that an event may show, for paths and queries may hold tokens."""
    return addresses.parse(url, allowed_networks()).host
