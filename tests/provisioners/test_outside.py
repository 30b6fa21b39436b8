"""Looking at addresses as a caller would: what is missing is said, up to the first thing that is not well."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from provisioners import outside
from tenants import addresses
from tenants.actor import SYSTEM
from tenants.models import AddressCheck, Endpoint, Event, Provider
from tenants.operations import address_checks, endpoints
from tenants.operations.address_checks import Finding
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tests import factories
from tests.conftest import NOW

NAME = "chat.acme.example.net"
REFUSED = {
    "error": {"message": "No good key.", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
}


def certificate(folder: Path, name: str) -> str:
    """Write a certificate for a name, its own authority, and its key; return the PEM of the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM).decode()
    (folder / "tls.crt").write_text(pem)
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem


class Gateway:
    """A server with TLS on loopback, from a thread of its own, that refuses as gateways do, or answers otherwise."""

    def __init__(self, folder: Path) -> None:
        self.pem = certificate(folder, NAME)
        self.status, self.body = 401, REFUSED
        self.asked: list[tuple[str, str | None]] = []
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port: int = self._do(self._start())

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> int:
        app = web.Application()
        app.add_routes([web.get("/v1/models", self._models)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        return int(self._runner.addresses[0][1])

    async def _models(self, request: web.Request) -> web.Response:
        self.asked.append((request.headers["Host"], request.headers.get("Authorization")))
        return web.json_response(self.body, status=self.status)

    def stop(self) -> None:
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path)
    yield made
    made.stop()


def provider(pem: str = "", ranges: tuple[str, ...] = ("127.0.0.0/8",)) -> Provider:
    config = {"address_ranges": list(ranges), outside.CA_SETTING: pem}
    return Provider(name="lund", kind="kubernetes", config=config)


def seen(
    gateway: Gateway | None, *, trusted: bool = True, scheme: str = "https", dns: dict[str, list[str]] | None = None,
    name: str = NAME, **changes: Any,
) -> list[Finding]:  # fmt: skip
    port = gateway.port if gateway is not None else 9
    names = {name: ["127.0.0.1"], "127.0.0.1": ["127.0.0.1"]} if dns is None else dns

    def resolve(host: str, _port: int) -> list[str]:
        if host not in names:
            raise OSError(host)
        return names[host]

    where = provider(gateway.pem if gateway is not None and trusted else "", **changes)
    return outside.examine(f"{scheme}://{name}:{port}/v1", f"{scheme}://127.0.0.1:{port}/v1", where, resolve=resolve)


def test_an_address_that_is_well_is_reached_by_its_name_and_without_a_key(gateway: Gateway) -> None:
    found = seen(gateway)

    assert [(each.key, each.ok) for each in found] == [("name", True), ("certificate", True), ("answer", True)]
    assert gateway.asked == [(f"{NAME}:{gateway.port}", None)]


def test_a_name_that_dns_does_not_know_is_told_with_the_record_to_set() -> None:
    [found] = seen(None, dns={})

    assert (found.key, found.ok) == ("name", False)
    assert found.text == f"DNS has no record of {NAME}. Set: {NAME}. A 127.0.0.1"


def test_a_name_that_leads_elsewhere_is_told() -> None:
    [found] = seen(None, dns={NAME: ["192.0.2.9"], "127.0.0.1": ["127.0.0.1"]})

    assert (found.key, found.ok) == ("name", False)
    assert "DNS says 192.0.2.9" in found.text


def test_what_lies_outside_of_the_providers_ranges_is_not_called(gateway: Gateway) -> None:
    found = seen(gateway, ranges=("10.0.0.0/8",))

    assert [(each.key, each.ok) for each in found] == [("name", True), ("range", False)]
    assert "address ranges of lund" in found[-1].text
    assert gateway.asked == []


def test_a_certificate_that_is_not_trusted_or_for_another_name_is_told(gateway: Gateway) -> None:
    strange = seen(gateway, trusted=False)[-1]
    other = seen(gateway, name="mail.acme.example.net")[-1]

    assert (strange.key, strange.ok, other.key, other.ok) == ("certificate", False, "certificate", False)
    assert "self-signed certificate" in strange.text
    assert "mail.acme.example.net" in other.text
    assert gateway.asked == []


def test_plain_http_is_no_address_for_keys() -> None:
    found = seen(None, scheme="http")[-1]

    assert (found.key, found.ok) == ("certificate", False)
    assert "without TLS" in found.text


def test_something_else_that_answers_there_is_told(gateway: Gateway) -> None:
    gateway.status, gateway.body = 200, {"data": []}  # type: ignore[assignment]

    found = seen(gateway)[-1]

    assert (found.key, found.ok) == ("answer", False)
    assert "Something else answers there, with 200" in found.text


def test_nobody_who_answers_is_told(gateway: Gateway) -> None:
    gateway.port, before = 1, gateway.port

    found = seen(gateway)[-1]
    gateway.port = before

    assert (found.key, found.ok) == ("answer", False)


# --- which are due, and what is kept ------------------------------------------------------------------


@pytest.fixture
def chat(db: None) -> Endpoint:
    tenant = factories.tenant(name="acme")
    factories.generous(tenant)
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace"]}))
    factories.served_model()
    member = factories.actor(factories.member(tenant))
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16),))
    made = endpoints.create(
        tenant=tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec), actor=member, now=NOW
    )
    Endpoint.objects.filter(pk=made.endpoint.pk).update(
        phase="Ready", ready_at=NOW, address=f"https://{NAME}/v1", reachable_from="tenant"
    )
    return Endpoint.objects.get(pk=made.endpoint.pk)


