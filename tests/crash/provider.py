"""The provider of all points: one sandbox server process, an estate per point, copied from a prepared one.

It is the product's server with its store; what is added here is copying an estate, a clock per estate, and a
look at everything an estate has begun and still has.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from provisioners.driver import Secret
from provisioners.sandbox import files
from provisioners.sandbox.driver import SandboxDriver
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.gateways import GatewayKeeper
from provisioners.sandbox.hosting import Hosting
from provisioners.sandbox.server import Server
from provisioners.sandbox.state import state_from_rows
from provisioners.sandbox.store import Store
from tests.crash.clock import Clocks

TOKEN: Final = "crash-table-token"
DEADLINE_S: Final = 5.0
HANG_DEADLINE_S: Final = 0.15
"""A point whose provider hangs waits this long for real."""

GPUS: Final = {"H100-80GB": "namespace", "A100-80GB": "vm"}
DOCUMENT: Final[Mapping[str, Any]] = {
    "schema": files.SCHEMA,
    "hosts": [
        {
            "host": name, "name": name, "binding": "device" if kind == "namespace" else "host",
            "boundary_kinds": [kind], "vcpu": 64, "memory_gib": 512,
            "gpus": [{"product": product, "count": 2}],
        }
        for product, kind in GPUS.items()
        for name in (f"{kind}-1", f"{kind}-2")
    ],
}  # fmt: skip


class CopyingHosting(Hosting):
    """Estates whose name begins with `e<slot>-` live on that slot's clock."""

    def __init__(self, store: Store, *, url: str, clocks: Clocks) -> None:
        """Serve from `store`."""
        self.clocks = clocks
        super().__init__(store, url=url)

    def _estate(self, name: str, state: Any) -> Estate:
        match = re.match(r"e(\d+)-", name)
        clock = self.clocks.slot(int(match[1]) if match else 0)
        return Estate(state, clock=clock.seconds, url=f"{self._url}/estates/{name}")

    def _open(self, name: str) -> Estate:
        return self._estate(name, state_from_rows(self._store.rows(name)))

    def create(self, name: str, document: Mapping[str, Any]) -> bool:
        """Make an estate on its slot's clock."""
        made = super().create(name, document)
        self._estates[name] = self._estate(name, self._estates[name].state)
        return made

    def copy(self, source: str, name: str) -> None:
        """Make `name` what `source` is now; its log begins empty."""
        rows = {(kind, key): value for kind, key, value in self._store.rows(source)}
        self._store.save(name, rows)
        self._estates[name] = self._open(name)


class CrashServer(Server):
    """The sandbox server, which can also copy and be looked at."""

    def __init__(self, hosting: CopyingHosting, keeper: GatewayKeeper, *, token: Secret) -> None:
        """Serve `hosting`."""
        super().__init__(hosting, keeper, token=token)
        self.copying = hosting

    def application(self) -> web.Application:
        """Return the application with two more routes."""
        app = super().application()
        app.router.add_post("/estates/{estate}/copies/{name}", self._copy)
        app.router.add_get("/estates/{estate}/everything", self._everything)
        return app

    async def _copy(self, request: web.Request) -> web.Response:
        self.copying.copy(request.match_info["estate"], request.match_info["name"])
        return web.json_response({})

    async def _everything(self, request: web.Request) -> web.Response:
        with self.copying.using(request.match_info["estate"]) as estate:
            estate.advance()
            state = estate.state
            return web.json_response({
                "begun": [f"{line.owner} {line.text}" for line in state.logs if line.text.endswith(" begun")],
                "objects": sorted(state.objects),
                "workloads": sorted(state.workloads),
                "running": sorted(uid for uid, workload in state.workloads.items() if workload.running),
                "gateways": sorted(state.gateways),
                "tasks": sorted(task.step for task in state.tasks.values() if task.state == "running"),
            })  # fmt: skip


def _serve(listening: socket.socket, folder: Path, clocks: Clocks) -> None:
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    hosting = CopyingHosting(Store(folder / "provider.sqlite3", power_safe=False), url=url, clocks=clocks)
    server = CrashServer(hosting, GatewayKeeper(hosting, folder / "gateways"), token=Secret(TOKEN))
    web.run_app(server.application(), sock=listening, access_log=None, print=None, shutdown_timeout=0.1)


@dataclass(slots=True)
class Provider:
    """The server process and one client per process that uses it."""

    url: str
    process: Any

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.join(10)


def start(folder: Path, clocks: Clocks) -> Provider:
    """Start the server in a process forked from this one."""
    folder.mkdir(parents=True, exist_ok=True)
    listening = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(listening, folder, clocks), daemon=True)
    process.start()
    port = listening.getsockname()[1]
    listening.close()
    return Provider(f"http://127.0.0.1:{port}", process)


@dataclass(slots=True)
class EstateAccess:
    """One estate, as tests bend it and look at it. Make one per process: it keeps connections."""

    url: str
    name: str
    link: HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        """Connect lazily."""
        # Asked ten times a point: the plain client costs a third of a comfortable one.
        self.link = HTTPConnection(urlsplit(self.url).netloc, timeout=DEADLINE_S)

    def driver(self, *, deadline_s: float = DEADLINE_S) -> SandboxDriver:
        """Return the product's driver for it."""
        return SandboxDriver(self.url, token=Secret(TOKEN), estate=self.name, deadline_s=deadline_s)

    def make(self, document: Mapping[str, Any]) -> None:
        """Make it from a document."""
        self._call("PUT", self.name, dict(document))

    def copy_from(self, source: str) -> None:
        """Make it a copy of another one."""
        self._call("POST", f"{source}/copies/{self.name}")

    def remove(self) -> None:
        """Remove it with all that is in it."""
        self._call("DELETE", self.name)

    def control(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """Call the control side."""
        answer: dict[str, Any] = self._call(method, f"{self.name}/control/{path}", body or None)
        return answer

    def everything(self) -> dict[str, list[str]]:
        """Return all that was begun and all that is there."""
        answer: dict[str, list[str]] = self._call("GET", f"{self.name}/everything")
        return answer

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return what is answered. Raises `OSError` for anything but success."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        self.link.request(method, f"/estates/{path}", None if body is None else json.dumps(body), headers)
        response = self.link.getresponse()
        answer = response.read()
        if response.status >= HTTPStatus.BAD_REQUEST:
            msg = f"{method} {path}: {response.status} {answer.decode()}"
            raise OSError(msg)
        return json.loads(answer) if answer else None

    def truth(self) -> list[dict[str, Any]]:
        """Return who really uses which window."""
        found: list[dict[str, Any]] = self.control("GET", "truth")["uses"]
        return found

    def leftovers(self) -> list[str]:
        """Return whatever of ours still exists."""
        found: list[str] = self.control("GET", "leftovers")["leftovers"]
        return found

    def await_rest(self) -> None:
        """Its tasks end when the point's clock moves."""

    def is_waited_for(self) -> bool:
        """How long its tasks take is the point's variant, and allowed for there."""
        return False
