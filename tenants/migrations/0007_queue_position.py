"""Place in the queue, and the checkpoint's hash as a function."""

from typing import ClassVar

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Place in the queue, and the checkpoint's hash as a function."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("tenants", "0006_inventory")]
    operations: ClassVar[list[migrations.RunSQL]] = [
        migrations.RunSQL(statements("0007_queue_position.sql"), migrations.RunSQL.noop),
    ]
