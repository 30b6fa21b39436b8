"""Puts a load on an endpoint as a caller would: streamed completions, so many at once, each timed event by event.

Knows nothing of the control plane but one address and one key. Prompts are random words, so that no cache has seen
them; how many words make the tokens that are asked for is found out by one request before, which is not counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import aiohttp

from provisioners.benchmark.figures import Sample, result
from provisioners.benchmark.order import Order
from tenants.benchmarks import Result, Stopped

PATIENCE_S: Final = 20.0
"""A new key reaches the gateway with its next configuration: so long a refusal of the first request is asked again."""
AGAIN_S: Final = 0.5
SILENCE_S: Final = 120.0
"""An answer that says nothing for so long has failed."""
BUDGET_TRIES: Final = 4
"""A part of a budget is leased while requests wait; one that had no room a moment ago may have it now."""
BUDGET_PAUSE_S: Final = 1.0
MOST_FAILURES: Final = 20
"""In a row, and not one answer between: nothing is measured by going on."""
LEAST_WORDS: Final = 16
LONGEST_EVENT: Final = 1 << 20
_WORDS: Final = (
    "river", "stone", "lamp", "window", "garden", "paper", "silver", "morning", "engine", "forest", "letter",
    "music", "number", "people", "water", "winter", "summer", "table", "yellow", "simple", "quiet", "metal",
    "island", "bridge", "market", "doctor", "farmer", "mirror", "pencil", "ladder", "basket", "candle", "pocket",
    "thunder", "harbor", "valley", "copper", "marble", "velvet", "meadow", "orchard", "planet", "rocket", "signal",
    "tunnel", "village", "wagon", "anchor", "blanket", "cabin", "danger", "eagle", "fabric", "glacier", "hammer",
    "insect", "jungle", "kettle", "lemon", "magnet", "needle",
)  # fmt: skip


class Trouble(Exception):
    """Nothing can be measured; the text is for the person who asked."""


class Load:
    """One load."""

    def __init__(self, order: Order, *, tell: Callable[[int, int], None]) -> None:
        """`tell` is called with (ended, failed) after each request."""
        self._order: Final = order
        self._tell = tell
        self._random: Final = random.Random(order.seed)  # noqa: S311 - words of prompts
        self._samples: list[Sample] = []
        self._begun = 0
        self._in_a_row = 0
        self._said = ""
        self._stop = asyncio.Event()
        self._stopped = Stopped.NOT

    def stop(self, why: Stopped) -> None:
        """End soon; what has been measured counts."""
        if self._stopped is Stopped.NOT:
            self._stopped = why
        self._stop.set()

    async def run(self) -> Result:
        """Put the load on the endpoint and return what came of it. Raises `Trouble`."""
        async with self._session() as session:
            words = await self._words_for_prompt(session)
            callers = [
                asyncio.create_task(self._calls(session, words))
                for _ in range(min(self._order.concurrency, self._order.requests))
            ]
            try:
                await self._until_done(callers)
            finally:
                for caller in callers:
                    caller.cancel()
                await asyncio.gather(*callers, return_exceptions=True)
        return replace(result(self._samples, stopped=self._stopped), said=self._said)

    async def _until_done(self, callers: list[asyncio.Task[None]]) -> None:
        stopping = asyncio.create_task(self._stop.wait())
        try:
            async with asyncio.timeout(self._order.longest_s):
                working = asyncio.gather(*callers)
                ends: set[asyncio.Future[Any]] = {stopping, working}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    working.result()
                else:
                    working.cancel()
        except TimeoutError:
            self.stop(Stopped.TIME)
        finally:
            stopping.cancel()

    def _session(self) -> aiohttp.ClientSession:
        tls = ssl.create_default_context(cadata=self._order.ca_pem or None)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_S),
            headers={"Authorization": f"Bearer {self._order.key}", "Host": self._order.host},
            trust_env=False,
        )

    # --- prompts ------------------------------------------------------------------------------------

    async def _words_for_prompt(self, session: aiohttp.ClientSession) -> int:
        """Return how many words make a prompt as long as asked for. Raises `Trouble`."""
        words = max(LEAST_WORDS, self._order.input_tokens)
        words = min(words, 256)
        clock = asyncio.get_running_loop().time
        until = clock() + PATIENCE_S
        while True:
            sample, said = await self._call(session, self._prompt(words), 1)
            if not sample.error:
                break
            if sample.error not in {"401", "404", "502", "503"} or clock() >= until or self._stop.is_set():
                raise Trouble(_why(sample.error, said))
            await asyncio.sleep(AGAIN_S)
        ratio = sample.prompt_tokens / words if sample.prompt_tokens else 1.0
        return max(1, round(self._order.input_tokens / ratio))

    def _prompt(self, words: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=words))

    # --- requests -----------------------------------------------------------------------------------

    async def _calls(self, session: aiohttp.ClientSession, words: int) -> None:
        """Send one request after the other until all have been sent."""
        while self._begun < self._order.requests and not self._stop.is_set():
            self._begun += 1
            prompt = self._prompt(words)
            for _ in range(BUDGET_TRIES):
                sample, said = await self._call(session, prompt, self._order.output_tokens)
                if sample.error != "402" or self._stop.is_set():
                    break
                await asyncio.sleep(BUDGET_PAUSE_S)
            self._said = self._said or said
            self._samples.append(sample)
            self._in_a_row = self._in_a_row + 1 if sample.error else 0
            if sample.error == "402":
                self.stop(Stopped.BUDGET)
            elif self._in_a_row >= MOST_FAILURES:
                self.stop(Stopped.FAILURES)
            self._tell(len(self._samples), sum(1 for each in self._samples if each.error))

    async def _call(self, session: aiohttp.ClientSession, prompt: str, tokens: int) -> tuple[Sample, str]:
        """Send one request; return how it went, and the beginning of what was said where it failed."""
        body = {
            "model": self._order.model, "prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0,
            "ignore_eos": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        sample, said = Sample(time.perf_counter()), ""
        try:
            async with session.post(
                f"{self._order.url}/completions",
                json=body,
                allow_redirects=False,
                server_hostname=self._order.name or None,
            ) as answer:
                if answer.status != HTTPStatus.OK:
                    sample.error, said = str(answer.status), _message(await answer.content.read(4096))
                else:
                    await _read(answer, sample)
        except TimeoutError:
            sample.error = "timeout"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            sample.error, said = "broken", type(error).__name__
        sample.ended = time.perf_counter()
        return sample, said


async def _read(answer: aiohttp.ClientResponse, sample: Sample) -> None:
    """Time the events of a stream. Raises `ValueError` for one that is none, or does not come to its end."""
    async for event in _events(answer):
        if event == b"[DONE]":
            if sample.first is None and sample.completion_tokens == 0:
                break  # an answer without a word is none
            return
        told = json.loads(event)
        if not isinstance(told, dict) or "error" in told:
            break
        usage = told.get("usage")
        if usage:
            sample.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            sample.completion_tokens = int(usage.get("completion_tokens") or 0)
        if any(choice.get("text") for choice in told.get("choices", ())):
            now = time.perf_counter()
            if sample.last is None:
                sample.first = now
            else:
                sample.gaps.append(now - sample.last)
            sample.last = now
    message = "the stream broke off"
    raise ValueError(message)


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the data of each server-sent event. Raises `ValueError` for one without end."""
    left = b""
    async for chunk in answer.content.iter_any():
        left += chunk
        *lines, left = left.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
        if len(left) > LONGEST_EVENT:
            message = "an event without end"
            raise ValueError(message)


def _message(body: bytes) -> str:
    """Return what an error says, in OpenAI's shape; `""` where it says nothing readable."""
    try:
        found: Any = json.loads(body)
        found = found.get("error", found)
        text = found.get("message", "") if isinstance(found, dict) else ""
    except (ValueError, AttributeError):
        return ""
    return "".join(c if c.isprintable() else " " for c in str(text))[:200]


def _why(error: str, said: str) -> str:
    words = {
        "401": "Its gateway does not take the key that was made for this.",
        "402": "A budget is used up",
        "timeout": "It does not answer.",
        "broken": "It cannot be reached, or breaks off",
    }.get(error, f"It answers {error}")
    return words if not said else f"{words.rstrip('.')}: {said}"
