"""Rows of the estate are written by the platform only."""

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Rows of the estate are written by the platform only."""

    dependencies = [
        ("tenants", "0018_system_reports"),
    ]

    operations = [
        migrations.RunSQL(statements("0019_platform_writes.sql"), migrations.RunSQL.noop),
    ]
