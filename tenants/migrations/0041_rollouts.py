"""Rollouts of revisions, and endpoints at zero."""

import uuid

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import tenants.models.fields
import tenants.states
from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Rollouts of revisions, and endpoints at zero."""

    dependencies = [
        ("tenants", "0040_rates_and_leases"),
    ]

    operations = [
        migrations.CreateModel(
            name="Rollout",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("strategy", tenants.models.fields.WordField(max_length=32)),
                ("note", models.CharField(blank=True, default="", max_length=500)),
                ("steps", models.JSONField(default=list)),
                ("limits", models.JSONField(default=dict)),
                ("state", tenants.models.fields.WordField(max_length=32)),
                ("since", models.DateTimeField()),
                ("step", models.PositiveSmallIntegerField(default=0)),
                ("held_at", models.DateTimeField(blank=True, null=True)),
                ("surge", models.UUIDField(blank=True, null=True)),
                ("on_new", models.JSONField(default=list)),
                ("draining", models.UUIDField(blank=True, null=True)),
                ("leaving", models.UUIDField(blank=True, null=True)),
                ("unready_since", models.DateTimeField(blank=True, null=True)),
                ("baseline", models.JSONField(default=dict)),
                ("reason", models.CharField(blank=True, default="", max_length=500)),
                ("created_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
            ],
        ),
        migrations.AddField(
            model_name="endpoint",
            name="idle_after_s",
            field=models.PositiveIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="endpoint",
            name="idle_units",
            field=tenants.models.fields.WordField(db_default="keep", default="keep", max_length=32),
        ),
        migrations.AddField(
            model_name="endpoint",
            name="slept_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="endpoint",
            name="wake_wait_s",
            field=models.PositiveIntegerField(db_default=300, default=300),
        ),
        migrations.AddField(
            model_name="endpoint",
            name="woken_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddConstraint(
            model_name="endpoint",
            constraint=models.CheckConstraint(
                condition=models.Q(("idle_units__in", ["keep", "release"])), name="endpoint_idle_units"
            ),
        ),
        migrations.AddConstraint(
            model_name="endpoint",
            constraint=models.CheckConstraint(
                condition=models.Q(("idle_after_s__isnull", True), ("idle_after_s__gte", 60), _connector="OR"),
                name="endpoint_idle_after",
            ),
        ),
        migrations.AddConstraint(
            model_name="endpoint",
            constraint=models.CheckConstraint(
                condition=models.Q(("wake_wait_s__gte", 1), ("wake_wait_s__lte", 3600)), name="endpoint_wake_wait"
            ),
        ),
        migrations.AddField(
            model_name="rollout",
            name="author",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="rollout",
            name="before",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.revision"
            ),
        ),
        migrations.AddField(
            model_name="rollout",
            name="endpoint",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="rollouts", to="tenants.endpoint"
            ),
        ),
        migrations.AddField(
            model_name="rollout",
            name="revision",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.revision"
            ),
        ),
        migrations.AddField(
            model_name="rollout",
            name="tenant",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"),
        ),
        migrations.AddIndex(
            model_name="rollout",
            index=models.Index(fields=["endpoint", "created_at", "id"], name="rollout_endpoint"),
        ),
        migrations.AddConstraint(
            model_name="rollout",
            constraint=models.UniqueConstraint(
                condition=models.Q(("ended_at__isnull", True)), fields=("endpoint",), name="rollout_one_at_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="rollout",
            constraint=models.CheckConstraint(
                condition=models.Q(("strategy__in", ["recreate", "canary"])), name="rollout_strategy"
            ),
        ),
        migrations.AddConstraint(
            model_name="rollout",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("state__in", ["draining", "preparing", "stepping", "promoting", "aborting", "done", "aborted"])
                ),
                name="rollout_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="rollout",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("ended_at__isnull", False),
                        ("state__in", [tenants.states.RolloutState["ABORTED"], tenants.states.RolloutState["DONE"]]),
                    ),
                    models.Q(
                        ("ended_at__isnull", True),
                        models.Q(
                            (
                                "state__in",
                                [tenants.states.RolloutState["ABORTED"], tenants.states.RolloutState["DONE"]],
                            ),
                            _negated=True,
                        ),
                    ),
                    _connector="OR",
                ),
                name="rollout_ended",
            ),
        ),
        migrations.AddConstraint(
            model_name="rollout",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("strategy", "recreate"), ("surge__isnull", True)),
                    models.Q(("strategy", "canary"), ("surge__isnull", False)),
                    _connector="OR",
                ),
                name="rollout_surge",
            ),
        ),
        migrations.RunSQL(statements("0041_rollouts.sql"), migrations.RunSQL.noop),
    ]
