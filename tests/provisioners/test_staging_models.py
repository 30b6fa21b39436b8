"""Files of models on their way to a provider: begun once, followed with their bytes, taken away."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from frontend.kernel import story
from provisioners import staging_models
from provisioners.driver import ModelFiles, NotSupported, StagedModel, StageProgress, TransientDriverError
from provisioners.sandbox.driver import SandboxDriver
from tenants.errors import Conflict, Forbidden
from tenants.models import Endpoint, Event, ModelStage, Provider, ServedModel
from tenants.operations import endpoints, model_stages, served_models
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind, PlatformRole
from tests import factories
from tests.drive import World, world
from tests.sandbox_process import SandboxProcess

pytestmark = pytest.mark.usefixtures("db")
WEIGHTS = 16_060_522_496


@pytest.fixture
def here() -> World:
    made = world()
    factories.served_model()
    return made


@pytest.fixture
def operator():
    return factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))


def model() -> ServedModel:
    return ServedModel.objects.get()


def asked(here: World, operator: Any) -> ModelStage:
    return model_stages.stage(provider=here.provider, model=model(), actor=operator, now=here.clock())


def follow(here: World, driver: Any = None) -> ModelStage:
    staging_models.follow(here.clock, driver_of=lambda provider: driver or here.engine.driver_of(provider))
    return ModelStage.objects.latest("asked_at")


def test_bytes_come_until_all_are_there_and_stand_in_the_endpoints_timeline(here, operator):
    asked(here, operator)
    tenant = factories.tenant()
    factories.generous(tenant)
    spec = AllocationSpec(
        units=(UnitAsk(GpuAsk("H100-80GB", "3g.40gb"), 4, 16),), where=Where(kind=BoundaryKind.NAMESPACE)
    )
    row = endpoints.create(
        tenant=tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec),
        actor=factories.actor(factories.member(tenant)), now=here.clock(),
    ).endpoint  # fmt: skip

    first = follow(here)
    here.clock.move(10)
    second = follow(here)
    building = story.of(row, now=here.clock())
    here.clock.move(3600)
    last = follow(here)

    assert (first.state, first.bytes_done, first.bytes_total) == ("running", 0, WEIGHTS)
    assert (second.state, second.bytes_done) == ("running", 2_500_000_000)
    (step,) = [step for step in building.steps if step.label == "Files of the model"]
    assert (step.state, step.progress) == ("running", 15)
    assert "2.3 GiB of 15.0 GiB" in step.message
    assert "simulated" in step.message
    assert (last.state, last.bytes_done, last.ended_at) == ("done", WEIGHTS, here.clock())
    (done,) = [s for s in story.of(row, now=here.clock()).steps if s.label == "Files of the model"]
    assert (done.state, done.message) == ("done", "15.0 GiB.")
    assert Event.objects.filter(kind="model-stage.done", data__bytes=WEIGHTS).count() == 1
    assert staging_models.follow(here.clock, driver_of=lambda _provider: None) == 0, "what has ended is left alone"


def test_a_provider_has_the_files_of_a_model_once_until_they_are_taken_away(here, operator):
    row = asked(here, operator)
    with pytest.raises(Conflict) as refused:
        asked(here, operator)
    follow(here)
    here.clock.move(3600)
    done = follow(here)

    model_stages.remove(stage=done, actor=operator, now=here.clock())
    leaving = ModelStage.objects.get(pk=row.pk)
    gone = follow(here)

    assert refused.value.specific_code == "staged-already"
    assert (leaving.state, leaving.removing, leaving.ended_at) == ("running", True, None)
    assert (gone.state, gone.bytes_done) == ("removed", 0)
    assert model_stages.live_of(here.provider, model()) is None
    assert asked(here, operator).pk != row.pk


def test_what_a_worker_saw_of_a_stage_that_is_being_taken_away_is_stale(here, operator):
    stale = asked(here, operator)
    model_stages.remove(stage=stale, actor=operator, now=here.clock())

    counts = model_stages.seen(
        stage=stale, state=model_stages.StageState.DONE, bytes_done=5, bytes_total=5, actor=operator, now=here.clock()
    )

    assert not counts
    assert ModelStage.objects.get().state == "running"


class Answering:
    """A driver that answers as it is told."""

    def __init__(self, answer: StagedModel | Exception) -> None:
        self.answer = answer

    def stage_model(self, _files: ModelFiles) -> StagedModel:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    drop_model = stage_model


def test_a_provider_that_is_away_is_asked_again_and_one_that_refuses_has_failed(here, operator):
    asked(here, operator)

    away = follow(here, Answering(TransientDriverError("it cannot be reached")))
    again = follow(here, Answering(StagedModel(StageProgress.RUNNING, 7, None)))
    failed = follow(here, Answering(NotSupported("no room")))

    assert (away.state, away.message) == ("waiting", "It is asked again: it cannot be reached.")
    assert (again.state, again.bytes_done, again.bytes_total) == ("running", 7, None)
    assert (failed.state, failed.message) == ("failed", "no room")
    assert asked(here, operator).state == "waiting", "what failed can be asked for anew"


def test_one_stages_trouble_is_not_the_others(here, operator):
    asked(here, operator)

    assert follow(here, Answering(ValueError("a bug"))).state == "waiting"


def test_a_driver_that_cannot_is_told_in_words(here, operator):
    asked(here, operator)

    assert follow(here, object()).message == staging_models.NOT_HERE


def test_where_it_cannot_be_held_and_what_is_retired_is_refused_at_once(here, operator):
    Provider.objects.update(capabilities={"features": {}, "missing": {"model-staging": "there is no room"}})
    here.provider.refresh_from_db()
    with pytest.raises(Conflict) as refused:
        asked(here, operator)
    assert "there is no room" in refused.value.detail
    served_models.update(model=model(), enabled=False, actor=operator, now=here.clock())
    with pytest.raises(Conflict) as retired:
        asked(here, operator)

    assert retired.value.specific_code == "model-retired"


@pytest.mark.parametrize(("source", "words"), [("hub", "Give the model a mirror on NFS"), ("s3://b1c/x", "the bucket")])
def test_a_source_that_has_no_place_there_is_refused_at_once_with_what_to_do(here, operator, source, words):
    features = {"model-staging": True, "model-staging:hub": False, "model-staging:s3": False}
    Provider.objects.update(capabilities={"features": features})
    ServedModel.objects.update(source=source)
    here.provider.refresh_from_db()

    with pytest.raises(Conflict) as refused:
        asked(here, operator)
    ServedModel.objects.update(source="nfs://files.example/exports/models")

    assert refused.value.specific_code == "not-supported"
    assert words in refused.value.detail
    assert asked(here, operator).state == "waiting"


def test_files_of_a_mirror_stay_while_endpoints_start_from_them(here, operator):
    ServedModel.objects.update(source="nfs://files.example/exports/models")
    asked(here, operator)
    tenant = factories.tenant()
    factories.generous(tenant)
    spec = AllocationSpec(
        units=(UnitAsk(GpuAsk("H100-80GB", "3g.40gb"), 4, 16),), where=Where(kind=BoundaryKind.NAMESPACE)
    )
    row = endpoints.create(
        tenant=tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec),
        actor=factories.actor(factories.member(tenant)), now=here.clock(),
    ).endpoint  # fmt: skip
    done = follow(here, Answering(StagedModel(StageProgress.DONE, 7, 7)))

    with pytest.raises(Conflict) as refused:
        model_stages.remove(stage=done, actor=operator, now=here.clock())
    Endpoint.objects.filter(pk=row.pk).update(
        deletion_requested_at=here.clock(), released_at=here.clock(), finalizers=[]
    )
    leaving = model_stages.remove(stage=done, actor=operator, now=here.clock())

    assert (refused.value.specific_code, refused.value.data) == ("in-use", {"endpoints": 1})
    assert leaving.removing


def test_only_operators_ask(here):
    for role in (PlatformRole.APPROVER, PlatformRole.AUDITOR):
        with pytest.raises(Forbidden):
            asked(here, factories.actor(factories.person(platform=(role,))))


def test_an_estate_whose_models_are_real_says_that_it_holds_none(here):
    here.estate.state.settings.models = "local"

    capabilities = here.estate.capabilities()

    assert capabilities.features["model-staging"] is False
    with pytest.raises(NotSupported):
        here.estate.stage_model(ModelFiles(model().pk, "a/b", "0" * 40, bytes_expected=5))


def test_over_http_it_is_the_same_and_outlives_the_server(tmp_path):
    process = SandboxProcess(tmp_path)
    try:
        driver: SandboxDriver = process.estate()
        files = ModelFiles(uuid4(), "a/b", "0" * 40, bytes_expected=10**15)
        begun = driver.stage_model(files)
        process.kill()
        process.start()
        later = driver.stage_model(files)
        gone = driver.drop_model(files)

        assert (begun.progress, begun.bytes_total) == (StageProgress.RUNNING, 10**15)
        assert later.progress is StageProgress.RUNNING
        assert later.bytes_done >= begun.bytes_done
        assert (gone.progress, gone.bytes_total) == (StageProgress.ABSENT, None)
        driver.close()
    finally:
        process.stop()
