"""Links that open accounts, the shared cache, and row-level security over the log-in library's tables."""

import uuid

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import tenants.models.fields
from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Links that open accounts, the shared cache, and row-level security over the log-in library's tables."""

    dependencies = [
        ("tenants", "0014_live"),
        ("account", "0009_emailaddress_unique_primary_email"),
        ("socialaccount", "0006_alter_socialaccount_extra_data"),
        ("mfa", "0003_authenticator_type_uniq"),
        ("usersessions", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="AccountLink",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("kind", tenants.models.fields.WordField(max_length=32)),
                ("digest", models.BinaryField(max_length=32, unique=True)),
                ("email", models.EmailField(blank=True, default="", max_length=254)),
                ("role", models.SmallIntegerField(null=True)),
                ("forget_factors", models.BooleanField(default=False)),
                ("reason", models.CharField(blank=True, default="", max_length=500)),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("used_at", models.DateTimeField(null=True)),
                ("withdrawn_at", models.DateTimeField(null=True)),
                (
                    "created_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
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
                    "used_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["tenant", "created_at"], name="account_link_tenant"),
                    models.Index(fields=["person"], name="account_link_person"),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("kind__in", ["invitation", "set-up", "recovery"])),
                        name="account_link_kind",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("kind", "invitation"),
                                ("person", None),
                                ("role__in", [1, 2, 3]),
                                ("tenant__isnull", False),
                                models.Q(("email", ""), _negated=True),
                            ),
                            models.Q(("kind", "set-up"), ("person", None), ("role", None), ("tenant", None)),
                            models.Q(("kind", "recovery"), ("person__isnull", False), ("role", None), ("tenant", None)),
                            _connector="OR",
                        ),
                        name="account_link_whole",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("used_at__isnull", True), ("withdrawn_at__isnull", True), _connector="OR"),
                        name="account_link_one_end",
                    ),
                ],
            },
        ),
        migrations.RunSQL(statements("0015_accounts.sql"), migrations.RunSQL.noop),
    ]
