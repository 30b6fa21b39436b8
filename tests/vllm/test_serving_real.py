"""A real vLLM behind a real gateway: the official client unchanged, and not one route more than the list has."""

from __future__ import annotations

import http.client
import re
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from provisioners.gateway.paths import match
from provisioners.sandbox import processes
from provisioners.serving.runtime import Place, UnitFacts
from provisioners.serving.vllm import VERSION, VLLM
from tests.vllm.conftest import HOP_KEY, NAME, Served

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(600)]
MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Where do you run?"}]


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.address, api_key=served.key, max_retries=0)


def direct(served: Served) -> str:
    """Where vLLM itself listens: what no caller reaches."""
    return f"http://127.0.0.1:{served.server['port']}"


# --- the official client ------------------------------------------------------------------------------


def test_a_chat_is_answered_by_the_real_thing(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=16)

    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.startswith(f"vllm-{VERSION}")
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 16


def test_a_chat_is_streamed_with_its_usage_when_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None
    assert 1 <= chunks[-1].usage.completion_tokens <= 16
    assert chunks[-1].choices == []


def test_a_completion_is_answered_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=NAME, prompt="This License", max_tokens=8, temperature=0)
    parts = list(client.completions.create(model=NAME, prompt="This License", max_tokens=8, temperature=0, stream=True))

    assert whole.choices[0].text == "".join(part.choices[0].text for part in parts if part.choices)


def test_models_are_the_endpoint_by_its_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


def test_a_wrong_key_is_an_authentication_error(served: Served) -> None:
    stranger = openai.OpenAI(base_url=served.address, api_key="tnt_test_wrong", max_retries=0)

    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model=NAME, messages=MESSAGES)


def test_a_key_without_the_scope_is_a_permission_error(served: Served) -> None:
    chat_only = openai.OpenAI(base_url=served.address, api_key=served.chat_only, max_retries=0)

    assert chat_only.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=1).choices
    with pytest.raises(openai.PermissionDeniedError):
        chat_only.completions.create(model=NAME, prompt="This License")


def test_what_the_model_refuses_is_a_bad_request_in_its_own_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="1024"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=5000)


def test_a_model_without_embeddings_says_so_as_an_error_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
        client.embeddings.create(model=NAME, input="This License")


# --- routes -------------------------------------------------------------------------------------------


def routes_of(served: Served) -> set[tuple[str, str]]:
    """Return every (method, path) that the running vLLM has, by its own description and by its own log."""
    described = httpx.get(f"{direct(served)}/openapi.json").raise_for_status().json()["paths"]
    found = {(method.upper(), path) for path, methods in described.items() for method in methods}
    for path, methods in re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", served.log):
        found |= {(method.strip(), path) for method in methods.split(",")}
    return found


def test_every_route_that_vllm_has_and_the_list_has_not_is_refused(served: Served) -> None:
    routes = routes_of(served)
    hidden = sorted((method, re.sub(r"\{\w+\}", "x", path)) for method, path in routes)
    hidden = [(method, path) for method, path in hidden if match(method, path) is None]
    gateway = urlsplit(served.address)

    answers = {}
    for method, path in hidden:
        connection = http.client.HTTPConnection(gateway.hostname or "", gateway.port, timeout=30)
        connection.request(method, path, body=b"{}", headers={"Authorization": f"Bearer {served.key}"})
        answers[method, path] = connection.getresponse().status
        connection.close()

    assert len(hidden) > 25
    assert {("POST", "/invocations"), ("POST", "/tokenize"), ("POST", "/v1/responses")} <= set(hidden)
    assert set(answers.values()) == {404}


def test_what_the_list_shares_with_vllm_is_known(served: Served) -> None:
    shared = {(method, path) for method, path in routes_of(served) if match(method, path) is not None}

    assert shared == {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),  # the gateway's own
    }


# --- the process --------------------------------------------------------------------------------------


def test_the_process_is_exactly_the_rendered_call(served: Served) -> None:
    argv = processes.argv_of(served.server["pid"])
    place = Place("127.0.0.1", served.server["port"])

    assert argv[2:] == VLLM.render(served.facts, UnitFacts(1, "1g.10gb", 16), place).argv[1:]


def test_no_key_stands_in_any_list_of_processes_nor_in_the_log(served: Served) -> None:
    lines = [" ".join(processes.argv_of(int(pid.name))) for pid in Path("/proc").glob("[0-9]*")]

    assert any("vllm" in line for line in lines)
    assert not any(secret in line for line in lines for secret in (HOP_KEY, served.key))
    assert HOP_KEY not in served.log


def test_vllm_alone_is_guarded_by_the_key_of_the_last_hop(served: Served) -> None:
    answers = [
        httpx.get(f"{direct(served)}/v1/models", headers=headers).status_code
        for headers in ({}, {"Authorization": f"Bearer {served.key}"}, {"Authorization": f"Bearer {HOP_KEY}"})
    ]

    assert answers == [401, 401, 200]


def test_it_says_what_it_made_room_for_and_that_its_gpu_is_simulated(served: Served) -> None:
    report = served.seen.units[0].engine

    assert report is not None
    assert report.program == f"vLLM {VERSION}"
    assert report.kv_cache_bytes == 2**30
    # two layers, two KV heads of 32, keys and values of two bytes: 512 bytes a token
    assert report.kv_cache_tokens == 2**30 // 512
    assert "simulated" in report.runs_on
