"""Triggers that tell live pages what changed."""

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0013_notifications"),
    ]

    operations = [
        migrations.RunSQL(statements("0014_live.sql"), migrations.RunSQL.noop),
    ]
