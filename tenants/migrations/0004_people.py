"""Look-ups about people beyond row-level security, and the counter of log-in attempts."""

from typing import ClassVar

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Look-ups about people beyond row-level security, and the counter of log-in attempts."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("tenants", "0003_ledger")]
    operations: ClassVar[list[migrations.RunSQL]] = [
        migrations.RunSQL(statements("0004_people.sql"), migrations.RunSQL.noop),
    ]
