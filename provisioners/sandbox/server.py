"""The sandbox server: simulated estates behind an HTTP API on loopback. Labelled as simulated everywhere.

Driver side, bearer token, all under `/estates/<name>/`:

    PUT, GET, DELETE ``                          make from a document (201, 200 if it was there), look, remove
    PUT  records {records: [[table, key, …], …]} take over an estate that was played in another process
    GET  capabilities | snapshot                 as `driver.py` says, one JSON document each
    GET  objects/<kind>/<uid>?tenant=<uid>       Observed
    GET  objects/<kind>/<uid>/logs?since=&tail=  list of LogLine
    POST objects/<kind>/<uid>/isolate {cut_off} | power {want}
    POST steps {ref, name, key, want, limit_s, undo, payload, secrets} → {handle} (202) or {done: true}
    GET  tasks/<handle>                          {state, progress, error}
    POST hosts/<host>/evacuate | restore | acceptance

Control side (`control.py`), same token: `control/settings` (GET, PATCH), `control/no-delays` (POST),
`control/faults` (GET, POST, DELETE; `control/faults/<uid>` DELETE), `control/gpus/<device>` and
`control/hosts/<host>` (POST {healthy, message}), `control/foreign-uses` and `control/foreign-objects`
(POST; `…/<name>` DELETE), `control/objects/<uid>` (DELETE), `control/models`, `control/truth`,
`control/leftovers` (GET).

Without a token: `/healthz`, `replicas/<unit>/…` (`stub.py`) and `gateways/<uid>/v1/…` (simulated gateways); beside the
estates `/names/<endpoint>/v1/…`, whichever simulated gateway has that name (`names.py`).

Errors are {"error": word, "detail", "raw", "retry_after_s"} with the words of `faults.ERRORS`; a driver
reads the word. Whatever a call changed is durable before its answer goes out.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, Final
from uuid import UUID

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from provisioners.driver import (
    Acceptance,
    Capabilities,
    Done,
    DriverError,
    DriverRejected,
    Handle,
    Kind,
    LogLine,
    ModelFiles,
    Observed,
    ObservedUse,
    Power,
    Ref,
    Secret,
    StagedModel,
    Step,
)
from provisioners.sandbox import control, files, names, views
from provisioners.sandbox.estate import SECRET_FIELDS, Estate
from provisioners.sandbox.faults import Hanging, error_as_json
from provisioners.sandbox.gateways import GatewayKeeper
from provisioners.sandbox.hosting import Hosting, UnknownEstate
from provisioners.sandbox.models import ModelKeeper
from provisioners.sandbox.names import NameKeeper
from provisioners.sandbox.records import as_row
from provisioners.sandbox.stub import Stub, place_of

STATUS: Final[Mapping[str, int]] = {
    "transient": 503,
    "no-capacity": 409,
    "conflicting": 409,
    "rejected": 422,
    "not-supported": 501,
}
LONGEST_HANG_S: Final = 300.0
BODY_LIMIT: Final = 64 * 1024 * 1024
"""Bytes; an estate of 10,000 GPUs is a few MiB."""

_CAPABILITIES: Final = TypeAdapter(Capabilities)
_FILES: Final = TypeAdapter(ModelFiles)
_STAGED: Final = TypeAdapter(StagedModel)
_OBSERVED: Final = TypeAdapter(Observed)
_USES: Final = TypeAdapter(list[ObservedUse])
_ACCEPTANCE: Final = TypeAdapter(Acceptance)
_LOG: Final = TypeAdapter(list[LogLine])
_log = logging.getLogger(__name__)

Act = Callable[[Estate, web.Request, dict[str, Any]], Any]
"""One call on an estate: (estate, request, JSON body) → JSON types, or a `_Ready` document."""


class _Ready(bytes):
    """JSON that is already text."""


class Server:
    """The HTTP side of one hosting; `application()` is what aiohttp runs."""

    def __init__(
        self, hosting: Hosting, keeper: GatewayKeeper, *, token: Secret, models: ModelKeeper | None = None
    ) -> None:
        """Serve `hosting` to whoever bears `token`; without `models` no model server is started."""
        self._hosting = hosting
        self._keeper = keeper
        self._models = models
        self._names_kept = NameKeeper(hosting)
        self._token = token
        self._stub = Stub()

    def application(self) -> web.Application:
        """Return the aiohttp application with all routes."""
        app = web.Application(client_max_size=BODY_LIMIT, middlewares=[self._authenticated])
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/estates", self._names)
        app.router.add_put("/estates/{estate}", self._create)
        app.router.add_put("/estates/{estate}/records", self._adopt)
        app.router.add_delete("/estates/{estate}", self._remove)
        app.router.add_get("/estates/{estate}", self._call(lambda estate, _request, _body: _summary(estate)))
        for method, path, act in _ROUTES:
            app.router.add_route(method, f"/estates/{{estate}}/{path}", self._call(act))
        app.router.add_route("*", "/estates/{estate}/replicas/{unit}/{path:.*}", self._replica)
        app.router.add_route("*", "/estates/{estate}/gateways/{gateway}/{path:.*}", self._gateway)
        app.router.add_route("*", "/names/{name}/{path:.*}", self._name)
        app.cleanup_ctx.append(self._keeping)
        return app

    async def _keeping(self, _app: web.Application) -> Any:
        await self._keeper.start()
        await self._names_kept.start()
        if self._models is not None:
            await self._models.start()
        yield
        if self._models is not None:
            await self._models.stop()
        await self._names_kept.stop()
        await self._keeper.stop()
        self._hosting.close()

    # --- around every call -------------------------------------------------------------------------

    @web.middleware
    async def _authenticated(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path != "/healthz" and request.match_info.get("path") is None:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._token.reveal().encode()):
                return web.json_response({"error": "unauthenticated", "detail": "a bearer token is needed"}, status=401)
        try:
            return await handler(request)
        except UnknownEstate as error:
            # Not "gone": a provider that cannot be found says nothing about the objects in it.
            return _problem({"error": "transient", "detail": str(error)}, 404)

    def _call(self, act: Act) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await _body(request)
            if body is None:
                return _problem({"error": "rejected", "detail": "the body is no JSON object"}, 400)
            hang: Hanging | None = None
            answer: Any = None
            late_s = 0.0
            try:
                with self._hosting.using(request.match_info["estate"]) as estate:
                    answer = act(estate, request, body)
                    late_s, estate.late_s = estate.late_s, 0.0
            except Hanging as error:
                hang = error
            except DriverError as error:
                described = error_as_json(error)
                return _problem(described, STATUS[described["error"]])
            except (control.BadControl, _BadCall) as error:
                return _problem({"error": "rejected", "detail": str(error)}, 400)
            finally:
                self._keeper.wake()
                self._names_kept.wake()
                if self._models is not None:
                    self._models.wake()
            if hang is not None:
                await asyncio.sleep(min(hang.seconds, LONGEST_HANG_S))
                return _problem({"error": "transient", "detail": "the sandbox was told to hang"}, 504)
            if late_s > 0:
                await asyncio.sleep(min(late_s, LONGEST_HANG_S))
            if isinstance(answer, _Ready):
                return web.Response(body=bytes(answer), content_type="application/json")
            return web.json_response(answer, status=202 if isinstance(answer, dict) and "handle" in answer else 200)

        return handle

    # --- estates -----------------------------------------------------------------------------------

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "simulated": True, "estates": len(self._hosting.names())})

    async def _names(self, _request: web.Request) -> web.Response:
        return web.json_response({"estates": self._hosting.names()})

    async def _create(self, request: web.Request) -> web.Response:
        body = await _body(request)
        if body is None:
            return _problem({"error": "rejected", "detail": "the body is no JSON object"}, 400)
        try:
            made = self._hosting.create(request.match_info["estate"], body)
        except (files.BadEstate, DriverRejected, ValueError) as error:
            return _problem({"error": "rejected", "detail": str(error)}, 400)
        summary = _summary(self._hosting.find(request.match_info["estate"]))
        return web.json_response(summary, status=201 if made else 200)

    async def _adopt(self, request: web.Request) -> web.Response:
        """Take an estate that was played in another process; gateways of one that it replaces are stopped."""
        name = request.match_info["estate"]
        body = await _body(request)
        if body is None or not isinstance(body.get("records"), list):
            return _problem({"error": "rejected", "detail": "records are a list of [table, key, record]"}, 400)
        if name in self._hosting.names():
            await self._stop_all(name)
        try:
            self._hosting.adopt(name, [(str(table), str(key), row) for table, key, row in body["records"]])
        except (files.BadEstate, TypeError, ValueError) as error:
            return _problem({"error": "rejected", "detail": str(error)}, 400)
        return web.json_response(_summary(self._hosting.find(name)))

    async def _remove(self, request: web.Request) -> web.Response:
        name = request.match_info["estate"]
        await self._stop_all(name)
        self._hosting.remove(name)
        return web.Response(status=204)

    async def _stop_all(self, name: str) -> None:
        """End every process of an estate."""
        await self._keeper.stop_all(name)
        if self._models is not None:
            await self._models.stop_all(name)

    # --- what a tenant's traffic reaches -----------------------------------------------------------

    async def _replica(self, request: web.Request) -> web.StreamResponse:
        with self._hosting.using(request.match_info["estate"]) as estate:
            pass
        return await self._stub.answer(request, estate, request.match_info["unit"], request.match_info["path"])

    async def _gateway(self, request: web.Request) -> web.StreamResponse:
        """Answer for a simulated gateway: chooses a replica by the model's name and checks no keys."""
        return await self._simulated(request, request.match_info["estate"], request.match_info["gateway"])

    async def _name(self, request: web.Request) -> web.StreamResponse:
        """Answer for the simulated gateway that has a name now."""
        found = names.gateways_of(self._hosting, request.match_info["name"])
        if not found:
            return _problem({"error": "rejected", "detail": "nothing has this name"}, 404)
        return await self._simulated(request, found[0][0], found[0][1].uid)

    async def _simulated(self, request: web.Request, name: str, uid: str) -> web.StreamResponse:
        estate = self._hosting.find(name)
        gateway = estate.state.gateways.get(uid)
        if gateway is None or not gateway.simulated:
            return _problem({"error": "rejected", "detail": "no such simulated gateway"}, 404)
        body = await _body(request) or {}
        owner = estate.state.objects[gateway.owner]
        endpoints = {found.uid for found in estate.state.objects.values() if owner.uid in (found.uid, found.boundary)}
        for workload in list(estate.state.workloads.values()):
            serving = workload.serving
            if workload.owner not in endpoints or serving is None or place_of(estate, workload.uid)[0] is None:
                continue
            if request.method == "GET" or serving["model"] == body.get("model"):
                answer = await self._stub.answer(
                    request, estate, workload.uid, request.match_info["path"], trusted=True
                )
                if not answer.prepared:
                    answer.headers["x-tenantry-gateway"] = "simulated"
                return answer
        return _problem({"error": "transient", "detail": "no replica is ready (simulated gateway)"}, 503)


