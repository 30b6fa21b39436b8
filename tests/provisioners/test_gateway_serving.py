"""What a caller of the gateway sees: keys, states, streams, backends, hostile requests. Loopback, in one process."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from provisioners.gateway import bodies, keys
from provisioners.gateway.protocol import (
    Backend,
    EndpointKey,
    EndpointState,
    KeyScope,
    RequestOutcome,
    TokenSource,
    UsageRecord,
)
from tests.gateway_lab import Lab, event_of, scenario, until

# --- answers ----------------------------------------------------------------------------------------


@scenario
async def test_a_plain_answer_comes_back_as_the_model_gave_it_and_is_metered(lab: Lab) -> None:
    await lab.serve()

    status, content, headers = await lab.ask(messages=[{"role": "user", "content": "hi ü"}])

    assert status == 200
    assert content["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert headers["X-Tenantry-Simulated"] == "true"
    assert lab.model.seen[0][1] == {"model": "alpha", "messages": [{"role": "user", "content": "hi ü"}]}
    record = await _only_record(lab)
    assert (record.prompt_tokens, record.completion_tokens, record.token_source) == (7, 3, TokenSource.REPORTED)
    assert (record.key_id, record.endpoint_uid, record.unit_uid) == (lab.key.id, lab.endpoint_uid, lab.model.unit_uid)
    assert (record.route, record.status, record.outcome) == ("chat/completions", 200, RequestOutcome.COMPLETED)
    assert record.request_id == headers["X-Request-Id"]


@scenario
async def test_events_pass_one_by_one_as_the_model_sends_them(lab: Lab) -> None:
    await lab.serve()

    passed = []
    async with lab.stream() as answer:
        for number in range(5):
            lab.model.go.put_nowait(event_of(n=number))
            # The next event is sent only after this one has arrived: nothing holds events back.
            passed.append(await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 5))
        lab.model.go.put_nowait(b"")
        end = await answer.content.read()

    assert passed == [event_of(n=number) for number in range(5)]
    assert end == b"data: [DONE]\n\n"
    assert answer.content_type == "text/event-stream"


@scenario
async def test_usage_is_asked_for_always_and_passed_on_only_where_the_caller_asked(lab: Lab) -> None:
    await lab.serve()

    lab.model.go.put_nowait(b"")
    async with lab.stream() as answer:
        unasked = await answer.content.read()
    lab.model.go.put_nowait(b"")
    async with lab.stream(stream_options={"include_usage": True}) as answer:
        asked = await answer.content.read()

    usage = event_of(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2})
    assert unasked == b"data: [DONE]\n\n"
    assert asked == usage + b"data: [DONE]\n\n"
    every = {"include_usage": True, "continuous_usage_stats": True}
    assert [body["stream_options"] for _, body in lab.model.seen] == [every] * 2
    records = await until(lambda: _records(lab), lambda found: len(found) == 2)
    assert [(r.prompt_tokens, r.completion_tokens, r.streamed) for r in records] == [(7, 2, True)] * 2


@scenario
async def test_an_event_in_pieces_is_passed_on_whole(lab: Lab) -> None:
    await lab.serve()
    event = event_of(text="a" * 100)

    async with lab.stream() as answer:
        lab.model.go.put_nowait(event[:30])
        lab.model.go.put_nowait(event[30:])
        whole = await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 5)
        lab.model.go.put_nowait(b"")
        await answer.content.read()

    assert whole == event


@scenario
async def test_a_caller_who_leaves_stops_the_model_and_what_was_passed_is_metered(lab: Lab) -> None:
    gateway = await lab.serve()

    answer = await lab.stream()
    lab.model.go.put_nowait(event_of(n=1))
    await answer.content.readuntil(b"\n\n")
    answer.close()
    await asyncio.wait_for(lab.model.dropped.wait(), 5)

    record = await _only_record(lab)
    assert (record.outcome, record.completion_tokens) == (RequestOutcome.CLIENT_DROPPED, 1)
    assert (record.token_source, record.status) == (TokenSource.COUNTED, 200)
    assert gateway.health()["in_flight"] == 0


@scenario
async def test_a_caller_who_leaves_before_the_first_event_stops_the_model_too(lab: Lab) -> None:
    await lab.serve()

    answer = await lab.stream()
    answer.close()

    await asyncio.wait_for(lab.model.dropped.wait(), 5)
    assert (await _only_record(lab)).outcome is RequestOutcome.CLIENT_DROPPED


@scenario
async def test_a_stream_that_breaks_off_cannot_be_taken_for_whole(lab: Lab) -> None:
    await lab.serve()

    async with lab.stream() as answer:
        lab.model.go.put_nowait(event_of(n=1))
        first = await answer.content.readuntil(b"\n\n")
        lab.model.go.put_nowait(None)
        error = await answer.content.readuntil(b"\n\n")
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()

    assert first == event_of(n=1)
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "backend_broke_off"
    assert (await _only_record(lab)).outcome is RequestOutcome.BACKEND_BROKE


@scenario
async def test_the_models_own_refusals_pass_unchanged(lab: Lab) -> None:
    await lab.serve()
    lab.model.status = 422

    status, content, _ = await lab.ask()

    assert (status, content) == (422, {"error": {"message": "no"}})


# --- headers ----------------------------------------------------------------------------------------


@scenario
async def test_neither_key_nor_cookies_reach_the_model_and_no_connection_headers_or_cookies_come_back(lab: Lab) -> None:
    await lab.serve()

    headers = {
        "Authorization": f"Bearer {lab.key.plain}",
        "Cookie": "session=secret",
        "X-Api-Key": lab.key.plain,
        "Proxy-Authorization": "Basic abc",
        "X-Forwarded-For": "1.2.3.4",
        "X-Request-Id": "mine-1",
        "traceparent": "00-1-2-3",
    }
    body = {"model": "alpha", "messages": []}
    async with lab.http.post(f"{lab.url}/v1/chat/completions", json=body, headers=headers) as answer:
        await answer.read()

    there = lab.model.seen[0][0]
    assert there.keys() == {
        *("host", "content-type", "content-length", "accept", "accept-encoding", "x-request-id", "traceparent"),
    }
    assert there["x-request-id"] == answer.headers["X-Request-Id"] == "mine-1"
    assert {"set-cookie", "x-hop"}.isdisjoint({name.lower() for name in answer.headers})


# --- the last hop -----------------------------------------------------------------------------------


@scenario
async def test_a_model_is_shown_the_key_of_the_last_hop_and_never_the_callers(lab: Lab) -> None:
    lab.model.hop_key = "hop-of-the-first-revision"
    await lab.serve(lab.endpoint(hop_keys=(lab.model.hop_key,)))

    status, _, _ = await lab.ask()
    report = await until(lambda: _last_report(lab), lambda seen: bool(seen.endpoints))

    assert status == 200
    assert lab.model.seen[0][0]["authorization"] == f"Bearer {lab.model.hop_key}"
    assert report.endpoints[0].backends[0].reachable is True
    assert lab.model.refused == 0


@scenario
async def test_while_a_revision_takes_over_each_model_gets_the_key_that_it_takes(lab: Lab) -> None:
    old, new = await lab.model_beside("old"), await lab.model_beside("new")
    old.hop_key, new.hop_key = "hop-of-the-old-revision", "hop-of-the-new-revision"
    await lab.serve(lab.endpoint(old.backend(), new.backend(), hop_keys=(new.hop_key, old.hop_key)))

    answers = [(await lab.ask())[0] for _ in range(20)]
    tried_once = old.refused
    old.hop_key = new.hop_key  # started anew
    after = [(await lab.ask())[0] for _ in range(20)]

    assert answers == after == [200] * 20
    assert old.seen
    assert new.seen
    assert tried_once == 1  # what a model took is tried first from then on


@scenario
async def test_a_model_that_takes_no_key_of_ours_costs_no_request_and_is_no_401_to_the_caller(lab: Lab) -> None:
    other = await lab.model_beside("other")
    lab.model.hop_key = "hop-that-nobody-told-us"
    await lab.serve(lab.endpoint(lab.model.backend(), other.backend(), hop_keys=("hop-of-another-time",)))

    answers = [(await lab.ask())[0] for _ in range(10)]
    await other.stop()
    status, content, _ = await lab.ask()
    report = await until(
        lambda: _last_report(lab), lambda seen: bool(seen.endpoints and seen.endpoints[0].backends[0].message)
    )

    assert answers == [200] * 10
    assert (status, content["error"]["code"]) == (503, "no_backend_ready")
    assert report.endpoints[0].backends[0].message == "the replica refuses the gateway's key"
    assert "hop-" not in report.model_dump_json()


@scenario
async def test_a_request_id_that_could_forge_log_lines_is_replaced(lab: Lab) -> None:
    await lab.serve()

    async with lab.http.get(f"{lab.url}/v1/models", headers={"X-Request-Id": "a b"}) as answer:
        given = answer.headers["X-Request-Id"]

    assert len(given) == 32
    assert given.isalnum()


# --- keys -------------------------------------------------------------------------------------------


@scenario
async def test_no_wrong_expired_revoked_foreign_key_and_unknown_model_are_answered_byte_for_byte_alike(
    lab: Lab,
) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    expired, revoked, foreign = keys.make("test"), keys.make("test"), keys.make("test")
    own = (
        EndpointKey(id=lab.key.id, digest=lab.key.digest),
        EndpointKey(id=expired.id, digest=expired.digest, expires_at=past),
        EndpointKey(id=revoked.id, digest=revoked.digest, revoked_at=past),
    )
    other = lab.endpoint(name="beta", uid=uuid4(), keys=(EndpointKey(id=foreign.id, digest=foreign.digest),))
    await lab.serve(lab.endpoint(keys=own), other)

    answers = []
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        for key in (
            "",
            "nonsense",
            keys.make("test").plain,
            lab.key.plain[:-1],
            expired.plain,
            revoked.plain,
            foreign.plain,
        ):
            answers += [await _raw_answer(lab, path, key, {"model": "alpha"})]
        answers.append(await _raw_answer(lab, path, lab.key.plain, {"model": "nothing"}))
        answers.append(await _raw_answer(lab, path, lab.key.plain, {"model": "beta"}))
        answers.append(await _raw_answer(lab, path, "", b"not json"))
    good = await lab.ask()

    assert {status for status, _, _ in answers} == {401}
    assert len({(body, frozenset(headers.items())) for _, headers, body in answers}) == 1
    assert good[0] == 200
    assert len(lab.model.seen) == 1


@scenario
async def test_a_revocation_and_an_expiry_hold_within_seconds(lab: Lab) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    await lab.serve(lab.endpoint(keys=(EndpointKey(id=lab.key.id, digest=lab.key.digest, expires_at=soon),)))

    before = (await lab.ask())[0]
    expired = await until(lab.ask, lambda answer: answer[0] == 401, within_s=3)
    lab.control.publish(lab.endpoint())
    await until(lab.ask, lambda answer: answer[0] == 200, within_s=5)
    lab.control.publish(
        lab.endpoint(keys=(EndpointKey(id=lab.key.id, digest=lab.key.digest, revoked_at=datetime.now(UTC)),))
    )
    await until(lab.ask, lambda answer: answer[0] == 401, within_s=5)

    assert before == 200
    assert expired[1]["error"]["code"] == "invalid_api_key"


@scenario
async def test_a_key_does_what_its_scopes_say(lab: Lab) -> None:
    chat = EndpointKey(id=lab.key.id, digest=lab.key.digest, scopes=(KeyScope.CHAT,))
    await lab.serve(lab.endpoint(keys=(chat,)))

    allowed = await lab.ask()
    denied = await lab.ask("/v1/embeddings", input="x")
    listing = await lab.ask("/v1/models", method="GET")

    assert allowed[0] == 200
    assert (denied[0], denied[1]["error"]["code"]) == (403, "insufficient_scope")
    assert (listing[0], listing[1]["error"]["code"]) == (403, "insufficient_scope")


@scenario
async def test_models_lists_what_the_key_opens_and_nothing_else(lab: Lab) -> None:
    foreign = keys.make("test")
    other = lab.endpoint(name="beta", uid=uuid4(), keys=(EndpointKey(id=foreign.id, digest=foreign.digest),))
    await lab.serve(lab.endpoint(), other)

    listed = await lab.ask("/v1/models", method="GET")
    one = await lab.ask("/v1/models/alpha", method="GET")
    others = await lab.ask("/v1/models/beta", method="GET")
    missing = await lab.ask("/v1/models/nothing", method="GET")
    nobody = await lab.ask("/v1/models", method="GET", key="")

    assert [card["id"] for card in listed[1]["data"]] == ["alpha"]
    assert (one[0], one[1]["id"], one[1]["object"]) == (200, "alpha", "model")
    assert others[:2] == missing[:2] == nobody[:2]
    assert others[0] == 401


# --- states and backends ----------------------------------------------------------------------------


@scenario
async def test_a_suspended_endpoint_says_so_to_its_own_keys_only_and_a_running_stream_goes_on(lab: Lab) -> None:
    await lab.serve()

    async with lab.stream() as answer:
        lab.model.go.put_nowait(event_of(n=1))
        await answer.content.readuntil(b"\n\n")
        lab.control.publish(lab.endpoint(state=EndpointState.SUSPENDED, reason="unpaid since May"))
        suspended = await until(lab.ask, lambda seen: seen[0] != 200, within_s=5)
        stranger = await lab.ask(key="")
        lab.model.go.put_nowait(b"")
        rest = await answer.content.read()
    lab.control.publish(lab.endpoint())
    await until(lab.ask, lambda seen: seen[0] == 200, within_s=5)

    assert (suspended[0], suspended[1]["error"]["code"]) == (403, "suspended")
    assert suspended[1]["error"]["message"] == "This endpoint is suspended: unpaid since May"
    assert stranger[0] == 401
    assert rest == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("state", "status", "code"), [(EndpointState.DRAINING, 503, "draining"), (EndpointState.CLOSED, 403, "closed")]
)
def test_an_endpoint_that_ends_takes_no_requests(tmp_path: Any, state: EndpointState, status: int, code: str) -> None:
    @scenario
    async def steps(lab: Lab) -> None:
        await lab.serve(lab.endpoint(state=state))

        answer = await lab.ask()

        assert (answer[0], answer[1]["error"]["code"]) == (status, code)
        assert lab.model.seen == []

    steps(tmp_path)


@scenario
async def test_without_a_backend_the_answer_is_503_and_when_to_come_back(lab: Lab) -> None:
    nowhere = Backend(unit_uid=uuid4(), url=f"http://127.0.0.1:{_closed_port()}/v1", revision=1)
    drained = lab.endpoint(lab.model.backend(weight=0), name="beta", uid=uuid4())
    await lab.serve(lab.endpoint(nowhere), drained)

    unreachable = await lab.ask()
    none = await lab.ask(model="beta")

    assert (unreachable[0], unreachable[1]["error"]["code"]) == (503, "no_backend_ready")
    assert (none[0], none[1]["error"]["code"]) == (503, "no_backend_ready")
    assert (unreachable[2]["Retry-After"], none[2]["Retry-After"]) == ("2", "5")
    assert lab.model.seen == []
    records = await until(lambda: _records(lab), lambda found: len(found) == 2)
    assert {(r.status, r.outcome) for r in records} == {(503, RequestOutcome.NO_BACKEND)}


@scenario
async def test_a_backend_that_cannot_be_reached_costs_no_request_while_another_can(lab: Lab) -> None:
    dead = Backend(unit_uid=uuid4(), url=f"http://127.0.0.1:{_closed_port()}/v1", revision=1, weight=1_000)
    await lab.serve(lab.endpoint(dead, lab.model.backend(weight=1)))

    statuses = [(await lab.ask())[0] for _ in range(30)]

    assert statuses == [200] * 30
    assert len(lab.model.seen) == 30


@scenario
async def test_a_model_that_was_restarted_behind_kept_connections_costs_no_request(lab: Lab) -> None:
    await lab.serve()
    assert (await lab.ask())[0] == 200

    await lab.model.stop()
    await lab.model.start()
    statuses = [(await lab.ask())[0] for _ in range(3)]

    assert statuses == [200] * 3


@scenario
async def test_traffic_follows_the_weights_of_the_revisions(lab: Lab) -> None:
    canary = await lab.model_beside("canary")
    await lab.serve(lab.endpoint(lab.model.backend(weight=90), canary.backend(weight=10, revision=2)))

    for _ in range(300):
        await lab.ask()

    # 300 draws at p = 0.1: below 10 or above 55 has a chance of less than one in a million.
    assert 10 <= len(canary.seen) <= 55
    assert len(canary.seen) + len(lab.model.seen) == 300


@scenario
async def test_a_host_name_chooses_the_endpoint_and_its_model_must_be_served_there(lab: Lab) -> None:
    await lab.serve(
        lab.endpoint(hosts=("alpha.team.example",)),
        lab.endpoint(name="beta", uid=uuid4(), hosts=("beta.team.example",)),
    )

    async def ask(host: str, model: str) -> int:
        headers = {"Authorization": f"Bearer {lab.key.plain}", "Host": host}
        async with lab.http.post(f"{lab.url}/v1/chat/completions", json={"model": model}, headers=headers) as answer:
            return answer.status

    assert await ask("Alpha.Team.Example:443", "alpha") == 200
    assert await ask("alpha.team.example", "beta") == 401
    assert await ask("beta.team.example", "alpha") == 401
    assert await ask("127.0.0.1", "beta") == 200


# --- configuration ----------------------------------------------------------------------------------


@scenario
async def test_tampered_older_and_foreign_configurations_are_refused_and_reported(lab: Lab) -> None:
    await lab.serve()
    await lab.healthy(config_version=1)
    closed = lab.endpoint(state=EndpointState.CLOSED)

    lab.control.publish(closed, version=5, boundary_uid=uuid4())
    await until(lab.health, lambda seen: "another boundary" in seen["config_refused"])
    lab.control.publish(closed, version=6, gateway_uid=uuid4())
    await until(lab.health, lambda seen: "another gateway" in seen["config_refused"])
    lab.control.publish(closed, version=7)
    assert lab.control.envelope is not None
    lab.control.offer(lab.control.envelope.model_copy(update={"signature": "AA" * 43 + "=="}))
    await until(lab.health, lambda seen: "signature" in seen["config_refused"])
    still = await lab.ask()
    reported = await until(lambda: _last_report(lab), lambda seen: "signature" in seen.config_refused)
    lab.control.publish(lab.endpoint(), version=8)
    await lab.healthy(config_version=8, config_refused="")

    assert still[0] == 200
    assert reported.config_version == 1


@scenario
async def test_reports_say_what_is_served_and_which_backends_answer(lab: Lab) -> None:
    gone = Backend(unit_uid=uuid4(), url=f"http://127.0.0.1:{_closed_port()}/v1", revision=2, weight=0)
    await lab.serve(lab.endpoint(lab.model.backend(), gone))
    await lab.ask()

    report = await until(
        lambda: _last_report(lab), lambda seen: bool(seen.endpoints and seen.endpoints[0].backends[0].requests)
    )

    (endpoint,) = report.endpoints
    assert (report.gateway_uid, report.config_version) == (lab.gateway_uid, 1)
    assert (endpoint.uid, endpoint.state) == (lab.endpoint_uid, EndpointState.OPEN)
    assert [(b.unit_uid, b.reachable) for b in endpoint.backends] == [
        (lab.model.unit_uid, True),
        (gone.unit_uid, False),
    ]


@scenario
async def test_a_usage_batch_that_is_refused_for_good_does_not_hold_up_the_others(lab: Lab) -> None:
    await lab.serve()
    lab.control.refuse_usage_with = 422

    await lab.ask()
    aside = lab.state / "usage" / "refused"
    await until(lambda: _count(aside), lambda files: files == 1)
    lab.control.refuse_usage_with = 0
    await lab.ask()

    assert len(await until(lambda: _records(lab), bool)) == 1


# --- hostile requests -------------------------------------------------------------------------------


@scenario
async def test_paths_outside_the_list_do_not_exist_whatever_their_form_and_key(lab: Lab) -> None:
    await lab.serve()
    auth = f"Authorization: Bearer {lab.key.plain}\r\n".encode()
    targets = [
        *(
            b"/",
            b"/v1",
            b"/v1/",
            b"/v1/models/",
            b"/v1/chat/completions/",
            b"/V1/models",
            b"/v1/Models",
            b"//v1/models",
        ),
        *(b"/v1//models", b"/v1/./models", b"/v1/../v1/models", b"/v1/%6dodels", b"/v1%2fmodels", b"/v1/models%00"),
        *(b"/v1/models?x=1", b"/v1/models/..", b"/v1/models/a%2fb", b"/v1/models/a/b", b"/v1/models;x=1"),
        *(b"/v1\\models", b"http://127.0.0.1/v1/models", b"https://other/v1/models", b"*", b"/invocations", b"/pause"),
        *(b"/v1/models/\xc3\xa4", b"/metrics/", b"/healthz?", b"/v1/chat/completions/../../../invocations"),
        *(b"/load_lora_adapter", b"/v1/load_lora_adapter", b"/tokenize", b"/server_info", b"/docs", b"/openapi.json"),
    ]

    answers = []
    for target in targets:
        for method in (b"GET", b"POST"):
            answers += [await _wire(lab, method + b" " + target + b" HTTP/1.1\r\nHost: x\r\n" + auth + b"\r\n")]
    for method in (b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"CONNECT"):
        answers += [await _wire(lab, method + b" /v1/models HTTP/1.1\r\nHost: x\r\n" + auth + b"\r\n")]
    for line in (
        b"GET /v1/chat/completions",
        b"POST /v1/models",
        b"POST /healthz",
        b"get /v1/models",
        b"G\x00T /v1/models",
    ):
        answers += [await _wire(lab, line + b" HTTP/1.1\r\nHost: x\r\n" + auth + b"\r\n")]

    # 400 is the HTTP parser's own word for what is no HTTP at all.
    assert {answer.split(b" ", 2)[1] for answer in answers} <= {b"404", b"400"}
    assert sum(answer.startswith(b"HTTP/1.1 404") for answer in answers) > 0.8 * len(answers)
    assert lab.model.seen == []
    assert (await lab.ask())[0] == 200


@scenario
async def test_a_path_is_refused_before_the_key_is_looked_at(lab: Lab) -> None:
    await lab.serve()

    with_key = await lab.ask("/invocations")
    without = await lab.ask("/invocations", key="")

    assert (with_key[0], with_key[1]) == (without[0], without[1])
    assert (with_key[0], with_key[1]["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe{}", 400, "invalid_json"),
        (b'{"model":"alpha","temperature":NaN}', 400, "invalid_json"),
        (b'{"model":"alpha","temperature":1e999}', 400, "invalid_json"),
        (b'{"model":"alpha","user":"\\ud800"}', 400, "invalid_json"),
        (b'{"model":"alpha","x":' + b"9" * 5000 + b"}", 400, "invalid_json"),
        (b'{"model":"alpha","x":' + b"[" * 100 + b"]" * 100 + b"}", 400, "too_deep"),
        (b'{"model":"alpha","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "invalid_json"),
        (b'{"messages":[]}', 400, "model_missing"),
        (b'{"model":["alpha"]}', 400, "model_missing"),
        (b'{"model":"alpha","stream":"yes"}', 400, "invalid_type"),
        (b'{"model":"alpha","stream":1}', 400, "invalid_type"),
        (b'{"model":"alpha","stream":true,"stream_options":[]}', 400, "invalid_type"),
        (b'{"model":"alpha","x":"' + b"a" * bodies.MAX_BODY_BYTES + b'"}', 413, "body_too_large"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_a_bad_body_is_named_and_never_reaches_the_model(tmp_path: Any, body: bytes, status: int, code: str) -> None:
    @scenario
    async def steps(lab: Lab) -> None:
        await lab.serve()

        answer = await _raw_answer(lab, "/v1/chat/completions", lab.key.plain, body)

        assert (answer[0], json.loads(answer[2])["error"]["code"]) == (status, code)
        assert lab.model.seen == []

    steps(tmp_path)


@scenario
async def test_what_was_judged_is_what_is_sent_where_names_are_given_twice(lab: Lab) -> None:
    await lab.serve()

    answer = await _raw_answer(
        lab, "/v1/chat/completions", lab.key.plain, b'{"model":"beta","model":"alpha","temperature":1.50}'
    )

    assert answer[0] == 200
    assert lab.model.seen[0][1] == {"model": "alpha", "temperature": 1.5}


@scenario
async def test_packed_and_other_than_json_bodies_are_refused(lab: Lab) -> None:
    await lab.serve()
    url, auth = f"{lab.url}/v1/chat/completions", {"Authorization": f"Bearer {lab.key.plain}"}

    async with lab.http.post(url, data=b"{}", headers={**auth, "Content-Type": "text/plain"}) as answer:
        plain = answer.status
    packed_headers = {**auth, "Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with lab.http.post(url, data=b"{}", headers=packed_headers, compress=None) as answer:
        packed = answer.status

    assert (plain, packed) == (415, 415)


@scenario
async def test_a_stranger_cannot_make_the_gateway_read_much(lab: Lab) -> None:
    await lab.serve()

    answer = await _wire(
        lab,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 10000000\r\n\r\n" + b"x" * 100,
    )

    assert answer.startswith(b"HTTP/1.1 401")


@scenario
async def test_two_authorization_headers_are_none(lab: Lab) -> None:
    await lab.serve()
    auth = f"Authorization: Bearer {lab.key.plain}\r\n".encode()

    once = await _wire(lab, b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + auth + b"\r\n")
    twice = await _wire(lab, b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + auth + auth + b"\r\n")

    assert once.startswith(b"HTTP/1.1 200")
    assert not twice.startswith(b"HTTP/1.1 200")


@scenario
async def test_expect_continue_is_answered(lab: Lab) -> None:
    await lab.serve()
    url, auth = f"{lab.url}/v1/chat/completions", {"Authorization": f"Bearer {lab.key.plain}"}

    async with lab.http.post(url, json={"model": "alpha"}, headers=auth, expect100=True) as answer:
        assert answer.status == 200


@scenario
async def test_health_and_metrics_tell_no_names_and_no_secrets(lab: Lab) -> None:
    await lab.serve()
    await lab.ask()

    async with lab.http.get(f"{lab.url}/metrics") as answer:
        metrics = await answer.text()
    health = json.dumps(await lab.health())

    assert f'tenantry_gateway_requests_total{{endpoint="{lab.endpoint_uid}",status="200"}} 1.0' in metrics
    assert f'tenantry_gateway_tokens_total{{endpoint="{lab.endpoint_uid}",kind="completion"}} 3.0' in metrics
    for secret in ("alpha", lab.key.plain, lab.key.id, lab.key.digest, lab.control.token, lab.model.url):
        assert secret not in metrics + health


@scenario
async def test_a_report_says_how_busy_a_model_server_is_as_far_as_it_tells(lab: Lab) -> None:
    await lab.serve()
    silent = (await until(lambda: _last_report(lab), lambda seen: bool(seen.endpoints))).endpoints[0].backends[0]
    lab.model.metrics = (
        'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting{engine="0"} 5.0\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.25\n'
    )

    async def load() -> tuple[Any, ...]:
        backend = lab.control.reports[-1].endpoints[0].backends[0]
        return backend.running, backend.queued, backend.kv_cache

    told = await until(load, lambda seen: seen[0] is not None)

    assert (silent.reachable, silent.running, silent.queued, silent.kv_cache) == (True, None, None, None)
    assert told == (2, 5, 0.25)


# --- tools ------------------------------------------------------------------------------------------


async def _records(lab: Lab) -> list[UsageRecord]:
    return lab.control.records


async def _only_record(lab: Lab) -> UsageRecord:
    (record,) = await until(lambda: _records(lab), bool)
    return record


async def _last_report(lab: Lab) -> Any:
    return await until(lambda: _as_coroutine(lab.control.reports[-1] if lab.control.reports else None), bool)


async def _as_coroutine(value: Any) -> Any:
    return value


async def _count(folder: Any) -> int:
    return len(list(folder.glob("*.jsonl")))


async def _raw_answer(lab: Lab, path: str, key: str, body: bytes | dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Send exact bytes; return status, headers without date and request id, body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    async with lab.http.post(f"{lab.url}{path}", data=io.BytesIO(content), headers=headers) as answer:
        left_out = {"date", "x-request-id"}
        return (
            answer.status,
            {k: v for k, v in answer.headers.items() if k.lower() not in left_out},
            await answer.read(),
        )


async def _wire(lab: Lab, request: bytes) -> bytes:
    """Send bytes as they are; return what comes until the gateway closes or is silent after an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
    writer.write(request)
    answer = b""
    try:
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"\r\n")
    finally:
        writer.close()
    return answer


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
