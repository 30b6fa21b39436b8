"""`/agent/v1/` as endpoint machines see it: an enrolment bound to the machine, and what its replica runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db.models import F
from django.test import Client

from provisioners import gateways
from provisioners.driver import BoundaryKind, intent_hash, machine_uuid
from provisioners.endpoint import PASS
from provisioners.gateway import keys
from provisioners.gateway.protocol import ServingAnswer, parse
from provisioners.serving import replica as replicas
from provisioners.specs_from_rows import serving_spec
from tenants import states
from tenants.actor import SYSTEM
from tenants.models import Boundary, Endpoint, GatewayReplica, Provider, Revision, Unit
from tenants.operations import endpoints
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk, Where
from tenants.transactions import acting
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

NOW = datetime.now(UTC)


@pytest.fixture
def world() -> SimpleNamespace:
    """An endpoint of one replica whose boundary is made of machines, its gateway armed."""
    return made(kind="vsphere")


def made(kind: str, *, boundary: str = "vm") -> SimpleNamespace:
    provider = factories.provider(kind=kind, capabilities={"boundary_kinds": [boundary], "bindings": ["device"]})
    factories.host(provider, gpus=2)
    tenant = factories.tenant()
    factories.generous(tenant)
    factories.served_model()
    unit = UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16)
    member = factories.actor(factories.member(tenant, states.Role.MEMBER))
    endpoint = endpoints.create(
        tenant=tenant,
        ask=EndpointAsk(
            "alpha", RevisionAsk("llama-3-1-8b"), AllocationSpec((unit,), Where(kind=states.BoundaryKind(boundary)))
        ),
        actor=member,
        now=NOW,
    ).endpoint
    row = Boundary.objects.get()
    with acting(SYSTEM):
        if boundary == "vm":
            [gateway] = gateways.of_units(row, Unit.objects.filter(allocation_id=endpoint.allocation_id), now=NOW)
        else:
            gateway = gateways.of_boundary(row, now=NOW)
        token = gateways.arm(gateway, now=NOW)
    return SimpleNamespace(member=member, gateway=gateway.pk, token=token.reveal())


def enrol(world: SimpleNamespace, **changes: Any) -> tuple[int, bytes, keys.NewKey]:
    """Return status, body and the credential that was offered."""
    credential = keys.make_agent_credential(world.gateway)
    body = {
        "token": world.token,
        "gateway_uid": str(world.gateway),
        "credential_digest": credential.digest,
        "version": "1",
        **changes,
    }
    answer = Client().post("/agent/v1/enrol", json.dumps(body), content_type="application/json")
    return answer.status_code, answer.content, credential


def serving(credential: keys.NewKey) -> Any:
    return Client().get("/agent/v1/serving", headers={"Authorization": f"Bearer {credential.plain}"})


@pytest.mark.parametrize("shown", [{}, {"machine_uuid": None}, {"machine_uuid": str(uuid4())}, {"machine_uuid": ""}])
def test_a_token_opens_nothing_in_another_machine_and_stays_good_in_its_own(
    world: SimpleNamespace, shown: dict[str, Any]
) -> None:
    status, body, _ = enrol(world, **shown)
    unknown, as_if_unknown, _ = enrol(world, token=keys.make_enrolment_token().plain)

    if shown.get("machine_uuid") == "":
        assert status == 400
    else:
        assert (
            (status, json.loads(body)["code"])
            == (unknown, json.loads(as_if_unknown)["code"])
            == (401, "unauthenticated")
        )
    assert GatewayReplica.objects.get(pk=world.gateway).enrolled_at is None
    assert enrol(world, machine_uuid=str(machine_uuid(world.gateway)))[0] == 200


def test_firmware_may_show_the_identity_in_either_byte_order(world: SimpleNamespace) -> None:
    swapped = UUID(bytes_le=machine_uuid(world.gateway).bytes)

    assert enrol(world, machine_uuid=str(swapped).upper())[0] == 200


def test_a_lost_answer_is_repeated_to_the_same_machine_only(world: SimpleNamespace) -> None:
    right = str(machine_uuid(world.gateway))
    _, _, credential = enrol(world, machine_uuid=right)

    again, _, _ = enrol(world, machine_uuid=right, credential_digest=credential.digest)
    elsewhere, _, _ = enrol(world, machine_uuid=str(uuid4()), credential_digest=credential.digest)

    assert (again, elsewhere) == (200, 401)


def test_a_machine_of_the_sandbox_has_no_firmware_to_show() -> None:
    assert enrol(made(kind="sandbox"))[0] == 200


def test_a_gateway_is_told_what_runs_beside_it_with_the_key_and_nothing_may_keep_it(world: SimpleNamespace) -> None:
    _, _, credential = enrol(world, machine_uuid=str(machine_uuid(world.gateway)))

    answer = serving(credential)

    told = parse(ServingAnswer, answer.content)
    unit = Unit.objects.get(pk=world.gateway)
    revision = Revision.objects.select_related("model").get()
    wanted = serving_spec(Endpoint.objects.get(), revision, unit, BoundaryKind.VM)
    assert answer["Cache-Control"] == "no-store"
    assert (told.revision_uid, told.revision, told.model, told.port) == (revision.pk, 1, "alpha", 8000)
    assert told.argv == wanted.argv
    assert told.argv[:2] == ("vllm", "serve")
    assert "--host=127.0.0.1" in told.argv
    assert dict(told.environment) == dict(wanted.environment)
    assert dict(told.secrets) == {"VLLM_API_KEY": wanted.secrets["VLLM_API_KEY"].reveal()}
    assert told.want == intent_hash(replicas.want_of(wanted, unit.pk))
    assert told.secrets["VLLM_API_KEY"] not in repr(told)


def test_a_new_revision_is_another_want_and_another_key(world: SimpleNamespace) -> None:
    _, _, credential = enrol(world, machine_uuid=str(machine_uuid(world.gateway)))
    first = parse(ServingAnswer, serving(credential).content)

    ask = RevisionAsk("llama-3-1-8b", {"max_model_len": 2048})
    endpoints.revise(endpoint=Endpoint.objects.get(), ask=ask, actor=world.member, now=NOW)
    second = parse(ServingAnswer, serving(credential).content)

    assert (first.revision, second.revision) == (1, 2)
    assert "--max-model-len=2048" in second.argv
    assert first.want != second.want
    assert first.secrets != second.secrets


def test_there_is_nothing_to_run_for_an_endpoint_that_is_being_deleted(world: SimpleNamespace) -> None:
    _, _, credential = enrol(world, machine_uuid=str(machine_uuid(world.gateway)))

    Endpoint.objects.update(deletion_requested_at=NOW)

    assert (serving(credential).status_code, serving(credential).content) == (204, b"")


def test_a_gateway_outside_a_machine_is_told_nothing() -> None:
    world = made(kind="sandbox", boundary="namespace")
    _, _, credential = enrol(world)

    assert serving(credential).status_code == 404


def test_only_who_proves_to_be_that_gateway_is_told(world: SimpleNamespace) -> None:
    enrol(world, machine_uuid=str(machine_uuid(world.gateway)))

    assert serving(keys.make_agent_credential(world.gateway)).status_code == 401
    assert Client().get("/agent/v1/serving").status_code == 401
    assert Client().post("/agent/v1/serving").status_code == 405


def test_a_gateway_that_was_removed_is_told_so(world: SimpleNamespace) -> None:
    _, _, credential = enrol(world, machine_uuid=str(machine_uuid(world.gateway)))

    GatewayReplica.objects.update(removed_at=NOW)

    assert serving(credential).status_code == 410
    assert Provider.objects.get().kind == "vsphere"


def test_an_endpoint_waits_for_the_proof_of_its_gateway_and_not_for_the_word_of_its_guest(
    world: SimpleNamespace,
) -> None:
    endpoint = Endpoint.objects.select_related("boundary__provider").get()

    before = PASS._missing_at_gateways(endpoint)
    enrol(world, machine_uuid=str(machine_uuid(world.gateway)))
    GatewayReplica.objects.update(reported_version=F("config_version"))

    assert before == "Its gateway has not enrolled."
    again = Endpoint.objects.select_related("boundary__provider").get()
    assert PASS._missing_at_gateways(again) == ""
