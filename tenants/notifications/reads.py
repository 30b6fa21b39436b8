"""What pages and API read: a person's bell and wishes, a tenant's webhooks and their log. Inside a read block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import Q, QuerySet

from tenants import access
from tenants.actor import Actor, Kind
from tenants.models import Delivery, Notification, OutboxMail, Tenant, Webhook
from tenants.notifications.fanout import wishes_of
from tenants.notifications.registry import KINDS, Group, Mail
from tenants.notifications.registry import Kind as NotificationKind

MOST_COUNTED = 100
"""The bell counts no further: it shows `99+`."""


@dataclass(frozen=True, slots=True)
class Preference:
    """How a person wants one kind, and whether he said so himself."""

    kind: NotificationKind
    bell: bool
    mail: Mail
    own: bool
    """False: the kind's default."""


def bell(actor: Actor, *, unread: bool = False, kind: str = "", tenant: Tenant | None = None) -> QuerySet[Notification]:
    """Return the rows of the actor's bell, for `order_by("-at", "-id")`; nobody else's ever, and none for machines."""
    if actor.kind is not Kind.PERSON or actor.person_id is None:
        return Notification.objects.none()
    rows = Notification.objects.filter(person_id=actor.person_id, bell=True).select_related("tenant")
    if actor.only_tenant is not None:
        rows = rows.filter(tenant__path__contains=[actor.only_tenant])
    if unread:
        rows = rows.filter(read_at__isnull=True)
    if kind:
        rows = rows.filter(kind=kind)
    return rows if tenant is None else rows.filter(tenant_id=tenant.pk)


def unread_count(actor: Actor) -> int:
    """Return how many unread rows the actor's bell has, at most `MOST_COUNTED`."""
    return bell(actor, unread=True).order_by()[:MOST_COUNTED].count()


def preferences(actor: Actor) -> list[Preference]:
    """Return the actor's wish for every kind that can reach him, in the registry's order."""
    if actor.person_id is None or actor.kind is not Kind.PERSON:
        return []
    from tenants.models import NotificationPreference

    kinds = kinds_for(actor)
    wishes = wishes_of([actor.person_id], kinds)
    own = set(NotificationPreference.objects.filter(person_id=actor.person_id).values_list("kind", flat=True))
    return [
        Preference(kind, wishes[actor.person_id, kind.id].bell, wishes[actor.person_id, kind.id].mail, kind.id in own)
        for kind in kinds
    ]


def kinds_for(actor: Actor) -> Sequence[NotificationKind]:
    """Return the kinds that can reach the actor: those about the platform only with a platform role."""
    return [kind for kind in KINDS.values() if kind.group is not Group.PLATFORM or actor.platform_roles]


def webhooks(actor: Actor, tenant: Tenant | None = None) -> QuerySet[Webhook]:
    """Return the webhooks the actor may see, without removed ones, of one tenant if given."""
    return access.scoped(Webhook, actor, tenant=tenant).filter(removed_at__isnull=True).select_related("tenant")


def deliveries(webhook: Webhook, *, state: str = "") -> QuerySet[Delivery]:
    """Return the log of one webhook, for `order_by("-created_at", "-id")`."""
    rows = Delivery.objects.filter(webhook_id=webhook.pk)
    return rows.filter(state=state) if state else rows


def outbox(*, recipient: str = "") -> QuerySet[OutboxMail]:
    """Return the mails kept instead of sent, newest first; read them as the actor `AUTH` or with a platform role."""
    rows = OutboxMail.objects.order_by("-at", "-id")
    return rows.filter(Q(recipient__iexact=recipient)) if recipient else rows
