"""Monthly budgets of tenants."""

import uuid

import django.db.models.deletion
from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Monthly budgets of tenants."""

    dependencies = [
        ("tenants", "0016_second_factors"),
    ]

    operations = [
        migrations.CreateModel(
            name="Budget",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("amount", models.DecimalField(decimal_places=2, max_digits=14)),
                ("currency", models.CharField(max_length=3)),
                ("author_id", models.UUIDField(null=True)),
                ("created_at", models.DateTimeField()),
                ("looked_at", models.DateTimeField(null=True)),
                ("version", models.PositiveIntegerField(default=1)),
                (
                    "tenant",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, related_name="budget", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["looked_at"], name="budget_looked_at")],
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("amount__gt", 0)), name="budget_amount"),
                    models.CheckConstraint(
                        condition=models.Q(("currency__regex", "^[A-Z]{3}$")), name="budget_currency"
                    ),
                ],
            },
        ),
        migrations.RunSQL(statements("0017_budgets.sql"), migrations.RunSQL.noop),
    ]
