"""Rates and budgets of keys, and gateways' parts of budgets."""

import uuid

import django.db.models.deletion
from django.db import migrations, models

import tenants.models.fields
from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Rates and budgets of keys, and gateways' parts of budgets."""

    dependencies = [
        ("tenants", "0039_usage_times"),
    ]

    operations = [
        migrations.AddField(
            model_name="endpointkey",
            name="lineage",
            field=models.CharField(blank=True, db_default="", default="", max_length=16),
        ),
        migrations.AddField(
            model_name="endpointkey",
            name="requests_per_minute",
            field=models.PositiveIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="endpointkey",
            name="tokens_per_minute",
            field=models.PositiveBigIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="endpointkey",
            name="budget_tokens",
            field=models.PositiveBigIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="endpointkey",
            name="budget_money",
            field=models.DecimalField(blank=True, decimal_places=2, max_digits=12, null=True),
        ),
        migrations.AddField(
            model_name="endpointkey",
            name="budget_period",
            field=tenants.models.fields.WordField(db_default="month", default="month", max_length=32),
        ),
        migrations.AddConstraint(
            model_name="endpointkey",
            constraint=models.CheckConstraint(
                condition=models.Q(("budget_period__in", ["day", "week", "month"])), name="endpoint_key_period"
            ),
        ),
        migrations.AddConstraint(
            model_name="endpointkey",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("requests_per_minute__isnull", True), ("requests_per_minute__gt", 0), _connector="OR"),
                    models.Q(("tokens_per_minute__isnull", True), ("tokens_per_minute__gt", 0), _connector="OR"),
                    models.Q(("budget_tokens__isnull", True), ("budget_tokens__gt", 0), _connector="OR"),
                    models.Q(("budget_money__isnull", True), ("budget_money__gt", 0), _connector="OR"),
                ),
                name="endpoint_key_limits",
            ),
        ),
        migrations.AddField(
            model_name="gatewayreplica",
            name="lease_serial",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.CreateModel(
            name="BudgetLease",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("budget", models.CharField(max_length=60)),
                ("period_start", models.DateTimeField()),
                ("granted", models.BigIntegerField()),
                ("spent", models.BigIntegerField(default=0)),
                ("memory", models.UUIDField(blank=True, null=True)),
                ("lost", models.BigIntegerField(db_default=0, default=0)),
                ("updated_at", models.DateTimeField()),
                (
                    "gateway",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.gatewayreplica"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["tenant", "budget", "period_start"], name="budget_lease_tenant"),
                    models.Index(fields=["period_start"], name="budget_lease_period"),
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("gateway", "budget", "period_start"), name="budget_lease_unique"),
                    models.CheckConstraint(
                        condition=models.Q(("granted__gte", 0), ("spent__gte", 0), ("lost__gte", 0)),
                        name="budget_lease_amounts",
                    ),
                ],
            },
        ),
        migrations.RunSQL(statements("0040_rates_and_leases.sql"), migrations.RunSQL.noop),
    ]
