"""A loopback lab for the gateway: a control plane and models that tests steer, and the gateway in process or as one.

The control plane speaks the real protocol (long poll included) and keeps what it is sent. A model answers as an
OpenAI-compatible server; its stream goes on only when the test lets it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy

from provisioners.driver import Secret
from provisioners.gateway import keys
from provisioners.gateway.app import Gateway, Settings
from provisioners.gateway.protocol import (
    Backend,
    ConfigDocument,
    EndpointConfig,
    EndpointKey,
    EnrolAnswer,
    EnrolRequest,
    Envelope,
    Lease,
    LeaseAnswer,
    LeaseRequest,
    Report,
    UsageBatch,
    UsageRecord,
    Waiting,
    WakeRequest,
    parse,
)
from provisioners.gateway.signing import Signer

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 15.0
Seen = TypeVar("Seen")


def scenario(test: Callable[[Lab], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Make a test of a coroutine that takes a `Lab`."""

    def run(tmp_path: Path) -> None:
        async def within() -> None:
            async with Lab(tmp_path) as lab:
                await test(lab)

        asyncio.run(within())

    run.__name__, run.__module__, run.__doc__ = test.__name__, test.__module__, test.__doc__
    return run


async def until(
    look: Callable[[], Awaitable[Seen]], good: Callable[[Seen], bool], *, within_s: float = PATIENCE_S
) -> Seen:
    """Look again and again until what is seen is good; fail with what was seen last."""
    seen: Seen | str = "nothing"
    try:
        async with asyncio.timeout(within_s):
            while True:
                try:
                    seen = await look()
                except aiohttp.ClientError as error:
                    seen = f"{type(error).__name__}: {error}"
                else:
                    if good(seen):
                        return seen
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not so within {within_s} s; last seen: {seen!r}") from None


class Server:
    """An aiohttp application on a loopback port that it keeps when it is stopped and started again."""

    def __init__(self) -> None:
        self.port = 0
        self._runner: web.AppRunner | None = None

    def routes(self) -> list[web.RouteDef]:
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


