"""Two gateways of one endpoint, a replica beside each: requests go to both, and are judged and counted once."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp

from provisioners.driver import Secret
from provisioners.gateway import beside
from provisioners.gateway.app import Gateway, Settings
from provisioners.gateway.protocol import Backend, EndpointReport
from tests.gateway_lab import ControlPlane, Lab, Model, event_of, scenario, until

HOP = "hop-key-of-this-endpoint"


def certificate(folder: Path) -> tuple[Path, Path, str]:
    """Make one as a guest does: (chain, key, fingerprint)."""
    folder.mkdir(parents=True, exist_ok=True)
    chain, key = folder / "tls.crt", folder / "tls.key"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    words = ["openssl", "req", "-x509", *kind, "-subj", "/CN=guest"]
    subprocess.run([*words, "-keyout", str(key), "-out", str(chain)], check=True, capture_output=True)
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(chain.read_text())).hexdigest()
    return chain, key, digest


class Other:
    """The gateway in the other machine, with its own replica and its own way home."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.control = ControlPlane(uuid4())
        self.model = Model("other")
        chain, key, self.fingerprint = certificate(lab.folder / "other-tls")
        self.gateway = Gateway(
            Settings(
                self.control.gateway_uid, "", lab.folder / "other", Secret(self.control.token), usage_interval_s=0.05,
                certificate=(chain, key),
            )
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.gateway.port}/v1"

    def backend(self, **fields: Any) -> Backend:
        told = {"revision": 2, "through": True, "certificate": self.fingerprint, **fields}
        return Backend(unit_uid=self.model.unit_uid, url=self.url, **told)

    def report(self) -> EndpointReport | None:
        return next(iter(self.control.reports[-1].endpoints), None) if self.control.reports else None


@asynccontextmanager
async def both(lab: Lab) -> AsyncIterator[Other]:
    other = Other(lab)
    for model in (lab.model, other.model):
        model.hop_key = HOP
    await other.model.start()
    await other.control.start()
    object.__setattr__(other.gateway.settings, "control_url", other.control.url)
    running = asyncio.create_task(other.gateway.run())
    try:
        await published(other, other.model.backend(revision=2))
        await until(_port(other), bool)
        await lab.serve(lab.endpoint(lab.model.backend(weight=0), hop_keys=(HOP,)))
        await serving(lab, other.backend())
        yield other
    finally:
        other.gateway.stop()
        await running
        await other.control.stop()
        await other.model.stop()


async def published(other: Other, *backends: Backend, **fields: Any) -> None:
    """Configure the other gateway, and wait until it serves that."""
    told = {"hop_keys": (HOP,), "keys": (), **fields}
    other.control.publish(other.lab.endpoint(*backends, **told).model_copy(update={"backends": backends}))

    async def look() -> object:
        return other.gateway.health()["config_version"] if hasattr(other.gateway, "_proxy") else None

    await until(look, lambda version: version == other.control.version)


def _port(other: Other) -> Any:
    async def look() -> int:
        return other.gateway.port

    return look


async def serving(lab: Lab, *backends: Backend, **fields: Any) -> None:
    lab.control.publish(lab.endpoint(*backends, hop_keys=(HOP,), **fields))
    await lab.healthy(state="serving", config_version=lab.control.version)


@scenario
async def test_it_is_passed_on_to_the_other_replica_and_counted_by_the_one_who_was_asked(lab: Lab) -> None:
    async with both(lab) as other:
        status, body, headers = await lab.ask()

        assert (status, body["model"]) == (200, "other")
        assert beside.RAN not in headers
        [(seen, _)] = other.model.seen
        assert seen["authorization"] == f"Bearer {HOP}"
        assert beside.ENDPOINT.lower() not in seen

        async def counted() -> int:
            return len(lab.control.records)

        await until(counted, lambda number: number == 1)
        [record] = lab.control.records
        assert (record.revision, record.prompt_tokens, record.completion_tokens) == (2, 7, 3)
        assert other.control.records == []


@scenario
async def test_requests_are_shared_out_by_weight_between_the_machines(lab: Lab) -> None:
    async with both(lab) as other:
        await serving(lab, lab.model.backend(weight=75), other.backend(weight=25))

        answers = [(await lab.ask())[1]["model"] for _ in range(20)]

        assert (answers.count("model"), answers.count("other")) == (15, 5)


