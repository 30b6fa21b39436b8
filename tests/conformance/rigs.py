"""What conformance needs of a driver under test: the driver, a clock to move, and ways to hurt its provider.

A new driver joins by one `Rig` and one line in `conftest.RIGS`. What it lacks stands in its `lacks`, with the reason:
tests ask for it by `specs.needs`.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx
from aiohttp import web

from provisioners.driver import Driver, Secret, UnitSpec
from provisioners.sandbox import control, files, views
from provisioners.sandbox.driver import InProcessSandbox, SandboxDriver
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.gateways import GatewayKeeper
from provisioners.sandbox.hosting import Hosting
from provisioners.sandbox.server import Server
from provisioners.sandbox.store import Store

DOCUMENT: dict[str, Any] = {
    "schema": "sandbox-estate/1",
    "settings": {"boot_s": 1.0, "load_s": 1.0, "report_delay_s": 2.0, "delays_s": {"": 0.5}},
    "hosts": [
        {
            "host": "node-a",
            "binding": "device",
            "boundary_kinds": ["namespace"],
            "vcpu": 64,
            "memory_gib": 512,
            "gpus": [
                {"product": "H100-80GB", "count": 2},
                {"product": "A100-80GB", "count": 1, "layout_change": "on-idle"},
                {"product": "A100-80GB", "count": 1, "layout_change": "fixed", "layout": [[0, 4, "3g.40gb"]]},
            ],
        },
        {
            "host": "node-b",
            "binding": "gpu",
            "boundary_kinds": ["namespace"],
            "vcpu": 64,
            "memory_gib": 512,
            "gpus": [{"product": "H100-80GB", "count": 2}],
        },
        {
            "host": "esx-a",
            "binding": "host",
            "boundary_kinds": ["vm"],
            "vcpu": 32,
            "memory_gib": 256,
            "gpus": [{"product": "H100-80GB", "count": 2}],
        },
        {
            "host": "esx-b",
            "binding": "host",
            "boundary_kinds": ["vm", "namespace"],
            "vcpu": 32,
            "memory_gib": 256,
            "gpus": [{"product": "H100-80GB", "count": 1}],
        },
    ],
}


class Time(Protocol):
    """What lets time pass."""

    def tick(self, seconds: float = 0.5) -> None: ...


class Clock:
    """A clock that only tests move."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float = 0.5) -> None:
        self.now += seconds


class Rig(Protocol):
    """One driver with its provider."""

    @property
    def driver(self) -> Driver: ...
    @property
    def clock(self) -> Time: ...

    lacks: Mapping[str, str]
    """Ability → why it has none; tests that need it are skipped with that."""
    address: str
    """How addresses of endpoints begin."""
    reachable_from: str

    def backend(self, unit: UnitSpec) -> str: ...
    def fault(self, match: str, effect: str, **options: Any) -> None: ...
    def mend(self) -> None: ...
    def settings(self, **changes: Any) -> None: ...
    def foreign_object(self, name: str) -> None: ...
    def foreign_use(self, name: str, host: str, windows: list[tuple[str, int, str]]) -> None: ...
    def host_health(self, host: str, *, healthy: bool) -> None: ...
    def gpu_health(self, device: str, *, healthy: bool) -> None: ...
    def leftovers(self) -> list[str]: ...
    def truth(self) -> list[dict[str, Any]]: ...
    def stored(self) -> str: ...
    def close(self) -> None: ...


class SandboxRig:
    """What both rigs of the sandbox have in common."""

    lacks: Mapping[str, str] = {}
    address = "http://127.0.0.1:"
    reachable_from = "lab"

    def backend(self, unit: UnitSpec) -> str:
        return f"/replicas/{unit.uid}/v1"


