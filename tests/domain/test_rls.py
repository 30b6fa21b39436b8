"""Row-level security alone, with every filter of ours removed: another tenant sees nothing."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.apps import apps
from django.db import DatabaseError, IntegrityError, connection, models, transaction

from tenants import ledger
from tenants.actor import ANONYMOUS, AUTH, Actor, Kind
from tenants.models import (
    AccountLink,
    AddressCheck,
    Allocation,
    ApiToken,
    AutoApprovalRule,
    Benchmark,
    Boundary,
    Budget,
    BudgetLease,
    ChainHead,
    Checkpoint,
    Decision,
    Delegation,
    Delivery,
    DeliveryAttempt,
    Endpoint,
    EndpointKey,
    EndpointLog,
    EndpointMinute,
    EndpointUsage,
    Event,
    FanoutCursor,
    Finding,
    FitCorrection,
    FitMeasurement,
    GatewayReplica,
    GatewayUsage,
    GpuDevice,
    Hold,
    Host,
    HostPlan,
    IdempotencyRecord,
    Intent,
    Machine,
    MachineConsole,
    Membership,
    MigDevice,
    ModelStage,
    Move,
    Namespace,
    NamespaceCredential,
    Notice,
    Notification,
    NotificationMark,
    NotificationPreference,
    Outbox,
    OutboxMail,
    Person,
    PlatformMembership,
    Price,
    PriceList,
    Provider,
    ProviderCredential,
    Quota,
    QuotaCharge,
    Request,
    RequestComment,
    RequestStage,
    Revision,
    Rollout,
    ServedModel,
    ServiceAccount,
    SshAuthority,
    SshCertificate,
    Suspension,
    SystemReport,
    Tenant,
    Unit,
    UnitSize,
    UsageChange,
    UsageDay,
    UsageRecord,
    UsageRollup,
    UsageStanding,
    UsageSubject,
    Vlan,
    Webhook,
)
from tenants.operations import allocations, people, quotas, requests, service_accounts
from tenants.operations import tenants as tenant_operations
from tenants.specs import AllocationSpec, BareAsk, GpuAsk, UnitAsk
from tenants.states import OnShortage, PlatformRole, Role, SuspensionDepth
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

OWNED: tuple[type[models.Model], ...] = (
    AccountLink, AddressCheck, Allocation, ApiToken, Benchmark, Boundary, Budget, BudgetLease, ChainHead, Decision,
    Delegation, Delivery, DeliveryAttempt, Endpoint, EndpointKey, EndpointLog, EndpointMinute, EndpointUsage, Event,
    GatewayReplica, GatewayUsage, Hold, Intent, Machine, Membership, Move, Namespace, Notice, Person,
    PlatformMembership, Quota, QuotaCharge, Request, RequestComment, RequestStage, Revision, Rollout,
    ServiceAccount, SshAuthority, SshCertificate, Suspension, Tenant, Unit, UnitSize, UsageChange, UsageDay,
    UsageRecord, UsageRollup, UsageStanding, UsageSubject, Vlan, Webhook,
)  # fmt: skip
"""Every table with rows of tenants or people that an operator sees, too."""
OPERATORS_ONLY: tuple[type[models.Model], ...] = (
    Checkpoint, Finding, HostPlan, OutboxMail, ProviderCredential, SystemReport,
)  # fmt: skip
ESTATE: tuple[type[models.Model], ...] = (Provider, Host, GpuDevice, MigDevice)
"""Everybody reads them (what is shown of them is another matter), the platform writes them."""
PUBLISHED: tuple[type[models.Model], ...] = (
    AutoApprovalRule, FitCorrection, FitMeasurement, ModelStage, Price, PriceList, ServedModel,
)  # fmt: skip
"""Everybody reads them, the platform writes them."""
ONES_OWN: tuple[type[models.Model], ...] = (
    IdempotencyRecord, MachineConsole, NamespaceCredential, Notification, NotificationPreference,
)  # fmt: skip
"""The principal's alone: not even an operator looks into them."""
HIDDEN: tuple[type[models.Model], ...] = (FanoutCursor, NotificationMark, Outbox)
"""The workers' own."""


def insert(table: type[models.Model], /, **values: object) -> models.Model:
    """Write a row past every operation, as the worker role."""
    return table._base_manager.create(**values)


