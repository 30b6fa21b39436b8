"""Commands end to end on a scripted API: what they send, print and end with."""

from __future__ import annotations

import json

import httpx
import pytest

from controlplane.cli.app import run
from controlplane.cli.config import Config
from controlplane.cli.screen import Screen
from controlplane.cli.session import Session

READY = {"type": "Ready", "status": "True", "reason": "Done", "message": ""}
CHAT = {
    "id": "00000000-0000-4000-8000-000000000001", "short_id": "ep-aaaa", "name": "chat", "tenant": "aurora",
    "phase": "Ready", "model": "llama-3-1-8b", "units": [{"product": "H100-80GB", "profile": "1g.10gb"}],
    "address": "http://127.0.0.1:1/v1", "expires_at": None, "created_at": "2026-06-01T12:00:00Z", "version": 3,
    "conditions": [READY], "allocation": "al-aaaa", "deletion_requested_at": None, "labels": {}, "managed_by": "cli",
}  # fmt: skip
SHORT = {
    "title": "This goes beyond a quota", "detail": "vcpu of aurora: limit 0", "code": "quota-exceeded", "errors": [],
    "data": {
        "shortages": [
            {"tenant": "aurora", "dimension": "vcpu", "limit": 0, "used": 0, "asked": 8, "missing": 8,
             "since": "2026-06-01T12:00:00Z", "held_by": [{"tenant": "another tenant", "name": "", "amount": 4}]}
        ],
        "request": {"kind": "quota", "tenant": "aurora",
                    "payload": {"limits": {"vcpu": 8}, "ancestors": {}, "until": None}},
    },
}  # fmt: skip


class Api:
    """Answers by method and path; keeps what was sent."""

    def __init__(self, answers):
        self.answers, self.sent = answers, []

    def __call__(self, request):
        self.sent.append(request)
        key = f"{request.method} {request.url.path.removeprefix('/api/v1')}"
        answer = self.answers.get(key)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer is None:
            return httpx.Response(404, json={"title": "No", "detail": f"unexpected {key}", "code": "no-route"})
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return httpx.Response(status, json=body)

    def bodies(self, method):
        return [json.loads(request.content) for request in self.sent if request.method == method and request.content]


@pytest.fixture
def tenantry(tmp_path, capsys):
    """Run one line against scripted answers: `tenantry(answers, *words)` → (status, out, err, api)."""

    def go(answers, *words, environ=None):
        api = Api(answers)
        told = {
            "TENANTRY_CONFIG": str(tmp_path / "config.toml"),
            "TENANTRY_TOKEN": "tnt_x",
            "TENANTRY_TENANT": "aurora",
        }
        session = Session(
            Screen(colour=False),
            environ=told if environ is None else {"TENANTRY_CONFIG": told["TENANTRY_CONFIG"], **environ},
            transport=httpx.MockTransport(api),
            pause=lambda _: None,
        )
        status = run(list(words), session=session)
        out, err = capsys.readouterr()
        return status, out, err, api

    return go


def page(*items):
    return {"items": list(items), "next": ""}


def test_a_list_is_a_table_of_live_objects_of_the_tenant(tenantry):
    status, out, _, api = tenantry({"GET /tenants/aurora/endpoints": page(CHAT)}, "get", "endpoints")

    assert status == 0
    head, row = (line.split() for line in out.splitlines())
    assert head[:4] == ["NAME", "TENANT", "PHASE", "MODEL"]
    assert row[:4] == ["chat", "aurora", "Ready", "llama-3-1-8b"]
    assert api.sent[0].url.params["live"] == "true"
    assert api.sent[0].headers["Authorization"] == "Bearer tnt_x"


def test_json_is_what_the_api_said(tenantry):
    status, out, err, _ = tenantry({"GET /tenants/aurora/endpoints": page(CHAT)}, "get", "ep", "-o", "json")

    assert (status, json.loads(out), err) == (0, [CHAT], "")


