"""Usage records of one window follow each other, whatever the clocks say."""

from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Usage records of one window follow each other, whatever the clocks say."""

    dependencies = [
        ("tenants", "0010_rights"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="usagerecord",
            index=models.Index(
                condition=models.Q(("held_to__isnull", False)), fields=["device", "held_to"], name="usage_record_ended"
            ),
        ),
        migrations.RunSQL(statements("0011_usage_order.sql"), migrations.RunSQL.noop),
    ]
