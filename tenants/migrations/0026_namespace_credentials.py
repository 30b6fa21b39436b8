"""Credentials that let people into their namespaces."""

import uuid

import django.db.models.deletion
from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Credentials that let people into their namespaces."""

    dependencies = [
        ("tenants", "0025_stock_index"),
    ]

    operations = [
        migrations.CreateModel(
            name="NamespaceCredential",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("person_id", models.UUIDField()),
                ("seconds", models.PositiveIntegerField()),
                ("asked_at", models.DateTimeField()),
                ("answered_at", models.DateTimeField(blank=True, null=True)),
                ("sealed", models.BinaryField(null=True)),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("error", models.CharField(blank=True, default="", max_length=300)),
                (
                    "namespace",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.namespace"
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
                        name="namespace_credential_asked",
                    ),
                    models.Index(fields=["asked_at", "id"], name="namespace_credential_age"),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("sealed__isnull", True),
                            models.Q(("answered_at__isnull", False), ("error", ""), ("expires_at__isnull", False)),
                            _connector="OR",
                        ),
                        name="namespace_credential_answered",
                    ),
                ],
            },
        ),
        migrations.RunSQL(statements("0026_namespace_credentials.sql"), migrations.RunSQL.noop),
    ]