def test_one_object_is_read_by_name(tenantry):
    status, out, _, _ = tenantry({"GET /tenants/aurora/endpoints/chat": CHAT}, "-o", "yaml", "get", "endpoint/chat")

    assert status == 0
    assert "short_id: ep-aaaa" in out


def test_names_from_the_api_are_no_markup(tenantry):
    odd = {**CHAT, "name": "[bold red]x[/]"}

    _, out, _, _ = tenantry({"GET /tenants/aurora/endpoints": page(odd)}, "get", "endpoints")

    assert "[bold red]x[/]" in out


def test_create_sends_the_body_and_prints_the_first_key_alone(tenantry):
    made = {**CHAT, "phase": "Provisioning", "key": "tnt_test_abc_secret"}

    status, out, err, api = tenantry(
        {"POST /tenants/aurora/endpoints": (201, made)},
        "create", "endpoint", "chat", "--model", "llama-3-1-8b", "--gpu", "H100-80GB/1g.10gb", "--replicas", "2",
        "--for", "7d", "--kind", "namespace", "--arg", "max_model_len=4096", "-l", "team=blue",
    )  # fmt: skip

    assert status == 0
    assert out == "tnt_test_abc_secret\n"
    assert "NEXT: tenantry wait endpoint/chat --for Ready" in err
    assert api.bodies("POST") == [
        {
            "name": "chat", "model": "llama-3-1-8b", "arguments": {"max_model_len": 4096},
            "unit": {"gpu": {"product": "H100-80GB", "profile": "1g.10gb", "count": 1}, "vcpu": 8, "memory_gib": 64},
            "replicas": 2, "where": {"kind": "namespace"}, "term": {"duration_s": 604800},
            "labels": {"team": "blue"}, "managed_by": "cli",
        }
    ]  # fmt: skip
    assert api.sent[0].headers["Idempotency-Key"]


def test_plan_changes_nothing_and_says_so(tenantry):
    plan = {
        "plan": True, "operation": "endpoints.create", "outcome": {"phase": "Provisioning"},
        "placement": [{"unit": 0, "host": "node-a", "product": "H100-80GB", "profile": "1g.10gb", "device": 0,
                       "start": 2, "size": 1}],
        "quota": [], "cost": {"hourly": "0.42", "to_the_end": "302.4", "note": ""},
    }  # fmt: skip

    status, out, _, api = tenantry(
        {"POST /tenants/aurora/endpoints": plan},
        "create",
        "endpoint",
        "chat",
        "--model",
        "m",
        "--gpu",
        "H100-80GB",
        "--plan",
    )

    assert status == 0
    assert api.sent[0].url.params["plan"] == "true"
    assert "nothing was changed" in out
    assert "[2, 3)" in out
    assert "cost: 0.42 an hour, 302.4 to the end" in out


def test_a_shortage_shows_the_limits_and_the_command_that_asks_for_them(tenantry):
    status, out, err, _ = tenantry(
        {"POST /tenants/aurora/endpoints": (409, SHORT)},
        "create",
        "endpoint",
        "c",
        "--model",
        "m",
        "--gpu",
        "H100-80GB",
    )

    assert (status, out) == (6, "")
    assert "quota-exceeded" in err
    assert "another tenant 4" in err
    assert "NEXT: tenantry request quota --tenant aurora vcpu=8" in err


def test_a_problem_is_json_when_json_is_wanted(tenantry):
    status, _, err, _ = tenantry(
        {"GET /who": (401, {"title": "Log in", "code": "unauthenticated"})}, "-o", "json", "who"
    )

    assert status == 5
    assert json.loads(err)["code"] == "unauthenticated"


def test_each_field_at_fault_is_named(tenantry):
    fault = {"title": "Not valid", "detail": "The body is not valid: name.", "code": "invalid",
             "errors": [{"field": "name", "reason": "is no DNS label"}]}  # fmt: skip

    status, _, err, _ = tenantry(
        {"POST /tenants/aurora/allocations": (400, fault)}, "create", "allocation", "X", "--gpu", "H100-80GB"
    )

    assert status == 2
    assert "name: is no DNS label" in err


