"""The client: what is repeated and what is not, problems, pages, streams; and where tokens are kept."""

from __future__ import annotations

import json
import stat

import httpx
import pytest

from controlplane.cli.client import Client, parse_stream
from controlplane.cli.config import Config, Context, chosen
from controlplane.cli.failures import ApiProblem, ExitCode, Unreachable, UsageFault

URL = "http://127.0.0.1:8420"


def client(*answers, token="tnt_x"):
    """Return a client that gets these answers in turn, what it sent, and how long it paused."""
    sent, pauses, waiting = [], [], list(answers)

    def handler(request):
        sent.append(request)
        answer = waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client(URL, token, transport=httpx.MockTransport(handler), pause=pauses.append), sent, pauses


def problem(status, code="conflict", **extra):
    return httpx.Response(status, json={"title": "T", "detail": "D", "code": code, "status": status, **extra})


def test_a_post_whose_answer_is_lost_is_repeated_under_the_same_key():
    api, sent, pauses = client(
        httpx.ReadError("gone"), problem(503, "dependency-down"), httpx.Response(201, json={"id": 1})
    )

    made = api.post("/tenants/a/endpoints", {"name": "chat"})

    assert made.body == {"id": 1}
    assert len({request.headers["Idempotency-Key"] for request in sent}) == 1
    assert [json.loads(request.content) for request in sent] == [{"name": "chat"}] * 3
    assert len(pauses) == 2


def test_each_post_has_a_key_of_its_own():
    api, sent, _ = client(httpx.Response(201, json={}), httpx.Response(201, json={}))

    api.post("/x", {})
    api.post("/x", {})

    assert sent[0].headers["Idempotency-Key"] != sent[1].headers["Idempotency-Key"]


def test_retry_after_is_kept():
    answer = problem(503, "dependency-down")
    answer.headers["Retry-After"] = "7"
    api, _, pauses = client(answer, httpx.Response(200, json={}))

    api.get("/who")

    assert pauses == [7.0]


@pytest.mark.parametrize("method", ["put", "patch"])
def test_a_change_whose_answer_is_lost_is_not_repeated(method):
    api, sent, _ = client(httpx.ReadTimeout("slow"))

    with pytest.raises(Unreachable, match="whether the change was made is unknown"):
        getattr(api, method)("/x", {}, version=3)

    assert len(sent) == 1
    assert sent[0].headers["If-Match"] == '"3"'


def test_a_change_that_was_never_sent_is_repeated():
    api, sent, _ = client(httpx.ConnectError("refused"), httpx.Response(200, json={}))

    api.delete("/x", version=1)

    assert len(sent) == 2


def test_a_control_plane_that_stays_away_ends_with_the_command_that_starts_it():
    api, sent, _ = client(*[httpx.ConnectError("refused")] * 6)

    with pytest.raises(Unreachable) as caught:
        api.get("/who")

    assert caught.value.hint == "tenantry up"
    assert len(sent) == 6


def test_a_running_twin_is_waited_for_but_any_other_conflict_is_an_answer():
    api, sent, _ = client(problem(409, "idempotency-running"), problem(409, "name-taken"))

    with pytest.raises(ApiProblem) as caught:
        api.post("/x", {})

    assert (caught.value.code, caught.value.exit_code, len(sent)) == ("name-taken", ExitCode.CONFLICT, 2)


def test_an_answer_that_is_no_json_is_still_a_problem():
    api, _, _ = client(httpx.Response(500, text="<h1>oops</h1>"))

    with pytest.raises(ApiProblem) as caught:
        api.get("/x")

    assert caught.value.title == "HTTP 500"
    assert caught.value.exit_code == ExitCode.ERROR


def test_lists_are_read_page_by_page_and_stop_at_the_limit():
    pages = [{"items": [{"n": 1}, {"n": 2}], "next": "c1"}, {"items": [{"n": 3}], "next": ""}]
    api, sent, _ = client(*(httpx.Response(200, json=page) for page in pages))

    assert [item["n"] for item in api.items("/x", phase="Ready", label=["a=b", "c=d"], live=True)] == [1, 2, 3]
    assert sent[0].url.params.multi_items() == [
        ("phase", "Ready"), ("label", "a=b"), ("label", "c=d"), ("live", "true"), ("limit", "200"),
    ]  # fmt: skip
    assert sent[1].url.params["cursor"] == "c1"

    api, sent, _ = client(httpx.Response(200, json=pages[0]))
    assert [item["n"] for item in api.items("/x", most=2)] == [1, 2]
    assert sent[0].url.params["limit"] == "2"


def test_missing_is_none_only_where_it_was_looked_for():
    api, _, _ = client(problem(404, "not-found"), problem(403, "forbidden"))

    assert api.find("/x") is None
    with pytest.raises(ApiProblem):
        api.find("/x")


def test_a_stream_yields_events_and_skips_comments_and_words():
    lines = [
        "retry: 2000",
        "",
        ": still here",
        "",
        "id: 7",
        "event: a",
        'data: {"n": 1}',
        "",
        "event: end",
        "data: x",
        "",
    ]

    assert list(parse_stream(iter(lines))) == [("7", {"n": 1})]


def test_the_token_is_in_no_repr():
    assert "tnt_secret" not in repr(Client(URL, "tnt_secret"))
    assert "tnt_secret" not in repr(Context(URL, "tnt_secret"))


def test_the_file_is_private_and_reads_back(tmp_path):
    config = Config.load({"TENANTRY_CONFIG": str(tmp_path / "deep" / "config.toml")})

    config.with_context('odd "name"', Context(URL, "tnt_1", "mia@demo.test", "aurora")).save()

    assert stat.S_IMODE(config.path.stat().st_mode) == 0o600
    again = Config.load({"TENANTRY_CONFIG": str(config.path)})
    assert again.current == 'odd "name"'
    assert again.contexts['odd "name"'] == Context(URL, "tnt_1", "mia@demo.test", "aurora")
    assert again.without_token('odd "name"').contexts['odd "name"'].token == ""


def test_a_stored_token_goes_only_to_the_address_it_was_made_at(tmp_path):
    config = Config(tmp_path / "c.toml").with_context("default", Context(URL, "tnt_1"))

    assert chosen(config, {}).token == "tnt_1"
    assert chosen(config, {}, url="http://other:1/").token == ""
    assert chosen(config, {"TENANTRY_URL": "http://other:1", "TENANTRY_TOKEN": "tnt_2"}).token == "tnt_2"
    assert chosen(config, {"TENANTRY_TENANT": "t"}, tenant="u").tenant == "u"
    with pytest.raises(UsageFault, match="there is no context nope"):
        chosen(config, {}, context="nope")


def test_a_damaged_file_says_how_to_mend_it(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("contexts = 1 =")

    with pytest.raises(UsageFault, match="is damaged"):
        Config.load({"TENANTRY_CONFIG": str(file)})
