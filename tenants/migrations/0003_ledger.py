"""The ledger's functions."""

from typing import ClassVar

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """The ledger's functions."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("tenants", "0002_security")]
    operations: ClassVar[list[migrations.RunSQL]] = [
        migrations.RunSQL(statements("0003_ledger.sql"), migrations.RunSQL.noop),
    ]
