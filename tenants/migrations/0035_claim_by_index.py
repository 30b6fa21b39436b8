"""A claim takes GPUs in the order of their index, whatever the statistics say."""

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """A claim takes GPUs in the order of their index, whatever the statistics say."""

    dependencies = [
        ("tenants", "0034_credentials_of_operators"),
    ]

    operations = [
        migrations.RunSQL(statements("0035_claim_by_index.sql"), migrations.RunSQL.noop),
    ]
