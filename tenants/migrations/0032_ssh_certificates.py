"""SSH certificates: a tenant's authority, what it signed, and which one a machine trusts."""

import uuid

import django.db.models.deletion
from django.db import migrations, models

from tenants.migrations.sql import statements


def _key() -> models.UUIDField:
    return models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)


class Migration(migrations.Migration):
    """SSH certificates: a tenant's authority, what it signed, and which one a machine trusts."""

    dependencies = [
        ("tenants", "0031_vlans"),
    ]

    operations = [
        migrations.CreateModel(
            name="SshAuthority",
            fields=[
                ("id", _key()),
                ("public_key", models.CharField(max_length=200)),
                ("sealed", models.BinaryField()),
                ("created_at", models.DateTimeField()),
                ("retired_at", models.DateTimeField(blank=True, null=True)),
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
                        condition=models.Q(("retired_at__isnull", True)),
                        fields=("tenant",),
                        name="ssh_authority_one_in_use",
                    ),
                ],
            },
        ),
        migrations.AddField(
            model_name="machine",
            name="ssh_authority",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="tenants.sshauthority",
            ),
        ),
        migrations.CreateModel(
            name="SshCertificate",
            fields=[
                ("id", _key()),
                ("serial", models.BigIntegerField()),
                ("principal_id", models.UUIDField()),
                ("person_id", models.UUIDField(blank=True, null=True)),
                ("fingerprint", models.CharField(max_length=64)),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("revoked_at", models.DateTimeField(blank=True, null=True)),
                (
                    "authority",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="certificates",
                        to="tenants.sshauthority",
                    ),
                ),
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
                    models.Index(fields=["authority", "expires_at"], name="ssh_certificate_live"),
                    models.Index(fields=["expires_at", "id"], name="ssh_certificate_age"),
                    models.Index(fields=["person_id", "expires_at"], name="ssh_certificate_person"),
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("authority", "serial"), name="ssh_certificate_serial"),
                    models.CheckConstraint(
                        condition=models.Q(("expires_at__gt", models.F("created_at")), ("serial__gt", 0)),
                        name="ssh_certificate_sane",
                    ),
                ],
            },
        ),
        migrations.RunSQL(statements("0032_ssh_certificates.sql"), migrations.RunSQL.noop),
    ]
