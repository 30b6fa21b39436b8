"""Notifications: the bell's rows, preferences, webhooks, deliveries with their attempts, and mail kept for the demo.

An event fans out once: the cursor of its chain moves in the transaction that writes the rows, and unique keys
stand behind it. An attempt row is committed before anything is sent.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from tenants.models.fields import SlugField, WordField, primary_key, slug_check


class Notification(models.Model):
    """One thing one person should know: a row of his bell."""

    id = primary_key()
    person = models.ForeignKey("tenants.Person", on_delete=models.CASCADE, related_name="notifications")
    tenant = models.ForeignKey("tenants.Tenant", null=True, on_delete=models.CASCADE, related_name="+")
    """Null for platform matters, and where the person is told as the one who asked rather than as a member."""
    kind = models.CharField(max_length=60)
    """Id of a kind of `tenants.notifications.registry`."""
    event_id = models.UUIDField()
    object_kind = WordField(blank=True, default="")
    object_id = models.UUIDField(null=True)
    data = models.JSONField(default=dict)
    """What title, sentence and link are made of; words and numbers, no secrets."""
    at = models.DateTimeField()
    """When it happened."""
    created_at = models.DateTimeField()
    read_at = models.DateTimeField(null=True, blank=True)
    bell = models.BooleanField(default=True)
    """Whether the bell shows it; a person may want only mail."""
    digest = models.BooleanField(default=False)
    """Waits for the person's daily mail."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["event_id", "person"], name="notification_once"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["person", "at", "id"], name="notification_bell"),
            models.Index(fields=["person"], condition=Q(read_at__isnull=True, bell=True), name="notification_unread"),
            models.Index(fields=["person", "created_at"], condition=Q(digest=True), name="notification_digest"),
            models.Index(fields=["created_at"], name="notification_created"),
        ]


class NotificationPreference(models.Model):
    """How one person wants one kind; without a row the kind's own default holds."""

    id = primary_key()
    person = models.ForeignKey("tenants.Person", on_delete=models.CASCADE, related_name="+")
    kind = models.CharField(max_length=60)
    bell = models.BooleanField()
    mail = WordField()
    """`off`, `now` or `digest`."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["person", "kind"], name="notification_preference_once"),
            models.CheckConstraint(condition=Q(mail__in=["off", "now", "digest"]), name="notification_preference_mail"),
        ]


class Webhook(models.Model):
    """A tenant's receiver of signed messages. Removed ones keep their row, without their secrets, for the log."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="webhooks")
    name = SlugField()
    url = models.CharField(max_length=500)
    kinds = ArrayField(models.CharField(max_length=60), default=list, blank=True)
    """Ids of kinds; empty = all that concern a tenant."""
    secret_sealed = models.BinaryField(null=True)
    previous_sealed = models.BinaryField(null=True)
    """The secret before the last roll; signs too until `previous_until`."""
    previous_until = models.DateTimeField(null=True, blank=True)
    author_id = models.UUIDField(null=True)
    created_at = models.DateTimeField()
    failing_since = models.DateTimeField(null=True, blank=True)
    """Start of the present run of failures; null after a success."""
    delivered_at = models.DateTimeField(null=True, blank=True)
    """Last success."""
    disabled_at = models.DateTimeField(null=True, blank=True)
    disabled_why = models.CharField(max_length=300, blank=True, default="")
    removed_at = models.DateTimeField(null=True, blank=True)
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            slug_check("webhook_name"),
            models.UniqueConstraint(
                fields=["tenant", "name"], condition=Q(removed_at__isnull=True), name="webhook_name_unique"
            ),
            models.CheckConstraint(
                condition=Q(removed_at__isnull=True) | Q(secret_sealed__isnull=True, previous_sealed__isnull=True),
                name="webhook_removed_forgets",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["created_at", "id"], name="webhook_created"),
        ]


