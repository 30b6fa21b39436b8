"""The first path in a real browser: New → Deploy without a single edit → the page builds itself → an answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from aiohttp import web
from django.utils import timezone

from tenants.models import Endpoint, Provider
from tests import drive, factories
from tests.portal.browser.conftest import PHONE, serious

WORDS = ("Hello", " from", " the", " stand-in.")


@pytest.fixture
def endpoint_server() -> Iterator[str]:
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

    async def begin() -> None:
        app = web.Application()
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


def test_from_new_to_an_answer_with_no_edit_and_one_submit(visit, endpoint_server):
    world = drive.world()
    world.clock.now = timezone.now()
    Provider.objects.update(capabilities={**world.provider.capabilities, "simulated": True})
    factories.served_model()
    acme = factories.tenant(name="acme", display_name="Acme Works")
    factories.generous(acme, "H100-80GB", "A100-80GB")

    page = visit("/t/acme", factories.member(acme))
    page.get_by_role("link", name="New", exact=True).first.click()
    page.get_by_role("link", name="Deploy a model").click()
    assert page.locator("[data-outlook=now]").is_visible()
    assert serious(page) == []
    page.get_by_role("button", name="Deploy").click()
    page.wait_for_url("**/t/acme/endpoints/*")

    assert page.locator(".secret-text").inner_text().startswith("tnt_")
    assert page.locator("#state [data-phase=Provisioning]").first.is_visible()
    assert serious(page) == []
    row = Endpoint.objects.get(tenant=acme)
    world.drive(drive.is_ready(row))
    page.locator("#state [data-phase=Ready]").first.wait_for(timeout=5000)  # told by the stream: the poll is 10 s
    assert page.locator("#badge [data-phase=Ready]").is_visible()

    Endpoint.objects.filter(pk=row.pk).update(address=endpoint_server)
    page.get_by_role("link", name="Open playground").click()
    page.get_by_role("button", name="Send").click()
    page.locator("[data-done=true]").wait_for(timeout=15000)
    assert page.locator(".bubble.is-assistant .bubble-text").inner_text() == "".join(WORDS)
    assert page.get_by_text("Simulated: the answer comes from the sandbox.").is_visible()
    assert serious(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_new_fits_a_phone_and_has_no_serious_fault(visit, scheme):
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace", "vm"]}))
    factories.served_model()
    acme = factories.tenant(name="acme")

    page = visit("/t/acme/new/endpoint", factories.member(acme), size=PHONE, scheme=scheme)

    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert serious(page) == []
