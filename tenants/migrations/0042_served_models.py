"""Served models from mirrors and of tenants' own; what starts teach about estimates; files staged beforehand."""

import uuid

import django.db.models.deletion
from django.db import migrations, models

import tenants.models.fields
from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    """Served models from mirrors and of tenants' own; what starts teach about estimates; files staged beforehand."""

    dependencies = [
        ("tenants", "0041_rollouts"),
    ]

    operations = [
        migrations.CreateModel(
            name="FitCorrection",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("product", models.CharField(max_length=60)),
                ("profile", models.CharField(blank=True, default="", max_length=40)),
                ("gpus", models.PositiveSmallIntegerField(default=1)),
                ("reset_at", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
            ],
        ),
        migrations.CreateModel(
            name="FitMeasurement",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("start", models.UUIDField()),
                ("program", models.CharField(max_length=80)),
                ("at", models.DateTimeField()),
                ("token_estimated", models.BigIntegerField(null=True)),
                ("token_reported", models.BigIntegerField(null=True)),
                ("fixed_estimated", models.BigIntegerField(null=True)),
                ("fixed_reported", models.BigIntegerField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="ModelStage",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("state", tenants.models.fields.WordField(default="waiting", max_length=32)),
                ("bytes_done", models.BigIntegerField(default=0)),
                ("bytes_total", models.BigIntegerField(blank=True, null=True)),
                ("message", models.CharField(blank=True, default="", max_length=500)),
                ("asked_at", models.DateTimeField()),
                ("looked_at", models.DateTimeField(blank=True, null=True)),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
                ("removing", models.BooleanField(default=False)),
                ("version", models.PositiveIntegerField(default=1)),
            ],
        ),
        migrations.AddField(
            model_name="servedmodel",
            name="config_digest",
            field=models.CharField(blank=True, db_default="", default="", max_length=64),
        ),
        migrations.AddField(
            model_name="servedmodel",
            name="gating",
            field=models.CharField(blank=True, db_default="", default="", max_length=120),
        ),
        migrations.AddField(
            model_name="servedmodel",
            name="source",
            field=models.CharField(db_default="hub", default="hub", max_length=200),
        ),
        migrations.AddField(
            model_name="servedmodel",
            name="task",
            field=tenants.models.fields.WordField(db_default="generate", default="generate", max_length=32),
        ),
        migrations.AddField(
            model_name="servedmodel",
            name="tenant",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="own_models",
                to="tenants.tenant",
            ),
        ),
        migrations.AddConstraint(
            model_name="servedmodel",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "source__regex",
                        "^(hub|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*|nfs://[A-Za-z0-9.-]{1,120}(/[A-Za-z0-9._-]+)+)$",
                    )
                ),
                name="served_model_source",
            ),
        ),
        migrations.AddConstraint(
            model_name="servedmodel",
            constraint=models.CheckConstraint(
                condition=models.Q(("task__in", ["generate", "embed"])), name="served_model_task"
            ),
        ),
        migrations.AddConstraint(
            model_name="servedmodel",
            constraint=models.CheckConstraint(
                condition=models.Q(("config_digest", ""), ("config_digest__regex", "^[0-9a-f]{64}$"), _connector="OR"),
                name="served_model_config",
            ),
        ),
        migrations.AddField(
            model_name="fitcorrection",
            name="model",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="fit_corrections", to="tenants.servedmodel"
            ),
        ),
        migrations.AddField(
            model_name="fitmeasurement",
            name="correction",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="measurements", to="tenants.fitcorrection"
            ),
        ),
        migrations.AddField(
            model_name="modelstage",
            name="model",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="stages", to="tenants.servedmodel"
            ),
        ),
        migrations.AddField(
            model_name="modelstage",
            name="provider",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="model_stages", to="tenants.provider"
            ),
        ),
        migrations.AddConstraint(
            model_name="fitcorrection",
            constraint=models.UniqueConstraint(
                fields=("model", "product", "profile", "gpus"), name="fit_correction_size"
            ),
        ),
        migrations.AddConstraint(
            model_name="fitcorrection",
            constraint=models.CheckConstraint(
                condition=models.Q(("gpus", 1), models.Q(("gpus__gte", 1), ("profile", "")), _connector="OR"),
                name="fit_correction_gpus",
            ),
        ),
        migrations.AddIndex(
            model_name="fitmeasurement",
            index=models.Index(fields=["correction", "at"], name="fit_measurement_at"),
        ),
        migrations.AddConstraint(
            model_name="fitmeasurement",
            constraint=models.UniqueConstraint(fields=("correction", "start"), name="fit_measurement_start"),
        ),
        migrations.AddConstraint(
            model_name="fitmeasurement",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("token_estimated__gt", 0), ("token_reported__gt", 0)),
                    models.Q(("token_estimated__isnull", True), ("token_reported__isnull", True)),
                    _connector="OR",
                ),
                name="fit_measurement_token",
            ),
        ),
        migrations.AddConstraint(
            model_name="fitmeasurement",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("fixed_estimated__gt", 0), ("fixed_reported__gt", 0)),
                    models.Q(("fixed_estimated__isnull", True), ("fixed_reported__isnull", True)),
                    _connector="OR",
                ),
                name="fit_measurement_fixed",
            ),
        ),
        migrations.AddConstraint(
            model_name="modelstage",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state__in", ["waiting", "running", "done"])),
                fields=("provider", "model"),
                name="model_stage_once",
            ),
        ),
        migrations.AddConstraint(
            model_name="modelstage",
            constraint=models.CheckConstraint(
                condition=models.Q(("state__in", ["waiting", "running", "done", "failed", "removed"])),
                name="model_stage_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="modelstage",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("bytes_done__gte", 0),
                    models.Q(
                        ("bytes_total__isnull", True), ("bytes_done__lte", models.F("bytes_total")), _connector="OR"
                    ),
                ),
                name="model_stage_bytes",
            ),
        ),
        migrations.AddConstraint(
            model_name="modelstage",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("ended_at__isnull", False), ("state__in", ["done", "failed", "removed"])),
                    models.Q(
                        ("ended_at__isnull", True),
                        models.Q(("state__in", ["done", "failed", "removed"]), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="model_stage_ended",
            ),
        ),
        migrations.RunSQL(statements("0042_served_models.sql"), migrations.RunSQL.noop),
    ]