@pytest.fixture
def world():
    """A tenant with at least one row in every table of its own; an operator decided its request."""
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=1)
    tenant = factories.tenant()
    factories.generous(tenant)
    operator = factories.person(platform=(PlatformRole.OPERATOR,))
    approver = factories.person(platform=(PlatformRole.APPROVER,))
    owner, member = factories.member(tenant, Role.OWNER), factories.member(tenant)
    actor = factories.actor(owner)
    account = service_accounts.create(tenant=tenant, name="ci", role=Role.MEMBER, actor=actor, now=NOW)
    service_accounts.issue_token(account=account, name="ci", actor=actor, now=NOW)
    spec = AllocationSpec(
        units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=1, memory_gib=1),), on_shortage=OnShortage.FAIL
    )
    allocation = allocations.create(tenant=tenant, ask=BareAsk("alpha", spec), actor=actor, now=NOW)
    request = requests.submit(
        kind="quota", payload={"limits": {"vcpu": 1}}, reason="more", tenant=tenant, actor=actor, now=NOW
    )
    requests.comment(request=request, text="please", actor=actor, now=NOW)
    requests.decide(request=request, version=1, verdict="deny", reason="no", actor=factories.actor(approver), now=NOW)
    tenant_operations.suspend(
        tenant=tenant, depth=SuspensionDepth.KEYS, reason="bill", actor=factories.actor(operator), now=NOW
    )
    boundary = Boundary.objects.get()
    common = {"tenant": tenant, "created_at": NOW}
    made: dict[type[models.Model], models.Model] = {}
    for kind in (Endpoint, Machine, Namespace):
        other = insert(
            Allocation, **common, name=f"of-{kind.__name__.lower()}", product_kind=kind.__name__.lower(),
            spec=spec.as_json(), demand={}, duration_s=60,
        )  # fmt: skip
        extra = {"image": "x", "disk_gib": 1} if kind is Machine else {}
        made[kind] = insert(kind, **common, name="alpha", allocation=other, boundary=boundary, **extra)
    insert(NamespaceCredential, tenant=tenant, namespace=made[Namespace], person_id=owner.pk, seconds=60, asked_at=NOW)
    insert(MachineConsole, tenant=tenant, machine=made[Machine], person_id=owner.pk, asked_at=NOW)
    authority = insert(SshAuthority, **common, public_key="x", sealed=b"x")
    insert(
        SshCertificate, **common, machine=made[Machine], authority=authority, serial=1, principal_id=owner.pk,
        fingerprint="x", expires_at=NOW + timedelta(minutes=15),
    )  # fmt: skip
    model = factories.served_model()
    first = insert(Revision, **common, endpoint=made[Endpoint], number=1, model=model)
    second = insert(Revision, **common, endpoint=made[Endpoint], number=2, model=model)
    insert(
        Rollout, **common, endpoint=made[Endpoint], before=first, revision=second, strategy="recreate",
        state="draining", since=NOW,
    )  # fmt: skip
    insert(Move, **common, endpoint=made[Endpoint], state="preparing", since=NOW)
    insert(Benchmark, **common, endpoint=made[Endpoint], revision=1, load={})
    insert(AddressCheck, tenant=tenant, endpoint=made[Endpoint], address="x", ok=True, checked_at=NOW, due_at=NOW)
    insert(EndpointLog, tenant=tenant, endpoint=made[Endpoint], tail=1, asked_at=NOW)
    learnt = insert(FitCorrection, model=model, product="H100-80GB", created_at=NOW)
    insert(FitMeasurement, correction=learnt, start=first.pk, program="vLLM", at=NOW)
    insert(ModelStage, provider=provider, model=model, asked_at=NOW)
    insert(EndpointKey, **common, endpoint=made[Endpoint], public_id="x", digest="0" * 64, name="k")
    gateway = insert(GatewayReplica, **common, boundary=boundary)
    insert(
        GatewayUsage, id=gateway.pk, tenant=tenant, gateway=gateway, requests=1, prompt_tokens=1, completion_tokens=1,
        received_at=NOW,
    )  # fmt: skip
    insert(EndpointMinute, tenant=tenant, endpoint_id=made[Endpoint].pk, gateway=gateway, minute=NOW)
    insert(BudgetLease, tenant=tenant, gateway=gateway, budget="x", period_start=NOW, granted=1, updated_at=NOW)
    unit = Unit.objects.get(allocation=allocation)
    assert ledger.resize(unit, vcpu=2, memory_gib=1, disk_before_gib=0, now=NOW) == "done"
    insert(Vlan, provider=provider, number=1200, boundary=boundary, tenant=tenant, taken_at=NOW)
    insert(Notice, tenant=tenant, kind="x", text="x", at=NOW, key="x")
    insert(
        Intent, object_kind="boundary", object_id=boundary.pk, tenant=tenant, step="x", key="x", epoch=1,
        started_at=NOW, deadline_at=NOW,
    )  # fmt: skip
    insert(Delegation, person=owner, delegate=member, starts_at=NOW, ends_at=NOW + timedelta(days=1), created_at=NOW)
    insert(ProviderCredential, provider=provider, name="token", sealed=b"x", created_at=NOW)
    insert(Finding, kind="drift", subject="x", detail="x", first_seen_at=NOW, last_seen_at=NOW)
    insert(HostPlan, host=provider.hosts.get(), reason="x", starts_at=NOW, author=operator.pk, created_at=NOW)
    insert(SystemReport, asked_at=NOW)
    insert(AutoApprovalRule, name="x", kind="quota", created_at=NOW)
    _reached(tenant, made[Endpoint], owner)
    with connection.cursor() as cursor:
        cursor.execute("SELECT checkpoint_write(%s)", [NOW])
    return {"tenant": tenant, "owner": owner, "member": member, "operator": operator, "allocation": allocation}


