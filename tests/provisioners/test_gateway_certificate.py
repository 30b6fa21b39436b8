"""A gateway that gets its certificate from the control plane: real program, real TLS, callers that check the name."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractResolver

from provisioners.driver import Secret
from provisioners.gateway.app import Gateway, Settings
from provisioners.gateway.home_certificate import FILE, NO_FILES, HomeCertificate
from provisioners.gateway.protocol import CertificateAnswer, CertificateRequest, CertificateWanted, parse
from provisioners.gateway.state import StateFolder
from tenants import endpoint_tls
from tests.gateway_lab import Lab, scenario, until
from tests.tls import Ca

ZONE = "models.example.net"
NAME = f"*.acme.{ZONE}"
HOST = f"alpha.acme.{ZONE}"


class Loopback(AbstractResolver):
    """DNS in which every name is this machine."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[dict[str, object]]:  # type: ignore[override]  # noqa: ARG002
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        """Nothing to close."""


class Office:
    """What of the control plane gives certificates."""

    def __init__(self, lab: Lab, ca: Ca, **given: str) -> None:
        self.lab, self.ca, self.given = lab, ca, given
        self.names, self.refusal = (NAME,), ""
        self.asked: list[CertificateRequest] = []
        self.issued: list[endpoint_tls.Issued] = []

    @property
    def wanted(self) -> CertificateWanted:
        return CertificateWanted(
            names=(NAME,), version=endpoint_tls.version_of("own-ca", (NAME,), self.ca.pem + str(self.given))
        )

    def publish(self) -> None:
        self.lab.control.publish(self.lab.endpoint(hosts=(HOST,)), certificate=self.wanted)

    async def answer(self, request: web.Request) -> web.Response:
        if status := self.lab.control._refused(request):
            return web.Response(status=status)
        asked = parse(CertificateRequest, await request.read())
        self.asked.append(asked)
        if self.refusal:
            return web.json_response({"detail": self.refusal}, status=409)
        now = datetime.now(UTC)
        if self.given:
            pairs = endpoint_tls.read_given(self.given["pem"])
            made = endpoint_tls.hand_out(pairs, tenant="acme", zone=ZONE, now=now)
        else:
            key = endpoint_tls.public_key_of(asked.request_pem)
            authority = endpoint_tls.read_authority(self.ca.bundle, now=now)
            made = endpoint_tls.sign(authority, key, names=self.names, now=now)
        self.issued.append(made)
        answer = CertificateAnswer(chain_pem=made.chain_pem, key_pem=made.key_pem, version=self.wanted.version)
        return web.Response(body=answer.model_dump_json().encode(), content_type="application/json")


async def opened(lab: Lab, ca: Ca, **given: str) -> Office:
    """Have the lab's control plane give certificates."""
    office = Office(lab, ca, **given)
    await lab.control.stop()
    routes = lab.control.routes()
    lab.control.routes = lambda: [*routes, web.post("/agent/v1/certificate", office.answer)]  # type: ignore[method-assign]
    await lab.control.start()
    office.publish()
    return office


async def models(lab: Lab, ca: Ca, host: str = HOST) -> int:
    """Ask for the models by name, with a key, believing `ca` alone."""
    trust = ssl.create_default_context(cadata=ca.pem)
    connector = aiohttp.TCPConnector(ssl=trust, resolver=Loopback(), force_close=True)
    headers = {"Authorization": f"Bearer {lab.key.plain}"}
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.get(f"https://{host}:{lab.port}/v1/models", headers=headers) as answer,
    ):
        return answer.status


async def refused(lab: Lab, ca: Ca, host: str) -> bool:
    try:
        await models(lab, ca, host)
    except aiohttp.ClientConnectorCertificateError:
        return True
    return False


