"""Tables of the domain."""

import uuid

import django.contrib.postgres.constraints
import django.contrib.postgres.fields
import django.contrib.postgres.fields.ranges
import django.db.models.constraints
import django.db.models.deletion
import django.db.models.expressions
import django.db.models.functions.text
from django.conf import settings
from django.db import migrations, models

import tenants.models.fields
from tenants.migrations.sql import statements


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.RunSQL(statements("0001_functions.sql"), migrations.RunSQL.noop),
        migrations.CreateModel(
            name="AutoApprovalRule",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=80, unique=True)),
                ("kind", tenants.models.fields.WordField(max_length=32)),
                ("limits", models.JSONField(default=dict)),
                ("longest_s", models.PositiveBigIntegerField(blank=True, null=True)),
                ("enabled", models.BooleanField(default=True)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
            ],
        ),
        migrations.CreateModel(
            name="Boundary",
            fields=[
                ("generation", models.PositiveIntegerField(default=1)),
                ("observed_generation", models.PositiveIntegerField(default=0)),
                ("conditions", models.JSONField(blank=True, default=list)),
                ("phase", tenants.models.fields.WordField(default="Provisioning", max_length=32)),
                ("due_at", models.DateTimeField(blank=True, null=True)),
                ("failures", models.PositiveIntegerField(default=0)),
                ("lease_owner", models.CharField(blank=True, default="", max_length=80)),
                ("lease_epoch", models.BigIntegerField(default=0)),
                ("lease_expires_at", models.DateTimeField(blank=True, null=True)),
                ("fingerprint", models.CharField(blank=True, default="", max_length=64)),
                ("observed", models.JSONField(blank=True, default=dict)),
                ("deletion_requested_at", models.DateTimeField(blank=True, null=True)),
                (
                    "finalizers",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=40), blank=True, default=list, size=None
                    ),
                ),
                ("released_at", models.DateTimeField(blank=True, null=True)),
                ("ready_at", models.DateTimeField(blank=True, null=True)),
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("bd"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("kind", tenants.models.fields.WordField(max_length=32)),
                ("tier", tenants.models.fields.WordField(default="shared", max_length=32)),
                ("address", models.CharField(blank=True, default="", max_length=300)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
            ],
            options={
                "verbose_name_plural": "boundaries",
            },
        ),
        migrations.CreateModel(
            name="ChainHead",
            fields=[
                ("chain", models.UUIDField(primary_key=True, serialize=False)),
                ("seq", models.BigIntegerField(default=0)),
                ("hash", models.CharField(max_length=64)),
            ],
        ),
        migrations.CreateModel(
            name="Checkpoint",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("at", models.DateTimeField(unique=True)),
                ("heads", models.JSONField()),
                ("previous", models.CharField(max_length=64)),
                ("hash", models.CharField(max_length=64)),
            ],
        ),
        migrations.CreateModel(
            name="Person",
            fields=[
                ("password", models.CharField(max_length=128, verbose_name="password")),
                ("last_login", models.DateTimeField(blank=True, null=True, verbose_name="last login")),
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("email", models.EmailField(max_length=254)),
                ("display_name", models.CharField(max_length=120)),
                ("created_at", models.DateTimeField()),
                ("left_at", models.DateTimeField(blank=True, null=True)),
                ("is_active", models.BooleanField(default=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(django.db.models.functions.text.Lower("email"), name="person_email_unique"),
                    models.CheckConstraint(
                        condition=models.Q(("left_at__isnull", True), ("is_active", False), _connector="OR"),
                        name="person_left_inactive",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Allocation",
            fields=[
                ("generation", models.PositiveIntegerField(default=1)),
                ("observed_generation", models.PositiveIntegerField(default=0)),
                ("conditions", models.JSONField(blank=True, default=list)),
                ("phase", tenants.models.fields.WordField(default="Provisioning", max_length=32)),
                ("due_at", models.DateTimeField(blank=True, null=True)),
                ("failures", models.PositiveIntegerField(default=0)),
                ("lease_owner", models.CharField(blank=True, default="", max_length=80)),
                ("lease_epoch", models.BigIntegerField(default=0)),
                ("lease_expires_at", models.DateTimeField(blank=True, null=True)),
                ("fingerprint", models.CharField(blank=True, default="", max_length=64)),
                ("observed", models.JSONField(blank=True, default=dict)),
                ("deletion_requested_at", models.DateTimeField(blank=True, null=True)),
                (
                    "finalizers",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=40), blank=True, default=list, size=None
                    ),
                ),
                ("released_at", models.DateTimeField(blank=True, null=True)),
                ("ready_at", models.DateTimeField(blank=True, null=True)),
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("al"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("name", tenants.models.fields.SlugField(max_length=40)),
                ("product_kind", tenants.models.fields.WordField(default="bare", max_length=32)),
                ("product_id", models.UUIDField(blank=True, null=True)),
                ("spec", models.JSONField()),
                ("demand", models.JSONField()),
                ("priority", tenants.models.fields.WordField(default="standard", max_length=32)),
                ("service_class", tenants.models.fields.WordField(default="standard", max_length=32)),
                ("on_shortage", tenants.models.fields.WordField(default="fail", max_length=32)),
                ("duration_s", models.PositiveBigIntegerField()),
                ("not_after", models.DateTimeField(blank=True, null=True)),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("warned_days", models.SmallIntegerField(blank=True, null=True)),
                ("grace_until", models.DateTimeField(blank=True, null=True)),
                ("queued_at", models.DateTimeField(blank=True, null=True)),
                ("labels", models.JSONField(blank=True, default=dict)),
                ("description", models.CharField(blank=True, default="", max_length=500)),
                ("managed_by", models.CharField(default="api", max_length=16)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
                (
                    "requester",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "boundary",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="allocations",
                        to="tenants.boundary",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Endpoint",
            fields=[
                ("generation", models.PositiveIntegerField(default=1)),
                ("observed_generation", models.PositiveIntegerField(default=0)),
                ("conditions", models.JSONField(blank=True, default=list)),
                ("phase", tenants.models.fields.WordField(default="Provisioning", max_length=32)),
                ("due_at", models.DateTimeField(blank=True, null=True)),
                ("failures", models.PositiveIntegerField(default=0)),
                ("lease_owner", models.CharField(blank=True, default="", max_length=80)),
                ("lease_epoch", models.BigIntegerField(default=0)),
                ("lease_expires_at", models.DateTimeField(blank=True, null=True)),
                ("fingerprint", models.CharField(blank=True, default="", max_length=64)),
                ("observed", models.JSONField(blank=True, default=dict)),
                ("deletion_requested_at", models.DateTimeField(blank=True, null=True)),
                (
                    "finalizers",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=40), blank=True, default=list, size=None
                    ),
                ),
                ("released_at", models.DateTimeField(blank=True, null=True)),
                ("ready_at", models.DateTimeField(blank=True, null=True)),
                ("name", tenants.models.fields.SlugField(max_length=40)),
                ("description", models.CharField(blank=True, default="", max_length=500)),
                ("labels", models.JSONField(blank=True, default=dict)),
                ("managed_by", models.CharField(default="api", max_length=16)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("ep"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("address", models.CharField(blank=True, default="", max_length=300)),
                ("reachable_from", models.CharField(blank=True, default="", max_length=20)),
                (
                    "allocation",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="%(class)s", to="tenants.allocation"
                    ),
                ),
                (
                    "boundary",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="%(class)ss",
                        to="tenants.boundary",
                    ),
                ),
                (
                    "owner",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Event",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("chain", models.UUIDField()),
                ("seq", models.BigIntegerField()),
                ("at", models.DateTimeField()),
                ("tenant_id", models.UUIDField(null=True)),
                ("kind", models.CharField(max_length=80)),
                ("object_kind", tenants.models.fields.WordField(max_length=32)),
                ("object_id", models.UUIDField(null=True)),
                ("actor", models.CharField(max_length=80)),
                ("person_id", models.UUIDField(null=True)),
                ("data", models.JSONField(default=dict)),
                ("previous", models.CharField(max_length=64)),
                ("hash", models.CharField(max_length=64)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["object_id", "seq"], name="event_object"),
                    models.Index(fields=["tenant_id", "at"], name="event_tenant_at"),
                    models.Index(fields=["at", "id"], name="event_at"),
                ],
                "constraints": [models.UniqueConstraint(fields=("chain", "seq"), name="event_chain_seq")],
            },
        ),
        migrations.CreateModel(
            name="GatewayReplica",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("token_sealed", models.BinaryField(blank=True, null=True)),
                ("token_digest", models.CharField(blank=True, default="", max_length=64)),
                ("token_expires_at", models.DateTimeField(blank=True, null=True)),
                ("credential_digest", models.CharField(blank=True, default="", max_length=64)),
                ("enrolled_at", models.DateTimeField(blank=True, null=True)),
                ("last_seen_at", models.DateTimeField(blank=True, null=True)),
                ("config_version", models.BigIntegerField(default=0)),
                ("reported_version", models.BigIntegerField(default=0)),
                ("report", models.JSONField(blank=True, default=dict)),
                ("removed_at", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField()),
                (
                    "boundary",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="gateways", to="tenants.boundary"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="IdempotencyRecord",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("principal", models.CharField(max_length=80)),
                ("key", models.CharField(max_length=200)),
                ("body_hash", models.CharField(max_length=64)),
                ("result_kind", tenants.models.fields.WordField(blank=True, default="", max_length=32)),
                ("result_id", models.UUIDField(null=True)),
                ("secret_sealed", models.BinaryField(null=True)),
                ("status", models.PositiveSmallIntegerField(default=201)),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "indexes": [models.Index(fields=["created_at"], name="idempotency_created")],
                "constraints": [models.UniqueConstraint(fields=("principal", "key"), name="idempotency_unique")],
            },
        ),
        migrations.CreateModel(
            name="Outbox",
            fields=[
                ("object_id", models.UUIDField(primary_key=True, serialize=False)),
                ("object_kind", tenants.models.fields.WordField(max_length=32)),
                ("tenant_id", models.UUIDField(null=True)),
                ("seq", models.BigIntegerField(default=1)),
                ("at", models.DateTimeField()),
                ("published_at", models.DateTimeField(null=True)),
                ("attempts", models.PositiveIntegerField(default=0)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("published_at__isnull", True)), fields=["at"], name="outbox_waiting"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Provider",
            fields=[
                ("generation", models.PositiveIntegerField(default=1)),
                ("observed_generation", models.PositiveIntegerField(default=0)),
                ("conditions", models.JSONField(blank=True, default=list)),
                ("phase", tenants.models.fields.WordField(default="Provisioning", max_length=32)),
                ("due_at", models.DateTimeField(blank=True, null=True)),
                ("failures", models.PositiveIntegerField(default=0)),
                ("lease_owner", models.CharField(blank=True, default="", max_length=80)),
                ("lease_epoch", models.BigIntegerField(default=0)),
                ("lease_expires_at", models.DateTimeField(blank=True, null=True)),
                ("fingerprint", models.CharField(blank=True, default="", max_length=64)),
                ("observed", models.JSONField(blank=True, default=dict)),
                ("deletion_requested_at", models.DateTimeField(blank=True, null=True)),
                (
                    "finalizers",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=40), blank=True, default=list, size=None
                    ),
                ),
                ("released_at", models.DateTimeField(blank=True, null=True)),
                ("ready_at", models.DateTimeField(blank=True, null=True)),
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("pr"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("name", tenants.models.fields.SlugField(max_length=40, unique=True)),
                ("kind", tenants.models.fields.SlugField(max_length=40)),
                ("site", tenants.models.fields.SlugField(max_length=40)),
                ("config", models.JSONField(blank=True, default=dict)),
                ("capabilities", models.JSONField(blank=True, default=dict)),
                ("enabled", models.BooleanField(default=True)),
                ("healthy", models.BooleanField(default=False)),
                ("breaker_open_until", models.DateTimeField(blank=True, null=True)),
                ("breaker_failures", models.PositiveIntegerField(default=0)),
                ("snapshot_at", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("due_at__isnull", False), ("released_at__isnull", True)),
                        fields=["due_at"],
                        name="provider_due",
                    )
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("name__regex", "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")), name="provider_name"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "phase__in",
                                [
                                    "AwaitingApproval",
                                    "Waiting",
                                    "Provisioning",
                                    "Ready",
                                    "Degraded",
                                    "Suspended",
                                    "Expiring",
                                    "Deleting",
                                    "Released",
                                    "Failed",
                                ],
                            )
                        ),
                        name="provider_phase",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("released_at__isnull", True), ("deletion_requested_at__isnull", False), _connector="OR"
                        ),
                        name="provider_released_asked",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("released_at__isnull", True), ("finalizers__len", 0), _connector="OR"),
                        name="provider_released_clean",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="PriceList",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=80, unique=True)),
                ("site", tenants.models.fields.SlugField(blank=True, default="", max_length=40)),
                ("currency", models.CharField(default="EUR", max_length=3)),
                ("valid_from", models.DateTimeField()),
                ("created_at", models.DateTimeField()),
                (
                    "provider",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="tenants.provider",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Host",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("ho"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("provider_ref", models.CharField(max_length=200)),
                ("name", models.CharField(max_length=200)),
                ("state", tenants.models.fields.WordField(default="joining", max_length=32)),
                ("binding", tenants.models.fields.WordField(max_length=32)),
                ("gpu_product", models.CharField(blank=True, default="", max_length=40)),
                ("healthy", models.BooleanField(default=True)),
                ("message", models.CharField(blank=True, default="", max_length=500)),
                ("placeable", models.BooleanField(default=False)),
                ("total_vcpu", models.IntegerField()),
                ("total_memory_gib", models.IntegerField()),
                ("free_vcpu", models.IntegerField()),
                ("free_memory_gib", models.IntegerField()),
                ("gpu_count", models.IntegerField(default=0)),
                ("empty_gpus", models.IntegerField(default=0)),
                ("unsettled", models.IntegerField(default=0)),
                ("acceptance", models.JSONField(blank=True, default=dict)),
                ("seen_at", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
                (
                    "provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="hosts", to="tenants.provider"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="GpuDevice",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("gp"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                (
                    "number",
                    models.BigIntegerField(
                        db_default=models.Func(
                            models.Value("gpu_device_number"), function="nextval", output_field=models.BigIntegerField()
                        ),
                        editable=False,
                        unique=True,
                    ),
                ),
                ("provider_ref", models.CharField(max_length=200)),
                ("index", models.SmallIntegerField()),
                ("product", models.CharField(max_length=40)),
                ("slots", models.SmallIntegerField()),
                ("free", models.IntegerField()),
                ("media_free", models.BooleanField(default=True)),
                ("mode", tenants.models.fields.WordField(default="unknown", max_length=32)),
                ("layout_change", tenants.models.fields.WordField(default="fixed", max_length=32)),
                ("healthy", models.BooleanField(default=True)),
                ("message", models.CharField(blank=True, default="", max_length=500)),
                ("placeable", models.BooleanField(default=False)),
                ("windows_trusted", models.BooleanField(default=True)),
                ("unsettled", models.IntegerField(default=0)),
                ("removed_at", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField()),
                (
                    "host",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="devices", to="tenants.host"
                    ),
                ),
                (
                    "provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.provider"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Finding",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("fi"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("kind", tenants.models.fields.SlugField(max_length=40)),
                ("subject", models.CharField(max_length=300)),
                ("detail", models.CharField(max_length=1000)),
                ("data", models.JSONField(blank=True, default=dict)),
                ("blocks_placement", models.BooleanField(default=False)),
                ("first_seen_at", models.DateTimeField()),
                ("last_seen_at", models.DateTimeField()),
                ("resolved_at", models.DateTimeField(blank=True, null=True)),
                ("resolution", models.CharField(blank=True, default="", max_length=500)),
                ("version", models.PositiveIntegerField(default=1)),
                (
                    "device",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.gpudevice"
                    ),
                ),
                (
                    "host",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.host"
                    ),
                ),
                (
                    "provider",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="findings",
                        to="tenants.provider",
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="boundary",
            name="provider",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="boundaries", to="tenants.provider"
            ),
        ),
        migrations.CreateModel(
            name="ProviderCredential",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("name", tenants.models.fields.SlugField(max_length=40)),
                ("sealed", models.BinaryField()),
                ("created_at", models.DateTimeField()),
                (
                    "provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="credentials", to="tenants.provider"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Request",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("rq"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("kind", tenants.models.fields.WordField(max_length=32)),
                ("state", tenants.models.fields.WordField(default="submitted", max_length=32)),
                ("payload", models.JSONField()),
                ("reason", models.CharField(blank=True, default="", max_length=1000)),
                ("version", models.PositiveIntegerField(default=1)),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("decided_at", models.DateTimeField(blank=True, null=True)),
                ("outcome", models.JSONField(blank=True, default=dict)),
                (
                    "allocation",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="requests",
                        to="tenants.allocation",
                    ),
                ),
                (
                    "requester",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="requests",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Revision",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("number", models.PositiveIntegerField()),
                ("runtime", tenants.models.fields.SlugField(default="vllm", max_length=40)),
                ("arguments", models.JSONField(blank=True, default=dict)),
                ("created_at", models.DateTimeField()),
                (
                    "author",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "endpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="revisions", to="tenants.endpoint"
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="endpoint",
            name="revision",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.revision"
            ),
        ),
        migrations.CreateModel(
            name="ServedModel",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("name", tenants.models.fields.SlugField(max_length=60, unique=True)),
                ("repository", models.CharField(max_length=200)),
                ("commit", models.CharField(max_length=64)),
                ("licence", models.CharField(blank=True, default="", max_length=80)),
                ("geometry", models.JSONField(default=dict)),
                ("quantisation", models.CharField(default="native", max_length=20)),
                ("enabled", models.BooleanField(default=True)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("commit__regex", "^[0-9a-f]{40,64}$")), name="served_model_commit"
                    )
                ],
            },
        ),
        migrations.AddField(
            model_name="revision",
            name="model",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.servedmodel"
            ),
        ),
        migrations.CreateModel(
            name="Tenant",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("tn"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("name", tenants.models.fields.SlugField(max_length=40, unique=True)),
                ("display_name", models.CharField(max_length=120)),
                ("description", models.CharField(blank=True, default="", max_length=500)),
                ("path", django.contrib.postgres.fields.ArrayField(base_field=models.UUIDField(), size=3)),
                ("status", tenants.models.fields.WordField(default="active", max_length=32)),
                ("policy", models.JSONField(blank=True, default=dict)),
                ("stock_visibility", tenants.models.fields.WordField(default="bands", max_length=32)),
                ("labels", models.JSONField(blank=True, default=dict)),
                ("managed_by", models.CharField(default="api", max_length=16)),
                ("created_at", models.DateTimeField()),
                ("closed_at", models.DateTimeField(blank=True, null=True)),
                ("version", models.PositiveIntegerField(default=1)),
                (
                    "parent",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="children",
                        to="tenants.tenant",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Suspension",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("depth", tenants.models.fields.WordField(max_length=32)),
                ("reason", models.CharField(max_length=500)),
                ("author", models.UUIDField()),
                ("created_at", models.DateTimeField()),
                ("until", models.DateTimeField(blank=True, null=True)),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="suspensions", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="ServiceAccount",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("name", tenants.models.fields.SlugField(max_length=40)),
                ("role", models.SmallIntegerField()),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("disabled_at", models.DateTimeField(blank=True, null=True)),
                ("version", models.PositiveIntegerField(default=1)),
                (
                    "owner",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="service_accounts",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="service_accounts",
                        to="tenants.tenant",
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="revision",
            name="tenant",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"),
        ),
        migrations.CreateModel(
            name="RequestStage",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("order", models.SmallIntegerField()),
                ("decider", models.CharField(max_length=32)),
                ("done_at", models.DateTimeField(blank=True, null=True)),
                (
                    "request",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="stages", to="tenants.request"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="RequestComment",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("text", models.CharField(max_length=2000)),
                ("created_at", models.DateTimeField()),
                (
                    "author",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
                (
                    "request",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="comments", to="tenants.request"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="request",
            name="tenant",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.CASCADE, related_name="requests", to="tenants.tenant"
            ),
        ),
        migrations.CreateModel(
            name="QuotaCharge",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("dimension", models.CharField(max_length=80)),
                ("amount", models.BigIntegerField()),
                ("pending", models.BooleanField(default=False)),
                ("created_at", models.DateTimeField()),
                (
                    "allocation",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="charges", to="tenants.allocation"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Quota",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("dimension", models.CharField(max_length=80)),
                ("amount", models.BigIntegerField(default=0)),
                ("inherit", models.BooleanField(default=False)),
                ("until", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
                (
                    "granted_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="quotas",
                        to="tenants.request",
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="quotas", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Notice",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("kind", models.CharField(max_length=60)),
                ("object_kind", tenants.models.fields.WordField(blank=True, default="", max_length=32)),
                ("object_id", models.UUIDField(null=True)),
                ("text", models.CharField(max_length=1000)),
                ("at", models.DateTimeField()),
                ("key", models.CharField(max_length=200, unique=True)),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="notices", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Namespace",
            fields=[
                ("generation", models.PositiveIntegerField(default=1)),
                ("observed_generation", models.PositiveIntegerField(default=0)),
                ("conditions", models.JSONField(blank=True, default=list)),
                ("phase", tenants.models.fields.WordField(default="Provisioning", max_length=32)),
                ("due_at", models.DateTimeField(blank=True, null=True)),
                ("failures", models.PositiveIntegerField(default=0)),
                ("lease_owner", models.CharField(blank=True, default="", max_length=80)),
                ("lease_epoch", models.BigIntegerField(default=0)),
                ("lease_expires_at", models.DateTimeField(blank=True, null=True)),
                ("fingerprint", models.CharField(blank=True, default="", max_length=64)),
                ("observed", models.JSONField(blank=True, default=dict)),
                ("deletion_requested_at", models.DateTimeField(blank=True, null=True)),
                (
                    "finalizers",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=40), blank=True, default=list, size=None
                    ),
                ),
                ("released_at", models.DateTimeField(blank=True, null=True)),
                ("ready_at", models.DateTimeField(blank=True, null=True)),
                ("name", tenants.models.fields.SlugField(max_length=40)),
                ("description", models.CharField(blank=True, default="", max_length=500)),
                ("labels", models.JSONField(blank=True, default=dict)),
                ("managed_by", models.CharField(default="api", max_length=16)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("ns"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                (
                    "allocation",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="%(class)s", to="tenants.allocation"
                    ),
                ),
                (
                    "boundary",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="%(class)ss",
                        to="tenants.boundary",
                    ),
                ),
                (
                    "owner",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="%(class)ss", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Membership",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("role", models.SmallIntegerField()),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
                (
                    "person",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="memberships",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="memberships", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Machine",
            fields=[
                ("generation", models.PositiveIntegerField(default=1)),
                ("observed_generation", models.PositiveIntegerField(default=0)),
                ("conditions", models.JSONField(blank=True, default=list)),
                ("phase", tenants.models.fields.WordField(default="Provisioning", max_length=32)),
                ("due_at", models.DateTimeField(blank=True, null=True)),
                ("failures", models.PositiveIntegerField(default=0)),
                ("lease_owner", models.CharField(blank=True, default="", max_length=80)),
                ("lease_epoch", models.BigIntegerField(default=0)),
                ("lease_expires_at", models.DateTimeField(blank=True, null=True)),
                ("fingerprint", models.CharField(blank=True, default="", max_length=64)),
                ("observed", models.JSONField(blank=True, default=dict)),
                ("deletion_requested_at", models.DateTimeField(blank=True, null=True)),
                (
                    "finalizers",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=40), blank=True, default=list, size=None
                    ),
                ),
                ("released_at", models.DateTimeField(blank=True, null=True)),
                ("ready_at", models.DateTimeField(blank=True, null=True)),
                ("name", tenants.models.fields.SlugField(max_length=40)),
                ("description", models.CharField(blank=True, default="", max_length=500)),
                ("labels", models.JSONField(blank=True, default=dict)),
                ("managed_by", models.CharField(default="api", max_length=16)),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("vm"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("image", models.CharField(max_length=120)),
                ("disk_gib", models.PositiveIntegerField()),
                ("ssh_keys", models.JSONField(default=list)),
                ("power", models.CharField(default="on", max_length=8)),
                ("address", models.CharField(blank=True, default="", max_length=300)),
                (
                    "allocation",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="%(class)s", to="tenants.allocation"
                    ),
                ),
                (
                    "boundary",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="%(class)ss",
                        to="tenants.boundary",
                    ),
                ),
                (
                    "owner",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="%(class)ss", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Intent",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("object_kind", tenants.models.fields.WordField(max_length=32)),
                ("object_id", models.UUIDField()),
                ("step", models.CharField(max_length=80)),
                ("key", models.CharField(max_length=200)),
                ("undo", models.BooleanField(default=False)),
                ("epoch", models.BigIntegerField()),
                ("attempt", models.PositiveIntegerField(default=1)),
                ("handle", models.TextField(blank=True, default="")),
                ("started_at", models.DateTimeField()),
                ("deadline_at", models.DateTimeField()),
                ("settled_at", models.DateTimeField(blank=True, null=True)),
                ("outcome", models.CharField(blank=True, default="", max_length=40)),
                ("error", models.JSONField(blank=True, null=True)),
                (
                    "tenant",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="host",
            name="dedicated_tenant",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="tenants.tenant",
            ),
        ),
        migrations.CreateModel(
            name="GatewayUsage",
            fields=[
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                ("endpoint_id", models.UUIDField(null=True)),
                ("requests", models.PositiveIntegerField()),
                ("prompt_tokens", models.PositiveBigIntegerField()),
                ("completion_tokens", models.PositiveBigIntegerField()),
                ("errors", models.PositiveIntegerField(default=0)),
                ("body", models.JSONField(default=dict)),
                ("received_at", models.DateTimeField()),
                (
                    "gateway",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.gatewayreplica"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="gatewayreplica",
            name="tenant",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"),
        ),
        migrations.CreateModel(
            name="EndpointKey",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("public_id", models.CharField(max_length=16, unique=True)),
                ("digest", models.CharField(max_length=64)),
                ("name", models.CharField(max_length=80)),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("revoked_at", models.DateTimeField(blank=True, null=True)),
                ("last_used_at", models.DateTimeField(blank=True, null=True)),
                (
                    "author",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "endpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="keys", to="tenants.endpoint"
                    ),
                ),
                (
                    "replaced_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to="tenants.endpointkey",
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="endpoint",
            name="tenant",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="%(class)ss", to="tenants.tenant"
            ),
        ),
        migrations.CreateModel(
            name="Decision",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("request_version", models.PositiveIntegerField()),
                ("verdict", tenants.models.fields.WordField(max_length=32)),
                ("granted", models.JSONField(blank=True, default=dict)),
                ("reason", models.CharField(blank=True, default="", max_length=1000)),
                ("proof", models.JSONField(blank=True, default=dict)),
                ("created_at", models.DateTimeField()),
                (
                    "decider",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="decisions",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "on_behalf_of",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "requester",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
                (
                    "rule",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="tenants.autoapprovalrule",
                    ),
                ),
                (
                    "request",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="decisions", to="tenants.request"
                    ),
                ),
                (
                    "stage",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="decisions",
                        to="tenants.requeststage",
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="boundary",
            name="tenant",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="boundaries", to="tenants.tenant"
            ),
        ),
        migrations.AddField(
            model_name="autoapprovalrule",
            name="tenant",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="+",
                to="tenants.tenant",
            ),
        ),
        migrations.CreateModel(
            name="ApiToken",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("public_id", models.CharField(max_length=16, unique=True)),
                ("digest", models.BinaryField(max_length=32)),
                ("name", models.CharField(max_length=80)),
                ("read_only", models.BooleanField(default=False)),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("revoked_at", models.DateTimeField(blank=True, null=True)),
                ("last_used_at", models.DateTimeField(blank=True, null=True)),
                (
                    "person",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="tokens",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "service_account",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="tokens",
                        to="tenants.serviceaccount",
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="tenants.tenant",
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="allocation",
            name="tenant",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="allocations", to="tenants.tenant"
            ),
        ),
        migrations.CreateModel(
            name="Unit",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("index", models.SmallIntegerField()),
                ("role", models.CharField(default="replica", max_length=16)),
                ("product", models.CharField(blank=True, default="", max_length=40)),
                ("profile", models.CharField(blank=True, default="", max_length=40)),
                ("gpu_count", models.SmallIntegerField(default=0)),
                ("vcpu", models.IntegerField(default=0)),
                ("memory_gib", models.IntegerField(default=0)),
                ("spread_group", models.CharField(blank=True, default="", max_length=40)),
                ("placed_at", models.DateTimeField(blank=True, null=True)),
                ("released_at", models.DateTimeField(blank=True, null=True)),
                ("avoid_hosts", models.JSONField(blank=True, default=list)),
                (
                    "allocation",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="units", to="tenants.allocation"
                    ),
                ),
                (
                    "host",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="units",
                        to="tenants.host",
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Hold",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("kind", tenants.models.fields.WordField(max_length=32)),
                ("device_number", models.BigIntegerField()),
                ("start", models.SmallIntegerField()),
                ("size", models.SmallIntegerField()),
                ("slots", django.contrib.postgres.fields.ranges.BigIntegerRangeField()),
                ("during", django.contrib.postgres.fields.ranges.DateTimeRangeField()),
                ("media", models.BooleanField(default=False)),
                ("profile", models.CharField(blank=True, default="", max_length=40)),
                ("settled", models.BooleanField(default=True)),
                ("vcpu", models.IntegerField(default=0)),
                ("memory_gib", models.IntegerField(default=0)),
                ("note", models.CharField(blank=True, default="", max_length=300)),
                (
                    "device",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="holds", to="tenants.gpudevice"
                    ),
                ),
                (
                    "host",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="holds", to="tenants.host"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
                (
                    "unit",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.PROTECT, related_name="holds", to="tenants.unit"
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="gatewayreplica",
            name="unit",
            field=models.OneToOneField(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="gateway",
                to="tenants.unit",
            ),
        ),
        migrations.CreateModel(
            name="UsageRecord",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("hold_id", models.UUIDField()),
                ("kind", tenants.models.fields.WordField(max_length=32)),
                ("start", models.SmallIntegerField()),
                ("size", models.SmallIntegerField()),
                ("profile", models.CharField(blank=True, default="", max_length=40)),
                ("allocation_id", models.UUIDField(null=True)),
                ("unit_id", models.UUIDField(null=True)),
                ("vcpu", models.IntegerField(default=0)),
                ("memory_gib", models.IntegerField(default=0)),
                ("held_from", models.DateTimeField()),
                ("held_to", models.DateTimeField(null=True)),
                ("billable_from", models.DateTimeField(null=True)),
                ("billable_to", models.DateTimeField(null=True)),
                ("rule", models.CharField(default="first-ready-to-deletion-asked", max_length=40)),
                (
                    "device",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.gpudevice"
                    ),
                ),
                (
                    "provider",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.provider"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="tenants.tenant"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Delegation",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField()),
                ("created_at", models.DateTimeField()),
                (
                    "delegate",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
                (
                    "person",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="delegations",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("person", models.F("delegate")), _negated=True), name="delegation_other"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("ends_at__gt", models.F("starts_at"))), name="delegation_order"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="HostPlan",
            fields=[
                ("generation", models.PositiveIntegerField(default=1)),
                ("observed_generation", models.PositiveIntegerField(default=0)),
                ("conditions", models.JSONField(blank=True, default=list)),
                ("phase", tenants.models.fields.WordField(default="Provisioning", max_length=32)),
                ("due_at", models.DateTimeField(blank=True, null=True)),
                ("failures", models.PositiveIntegerField(default=0)),
                ("lease_owner", models.CharField(blank=True, default="", max_length=80)),
                ("lease_epoch", models.BigIntegerField(default=0)),
                ("lease_expires_at", models.DateTimeField(blank=True, null=True)),
                ("fingerprint", models.CharField(blank=True, default="", max_length=64)),
                ("observed", models.JSONField(blank=True, default=dict)),
                ("deletion_requested_at", models.DateTimeField(blank=True, null=True)),
                (
                    "finalizers",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=40), blank=True, default=list, size=None
                    ),
                ),
                ("released_at", models.DateTimeField(blank=True, null=True)),
                ("ready_at", models.DateTimeField(blank=True, null=True)),
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "short_id",
                    models.CharField(
                        db_default=models.Func(
                            models.Value("pl"), function="app_short_id", output_field=models.CharField()
                        ),
                        editable=False,
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("kind", tenants.models.fields.WordField(default="drain", max_length=32)),
                ("state", tenants.models.fields.WordField(default="running", max_length=32)),
                ("reason", models.CharField(max_length=500)),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField(blank=True, null=True)),
                ("touched", models.JSONField(default=list)),
                ("author", models.UUIDField()),
                ("created_at", models.DateTimeField()),
                ("version", models.PositiveIntegerField(default=1)),
                (
                    "host",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="plans", to="tenants.host"
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("due_at__isnull", False), ("released_at__isnull", True)),
                        fields=["due_at"],
                        name="host_plan_due",
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("state", "running")), fields=("host",), name="host_plan_one_running"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("state__in", ["running", "done", "cancelled"])), name="host_plan_state"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "phase__in",
                                [
                                    "AwaitingApproval",
                                    "Waiting",
                                    "Provisioning",
                                    "Ready",
                                    "Degraded",
                                    "Suspended",
                                    "Expiring",
                                    "Deleting",
                                    "Released",
                                    "Failed",
                                ],
                            )
                        ),
                        name="host_plan_phase",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("released_at__isnull", True), ("deletion_requested_at__isnull", False), _connector="OR"
                        ),
                        name="host_plan_released_asked",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("released_at__isnull", True), ("finalizers__len", 0), _connector="OR"),
                        name="host_plan_released_clean",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="MigDevice",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("profile", models.CharField(max_length=40)),
                ("start", models.SmallIntegerField()),
                ("size", models.SmallIntegerField()),
                ("seen_at", models.DateTimeField()),
                (
                    "device",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="mig_devices", to="tenants.gpudevice"
                    ),
                ),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("device", "start"), name="mig_device_unique")],
            },
        ),
        migrations.CreateModel(
            name="PlatformMembership",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("role", tenants.models.fields.WordField(max_length=32)),
                ("created_at", models.DateTimeField()),
                (
                    "person",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="platform_memberships",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("person", "role"), name="platform_membership_unique"),
                    models.CheckConstraint(
                        condition=models.Q(("role__in", ["operator", "approver", "auditor"])),
                        name="platform_membership_role",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Price",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("item", models.CharField(max_length=80)),
                ("amount", models.DecimalField(decimal_places=9, max_digits=20)),
                (
                    "price_list",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="prices", to="tenants.pricelist"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("price_list", "item"), name="price_unique"),
                    models.CheckConstraint(condition=models.Q(("amount__gte", 0)), name="price_amount"),
                ],
            },
        ),
        migrations.AddConstraint(
            model_name="pricelist",
            constraint=models.UniqueConstraint(
                fields=("provider", "site", "valid_from"), name="price_list_unique", nulls_distinct=False
            ),
        ),
        migrations.AddConstraint(
            model_name="pricelist",
            constraint=models.CheckConstraint(
                condition=models.Q(("provider__isnull", True), ("site", ""), _connector="OR"), name="price_list_scope"
            ),
        ),
        migrations.AddConstraint(
            model_name="pricelist",
            constraint=models.CheckConstraint(
                condition=models.Q(("currency__regex", "^[A-Z]{3}$")), name="price_list_currency"
            ),
        ),
        migrations.AddIndex(
            model_name="gpudevice",
            index=models.Index(
                condition=models.Q(("placeable", True)),
                fields=["product", "free", "number"],
                name="gpu_device_fast_path",
            ),
        ),
        migrations.AddIndex(
            model_name="gpudevice",
            index=models.Index(fields=["created_at", "id"], name="gpu_device_created"),
        ),
        migrations.AddConstraint(
            model_name="gpudevice",
            constraint=models.UniqueConstraint(
                condition=models.Q(("removed_at__isnull", True)),
                fields=("provider", "provider_ref"),
                name="gpu_device_ref_unique",
            ),
        ),
        migrations.AddConstraint(
            model_name="gpudevice",
            constraint=models.CheckConstraint(
                condition=models.Q(("slots__gte", 1), ("slots__lte", 16)), name="gpu_device_slots"
            ),
        ),
        migrations.AddConstraint(
            model_name="gpudevice",
            constraint=models.CheckConstraint(condition=models.Q(("free__gte", 0)), name="gpu_device_free"),
        ),
        migrations.AddConstraint(
            model_name="gpudevice",
            constraint=models.CheckConstraint(condition=models.Q(("unsettled__gte", 0)), name="gpu_device_unsettled"),
        ),
        migrations.AddIndex(
            model_name="finding",
            index=models.Index(fields=["first_seen_at", "id"], name="finding_seen"),
        ),
        migrations.AddConstraint(
            model_name="finding",
            constraint=models.UniqueConstraint(
                condition=models.Q(("resolved_at__isnull", True)), fields=("kind", "subject"), name="finding_one_open"
            ),
        ),
        migrations.AddConstraint(
            model_name="providercredential",
            constraint=models.UniqueConstraint(fields=("provider", "name"), name="provider_credential_unique"),
        ),
        migrations.AddIndex(
            model_name="tenant",
            index=models.Index(fields=["created_at", "id"], name="tenant_created"),
        ),
        migrations.AddConstraint(
            model_name="tenant",
            constraint=models.CheckConstraint(
                condition=models.Q(("name__regex", "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")), name="tenant_name"
            ),
        ),
        migrations.AddConstraint(
            model_name="tenant",
            constraint=models.CheckConstraint(
                condition=models.Q(("status__in", ["active", "suspended", "closing", "closed"])), name="tenant_status"
            ),
        ),
        migrations.AddConstraint(
            model_name="tenant",
            constraint=models.CheckConstraint(
                condition=models.Q(("stock_visibility__in", ["exact", "bands", "yes-no"])),
                name="tenant_stock_visibility",
            ),
        ),
        migrations.AddConstraint(
            model_name="tenant",
            constraint=models.CheckConstraint(
                condition=models.Q(("path__len__gte", 1), ("path__len__lte", 3)), name="tenant_depth"
            ),
        ),
        migrations.AddConstraint(
            model_name="tenant",
            constraint=models.CheckConstraint(
                condition=models.Q(("parent", models.F("id")), _negated=True), name="tenant_not_own_parent"
            ),
        ),
        migrations.AddConstraint(
            model_name="suspension",
            constraint=models.CheckConstraint(
                condition=models.Q(("depth__in", ["keys", "network", "power"])), name="suspension_depth"
            ),
        ),
        migrations.AddConstraint(
            model_name="suspension",
            constraint=models.UniqueConstraint(
                condition=models.Q(("ended_at__isnull", True)), fields=("tenant",), name="suspension_one_live"
            ),
        ),
        migrations.AddConstraint(
            model_name="serviceaccount",
            constraint=models.UniqueConstraint(
                condition=models.Q(("disabled_at__isnull", True)),
                fields=("tenant", "name"),
                name="service_account_name_unique",
            ),
        ),
        migrations.AddConstraint(
            model_name="serviceaccount",
            constraint=models.CheckConstraint(
                condition=models.Q(("name__regex", "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")), name="service_account_name"
            ),
        ),
        migrations.AddConstraint(
            model_name="serviceaccount",
            constraint=models.CheckConstraint(condition=models.Q(("role__in", [1, 2])), name="service_account_role"),
        ),
        migrations.AddConstraint(
            model_name="revision",
            constraint=models.UniqueConstraint(fields=("endpoint", "number"), name="revision_number"),
        ),
        migrations.AddConstraint(
            model_name="requeststage",
            constraint=models.UniqueConstraint(fields=("request", "order"), name="request_stage_order"),
        ),
        migrations.AddConstraint(
            model_name="requeststage",
            constraint=models.CheckConstraint(
                condition=models.Q(("decider__in", ["tenant-owner", "parent-owner", "platform-approver"])),
                name="request_stage_decider",
            ),
        ),
        migrations.AddIndex(
            model_name="request",
            index=models.Index(fields=["created_at", "id"], name="request_created"),
        ),
        migrations.AddIndex(
            model_name="request",
            index=models.Index(fields=["state", "created_at"], name="request_inbox"),
        ),
        migrations.AddConstraint(
            model_name="request",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("kind__in", ["quota", "tenant", "join", "write-off", "model", "exception", "layout"])
                ),
                name="request_kind",
            ),
        ),
        migrations.AddConstraint(
            model_name="request",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("state__in", ["submitted", "approved", "reduced", "denied", "withdrawn", "expired"])
                ),
                name="request_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="request",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("decided_at__isnull", True), ("state", "submitted")),
                    models.Q(
                        ("state__in", ["approved", "denied", "expired", "reduced", "withdrawn"]),
                        ("decided_at__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="request_decided_at",
            ),
        ),
        migrations.AddConstraint(
            model_name="request",
            constraint=models.UniqueConstraint(fields=("id", "requester"), name="request_requester_key"),
        ),
        migrations.AddIndex(
            model_name="quotacharge",
            index=models.Index(fields=["tenant", "dimension"], include=("amount", "pending"), name="quota_charge_sum"),
        ),
        migrations.AddConstraint(
            model_name="quotacharge",
            constraint=models.UniqueConstraint(fields=("allocation", "dimension"), name="quota_charge_unique"),
        ),
        migrations.AddConstraint(
            model_name="quotacharge",
            constraint=models.CheckConstraint(condition=models.Q(("amount__gt", 0)), name="quota_charge_amount"),
        ),
        migrations.AddIndex(
            model_name="quota",
            index=models.Index(fields=["tenant", "dimension"], name="quota_dimension"),
        ),
        migrations.AddConstraint(
            model_name="quota",
            constraint=models.UniqueConstraint(
                condition=models.Q(("until__isnull", True)), fields=("tenant", "dimension"), name="quota_unique_lasting"
            ),
        ),
        migrations.AddConstraint(
            model_name="quota",
            constraint=models.CheckConstraint(condition=models.Q(("amount__gte", 0)), name="quota_amount"),
        ),
        migrations.AddIndex(
            model_name="namespace",
            index=models.Index(
                condition=models.Q(("due_at__isnull", False), ("released_at__isnull", True)),
                fields=["due_at"],
                name="namespace_due",
            ),
        ),
        migrations.AddIndex(
            model_name="namespace",
            index=models.Index(fields=["tenant", "created_at", "id"], name="namespace_tenant_created"),
        ),
        migrations.AddIndex(
            model_name="namespace",
            index=models.Index(fields=["created_at", "id"], name="namespace_created"),
        ),
        migrations.AddConstraint(
            model_name="namespace",
            constraint=models.UniqueConstraint(
                condition=models.Q(("released_at__isnull", True)), fields=("tenant", "name"), name="namespace_name_live"
            ),
        ),
        migrations.AddConstraint(
            model_name="namespace",
            constraint=models.CheckConstraint(
                condition=models.Q(("name__regex", "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")), name="namespace_name"
            ),
        ),
        migrations.AddConstraint(
            model_name="namespace",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "phase__in",
                        [
                            "AwaitingApproval",
                            "Waiting",
                            "Provisioning",
                            "Ready",
                            "Degraded",
                            "Suspended",
                            "Expiring",
                            "Deleting",
                            "Released",
                            "Failed",
                        ],
                    )
                ),
                name="namespace_phase",
            ),
        ),
        migrations.AddConstraint(
            model_name="namespace",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("released_at__isnull", True), ("deletion_requested_at__isnull", False), _connector="OR"
                ),
                name="namespace_released_asked",
            ),
        ),
        migrations.AddConstraint(
            model_name="namespace",
            constraint=models.CheckConstraint(
                condition=models.Q(("released_at__isnull", True), ("finalizers__len", 0), _connector="OR"),
                name="namespace_released_clean",
            ),
        ),
        migrations.AddConstraint(
            model_name="membership",
            constraint=models.UniqueConstraint(fields=("tenant", "person"), name="membership_unique"),
        ),
        migrations.AddConstraint(
            model_name="membership",
            constraint=models.CheckConstraint(condition=models.Q(("role__in", [1, 2, 3])), name="membership_role"),
        ),
        migrations.AddIndex(
            model_name="machine",
            index=models.Index(
                condition=models.Q(("due_at__isnull", False), ("released_at__isnull", True)),
                fields=["due_at"],
                name="machine_due",
            ),
        ),
        migrations.AddIndex(
            model_name="machine",
            index=models.Index(fields=["tenant", "created_at", "id"], name="machine_tenant_created"),
        ),
        migrations.AddIndex(
            model_name="machine",
            index=models.Index(fields=["created_at", "id"], name="machine_created"),
        ),
        migrations.AddConstraint(
            model_name="machine",
            constraint=models.UniqueConstraint(
                condition=models.Q(("released_at__isnull", True)), fields=("tenant", "name"), name="machine_name_live"
            ),
        ),
        migrations.AddConstraint(
            model_name="machine",
            constraint=models.CheckConstraint(
                condition=models.Q(("name__regex", "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")), name="machine_name"
            ),
        ),
        migrations.AddConstraint(
            model_name="machine",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "phase__in",
                        [
                            "AwaitingApproval",
                            "Waiting",
                            "Provisioning",
                            "Ready",
                            "Degraded",
                            "Suspended",
                            "Expiring",
                            "Deleting",
                            "Released",
                            "Failed",
                        ],
                    )
                ),
                name="machine_phase",
            ),
        ),
        migrations.AddConstraint(
            model_name="machine",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("released_at__isnull", True), ("deletion_requested_at__isnull", False), _connector="OR"
                ),
                name="machine_released_asked",
            ),
        ),
        migrations.AddConstraint(
            model_name="machine",
            constraint=models.CheckConstraint(
                condition=models.Q(("released_at__isnull", True), ("finalizers__len", 0), _connector="OR"),
                name="machine_released_clean",
            ),
        ),
        migrations.AddConstraint(
            model_name="machine",
            constraint=models.CheckConstraint(condition=models.Q(("power__in", ["on", "off"])), name="machine_power"),
        ),
        migrations.AddIndex(
            model_name="intent",
            index=models.Index(fields=["object_kind", "object_id", "started_at"], name="intent_object"),
        ),
        migrations.AddConstraint(
            model_name="intent",
            constraint=models.UniqueConstraint(
                condition=models.Q(("settled_at__isnull", True)),
                fields=("object_kind", "object_id"),
                name="intent_one_open",
            ),
        ),
        migrations.AddIndex(
            model_name="host",
            index=models.Index(
                condition=models.Q(("placeable", True)),
                fields=["gpu_product", "empty_gpus", "id"],
                name="host_whole_gpus",
            ),
        ),
        migrations.AddIndex(
            model_name="host",
            index=models.Index(fields=["created_at", "id"], name="host_created"),
        ),
        migrations.AddConstraint(
            model_name="host",
            constraint=models.UniqueConstraint(fields=("provider", "provider_ref"), name="host_ref_unique"),
        ),
        migrations.AddConstraint(
            model_name="host",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("state__in", ["joining", "accepted", "open", "cordoned", "draining", "maintenance", "removed"])
                ),
                name="host_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="host",
            constraint=models.CheckConstraint(
                condition=models.Q(("binding__in", ["device", "gpu", "host"])), name="host_binding"
            ),
        ),
        migrations.AddConstraint(
            model_name="host",
            constraint=models.CheckConstraint(condition=models.Q(("free_vcpu__gte", 0)), name="host_free_vcpu"),
        ),
        migrations.AddConstraint(
            model_name="host",
            constraint=models.CheckConstraint(condition=models.Q(("free_memory_gib__gte", 0)), name="host_free_memory"),
        ),
        migrations.AddConstraint(
            model_name="host",
            constraint=models.CheckConstraint(condition=models.Q(("unsettled__gte", 0)), name="host_unsettled"),
        ),
        migrations.AddConstraint(
            model_name="host",
            constraint=models.CheckConstraint(
                condition=models.Q(("empty_gpus__gte", 0), ("empty_gpus__lte", models.F("gpu_count"))),
                name="host_empty_gpus",
            ),
        ),
        migrations.AddConstraint(
            model_name="endpointkey",
            constraint=models.CheckConstraint(
                condition=models.Q(("digest__regex", "^[0-9a-f]{64}$")), name="endpoint_key_digest"
            ),
        ),
        migrations.AddIndex(
            model_name="endpoint",
            index=models.Index(
                condition=models.Q(("due_at__isnull", False), ("released_at__isnull", True)),
                fields=["due_at"],
                name="endpoint_due",
            ),
        ),
        migrations.AddIndex(
            model_name="endpoint",
            index=models.Index(fields=["tenant", "created_at", "id"], name="endpoint_tenant_created"),
        ),
        migrations.AddIndex(
            model_name="endpoint",
            index=models.Index(fields=["created_at", "id"], name="endpoint_created"),
        ),
        migrations.AddConstraint(
            model_name="endpoint",
            constraint=models.UniqueConstraint(
                condition=models.Q(("released_at__isnull", True)), fields=("tenant", "name"), name="endpoint_name_live"
            ),
        ),
        migrations.AddConstraint(
            model_name="endpoint",
            constraint=models.CheckConstraint(
                condition=models.Q(("name__regex", "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")), name="endpoint_name"
            ),
        ),
        migrations.AddConstraint(
            model_name="endpoint",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "phase__in",
                        [
                            "AwaitingApproval",
                            "Waiting",
                            "Provisioning",
                            "Ready",
                            "Degraded",
                            "Suspended",
                            "Expiring",
                            "Deleting",
                            "Released",
                            "Failed",
                        ],
                    )
                ),
                name="endpoint_phase",
            ),
        ),
        migrations.AddConstraint(
            model_name="endpoint",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("released_at__isnull", True), ("deletion_requested_at__isnull", False), _connector="OR"
                ),
                name="endpoint_released_asked",
            ),
        ),
        migrations.AddConstraint(
            model_name="endpoint",
            constraint=models.CheckConstraint(
                condition=models.Q(("released_at__isnull", True), ("finalizers__len", 0), _connector="OR"),
                name="endpoint_released_clean",
            ),
        ),
        migrations.AddConstraint(
            model_name="decision",
            constraint=models.CheckConstraint(
                condition=models.Q(("verdict__in", ["approve", "reduce", "deny"])), name="decision_verdict"
            ),
        ),
        migrations.AddConstraint(
            model_name="decision",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("decider__isnull", False), ("rule__isnull", True)),
                    models.Q(("decider__isnull", True), ("rule__isnull", False)),
                    _connector="OR",
                ),
                name="decision_person_or_rule",
            ),
        ),
        migrations.AddConstraint(
            model_name="decision",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("decider__isnull", True),
                    models.Q(("decider", models.F("requester")), _negated=True),
                    _connector="OR",
                ),
                name="decision_not_own",
            ),
        ),
        migrations.AddConstraint(
            model_name="decision",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("on_behalf_of__isnull", True),
                    models.Q(("on_behalf_of", models.F("requester")), _negated=True),
                    _connector="OR",
                ),
                name="decision_not_for_own",
            ),
        ),
        migrations.AddConstraint(
            model_name="decision",
            constraint=models.UniqueConstraint(
                fields=("request", "request_version", "stage"), name="decision_one_per_stage", nulls_distinct=False
            ),
        ),
        migrations.AddIndex(
            model_name="boundary",
            index=models.Index(
                condition=models.Q(("due_at__isnull", False), ("released_at__isnull", True)),
                fields=["due_at"],
                name="boundary_due",
            ),
        ),
        migrations.AddIndex(
            model_name="boundary",
            index=models.Index(fields=["tenant", "created_at", "id"], name="boundary_tenant_created"),
        ),
        migrations.AddConstraint(
            model_name="boundary",
            constraint=models.UniqueConstraint(
                condition=models.Q(("deletion_requested_at__isnull", True)),
                fields=("tenant", "provider", "kind", "tier"),
                name="boundary_one_per_tier",
            ),
        ),
        migrations.AddConstraint(
            model_name="boundary",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["vm", "namespace", "cluster"])), name="boundary_kind"
            ),
        ),
        migrations.AddConstraint(
            model_name="boundary",
            constraint=models.CheckConstraint(
                condition=models.Q(("tier__in", ["shared", "exclusive-gpu", "dedicated-host", "confidential"])),
                name="boundary_tier",
            ),
        ),
        migrations.AddConstraint(
            model_name="boundary",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "phase__in",
                        [
                            "AwaitingApproval",
                            "Waiting",
                            "Provisioning",
                            "Ready",
                            "Degraded",
                            "Suspended",
                            "Expiring",
                            "Deleting",
                            "Released",
                            "Failed",
                        ],
                    )
                ),
                name="boundary_phase",
            ),
        ),
        migrations.AddConstraint(
            model_name="boundary",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("released_at__isnull", True), ("deletion_requested_at__isnull", False), _connector="OR"
                ),
                name="boundary_released_asked",
            ),
        ),
        migrations.AddConstraint(
            model_name="boundary",
            constraint=models.CheckConstraint(
                condition=models.Q(("released_at__isnull", True), ("finalizers__len", 0), _connector="OR"),
                name="boundary_released_clean",
            ),
        ),
        migrations.AddConstraint(
            model_name="apitoken",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("person__isnull", False), ("service_account__isnull", True)),
                    models.Q(("person__isnull", True), ("service_account__isnull", False)),
                    _connector="OR",
                ),
                name="api_token_one_principal",
            ),
        ),
        migrations.AddIndex(
            model_name="allocation",
            index=models.Index(
                condition=models.Q(("due_at__isnull", False), ("released_at__isnull", True)),
                fields=["due_at"],
                name="allocation_due",
            ),
        ),
        migrations.AddIndex(
            model_name="allocation",
            index=models.Index(fields=["tenant", "created_at", "id"], name="allocation_tenant_created"),
        ),
        migrations.AddIndex(
            model_name="allocation",
            index=models.Index(fields=["created_at", "id"], name="allocation_created"),
        ),
        migrations.AddIndex(
            model_name="allocation",
            index=models.Index(
                condition=models.Q(("queued_at__isnull", False), ("released_at__isnull", True)),
                fields=["queued_at", "id"],
                name="allocation_queue",
            ),
        ),
        migrations.AddIndex(
            model_name="allocation",
            index=models.Index(
                condition=models.Q(("expires_at__isnull", False), ("released_at__isnull", True)),
                fields=["expires_at"],
                name="allocation_expiry",
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.UniqueConstraint(
                condition=models.Q(("released_at__isnull", True)),
                fields=("tenant", "product_kind", "name"),
                name="allocation_name_live",
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.CheckConstraint(
                condition=models.Q(("name__regex", "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")), name="allocation_name"
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.CheckConstraint(
                condition=models.Q(("priority__in", ["standard", "preemptible"])), name="allocation_priority"
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.CheckConstraint(
                condition=models.Q(("service_class__in", ["trial", "standard", "production"])),
                name="allocation_service_class",
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.CheckConstraint(
                condition=models.Q(("on_shortage__in", ["fail", "request", "wait"])), name="allocation_on_shortage"
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.CheckConstraint(
                condition=models.Q(("product_kind__in", ["endpoint", "machine", "namespace", "bare"])),
                name="allocation_product_kind",
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "phase__in",
                        [
                            "AwaitingApproval",
                            "Waiting",
                            "Provisioning",
                            "Ready",
                            "Degraded",
                            "Suspended",
                            "Expiring",
                            "Deleting",
                            "Released",
                            "Failed",
                        ],
                    )
                ),
                name="allocation_phase",
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("released_at__isnull", True), ("deletion_requested_at__isnull", False), _connector="OR"
                ),
                name="allocation_released_asked",
            ),
        ),
        migrations.AddConstraint(
            model_name="allocation",
            constraint=models.CheckConstraint(
                condition=models.Q(("released_at__isnull", True), ("finalizers__len", 0), _connector="OR"),
                name="allocation_released_clean",
            ),
        ),
        migrations.AddIndex(
            model_name="unit",
            index=models.Index(condition=models.Q(("host__isnull", False)), fields=["host"], name="unit_host"),
        ),
        migrations.AddConstraint(
            model_name="unit",
            constraint=models.UniqueConstraint(
                condition=models.Q(("released_at__isnull", True)),
                fields=("allocation", "index"),
                name="unit_index_live",
            ),
        ),
        migrations.AddConstraint(
            model_name="unit",
            constraint=models.CheckConstraint(
                condition=models.Q(("profile", ""), models.Q(("gpu_count", 0), ("product__gt", "")), _connector="OR"),
                name="unit_profile_or_whole",
            ),
        ),
        migrations.AddConstraint(
            model_name="unit",
            constraint=models.CheckConstraint(
                condition=models.Q(("released_at__isnull", True), ("host__isnull", True), _connector="OR"),
                name="unit_released_unplaced",
            ),
        ),
        migrations.AddIndex(
            model_name="hold",
            index=models.Index(condition=models.Q(("tenant__isnull", False)), fields=["tenant"], name="hold_tenant"),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=django.contrib.postgres.constraints.ExclusionConstraint(
                deferrable=django.db.models.constraints.Deferrable["IMMEDIATE"],
                expressions=[("slots", "&&"), ("during", "&&")],
                name="hold_no_overlap",
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=django.contrib.postgres.constraints.ExclusionConstraint(
                condition=models.Q(("media", True)),
                deferrable=django.db.models.constraints.Deferrable["IMMEDIATE"],
                expressions=[
                    (
                        models.Func(
                            models.F("device_number"),
                            models.F("device_number"),
                            models.Value("[]"),
                            function="int8range",
                            output_field=django.contrib.postgres.fields.ranges.BigIntegerRangeField(),
                        ),
                        "&&",
                    ),
                    ("during", "&&"),
                ],
                name="hold_one_media",
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["tenant", "foreign", "maintenance", "fault", "reserved"])),
                name="hold_kind",
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("start__gte", 0),
                    ("size__gte", 1),
                    (
                        "start__lte",
                        django.db.models.expressions.CombinedExpression(models.Value(16), "-", models.F("size")),
                    ),
                ),
                name="hold_window",
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("kind", "tenant"), ("tenant__isnull", False), ("unit__isnull", False)),
                    models.Q(models.Q(("kind", "tenant"), _negated=True), ("unit__isnull", True)),
                    _connector="OR",
                ),
                name="hold_tenant_has_unit",
            ),
        ),
        migrations.AddConstraint(
            model_name="gatewayreplica",
            constraint=models.UniqueConstraint(
                condition=models.Q(("removed_at__isnull", True), ("unit__isnull", True)),
                fields=("boundary",),
                name="gateway_one_per_namespace",
            ),
        ),
        migrations.AddIndex(
            model_name="usagerecord",
            index=models.Index(fields=["hold_id"], name="usage_record_hold"),
        ),
        migrations.AddIndex(
            model_name="usagerecord",
            index=models.Index(fields=["tenant", "held_from"], name="usage_record_tenant"),
        ),
        migrations.AddIndex(
            model_name="usagerecord",
            index=models.Index(fields=["device", "held_from"], name="usage_record_device"),
        ),
        migrations.AddIndex(
            model_name="usagerecord",
            index=models.Index(fields=["allocation_id"], name="usage_record_allocation"),
        ),
        migrations.AddConstraint(
            model_name="usagerecord",
            constraint=models.CheckConstraint(
                condition=models.Q(("held_to__isnull", True), ("held_to__gte", models.F("held_from")), _connector="OR"),
                name="usage_record_order",
            ),
        ),
        migrations.AddConstraint(
            model_name="usagerecord",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["tenant", "foreign", "maintenance", "fault", "reserved"])),
                name="usage_record_kind",
            ),
        ),
    ]
