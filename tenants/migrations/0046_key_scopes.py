"""What a key of an endpoint may ask for."""

import django.contrib.postgres.fields
from django.db import migrations, models

import tenants.models.fields
import tenants.models.product


class Migration(migrations.Migration):
    dependencies = [("tenants", "0045_endpoint_page")]

    operations = [
        migrations.AddField(
            model_name="endpointkey",
            name="scopes",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=tenants.models.fields.WordField(max_length=32),
                db_default=["inference"],
                default=tenants.models.product.everything,
                size=None,
            ),
        ),
        migrations.AddConstraint(
            model_name="endpointkey",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("scopes__contained_by", ["inference", "chat", "completions", "embeddings", "models"]),
                    ("scopes__len__gt", 0),
                ),
                name="endpoint_key_scopes",
            ),
        ),
    ]
