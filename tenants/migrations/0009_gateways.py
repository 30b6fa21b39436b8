"""Rendered configurations of gateways, sums of usage, and what usage is about after its object is purged."""

import uuid

import django.db.models.deletion
from django.db import migrations, models

import tenants.models.fields
from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Rendered configurations of gateways, sums of usage, and what usage is about after its object is purged."""

    dependencies = [
        ("tenants", "0008_fast_claim"),
    ]

    operations = [
        migrations.AddField(
            model_name="gatewayreplica", name="rendered", field=models.TextField(blank=True, default="")
        ),
        migrations.AddField(
            model_name="gatewayreplica", name="rendered_version", field=models.BigIntegerField(default=0)
        ),
        migrations.CreateModel(
            name="UsageSubject",
            fields=[
                ("allocation_id", models.UUIDField(primary_key=True, serialize=False)),
                ("kind", tenants.models.fields.WordField(max_length=32)),
                ("name", models.CharField(max_length=40)),
                ("short_id", models.CharField(max_length=16)),
                ("storage_gib", models.IntegerField(default=0)),
                ("units", models.JSONField(default=dict)),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="EndpointUsage",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("endpoint_id", models.UUIDField()),
                ("key_id", models.CharField(blank=True, default="", max_length=64)),
                ("revision", models.PositiveIntegerField(default=0)),
                ("hour", models.DateTimeField()),
                ("requests", models.BigIntegerField()),
                ("errors", models.BigIntegerField()),
                ("prompt_tokens", models.BigIntegerField()),
                ("completion_tokens", models.BigIntegerField()),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["tenant", "hour"], name="endpoint_usage_tenant")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("endpoint_id", "key_id", "revision", "hour", "tenant"), name="endpoint_usage_unique"
                    )
                ],
            },
        ),
        migrations.RunSQL(statements("0009_gateways.sql"), migrations.RunSQL.noop),
    ]
