"""Cutting streams into events, and finding usage without being fooled by what a model says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioners.gateway.streams import (
    MOST_TOKENS,
    EventStream,
    Usage,
    UsageFinder,
    UsageWish,
    usage_in,
    usage_of,
)

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2}}


def event(**content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


TEXT = event(choices=[{"delta": {"content": 'say "usage": {}'}}])
END = event(choices=[], usage=USAGE)
DONE = b"data: [DONE]\n\n"


@given(st.lists(st.integers(1, 40), max_size=30), st.booleans())
def test_however_the_bytes_are_cut_the_same_events_come_out(cuts: list[int], drop: bool) -> None:
    whole = TEXT * 3 + END + DONE
    stream, out, rest = EventStream(wish=UsageWish.NOTHING if drop else UsageWish.LAST), b"", whole
    for size in cuts:
        out += stream.feed(rest[:size])
        rest = rest[size:]
    out += stream.feed(rest) + stream.rest()

    assert out == (TEXT * 3 + DONE if drop else whole)
    assert stream.usage == Usage(7, 3)
    assert stream.finished
    assert stream.data_events == (3 if drop else 4)


def test_an_event_is_given_back_as_soon_as_it_is_whole_and_not_before() -> None:
    stream = EventStream(wish=UsageWish.NOTHING)

    assert stream.feed(TEXT[:-1]) == b""
    assert stream.feed(TEXT[-1:] + b"data: {") == TEXT


def test_events_with_carriage_returns_are_events() -> None:
    stream = EventStream(wish=UsageWish.NOTHING)
    dos = TEXT.replace(b"\n", b"\r\n")

    assert stream.feed(dos + END.replace(b"\n", b"\r\n")) == dos
    assert stream.usage == Usage(7, 3)


def running(completion: int, *, index: int = 0, prompt: int = 7, **content: object) -> bytes:
    """An event of vLLM with `continuous_usage_stats`: usage is its own choice's, at the end, without spaces."""
    choice = {"index": index, "delta": {"content": 'say "usage": {"prompt_tokens":9}'}}
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    text = json.dumps({"id": "c", "choices": [choice], **content, "usage": usage}, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def without_usage(event: bytes) -> dict[str, object]:
    content: dict[str, object] = json.loads(event.removeprefix(b"data: "))
    content.pop("usage", None)
    return content


@pytest.mark.parametrize("wish", list(UsageWish))
def test_of_running_usage_the_caller_sees_what_he_asked_for_and_nothing_else(wish: UsageWish) -> None:
    stream = EventStream(wish=wish)
    events = [running(1), running(2), running(3)]

    seen = [stream.feed(event) for event in (*events, END, DONE)]

    assert [without_usage(event) for event in seen[:3]] == [without_usage(event) for event in events]
    assert [b'"usage":' in event for event in seen[:3]] == [wish is UsageWish.EVERY] * 3
    assert seen[3:] == [b"" if wish is UsageWish.NOTHING else END, DONE]
    assert (stream.usage, stream.counted_whole) == (Usage(7, 3), True)


def test_a_stream_that_ends_early_is_counted_to_its_last_event() -> None:
    stream = EventStream(wish=UsageWish.NOTHING)

    stream.feed(running(1) + running(5))

    assert (stream.usage, stream.counted_whole) == (Usage(7, 5), False)


def test_choices_are_counted_apart_and_added_up() -> None:
    stream = EventStream(wish=UsageWish.NOTHING, choices=2)
    for event in (running(3, index=0), running(4, index=1), running(5, index=0)):
        stream.feed(event)
    assert stream.usage == Usage(7, 9)

    stream.feed(running(6, index=2, prompt=11))  # a second prompt of a completion, with two answers as well

    assert stream.usage == Usage(18, 15)


@pytest.mark.parametrize(
    "event",
    [
        event(usage=USAGE, choices=[{"index": 0, "delta": {"content": "x"}}]),
        event(choices=[{"index": 0, "delta": {"content": "x"}}], usage=USAGE, metrics={"a": 1.5}),
        event(choices=[{"index": 0, "delta": {"content": "x"}}], inner={"a": 1, "usage": {"b": 2}}, usage=USAGE),
        event(choices=[{"index": 0, "delta": {"content": "\ud83d}"}}], usage=USAGE, end="}"),
    ],
)
def test_wherever_it_stands_usage_is_taken_out_of_the_event_and_nothing_else_is(event: bytes) -> None:
    stream = EventStream(wish=UsageWish.NOTHING)

    out = stream.feed(event)

    assert "usage" not in json.loads(out.removeprefix(b"data: "))
    assert without_usage(out) == without_usage(event)
    assert stream.usage == Usage(7, 3)


def test_usage_of_something_else_in_an_event_is_left_where_it_is() -> None:
    stream = EventStream(wish=UsageWish.NOTHING)
    inner = event(choices=[{"index": 0, "delta": {"content": "x"}}], inner={"a": 1, "usage": USAGE})

    assert stream.feed(inner) == inner
    assert stream.usage is None


def test_a_stream_without_events_is_passed_on_and_not_kept_for_ever() -> None:
    stream = EventStream(wish=UsageWish.NOTHING)
    lump = b"x" * (1 << 20)

    out = stream.feed(lump) + stream.feed(lump)

    assert out + stream.rest() == lump * 2
    assert len(out) == len(lump) * 2


def test_usage_is_found_at_the_end_of_an_answer_whatever_the_model_says() -> None:
    lie = json.dumps({"usage": {"prompt_tokens": 0, "completion_tokens": 0}})
    answer = {"choices": [{"message": {"content": lie + lie}}], "usage": USAGE, "prompt_logprobs": None}

    assert usage_in(json.dumps(answer).encode()) == Usage(7, 3)
    assert usage_in(json.dumps({**answer, "prompt_logprobs": ["x" * 70_000]}).encode()) == Usage(7, 3)
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


@pytest.mark.parametrize("size", [1, 7, 100, 5000, 10**6])
def test_usage_is_found_in_an_answer_that_comes_in_pieces_wherever_it_stands(size: int) -> None:
    lie = json.dumps({"usage": {"prompt_tokens": 0, "completion_tokens": 0}})
    parts = {"choices": [{"text": lie}], "usage": USAGE, "prompt_logprobs": [lie, "x" * 9000]}
    text = json.dumps(parts).encode()
    finder = UsageFinder()

    for at in range(0, len(text), size):
        finder.feed(text[at : at + size])

    assert finder.usage == Usage(7, 3)


def test_more_tokens_than_can_be_are_no_usage() -> None:
    assert usage_of({"usage": {"prompt_tokens": 1, "completion_tokens": MOST_TOKENS + 1}}) is None
    assert usage_of({"usage": {"prompt_tokens": 10**30, "completion_tokens": 1}}) is None
    assert usage_of({"usage": {"prompt_tokens": MOST_TOKENS, "completion_tokens": 0}}) == Usage(MOST_TOKENS, 0)
