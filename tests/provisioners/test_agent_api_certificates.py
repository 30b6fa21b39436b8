"""`/agent/v1/certificate`: a gateway gets the names of its own tenant, and no other one's certificate or key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from django.db import connection

from provisioners import gateways
from provisioners.gateway.protocol import CertificateAnswer, parse
from tenants import endpoint_tls, endpoint_trust
from tenants.actor import SYSTEM
from tenants.errors import InvalidSpec
from tenants.models import Boundary, Event, GatewayReplica, Provider
from tenants.operations import endpoints, providers
from tenants.specs import EndpointAsk, RevisionAsk
from tenants.states import PlatformRole
from tenants.transactions import acting, reading
from tests import factories
from tests.provisioners.test_agent_api import Gateway, make_world, spec
from tests.tls import Ca
from tests.unit.test_endpoint_tls import request_of

pytestmark = pytest.mark.usefixtures("db")

NOW = datetime.now(UTC)
ZONE = "models.example.net"
KIND = {"url": "http://127.0.0.1:1", "estate": "e"}


@pytest.fixture
def world() -> SimpleNamespace:

    made = make_world()
    made.operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    made.provider = Provider.objects.get()
    return made


def configured(world: SimpleNamespace, **config: str) -> None:
    row = Provider.objects.get()
    providers.update(provider=row, config={**KIND, **config}, actor=world.operator, now=datetime.now(UTC))


def stored(world: SimpleNamespace, name: str, secret: str) -> None:
    row = Provider.objects.get()
    providers.set_credential(provider=row, name=name, secret=secret, actor=world.operator, now=datetime.now(UTC))


def asked(gateway: Gateway, *names: str, key: ec.EllipticCurvePrivateKey | None = None) -> Any:
    request = request_of(key or ec.generate_private_key(ec.SECP256R1()), *names)
    return gateway.post("certificate", {"gateway_uid": str(gateway.uid), "request_pem": request})


def names_in(response: Any) -> tuple[str, ...]:
    assert response.status_code == 200, response.content
    answer = parse(CertificateAnswer, response.content)
    return endpoint_tls.names_of(x509.load_pem_x509_certificates(answer.chain_pem.encode())[0])


def neighbour(world: SimpleNamespace) -> tuple[str, Gateway]:
    """Return another tenant with an endpoint at the same provider, and its gateway."""
    tenant = factories.tenant(parent=world.parent)
    factories.generous(tenant)
    member = factories.actor(factories.member(tenant))
    asks = EndpointAsk("alpha", RevisionAsk("llama-3-1-8b"), spec())
    endpoints.create(tenant=tenant, ask=asks, actor=member, now=NOW)
    with acting(SYSTEM):
        replica = gateways.of_boundary(Boundary.objects.get(tenant=tenant), now=NOW)
        token = gateways.arm(replica, now=NOW)
    return tenant.name, Gateway(replica.pk, token.reveal())


def test_a_gateway_gets_a_certificate_for_its_tenant_whatever_it_asks_for(world: SimpleNamespace) -> None:
    configured(world, zone=ZONE, certificates="own-ca")
    stored(world, "endpoint-authority", Ca.make(within=ZONE).bundle)
    other, elsewhere = neighbour(world)
    world.gateway.enrol()
    elsewhere.enrol()

    mine = asked(world.gateway, f"*.{other}.{ZONE}", "bank.example.com")

    assert names_in(mine) == (f"*.{world.tenant.name}.{ZONE}",)
    assert mine["Cache-Control"] == "no-store"
    assert parse(CertificateAnswer, mine.content).key_pem == ""
    assert names_in(asked(elsewhere)) == (f"*.{other}.{ZONE}",)
    event = Event.objects.get(kind="gateway.certificate-issued", tenant_id=world.tenant.pk)
    assert event.data["names"] == [f"*.{world.tenant.name}.{ZONE}"]
    assert event.actor == f"agent:{world.gateway.uid}"


def test_a_gateway_is_told_by_its_signed_configuration_and_again_when_the_authority_changes(
    world: SimpleNamespace,
) -> None:
    world.gateway.enrol()
    assert world.gateway.document().certificate is None
    configured(world, zone=ZONE, certificates="own-ca")
    stored(world, "endpoint-authority", Ca.make().bundle)

    first = world.gateway.document()
    stored(world, "endpoint-authority", Ca.make().bundle)
    second = world.gateway.document(first.version)

    assert first.certificate is not None
    assert second.certificate is not None
    assert first.certificate.names == (f"*.{world.tenant.name}.{ZONE}",)
    assert first.certificate.version != second.certificate.version
    assert parse(CertificateAnswer, asked(world.gateway).content).version == second.certificate.version


def test_a_given_certificate_goes_to_its_tenant_and_to_nobody_else(world: SimpleNamespace) -> None:
    ca = Ca.make()
    other, elsewhere = neighbour(world)
    configured(world, zone=ZONE, certificates="files")
    stored(world, "endpoint-certificates", ca.server(f"*.{world.tenant.name}.{ZONE}"))
    world.gateway.enrol()
    elsewhere.enrol()

    mine, theirs = asked(world.gateway), asked(elsewhere)

    assert names_in(mine) == (f"*.{world.tenant.name}.{ZONE}",)
    assert "PRIVATE KEY" in parse(CertificateAnswer, mine.content).key_pem
    assert (theirs.status_code, theirs.json()["code"]) == (409, "no-certificate")
    assert theirs.json()["detail"] == f"None of the given certificates is for *.{other}.{ZONE}."
    assert b"PRIVATE" not in theirs.content
    with pytest.raises(InvalidSpec, match="one tenant only"):
        stored(world, "endpoint-certificates", ca.server(f"*.{world.tenant.name}.{ZONE}", f"*.{other}.{ZONE}"))


def test_nobody_gets_one_without_being_that_gateway_or_where_there_is_none(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    assert asked(world.gateway).status_code == 404
    configured(world, zone=ZONE, certificates="own-ca")

    assert asked(world.gateway).json()["detail"].endswith("an operator stores it.")
    stored(world, "endpoint-authority", Ca.make().bundle)
    stranger = Gateway(world.gateway.uid, "nothing")
    assert asked(stranger).status_code == 401
    _, elsewhere = neighbour(world)
    elsewhere.enrol()
    body = {"gateway_uid": str(world.gateway.uid), "request_pem": request_of(ec.generate_private_key(ec.SECP256R1()))}
    assert elsewhere.post("certificate", body).status_code == 400
    assert world.gateway.post("certificate", {**body, "request_pem": "nonsense"}).status_code == 400
    GatewayReplica.objects.filter(pk=world.gateway.uid).update(removed_at=NOW)
    assert asked(world.gateway).status_code == 410


def test_the_database_shows_a_providers_secret_to_the_call_of_its_gateway_only(world: SimpleNamespace) -> None:
    configured(world, zone=ZONE, certificates="own-ca")
    stored(world, "endpoint-authority", Ca.make().bundle)
    _, elsewhere = neighbour(world)

    def shown(actor: Any, gateway: Any) -> int:
        with reading(actor), connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM gateway_certificate_secret(%s)", [gateway])
            return int(cursor.fetchone()[0])

    from provisioners.agent_api.polling import acting_gateway

    assert shown(acting_gateway(world.gateway.uid), world.gateway.uid) == 1
    assert shown(acting_gateway(elsewhere.uid), world.gateway.uid) == 0
    assert shown(world.member, world.gateway.uid) == 0
    assert shown(world.operator, world.gateway.uid) == 0


def test_a_gateway_that_asks_without_end_is_held_back(world: SimpleNamespace) -> None:
    configured(world, zone=ZONE, certificates="own-ca")
    stored(world, "endpoint-authority", Ca.make().bundle)
    world.gateway.enrol()

    answers = [asked(world.gateway).status_code for _ in range(21)]

    assert answers == [200] * 20 + [429]


def test_what_may_be_shown_of_the_secret_is_kept_and_a_zone_that_it_does_not_fit_is_refused(
    world: SimpleNamespace,
) -> None:
    ca = Ca.make(within=ZONE)
    configured(world, zone=ZONE, certificates="own-ca")
    stored(world, "endpoint-authority", ca.bundle)

    row = Provider.objects.get()
    assert endpoint_trust.ca_pem_of(row) == ca.pem.strip()
    ends = endpoint_trust.ends_at(row, world.tenant.name)
    assert ends is not None
    assert ends > NOW + timedelta(days=3000)
    assert "PRIVATE" not in str(row.observed)
    with pytest.raises(InvalidSpec) as refused:
        configured(world, zone="other.net", certificates="own-ca")
    assert refused.value.field == "config.zone"
    providers.remove_credential(provider=row, name="endpoint-authority", actor=world.operator, now=NOW)
    assert endpoint_trust.ca_pem_of(Provider.objects.get()) == ""
