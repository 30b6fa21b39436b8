"""What endpoints look like from minute to minute, their logs, benchmarks, addresses seen from outside."""

import uuid

import django.contrib.postgres.fields
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import tenants.models.fields
from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """What endpoints look like from minute to minute, their logs, benchmarks, addresses seen from outside."""

    dependencies = [
        ("tenants", "0044_moves"),
    ]

    operations = [
        migrations.CreateModel(
            name="EndpointMinute",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("endpoint_id", models.UUIDField()),
                ("minute", models.DateTimeField()),
                ("requests", models.BigIntegerField(db_default=0, default=0)),
                ("errors", models.BigIntegerField(db_default=0, default=0)),
                ("prompt_tokens", models.BigIntegerField(db_default=0, default=0)),
                ("completion_tokens", models.BigIntegerField(db_default=0, default=0)),
                (
                    "ttft_counts",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.BigIntegerField(), db_default=[], default=list, size=None
                    ),
                ),
                ("running", models.PositiveIntegerField(blank=True, null=True)),
                ("queued", models.PositiveIntegerField(blank=True, null=True)),
                ("kv_cache", models.FloatField(blank=True, null=True)),
                ("prefix_queries", models.BigIntegerField(blank=True, null=True)),
                ("prefix_hits", models.BigIntegerField(blank=True, null=True)),
                (
                    "gateway",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.gatewayreplica"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["minute"], name="endpoint_minute_minute")],
                "constraints": [
                    models.UniqueConstraint(fields=("endpoint_id", "minute", "gateway"), name="endpoint_minute_unique"),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("completion_tokens__gte", 0),
                            ("errors__gte", 0),
                            ("prompt_tokens__gte", 0),
                            ("requests__gte", 0),
                            ("errors__lte", models.F("requests")),
                        ),
                        name="endpoint_minute_sums",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("kv_cache__isnull", True),
                            models.Q(("kv_cache__gte", 0), ("kv_cache__lte", 1)),
                            _connector="OR",
                        ),
                        name="endpoint_minute_cache",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="EndpointLog",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("tail", models.PositiveSmallIntegerField()),
                ("asked_at", models.DateTimeField()),
                ("answered_at", models.DateTimeField(blank=True, null=True)),
                ("lines", models.JSONField(default=list)),
                ("error", models.CharField(blank=True, default="", max_length=300)),
                (
                    "endpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.endpoint"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["asked_at"], name="endpoint_log_asked")],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("answered_at__isnull", True)),
                        fields=("endpoint", "tail"),
                        name="endpoint_log_asked_once",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("tail__gte", 1), ("tail__lte", 1000)), name="endpoint_log_tail"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Benchmark",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("bm"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("revision", models.PositiveIntegerField()),
                ("load", models.JSONField()),
                ("state", tenants.models.fields.WordField(default="waiting", max_length=32)),
                ("sent", models.PositiveIntegerField(default=0)),
                ("failed", models.PositiveIntegerField(default=0)),
                ("result", models.JSONField(default=dict)),
                ("reason", models.CharField(blank=True, default="", max_length=300)),
                ("key_id", models.CharField(blank=True, default="", max_length=16)),
                ("created_at", models.DateTimeField()),
                ("started_at", models.DateTimeField(blank=True, null=True)),
                ("heard_at", models.DateTimeField(blank=True, null=True)),
                ("cancel_asked_at", models.DateTimeField(blank=True, null=True)),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
                (
                    "author",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "endpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="benchmarks", to="tenants.endpoint"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["endpoint", "created_at", "id"], name="benchmark_endpoint"),
                    models.Index(
                        condition=models.Q(("ended_at__isnull", True)), fields=["created_at"], name="benchmark_live"
                    ),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("state__in", ["waiting", "running", "done", "failed", "cancelled"])),
                        name="benchmark_state",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("ended_at__isnull", True)),
                        fields=("endpoint",),
                        name="benchmark_one_at_once",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("ended_at__isnull", True), ("state__in", ["running", "waiting"])),
                            models.Q(
                                ("ended_at__isnull", False),
                                models.Q(("state__in", ["running", "waiting"]), _negated=True),
                            ),
                            _connector="OR",
                        ),
                        name="benchmark_ended",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("failed__lte", models.F("sent"))), name="benchmark_counts"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="AddressCheck",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("address", models.CharField(max_length=300)),
                ("ok", models.BooleanField()),
                ("findings", models.JSONField(default=list)),
                ("checked_at", models.DateTimeField()),
                ("verified_at", models.DateTimeField(blank=True, null=True)),
                ("due_at", models.DateTimeField()),
                (
                    "endpoint",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="address_check",
                        to="tenants.endpoint",
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["due_at"], name="address_check_due")],
            },
        ),
        migrations.RunSQL(statements("0045_endpoint_page.sql"), migrations.RunSQL.noop),
    ]
