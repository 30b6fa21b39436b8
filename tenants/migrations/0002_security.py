"""Row-level security, rights, event chain, quota position."""

from typing import ClassVar

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Row-level security, rights, event chain, quota position."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("tenants", "0001_tables")]
    operations: ClassVar[list[migrations.RunSQL]] = [
        migrations.RunSQL(statements("0002_security.sql"), migrations.RunSQL.noop),
    ]
