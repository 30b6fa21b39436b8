"""Rates of keys and tenants: what is let in, what the headers say, and that all limits hold or none is touched."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioners.gateway.limits import Rates, Scope, duration
from provisioners.gateway.protocol import RateLimits
from provisioners.gateway.refusals import Refusal


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rates(clock: Clock) -> Rates:
    return Rates(clock=clock)


def key(requests: int | None = None, tokens: int | None = None) -> Scope:
    return Scope("key:k1", "this key", RateLimits(requests_per_minute=requests, tokens_per_minute=tokens))


def tenant(requests: int | None = None, tokens: int | None = None) -> Scope:
    return Scope("tenant", "this tenant", RateLimits(requests_per_minute=requests, tokens_per_minute=tokens))


def test_a_minutes_worth_passes_at_once_and_then_one_as_time_goes_by(rates: Rates, clock: Clock) -> None:
    for _ in range(6):
        rates.admit([key(requests=6)], 0)

    with pytest.raises(Refusal) as refused:
        rates.admit([key(requests=6)], 0)
    clock.now += 9.9
    with pytest.raises(Refusal):
        rates.admit([key(requests=6)], 0)
    clock.now += 0.2
    rates.admit([key(requests=6)], 0)

    headers = refused.value.headers()
    assert (refused.value.status, headers["Retry-After"], headers["retry-after-ms"]) == (429, "10", "10000")
    assert headers["x-ratelimit-limit-requests"] == "6"
    assert (headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-reset-requests"]) == ("0", "1m0s")
    error = json.loads(refused.value.body())["error"]
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    assert "this key: 6 requests per minute" in error["message"]


def test_without_limits_nothing_is_counted_and_no_header_is_sent(rates: Rates) -> None:
    for _ in range(1000):
        assert rates.admit([key(), tenant()], 10**9).headers() == {}


def test_the_headers_are_those_of_the_tightest_limit(rates: Rates) -> None:
    admitted = rates.admit([tenant(requests=100, tokens=1000), key(requests=10)], 400)

    assert admitted.headers() == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "600",
        "x-ratelimit-reset-tokens": "24s",
    }


def test_what_one_limit_refuses_takes_nothing_from_another(rates: Rates) -> None:
    rates.admit([key(requests=1)], 0)
    for _ in range(20):
        with pytest.raises(Refusal):
            rates.admit([tenant(requests=5), key(requests=1)], 0)

    assert rates.admit([tenant(requests=5)], 0).headers()["x-ratelimit-remaining-requests"] == "4"


def test_tokens_are_settled_by_what_was_used(rates: Rates) -> None:
    first = rates.admit([key(tokens=1000)], 800)
    with pytest.raises(Refusal):
        rates.admit([key(tokens=1000)], 800)

    first.settle(100)
    second = rates.admit([key(tokens=1000)], 800)
    second.settle(900)

    assert second.headers()["x-ratelimit-remaining-tokens"] == "0"
    third = rates.admit([key(tokens=1000)], 0)
    third.settle(500)
    with pytest.raises(Refusal) as refused:
        rates.admit([key(tokens=1000)], 1)
    assert refused.value.retry_after_s == pytest.approx(501 * 60 / 1000)


def test_a_request_larger_than_a_minute_passes_when_the_bucket_is_full_and_is_paid_off(
    rates: Rates, clock: Clock
) -> None:
    rates.admit([key(tokens=100)], 250).settle(250)

    clock.now += 60 + 89
    with pytest.raises(Refusal):
        rates.admit([key(tokens=100)], 100)
    clock.now += 1.1
    rates.admit([key(tokens=100)], 100)


def test_another_limit_holds_at_once_and_keeps_what_was_used(rates: Rates) -> None:
    for _ in range(5):
        rates.admit([key(requests=10)], 0)

    assert rates.admit([key(requests=20)], 0).headers()["x-ratelimit-remaining-requests"] == "14"
    with pytest.raises(Refusal):
        rates.admit([key(requests=5)], 0)


def test_keys_that_are_gone_are_forgotten(rates: Rates) -> None:
    rates.admit([key(requests=1)], 0)

    rates.keep_only({"tenant"})

    rates.admit([key(requests=1)], 0)


@given(st.integers(1, 120), st.lists(st.floats(0, 20), min_size=1, max_size=200))
def test_in_no_minute_more_pass_than_two_minutes_worth(limit: int, waits: list[float]) -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    passed: list[float] = []
    told: list[float] = []
    for wait in waits:
        clock.now += wait
        try:
            rates.admit([key(requests=limit)], 0)
        except Refusal as refusal:
            told.append(refusal.retry_after_s or 0.0)
        else:
            passed.append(clock.now)

    assert all(0 < wait <= 60 for wait in told)
    for start in passed:
        assert sum(start <= moment < start + 60 for moment in passed) <= 2 * limit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (1.5, "1.5s"), (59.9991, "1m0s"), (60, "1m0s"), (366.25, "6m6.25s")],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
