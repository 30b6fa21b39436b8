"""VLANs that boundaries have."""

import uuid

import django.db.models.deletion
from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """VLANs that boundaries have."""

    dependencies = [
        ("tenants", "0030_hop_keys"),
    ]

    operations = [
        migrations.CreateModel(
            name="Vlan",
            fields=[
                (
                    "id",
                    models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False),
                ),
                ("number", models.PositiveSmallIntegerField()),
                ("taken_at", models.DateTimeField()),
                (
                    "boundary",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="vlan", to="tenants.boundary"
                    ),
                ),
                (
                    "provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.provider"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("provider", "number"), name="vlan_once"),
                    models.CheckConstraint(
                        condition=models.Q(("number__gte", 1), ("number__lte", 4094)), name="vlan_number"
                    ),
                ],
            },
        ),
        migrations.RunSQL(statements("0031_vlans.sql"), migrations.RunSQL.noop),
    ]