@pytest.mark.parametrize(
    "words",
    [["nope"], ["get"], ["get", "pods"], ["get", "endpoints", "--bogus"], ["-o", "xml", "who"], ["wait", "chat"],
     ["create", "endpoint", "x", "--model", "m", "--gpu", "?/"], ["wait", "endpoint/x", "--timeout", "soon"]],
)  # fmt: skip
def test_wrong_words_end_with_two_and_send_nothing(tenantry, words):
    status, _, err, api = tenantry({}, *words)

    assert (status, api.sent) == (2, [])
    assert "error: " in err


def test_without_a_tenant_the_only_one_is_meant_and_several_are_asked_about(tenantry):
    alone = {"GET /tenants": page({"name": "aurora"}), "GET /tenants/aurora/endpoints/chat": CHAT}
    status, _, _, _ = tenantry(alone, "get", "endpoint/chat", environ={"TENANTRY_TOKEN": "t"})
    assert status == 0

    status, _, err, _ = tenantry(
        {"GET /tenants": page({"name": "a"}, {"name": "b"})}, "get", "endpoint/chat", environ={"TENANTRY_TOKEN": "t"}
    )
    assert status == 2
    assert "You see a, b" in err


def test_wait_follows_the_object_by_id_until_it_is_ready(tenantry):
    building = {**CHAT, "phase": "Provisioning", "conditions": [{**READY, "status": "False", "message": "loading"}]}
    answers = {
        "GET /tenants/aurora/endpoints/chat": building,
        f"GET /tenants/aurora/endpoints/{CHAT['id']}": [building, CHAT],
    }

    status, _, err, api = tenantry(answers, "wait", "endpoint/chat", "--timeout", "60s")

    assert status == 0
    assert "Provisioning  loading" in err
    assert [request.url.params.get("for") for request in api.sent] == [None, "Ready", "Ready"]


def test_wait_ends_with_seven_when_the_time_is_over_and_one_when_it_failed(tenantry):
    late = {**CHAT, "phase": "Waiting", "conditions": []}
    status, _, err, _ = tenantry({"GET /tenants/aurora/endpoints/chat": late}, "wait", "ep/chat", "--timeout", "0s")
    assert status == 7
    assert "NEXT: tenantry explain endpoint/chat" in err

    failed = {**CHAT, "phase": "Failed", "conditions": []}
    status, _, _, _ = tenantry({"GET /tenants/aurora/endpoints/chat": failed}, "wait", "ep/chat")
    assert status == 1


def test_delete_sends_the_version_that_was_read(tenantry):
    gone = {**CHAT, "phase": "Deleting"}
    path = f"/tenants/aurora/endpoints/{CHAT['id']}"

    status, _, err, api = tenantry(
        {"GET /tenants/aurora/endpoints/chat": CHAT, f"DELETE {path}": gone}, "delete", "endpoint/chat", "--yes"
    )

    assert status == 0
    assert api.sent[-1].headers["If-Match"] == '"3"'
    assert "endpoint/chat is Deleting" in err


def test_a_yes_is_bound_to_the_proof_that_was_shown(tenantry):
    proof = {"outcome": "runs"}
    answers = {
        "GET /requests/rq-1/proof": {"version": 2, "proof": proof},
        "POST /requests/rq-1/decide": {"short_id": "rq-1", "state": "approved", "stages": []},
    }

    status, _, err, api = tenantry(answers, "approve", "rq-1", "--reason", "fine")

    assert status == 0
    assert api.bodies("POST") == [{"verdict": "approve", "reason": "fine", "version": 2, "expect_proof": proof}]
    assert "request rq-1 is approved" in err


