"""Canary, promotion, rollback, sleep and wake of an endpoint in machines: real passes, gateways and a real vCenter API.

The guests and their model servers are simulated; they are reached by one address from beginning to end.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from provisioners.driver import machine_uuid
from provisioners.specs_from_rows import ref_of
from tenants import states
from tenants.models import Endpoint, GatewayReplica, Hold, Rollout, Unit
from tenants.operations import endpoints, idling, rollouts
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, RolloutAsk, RolloutStep, UnitAsk, Where
from tenants.states import RolloutStrategy
from tests import factories
from tests.vsphere.test_serving_core_real import Core, address, ask, core, is_ready

pytestmark = [pytest.mark.real, pytest.mark.vcsim, pytest.mark.usefixtures("db")]

__all__ = ["core"]


def now() -> datetime:
    return datetime.now(UTC)


def row() -> Endpoint:
    return Endpoint.objects.get()


def machines(core: Core) -> set[str]:
    return {one.uuid for one in core.control.guests() if one.running and one.name.startswith("tn-")}


@contextmanager
def callers(url: str, key: str) -> Iterator[Counter[int]]:
    """Ask without a pause while something happens, and count what was answered."""
    answers: Counter[int] = Counter()
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            answers[ask(url, key)[0]] += 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for each in threads:
        each.start()
    try:
        yield answers
    finally:
        stop.set()
        for each in threads:
            each.join(30)


def revisions(url: str, key: str, number: int) -> Counter[Any]:
    """Ask so often; return how often each revision answered."""
    return Counter(ask(url, key)[1].get("tenantry", {}).get("revision") for _ in range(number))


def is_at(state: str) -> bool:
    return str(Rollout.objects.latest("created_at").state) == state


@pytest.mark.timeout(400)
def test_canary_promotion_rollback_sleep_and_wake_at_one_address(core: Core) -> None:
    tenant = factories.tenant()
    factories.generous(tenant)
    factories.served_model()
    member = factories.actor(factories.member(tenant, states.Role.OWNER))
    unit = UnitAsk(GpuAsk("H100-80GB", "3g.40gb"), vcpu=4, memory_gib=16)
    asked = EndpointAsk(
        "alpha", RevisionAsk("llama-3-1-8b"), AllocationSpec((unit,), Where(kind=states.BoundaryKind.VM))
    )
    made = endpoints.create(tenant=tenant, ask=asked, actor=member, now=now())
    core.until(is_ready)
    url, key = address(), made.secret
    core.answered(url, key, lambda status, _: status == 200)
    own = Unit.objects.get()

    canary = RolloutAsk(RolloutStrategy.CANARY, (RolloutStep(50, None),), must_have_room=True)
    with callers(url, key) as during:
        endpoints.revise(
            endpoint=row(), ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 2048}), rollout=canary, actor=member,
            now=now(),
        )  # fmt: skip
        core.until(lambda: is_at("stepping"))
        core.until(lambda: set(revisions(url, key, 4)) == {1, 2})
        shared = revisions(url, key, 40)
        beside = Unit.objects.get(released_at=None, role="surge")
        both = machines(core)

        rollouts.promote(endpoint=row(), actor=member, now=now())
        core.until(lambda: is_at("done"))
        core.until(is_ready)
    assert both == {str(machine_uuid(one.pk)) for one in (own, beside)}
    assert min(shared[1], shared[2]) >= 12, shared
    assert set(during) == {200}, during
    assert machines(core) == {str(machine_uuid(own.pk))}
    assert (set(revisions(url, key, 6)), address()) == ({2}, url)
    assert GatewayReplica.objects.get(unit=beside.pk).removed_at is not None

    with callers(url, key) as during:
        rollouts.rollback(endpoint=row(), actor=member, now=now())
        core.until(lambda: is_at("done") and row().observed["revision"] == 1)
        core.until(is_ready)
    assert set(during) == {200}, during
    assert (Rollout.objects.latest("created_at").strategy, set(revisions(url, key, 6))) == ("canary", {1})
    assert (machines(core), address()) == ({str(machine_uuid(own.pk))}, url)

    idling.sleep(endpoint=row(), actor=member, now=now())
    core.until(lambda: bool(row().observed.get("asleep")))
    held = Hold.objects.filter(kind="tenant", during__contains=now()).count()
    part = core.driver.observe(ref_of(row())).part("serving.replica[0]")
    assert (machines(core), held, part.ready) == ({str(machine_uuid(own.pk))}, 1, True)
    answers: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(waited(url, key)), daemon=True)
    asking.start()
    core.until(lambda: bool(answers))
    core.until(is_ready)
    assert answers[0][0] == 200, answers
    assert (row().slept_at, address()) == (None, url)

    endpoints.delete(endpoint=row(), actor=member, now=now())
    core.until(lambda: row().released_at is not None)
    assert [window for gpu in core.control.gpus() for window in gpu.held] == []
    assert [one for one in core.control.guests() if one.name.startswith("tn-")] == []


def waited(url: str, key: str) -> tuple[int, Any]:
    """Ask as one does who is patient: the first answer comes when the model server is there again."""
    return ask(url, key, patience_s=60)
