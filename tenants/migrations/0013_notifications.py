"""Notifications, webhooks and their deliveries, mail kept for the demo."""

import uuid

import django.contrib.postgres.fields
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import tenants.models.fields
from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Notifications, webhooks and their deliveries, mail kept for the demo."""

    dependencies = [
        ("tenants", "0012_claim_index"),
    ]

    operations = [
        migrations.CreateModel(
            name="FanoutCursor",
            fields=[
                ("chain", models.UUIDField(primary_key=True, serialize=False)),
                ("seq", models.BigIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="NotificationMark",
            fields=[
                ("key", models.CharField(max_length=200, primary_key=True, serialize=False)),
                ("at", models.DateTimeField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="OutboxMail",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("message_id", models.CharField(max_length=200, unique=True)),
                ("recipient", models.CharField(max_length=254)),
                ("subject", models.CharField(max_length=300)),
                ("text", models.TextField()),
                ("at", models.DateTimeField()),
            ],
            options={
                "indexes": [models.Index(fields=["at", "id"], name="outbox_mail_at")],
            },
        ),
        migrations.CreateModel(
            name="Webhook",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("name", tenants.models.fields.SlugField(max_length=40)),
                ("url", models.CharField(max_length=500)),
                (
                    "kinds",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=60), blank=True, default=list, size=None
                    ),
                ),
                ("secret_sealed", models.BinaryField(null=True)),
                ("previous_sealed", models.BinaryField(null=True)),
                ("previous_until", models.DateTimeField(blank=True, null=True)),
                ("author_id", models.UUIDField(null=True)),
                ("created_at", models.DateTimeField()),
                ("failing_since", models.DateTimeField(blank=True, null=True)),
                ("delivered_at", models.DateTimeField(blank=True, null=True)),
                ("disabled_at", models.DateTimeField(blank=True, null=True)),
                ("disabled_why", models.CharField(blank=True, default="", max_length=300)),
                ("removed_at", models.DateTimeField(blank=True, null=True)),
                ("version", models.PositiveIntegerField(default=1)),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="webhooks", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("medium", tenants.models.fields.WordField(max_length=32)),
                ("key", models.CharField(max_length=200, unique=True)),
                ("kind", models.CharField(max_length=60)),
                ("event_id", models.UUIDField(null=True)),
                ("body", models.TextField()),
                ("created_at", models.DateTimeField()),
                ("state", tenants.models.fields.WordField(default="pending", max_length=32)),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("next_at", models.DateTimeField()),
                ("give_up_at", models.DateTimeField()),
                ("lease_epoch", models.BigIntegerField(default=0)),
                ("lease_expires_at", models.DateTimeField(blank=True, null=True)),
                ("status", models.PositiveSmallIntegerField(blank=True, null=True)),
                ("reason", models.CharField(blank=True, default="", max_length=300)),
                ("done_at", models.DateTimeField(blank=True, null=True)),
                (
                    "person",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.tenant"
                    ),
                ),
                (
                    "webhook",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="deliveries",
                        to="tenants.webhook",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="DeliveryAttempt",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("number", models.BigIntegerField()),
                ("started_at", models.DateTimeField()),
                ("outcome", tenants.models.fields.WordField(blank=True, default="", max_length=32)),
                ("status", models.PositiveSmallIntegerField(blank=True, null=True)),
                ("latency_ms", models.PositiveIntegerField(blank=True, null=True)),
                ("reason", models.CharField(blank=True, default="", max_length=300)),
                (
                    "delivery",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="tries", to="tenants.delivery"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("delivery", "number"), name="delivery_attempt_number"),
                    models.UniqueConstraint(
                        condition=models.Q(("outcome", "")), fields=("delivery",), name="delivery_attempt_one_open"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Notification",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("kind", models.CharField(max_length=60)),
                ("event_id", models.UUIDField()),
                ("object_kind", tenants.models.fields.WordField(blank=True, default="", max_length=32)),
                ("object_id", models.UUIDField(null=True)),
                ("data", models.JSONField(default=dict)),
                ("at", models.DateTimeField()),
                ("created_at", models.DateTimeField()),
                ("read_at", models.DateTimeField(blank=True, null=True)),
                ("bell", models.BooleanField(default=True)),
                ("digest", models.BooleanField(default=False)),
                (
                    "person",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="notifications",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["person", "at", "id"], name="notification_bell"),
                    models.Index(
                        condition=models.Q(("bell", True), ("read_at__isnull", True)),
                        fields=["person"],
                        name="notification_unread",
                    ),
                    models.Index(
                        condition=models.Q(("digest", True)),
                        fields=["person", "created_at"],
                        name="notification_digest",
                    ),
                    models.Index(fields=["created_at"], name="notification_created"),
                ],
                "constraints": [models.UniqueConstraint(fields=("event_id", "person"), name="notification_once")],
            },
        ),
        migrations.CreateModel(
            name="NotificationPreference",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("kind", models.CharField(max_length=60)),
                ("bell", models.BooleanField()),
                ("mail", tenants.models.fields.WordField(max_length=32)),
                (
                    "person",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("person", "kind"), name="notification_preference_once"),
                    models.CheckConstraint(
                        condition=models.Q(("mail__in", ["off", "now", "digest"])), name="notification_preference_mail"
                    ),
                ],
            },
        ),
        migrations.AddIndex(
            model_name="webhook",
            index=models.Index(fields=["created_at", "id"], name="webhook_created"),
        ),
        migrations.AddConstraint(
            model_name="webhook",
            constraint=models.CheckConstraint(
                condition=models.Q(("name__regex", "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")), name="webhook_name"
            ),
        ),
        migrations.AddConstraint(
            model_name="webhook",
            constraint=models.UniqueConstraint(
                condition=models.Q(("removed_at__isnull", True)), fields=("tenant", "name"), name="webhook_name_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="webhook",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("removed_at__isnull", True),
                    models.Q(("previous_sealed__isnull", True), ("secret_sealed__isnull", True)),
                    _connector="OR",
                ),
                name="webhook_removed_forgets",
            ),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(condition=models.Q(("state", "pending")), fields=["next_at"], name="delivery_due"),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(fields=["webhook", "created_at", "id"], name="delivery_log"),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(fields=["created_at"], name="delivery_created"),
        ),
        migrations.AddConstraint(
            model_name="delivery",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("medium", "webhook"),
                        ("person__isnull", True),
                        ("tenant__isnull", False),
                        ("webhook__isnull", False),
                    ),
                    models.Q(
                        ("medium", "mail"),
                        ("person__isnull", False),
                        ("tenant__isnull", True),
                        ("webhook__isnull", True),
                    ),
                    _connector="OR",
                ),
                name="delivery_receiver",
            ),
        ),
        migrations.AddConstraint(
            model_name="delivery",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("done_at__isnull", True), ("state", "pending")),
                    models.Q(("done_at__isnull", False), ("state__in", ["delivered", "dead"])),
                    _connector="OR",
                ),
                name="delivery_state",
            ),
        ),
        migrations.RunSQL(statements("0013_notifications.sql"), migrations.RunSQL.noop),
    ]
