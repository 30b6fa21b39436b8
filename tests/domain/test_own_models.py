"""A tenant's own model: asked for, checked at once, decided by others, and nobody else's afterwards."""

from __future__ import annotations

import pytest

from tenants import served_facts
from tenants.errors import Conflict, Forbidden, InvalidSpec
from tenants.models import Event, Request, ServedModel
from tenants.models_catalogue import Quantisation
from tenants.operations import endpoints, requests, served_models
from tenants.operations.served_models import ModelAsk
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import OnShortage, PlatformRole, Role
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW
from tests.unit.test_model_configs import TINY

pytestmark = pytest.mark.usefixtures("db")

COMMIT = "c" * 40
SPEC = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 1, 1),), on_shortage=OnShortage.FAIL)


@pytest.fixture
def tenant():
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]}))
    made = factories.tenant(name="acme")
    factories.generous(made)
    return made


@pytest.fixture
def member(tenant):
    return factories.actor(factories.member(tenant))


@pytest.fixture
def approver():
    return factories.actor(factories.person(platform=(PlatformRole.APPROVER,)))


def payload(**values):
    return {"name": "acme-manuals", "repository": "acme/manuals-7b", "commit": COMMIT, "config": TINY} | values


def ask(tenant, actor, **values):
    return requests.submit(kind="model", payload=payload(**values), reason="ours", tenant=tenant, actor=actor, now=NOW)


def approve(request, actor):
    return requests.decide(request=request, version=1, verdict="approve", actor=actor, now=NOW)


def approved(tenant, member, approver, **values):
    """Have both stages approve a model that was asked for."""
    made = ask(tenant, member, **values)
    approve(made, factories.actor(factories.member(tenant, Role.OWNER)))
    approve(made, approver)
    return ServedModel.objects.get(name=payload(**values)["name"])


def deploy(tenant, actor, model="acme-manuals"):
    ask = EndpointAsk("chat", RevisionAsk(model), SPEC)
    return endpoints.create(tenant=tenant, ask=ask, actor=actor, now=NOW)


def test_a_member_asks_the_owner_and_the_platform_decide_and_it_is_offered_to_the_tenant(tenant, member, approver):
    files = {"model.safetensors": 1_117_600, "config.json": 700}
    row = approved(tenant, member, approver, files=files, licence="mit", source="nfs://files.example/models")

    assert (row.tenant, row.repository, row.commit) == (tenant, "acme/manuals-7b", COMMIT)
    assert (row.licence, row.source, row.task) == ("mit", "nfs://files.example/models", "generate")
    facts = served_facts.of(row)
    assert facts is not None
    assert facts.weights[Quantisation.NATIVE] == 1_117_600
    request = Request.objects.get()
    assert (request.state, request.outcome["model"]) == ("approved", str(row.pk))
    assert [stage.decider for stage in request.stages.order_by("order")] == ["tenant-owner", "platform-approver"]
    assert "config" not in request.payload, "what it says is kept, not the file"
    event = Event.objects.get(kind="served-model.created")
    assert event.tenant_id == tenant.pk
    assert deploy(tenant, member).endpoint.revision.model == row


def test_before_it_is_decided_it_serves_nobody_and_the_proof_says_what_would_be(tenant, member, approver):
    made = ask(tenant, member)
    with acting(approver):
        seen = requests.proof(request=made, actor=approver, now=NOW)

    assert seen["model"]["name"] == "acme-manuals"
    assert seen["model"]["weights_bytes"] == 1_115_392
    assert not ServedModel.objects.exists()
    with pytest.raises(InvalidSpec):
        deploy(tenant, member)


def test_the_owner_sees_the_proof_of_his_stage_too(tenant, member):
    made, owner = ask(tenant, member), factories.actor(factories.member(tenant, Role.OWNER))

    with acting(owner):
        assert requests.proof(request=made, actor=owner, now=NOW)["outcome"] == "grants"


