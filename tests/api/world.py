"""One small world with two tenants that have the same kinds of objects, for the matrix and for hostile input."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

from tenants.actor import SYSTEM
from tenants.benchmarks import Load
from tenants.models import (
    AutoApprovalRule,
    Benchmark,
    Boundary,
    Budget,
    Delegation,
    Endpoint,
    Finding,
    FitCorrection,
    GpuDevice,
    HostPlan,
    ModelStage,
    Person,
    Price,
    PriceList,
    Quota,
    Request,
    RequestStage,
    ServedModel,
    ServiceAccount,
    Tenant,
)
from tenants.operations import boundaries
from tenants.states import PlatformRole, Role
from tests import factories
from tests.api.client import Api, token_of
from tests.conftest import NOW
from tests.snapshots import kept

GPU = {"gpu": {"product": "H100-80GB", "profile": "1g.10gb"}, "vcpu": 2, "memory_gib": 8}
ENDPOINT = {"name": "fresh", "model": "llama-3-1-8b", "unit": GPU}
MACHINE = {"name": "fresh", "unit": GPU, "image": "ubuntu-24.04"}
NAMESPACE = {"name": "fresh", "units": [GPU]}
ALLOCATION = {"name": "fresh", "units": [GPU]}
LATER = "2090-01-01T00:00:00Z"


def without(body: dict[str, Any], name: str = "name") -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


# A valid body for every operation that takes one. An operation without an entry fails the matrix.
BODIES: dict[str, Any] = {
    "endpoints.create": ENDPOINT,
    "endpoints.put": without(ENDPOINT),
    "endpoints.update": {"description": "new"},
    "endpoints.revise": {"model": "llama-3-1-8b"},
    "endpoints.abort": {},
    "endpoints.set_idle": {"after_s": 1800},
    "endpoints.rollback": {},
    "endpoints.move": {"kind": "vm"},
    "endpoints.undo_move": {},
    "endpoints.create_key": {"name": "laptop"},
    "endpoints.roll_key": {"overlap_s": 60},
    "endpoints.limit_key": {"requests_per_minute": 60},
    "endpoints.benchmark": {"requests": 4},
    "endpoints.log": {"tail": 10},
    "machines.create": MACHINE,
    "machines.put": without(MACHINE),
    "machines.update": {"description": "new"},
    "machines.power": {"power": "off"},
    "machines.rebuild": {"image": "debian-12"},
    "machines.resize": {"disk_gib": 200},
    "machines.ssh_certificate": {
        "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK5uPv4HWUAPaRKNzhxQCyb6tmQgh8X4cFI/hsNdW4A4 a@test"
    },
    "namespaces.create": NAMESPACE,
    "namespaces.put": without(NAMESPACE),
    "namespaces.update": {"description": "new"},
    "namespaces.credential": {"seconds": 600},
    "allocations.create": ALLOCATION,
    "allocations.create_batch": {"allocations": [ALLOCATION]},
    "allocations.renew": {"duration_s": 90 * 86400},
    "tenants.create": {"name": "new-root", "display_name": "New"},
    "tenants.create_child": {"name": "new-child", "display_name": "New"},
    "tenants.update": {"description": "new"},
    "tenants.set_policy": {"tiers": ["shared"]},
    "tenants.suspend": {"depth": "keys", "reason": "a test"},
    "members.create": {"email": "joiner@example.org", "role": "viewer"},
    "members.update": {"role": "viewer"},
    "members.hand_over": {"to": "filled in"},
    "service-accounts.create": {"name": "new-robot", "role": "viewer"},
    "service-accounts.update": {"role": "viewer"},
    "service-account-tokens.create": {"name": "new"},
    "quotas.set": {"dimension": "vcpu", "amount": 10},
    "requests.create": {"payload": {"limits": {"vcpu": 10}}},
    "requests.create_tenant": {"payload": {"name": "wished-for"}},
    "requests.create_join": {"tenant": "elsewhere"},
    "requests.create_write_off": {"tenant": "acme", "allocation": "space"},
    "requests.revise": {"payload": {"limits": {"vcpu": 20}}},
    "requests.decide": {"version": 1, "verdict": "deny", "reason": "a test"},
    "requests.comment": {"text": "hello"},
    "login.create": {"email": "nobody@example.org", "password": "wrong-password"},
    "tokens.create": {"name": "new"},
    "tokens.find": {"text": "nothing here"},
    "people.set_password": {"new": "correct-horse-battery"},
    "people.create": {"email": "new@example.org", "display_name": "New"},
    "people.update": {"display_name": "Other"},
    "people.suspend": {"reason": "a test"},
    "people.set_roles": {"roles": ["auditor"]},
    "people.leave": {},
    "delegations.create": {"delegate": "joiner@example.org", "starts_at": LATER, "ends_at": "2090-02-01T00:00:00Z"},
    "auto-approval-rules.create": {"name": "small", "limits": {"vcpu": 4}},
    "auto-approval-rules.update": {"enabled": False},
    "providers.create": {"name": "another", "kind": "sandbox", "site": "berlin"},
    "providers.update": {"site": "paris"},
    "providers.set_credential": {"value": "secret-value"},
    "notifications.mark_read": {"all": True},
    "notification-preferences.set": {"kind": "request.decided", "bell": True, "mail": "digest"},
    "webhooks.create": {"name": "fresh", "url": "https://hooks.example.org/in"},
    "webhooks.update": {"url": "https://hooks.example.org/other"},
    "webhooks.roll": {"overlap_s": 60},
    "budgets.set": {"amount": "2500.00"},
    "hosts.drain": {"reason": "a test"},
    "hosts.layout": {"reason": "a test", "layouts": [{"device": "all", "profiles": ["7g.80gb"]}]},
    "hosts.preview_layout": {"layouts": [{"device": "all", "profiles": ["7g.80gb"]}]},
    "hosts.maintenance": {"reason": "a test"},
    "hosts.return": {"reason": "a test"},
    "devices.repair": {"reason": "a test"},
    "findings.resolve": {"action": "ignore", "reason": "a test"},
    "served-models.create": {"name": "qwen3-8b", "repository": "Qwen/Qwen3-8B", "commit": "a" * 40},
    "model-stages.create": {"model": "llama-3-1-8b", "provider": "estate"},
    "requests.create_model": {
        "payload": {"name": "acme-own", "repository": "Qwen/Qwen3-8B", "commit": "a" * 40},
        "reason": "a test",
    },
    "served-models.update": {"licence": "MIT"},
    "system.check": {"thorough": False},
    "prices.create": {"name": "next", "valid_from": LATER, "prices": {"vcpu": "0.02"}},
}


@dataclass
class Home:
    """One tenant and the names of what is in it."""

    tenant: Tenant
    owner: Person
    member: Person
    viewer: Person
    account: ServiceAccount
    quota: Quota
    request: Request
    boundary: str
    key: str
    token: str
    delivery: str
    benchmark: str


@dataclass
class World:
    """Everything the matrix walks through."""

    parent: Tenant
    acme: Home
    globex: Home
    operator: Person
    approver: Person
    auditor: Person
    parent_owner: Person
    platform: dict[str, str] = field(default_factory=dict)

    def fill(self, path: str, home: Home | None) -> str:
        """Return a path with its parameters filled in; `home` None: a tenant that does not exist."""
        of = home or self.acme
        values = {
            "<str:tenant>": home.tenant.name if home else "no-such-tenant",
            "endpoints/<str:name>": "endpoints/chat",
            "machines/<str:name>": "machines/box",
            "namespaces/<str:name>": "namespaces/space",
            "allocations/<str:name>": "allocations/bare",
            "boundaries/<str:name>": f"boundaries/{of.boundary}",
            "service-accounts/<str:name>": f"service-accounts/{of.account.name}",
            "keys/<str:key>": f"keys/{of.key}",
            "<str:credential>": str(uuid4()),
            "<str:console>": str(uuid4()),
            "<str:log>": str(uuid4()),
            "<str:benchmark>": of.benchmark,
            "webhooks/<str:name>": "webhooks/hook",
            "deliveries/<str:delivery>": f"deliveries/{of.delivery}",
            f"{of.account.name}/tokens/<str:token>": f"{of.account.name}/tokens/{of.token}",
            "members/<str:person>": f"members/{of.member.pk}",
            "quotas/<str:quota>": f"quotas/{of.quota.pk}",
            "requests/<str:name>": f"requests/{of.request.pk}",
            **self.platform,
        }
        for old, new in values.items():
            path = path.replace(old, new)
        assert "<" not in path, f"no object stands for the parameter in {path}"
        return path


@kept
def build() -> World:
    """Make the world."""
    capabilities = {"boundary_kinds": ["namespace", "vm"], "features": {"model-staging": True}}
    provider = factories.provider(name="estate", capabilities=capabilities)
    host = factories.host(provider)
    spare = factories.host(provider)
    factories.served_model()
    parent = factories.tenant(name="holding")
    elsewhere = factories.tenant(name="elsewhere")
    factories.member(elsewhere, Role.OWNER)
    factories.generous(parent)
    joiner = factories.person(name="Joiner")
    Person.objects.filter(pk=joiner.pk).update(email="joiner@example.org")
    world = World(
        parent=parent,
        acme=_home("acme", parent),
        globex=_home("globex", None),
        operator=factories.person(platform=(PlatformRole.OPERATOR,)),
        approver=factories.person(platform=(PlatformRole.APPROVER,)),
        auditor=factories.person(platform=(PlatformRole.AUDITOR,)),
        parent_owner=factories.member(parent, Role.OWNER),
    )
    factories.person(platform=(PlatformRole.OPERATOR,))
    prices = PriceList.objects.create(name="first", valid_from=NOW, created_at=NOW)
    Price.objects.create(price_list=prices, item="vcpu", amount="0.01")
    learnt = FitCorrection.objects.create(
        model=ServedModel.objects.get(), product="H100-80GB", profile="1g.10gb", created_at=NOW
    )
    staged = ModelStage.objects.create(
        provider=provider, model=learnt.model, state="failed", asked_at=NOW, ended_at=NOW
    )
    finding = Finding.objects.create(
        kind="orphan", provider=provider, subject="vm-1", detail="Nobody's.", first_seen_at=NOW, last_seen_at=NOW
    )
    plan = HostPlan.objects.create(host=spare, reason="a test", starts_at=NOW, author=world.operator.pk, created_at=NOW)
    rule = AutoApprovalRule.objects.create(name="rule", kind="quota", limits={"vcpu": 1}, created_at=NOW)
    delegation = Delegation.objects.create(
        person=world.acme.owner,
        delegate=world.acme.member,
        starts_at=NOW,
        ends_at=NOW + timedelta(days=36500),
        created_at=NOW,
    )
    device = GpuDevice.objects.filter(host=host).order_by("index").first()
    assert device is not None
    own = Api(token_of(world.acme.owner)).get("tokens").body["items"][0]["id"]
    world.platform = {
        "people/<str:person>": f"people/{joiner.pk}",
        "providers/<str:provider>": "providers/estate",
        "credentials/<str:credential>": "credentials/password",
        "hosts/<str:host>": f"hosts/{host.pk}",
        "plans/<str:plan>": f"plans/{plan.pk}",
        "devices/<str:device>": f"devices/{device.pk}",
        "findings/<str:finding>": f"findings/{finding.pk}",
        "served-models/<str:model>": "served-models/llama-3-1-8b",
        "fit-corrections/<str:correction>": f"fit-corrections/{learnt.pk}",
        "model-stages/<str:stage>": f"model-stages/{staged.pk}",
        "prices/<str:price_list>": f"prices/{prices.pk}",
        "auto-approval-rules/<str:rule>": f"auto-approval-rules/{rule.pk}",
        "delegations/<str:delegation>": f"delegations/{delegation.pk}",
        "objects/<str:short_id>": f"objects/{world.acme.tenant.short_id}",
        "tokens/<str:token>": f"tokens/{own}",
    }
    return world


def _certified(tenant: Tenant) -> Boundary:
    """Return a namespace boundary of a tenant, certified once."""
    row = Boundary.objects.filter(tenant=tenant, kind="namespace")[0]
    boundaries.certified(
        boundary=row, checks=[("TEN-2-image", "Only pinned images", "passed", "Refused.")], passed=True,
        facts={"version": "v1.36.3", "took_ms": 5, "unshown": [], "simulated": True}, actor=SYSTEM, now=NOW,
    )  # fmt: skip
    return row


def _home(name: str, parent: Tenant | None) -> Home:
    tenant = factories.tenant(name=name, parent=parent)
    factories.generous(tenant)
    owner = factories.member(tenant, Role.OWNER)
    factories.member(tenant, Role.OWNER)
    member = factories.member(tenant)
    viewer = factories.member(tenant, Role.VIEWER)
    account = factories.service_account(tenant, owner=owner)
    api = Api(token_of(owner))
    made = [
        api.post(f"tenants/{name}/endpoints", {**ENDPOINT, "name": "chat"}),
        api.post(f"tenants/{name}/machines", {**MACHINE, "name": "box"}),
        api.post(f"tenants/{name}/namespaces", {**NAMESPACE, "name": "space"}),
        api.post(f"tenants/{name}/allocations", {**ALLOCATION, "name": "bare"}),
        api.post(f"tenants/{name}/endpoints/chat/keys", {"name": "second"}),
        api.post(f"tenants/{name}/service-accounts/{account.name}/tokens", {"name": "second"}),
        api.post(f"tenants/{name}/webhooks", {"name": "hook", "url": "https://hooks.example.org/in"}),
        api.post(f"tenants/{name}/webhooks/hook/test"),
    ]
    assert [each.status for each in made] == [201] * len(made), made
    Budget.objects.create(tenant=tenant, amount="1000", currency="EUR", created_at=NOW)
    request = Request.objects.create(
        id=uuid4(),
        tenant=tenant,
        kind="quota",
        payload={"mode": "add", "limits": {"vcpu": 5}, "ancestors": {}, "until": None},
        requester=member,
        created_at=NOW,
        expires_at=NOW + timedelta(days=36500),
    )
    RequestStage.objects.create(request=request, tenant=tenant, order=1, decider="tenant-owner")
    return Home(
        tenant=tenant,
        owner=owner,
        member=member,
        viewer=viewer,
        account=account,
        quota=Quota.objects.get(tenant=tenant, dimension="machines"),
        request=request,
        boundary=_certified(tenant).short_id,
        key=made[4].body["id"],
        token=made[5].body["id"],
        delivery=made[7].body["id"],
        benchmark=_benchmark(tenant),
    )


def _benchmark(tenant: Tenant) -> str:
    """Make one that has ended; return its id."""
    row = Benchmark.objects.create(
        tenant=tenant, endpoint=Endpoint.objects.get(tenant=tenant, name="chat"), revision=1, load=Load().as_json(),
        state="failed", reason="a test", created_at=NOW, ended_at=NOW,
    )  # fmt: skip
    return str(row.pk)