class Delivery(models.Model):
    """One message to one receiver: what is sent never changes from attempt to attempt, its id neither."""

    id = primary_key()
    medium = WordField()
    """`webhook` or `mail`."""
    key = models.CharField(max_length=200, unique=True)
    """Makes the same message once."""
    tenant = models.ForeignKey("tenants.Tenant", null=True, on_delete=models.CASCADE, related_name="+")
    webhook = models.ForeignKey(Webhook, null=True, on_delete=models.CASCADE, related_name="deliveries")
    person = models.ForeignKey("tenants.Person", null=True, on_delete=models.CASCADE, related_name="+")
    kind = models.CharField(max_length=60)
    event_id = models.UUIDField(null=True)
    body = models.TextField()
    """What is sent: JSON of a webhook, `{subject, text}` of a mail."""
    created_at = models.DateTimeField()
    state = WordField(default="pending")
    """`pending`, `delivered`, `dead`."""
    attempts = models.PositiveIntegerField(default=0)
    """Since it was made or sent again; the backoff follows it."""
    next_at = models.DateTimeField()
    give_up_at = models.DateTimeField()
    """No attempt begins later; then it is dead, until somebody sends it again."""
    lease_epoch = models.BigIntegerField(default=0)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    """End of the present attempt's window: nobody else sends before."""
    status = models.PositiveSmallIntegerField(null=True, blank=True)
    """Status code of the last answer."""
    reason = models.CharField(max_length=300, blank=True, default="")
    """Why the last attempt failed, or why it is dead."""
    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(
                condition=Q(medium="webhook", webhook__isnull=False, tenant__isnull=False, person__isnull=True)
                | Q(medium="mail", webhook__isnull=True, tenant__isnull=True, person__isnull=False),
                name="delivery_receiver",
            ),
            models.CheckConstraint(
                condition=Q(state="pending", done_at__isnull=True)
                | Q(state__in=["delivered", "dead"], done_at__isnull=False),
                name="delivery_state",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["next_at"], condition=Q(state="pending"), name="delivery_due"),
            models.Index(fields=["webhook", "created_at", "id"], name="delivery_log"),
            models.Index(fields=["created_at"], name="delivery_created"),
        ]


class DeliveryAttempt(models.Model):
    """One attempt, written before it is made; without an outcome nobody knows whether it arrived."""

    id = primary_key()
    delivery = models.ForeignKey(Delivery, on_delete=models.CASCADE, related_name="tries")
    number = models.BigIntegerField()
    """The delivery's lease epoch: counts all attempts, those after "send again" too."""
    started_at = models.DateTimeField()
    outcome = WordField(blank=True, default="")
    """`delivered`, `failed`, `blocked` (an address that must not be reached), `unknown` (its worker died)."""
    status = models.PositiveSmallIntegerField(null=True, blank=True)
    latency_ms = models.PositiveIntegerField(null=True, blank=True)
    reason = models.CharField(max_length=300, blank=True, default="")

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["delivery", "number"], name="delivery_attempt_number"),
            models.UniqueConstraint(fields=["delivery"], condition=Q(outcome=""), name="delivery_attempt_one_open"),
        ]


class FanoutCursor(models.Model):
    """How far one event chain has been made into notifications."""

    chain = models.UUIDField(primary_key=True)
    seq = models.BigIntegerField(default=0)


class NotificationMark(models.Model):
    """Something watched was told once; the key names it and, where it is told again, the day or week."""

    key = models.CharField(primary_key=True, max_length=200)
    at = models.DateTimeField(db_index=True)


class OutboxMail(models.Model):
    """A mail that was kept instead of sent: the demo has no mail server and says so."""

    id = primary_key()
    message_id = models.CharField(max_length=200, unique=True)
    recipient = models.CharField(max_length=254)
    subject = models.CharField(max_length=300)
    text = models.TextField()
    at = models.DateTimeField()

    class Meta:
        indexes: ClassVar[list[models.Index]] = [models.Index(fields=["at", "id"], name="outbox_mail_at")]
