"""`python -m tests.benchmarks.key_refusals`: whether what is wrong with a key shows in the answer or in its time.

The real gateway in a process of its own, one kept connection, every kind of bad key in turns and in a new order each
round. Bodies and headers must be equal but for ids and the date; medians of `--tries` each must lie within `--within`
per cent of each other. Exit status 1 where they do not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import uuid4

from provisioners.gateway import keys
from provisioners.gateway.protocol import EndpointKey, RateLimits
from tests.gateway_lab import Lab

BODY: Final = b'{"model": "alpha", "messages": [{"role": "user", "content": "hello"}]}'
WARM_UP: Final = 200
NOT_COMPARED: Final = re.compile(rb"(?im)^(date|x-request-id): .*\r\n")


async def prepared(lab: Lab) -> dict[str, str]:
    """Serve two endpoints with good, expired and revoked keys; return kind → `Authorization` value of each bad one."""
    others, expired, revoked = keys.make("test"), keys.make("test"), keys.make("test")
    past = datetime.now(UTC) - timedelta(days=1)
    many = tuple(EndpointKey(id=made.id, digest=made.digest) for made in (keys.make("test") for _ in range(50)))
    mine = (
        EndpointKey(id=lab.key.id, digest=lab.key.digest, rates=RateLimits(requests_per_minute=10**6)),
        EndpointKey(id=expired.id, digest=expired.digest, expires_at=past),
        EndpointKey(id=revoked.id, digest=revoked.digest, revoked_at=past),
        *many,
    )
    theirs = (EndpointKey(id=others.id, digest=others.digest),)
    lab.control.publish(lab.endpoint(keys=mine), lab.endpoint(name="beta", uid=uuid4(), keys=theirs))
    await lab.spawn()
    await lab.healthy(state="serving")
    wrong = lab.key.plain[:20] + ("0" if lab.key.plain[20] != "0" else "1") + lab.key.plain[21:]
    body = f"tnt_test_{lab.key.id}_{'a' * 32}"
    return {
        "no key": "",
        "mistyped": f"Bearer {wrong}",
        "wrong": f"Bearer {body}{keys.checksum(body)}",
        "unknown": f"Bearer {keys.make('test').plain}",
        "revoked": f"Bearer {revoked.plain}",
        "expired": f"Bearer {expired.plain}",
        "foreign": f"Bearer {others.plain}",
    }


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authorization: str) -> tuple[bytes, int]:
    """Ask once; return the answer as it came, and the nanoseconds that it took."""
    shown = f"Authorization: {authorization}\r\n" if authorization else ""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{shown}Content-Type: application/json\r\n"
    request = head.encode() + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    began = time.perf_counter_ns()
    writer.write(request)
    top = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", top)
    body = await reader.readexactly(int(length[1]) if length else 0)
    return top + body, time.perf_counter_ns() - began


async def measured(
    lab: Lab, kinds: Mapping[str, str], tries: int
) -> tuple[dict[str, list[int]], dict[str, set[bytes]]]:
    """Return kind → times, and kind → different answers."""
    times: dict[str, list[int]] = {kind: [] for kind in kinds}
    said: dict[str, set[bytes]] = {kind: set() for kind in kinds}
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
    order = list(kinds)
    for round_ in range(tries + WARM_UP):
        random.shuffle(order)
        for kind in order:
            text, took = await answer(reader, writer, kinds[kind])
            said[kind].add(NOT_COMPARED.sub(b"", text))
            if round_ >= WARM_UP:
                times[kind].append(took)
    writer.close()
    return times, said


async def run(tries: int, within: float) -> int:
    """Measure once and print; return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        async with Lab(Path(folder)) as lab:
            kinds = await prepared(lab)
            good, _ = await answer(*await asyncio.open_connection("127.0.0.1", lab.port), f"Bearer {lab.key.plain}")
            times, said = await measured(lab, kinds, tries)
    medians = {kind: statistics.median(found) / 1000 for kind, found in times.items()}
    for kind, median in medians.items():
        print(f"{kind:10} median {median:8.1f} µs   p99 {statistics.quantiles(times[kind], n=100)[98] / 1000:8.1f} µs")
    spread = (max(medians.values()) / min(medians.values()) - 1) * 100
    answers = set().union(*said.values())
    alike = len(answers) == 1 and next(iter(answers)).startswith(b"HTTP/1.1 401")
    print(f"{tries} tries each, interleaved: medians within {spread:.1f} % (aim {within:g} %)")
    print(f"answers: {'all alike' if alike else f'{len(answers)} different ones'}; the good key: {good[9:12].decode()}")
    return 0 if alike and spread <= within and good.startswith(b"HTTP/1.1 200") else 1


def main() -> int:
    """Run the benchmark; the exit status is 1 where a bad key can be told from another."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.key_refusals", description=__doc__)
    parser.add_argument("--tries", type=int, default=2000, help="of each kind")
    parser.add_argument("--within", type=float, default=5.0, help="per cent that medians may differ")
    given = parser.parse_args()
    return asyncio.run(run(given.tries, given.within))


if __name__ == "__main__":
    sys.exit(main())
