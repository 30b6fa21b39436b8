"""Versions of gateways' configurations rise with every change that concerns them, and for nobody else."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from provisioners import gateways
from tenants import gateway_config
from tenants.actor import SYSTEM
from tenants.models import Boundary, Endpoint, GatewayReplica, Unit
from tenants.operations import endpoints, tenants
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import PlatformRole, Role, SuspensionDepth
from tenants.transactions import acting
from tests import factories

pytestmark = pytest.mark.usefixtures("db")


def endpoint_of(tenant: Any, name: str, now: datetime) -> tuple[Endpoint, Any, Any]:
    actor = factories.actor(factories.member(tenant, Role.MEMBER))
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=1, memory_gib=1),))
    made = endpoints.create(
        tenant=tenant, ask=EndpointAsk(name, RevisionAsk("llama-3-1-8b"), spec), actor=actor, now=now
    )
    return made.endpoint, made.key, actor


@pytest.fixture
def two(now: datetime) -> SimpleNamespace:
    """Two tenants with an endpoint and a gateway each; the first has a second gateway in a machine, and a gone one."""
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=1)
    factories.served_model()
    parent = factories.tenant()
    factories.generous(parent)
    found: list[Any] = []
    for name in ("one", "two"):
        tenant = factories.tenant(parent=parent)
        factories.generous(tenant)
        endpoint, key, actor = endpoint_of(tenant, name, now)
        with acting(SYSTEM):
            replica = gateways.of_boundary(Boundary.objects.get(tenant=tenant), now=now)
        found.append(SimpleNamespace(tenant=tenant, endpoint=endpoint, key=key, actor=actor, gateway=replica.pk))
    first = found[0]
    with acting(SYSTEM):
        boundary = Boundary.objects.get(tenant=first.tenant)
        unit = Unit.objects.get(allocation_id=first.endpoint.allocation_id)
        [beside] = gateways.of_units(boundary, [unit], now=now)
        gone = GatewayReplica.objects.create(
            id=uuid4(), tenant=first.tenant, boundary=boundary, removed_at=now, config_version=1, created_at=now
        )
    return SimpleNamespace(parent=parent, one=first, two=found[1], beside=beside.pk, gone=gone.pk, provider=provider)


def versions(two: SimpleNamespace) -> tuple[int, int, int, int]:
    """Return the versions of: first's gateway, the one in its machine, the gone one, second's."""
    found = dict(GatewayReplica.objects.values_list("pk", "config_version"))
    return found[two.one.gateway], found[two.beside], found[two.gone], found[two.two.gateway]


def test_every_live_gateway_of_the_boundary_and_no_other_is_raised(two: SimpleNamespace, now: datetime) -> None:
    before = versions(two)

    with acting(two.one.actor):
        raised = gateway_config.bump([two.one.endpoint.boundary_id], now)

    assert raised == 2
    assert [b - a for a, b in zip(before, versions(two), strict=True)] == [1, 1, 0, 0]


def test_nobody_raises_what_he_does_not_see(two: SimpleNamespace, now: datetime) -> None:
    with acting(two.two.actor):
        assert gateway_config.bump([two.one.endpoint.boundary_id], now) == 0
        assert gateway_config.bump([], now) == 0


def test_keys_revisions_deletion_and_suspension_raise_it_and_labels_do_not(two: SimpleNamespace, now: datetime) -> None:
    one = two.one
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    expiry = now + timedelta(days=1)
    steps: dict[str, Any] = {
        "labels": lambda: endpoints.update(
            endpoint=one.endpoint, changes={"labels": {"a": "b"}}, actor=one.actor, now=now
        ),
        "key": lambda: endpoints.create_key(
            endpoint=one.endpoint, name="k", expires_at=expiry, actor=one.actor, now=now
        ),
        "roll": lambda: endpoints.roll_key(endpoint=one.endpoint, key=one.key, overlap_s=60, actor=one.actor, now=now),
        "revoke": lambda: endpoints.revoke_key(endpoint=one.endpoint, key=one.key, actor=one.actor, now=now),
        "revoked before": lambda: endpoints.revoke_key(endpoint=one.endpoint, key=one.key, actor=one.actor, now=now),
        "revise": lambda: endpoints.revise(
            endpoint=one.endpoint, ask=RevisionAsk("llama-3-1-8b"), actor=one.actor, now=now
        ),
        "suspend": lambda: tenants.suspend(
            tenant=one.tenant, depth=SuspensionDepth.KEYS, reason="x", actor=operator, now=now
        ),
        "resume": lambda: tenants.resume(tenant=one.tenant, actor=operator, now=now),
        "another joins": lambda: endpoint_of(one.tenant, "other", now),
        "delete": lambda: endpoints.delete(endpoint=one.endpoint, actor=one.actor, now=now),
    }

    raised: dict[str, int] = {}
    for name, step in steps.items():
        before = versions(two)
        step()
        after = versions(two)
        assert after[2:] == before[2:], name
        raised[name] = after[0] - before[0]

    assert raised == {
        "labels": 0, "key": 1, "roll": 1, "revoke": 1, "revoked before": 0, "revise": 1, "suspend": 1, "resume": 1,
        "another joins": 1, "delete": 1,
    }  # fmt: skip


def test_a_suspended_parent_concerns_all_below_it(two: SimpleNamespace, now: datetime) -> None:
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    before = versions(two)

    tenants.suspend(tenant=two.parent, depth=SuspensionDepth.POWER, reason="x", actor=operator, now=now)

    assert [b - a for a, b in zip(before, versions(two), strict=True)] == [1, 1, 0, 1]
