"""How fast answers came: times in the hourly sums of what endpoints were used."""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):
    """How fast answers came: times in the hourly sums of what endpoints were used."""

    dependencies = [
        ("tenants", "0038_unit_sizes"),
    ]

    operations = [
        *(
            migrations.AddField(
                model_name="endpointusage", name=name, field=models.BigIntegerField(db_default=0, default=0)
            )
            for name in ("duration_ms", "ttft_ms", "between_us", "gaps")
        ),
        *(
            migrations.AddField(
                model_name="endpointusage",
                name=name,
                field=django.contrib.postgres.fields.ArrayField(
                    base_field=models.BigIntegerField(), db_default=[], default=list, size=None
                ),
            )
            for name in ("ttft_counts", "between_counts")
        ),
    ]
