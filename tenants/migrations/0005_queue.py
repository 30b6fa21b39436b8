"""Charges of boundaries, and who waits ahead in the queue."""

import django.db.models.deletion
from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0004_people"),
    ]

    operations = [
        migrations.RunSQL(statements("0005_queue.sql"), migrations.RunSQL.noop),
        migrations.AddField(
            model_name="quotacharge",
            name="boundary",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.CASCADE, related_name="charges", to="tenants.boundary"
            ),
        ),
        migrations.AlterField(
            model_name="quotacharge",
            name="allocation",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.CASCADE, related_name="charges", to="tenants.allocation"
            ),
        ),
        migrations.AddConstraint(
            model_name="quotacharge",
            constraint=models.UniqueConstraint(fields=("boundary", "dimension"), name="quota_charge_boundary"),
        ),
        migrations.AddConstraint(
            model_name="quotacharge",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("allocation__isnull", False), ("boundary__isnull", True)),
                    models.Q(("allocation__isnull", True), ("boundary__isnull", False)),
                    _connector="OR",
                ),
                name="quota_charge_one_owner",
            ),
        ),
    ]