def test_a_worse_outcome_is_shown_and_accepted_only_when_told(tenantry):
    worse = (409, {"title": "T", "detail": "worse", "code": "outcome-worse", "data": {"proof": {"outcome": "waits"}}})
    done = {"short_id": "rq-1", "state": "approved", "stages": []}
    proof = {"version": 1, "proof": {"outcome": "runs"}}

    status, _, _, _ = tenantry(
        {"GET /requests/rq-1/proof": proof, "POST /requests/rq-1/decide": worse}, "approve", "rq-1"
    )
    assert status == 6

    status, _, _, api = tenantry(
        {"GET /requests/rq-1/proof": proof, "POST /requests/rq-1/decide": [worse, done]},
        "approve",
        "rq-1",
        "--accept-worse",
    )
    assert status == 0
    assert api.bodies("POST")[-1]["expect_proof"] == {"outcome": "waits"}


def test_login_keeps_the_token_in_a_private_file(tenantry, tmp_path, monkeypatch):
    monkeypatch.setenv("TENANTRY_PASSWORD", "secret-password")
    answers = {"POST /login": (201, {"token": "tnt_new", "id": "x"}), "GET /tenants": page({"name": "aurora"})}

    status, out, err, api = tenantry(answers, "login", "mia@demo.test", "--context", "work", environ={})

    assert status == 0
    kept = Config.load({"TENANTRY_CONFIG": str(tmp_path / "config.toml")}).contexts["work"]
    assert (kept.token, kept.who, kept.tenant) == ("tnt_new", "mia@demo.test", "aurora")
    assert "Authorization" not in api.sent[0].headers
    assert "tnt_new" not in out + err
    assert "secret-password" not in out + err


def test_apply_makes_changes_and_leaves_alone(tenantry, tmp_path):
    file = tmp_path / "all.yaml"
    file.write_text(
        "kind: Endpoint\nname: chat\nspec: {model: llama-3-1-8b}\n---\nkind: Endpoint\nname: new\nspec: {model: m}\n"
    )
    present = {**CHAT, "labels": {}, "managed_by": "git", "description": "", "spec": {"units": []}}
    made = {**CHAT, "name": "new", "key": "tnt_test_k"}

    answers = {
        "GET /tenants/aurora/endpoints": [page(present), page()],
        "PUT /tenants/aurora/endpoints/new": (201, made),
    }

    status, out, err, api = tenantry(answers, "apply", "-f", str(file))

    assert status == 0
    assert "= endpoint/chat of aurora" in err
    assert "+ endpoint/new of aurora" in err
    assert out == "tnt_test_k\n"
    assert [request.method for request in api.sent] == ["GET", "GET", "PUT"]
    assert api.bodies("PUT") == [{"model": "m", "labels": {}, "description": "", "managed_by": "git"}]