class ControlPlane(Server):
    """What a gateway calls home."""

    def __init__(self, gateway_uid: UUID) -> None:
        super().__init__()
        self.gateway_uid = gateway_uid
        self.boundary_uid = uuid4()
        self.signer, _ = Signer.generate()
        self.token = keys.make_enrolment_token().plain
        self.enrolments: list[EnrolRequest] = []
        self.lose_enrol_answers = 0
        self.credential_digest = ""
        self.version = 0
        self.envelope: Envelope | None = None
        self.news = asyncio.Event()
        self.batches: dict[UUID, UsageBatch] = {}
        self.batches_received = 0
        self.refuse_usage_with = 0
        self.lose_usage_answers = 0
        """So many batches are kept and their answers lost."""
        self.budgets: dict[str, int] = {}
        """Budget → all of it, whatever the period; this gateway has it for itself."""
        self.spent: dict[str, int] = {}
        self.kept: dict[str, int] = {}
        """Budget → what the gateway said last that it goes on counting on."""
        self.lease_serial = 0
        self.refuse_leases_with = 0
        self.reports: list[Report] = []
        self.wakes: list[WakeRequest] = []
        self.woken = asyncio.Event()
        self.answer_all_with = 0
        """Status for every call of an enrolled gateway (401 revoked, 410 removed); 0 answers properly."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/agent/v1/enrol", self._enrol),
            web.get("/agent/v1/config", self._config),
            web.post("/agent/v1/usage", self._usage),
            web.post("/agent/v1/leases", self._leases),
            web.post("/agent/v1/report", self._report),
            web.post("/agent/v1/wake", self._wake),
        ]

    def publish(self, *endpoints: EndpointConfig, version: int | None = None, **fields: Any) -> ConfigDocument:
        self.version = version if version is not None else self.version + 1
        document = ConfigDocument(
            version=self.version,
            boundary_uid=fields.pop("boundary_uid", self.boundary_uid),
            gateway_uid=fields.pop("gateway_uid", self.gateway_uid),
            issued_at=datetime.now(UTC),
            endpoints=endpoints,
            report_interval_s=1.0,
            **fields,
        )
        self.offer(self.signer.sign(document))
        return document

    def offer(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.news.set()
        self.news = asyncio.Event()

    @property
    def records(self) -> list[UsageRecord]:
        return [record for batch in self.batches.values() for record in batch.records]

    async def _enrol(self, request: web.Request) -> web.Response:
        asked = parse(EnrolRequest, await request.read())
        self.enrolments.append(asked)
        if asked.token != self.token or asked.gateway_uid != self.gateway_uid:
            return web.Response(status=401)
        if self.credential_digest not in {"", asked.credential_digest}:
            return web.Response(status=401)
        self.credential_digest = asked.credential_digest
        if self.lose_enrol_answers:
            self.lose_enrol_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        answer = EnrolAnswer(
            gateway_uid=self.gateway_uid,
            boundary_uid=self.boundary_uid,
            key_id=self.signer.key_id,
            public_key=self.signer.public_key,
        )
        return web.Response(body=answer.model_dump_json().encode(), content_type="application/json")

    def _refused(self, request: web.Request) -> int:
        scheme, _, plain = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or keys.digest(plain) != self.credential_digest:
            return 401
        return self.answer_all_with

    async def _config(self, request: web.Request) -> web.Response:
        if status := self._refused(request):
            return web.Response(status=status)
        have, wait_s = int(request.query["have"]), float(request.query["wait"])
        if self.envelope is None or self.version <= have:
            try:
                async with asyncio.timeout(wait_s):
                    await self.news.wait()
            except TimeoutError:
                return web.Response(status=204)
        if status := self._refused(request):
            return web.Response(status=status)
        assert self.envelope is not None
        return web.Response(body=self.envelope.model_dump_json().encode(), content_type="application/json")

    async def _usage(self, request: web.Request) -> web.Response:
        body = await request.read()
        if status := self._refused(request) or self.refuse_usage_with:
            return web.Response(status=status)
        batch = parse(UsageBatch, body)
        self.batches_received += 1
        assert self.batches.setdefault(batch.id, batch) == batch, "one id, two contents"
        if self.lose_usage_answers:
            self.lose_usage_answers -= 1
            return web.Response(status=503)
        return web.Response(status=204)

    async def _leases(self, request: web.Request) -> web.Response:
        body = await request.read()
        if status := self._refused(request):
            return web.Response(status=status)
        if self.refuse_leases_with:
            return web.Response(status=self.refuse_leases_with)
        asked = parse(LeaseRequest, body)
        if asked.serial <= self.lease_serial:
            return web.json_response({"data": {"serial": self.lease_serial}}, status=409)
        self.lease_serial = asked.serial
        leases = []
        for ask in asked.asks:
            self.spent[ask.budget], self.kept[ask.budget] = ask.spent, ask.keep
            limit = self.budgets.get(ask.budget)
            granted = None if limit is None else max(ask.keep, min(ask.want, limit))
            leases.append(Lease(budget=ask.budget, period_start=ask.period_start, granted=granted, left=0))
        answer = LeaseAnswer(leases=tuple(leases))
        return web.Response(body=answer.model_dump_json().encode(), content_type="application/json")

    async def _report(self, request: web.Request) -> web.Response:
        if status := self._refused(request):
            return web.Response(status=status)
        self.reports.append(parse(Report, await request.read()))
        return web.Response(status=204)

    async def _wake(self, request: web.Request) -> web.Response:
        if status := self._refused(request):
            return web.Response(status=status)
        self.wakes.append(parse(WakeRequest, await request.read()))
        self.woken.set()
        return web.Response(status=204)


class Model(Server):
    """One replica: answers chat and completions, whole or as a stream that the test lets go on."""

    def __init__(self, name: str = "model") -> None:
        super().__init__()
        self.name = name
        self.unit_uid = uuid4()
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []
        """Headers (names in lower case) and body of each inference request."""
        self.go: asyncio.Queue[bytes | None] = asyncio.Queue()
        """What a steered stream sends next; None breaks it off."""
        self.dropped = asyncio.Event()
        """Set when a caller left in the middle of a stream."""
        self.status = 200
        self.hop_key = ""
        """Asked of every caller, as vLLM does with `VLLM_API_KEY`; "" asks for nothing."""
        self.refused = 0
        self.metrics = ""
        """What it tells of its load; "" tells nothing."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/models", self._models),
            web.get("/metrics", self._metrics),
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/completions", self._chat),
            web.post("/v1/embeddings", self._chat),
            web.post("/invocations", self._chat),
        ]

    def backend(self, *, weight: int = 100, revision: int = 1) -> Backend:
        return Backend(unit_uid=self.unit_uid, url=f"{self.url}/v1", revision=revision, weight=weight)

    def _opens(self, request: web.Request) -> bool:
        good = not self.hop_key or request.headers.get("Authorization") == f"Bearer {self.hop_key}"
        self.refused += not good
        return good

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=self.metrics, status=200 if self.metrics else 404)

    async def _models(self, request: web.Request) -> web.Response:
        if not self._opens(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"object": "list", "data": []})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if not self._opens(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await request.json()
        self.seen.append(({name.lower(): value for name, value in request.headers.items()}, body))
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        headers = {"Set-Cookie": "a=b", "X-Tenantry-Simulated": "true", "Connection": "keep-alive, X-Hop", "X-Hop": "1"}
        if not body.get("stream"):
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            said = {"id": "c1", "model": self.name, "choices": [{"message": {"content": 'a "usage": {} b'}}]}
            return web.json_response({**said, "usage": usage}, headers=headers)
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while (event := await self.go.get()) != b"":
                if event is None:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(event)
        except (asyncio.CancelledError, ConnectionError):
            self.dropped.set()
            raise
        if body.get("stream_options", {}).get("include_usage"):
            await response.write(event_of(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2}))
        await response.write(b"data: [DONE]\n\n")
        return response


