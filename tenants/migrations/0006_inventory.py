"""What a host may carry, and masks that follow holds rather than clocks."""

import django.contrib.postgres.fields
from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Hosts say which boundaries they take; recounts and holds that are no tenant's follow usage records."""

    dependencies = [
        ("tenants", "0005_queue"),
    ]

    operations = [
        migrations.AddField(
            model_name="host",
            name="boundary_kinds",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=16), blank=True, default=list, size=None
            ),
        ),
        migrations.RunSQL(statements("0006_inventory.sql"), migrations.RunSQL.noop),
    ]
