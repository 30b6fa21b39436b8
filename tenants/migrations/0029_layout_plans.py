"""Plans over hosts may change the MIG layout of GPUs, and may fail at it."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Plans over hosts may change the MIG layout of GPUs, and may fail at it."""

    dependencies = [
        ("tenants", "0028_fixed_layouts"),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="hostplan",
            name="host_plan_state",
        ),
        migrations.AddField(
            model_name="hostplan",
            name="layout",
            field=models.JSONField(blank=True, db_default=models.Value({}, models.JSONField()), default=dict),
        ),
        migrations.AddConstraint(
            model_name="hostplan",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("state__in", ["running", "done", "cancelled"]),
                    models.Q(("kind", "layout"), ("state", "failed")),
                    _connector="OR",
                ),
                name="host_plan_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="hostplan",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("kind", "layout"), models.Q(("layout", {}), _negated=True)),
                    models.Q(("kind__in", ["drain", "repair", "return"]), ("layout", {})),
                    _connector="OR",
                ),
                name="host_plan_layout",
            ),
        ),
    ]
