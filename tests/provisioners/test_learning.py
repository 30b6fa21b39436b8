"""What a model server reports in a pass goes into the next estimate, once for each start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provisioners.driver import EngineReport, Observed
from tenants.fit_corrections import SizeKey
from tenants.models import FitMeasurement, ServedModel
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

    def __init__(self, inner: Any, engine: EngineReport) -> None:
        self._inner, self.engine = inner, engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def observe(self, ref: Any) -> Observed:
        seen: Observed = self._inner.observe(ref)
        return replace(seen, units=tuple(replace(unit, engine=self.engine) for unit in seen.units))


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
    here.drive(lambda: is_ready(row))
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

    assert is_ready(row)
    assert not FitMeasurement.objects.exists()
