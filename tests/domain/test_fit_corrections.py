"""Learning from starts: kept once each, by size and model; reset by operators; read by all, named to nobody."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from tenants.errors import Forbidden, PreconditionFailed
from tenants.fit_corrections import SizeKey
from tenants.models import Event, FitCorrection, FitMeasurement, Revision, Unit
from tenants.models_catalogue import model
from tenants.operations import endpoints, fit_corrections
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import PlatformRole
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

LLAMA = model("meta-llama/Llama-3.1-8B-Instruct")
HALF = SizeKey("H100-80GB", "3g.40gb", 1)


@pytest.fixture
def started():
    """A revision on a placed unit."""
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]}))
    factories.served_model()
    tenant = factories.tenant()
    factories.generous(tenant)
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "3g.40gb"), 4, 16),))
    made = endpoints.create(
        tenant=tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec),
        actor=factories.actor(factories.member(tenant)), now=NOW,
    ).endpoint  # fmt: skip
    return Revision.objects.select_related("model").get(endpoint=made), made.allocation.units.get()


def report(tokens: int = 100_000, *, per_token: int = LLAMA.kv_bytes_per_token_16bit, program: str = "vLLM 0.32.0"):
    return {"program": program, "kv_cache_tokens": tokens, "kv_cache_bytes": tokens * per_token}


def twin(unit: Unit) -> Unit:
    """Return another unit of the same size, as one more replica would have it."""
    return Unit(product=unit.product, profile=unit.profile, gpu_count=unit.gpu_count)


def test_a_start_counts_once_however_often_it_is_told(started):
    revision, unit = started

    told = [fit_corrections.learn(revision, unit, report(), now=NOW + timedelta(seconds=n)) for n in range(3)]

    assert told == [True, False, False]
    row = FitMeasurement.objects.get()
    assert (row.token_estimated, row.token_reported) == (LLAMA.kv_bytes_per_token_16bit,) * 2
    assert row.fixed_estimated is not None
    assert row.fixed_reported is not None
    learnt = fit_corrections.corrections_of(revision.model)
    assert set(learnt) == {HALF}
    assert fit_corrections.all_corrections() == {revision.model_id: learnt}


def test_what_teaches_nothing_leaves_nothing(started):
    revision, unit = started

    assert not fit_corrections.learn(revision, unit, {"program": "vLLM 0.32.0"}, now=NOW)
    assert not FitCorrection.objects.exists()


def test_the_last_twenty_starts_are_kept_and_the_last_nine_count(started):
    revision, unit = started

    for number in range(30):
        per_token = LLAMA.kv_bytes_per_token_16bit * (2 if number < 20 else 1)
        fit_corrections.learn(
            revision, twin(unit), report(10_000, per_token=per_token), now=NOW + timedelta(hours=number)
        )

    assert FitMeasurement.objects.count() == fit_corrections.MOST_KEPT == 20
    assert fit_corrections.corrections_of(revision.model)[HALF].token == 1


def test_starts_of_another_version_of_the_program_count_no_more(started):
    revision, unit = started
    double = 2 * LLAMA.kv_bytes_per_token_16bit

    fit_corrections.learn(revision, twin(unit), report(10_000, per_token=double, program="vLLM 0.31.0"), now=NOW)
    fit_corrections.learn(revision, twin(unit), report(10_000), now=NOW + timedelta(hours=1))

    made = fit_corrections.corrections_of(revision.model)[HALF]
    assert (made.token, made.starts) == (1, 1)


def test_an_operator_forgets_what_was_learnt_and_the_next_start_teaches_anew(started):
    revision, unit = started
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    double = 2 * LLAMA.kv_bytes_per_token_16bit
    fit_corrections.learn(revision, unit, report(10_000, per_token=double), now=NOW)
    row = FitCorrection.objects.get()

    with pytest.raises(PreconditionFailed):
        fit_corrections.reset(correction=row, actor=operator, now=NOW, version=7)
    fit_corrections.reset(correction=row, actor=operator, now=NOW + timedelta(hours=1), version=1)

    assert fit_corrections.corrections_of(revision.model) == {}
    assert Event.objects.filter(kind="fit-correction.reset").count() == 1
    fit_corrections.learn(revision, twin(unit), report(10_000), now=NOW + timedelta(hours=2))
    made = fit_corrections.corrections_of(revision.model)[HALF]
    assert (made.token, made.starts) == (Decimal(1), 1)


def test_only_operators_forget(started):
    revision, unit = started
    fit_corrections.learn(revision, unit, report(), now=NOW)
    row = FitCorrection.objects.get()

    for role in (PlatformRole.APPROVER, PlatformRole.AUDITOR):
        with pytest.raises(Forbidden):
            fit_corrections.reset(correction=row, actor=factories.actor(factories.person(platform=(role,))), now=NOW)


def test_everybody_reads_what_was_learnt_and_no_tenant_writes_it(started):
    revision, unit = started
    fit_corrections.learn(revision, unit, report(), now=NOW)
    stranger = factories.actor(factories.member(factories.tenant(name="elsewhere")))

    with acting(stranger):
        seen = fit_corrections.corrections_of(revision.model)
        touched = FitMeasurement.objects.update(token_reported=1), FitCorrection.objects.update(reset_at=NOW)

    assert set(seen) == {HALF}
    assert touched == (0, 0)