def wrong(plain: str) -> str:
    """Return a key that differs from `plain` in its last letter."""
    return plain[:-1] + ("x" if plain[-1] != "x" else "y")


def event_of(**content: Any) -> bytes:
    """Return one server-sent event with JSON data."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


class Lab:
    """A control plane, a model, one endpoint with one key, and gateways."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "gateway"
        self.gateway_uid = uuid4()
        self.control = ControlPlane(self.gateway_uid)
        self.model = Model()
        self.key = keys.make("test")
        self.endpoint_uid = uuid4()
        self.port = 0
        self.processes: list[asyncio.subprocess.Process] = []
        self._stack = AsyncExitStack()
        self.http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        await self.control.start()
        self._stack.push_async_callback(self.control.stop)
        await self.model.start()
        self._stack.push_async_callback(self.model.stop)
        self.http = await self._stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
        await self._stack.aclose()

    def endpoint(self, *backends: Backend, name: str = "alpha", **fields: Any) -> EndpointConfig:
        fields.setdefault("keys", (EndpointKey(id=self.key.id, digest=self.key.digest),))
        fields.setdefault("uid", self.endpoint_uid)
        return EndpointConfig(
            name=name, tenant=uuid4(), models=(name,), backends=backends or (self.model.backend(),), **fields
        )

    def asleep(self, *, limit: int = 256, timeout_s: float = PATIENCE_S, **fields: Any) -> EndpointConfig:
        """Return the endpoint at zero: no replica, and requests wait for one."""
        waiting = Waiting(limit=limit, timeout_s=timeout_s, wakes=True)
        return self.endpoint(**fields).model_copy(update={"backends": (), "waiting": waiting})

    async def model_beside(self, name: str) -> Model:
        """Start one more replica."""
        model = Model(name)
        await model.start()
        self._stack.push_async_callback(model.stop)
        return model

    # --- the gateway --------------------------------------------------------------------------------

    async def serve(self, *endpoints: EndpointConfig) -> Gateway:
        """Run a gateway in this process until it serves `endpoints` (default: one, with the model behind it)."""
        self.control.publish(*(endpoints or (self.endpoint(),)))
        gateway = Gateway(
            Settings(
                self.gateway_uid,
                self.control.url,
                self.state,
                Secret(self.control.token),
                port=self.port,
                usage_interval_s=0.05,
            )
        )
        running = asyncio.create_task(gateway.run())

        async def end() -> None:
            gateway.stop()
            await running

        self._stack.push_async_callback(end)
        await until(self._port_of(gateway), bool)
        await self.healthy(state="serving", config_version=self.control.version)
        return gateway

    def _port_of(self, gateway: Gateway) -> Callable[[], Awaitable[int]]:
        async def look() -> int:
            self.port = gateway.port
            return self.port

        return look

    async def spawn(
        self, *more: str, token: bool = True, environment: Mapping[str, str] | None = None
    ) -> asyncio.subprocess.Process:
        """Start the real program; its log goes to a file."""
        if not self.port:
            probe = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
            self.port = probe.sockets[0].getsockname()[1]
            probe.close()
            await probe.wait_closed()
        environment = {
            **(environment or {}),
            "PATH": os.environ["PATH"],
            "TENANTRY_GATEWAY_CONTROL_URL": self.control.url,
            "TENANTRY_GATEWAY_UID": str(self.gateway_uid),
            **({"TENANTRY_GATEWAY_TOKEN": self.control.token} if token else {}),
        }
        command = ["-m", "provisioners.gateway", "--port", str(self.port), "--state", str(self.state), *more]
        with (self.folder / "gateway.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, env=environment, cwd=ROOT, stderr=log, stdout=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    async def kill(self, process: asyncio.subprocess.Process, number: int = signal.SIGKILL) -> int:
        process.send_signal(number)
        return await process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def health(self) -> dict[str, Any]:
        async with self.http.get(f"{self.url}/healthz") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def healthy(self, *, within_s: float = PATIENCE_S, **wanted: object) -> dict[str, Any]:
        """Wait until `/healthz` says what is wanted."""
        return await until(self.health, lambda seen: wanted.items() <= seen.items(), within_s=within_s)

    # --- a caller -----------------------------------------------------------------------------------

    async def ask(
        self, path: str = "/v1/chat/completions", *, key: str | None = None, method: str = "POST", **body: Any
    ) -> tuple[int, dict[str, Any], CIMultiDictProxy[str]]:
        """Ask and read it all: (status, JSON, headers). `key=""` sends none."""
        plain = self.key.plain if key is None else key
        headers = {"Authorization": f"Bearer {plain}"} if plain else {}
        content = {"model": "alpha", "messages": [], **body} if method == "POST" else None
        async with self.http.request(method, f"{self.url}{path}", json=content, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers

    def stream(self, **body: Any) -> Any:
        """Ask for a stream; an async context manager of the answer."""
        return self.http.post(
            f"{self.url}/v1/chat/completions",
            json={"model": "alpha", "messages": [], "stream": True, **body},
            headers={"Authorization": f"Bearer {self.key.plain}"},
        )
