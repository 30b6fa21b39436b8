"""The playground: only to checked addresses, streamed, with a key of five minutes; and the hub of live pages."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import timedelta
from ipaddress import ip_network

import psycopg
import pytest
from aiohttp import web
from django.utils import timezone

from frontend.kernel import live, reach
from frontend.views import playground
from tenants.errors import Conflict
from tenants.models import Endpoint, EndpointKey
from tests import environment
from tests.portal.world import build

pytestmark = pytest.mark.usefixtures("db")
LOOPBACK = (ip_network("127.0.0.0/8"),)
CHANGE = "UPDATE tenants_endpoint SET generation = generation + 1 WHERE id = %s"
RETRY = b"retry: 2000\n\n"
CHANGED = b"event: changed\ndata: 1\n\n"


@pytest.fixture
def world(db):
    made = build()
    Endpoint.objects.filter(name="chat").update(phase="Ready", address="http://127.0.0.1:9/v1")
    return made


def asked(browser, body, **headers):
    return browser.post(
        "/t/acme/endpoints/chat/playground/chat", json.dumps(body), content_type="application/json", **headers
    )


async def collected(question):
    return b"".join([chunk async for chunk in playground._answer(question)])


async def with_server(handler, ask):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        return await collected(ask(f"http://127.0.0.1:{port}/v1"))
    finally:
        await runner.cleanup()


def test_an_answer_streams_through_and_a_key_on_its_way_is_waited_for(monkeypatch):
    monkeypatch.setattr(playground, "AGAIN_S", 0.01)
    seen = []

    async def handler(request):
        seen.append((request.headers["Authorization"], (await request.json())["stream"]))
        if len(seen) == 1:
            return web.json_response({"error": "unknown key"}, status=401)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": []}\n\ndata: [DONE]\n\n')
        return response

    def ask(address):
        return playground.Question(address, LOOPBACK, "tnt_test_x_y", {"stream": True})

    body = asyncio.run(with_server(handler, ask))

    assert body.endswith(b'data: {"choices": []}\n\ndata: [DONE]\n\n')
    assert seen == [("Bearer tnt_test_x_y", True)] * 2


def test_a_redirect_is_not_followed():
    async def handler(request):
        return web.Response(status=302, headers={"Location": "http://169.254.169.254/"})

    body = asyncio.run(with_server(handler, lambda at: playground.Question(at, LOOPBACK, "key", {})))

    assert b"event: trouble" in body
    assert b"302" in body


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/v1", "http://10.0.0.1/v1", "file:///etc/passwd", "http://user:pw@127.0.0.1/v1",
        "http://[::ffff:10.0.0.1]/v1", "",
    ],
)  # fmt: skip
def test_an_address_outside_the_ranges_is_refused(address):
    with pytest.raises(Conflict, match="outside the ranges"):
        asyncio.run(reach.checked(address, LOOPBACK))


def test_a_provider_that_declares_nothing_reaches_nothing_unless_it_is_simulated(world):
    world.provider.capabilities = {}
    assert reach.ranges_of(world.provider) == ()

    world.provider.capabilities = {"simulated": True}
    assert [str(each) for each in reach.ranges_of(world.provider)] == ["127.0.0.0/8", "::1/128"]


def test_a_question_makes_a_key_of_five_minutes_once_and_stores_nothing_else(world, browse):
    browser = browse(world.acme.member)
    body = {"messages": [{"role": "user", "content": "hello"}]}

    first, second = asked(browser, body), asked(browser, body)

    keys = list(EndpointKey.objects.filter(name="playground"))
    assert (first.status_code, second.status_code) == (200, 200)
    assert first["Content-Type"] == "text/event-stream"
    assert len(keys) == 1
    assert timedelta(minutes=4) < keys[0].expires_at - timezone.now() <= timedelta(minutes=5)


@pytest.mark.parametrize(
    "body",
    [{}, [], {"messages": []}, {"messages": [{"role": "root", "content": "x"}]}, {"messages": [{"role": "user"}]}],
)
def test_senseless_questions_are_refused(world, browse, body):
    assert asked(browse(world.acme.member), body).status_code == 400
    assert not EndpointKey.objects.filter(name="playground").exists()


def test_viewers_and_strangers_do_not_reach_it(world, browse):
    body = {"messages": [{"role": "user", "content": "hello"}]}

    assert asked(browse(world.acme.viewer), body).status_code == 403
    assert asked(browse(world.foreign.owner), body).status_code == 404
    assert not EndpointKey.objects.filter(name="playground").exists()


def test_what_is_not_ready_does_not_answer(world, browse):
    Endpoint.objects.filter(name="chat").update(phase="Provisioning")

    answer = asked(browse(world.acme.member), {"messages": [{"role": "user", "content": "hello"}]})

    assert answer.status_code == 409


def test_a_stream_hears_of_its_object_and_of_no_other_by_one_connection(world):
    mine, other = world.acme.endpoint, world.foreign.endpoint
    count = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = 'tenantry-live' AND datname = current_database()"
    )

    async def listen():
        streams = [live.stream((live.object_topic(mine.pk),), time.time()) for _ in range(20)]
        silent = live.stream((live.object_topic(other.pk),), time.time())
        for each in (*streams, silent):
            assert await anext(each) == RETRY
        async with asyncio.timeout(20):
            begun = [await anext(each) for each in (*streams, silent)]
        heard = [asyncio.ensure_future(anext(each)) for each in streams]
        nothing = asyncio.ensure_future(anext(silent))
        async with await psycopg.AsyncConnection.connect(environment.dsn("postgres"), autocommit=True) as connection:
            await connection.execute(CHANGE, [mine.pk])
            await asyncio.wait(heard, timeout=20)
            row = await (await connection.execute(count)).fetchone()
        told = [task.result() for task in heard]
        quiet = not nothing.done()
        nothing.cancel()
        await asyncio.gather(nothing, return_exceptions=True)
        for each in (*streams, silent):
            await each.aclose()
        return begun, told, quiet, row[0]

    begun, told, quiet, connections = asyncio.run(listen())

    assert begun == [CHANGED] * 21  # what changed before the connection was open was told to nobody
    assert told == [CHANGED] * 20
    assert quiet
    assert connections == 1


def test_a_page_hears_of_what_changed_between_its_reading_and_its_stream(world):
    mine, other = live.object_topic(world.acme.endpoint.pk), live.object_topic(world.foreign.endpoint.pk)

    async def second(of, since):
        """Return the second thing that a stream says, None if that is nothing at once."""
        found = live.stream((of,), since)
        assert await anext(found) == RETRY
        task = asyncio.ensure_future(anext(found))
        await asyncio.wait([task], timeout=0.2)
        word = task.result() if task.done() else None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await found.aclose()
        return word

    async def ask():
        somebody = live.stream((mine,), time.time())
        async with asyncio.timeout(20):
            said = [await anext(somebody), await anext(somebody)]
        read_at = time.time()
        async with await psycopg.AsyncConnection.connect(environment.dsn("postgres"), autocommit=True) as connection:
            await connection.execute(CHANGE, [world.acme.endpoint.pk])
        async with asyncio.timeout(20):
            said.append(await anext(somebody))
        after = time.time()
        words = {
            "read before": await second(mine, read_at),
            "read after": await second(mine, after),
            "another object": await second(other, read_at),
            "read long ago": await second(other, after - live.REMEMBERED_S - 60),
            "read at no known time": await second(other, 0.0),
        }
        await somebody.aclose()
        return said, words

    said, words = asyncio.run(ask())

    assert said == [RETRY, CHANGED, CHANGED]
    assert words == {
        "read before": CHANGED,
        "read after": None,
        "another object": None,
        "read long ago": CHANGED,
        "read at no known time": CHANGED,
    }


def test_a_page_says_when_it_was_read(world, browse):
    page = browse(world.acme.viewer).get("/t/acme/endpoints/chat").content.decode()

    since = float(re.search(r'sse-connect="[^"]*/live/endpoint/[^"]*\?since=([0-9.]+)"', page)[1])

    assert abs(since - time.time()) < 60


def test_a_stream_is_authorised_like_a_page(world, browse):
    address = f"/t/acme/live/endpoint/{world.acme.endpoint.pk}"
    foreign = f"/t/acme/live/endpoint/{world.foreign.endpoint.pk}"

    assert browse(world.acme.viewer).get(address)["Content-Type"] == "text/event-stream"
    assert browse(world.acme.viewer).get(foreign).status_code == 404
    assert browse(world.foreign.owner).get(address).status_code == 404
    assert browse(None).get(address).status_code == 302