@scenario
async def test_a_stream_comes_as_it_is_made_and_stops_the_replica_when_the_caller_leaves(lab: Lab) -> None:
    async with both(lab) as other:
        async with lab.stream() as answer:
            await other.model.go.put(event_of(choices=[{"delta": {"content": "a"}}]))
            first = await answer.content.readuntil(b"\n\n")
            await other.model.go.put(b"")
            rest = await answer.content.read()
        assert (answer.status, b'"a"' in first, b"[DONE]" in rest) == (200, True, True)
        assert b'"usage"' not in rest  # nobody asked for it

        async with lab.stream() as answer:
            await other.model.go.put(event_of(choices=[{"delta": {"content": "a"}}]))
            await answer.content.readuntil(b"\n\n")
        await asyncio.wait_for(other.model.dropped.wait(), 10)


@scenario
async def test_what_breaks_off_there_breaks_off_here(lab: Lab) -> None:
    async with both(lab) as other, lab.stream() as answer:
        await other.model.go.put(event_of(choices=[{"delta": {"content": "a"}}]))
        await other.model.go.put(None)
        told = b""
        try:
            async for chunk in answer.content.iter_any():
                told += chunk
        except aiohttp.ClientPayloadError:
            pass
        assert b"backend_broke_off" in told
        assert b"[DONE]" not in told


@scenario
async def test_where_nothing_ran_another_replica_is_asked(lab: Lab) -> None:
    async with both(lab) as other:
        await published(other)  # its replica is gone, and the first gateway has not heard of that
        await serving(lab, lab.model.backend(weight=1), other.backend(weight=10_000))

        gone = [(await lab.ask())[:2] for _ in range(3)]
        await published(other, other.model.backend(revision=2))
        other.model.hop_key = "another"
        refused = [(await lab.ask())[:2] for _ in range(3)]

        assert {(status, body["model"]) for status, body in gone + refused} == {(200, "model")}


@scenario
async def test_a_gateway_with_another_certificate_is_told_nothing(lab: Lab) -> None:
    async with both(lab) as other:
        await serving(lab, other.backend(certificate="ab" * 32))

        status, body, _ = await lab.ask()

        assert (status, body["error"]["code"]) == (503, "no_backend_ready")
        assert other.model.seen == []


@scenario
async def test_who_shows_no_key_of_the_last_hop_is_a_caller_like_any_other(lab: Lab) -> None:
    async with both(lab) as other:
        named = {beside.ENDPOINT: str(lab.endpoint_uid)}
        strangers = (
            named,
            {**named, "Authorization": "Bearer wrong"},
            {**named, "Authorization": f"Basic {HOP}"},
            {beside.ENDPOINT: str(uuid4()), "Authorization": f"Bearer {HOP}"},
            {beside.ENDPOINT: "x", "Authorization": f"Bearer {HOP}"},
            {"Authorization": f"Bearer {HOP}"},
        )
        statuses = []
        for headers in strangers:
            async with lab.http.post(
                f"{other.url}/chat/completions", json={"model": "alpha", "messages": []}, headers=headers, ssl=False
            ) as answer:
                statuses.append((answer.status, (await answer.json())["error"]["code"]))
        proof = {**named, "Authorization": f"Bearer {HOP}"}
        async with lab.http.post(f"{other.url[:-3]}/invocations", json={}, headers=proof, ssl=False) as answer:
            statuses.append((answer.status, "no route"))

        assert statuses == [(401, "invalid_api_key")] * len(strangers) + [(404, "no route")]
        assert other.model.seen == []


@scenario
async def test_a_look_tells_whether_the_other_replica_is_reached_and_each_gateway_tells_its_certificate(
    lab: Lab,
) -> None:
    async with both(lab) as other:

        async def look() -> bool | None:
            found = next(iter(lab.control.reports[-1].endpoints), None) if lab.control.reports else None
            return found.backends[0].reachable if found and found.backends else None

        await until(look, lambda reachable: reachable is True)
        await until(_reported(other), bool)

        assert other.control.reports[-1].listens_with == other.fingerprint
        assert lab.control.reports[-1].listens_with == ""
        await published(other)
        await until(look, lambda reachable: reachable is False)


def _reported(other: Other) -> Any:
    async def look() -> bool:
        return bool(other.control.reports)

    return look