def _reached(tenant: Tenant, endpoint: models.Model, owner: Person) -> None:
    """Give the tenant an invitation, a budget, a webhook with a delivery, usage of a key, and its owner news."""
    insert(
        AccountLink, kind="invitation", digest=b"x" * 32, email="new@acme.test", tenant=tenant, role=int(Role.MEMBER),
        created_at=NOW, expires_at=NOW + timedelta(days=1),
    )  # fmt: skip
    insert(Budget, tenant=tenant, amount=100, currency="EUR", created_at=NOW)
    webhook = insert(Webhook, tenant=tenant, name="hook", url="https://acme.test/hook", created_at=NOW)
    delivery = insert(
        Delivery, medium="webhook", key="x", tenant=tenant, webhook=webhook, kind="x", body="{}", created_at=NOW,
        next_at=NOW, give_up_at=NOW,
    )  # fmt: skip
    insert(DeliveryAttempt, delivery=delivery, number=1, started_at=NOW)
    insert(
        EndpointUsage, tenant=tenant, endpoint_id=endpoint.pk, hour=NOW, requests=1, errors=0, prompt_tokens=1,
        completion_tokens=1,
    )  # fmt: skip
    provider = Provider.objects.get()
    insert(UsageRollup, tenant=tenant, through=NOW, ends=NOW + timedelta(days=30))
    insert(UsageDay, tenant=tenant, provider=provider, day=NOW.date(), item="vcpu", quantity=1)
    insert(UsageStanding, tenant=tenant, provider=provider, item="vcpu", since=NOW, amount=1, to_come=1)
    insert(UsageChange, tenant=tenant, at=NOW - timedelta(days=1))
    insert(UsageSubject, allocation_id=uuid4(), tenant=tenant, kind="endpoint", name="gone", short_id="ep-gone")
    insert(Notification, person=owner, tenant=tenant, kind="x", event_id=uuid4(), at=NOW, created_at=NOW)
    insert(NotificationPreference, person=owner, kind="x", bell=True, mail="off")
    insert(OutboxMail, message_id="x", recipient="owner@acme.test", subject="x", text="x", at=NOW)
    insert(IdempotencyRecord, principal=f"person:{owner.pk}", key="x", body_hash="x", created_at=NOW)


def counts(tables: tuple[type[models.Model], ...], actor: Actor) -> dict[str, int]:
    with acting(actor):
        return {model.__name__: model._base_manager.count() for model in tables}


def strangers() -> dict[str, Actor]:
    elsewhere = factories.tenant()
    stranger = factories.member(elsewhere, Role.OWNER)
    account = factories.service_account(elsewhere, owner=stranger)
    return {
        "owner elsewhere": factories.actor(stranger),
        "service account elsewhere": Actor(Kind.SERVICE_ACCOUNT, account.pk, stranger.pk, {elsewhere.pk: Role.MEMBER}),
        "somebody without any tenant": factories.actor(factories.person()),
        "an agent that is none": Actor(Kind.AGENT, elsewhere.pk),
        "anonymous": ANONYMOUS,
    }


OF_HIS_OWN = {"Tenant", "Membership", "Person", "ServiceAccount"}
"""A stranger sees himself and where he is at home."""


def test_the_world_has_a_row_in_every_table(world):
    operator = factories.actor(world["operator"])

    assert [name for name, count in counts((*OWNED, *OPERATORS_ONLY), operator).items() if count == 0] == []


