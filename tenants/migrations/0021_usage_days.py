"""The roll-up of what is billed, by day."""

import uuid

import django.db.models.deletion
from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """The roll-up of what is billed, by day."""

    dependencies = [
        ("tenants", "0020_promised_ends"),
    ]

    operations = [
        migrations.CreateModel(
            name="UsageRollup",
            fields=[
                (
                    "tenant",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="+",
                        serialize=False,
                        to="tenants.tenant",
                    ),
                ),
                ("through", models.DateTimeField()),
                ("ends", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="UsageChange",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("allocation_id", models.UUIDField(null=True)),
                ("at", models.DateTimeField()),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["tenant", "at"], name="usage_change_tenant")],
            },
        ),
        migrations.CreateModel(
            name="UsageDay",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("day", models.DateField()),
                ("item", models.CharField(max_length=80)),
                ("quantity", models.DecimalField(decimal_places=6, max_digits=30)),
                (
                    "provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.provider"
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
                "constraints": [
                    models.UniqueConstraint(fields=("tenant", "day", "provider", "item"), name="usage_day_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="UsageStanding",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("item", models.CharField(max_length=80)),
                ("since", models.DateTimeField()),
                ("amount", models.DecimalField(decimal_places=6, max_digits=30)),
                ("to_come", models.DecimalField(decimal_places=6, max_digits=30)),
                (
                    "provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.provider"
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
                "constraints": [
                    models.UniqueConstraint(
                        fields=("tenant", "provider", "item", "since"), name="usage_standing_unique"
                    )
                ],
            },
        ),
        migrations.RunSQL(statements("0021_usage_days.sql"), migrations.RunSQL.noop),
    ]
