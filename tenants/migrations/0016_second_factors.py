"""Who has a second factor: the fact alone, for whoever sees the person."""

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Who has a second factor: the fact alone, for whoever sees the person."""

    dependencies = [
        ("tenants", "0015_accounts"),
    ]

    operations = [
        migrations.RunSQL(statements("0016_second_factors.sql"), migrations.RunSQL.noop),
    ]
