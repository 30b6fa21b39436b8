"""The fast path of a claim as one probe."""

from typing import ClassVar

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """The fast path of a claim as one probe."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("tenants", "0007_queue_position")]
    operations: ClassVar[list[migrations.RunSQL]] = [
        migrations.RunSQL(statements("0008_fast_claim.sql"), migrations.RunSQL.noop),
    ]
