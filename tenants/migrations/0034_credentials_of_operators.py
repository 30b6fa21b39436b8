"""A member who has a role on the platform, too, may ask for a credential of his namespace."""

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """A member who has a role on the platform, too, may ask for a credential of his namespace."""

    dependencies = [
        ("tenants", "0033_unsettle"),
    ]

    operations = [
        migrations.RunSQL(statements("0034_credentials_of_operators.sql"), migrations.RunSQL.noop),
    ]
