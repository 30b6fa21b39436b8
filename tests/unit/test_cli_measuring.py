"""`tenantry logs` and `tenantry benchmark` on a scripted API."""

from __future__ import annotations

from typing import Any

from tests.unit.test_cli_commands import tenantry  # noqa: F401 - a fixture

BASE = "/tenants/aurora/endpoints/chat"
TIMES = {"mean": 10.0, "p50": 9.5, "p99": 21.0}
RESULT = {
    "answered": 99, "failed": 1, "errors": {"503": 1}, "duration_s": 10.0, "prompt_tokens": 50000,
    "completion_tokens": 12800, "requests_s": 9.9, "written_tokens_s": 1280.0, "tokens_s": 6280.0, "ttft_ms": TIMES,
    "between_ms": TIMES, "request_ms": TIMES, "stopped": "", "simulated": "all",
}  # fmt: skip


def told(state: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": "b1", "short_id": "bm-aaaa", "endpoint": "chat", "revision": 3, "state": state, "sent": 0, "failed": 0,
        "load": {"requests": 100, "input_tokens": 512, "output_tokens": 128, "concurrency": 8}, "reason": "",
        "result": None, "created_at": "2026-06-01T12:00:00Z", "started_at": None, "ended_at": None, **changes,
    }  # fmt: skip


def test_a_log_is_asked_for_waited_for_and_printed(tenantry):  # noqa: F811
    line = {"at": "2026-06-01T12:00:00Z", "source": "vllm", "text": "ready"}
    log = {"id": "l1", "endpoint": "chat", "state": "asked", "error": "", "lines": []}
    answers = {
        f"POST {BASE}/logs": (201, log),
        f"GET {BASE}/logs/l1": [log, {**log, "state": "read", "lines": [line]}],
    }

    status, out, _err, api = tenantry(answers, "logs", "endpoint/chat", "--tail", "7")

    assert (status, out) == (0, "2026-06-01T12:00:00Z  vllm  ready\n")
    assert api.bodies("POST") == [{"tail": 7}]


def test_a_log_that_cannot_be_read_says_why(tenantry):  # noqa: F811
    log = {"id": "l1", "endpoint": "chat", "state": "refused", "error": "the cluster is away", "lines": []}

    status, _out, err, _api = tenantry({f"POST {BASE}/logs": (201, log)}, "logs", "endpoint/chat")

    assert status == 1
    assert "the cluster is away" in err


def test_a_benchmark_is_followed_to_its_end(tenantry):  # noqa: F811
    answers = {
        f"POST {BASE}/benchmarks": (201, told("waiting")),
        f"GET {BASE}/benchmarks/b1": [told("running", sent=40), told("done", sent=100, failed=1, result=RESULT)],
    }

    status, out, err, api = tenantry(answers, "benchmark", "run", "chat", "--requests", "100", "--input", "512")

    assert status == 0
    assert api.bodies("POST")[0]["concurrency"] == 8
    assert "40 of 100 requests" in err
    assert "bm-aaaa  revision 3  done" in out
    assert "answered        99, failed 1 (1 × 503)" in out
    assert "first token     p50 9.50 ms, p99 21.00 ms" in out
    assert "no model ran" in err


def test_one_that_failed_ends_with_its_reason(tenantry):  # noqa: F811
    answers = {f"POST {BASE}/benchmarks": (201, told("failed", reason="A budget is used up."))}

    status, _out, err, _api = tenantry(answers, "benchmark", "run", "chat")

    assert status == 1
    assert "A budget is used up." in err


def test_the_newest_is_shown_and_one_is_cancelled(tenantry):  # noqa: F811
    answers = {
        f"GET {BASE}/benchmarks": {"items": [told("done", result=RESULT)], "next": None},
        f"POST {BASE}/benchmarks/bm-aaaa/cancel": told("running"),
    }

    shown = tenantry(answers, "benchmark", "show", "chat")
    cancelled = tenantry(answers, "benchmark", "cancel", "chat", "bm-aaaa")

    assert (shown[0], cancelled[0]) == (0, 0)
    assert "throughput      9.90 requests/s, 1280.00 tokens/s written" in shown[1]
    assert "bm-aaaa ends" in cancelled[2]


def test_an_address_is_shown_with_its_record_and_what_is_missing(tenantry):  # noqa: F811
    told = {
        "address": "https://chat.aurora.example.net/v1", "reachable_from": "tenant", "leads_to": "http://10.0.0.7/v1",
        "record": {"name": "chat.aurora.example.net", "kind": "A", "value": "10.0.0.7"}, "ok": False,
        "checked_at": "2026-06-01T12:00:00Z", "verified_at": None,
        "findings": [{"key": "name", "ok": False, "text": "DNS has no record of it."}],
    }  # fmt: skip

    status, out, _err, _api = tenantry({f"GET {BASE}/address": told}, "address", "chat")

    assert status == 3
    assert "chat.aurora.example.net. A 10.0.0.7" in out
    assert "missing DNS has no record of it." in out