def due(at: datetime) -> int:
    return len(address_checks.due(at))


def looked(chat: Endpoint, at: datetime, *, ok: bool) -> bool:
    finding = Finding("name", ok=ok, text="as it is")
    return address_checks.looked(endpoint=chat, address=chat.address, findings=[finding], actor=SYSTEM, now=at)


def test_one_that_is_missing_something_is_looked_at_each_minute_one_that_is_well_every_ten(chat: Endpoint) -> None:
    minute = timedelta(minutes=1)

    assert due(NOW) == 1
    assert not looked(chat, NOW, ok=False)
    assert (due(NOW + minute / 2), due(NOW + minute)) == (0, 1)
    assert looked(chat, NOW + minute, ok=True)
    assert (due(NOW + 10 * minute), due(NOW + 11 * minute)) == (0, 1)
    assert not looked(chat, NOW + 11 * minute, ok=False)

    row = AddressCheck.objects.get()
    kinds = list(
        Event.objects.filter(kind__startswith="endpoint.address").order_by("seq").values_list("kind", flat=True)
    )
    assert (row.ok, row.verified_at) == (False, NOW + minute)
    assert kinds == ["endpoint.address-verified", "endpoint.address-lost"]


def test_another_address_is_looked_at_at_once_and_laboratories_are_not(chat: Endpoint) -> None:
    looked(chat, NOW, ok=True)

    Endpoint.objects.update(address="https://chat.acme.example.org/v1")
    assert due(NOW) == 1
    assert not looked(chat, NOW, ok=True)  # it has another one by now
    Endpoint.objects.update(reachable_from="lab")
    assert due(NOW) == 0
    Endpoint.objects.update(reachable_from="cluster")
    assert due(NOW) == 0


# --- certificates that end, an authority of ours, names that are resolved elsewhere -------------------


def test_the_authority_of_a_provider_is_trusted_without_being_told_again(gateway: Gateway) -> None:
    where = provider("")
    where.config |= {"certificates": "own-ca"}
    where.observed = {"endpoint_tls": {"endpoint-authority": {"ca_pem": gateway.pem}}}
    address = f"https://{NAME}:{gateway.port}/v1"

    found = outside.examine(address, address, where, resolve=lambda _name, _port: ["127.0.0.1"])

    assert [(each.key, each.ok) for each in found] == [("name", True), ("certificate", True), ("answer", True)]
    assert "until" in found[1].text


def test_a_certificate_that_should_have_been_renewed_is_told_while_it_is_still_good(gateway: Gateway) -> None:
    address, later = f"https://{NAME}:{gateway.port}/v1", datetime.now(UTC) + timedelta(hours=21)

    found = outside.examine(
        address, address, provider(gateway.pem), resolve=lambda _name, _port: ["127.0.0.1"], now=later
    )

    assert [(each.key, each.ok, each.warns) for each in found][1] == ("certificate", True, True)
    assert "has not been renewed" in found[1].text
    assert not seen(gateway)[1].warns


def test_where_names_are_resolved_elsewhere_no_record_is_asked_for(gateway: Gateway) -> None:
    where = provider(gateway.pem)
    where.config |= {"dns_records": "none"}
    address, leads_to = f"https://{NAME}:{gateway.port}/v1", f"https://127.0.0.1:{gateway.port}/v1"

    def resolve(host: str, _port: int) -> list[str]:
        if host == NAME:
            raise OSError(host)
        return [host]

    found = outside.examine(address, leads_to, where, resolve=resolve)

    assert [(each.key, each.ok) for each in found] == [("name", True), ("certificate", True), ("answer", True)]
    assert "is resolved elsewhere" in found[0].text
    assert addresses.record_to_set(address, leads_to, where.config) is None
    assert addresses.record_to_set(address, leads_to, {}) is not None
