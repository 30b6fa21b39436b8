"""What passes through a gateway stays nowhere: no body, no answer and no key on disk, in a log or in what it sends.

Tried with the real program: whole answers, streams, requests that are refused or broken, a model that fails, a caller
who leaves, and a kill in the middle of a stream, after which the journal holds what was open.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.gateway_lab import Lab, event_of, scenario, until, wrong

ASKED = "quokka-in-the-question"
SAID = "wombat-in-the-answer"


def stored(folder: Path) -> bytes:
    """Return everything that lies below a folder, names included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"".join(str(path).encode() + path.read_bytes() for path in files)


async def told(lab: Lab) -> str:
    """Return everything that it sent home, its metrics and its health."""
    async with lab.http.get(f"{lab.url}/metrics") as answer:
        metrics = await answer.text()
    documents = [*lab.control.batches.values(), *lab.control.reports, *lab.control.wakes, *lab.control.enrolments]
    return metrics + str(await lab.health()) + "".join(each.model_dump_json() for each in documents)


@pytest.mark.slow
@scenario
async def test_no_body_no_answer_and_no_key_is_kept_logged_or_told(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())
    process = await lab.spawn()
    await lab.healthy(state="serving")
    said = event_of(choices=[{"index": 0, "delta": {"content": SAID}}])
    asked = [{"role": "user", "content": ASKED}]
    headers = {"Authorization": f"Bearer {lab.key.plain}"}

    assert (await lab.ask(messages=asked, user=ASKED))[0] == 200
    assert (await lab.ask(messages=asked, n="7"))[0] == 400
    assert (await lab.ask(messages=asked, key=wrong(lab.key.plain)))[0] == 401
    async with lab.http.post(f"{lab.url}/v1/chat/completions?{ASKED}", json={"model": ASKED}, headers=headers) as lost:
        assert lost.status == 404
    async with lab.http.post(
        f"{lab.url}/v1/chat/completions", data=f'{{"model": "{ASKED}'.encode(),
        headers={**headers, "Content-Type": "application/json", "X-Request-Id": f"{ASKED}\n"[:-1] + "!"},
    ) as broken:  # fmt: skip
        assert broken.status == 400
    lab.model.status = 500
    assert (await lab.ask(messages=asked))[0] == 500
    lab.model.status = 200
    async with lab.stream(messages=asked) as left:
        lab.model.go.put_nowait(said)
        await left.content.readuntil(b"\n\n")
    await asyncio.wait_for(lab.model.dropped.wait(), 15)
    async with lab.stream(messages=asked) as cut:
        lab.model.go.put_nowait(said)
        await cut.content.readuntil(b"\n\n")
        await lab.kill(process)
        killed = stored(lab.state)
    await lab.spawn(token=False)
    await lab.healthy(state="serving", spooled_records=0)
    await until(lambda: _reports(lab), lambda count: count > 0)

    seen = {
        "on disk after the kill": killed.decode(errors="replace"),
        "on disk": stored(lab.state).decode(errors="replace"),
        "in the log": lab.log,
        "told": await told(lab),
    }
    for where, text in seen.items():
        for secret in (ASKED, SAID, lab.key.plain, lab.key.plain[-38:]):
            assert secret not in text, f"{secret} {where}"


@scenario
async def test_the_trace_goes_on_whole_and_unchanged(lab: Lab) -> None:
    await lab.serve()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    names = [("traceparent", parent), ("tracestate", "a=1,b=2"), ("tracestate", "c=3"), ("baggage", "who=me")]
    headers = [("Authorization", f"Bearer {lab.key.plain}"), *names]

    async with lab.http.post(f"{lab.url}/v1/chat/completions", json={"model": "alpha"}, headers=headers) as answer:
        assert answer.status == 200

    seen, _ = lab.model.seen[0]
    assert seen["traceparent"] == parent
    assert seen["tracestate"] == "a=1,b=2, c=3"
    assert "baggage" not in seen  # may hold what the caller tells its own services only


async def _reports(lab: Lab) -> int:
    return len(lab.control.reports)
