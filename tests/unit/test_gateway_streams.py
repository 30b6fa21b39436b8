"""Cutting streams into events, and finding usage without being fooled by what a model says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioners.gateway.streams import EventStream, Usage, usage_in, usage_of

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2}}


def event(**content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


TEXT = event(choices=[{"delta": {"content": 'say "usage": {}'}}])
END = event(choices=[], usage=USAGE)
DONE = b"data: [DONE]\n\n"


@given(st.lists(st.integers(1, 40), max_size=30), st.booleans())
def test_however_the_bytes_are_cut_the_same_events_come_out(cuts: list[int], drop: bool) -> None:
    whole = TEXT * 3 + END + DONE
    stream, out, rest = EventStream(drop_usage=drop), b"", whole
    for size in cuts:
        out += stream.feed(rest[:size])
        rest = rest[size:]
    out += stream.feed(rest) + stream.rest()

    assert out == (TEXT * 3 + DONE if drop else whole)
    assert stream.usage == Usage(7, 3)
    assert stream.finished
    assert stream.data_events == (3 if drop else 4)


def test_an_event_is_given_back_as_soon_as_it_is_whole_and_not_before() -> None:
    stream = EventStream(drop_usage=True)

    assert stream.feed(TEXT[:-1]) == b""
    assert stream.feed(TEXT[-1:] + b"data: {") == TEXT


def test_events_with_carriage_returns_are_events() -> None:
    stream = EventStream(drop_usage=True)
    dos = TEXT.replace(b"\n", b"\r\n")

    assert stream.feed(dos + END.replace(b"\n", b"\r\n")) == dos
    assert stream.usage == Usage(7, 3)


def test_usage_beside_words_is_noted_and_never_taken_out() -> None:
    stream = EventStream(drop_usage=True)
    last = event(choices=[{"delta": {"content": "x"}}], usage=USAGE)

    assert stream.feed(last) == last
    assert stream.usage == Usage(7, 3)


def test_a_stream_without_events_is_passed_on_and_not_kept_for_ever() -> None:
    stream = EventStream(drop_usage=True)
    lump = b"x" * (1 << 20)

    out = stream.feed(lump) + stream.feed(lump)

    assert out + stream.rest() == lump * 2
    assert len(out) == len(lump) * 2


def test_usage_is_found_at_the_end_of_an_answer_whatever_the_model_says() -> None:
    lie = json.dumps({"usage": {"prompt_tokens": 0, "completion_tokens": 0}})
    answer = {"choices": [{"message": {"content": lie + lie}}], "usage": USAGE, "prompt_logprobs": None}

    assert usage_in(json.dumps(answer).encode()) == Usage(7, 3)
    assert usage_in(json.dumps({**answer, "pad": "x" * 70_000, "usage": USAGE}).encode()) is None
    assert usage_in(json.dumps({"pad": "x" * 70_000, "usage": USAGE}).encode()) == Usage(7, 3)
    assert usage_in(json.dumps({"choices": answer["choices"]}).encode()) is None


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"usage": None},
        {"usage": []},
        {"usage": {}},
        {"usage": {"prompt_tokens": "7"}},
        {"usage": {"prompt_tokens": -1}},
        {"usage": {"prompt_tokens": True, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": 1, "completion_tokens": 1.5}},
    ],
)
def test_a_usage_object_that_makes_no_sense_is_none(content: object) -> None:
    assert usage_of(content) is None


def test_embeddings_have_no_completion_tokens() -> None:
    assert usage_of({"usage": {"prompt_tokens": 5, "total_tokens": 5}}) == Usage(5, 0)
