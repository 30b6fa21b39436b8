"""A hold whose unit was switched off is a guess again: its host chooses anew at the next start."""

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """A hold whose unit was switched off is a guess again: its host chooses anew at the next start."""

    dependencies = [
        ("tenants", "0032_ssh_certificates"),
    ]

    operations = [
        migrations.RunSQL(statements("0033_unsettle.sql"), migrations.RunSQL.noop),
    ]
