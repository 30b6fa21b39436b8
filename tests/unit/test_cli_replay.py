"""The replay: order of moves, bodies, repeated sends, and what counts as explained. Time is not real here."""

from __future__ import annotations

import json
import threading

import httpx
import pytest

from controlplane.cli import replay
from controlplane.cli.client import Client
from controlplane.cli.commands.feeding import names_of
from controlplane.cli.failures import UsageFault
from provisioners.sandbox.traces import TraceRequest


def request(name, arrives, leaves, *, tenant=0, profile="1g.10gb", gpus=0):
    return TraceRequest(name, tenant, profile, gpus, 4, 16, arrives, leaves)


class Server:
    """Keeps allocations; each is Ready at once and Released when deleted."""

    def __init__(self, *, phase="Ready", why=""):
        self.rows, self.lock, self.phase, self.why, self.keys = {}, threading.Lock(), phase, why, []

    def __call__(self, request):
        with self.lock:
            return self.answer(request)

    def answer(self, request):
        parts = request.url.path.removeprefix("/api/v1").strip("/").split("/")
        if request.method == "POST":
            self.keys.append(request.headers["Idempotency-Key"])
            body = json.loads(request.content)
            row = {
                "id": f"{parts[1]}-{body['name']}", "tenant": parts[1], "phase": self.phase, "version": 1, "body": body,
                "created_at": "2026-06-01T12:00:00Z", "ready_at": "2026-06-01T12:00:04Z", "deletion_requested_at": None,
                "conditions": [{"type": "Placed", "status": "False", "message": self.why}] if self.why else [],
            }  # fmt: skip
            self.rows[row["id"]] = row
            return httpx.Response(201, json=row)
        if len(parts) == 4:
            row = self.rows[parts[3]]
            if request.method == "DELETE":
                row |= {"phase": "Released", "deletion_requested_at": "2026-06-01T12:01:00Z"}
            return httpx.Response(200, json=row)
        found = [row for row in self.rows.values() if row["tenant"] == parts[1]]
        return httpx.Response(200, json={"items": found, "next": ""})


class Clock:
    """Moves only when somebody pauses."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds


def feed(server, requests, **options):
    clock = Clock()
    api = Client("http://127.0.0.1:1", "t", transport=httpx.MockTransport(server), pause=lambda _: None)
    feeder = replay.Feeder(
        api,
        ["a", "b"],
        ("H100-80GB", "A100-80GB"),
        clients=2,
        tell=lambda _: None,
        clock=clock,
        pause=clock.pause,
        **options,
    )
    return feeder.run(requests, settle_s=5)


def test_moves_come_in_order_of_time_and_a_creation_before_its_deletion():
    moves = list(replay.schedule([request("p", 0, 5), request("q", 2, 2), request("r", 1, 9)]))

    assert moves == [
        (0, "create", 0), (1, "create", 2), (2, "create", 1), (2, "delete", 1), (5, "delete", 0), (9, "delete", 2),
    ]  # fmt: skip


def test_a_pod_becomes_an_allocation_of_one_unit():
    window = replay.body_of(request("p", 0, 1), name="p", product="H100-80GB")
    whole = replay.body_of(request("p", 0, 1, profile="", gpus=4), name="p", product="A100-80GB")

    assert window["units"] == [
        {"gpu": {"product": "H100-80GB", "profile": "1g.10gb", "count": 1}, "vcpu": 4, "memory_gib": 16}
    ]
    assert whole["units"][0]["gpu"] == {"product": "A100-80GB", "profile": "", "count": 4}


@pytest.mark.parametrize(
    ("name", "label"),
    [("openb-pod-0001", "openb-pod-0001"), ("Pod_7", "pod-7"), ("9lives", "p-9lives"), ("x" * 60, "x" * 40)],
)
def test_names_become_dns_labels(name, label):
    assert replay.label_of(name) == label


def test_what_left_is_given_back_and_what_outlives_the_trace_stays():
    server = Server()

    report = feed(server, [request("p", 0, 5), request("q", 10, 50, tenant=1)])

    assert report.as_json()["ended"] == {"Released": 1, "Ready": 1}
    assert report.unexplained == []
    assert sorted(server.rows) == ["a-p", "b-q"]
    assert len(set(server.keys)) == 2
    assert report.as_json()["until_ready_s"] == {"n": 2, "p50": 4.0, "p90": 4.0, "p99": 4.0, "max": 4.0}


def test_waiting_is_explained_only_with_a_reason():
    explained = feed(Server(phase="Waiting", why="All windows are held."), [request("p", 0, 50)])
    silent = feed(Server(phase="Waiting"), [request("p", 0, 50)])

    assert explained.unexplained == []
    assert [fate.name for fate in silent.unexplained] == ["p"]


def test_a_refusal_is_explained_and_a_fault_of_the_server_is_not():
    refused = feed(posts_end_with(409, "quota-exceeded"), [request("p", 0, 50)])
    broken = feed(posts_end_with(500, "internal"), [request("p", 0, 50)])

    assert refused.as_json()["reasons"] == {"409 quota-exceeded": 1}
    assert refused.unexplained == []
    assert broken.as_json()["ended"] == {"Lost": 1}
    assert [fate.reason for fate in broken.unexplained] == ["500 internal"]


def posts_end_with(status, code):
    server = Server()

    def answer(request):
        if request.method == "POST":
            return httpx.Response(status, json={"title": "T", "code": code})
        return server(request)

    return answer


def test_tenants_are_named_by_pattern_and_number():
    assert names_of("replay-{}:3") == ("replay-0", "replay-1", "replay-2")
    for wrong in ("replay:3", "replay-{}", "replay-{}:x", "{}{}:2", "replay-{}:0"):
        with pytest.raises(UsageFault):
            names_of(wrong)
