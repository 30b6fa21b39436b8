"""Reports of the doctor."""

import uuid

from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Reports of the doctor."""

    dependencies = [
        ("tenants", "0017_budgets"),
    ]

    operations = [
        migrations.CreateModel(
            name="SystemReport",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("asked_by", models.UUIDField(null=True)),
                ("asked_at", models.DateTimeField()),
                ("thorough", models.BooleanField(default=False)),
                ("done_at", models.DateTimeField(blank=True, null=True)),
                ("took_ms", models.PositiveIntegerField(blank=True, null=True)),
                ("worker", models.CharField(blank=True, default="", max_length=80)),
                ("release", models.CharField(blank=True, default="", max_length=40)),
                ("results", models.JSONField(blank=True, default=list)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("done_at__isnull", True)),
                        fields=["asked_at", "id"],
                        name="system_report_asked",
                    ),
                    models.Index(
                        condition=models.Q(("done_at__isnull", False)), fields=["done_at"], name="system_report_done_at"
                    ),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("done_at__isnull", True),
                            models.Q(("took_ms__isnull", False), ("worker__gt", "")),
                            _connector="OR",
                        ),
                        name="system_report_done",
                    ),
                ],
            },
        ),
        migrations.RunSQL(statements("0018_system_reports.sql"), migrations.RunSQL.noop),
    ]
