"""Moves of endpoints between boundaries."""

import uuid

import django.db.models.deletion
import django.db.models.functions.comparison
from django.conf import settings
from django.db import migrations, models

import tenants.models.fields
from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Moves of endpoints between boundaries."""

    dependencies = [
        ("tenants", "0043_short_leases"),
    ]

    operations = [
        migrations.CreateModel(
            name="Move",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("source", models.JSONField(default=dict)),
                ("target", models.JSONField(default=dict)),
                ("by_hand", models.BooleanField(default=False)),
                ("watch_s", models.PositiveIntegerField(default=300)),
                ("state", tenants.models.fields.WordField(max_length=32)),
                ("since", models.DateTimeField()),
                ("cut_at", models.DateTimeField(blank=True, null=True)),
                ("unready_since", models.DateTimeField(blank=True, null=True)),
                ("reason", models.CharField(blank=True, default="", max_length=500)),
                ("created_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
            ],
        ),
        migrations.AddField(
            model_name="endpoint",
            name="moving_to",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="tenants.endpoint",
            ),
        ),
        migrations.AddField(
            model_name="endpoint",
            name="seat",
            field=models.UUIDField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="endpoint",
            name="stands_in_for",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="+",
                to="tenants.endpoint",
            ),
        ),
        migrations.AddConstraint(
            model_name="endpoint",
            constraint=models.UniqueConstraint(
                django.db.models.functions.comparison.Coalesce("seat", "id"), name="endpoint_seat"
            ),
        ),
        migrations.AddConstraint(
            model_name="endpoint",
            constraint=models.CheckConstraint(
                condition=models.Q(("stands_in_for__isnull", True), ("moving_to__isnull", True), _connector="OR"),
                name="endpoint_stands_still",
            ),
        ),
        migrations.AddField(
            model_name="move",
            name="author",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="move",
            name="endpoint",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="moves", to="tenants.endpoint"
            ),
        ),
        migrations.AddField(
            model_name="move",
            name="stand_in",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.SET_NULL, related_name="+", to="tenants.endpoint"
            ),
        ),
        migrations.AddField(
            model_name="move",
            name="tenant",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"),
        ),
        migrations.AddIndex(
            model_name="move",
            index=models.Index(fields=["endpoint", "created_at", "id"], name="move_endpoint"),
        ),
        migrations.AddConstraint(
            model_name="move",
            constraint=models.UniqueConstraint(
                condition=models.Q(("ended_at__isnull", True)), fields=("endpoint",), name="move_one_at_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="move",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "state__in",
                        ["preparing", "beside", "cutting", "watching", "leaving", "undoing", "done", "undone"],
                    )
                ),
                name="move_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="move",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("ended_at__isnull", False), ("state__in", ["done", "undone"])),
                    models.Q(("ended_at__isnull", True), models.Q(("state__in", ["done", "undone"]), _negated=True)),
                    _connector="OR",
                ),
                name="move_ended",
            ),
        ),
        migrations.RunSQL(statements("0044_moves.sql"), migrations.RunSQL.noop),
    ]