def test_plan_ends_with_three_when_there_is_something_to_do(tenantry, tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text("kind: Endpoint\nname: new\nspec: {model: m}\n")
    plan = {
        "plan": True,
        "operation": "endpoints.create",
        "outcome": {"phase": "Waiting"},
        "placement": [],
        "quota": [],
        "cost": None,
    }

    status, out, _, api = tenantry(
        {"GET /tenants/aurora/endpoints": page(), "POST /tenants/aurora/endpoints": plan},
        "apply",
        "-f",
        str(file),
        "--plan",
    )

    assert status == 3
    assert "would be Waiting" in out
    assert all("plan=true" in str(request.url) for request in api.sent if request.method == "POST")


def test_quiet_leaves_only_data(tenantry):
    _, out, err, _ = tenantry({"GET /tenants/aurora/endpoints": page()}, "-q", "get", "endpoints")

    assert (out, err) == ("", "")


def test_explain_puts_phase_reason_and_next_step_first(tenantry):
    body = {
        "kind": "endpoint", "id": "x", "short_id": "ep-aaaa", "name": "chat", "phase": "Waiting", "why": "All held.",
        "reason": "NoCapacity", "next_step": "Wait for room.", "conditions": [], "running_step": None, "timeline": [],
        "placement": [], "waiting": {"since": "2026-06-01T12:00:00Z", "position": 2, "fits_instead": [
            {"product": "H100-80GB", "profile": "1g.10gb", "slices": 1}]},
        "ends": {"expires_at": None, "service_class": "standard"}, "requests": [], "boundary": None,
    }  # fmt: skip

    status, out, _, _ = tenantry({"GET /tenants/aurora/endpoints/chat/explain": body}, "explain", "endpoint/chat")

    assert status == 0
    assert "All held. (NoCapacity)" in out
    assert "number 2 in the queue" in out
    assert "H100-80GB/1g.10gb" in out


def test_a_server_that_is_away_ends_with_one_and_says_how_to_start_it(tmp_path, capsys):
    def refuse(request):
        raise httpx.ConnectError("refused", request=request)

    session = Session(
        Screen(colour=False), environ={"TENANTRY_CONFIG": str(tmp_path / "c")},
        transport=httpx.MockTransport(refuse), pause=lambda _: None,
    )  # fmt: skip

    assert run(["who"], session=session) == 1
    assert "NEXT: tenantry up" in capsys.readouterr().err


def test_server_side_verbs_start_a_child_and_end_with_its_status(monkeypatch):
    from controlplane.cli.commands import serving

    started = []
    monkeypatch.setattr(serving, "run_child", lambda *words: started.append(words) or 3)
    monkeypatch.delenv("DATABASE_URL", raising=False)

    assert run(["ledger", "audit"]) == 3
    assert run(["doctor"]) == 3
    assert run(["reset", "--yes"]) == 3

    assert started[0][:3] == ("controlplane.embedded", "exec", "worker")
    assert started[0][-2:] == ("ledger_audit", "--skip-checks")
    assert started[1:] == [("controlplane.embedded", "doctor"), ("controlplane.embedded", "reset", "--yes")]


MADE = {
    "id": "00000000-0000-4000-8000-000000000007", "namespace": "space", "state": "made", "error": "",
    "expires_at": "2026-06-01T13:00:00Z", "token": "t0ken", "kubeconfig": "kind: Config\n",
    "static_kubeconfig": "kind: Config # t0ken\n",
}  # fmt: skip
ASKED = {**MADE, "state": "asked", "expires_at": None, "token": None, "kubeconfig": None, "static_kubeconfig": None}
CREDENTIALS = "/tenants/aurora/namespaces/space/credentials"


def test_kubectl_gets_a_token_as_soon_as_a_worker_has_answered(tenantry):
    answers = {f"POST {CREDENTIALS}": (201, ASKED), f"GET {CREDENTIALS}/{MADE['id']}": [ASKED, MADE]}

    status, out, _err, api = tenantry(answers, "kube-credential", "space", "--tenant", "aurora")

    assert status == 0
    assert json.loads(out) == {
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"token": "t0ken", "expirationTimestamp": "2026-06-01T13:00:00Z"},
    }  # fmt: skip
    assert api.bodies("POST") == [{"seconds": 3600}]


def test_a_kubeconfig_holds_a_token_only_where_it_is_asked_to(tenantry):
    answers = {f"POST {CREDENTIALS}": (201, MADE)}

    asking = tenantry(answers, "kubeconfig", "space", "-T", "aurora")
    holding = tenantry(answers, "kubeconfig", "space", "--static", "--seconds", "600", "-T", "aurora")

    assert (asking[0], asking[1]) == (0, "kind: Config\n")
    assert (holding[0], holding[1]) == (0, "kind: Config # t0ken\n")
    assert holding[3].bodies("POST") == [{"seconds": 600}]


def test_why_there_is_no_credential_is_said(tenantry):
    refused = {**ASKED, "state": "refused", "error": "This provider is simulated."}

    status, out, err, _api = tenantry({f"POST {CREDENTIALS}": (201, refused)}, "kubeconfig", "space", "-T", "aurora")

    assert (status, out) == (1, "")
    assert "This provider is simulated." in err
