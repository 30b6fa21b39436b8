"""What was refused, suspended or full at one moment must not hold an object back when that moment is over."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from provisioners.driver import Handle, Kind, Observed, Part, Presence, Ref
from provisioners.plan import Nothing, plan
from provisioners.sandbox import control, views
from provisioners.steps import make
from tenants.models import Endpoint, Hold, Unit
from tenants.operations import endpoints, tenants
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind, PlatformRole, SuspensionDepth
from tests import factories
from tests.drive import World, fresh, is_gone, is_ready, world

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def owner() -> Any:
    tenant = factories.tenant()
    factories.generous(tenant, "H100-80GB", "A100-80GB")
    factories.served_model("llama-3-1-8b")
    return factories.actor(factories.member(tenant)), tenant


def endpoint(here: World, owner: Any, kind: BoundaryKind = BoundaryKind.VM) -> Endpoint:
    actor, tenant = owner
    gpu = GpuAsk("A100-80GB") if kind is BoundaryKind.VM else GpuAsk("H100-80GB", "1g.10gb")
    spec = AllocationSpec((UnitAsk(gpu, vcpu=4, memory_gib=16),), where=Where(kind=kind))
    return endpoints.create(
        tenant=tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec), actor=actor, now=here.clock()
    ).endpoint


def suspend(here: World, owner: Any) -> Any:
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    tenants.suspend(tenant=owner[1], depth=SuspensionDepth.POWER, reason="a test", actor=operator, now=here.clock())
    return operator


@pytest.mark.parametrize("effect", ["fail", "task-fail"])
def test_a_revision_that_was_refused_is_served_once_it_is_corrected_although_the_old_one_works(
    owner: Any, effect: str
) -> None:
    here = world(delays=True)
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    control.add_fault(here.estate, "start:serving.replica*", effect, error="not-supported")

    endpoints.revise(
        endpoint=row, ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 2048}), actor=owner[0], now=here.clock()
    )
    here.drive(lambda: fresh(row).phase == "Failed")
    endpoints.revise(
        endpoint=row, ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 4096}), actor=owner[0], now=here.clock()
    )
    here.drive(lambda: fresh(row).phase == "Ready" and fresh(row).observed["revision"] == 3)

    assert fresh(row).due_at is None


def test_a_refusal_does_not_outlive_its_spec_when_the_corrected_one_first_meets_another_trouble(owner: Any) -> None:
    here = world()
    row = endpoint(here, owner, BoundaryKind.NAMESPACE)
    here.drive(is_ready(row))
    control.add_fault(here.estate, "start:serving.replica*", "fail", error="rejected")
    endpoints.revise(
        endpoint=row, ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 2048}), actor=owner[0], now=here.clock()
    )
    here.drive(lambda: fresh(row).phase == "Failed")
    control.add_fault(here.estate, "start:serving.replica*", "fail", error="transient")

    endpoints.revise(
        endpoint=row, ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 4096}), actor=owner[0], now=here.clock()
    )
    here.drive(lambda: fresh(row).phase == "Ready" and fresh(row).observed["revision"] == 3)

    assert {c["reason"] for c in fresh(row).conditions} == {"Done"}


def test_an_endpoint_suspended_while_it_is_made_waits_switched_off_and_serves_after_the_resumption(owner: Any) -> None:
    here = world(delays=True)
    row = endpoint(here, owner)
    here.drive(lambda: any(w.is_vm for w in here.estate.state.workloads.values()))

    operator = suspend(here, owner)
    here.drive(lambda: fresh(row).phase == "Suspended" and fresh(row).due_at is None)

    assert (fresh(row).failures, views.truth(here.estate.state)) == (0, [])
    assert Hold.objects.count() == 1

    tenants.resume(tenant=owner[1], actor=operator, now=here.clock())
    here.drive(is_ready(row))

    assert len(views.truth(here.estate.state)) == 1


def test_no_room_for_anything_but_a_unit_moves_no_unit(owner: Any) -> None:
    here = world()
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    host = Unit.objects.get().host_id
    control.add_fault(here.estate, "start:serving.service", "fail", error="no-capacity")

    suspend(here, owner)
    here.drive(lambda: fresh(row).phase == "Suspended" and fresh(row).due_at is None)

    assert Unit.objects.get().host_id == host
    endpoints.delete(endpoint=row, actor=owner[0], now=here.clock())
    row = fresh(row)
    here.drive(is_gone(row, row.allocation, row.boundary))


def test_a_dormant_step_is_neither_started_nor_waited_for_and_a_running_one_is_still_polled() -> None:
    ref = Ref(Kind.ENDPOINT, uuid4(), uuid4())
    power = make(ref, "vm.power[0]", {"power": "off"}, {})
    gateway = make(ref, "vm.gateway[0]", {"gateway": "g"}, {}, dormant=True)
    off = Part("vm.power[0]", Presence.PRESENT, power.want)

    absent = plan((power, gateway), Observed(ref, exists=True, parts=(off,)), deleting=False)
    other = Part("vm.gateway[0]", Presence.PRESENT, "another")
    differs = plan((power, gateway), Observed(ref, exists=True, parts=(off, other)), deleting=False)
    busy = Part("vm.gateway[0]", Presence.CHANGING, handle="task-1")
    changing = plan((power, gateway), Observed(ref, exists=True, parts=(off, busy)), deleting=False)

    assert absent == differs == Nothing(ready=True, complete=True)
    assert changing.handle == Handle("task-1")  # type: ignore[union-attr]
