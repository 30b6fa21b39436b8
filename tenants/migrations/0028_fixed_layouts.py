"""GPUs of a fixed layout are found by an index of their own, and the ledger refuses what is not carved there."""

import django.db.models.expressions
from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """GPUs of a fixed layout are found by an index of their own, and the ledger refuses what is not carved there."""

    dependencies = [
        ("tenants", "0026_namespace_credentials"),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name="gpudevice",
            name="gpu_device_claim",
        ),
        migrations.RemoveIndex(
            model_name="host",
            name="host_whole_gpus",
        ),
        migrations.AddField(
            model_name="gpudevice",
            name="layout",
            field=models.TextField(blank=True, db_default="", default="", editable=False),
        ),
        migrations.AddField(
            model_name="host",
            name="carved_gpus",
            field=models.IntegerField(db_default=0, default=0),
        ),
        migrations.AddIndex(
            model_name="gpudevice",
            index=models.Index(
                models.F("product"),
                models.F("free"),
                django.db.models.expressions.CombinedExpression(models.F("number"), "+", models.Value(0)),
                condition=models.Q(("placeable", True), models.Q(("layout_change", "fixed"), _negated=True)),
                name="gpu_device_claim",
            ),
        ),
        migrations.AddIndex(
            model_name="gpudevice",
            index=models.Index(
                models.F("provider"),
                models.F("product"),
                models.F("layout"),
                models.F("free"),
                django.db.models.expressions.CombinedExpression(models.F("number"), "+", models.Value(0)),
                condition=models.Q(
                    ("free__gt", 0),
                    ("layout_change", "fixed"),
                    ("placeable", True),
                    models.Q(
                        models.Q(("layout", ""), _negated=True),
                        models.Q(("mode__in", ["mig", "unknown"]), _negated=True),
                        _connector="OR",
                    ),
                ),
                name="gpu_device_fixed",
            ),
        ),
        migrations.AddIndex(
            model_name="host",
            index=models.Index(
                condition=models.Q(("gpu_count__gt", models.F("carved_gpus")), ("placeable", True)),
                fields=["gpu_product", "empty_gpus", "id"],
                name="host_whole_gpus",
            ),
        ),
        migrations.AddConstraint(
            model_name="host",
            constraint=models.CheckConstraint(condition=models.Q(("carved_gpus__gte", 0)), name="host_carved_gpus"),
        ),
        migrations.RunSQL(statements("0028_fixed_layouts.sql"), migrations.RunSQL.noop),
    ]
