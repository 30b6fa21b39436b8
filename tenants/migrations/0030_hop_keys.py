"""A revision keeps the key that its model servers want to be shown, sealed."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """A revision keeps the key that its model servers want to be shown, sealed."""

    dependencies = [
        ("tenants", "0029_layout_plans"),
    ]

    operations = [
        migrations.AddField(
            model_name="revision", name="hop_key_sealed", field=models.BinaryField(blank=True, null=True)
        ),
    ]
