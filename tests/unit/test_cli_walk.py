"""The golden-path walk refuses to call a broken path good. The whole of it runs in `make demo`."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from rich.console import Console

from controlplane.cli import walk
from controlplane.cli.client import Client

READY = {"id": "1", "name": "hello", "address": "http://gw/v1", "allocation": "al-1", "boundary": "bd-1"}
ANSWER = {"choices": [{"message": {"content": "simulated"}}]}


@pytest.fixture
def timeline():
    return walk.Timeline(Console(quiet=True))


def walker(timeline, *, api=lambda _: httpx.Response(404, json={}), gateway=lambda _: httpx.Response(404)):
    client = Client("http://127.0.0.1:1", "t", transport=httpx.MockTransport(api), pause=lambda _: None)
    people = dict.fromkeys((walk.MEMBER, walk.OWNER, walk.APPROVER, walk.OPERATOR), client)
    return walk.Walk(people, timeline, httpx.MockTransport(gateway))


@pytest.fixture
def hurry(monkeypatch):
    """Let the walk's patience pass at once: each look at the clock is a second later."""
    now = [time.monotonic()]

    def tick():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(walk.time, "monotonic", tick)
    monkeypatch.setattr(walk, "pause", lambda _: None)


def test_without_log_ins_the_walk_fails_and_says_so(tmp_path, capsys):
    assert walk.main("http://127.0.0.1:1", tmp_path / "none.json") == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_demo_person_without_a_log_in_is_named():
    with pytest.raises(walk.WalkFailed, match=r"no log-in of mia@demo.test"):
        walk.log_in("http://127.0.0.1:1", {})


def test_a_gateway_that_never_answers_200_fails_the_walk(timeline, hurry):
    with pytest.raises(walk.WalkFailed, match="the gateway answers 401"):
        walker(timeline, gateway=lambda _: httpx.Response(401, text="no"))._ask(READY, "k")


def test_an_answer_is_asked_for_with_the_key_and_the_endpoint_as_model(timeline):
    seen = []

    def gateway(request):
        seen.append((request.headers["Authorization"], json.loads(request.content)["model"], str(request.url)))
        return httpx.Response(200, json=ANSWER)

    walker(timeline, gateway=gateway)._ask(READY, "k")

    assert seen == [("Bearer k", "hello", "http://gw/v1/chat/completions")]


@pytest.mark.parametrize(
    "lines",
    [
        ["data: {}", "data: {}", "data: {}"],  # no [DONE]
        ["data: {}", "data: [DONE]"],  # too few
    ],
)
def test_a_stream_that_breaks_off_fails_the_walk(timeline, lines):
    body = "".join(f"{line}\n\n" for line in lines)

    with pytest.raises(walk.WalkFailed, match="the stream ended"):
        walker(timeline, gateway=lambda _: httpx.Response(200, text=body))._stream(READY, "k")


def test_a_key_that_still_opens_after_the_delete_fails_the_walk(timeline, hurry):
    with pytest.raises(walk.WalkFailed, match="the key still opens the endpoint"):
        walker(timeline, gateway=lambda _: httpx.Response(200, json=ANSWER))._keys_stop(READY, "k")


def test_a_requester_who_can_approve_his_own_request_fails_the_walk(timeline):
    with pytest.raises(walk.WalkFailed, match="could approve her own"):
        walker(timeline, api=lambda _: httpx.Response(200, json={}))._refuse_own({"short_id": "rq-1", "version": 1})


def test_a_failed_endpoint_ends_the_walk(timeline):
    story = {"phase": "Failed", "why": "refused", "placement": [], "boundary": None, "timeline": [], "id": "1"}

    with pytest.raises(walk.WalkFailed, match="the endpoint failed: refused"):
        walker(timeline, api=lambda _: httpx.Response(200, json=story))._until(READY, "Ready")


def test_a_ready_endpoint_without_a_hold_fails_the_walk(timeline):
    story = {"phase": "Ready", "why": "", "placement": [], "boundary": None, "timeline": [], "id": "1"}

    with pytest.raises(walk.WalkFailed, match="holds nothing in the ledger"):
        walker(timeline, api=lambda _: httpx.Response(200, json=story))._check_held(READY)


@pytest.mark.parametrize(("free", "expected"), [(0b1111_0000, True), (0b1101_0000, False), (0, False)])
def test_a_window_is_free_when_each_of_its_slots_is(timeline, free, expected):
    devices = [{"host": "node-a", "index": 0, "free": free}, {"host": "node-a", "index": 1, "free": 255}]
    window = {"host": "node-a", "gpu": 0, "start": 4, "size": 4}

    api = walker(timeline, api=lambda _: httpx.Response(200, json={"items": devices, "next": ""}))

    assert api._is_free(window) is expected


def test_granted_limits_are_taken_back_exactly(timeline):
    sent = []
    now = [
        {"id": "1", "dimension": "vcpu", "amount": 16, "until": None, "version": 2},
        {"id": "2", "dimension": "endpoints", "amount": 1, "until": None, "version": 5},
        {"id": "3", "dimension": "boundaries", "amount": 10, "until": None, "version": 1},
    ]

    def api(request):
        if request.method == "GET":
            return httpx.Response(200, json={"items": now, "next": ""})
        sent.append(
            (request.method, request.url.path.rpartition("/")[2], request.headers.get("If-Match"), request.content)
        )
        return httpx.Response(204)

    walker(timeline, api=api).restore({"1": {"amount": 8}, "3": {"amount": 10}})

    assert sent[0][0:2] == ("PUT", "quotas")
    assert json.loads(sent[0][3]) == {"dimension": "vcpu", "amount": 8, "until": None}
    assert sent[1][0:3] == ("DELETE", "2", '"5"')
    assert len(sent) == 2


def test_a_proof_is_said_in_one_line():
    proof = {
        "outcome": "runs", "where": [{"host": "node-a"}], "delays": [], "cost": {"total": "12.50", "currency": "EUR"},
    }  # fmt: skip

    assert walk.proof_line(proof) == "runs; node-a; costs 12.50 EUR to its end; delays nobody"
    assert (
        walk.proof_line({"outcome": "waits", "why": "All are held.", "delays": [1]})
        == "waits: All are held.; delays 1 others"
    )
