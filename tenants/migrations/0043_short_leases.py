"""Parts of budgets: who lacks, so that others give back; limits that have ended stay limits."""

from django.db import migrations, models

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Parts of budgets: who lacks, so that others give back; limits that have ended stay limits."""

    dependencies = [
        ("tenants", "0042_served_models"),
    ]

    operations = [
        migrations.AddField(
            model_name="budgetlease",
            name="short",
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.RunSQL(
            statements("0043_short_leases.sql"),
            "DROP FUNCTION budget_parts(uuid, text, text, timestamptz, timestamptz)",
        ),
    ]
