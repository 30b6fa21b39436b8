"""Certificates of endpoints: a gateway's call reads the one secret that its certificate is made of."""

from django.db import migrations

from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Certificates of endpoints: a gateway's call reads the one secret that its certificate is made of."""

    dependencies = [
        ("tenants", "0046_key_scopes"),
    ]

    operations = [
        migrations.RunSQL(
            statements("0047_endpoint_certificates.sql"), "DROP FUNCTION gateway_certificate_secret(uuid)"
        ),
    ]
