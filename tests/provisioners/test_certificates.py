"""Certificates of a provider and the passes that follow: how gateways listen, what is published, what waits."""

from __future__ import annotations

from typing import Any

import pytest

from provisioners import certificate_checks
from tenants import endpoint_trust
from tenants.models import Endpoint, GatewayReplica, Provider
from tenants.operations import endpoints, providers
from tenants.states import ConditionType, PlatformRole, condition_of
from tests import factories
from tests.drive import DOCUMENT, World, fresh, world
from tests.provisioners.test_passes_first_slice import endpoint_ask
from tests.tls import Ca

pytestmark = pytest.mark.usefixtures("db")
ZONE = "models.test"
KIND = {"url": "http://127.0.0.1:1", "estate": "e", "zone": ZONE}


@pytest.fixture
def here() -> World:
    return world({**DOCUMENT, "settings": {"gateways": "real"}})


@pytest.fixture
def operator(here: World) -> Any:
    del here
    return factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))


def configure(here: World, operator: Any, **config: str) -> None:
    providers.update(provider=fresh(here.provider), config={**KIND, **config}, actor=operator, now=here.clock.now)


def endpoint(here: World) -> Endpoint:
    tenant = factories.tenant(name="acme")
    factories.generous(tenant, "H100-80GB")
    actor = factories.actor(factories.member(tenant))
    made = endpoints.create(tenant=tenant, ask=endpoint_ask(), actor=actor, now=here.clock.now)
    return made.endpoint


def gateway_runs(here: World) -> None:
    """Be the keeper of processes: every gateway runs as it is wanted now."""
    for gateway in here.estate.state.gateways.values():
        here.estate.gateway_seen(gateway.uid, running=True, enrolled=True, pid=1, port=18500, message="")


def address_is(here: World, row: Endpoint, address: str) -> Any:
    def reached() -> bool:
        gateway_runs(here)
        return bool(fresh(row).address == address)

    return reached


def test_the_address_follows_what_the_provider_says_of_certificates(here: World, operator: Any) -> None:
    configure(here, operator)
    row = endpoint(here)
    here.drive(address_is(here, row, "http://127.0.0.1:18500/v1"))

    configure(here, operator, certificates="own-ca")
    here.drive(address_is(here, row, f"https://chat.acme.{ZONE}:18500/v1"))
    assert [gateway.tls for gateway in here.estate.state.gateways.values()] == [True]
    assert fresh(row).reachable_from == ""
    configure(here, operator, certificates="none")
    here.drive(lambda: not any(gateway.tls for gateway in here.estate.state.gateways.values()))
    for gateway in here.estate.state.gateways.values():  # another process takes its place, which takes a while
        here.estate.gateway_seen(gateway.uid, running=False, enrolled=True, pid=0, port=18500, message="stopping")
    for _ in range(10):
        here.sweep()
        here.clock.move(1)
    here.drive(address_is(here, row, "http://127.0.0.1:18500/v1"))

    assert [gateway.tls for gateway in here.estate.state.gateways.values()] == [False]


def test_the_test_of_a_provider_names_the_endpoints_that_no_given_certificate_covers(
    here: World, operator: Any
) -> None:
    configure(here, operator, certificates="files")
    ca, now = Ca.make(), here.clock.now
    endpoint(here)
    here.drive(lambda: Endpoint.objects.get().boundary_id is not None)

    def stored(*names: str, days: float = 300) -> tuple[str, str]:
        providers.set_credential(
            provider=fresh(here.provider), name="endpoint-certificates", actor=operator, now=now,
            secret=ca.server(*names, days=days, at=now),
        )  # fmt: skip
        return certificate_checks.gap(fresh(here.provider), now=now)

    assert stored(f"*.beta.{ZONE}") == (
        f"None of the given certificates is good for chat.acme.{ZONE}.", "secret.endpoint-certificates"
    )  # fmt: skip
    assert stored(f"*.acme.{ZONE}") == ("", "")
    assert "ends on 2026-" in stored(f"*.acme.{ZONE}", days=30)[0]
    configure(here, operator, certificates="own-ca")
    assert certificate_checks.gap(fresh(here.provider), now=now)[1] == "secret.endpoint-authority"


def test_an_endpoint_waits_for_its_gateways_certificate_and_says_why(here: World, operator: Any) -> None:
    configure(here, operator, certificates="own-ca")
    providers.set_credential(
        provider=fresh(here.provider),
        name="endpoint-authority",
        secret=Ca.make(at=here.clock.now).bundle,
        actor=operator,
        now=here.clock.now,
    )
    row = endpoint(here)
    trouble = "The certificate authority ends on 2026-01-01."

    def reports(**told: Any) -> None:
        GatewayReplica.objects.update(
            enrolled_at=here.clock.now, report={"certificate": told}, reported_version=99, config_version=99
        )

    def ready_says() -> str:
        gateway_runs(here)
        if fresh(row).phase != "Ready":
            reports(version="", trouble=trouble)
        found = condition_of(fresh(row).conditions, ConditionType.READY)
        return "" if found is None else str(found["message"])

    here.drive(lambda: trouble in ready_says())
    assert fresh(row).phase == "Provisioning"
    assert endpoint_trust.look(fresh(row)).trouble == trouble
    ends = "2026-12-01T00:00:00+00:00"
    reports(version="v", trouble="", not_after=ends)
    Endpoint.objects.update(due_at=here.clock.now)

    here.drive(lambda: bool(fresh(row).phase == "Ready"))
    look = endpoint_trust.look(fresh(row))
    assert (look.source, look.trouble, str(look.ends_at)) == ("own-ca", "", "2026-12-01 00:00:00+00:00")
    assert look.ca_pem == endpoint_trust.ca_pem_of(Provider.objects.get())