# --- calls ----------------------------------------------------------------------------------------


class _BadCall(ValueError):
    """The request is not what the API takes."""


def _observe(estate: Estate, request: web.Request, _body: dict[str, Any]) -> _Ready:
    return _Ready(_OBSERVED.dump_json(estate.observe(_ref(request))))


def _logs(estate: Estate, request: web.Request, _body: dict[str, Any]) -> _Ready:
    tail = request.query.get("tail", "100")
    if not tail.isdecimal():
        msg = "tail is a number"
        raise _BadCall(msg)
    return _Ready(
        _LOG.dump_json(list(estate.logs(_ref(request), since=request.query.get("since", ""), tail=int(tail))))
    )


def _isolate(estate: Estate, request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    return _started(estate.isolate(_ref(request), cut_off=bool(body.get("cut_off"))))


def _power(estate: Estate, request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    try:
        want = Power(str(body.get("want")))
    except ValueError as error:
        raise _BadCall(str(error)) from error
    return _started(estate.power(_ref(request), want=want))


def _start(estate: Estate, _request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    return _started(estate.start(step_from_json(body)))


def step_from_json(value: Mapping[str, Any]) -> Step:
    """Return the step that `driver.step_as_json` wrote. Raises `_BadCall`."""
    try:
        ref = value["ref"]
        payload: dict[str, Any] = dict(value["payload"])
        given = value.get("secrets", {})
        payload |= {name: Secret(str(given[name])) for name in SECRET_FIELDS if given.get(name) is not None}
        return Step(
            name=str(value["name"]),
            key=str(value["key"]),
            want=str(value["want"]),
            limit_s=int(value["limit_s"]),
            ref=Ref(Kind(ref["kind"]), UUID(ref["uid"]), UUID(ref["tenant_uid"])),
            payload=payload,
            undo=bool(value["undo"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = "the body is no step"
        raise _BadCall(msg) from error


def _poll(estate: Estate, request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    polled = estate.poll(Handle(request.match_info["task"]))
    error = None if polled.error is None else error_as_json(polled.error)
    return {"state": polled.state, "progress": polled.progress, "error": error}


def _evacuate(estate: Estate, request: web.Request, _body: dict[str, Any]) -> _Ready:
    return _Ready(_USES.dump_json(estate.evacuate(request.match_info["host"])))


def _restore(estate: Estate, request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    return _started(estate.restore(request.match_info["host"]))


def _acceptance(estate: Estate, request: web.Request, _body: dict[str, Any]) -> _Ready:
    return _Ready(_ACCEPTANCE.dump_json(estate.acceptance(request.match_info["host"])))


def _change_settings(estate: Estate, _request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    return as_row(control.change_settings(estate, body))


def _no_delays(estate: Estate, _request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    control.no_delays(estate)
    return as_row(estate.state.settings)


def _models(estate: Estate, _request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    return {"models": [as_row(record) for record in estate.state.models.values()]}


def _faults(estate: Estate, _request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    return {"faults": [as_row(fault) for fault in estate.state.faults.values()]}


def _add_fault(estate: Estate, _request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in body.items() if name not in ("match", "effect")}
    return as_row(control.add_fault(estate, str(body.get("match", "")), str(body.get("effect", "")), **options))


def _clear_faults(estate: Estate, request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    control.clear_faults(estate, request.match_info.get("fault"))
    return {}


def _gpu_health(estate: Estate, request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    healthy, message = bool(body.get("healthy")), str(body.get("message", ""))
    control.set_gpu_health(estate, request.match_info["device"], healthy=healthy, message=message)
    return {}


def _host_health(estate: Estate, request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    healthy, message = bool(body.get("healthy")), str(body.get("message", ""))
    control.set_host_health(estate, request.match_info["host"], healthy=healthy, message=message)
    return {}


def _add_foreign_use(estate: Estate, _request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    try:
        windows = [(str(device), int(start), str(profile)) for device, start, profile in body.get("windows", ())]
        use = control.add_foreign_use(
            estate,
            str(body["name"]),
            str(body["host"]),
            windows,
            vcpu=int(body.get("vcpu", 0)),
            memory_gib=int(body.get("memory_gib", 0)),
        )
    except (KeyError, TypeError) as error:
        msg = "a foreign use takes name, host, windows [[device, start, profile], …], vcpu, memory_gib"
        raise _BadCall(msg) from error
    return as_row(use)


def _remove_foreign_use(estate: Estate, request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    control.remove_foreign_use(estate, request.match_info["name"])
    return {}


def _add_foreign_object(estate: Estate, _request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    if not body.get("name"):
        msg = "a foreign object takes name and note"
        raise _BadCall(msg)
    return as_row(control.add_foreign_object(estate, str(body["name"]), str(body.get("note", ""))))


def _remove_foreign_object(estate: Estate, request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    control.remove_foreign_object(estate, request.match_info["name"])
    return {}


def _remove_object(estate: Estate, request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    control.remove_object(estate, request.match_info["uid"])
    return {}


def _stage_model(estate: Estate, _request: web.Request, body: dict[str, Any]) -> _Ready:
    return _Ready(_STAGED.dump_json(estate.stage_model(_files_in(body))))


def _drop_model(estate: Estate, _request: web.Request, body: dict[str, Any]) -> _Ready:
    return _Ready(_STAGED.dump_json(estate.drop_model(_files_in(body))))


def _files_in(body: dict[str, Any]) -> ModelFiles:
    try:
        return _FILES.validate_python(body)
    except ValidationError as error:
        msg = f"these are no files of a model: {error.errors()[0]['msg']}"
        raise _BadCall(msg) from error


def _truth(estate: Estate, _request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    estate.advance()
    return {"uses": [asdict(use) for use in views.truth(estate.state)]}


def _leftovers(estate: Estate, _request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
    estate.advance()
    return {"leftovers": views.leftovers(estate.state)}


_ROUTES: Final[tuple[tuple[str, str, Act], ...]] = (
    ("GET", "capabilities", lambda estate, _request, _body: _Ready(_CAPABILITIES.dump_json(estate.capabilities()))),
    ("GET", "snapshot", lambda estate, _request, _body: _Ready(views.PROVIDER.dump_json(estate.snapshot()))),
    ("GET", "objects/{kind}/{uid}", _observe),
    ("GET", "objects/{kind}/{uid}/logs", _logs),
    ("POST", "objects/{kind}/{uid}/isolate", _isolate),
    ("POST", "objects/{kind}/{uid}/power", _power),
    ("POST", "steps", _start),
    ("GET", "tasks/{task}", _poll),
    ("POST", "hosts/{host}/evacuate", _evacuate),
    ("POST", "hosts/{host}/restore", _restore),
    ("POST", "hosts/{host}/acceptance", _acceptance),
    ("POST", "models/{uid}/stage", _stage_model),
    ("POST", "models/{uid}/drop", _drop_model),
    ("GET", "control/settings", lambda estate, _request, _body: as_row(estate.state.settings)),
    ("PATCH", "control/settings", _change_settings),
    ("POST", "control/no-delays", _no_delays),
    ("GET", "control/faults", _faults),
    ("POST", "control/faults", _add_fault),
    ("DELETE", "control/faults", _clear_faults),
    ("DELETE", "control/faults/{fault}", _clear_faults),
    ("POST", "control/gpus/{device}", _gpu_health),
    ("POST", "control/hosts/{host}", _host_health),
    ("POST", "control/foreign-uses", _add_foreign_use),
    ("DELETE", "control/foreign-uses/{name}", _remove_foreign_use),
    ("POST", "control/foreign-objects", _add_foreign_object),
    ("DELETE", "control/foreign-objects/{name}", _remove_foreign_object),
    ("DELETE", "control/objects/{uid}", _remove_object),
    ("GET", "control/models", _models),
    ("GET", "control/truth", _truth),
    ("GET", "control/leftovers", _leftovers),
)


# --- small things ---------------------------------------------------------------------------------


def _summary(estate: Estate) -> dict[str, Any]:
    state = estate.state
    return {
        "simulated": True,
        "url": estate.url,
        "hosts": len(state.hosts),
        "gpus": len(state.gpus),
        "objects": len(state.objects),
        "workloads": len(state.workloads),
    }


def _ref(request: web.Request) -> Ref:
    try:
        return Ref(
            Kind(request.match_info["kind"]), UUID(request.match_info["uid"]), UUID(request.query.get("tenant", ""))
        )
    except ValueError as error:
        msg = "the path names no object: objects/<kind>/<uid>?tenant=<uid>"
        raise _BadCall(msg) from error


def _started(answer: Handle | Done) -> dict[str, Any]:
    return {"handle": answer.value} if isinstance(answer, Handle) else {"done": True}


def _problem(described: Mapping[str, Any], status: int) -> web.Response:
    headers = {"Retry-After": "1"} if status == web.HTTPServiceUnavailable.status_code else None
    return web.json_response(dict(described), status=status, headers=headers)


async def _body(request: web.Request) -> dict[str, Any] | None:
    """Return the JSON object of a request, {} without a body, None if it is something else."""
    raw = await request.read()
    if not raw:
        return {}
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
