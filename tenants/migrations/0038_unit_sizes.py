"""Sizes that units had, so that usage is counted by the size of its time."""

import uuid

import django.db.models.deletion
from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Sizes that units had, so that usage is counted by the size of its time."""

    dependencies = [
        ("tenants", "0037_machine_consoles"),
    ]

    operations = [
        migrations.AddField(
            model_name="unit",
            name="sized_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="machine",
            name="resizes",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="machine",
            name="fitted",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddConstraint(
            model_name="machine",
            constraint=models.CheckConstraint(
                condition=models.Q(("fitted__lte", models.F("resizes"))), name="machine_fitted"
            ),
        ),
        migrations.CreateModel(
            name="UnitSize",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("allocation_id", models.UUIDField()),
                ("unit_id", models.UUIDField()),
                ("vcpu", models.IntegerField()),
                ("memory_gib", models.IntegerField()),
                ("disk_gib", models.IntegerField()),
                ("until", models.DateTimeField()),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["tenant", "until"], name="unit_size_tenant"),
                    models.Index(fields=["allocation_id"], name="unit_size_allocation"),
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("unit_id", "until"), name="unit_size_until"),
                    models.CheckConstraint(
                        condition=models.Q(("vcpu__gte", 0), ("memory_gib__gte", 0), ("disk_gib__gte", 0)),
                        name="unit_size_amounts",
                    ),
                ],
            },
        ),
        migrations.RunSQL(statements("0038_unit_sizes.sql"), migrations.RunSQL.noop),
    ]
