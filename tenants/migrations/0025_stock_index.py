"""Stock is counted from few rows: GPUs that are neither free nor taken, closed ones, what units ask for."""

import django.db.models.expressions
from django.db import migrations, models


class Migration(migrations.Migration):
    """Stock is counted from few rows: GPUs that are neither free nor taken, closed ones, what units ask for."""

    dependencies = [
        ("tenants", "0022_access_reviewed"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="gpudevice",
            index=models.Index(
                condition=models.Q(
                    ("free__gt", 0),
                    ("placeable", True),
                    models.Q(
                        (
                            "free",
                            django.db.models.expressions.CombinedExpression(
                                django.db.models.expressions.CombinedExpression(
                                    models.Value(1), "<<", models.F("slots")
                                ),
                                "-",
                                models.Value(1),
                            ),
                        ),
                        _negated=True,
                    ),
                ),
                fields=["product", "slots", "free"],
                include=("host",),
                name="gpu_device_part",
            ),
        ),
        migrations.AddIndex(
            model_name="gpudevice",
            index=models.Index(
                condition=models.Q(("placeable", False), ("removed_at__isnull", True)),
                fields=["product", "slots"],
                include=("host", "free"),
                name="gpu_device_closed",
            ),
        ),
        migrations.AddIndex(
            model_name="gpudevice",
            index=models.Index(
                condition=models.Q(("removed_at__isnull", False)), fields=["id"], name="gpu_device_removed"
            ),
        ),
        migrations.AddIndex(
            model_name="unit",
            index=models.Index(
                condition=models.Q(("product__gt", ""), ("released_at__isnull", True)),
                fields=["product", "profile"],
                name="unit_asked",
            ),
        ),
    ]
