"""What a request's body may make a model do at most: never less than the model server would make of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioners.gateway import bodies
from provisioners.gateway.bodies import MOST_ANSWERS, Asked, understand
from provisioners.gateway.limits import Bucket, Rates, Scope
from provisioners.gateway.paths import Route
from provisioners.gateway.protocol import RateLimits
from provisioners.gateway.refusals import Refusal

CONTEXT = 1000


def asked(route: Route = Route.CHAT, **fields: Any) -> Asked:
    return understand(json.dumps({"model": "alpha", **fields}).encode(), route)


def answers_of(found: Asked) -> int:
    """Return what the answers alone may be at most, with a prompt of nothing."""
    return found.at_most(CONTEXT, 0)


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, CONTEXT),
        ({"max_tokens": 10}, 10),
        ({"max_tokens": 10.0}, 10),
        ({"max_tokens": None}, CONTEXT),
        ({"max_tokens": -5}, CONTEXT),
        ({"max_tokens": 0}, CONTEXT),
        ({"max_tokens": 10**9}, CONTEXT),
        ({"max_tokens": 10, "max_completion_tokens": 700}, 700),
        ({"max_tokens": 700, "max_completion_tokens": 10}, 10),
        ({"max_tokens": 10, "max_completion_tokens": None}, 10),
        # vLLM looks at the newer one alone as soon as it is there
        ({"max_tokens": 10, "max_completion_tokens": 0}, CONTEXT),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": 10, "n": 3.0}, 30),
        ({"max_tokens": 10, "n": -3}, 10),
        ({"max_tokens": 10, "n": 10**40}, 10 * MOST_ANSWERS),
    ],
)
def test_what_a_chat_may_answer_at_most(fields: dict[str, Any], most: int) -> None:
    assert answers_of(asked(**fields)) == most


@pytest.mark.parametrize("name", ["n", "best_of", "max_tokens"])
@pytest.mark.parametrize("value", ["100", True, 1.5, [1], {"a": 1}])
def test_a_number_that_only_the_model_server_would_take_for_one_is_refused(name: str, value: object) -> None:
    with pytest.raises(Refusal) as refused:
        asked(Route.COMPLETIONS, prompt="x", **{name: value})

    assert (refused.value.status, refused.value.code) == (400, "invalid_type")
    assert f"`{name}`" in refused.value.message


def test_a_text_for_the_newer_most_does_not_hide_behind_the_older_one() -> None:
    with pytest.raises(Refusal):
        asked(max_tokens=1, max_completion_tokens="900")


@pytest.mark.parametrize(
    ("route", "fields", "prompts"),
    [
        (Route.COMPLETIONS, {"prompt": "x"}, 1),
        (Route.COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (Route.COMPLETIONS, {"prompt": ["a", "b", "c"]}, 3),
        (Route.COMPLETIONS, {"prompt": [[1], [2]]}, 2),
        (Route.COMPLETIONS, {"prompt": ["a", "b"], "input": "x"}, 2),
        (Route.EMBEDDINGS, {"input": ["a", "b"], "prompt": "x"}, 2),
        (Route.CHAT, {"messages": [], "prompt": ["a", "b"]}, 1),
    ],
)
def test_prompts_are_counted_by_what_the_route_reads(route: Route, fields: dict[str, Any], prompts: int) -> None:
    assert asked(route, **fields).prompts == prompts


@pytest.mark.parametrize("part", ["image_url", "audio_embeds", "prompt_embeds", "video_url", "input_image"])
def test_what_makes_tokens_that_are_not_in_the_body_may_be_the_whole_context(part: str) -> None:
    found = asked(messages=[{"role": "user", "content": [{"type": part, part: {"url": "x"}}]}], max_tokens=1)

    assert found.at_most(CONTEXT) == CONTEXT


def test_the_words_of_a_caller_are_no_pictures() -> None:
    found = asked(messages=[{"role": "user", "content": 'say "image_url"'}], max_tokens=1)

    assert found.at_most(10**6) < 1000


def test_a_rate_is_charged_with_no_more_than_the_context_whatever_is_asked() -> None:
    found = asked(max_tokens=10**300, n=10**300)
    scope = Scope("tenant", "this tenant", RateLimits(tokens_per_minute=100))
    rates = Rates(clock=lambda: 0.0)

    admission = rates.admit([scope], found.likely_tokens(CONTEXT))
    admission.settle(20)

    bucket: Bucket = admission.buckets["tokens"][0]  # type: ignore[index]
    assert bucket.remaining == 80
    assert found.likely_tokens(None) <= MOST_ANSWERS * bodies.LONGEST_TOKENS + len(found.content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
TOKENS = [
    "0",
    "1",
    "-",
    ".",
    "e",
    "E",
    "+",
    '"',
    "\\",
    "u",
    "d83d",
    "NaN",
    "Infinity",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "true",
    " ",
]


@given(content=st.dictionaries(st.text(), JSON, max_size=5), is_ascii=st.booleans())
def test_what_is_sent_on_says_what_was_sent(content: dict[str, Any], is_ascii: bool) -> None:
    judged = {"model": "alpha", "stream": None, "n": None, "best_of": None, "prompt": "a", "max_tokens": 1}
    body = json.dumps({**content, **judged}, ensure_ascii=is_ascii)

    assert json.loads(understand(body.encode(), Route.COMPLETIONS).content) == json.loads(body)


@given(middle=st.binary(max_size=8) | st.lists(st.sampled_from(TOKENS), max_size=8).map(lambda t: "".join(t).encode()))
def test_the_faster_reader_takes_nothing_that_the_strict_one_refuses(middle: bytes) -> None:
    body = b'{"model":"alpha","x":' + middle + b"}"
    try:
        found = understand(body, Route.EMBEDDINGS)
    except Refusal:
        return

    strict = bodies._DECODER.decode(body.decode("utf-8"))
    assert json.loads(found.content) == strict
