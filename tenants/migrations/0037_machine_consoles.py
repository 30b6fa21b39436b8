"""Consoles of machines that people asked for."""

import uuid

import django.db.models.deletion
from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Consoles of machines that people asked for."""

    dependencies = [
        ("tenants", "0036_machine_builds"),
    ]

    operations = [
        migrations.CreateModel(
            name="MachineConsole",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("person_id", models.UUIDField()),
                ("asked_at", models.DateTimeField()),
                ("answered_at", models.DateTimeField(blank=True, null=True)),
                ("sealed", models.BinaryField(null=True)),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("simulated", models.BooleanField(default=False)),
                ("error", models.CharField(blank=True, default="", max_length=300)),
                (
                    "machine",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.machine"
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
                    models.Index(
                        condition=models.Q(("answered_at__isnull", True)),
                        fields=["asked_at"],
                        name="machine_console_asked",
                    ),
                    models.Index(fields=["asked_at", "id"], name="machine_console_age"),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("sealed__isnull", True),
                            models.Q(("answered_at__isnull", False), ("error", ""), ("expires_at__isnull", False)),
                            _connector="OR",
                        ),
                        name="machine_console_answered",
                    ),
                ],
            },
        ),
        migrations.RunSQL(statements("0037_machine_consoles.sql"), migrations.RunSQL.noop),
    ]
