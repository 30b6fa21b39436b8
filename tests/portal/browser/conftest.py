"""Browser tests: the real web process on the test database, Debian's chromium, and a watch over what pages must not do.

`visit()` opens a page; console errors, refusals of the content policy, script errors and requests to other hosts fail
the test that caused them. Without chromium or its driver the tests are skipped and say so.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from aiohttp import web
from django.test import Client

from tenants.models import Person
from tests import environment
from tests.template import ROOT

CHROMIUM = Path("/usr/bin/chromium")
WIDE = (1440, 900)
PHONE = (390, 844)
WORDS = ("Hello", " from", " the", " stand-in.")
"""What the stand-in for an endpoint says."""

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in this folder; skip it where there is no chromium."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if not CHROMIUM.exists():
                item.add_marker(pytest.mark.skip(reason=f"{CHROMIUM} is not installed"))


@pytest.fixture(scope="session")
def site(test_database: str) -> Iterator[str]:
    """Start the web process as in life, on this run's database; return its base URL."""
    with serving(test_database) as base:
        yield base


@contextmanager
def serving(database: str, **more: str) -> Iterator[str]:
    """Run a web process on a database, with `more` in its environment; yields its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    env = {
        **os.environ,
        "TENANTRY_PROCESS": "web",
        "DATABASE_URL": environment.dsn("cp_app", database),
        "TENANTRY_PUBLIC_URL": base,
        **more,
    }
    command = [sys.executable, "-m", "granian", "--interface", "asginl", "--host", "127.0.0.1", "--port", str(port)]
    log = environment.STATE / f"browser-{os.getpid()}-{port}.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*command, "controlplane.asgi:application"], cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        answers(base, server, log)
        yield base
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
        log.unlink(missing_ok=True)


def answers(base: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers; fail with its log when it ends or takes a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            httpx.get(f"{base}/static/frontend/css/base.css", timeout=2).raise_for_status()
        except httpx.HTTPError:
            continue
        return
    pytest.fail(f"the web process did not start:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    """Start one browser for a module's tests.

    Its event loop runs in the tests' own thread for as long as it lives, so it must not outlive the module: a later
    test of this process may want to run a loop itself.
    """
    with pytest.MonkeyPatch.context() as patch, sync_api.sync_playwright() as playwright:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")  # queries are still plain beside that loop
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Watch:
    """What pages did that they must not do. A test that expects one names a part of it in `expected`."""

    host: str
    found: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def of(self, page: object) -> None:
        """Watch one page."""
        page.on("console", lambda m: self.note(f"console: {m.text} {m.location}") if m.type == "error" else None)
        page.on("pageerror", lambda error: self.note(f"script: {error}"))
        page.on("request", lambda request: self.request(request.url))

    def note(self, words: str) -> None:
        """Remember a fault."""
        self.found.append(words)

    def request(self, url: str) -> None:
        """Remember a request to another host."""
        parts = urlsplit(url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.netloc != self.host:
            self.note(f"request off the host: {url}")

    def faults(self) -> list[str]:
        """Return what was not expected."""
        return [words for words in self.found if not any(part in words for part in self.expected)]


@pytest.fixture
def watch(site: str) -> Iterator[Watch]:
    """Watch all pages of a test."""
    seen = Watch(urlsplit(site).netloc)
    yield seen
    assert seen.faults() == []


@pytest.fixture
def visit(db: None, site: str, chromium, watch: Watch) -> Iterator[Callable[..., object]]:
    """Open `visit(path, person=None, size=WIDE, scheme="light", **context)`; return the page."""
    contexts = []

    def open_page(
        path: str, person: Person | None = None, *, size: tuple[int, int] = WIDE, scheme: str = "light", **options
    ) -> object:
        context = chromium.new_context(
            base_url=site, viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **options
        )
        contexts.append(context)
        if person is not None:
            context.add_cookies(cookies_of(person, site))
        page = context.new_page()
        watch.of(page)
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def answering() -> Iterator[str]:
    """Answer as an endpoint does, piece by piece; yields its address."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), []

    async def chat(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"].startswith("Bearer tnt_")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in WORDS:
            await response.write(f'data: {{"choices": [{{"delta": {{"content": "{word}"}}}}]}}\n\n'.encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def embeddings(request: web.Request) -> web.Response:
        asked = (await request.json())["input"]
        data = [{"index": n, "embedding": [1.0, float(n)]} for n in range(len(asked))]
        return web.json_response({"data": data, "usage": {"prompt_tokens": 3 * len(asked)}})

    async def begin() -> None:
        app = web.Application()
        app.router.add_post("/v1/embeddings", embeddings)
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found.append((runner, site._server.sockets[0].getsockname()[1]))
        ready.set()

    def run() -> None:
        loop.run_until_complete(begin())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{found[0][1]}/v1"
    asyncio.run_coroutine_threadsafe(found[0][0].cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def cookies_of(person: Person, site: str) -> list[dict[str, str]]:
    """Return the cookies of a session of somebody."""
    client = Client()
    client.force_login(person, backend="tenants.login.PersonBackend")
    return [{"name": name, "value": morsel.value, "url": site} for name, morsel in client.cookies.items()]


def serious(page: object) -> list[str]:
    """Return what axe finds serious or critical on a page, one line each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{fault['impact']} {fault['id']}: {node['target']} {node['failureSummary'].splitlines()[1].strip()}"
        for fault in found
        if fault["impact"] in {"serious", "critical"}
        for node in fault["nodes"]
    ]
