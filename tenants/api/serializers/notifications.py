"""Shapes of notifications, wishes, webhooks and their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import Field, StringConstraints, model_validator

from tenants.api.serializers.base import ID_PATTERN, Change, In, Name, Out, PageQuery, absent, word
from tenants.models import Delivery, DeliveryAttempt, Notification, Webhook
from tenants.notifications import registry, signing
from tenants.notifications.addresses import LONGEST
from tenants.notifications.reads import Preference

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
KindWord = Annotated[str, StringConstraints(pattern=r"^[a-z-]+\.[a-z-]+$", max_length=60)]
Url = Annotated[
    str,
    StringConstraints(pattern=r"^https?://[!-~]+$", max_length=LONGEST),
    Field(description="https, on the public Internet or in a network that the operator allows."),
]
MailWord = Literal["off", "now", "digest"]
StateWord = Literal["pending", "delivered", "dead"]


class NotificationOut(Out):
    """One row of the caller's bell."""

    id: str
    kind: str
    title: str
    text: str
    link: str = Field(description="Path of the portal's page.")
    tenant: str | None
    object_kind: str
    object_id: str | None
    at: datetime
    read_at: datetime | None

    @classmethod
    def of(cls, row: Notification) -> NotificationOut:
        """Return a row; its tenant must be loaded."""
        return cls(
            id=str(row.pk),
            kind=row.kind,
            title=registry.title_of(row),
            text=registry.text_of(row),
            link=registry.link_of(row),
            tenant=row.tenant.name if row.tenant is not None else None,
            object_kind=row.object_kind,
            object_id=str(row.object_id) if row.object_id else None,
            at=row.at,
            read_at=row.read_at,
        )


class NotificationQuery(PageQuery):
    """Filters of the bell."""

    unread: bool = Field(default=False, description="true: unread ones only.")
    kind: word() = ""  # type: ignore[valid-type]


class UnreadOut(Out):
    """How many unread notifications the caller has."""

    unread: int = Field(description="At most 100: more are not counted.")


class ReadIn(In):
    """Which notifications were read: some, or all."""

    ids: list[Id] = Field(default=[], max_length=500)
    all: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.all == bool(self.ids):
            raise ValueError("give ids, or all: true")
        return self

    @property
    def chosen(self) -> list[UUID] | None:
        """Return the ids, None for all."""
        return None if self.all else [UUID(each) for each in self.ids]


class KindOut(Out):
    """One kind of notification."""

    id: str
    group: str
    title: str
    help: str
    audience: str
    mail: MailWord
    webhook: bool

    @classmethod
    def of(cls, kind: registry.Kind) -> KindOut:
        """Return a kind."""
        return cls(
            id=kind.id,
            group=kind.group.value,
            title=str(kind.title),
            help=str(kind.help),
            audience=kind.audience.value,
            mail=kind.mail.value,
            webhook=kind.webhook,
        )


class KindsOut(Out):
    """All kinds."""

    items: list[KindOut]


class PreferenceIn(In):
    """How the caller wants one kind."""

    kind: KindWord
    bell: bool = True
    mail: MailWord


class PreferenceOut(Out):
    """How the caller gets one kind."""

    kind: str
    bell: bool
    mail: MailWord
    own: bool = Field(description="false: the default of the kind.")

    @classmethod
    def of(cls, wish: Preference) -> PreferenceOut:
        """Return a wish."""
        return cls(kind=wish.kind.id, bell=wish.bell, mail=wish.mail.value, own=wish.own)


class PreferencesOut(Out):
    """How the caller gets each kind."""

    items: list[PreferenceOut]


class WebhookIn(In):
    """A webhook."""

    name: Name
    url: Url
    kinds: list[KindWord] = Field(default=[], max_length=60, description="Ids of kinds; empty: all.")


class WebhookChangeIn(Change):
    """What of a webhook changes."""

    url: Url = absent()
    kinds: Annotated[list[KindWord], Field(max_length=60)] = absent("Ids of kinds; empty: all.")


class RollWebhookIn(In):
    """How long the old secret signs too."""

    overlap_s: int = Field(default=86_400, ge=0, le=7 * 86_400)


class WebhookOut(Out):
    """A webhook; its secret only in the answer that makes it."""

    id: str
    tenant: str
    name: str
    url: str
    kinds: list[str]
    created_at: datetime
    failing_since: datetime | None
    delivered_at: datetime | None
    disabled_at: datetime | None
    disabled_why: str
    previous_secret_until: datetime | None
    version: int
    secret: str | None = Field(None, description="`whsec_…`: only in the answer to its creation or rolling.")

    @classmethod
    def of(cls, row: Webhook, *, secret: str | None = None) -> WebhookOut:
        """Return a webhook; its tenant must be loaded."""
        return cls(
            id=str(row.pk),
            tenant=row.tenant.name,
            name=row.name,
            url=row.url,
            kinds=row.kinds,
            created_at=row.created_at,
            failing_since=row.failing_since,
            delivered_at=row.delivered_at,
            disabled_at=row.disabled_at,
            disabled_why=row.disabled_why,
            previous_secret_until=row.previous_until,
            version=row.version,
            secret=secret,
        )


class AttemptOut(Out):
    """One attempt of a delivery."""

    number: int
    started_at: datetime
    outcome: str = Field(description="`delivered`, `failed`, `blocked`, `unknown`, or empty while it runs.")
    status: int | None
    latency_ms: int | None
    reason: str

    @classmethod
    def of(cls, row: DeliveryAttempt) -> AttemptOut:
        """Return an attempt."""
        return cls(
            number=row.number,
            started_at=row.started_at,
            outcome=row.outcome,
            status=row.status,
            latency_ms=row.latency_ms,
            reason=row.reason,
        )


class DeliveryOut(Out):
    """One message to a webhook: the same id and body in every attempt."""

    id: str
    webhook_id: str = Field(description="The header `webhook-id`.")
    kind: str
    state: StateWord
    attempts: int
    created_at: datetime
    next_at: datetime | None
    done_at: datetime | None
    status: int | None
    reason: str
    body: str
    tries: list[AttemptOut]

    @classmethod
    def of(cls, row: Delivery) -> DeliveryOut:
        """Return a delivery; its attempts must be loaded."""
        return cls(
            id=str(row.pk),
            webhook_id=signing.message_id(row.pk),
            kind=row.kind,
            state=row.state,
            attempts=row.attempts,
            created_at=row.created_at,
            next_at=row.next_at if row.state == "pending" else None,
            done_at=row.done_at,
            status=row.status,
            reason=row.reason,
            body=row.body,
            tries=[AttemptOut.of(each) for each in sorted(row.tries.all(), key=lambda each: each.number)],
        )


class DeliveryQuery(PageQuery):
    """Filters of the delivery log."""

    state: StateWord | None = None
