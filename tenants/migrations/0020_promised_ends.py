"""Use ends with the limit that was granted for it, also before it is Ready."""

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Use ends with the limit that was granted for it, also before it is Ready."""

    dependencies = [
        ("tenants", "0019_platform_writes"),
    ]

    operations = [
        migrations.RunSQL(statements("0020_promised_ends.sql"), migrations.RunSQL.noop),
    ]