def test_without_any_filter_a_stranger_sees_nothing_of_the_tenant(world):
    seen: dict[str, list[str]] = {}
    for who, actor in strangers().items():
        with acting(actor):
            seen[who] = [m.__name__ for m in OWNED if m.__name__ not in OF_HIS_OWN and m._base_manager.exists()]
            assert not Tenant.objects.filter(pk=world["tenant"].pk).exists(), who
            assert not Membership.objects.filter(tenant=world["tenant"]).exists(), who
            assert not Person.objects.filter(pk__in=[world["owner"].pk, world["member"].pk]).exists(), who
            assert not ServiceAccount.objects.filter(tenant=world["tenant"]).exists(), who

    assert seen == {who: [] for who in seen}


def test_what_is_a_persons_alone_shows_to_nobody_else(world):
    names = [m.__name__ for m in ONES_OWN]

    assert counts(ONES_OWN, factories.actor(world["owner"])) == dict.fromkeys(names, 1)
    for person in (world["member"], world["operator"]):
        assert counts(ONES_OWN, factories.actor(person)) == dict.fromkeys(names, 0)


def test_operators_tables_show_nothing_to_a_tenant(world):
    assert counts(OPERATORS_ONLY, factories.actor(world["owner"])) == dict.fromkeys(
        [m.__name__ for m in OPERATORS_ONLY], 0
    )


def test_without_the_transaction_helper_nothing_shows_to_the_web_role(world):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL ROLE cp_app")
        cursor.execute("SELECT set_config('app.actor', '', true)")
        seen = [m.__name__ for m in (*OWNED, *OPERATORS_ONLY) if m._base_manager.exists()]

    assert seen == []


def test_the_look_up_of_principals_sees_people_and_tokens_and_nothing_else(world):
    with acting(AUTH):
        seen = {m.__name__ for m in OWNED if m._base_manager.exists()}

    assert seen == {"ApiToken", "Membership", "Person", "PlatformMembership", "ServiceAccount"}


def test_a_stranger_changes_nothing_by_plain_sql(world):
    without_the_right = {
        ChainHead, DeliveryAttempt, EndpointLog, Event, Hold, UnitSize, UsageChange, UsageDay, UsageRecord, UsageRollup,
        UsageStanding, Vlan,
    }  # fmt: skip
    keys = {m._meta.db_table: m._meta.pk.column for m in OWNED if m not in without_the_right}
    stranger = strangers()["owner elsewhere"]
    before = counts(OWNED, factories.actor(world["operator"]))
    touched = {}

    with acting(stranger), connection.cursor() as cursor:
        for table, key in keys.items():
            cursor.execute(f"UPDATE {table} SET {key} = {key} WHERE {key} <> %s", [stranger.id])
            mine = cursor.rowcount
            touched[table] = mine

    own = {"tenants_tenant": 1, "tenants_membership": 1, "tenants_person": 0, "tenants_serviceaccount": 1}
    assert touched == {table: own.get(table, 0) for table in keys}
    assert counts(OWNED, factories.actor(world["operator"])) == before


def refused(table: type[models.Model], actor: Actor, **values: object) -> None:
    before = table._base_manager.count()

    with pytest.raises(DatabaseError, match="row-level security"), acting(actor):
        insert(table, **values)

    assert table._base_manager.count() == before


def test_nobody_makes_himself_a_member_or_an_operator_by_plain_sql(world):
    stranger = strangers()["owner elsewhere"]
    member = factories.actor(world["member"])

    refused(Membership, stranger, tenant=world["tenant"], person_id=stranger.person_id, role=3, created_at=NOW)
    refused(PlatformMembership, member, person_id=member.person_id, role="operator", created_at=NOW)
    refused(PlatformMembership, AUTH, person_id=member.person_id, role="operator", created_at=NOW)


def test_rules_prices_and_models_are_written_by_the_platform_only(world):
    owner = factories.actor(world["owner"])

    refused(AutoApprovalRule, owner, name="mine", kind="quota", limits={"vcpu": 10**9}, created_at=NOW)
    refused(ServedModel, owner, name="mine", repository="a/b", commit="0" * 40, created_at=NOW)
    refused(PriceList, owner, name="free", valid_from=NOW, created_at=NOW)


def test_the_estate_is_written_by_the_platform_only(world):
    owner = factories.actor(world["owner"])

    with acting(owner):
        assert [m.__name__ for m in ESTATE if not m._base_manager.exists()] == ["MigDevice"], "everybody reads them"
        touched = [m._base_manager.update(id=models.F("id")) for m in ESTATE]

    assert touched == [0, 0, 0, 0]
    refused(Provider, owner, name="mine", kind="sandbox", created_at=NOW)


