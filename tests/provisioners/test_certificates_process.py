"""Certificates end to end: real web process, real sandbox process, a real gateway, real passes, real TLS by name.

DNS alone is played: names of the zone lead to this machine. Clients are httpx and the official `openai` package, and
they believe the authority that the endpoint's page gives them, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from django.test import override_settings

from provisioners import outside
from provisioners.driver import Secret
from provisioners.sandbox.driver import SandboxDriver
from tenants import endpoint_trust
from tenants.api.serializers.serving import AddressOut
from tenants.models import Boundary, Endpoint, GatewayReplica, Provider
from tenants.operations import endpoints, providers
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind, PlatformRole, Role
from tests import factories
from tests.drive import DOCUMENT, inventory_of, rows_of
from tests.provisioners.test_agent_api_process import Web, free_port, in_thread
from tests.provisioners.test_moves_process import Sweeps
from tests.provisioners.test_rollouts_process import fresh, reached
from tests.sandbox_process import QUICK, TOKEN, SandboxProcess
from tests.tls import Ca

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]
ZONE = "models.test"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    here = SandboxProcess(tmp_path)
    yield here
    here.stop()


@pytest.fixture(autouse=True)
def dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name of the zone lead to this machine."""
    real = socket.getaddrinfo

    def found(host: Any, *given: Any, **more: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if str(text).endswith(f".{ZONE}") else host, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", found)


def estate_of(sandbox: SandboxProcess) -> SandboxDriver:
    settings = {**QUICK, "gateways": "real"}
    answer = sandbox.client.put(f"{sandbox.url}/estates/tls", json={**DOCUMENT, "settings": settings})
    assert answer.status_code == 201
    return SandboxDriver(sandbox.url, token=Secret(TOKEN), estate="tls")


def made(driver: SandboxDriver, url: str, ca: Ca) -> SimpleNamespace:
    """Make a provider with an authority of its own, and an endpoint there."""
    config = {"url": url, "estate": "tls", "zone": ZONE, "certificates": "own-ca"}
    provider = factories.provider(
        capabilities={**inventory_of(driver), "simulated": True},  # type: ignore[arg-type]
        config=config,
        enabled=True,
    )
    Provider.objects.update(due_at=datetime(2100, 1, 1, tzinfo=UTC))
    rows_of(driver, provider)  # type: ignore[arg-type]
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    store(provider, operator, "endpoint-authority", ca.bundle)
    tenant = factories.tenant(name="acme")
    factories.generous(tenant, "H100-80GB", "A100-80GB")
    factories.served_model("llama-3-1-8b")
    actor = factories.actor(factories.member(tenant, Role.OWNER))
    unit = UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16)
    spec = AllocationSpec(units=(unit,), where=Where(kind=BoundaryKind.NAMESPACE))
    row = endpoints.create(
        tenant=tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec), actor=actor, now=datetime.now(UTC)
    )
    return SimpleNamespace(endpoint=row.endpoint, secret=row.secret, actor=actor, provider=provider, operator=operator)


def store(provider: Provider, operator: Any, name: str, secret: str) -> None:
    providers.set_credential(
        provider=Provider.objects.get(pk=provider.pk), name=name, secret=secret, actor=operator, now=datetime.now(UTC)
    )


def trust_of(it: SimpleNamespace) -> str:
    return AddressOut.of(fresh(it)).certificate.ca_pem


def says(address: str, secret: str, ca_pem: str) -> str:
    """Ask through the official client, which checks the certificate by the address's name."""
    trust = ssl.create_default_context(cadata=ca_pem)
    with openai.OpenAI(
        base_url=address, api_key=secret, http_client=httpx.Client(verify=trust, trust_env=False), max_retries=0
    ) as client:
        answer = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "Where?"}])
    return str(answer.choices[0].message.content)


def refusal(address: str, ca_pem: str) -> str:
    try:
        says(address, "none", ca_pem)
    except openai.APIConnectionError as error:
        return str(error.__cause__)
    except openai.APIError as error:
        return str(error)
    return ""