async def shown(lab: Lab) -> bytes:
    """Return the certificate that a new connection is shown, whoever signed it."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", lab.port, ssl=anybody, server_hostname=HOST)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


@scenario
async def test_a_gateway_gets_a_certificate_and_shows_it_also_after_a_start_without_the_control_plane(lab: Lab) -> None:
    ca = Ca.make(within=ZONE)
    office = await opened(lab, ca)
    process = await lab.spawn("--tls")

    await until(lambda: models(lab, ca), lambda status: status == 200)
    kept = lab.state / FILE
    assert kept.stat().st_mode & 0o777 == 0o600
    assert len(office.asked) == 1
    assert "PRIVATE" not in office.asked[0].request_pem
    assert await refused(lab, ca, f"alpha.other.{ZONE}")
    assert await refused(lab, Ca.make(), HOST)

    await lab.control.stop()
    await lab.kill(process)
    before = kept.read_bytes()
    await lab.spawn("--tls", token=False)
    await until(lambda: models(lab, ca), lambda status: status == 200)
    assert kept.read_bytes() == before


@scenario
async def test_another_authority_means_another_certificate_without_a_restart(lab: Lab) -> None:
    first, second = Ca.make("first"), Ca.make("second")
    office = await opened(lab, first)
    gateway = await served(lab)
    await until(lambda: models(lab, first), lambda status: status == 200)

    office.ca = second
    office.publish()

    await until(lambda: models(lab, second), lambda status: status == 200)
    assert await refused(lab, first, HOST)
    assert gateway.health()["certificate"] == ""


@scenario
async def test_why_there_is_no_certificate_is_reported_and_what_is_for_others_is_never_shown(lab: Lab) -> None:
    ca = Ca.make()
    office = await opened(lab, ca)
    office.refusal = "The certificate authority ends on 2026-01-01."
    await served(lab)

    await until(lambda: told(lab), lambda words: words == office.refusal)
    nobodys = await shown(lab)
    office.refusal, office.names = "", (f"*.other.{ZONE}",)
    await until(lambda: told(lab), lambda words: words.endswith("it is for other names"))
    assert await shown(lab) == nobodys
    office.names = (NAME,)
    await until(lambda: models(lab, ca), lambda status: status == 200)
    await until(lambda: told(lab), lambda words: words == "")
    assert lab.control.reports[-1].certificate is not None
    assert lab.control.reports[-1].certificate.version == office.wanted.version


@scenario
async def test_a_given_certificate_comes_with_its_key_and_follows_when_it_is_replaced(lab: Lab) -> None:
    first, second = Ca.make("first"), Ca.make("second")
    office = await opened(lab, first, pem=first.server(NAME))
    await served(lab)
    await until(lambda: models(lab, first), lambda status: status == 200)

    office.given = {"pem": second.server(HOST)}
    office.publish()

    await until(lambda: models(lab, second), lambda status: status == 200)
    assert await refused(lab, second, f"beta.acme.{ZONE}")


@scenario
async def test_a_gateway_with_files_of_its_own_shows_the_control_planes_while_that_is_wanted(lab: Lab) -> None:
    """As in a virtual machine, whose image or guest has made a certificate."""
    own, ca = Ca.make("of the image"), Ca.make()
    text = own.server(HOST)
    files = lab.folder / "tls.crt", lab.folder / "tls.key"
    for file in files:
        file.write_text(text)
    office = await opened(lab, ca)
    lab.control.publish(lab.endpoint(hosts=(HOST,)))
    await served(lab, certificate=files)
    await until(lambda: models(lab, own), lambda status: status == 200)

    office.publish()
    await until(lambda: models(lab, ca), lambda status: status == 200)
    assert await refused(lab, own, HOST)
    lab.control.publish(lab.endpoint(hosts=(HOST,)))
    await until(lambda: refused(lab, ca, HOST), bool)

    assert await models(lab, own) == 200
    assert not (lab.state / FILE).exists()


@scenario
async def test_files_that_are_not_there_yet_are_waited_for_and_told(lab: Lab) -> None:
    """As in a namespace, where cert-manager writes the Secret some time after the pod has started."""
    ca = Ca.make()
    files = lab.folder / "tls.crt", lab.folder / "tls.key"
    lab.control.publish(lab.endpoint(hosts=(HOST,)))
    gateway = await served(lab, certificate=files)
    await until(lambda: told(lab), lambda words: words == NO_FILES)
    assert gateway._files is not None

    text = ca.server(NAME)
    for file in files:
        file.write_text(text)
    gateway._files._take_new()  # it looks by itself every ten seconds

    await until(lambda: models(lab, ca), lambda status: status == 200)
    await until(lambda: told(lab), lambda words: words == "nothing")


async def told(lab: Lab) -> str:
    found = lab.control.reports[-1].certificate if lab.control.reports else None
    return "nothing" if found is None else found.trouble


async def served(lab: Lab, certificate: tuple[Path, Path] | None = None) -> Gateway:
    """Run a gateway with TLS in this process until it listens."""
    token = Secret(lab.control.token)
    gateway = Gateway(Settings(lab.gateway_uid, lab.control.url, lab.state, token, tls=True, certificate=certificate))
    running = asyncio.create_task(gateway.run())

    async def end() -> None:
        gateway.stop()
        await running

    lab._stack.push_async_callback(end)
    await until(lab._port_of(gateway), bool)
    return gateway


@scenario
async def test_a_certificate_is_renewed_at_two_thirds_of_its_life_with_another_key(lab: Lab) -> None:
    ca, folder = Ca.make(), StateFolder(lab.state, lab.gateway_uid, Secret("token"))
    office = Office(lab, ca)
    certificate = HomeCertificate(folder, None)
    now = datetime.now(UTC)
    assert certificate.due_in_s(now) is None
    certificate.want(office.wanted)
    assert certificate.due_in_s(now) == 0

    def renew() -> bytes:
        key = endpoint_tls.public_key_of(certificate.request_pem())
        authority = endpoint_tls.read_authority(ca.bundle, now=now)
        made = endpoint_tls.sign(authority, key, names=(NAME,), now=now)
        certificate.answered(CertificateAnswer(chain_pem=made.chain_pem, version=office.wanted.version))
        return (folder.path / FILE).read_bytes()

    first = renew()
    due_in_s = certificate.due_in_s(now)
    assert due_in_s is not None
    assert timedelta(days=18) < timedelta(seconds=due_in_s) <= timedelta(days=20)
    assert certificate.due_in_s(now + timedelta(days=20)) == 0
    second = renew()

    assert first.partition(b"-----BEGIN PRIVATE")[2] != second.partition(b"-----BEGIN PRIVATE")[2]
    folder.close()