def test_each_table_says_whose_rows_it_holds():
    known = {*OWNED, *OPERATORS_ONLY, *ESTATE, *PUBLISHED, *ONES_OWN, *HIDDEN}
    tables = {model for model in apps.get_app_config("tenants").get_models() if model._meta.managed}

    assert {m.__name__ for m in tables - known} == set(), "a new table belongs to one of the lists above"
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relrowsecurity")
        guarded = {name for (name,) in cursor.fetchall()}
    assert {m._meta.db_table for m in tables} - guarded == set()


def test_a_child_changes_nothing_of_its_parent_by_plain_sql(world):
    child = factories.tenant(parent=world["tenant"])
    owner = factories.actor(factories.member(child, Role.OWNER))

    with acting(owner):
        touched = Tenant.objects.filter(pk=world["tenant"].pk).update(status="active")
        touched += Quota.objects.filter(tenant=world["tenant"]).update(amount=10**9)

    assert touched == 0
    refused(Quota, owner, tenant=world["tenant"], dimension="machines", amount=9, until=NOW, created_at=NOW)


@pytest.mark.parametrize(
    "table", ["tenants_event", "tenants_hold", "tenants_chainhead", "tenants_usagerecord", "tenants_unitsize"]
)
def test_history_and_ledger_cannot_be_deleted_by_any_role_of_ours(world, table):
    for role in ("cp_app", "cp_worker"):
        with pytest.raises(DatabaseError, match="permission denied"), transaction.atomic():
            connection.cursor().execute(f"SET LOCAL ROLE {role}; DELETE FROM {table}")


def test_log_in_counters_show_to_nobody(world):
    with pytest.raises(DatabaseError, match="permission denied"), acting(AUTH), connection.cursor() as cursor:
        cursor.execute("SELECT * FROM tenants_loginattempt")


def test_the_database_refuses_ones_own_decision_by_plain_sql(world):
    owner, operator = world["owner"], world["operator"]
    request = Request.objects.get()
    columns = {
        "request": request, "request_version": 9, "verdict": "approve", "created_at": NOW, "tenant": world["tenant"],
    }  # fmt: skip

    with pytest.raises(IntegrityError, match="decision_not_own"), transaction.atomic():
        insert(Decision, **columns, requester=owner, decider=owner)
    with pytest.raises(IntegrityError, match="decision_not_for_own"), transaction.atomic():
        insert(Decision, **columns, requester=owner, decider=operator, on_behalf_of=owner)
    with pytest.raises(IntegrityError, match="decision_requester_fk"), transaction.atomic():
        insert(Decision, **columns, requester=operator, decider=owner)
    with pytest.raises(IntegrityError, match="decision_person_or_rule"), transaction.atomic():
        insert(Decision, **columns, requester=owner)


def test_a_child_sees_the_limits_above_it_and_nothing_else_of_the_parent(world):
    child = factories.tenant(parent=world["tenant"])
    member = factories.actor(factories.member(child))

    with acting(member):
        seen = {m.__name__ for m in OWNED if m._base_manager.filter(**_of(m, world["tenant"])).exists()}

    assert seen == {"Tenant", "Quota"}


def _of(model: type[models.Model], tenant: Tenant) -> dict[str, object]:
    fields = {f.name for f in model._meta.get_fields()}
    if model is Tenant:
        return {"pk": tenant.pk}
    if model is Event:
        return {"tenant_id": tenant.pk}
    if "tenant" in fields:
        return {"tenant": tenant}
    return {"pk__in": []}


def test_usage_of_siblings_is_summed_and_not_named(world):
    parent = world["tenant"]
    child = factories.tenant(parent=parent)
    factories.set_limit(child, "vcpu", 10**9)
    member = factories.actor(factories.member(child))

    with acting(member):
        top, own = quotas.position(child, ["vcpu"])
        held = quotas.holders(parent.pk, "vcpu", int(top.usage.of("vcpu")))

    assert (top.tenant, top.usage.of("vcpu"), own.usage.of("vcpu")) == (parent.name, 1, 0)
    assert held == [{"tenant": "another tenant", "name": "", "kind": "", "amount": 1}]


def test_an_operator_loses_sight_with_his_role(world):
    operator = world["operator"]
    actor = factories.actor(operator)
    other = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    people.set_roles(person=operator, roles=[], actor=other, now=NOW)

    with acting(actor):
        assert Tenant.objects.count() == 0
