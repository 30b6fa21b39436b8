"""The probe of a claim by an index of its own."""

import django.db.models.expressions
from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0011_usage_order"),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name="gpudevice",
            name="gpu_device_fast_path",
        ),
        migrations.AddIndex(
            model_name="gpudevice",
            index=models.Index(
                models.F("product"),
                models.F("free"),
                django.db.models.expressions.CombinedExpression(models.F("number"), "+", models.Value(0)),
                condition=models.Q(("placeable", True)),
                name="gpu_device_claim",
            ),
        ),
        migrations.RunSQL(statements("0012_claim_index.sql"), migrations.RunSQL.noop),
    ]
