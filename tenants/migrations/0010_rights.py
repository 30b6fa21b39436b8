"""Writing people, tenants, limits and catalogues needs more than seeing them."""

from typing import ClassVar

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Writing people, tenants, limits and catalogues needs more than seeing them."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("tenants", "0009_gateways")]
    operations: ClassVar[list[migrations.RunSQL]] = [
        migrations.RunSQL(statements("0010_rights.sql"), migrations.RunSQL.noop),
    ]