def seen_from_outside() -> list[tuple[str, bool]]:
    row = Endpoint.objects.select_related("boundary__provider").get()
    return [(each.key, each.ok) for each in outside._findings(row)]


async def walk(driver: SandboxDriver, sandbox: SandboxProcess, web: Web) -> None:
    ca, other = Ca.make(within=ZONE), Ca.make("files")
    await web.start()
    it: Any = await in_thread(lambda: made(driver, sandbox.url, ca))
    async with Sweeps(driver):
        await reached(lambda: fresh(it).phase, lambda phase: phase == "Ready")
        row: Any = await in_thread(lambda: fresh(it))
        assert row.address.startswith(f"https://chat.acme.{ZONE}:")
        assert row.reachable_from == ""

        # a caller with the authority of the page, by the name; and from outside
        pem = await in_thread(lambda: trust_of(it))
        assert pem == ca.pem.strip()
        assert "on node-" in await in_thread(lambda: says(row.address, it.secret, pem))
        foreign = row.address.replace(".acme.", ".beta.")
        assert "not valid for" in await in_thread(lambda: refusal(foreign, pem))
        seen = await in_thread(seen_from_outside)
        assert seen == [("name", True), ("certificate", True), ("answer", True)]
        look = await reached(lambda: endpoint_trust.look(fresh(it)), lambda found: found.ends_at is not None)
        assert (look.source, look.trouble) == ("own-ca", "")

        # without the control plane: killed and started anew it shows what it has
        await web.stop()
        [pid] = await asyncio.to_thread(sandbox.gateways)
        os.kill(pid, signal.SIGKILL)
        await reached(lambda: _asked(row.address, it.secret, pem), lambda said: "on node-" in said)
        assert await asyncio.to_thread(sandbox.gateways) != [pid]
        await web.start()

        # certificates as files in place of the authority, without a restart
        [pid] = await asyncio.to_thread(sandbox.gateways)
        await in_thread(
            lambda: store(it.provider, it.operator, "endpoint-certificates", other.server(f"*.acme.{ZONE}"))
        )
        await in_thread(lambda: configure(it, sandbox.url, certificates="files", endpoint_ca_pem=other.pem))
        await reached(lambda: _asked(row.address, it.secret, other.pem), lambda said: "on node-" in said)
        assert await asyncio.to_thread(sandbox.gateways) == [pid]
        assert await in_thread(seen_from_outside) == seen
        assert "unable to get local issuer" in await in_thread(lambda: refusal(row.address, pem))

        # and none: it answers in plain again, at its number
        await in_thread(lambda: configure(it, sandbox.url, certificates="none"))
        await reached(lambda: state_of(it), lambda found: found[0].startswith("http://127.0.0.1:"))
        assert await in_thread(GatewayReplica.objects.count) == 1


def state_of(it: SimpleNamespace) -> tuple[str, Any]:
    """Return the address, and what helps to understand why it is not another one."""
    row, boundary = fresh(it), Boundary.objects.get()
    told = [(each.phase, each.due_at, each.conditions, each.observed.get("parts")) for each in (row, boundary)]
    return row.address, (boundary.address, row.observed.get("leads_to"), *told)


def configure(it: SimpleNamespace, url: str, **config: str) -> None:
    providers.update(
        provider=Provider.objects.get(pk=it.provider.pk),
        config={"url": url, "estate": "tls", "zone": ZONE, **config},
        actor=it.operator,
        now=datetime.now(UTC),
    )


def _asked(address: str, secret: str, pem: str) -> str:
    try:
        return says(address, secret, pem)
    except openai.APIError as error:
        return f"failed: {error}"


@pytest.mark.timeout(600)
def test_an_endpoint_answers_with_a_certificate_of_the_providers_own_authority(
    sandbox: SandboxProcess, tmp_path: Path
) -> None:
    driver = estate_of(sandbox)
    web = Web(tmp_path, "", free_port())

    async def run() -> None:
        try:
            await walk(driver, sandbox, web)
        finally:
            with contextlib.suppress(TimeoutError):
                await web.stop()

    with override_settings(TENANTRY_PUBLIC_URL=web.url):
        asyncio.run(run())
    driver.close()
