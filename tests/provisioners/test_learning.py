"""What a model server reports in a pass goes into the next estimate, once for each start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from django.db.models import F

from provisioners.driver import EngineReport, Observed
from tenants.fit_corrections import SizeKey
from tenants.models import Endpoint, FitMeasurement, GatewayReplica, ServedModel
from tenants.models_catalogue import model
from tenants.operations import endpoints, fit_corrections
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind
from tests import factories
from tests.drive import World, fresh, is_ready, world

pytestmark = pytest.mark.usefixtures("db")
PER_TOKEN = model("meta-llama/Llama-3.1-8B-Instruct").kv_bytes_per_token_16bit


class Reporting:
    """A driver whose replicas report, as on a real GPU, a cache of other bytes a token than was estimated."""

    def __init__(self, inner: Any, engine: EngineReport | None, *, simulated: bool = True) -> None:
        self._inner, self.engine, self.simulated = inner, engine, simulated

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def observe(self, ref: Any) -> Observed:
        seen: Observed = self._inner.observe(ref)
        units = tuple(replace(unit, engine=self.engine) for unit in seen.units)
        return replace(seen, units=units, simulated=self.simulated)


def report(per_token: int) -> EngineReport:
    return EngineReport("vLLM 0.32.0", kv_cache_tokens=1000, kv_cache_bytes=1000 * per_token)


@pytest.fixture
def here() -> World:
    made = world()
    factories.served_model()
    return made


def serving(here: World, driver: Reporting) -> Any:
    here.engine = replace(here.engine, driver_of=lambda _provider: driver)
    tenant = factories.tenant()
    factories.generous(tenant)
    spec = AllocationSpec(
        units=(UnitAsk(GpuAsk("H100-80GB", "3g.40gb"), 4, 16),) * 2, where=Where(kind=BoundaryKind.NAMESPACE)
    )
    row = endpoints.create(
        tenant=tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec),
        actor=factories.actor(factories.member(tenant)), now=here.clock(),
    ).endpoint  # fmt: skip
    here.drive(is_ready(row))
    return row


def test_each_replicas_start_corrects_the_next_estimate_once(here):
    driver = Reporting(here.engine.driver_of(here.provider), report(PER_TOKEN * 5 // 4))

    row = serving(here, driver)
    here.drive(lambda: fresh(row).phase == "Ready", step_s=60)
    here.clock.move(3600)
    here.sweep()

    learnt = fit_corrections.corrections_of(ServedModel.objects.get())
    assert set(learnt) == {SizeKey("H100-80GB", "3g.40gb", 1)}
    assert str(learnt[SizeKey("H100-80GB", "3g.40gb", 1)].token) == "1.250"
    assert FitMeasurement.objects.count() == 2, "two replicas, one start each, however often they are looked at"


def test_a_simulated_replica_teaches_nothing(here):
    row = serving(here, Reporting(here.engine.driver_of(here.provider), EngineReport("stub")))

    assert is_ready(row)()
    assert not FitMeasurement.objects.exists()


@pytest.mark.parametrize("simulated", [True, False])
def test_where_nobody_else_asks_the_gateways_word_teaches_and_of_a_simulation_it_does_not(here, simulated):
    driver = Reporting(here.engine.driver_of(here.provider), None, simulated=simulated)
    row = serving(here, driver)
    units = row.allocation.units.order_by("index")
    backends = [{"unit_uid": str(unit.pk), "reachable": True, "cache_tokens": 100_000} for unit in units]
    GatewayReplica.objects.update(
        enrolled_at=here.clock(), last_seen_at=here.clock(), reported_version=F("config_version"),
        report={"endpoints": [{"uid": str(row.pk), "state": "open", "backends": backends}]},
    )  # fmt: skip

    Endpoint.objects.update(due_at=here.clock())
    here.sweep()
    Endpoint.objects.update(due_at=here.clock())
    here.sweep()

    measured = list(FitMeasurement.objects.all())
    assert len(measured) == (0 if simulated else 2)
    for one in measured:
        assert one.token_reported is None, "it tells tokens, not bytes"
        assert one.fixed_reported is not None
        assert one.fixed_estimated is not None
    told = [unit.get("engine", {}).get("kv_cache_tokens") for unit in fresh(row).observed["units"]]
    assert told == ([None, None] if simulated else [100_000, 100_000])
