"""When a way in was looked at last, by an index of its own."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """When a way in was looked at last, by an index of its own."""

    dependencies = [
        ("tenants", "0021_usage_days"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="event",
            index=models.Index(
                condition=models.Q(("kind", "access.reviewed")),
                fields=["tenant_id", "object_id", "at"],
                name="event_access_reviewed",
            ),
        ),
    ]