def test_another_tenant_neither_sees_nor_deploys_it_and_a_child_does(tenant, member, approver):
    approved(tenant, member, approver)
    child, other = factories.tenant(name="acme-lab", parent=tenant), factories.tenant(name="globex")
    for each in (child, other):
        factories.generous(each)

    with acting(factories.actor(factories.member(other))):
        assert not ServedModel.objects.exists()
    with pytest.raises(InvalidSpec) as refused:
        deploy(other, factories.actor(factories.member(other)))
    assert refused.value.specific_code == "unknown-model"
    assert deploy(child, factories.actor(factories.member(child))).endpoint.revision.model.name == "acme-manuals"


def test_nobody_carries_the_model_of_one_tenant_into_another(tenant, member, approver):
    approved(tenant, member, approver)
    other = factories.tenant(name="globex")
    factories.generous(other)
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))

    with acting(operator):
        assert ServedModel.objects.exists()
    with pytest.raises((InvalidSpec, Forbidden)):
        deploy(other, operator)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"name": "manuals"}, "payload.name"),
        ({"name": "globex-manuals"}, "payload.name"),
        ({"name": "acme-Manuals"}, "payload.name"),
        ({"commit": "main"}, "payload.commit"),
        ({"config": None}, "payload.config"),
        ({"config": {**TINY, "auto_map": {"AutoModel": "x.Y"}}}, "payload.config.auto_map"),
        ({"config": "{}"}, "payload.config"),
        ({"files": {"pytorch_model.bin": 5}}, "payload.files"),
        ({"files": [1]}, "payload.files"),
        ({"source": "file:///etc"}, "payload.source"),
        ({"task": "paint"}, "payload.task"),
        ({"licence": 7}, "payload.licence"),
        ({"geometry": {}}, "payload.geometry"),
    ],
)
def test_what_would_not_be_served_is_refused_when_it_is_asked(tenant, member, values, field):
    with pytest.raises(InvalidSpec) as refused:
        ask(tenant, member, **values)

    assert refused.value.errors[0]["field"] == field
    assert not Request.objects.exists()


def test_viewers_and_strangers_do_not_ask(tenant):
    for actor in (
        factories.actor(factories.member(tenant, Role.VIEWER)),
        factories.actor(factories.member(factories.tenant(name="globex"), Role.OWNER)),
    ):
        with pytest.raises(Forbidden):
            ask(tenant, actor)


def test_it_is_asked_once_changed_in_its_request_and_its_name_is_taken_once(tenant, member, approver):
    made = ask(tenant, member)
    with pytest.raises(Conflict):
        ask(tenant, member)

    revised = requests.revise(request=made, payload=payload(commit="d" * 40), actor=member, now=NOW)
    second = ask(tenant, member, commit="e" * 40)

    assert revised.payload["commit"] == "d" * 40
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    for request, version in ((revised, 2), (second, 1)):
        requests.decide(request=request, version=version, verdict="approve", actor=owner, now=NOW)
    requests.decide(request=revised, version=2, verdict="approve", actor=approver, now=NOW)
    with pytest.raises(Conflict) as refused:
        requests.decide(request=second, version=1, verdict="approve", actor=approver, now=NOW)
    assert refused.value.specific_code == "name-taken"
    assert ServedModel.objects.get().commit == "d" * 40


def test_an_operator_retires_a_tenants_own_model(tenant, member, approver):
    row = approved(tenant, member, approver)
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))

    served_models.update(model=row, enabled=False, actor=operator, now=NOW)

    with pytest.raises(InvalidSpec):
        deploy(tenant, member)


def test_an_unknown_repository_is_offered_by_its_configuration_and_the_catalogue_knows_the_gating_of_others():
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))

    own = served_models.create(
        ask=ModelAsk("tiny", "acme/tiny", COMMIT, config=TINY), actor=operator, now=NOW
    )  # fmt: skip
    known = served_models.create(
        ask=ModelAsk("llama", "meta-llama/Llama-3.1-8B-Instruct", COMMIT), actor=operator, now=NOW
    )

    assert own.geometry["layers"] == 2
    assert len(own.config_digest) == 64
    assert known.gating.startswith("gated: needs an access token")
    assert known.config_digest == ""
    with pytest.raises(InvalidSpec) as refused:
        served_models.create(ask=ModelAsk("other", "acme/other", COMMIT), actor=operator, now=NOW)
    assert refused.value.specific_code == "config-needed"