class InProcessRig(SandboxRig):
    """The driver on the core in this process."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.estate = Estate(files.build(DOCUMENT), clock=self.clock, url="http://127.0.0.1:1/estates/one")
        self.driver: Driver = InProcessSandbox(self.estate)
        self._rows: list[str] = []

    def fault(self, match: str, effect: str, **options: Any) -> None:
        control.add_fault(self.estate, match, effect, **options)

    def mend(self) -> None:
        control.clear_faults(self.estate)

    def settings(self, **changes: Any) -> None:
        control.change_settings(self.estate, changes)

    def foreign_object(self, name: str) -> None:
        control.add_foreign_object(self.estate, name)

    def foreign_use(self, name: str, host: str, windows: list[tuple[str, int, str]]) -> None:
        control.add_foreign_use(self.estate, name, host, windows)

    def host_health(self, host: str, *, healthy: bool) -> None:
        control.set_host_health(self.estate, host, healthy=healthy)

    def gpu_health(self, device: str, *, healthy: bool) -> None:
        control.set_gpu_health(self.estate, device, healthy=healthy)

    def leftovers(self) -> list[str]:
        self.estate.advance()
        return views.leftovers(self.estate.state)

    def truth(self) -> list[dict[str, Any]]:
        self.estate.advance()
        return [{name: getattr(use, name) for name in use.__slots__} for use in views.truth(self.estate.state)]

    def stored(self) -> str:
        return str(self.estate.state.take_changes())

    def close(self) -> None:
        self.driver.close()


class SandboxThread:
    """A sandbox server on a loopback port, in a thread of the test process, on a clock of its own."""

    TOKEN = "conformance-token"

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.path = folder / "sandbox.sqlite3"
        self._loop = asyncio.new_event_loop()
        self._folder = folder
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self) -> None:
        hosting = Hosting(Store(self.path, power_safe=False), url="http://127.0.0.1:0", clock=self.clock)
        keeper = GatewayKeeper(hosting, self._folder / "gateways")
        self._runner = web.AppRunner(
            Server(hosting, keeper, token=Secret(self.TOKEN)).application(),
            access_log=None,  # its thread outlives the capture of the test that it belongs to
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class HttpRig(SandboxRig):
    """The driver over HTTP, in an estate of its own."""

    def __init__(self, server: SandboxThread) -> None:
        self.clock = server.clock
        self._server = server
        name = f"t-{uuid.uuid4().hex[:12]}"
        self._url = f"{server.url}/estates/{name}"
        self._client = httpx.Client(headers={"Authorization": f"Bearer {server.TOKEN}"}, verify=False)
        self._client.put(self._url, json=DOCUMENT).raise_for_status()
        self.driver: Driver = SandboxDriver(server.url, token=Secret(server.TOKEN), estate=name, deadline_s=5.0)

    def _control(self, method: str, path: str, **body: Any) -> Any:
        response = self._client.request(method, f"{self._url}/control/{path}", json=body or None)
        assert response.is_success, response.text
        return response.json()

    def fault(self, match: str, effect: str, **options: Any) -> None:
        self._control("POST", "faults", match=match, effect=effect, **options)

    def mend(self) -> None:
        self._control("DELETE", "faults")

    def settings(self, **changes: Any) -> None:
        self._control("PATCH", "settings", **changes)

    def foreign_object(self, name: str) -> None:
        self._control("POST", "foreign-objects", name=name)

    def foreign_use(self, name: str, host: str, windows: list[tuple[str, int, str]]) -> None:
        self._control("POST", "foreign-uses", name=name, host=host, windows=windows)

    def host_health(self, host: str, *, healthy: bool) -> None:
        self._control("POST", f"hosts/{host}", healthy=healthy)

    def gpu_health(self, device: str, *, healthy: bool) -> None:
        self._control("POST", f"gpus/{device}", healthy=healthy)

    def leftovers(self) -> list[str]:
        found: list[str] = self._control("GET", "leftovers")["leftovers"]
        return found

    def truth(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._control("GET", "truth")["uses"]
        return found

    def stored(self) -> str:
        folder = self._server.path.parent
        return "".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())

    def close(self) -> None:
        self.driver.close()
        self._client.delete(self._url).raise_for_status()
        self._client.close()
