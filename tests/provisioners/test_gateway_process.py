"""The gateway as a real process: enrolment, restarts, kills, a control plane that is away, a clean end."""

from __future__ import annotations

import asyncio
import shutil
import signal
import ssl
import stat
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest

from controlplane.labs.certificates import Authority
from provisioners.gateway.protocol import EndpointState
from tests.gateway_lab import Lab, event_of, scenario, until

pytestmark = pytest.mark.slow


@scenario
async def test_enrols_once_and_serves_across_restarts_without_the_token(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())

    process = await lab.spawn()
    await lab.healthy(state="serving", enrolled=True, config_version=1, control_plane="up")
    first = await lab.ask()
    assert await lab.kill(process) == -signal.SIGKILL
    await lab.spawn(token=False)
    await lab.healthy(state="serving", control_plane="up")
    second = await lab.ask()

    assert (first[0], second[0]) == (200, 200)
    assert len(lab.control.enrolments) == 1
    assert lab.control.token not in (lab.state / "identity.json").read_text()
    assert stat.S_IMODE((lab.state / "identity.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(lab.state.stat().st_mode) == 0o700


@scenario
async def test_a_gateway_in_a_machine_shows_what_the_firmware_says_and_others_say_nothing(lab: Lab) -> None:
    machine = uuid4()

    process = await lab.spawn(environment={"TENANTRY_GATEWAY_MACHINE_UUID": str(machine)})
    await lab.healthy(enrolled=True)
    await lab.kill(process)
    shutil.rmtree(lab.state)
    lab.control.credential_digest = ""
    await lab.spawn()
    await lab.healthy(enrolled=True)

    assert [asked.machine_uuid for asked in lab.control.enrolments] == [machine, None]
    assert ["machine_uuid" in asked.model_fields_set for asked in lab.control.enrolments] == [True, False]


@scenario
async def test_with_a_certificate_it_answers_tls_and_nothing_else(lab: Lab) -> None:
    authority = Authority(lab.folder / "pki")
    authority.make()
    authority.sign_server("gateway", "gateway", names=("localhost",), addresses=("127.0.0.1",))
    shown = authority.folder / "gateway.crt", authority.folder / "gateway.key"

    await lab.spawn("--certificate", str(shown[0]), "--key", str(shown[1]))
    trusting = ssl.create_default_context(cafile=str(authority.certificate))

    async def look() -> int:
        async with lab.http.get(f"https://127.0.0.1:{lab.port}/healthz", ssl=trusting) as answer:
            return answer.status

    assert await until(look, lambda status: status == 200) == 200
    with pytest.raises(aiohttp.ClientError):
        await lab.http.get(f"http://127.0.0.1:{lab.port}/healthz")
    with pytest.raises(aiohttp.ClientError):
        await lab.http.get(f"https://127.0.0.1:{lab.port}/healthz", ssl=ssl.create_default_context())


@scenario
async def test_a_certificate_without_its_key_is_refused_at_the_start(lab: Lab) -> None:
    process = await lab.spawn("--certificate", "tls.crt")

    assert await process.wait() == 2
    assert "--certificate and --key together" in lab.log


@scenario
async def test_a_lost_enrolment_answer_and_a_kill_after_it_do_no_harm(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())
    lab.control.lose_enrol_answers = 1_000

    process = await lab.spawn()
    await until(lambda: _value(len(lab.control.enrolments)), lambda tries: tries >= 1)
    await lab.kill(process)
    lab.control.lose_enrol_answers = 0
    await lab.spawn(token=False)
    await lab.healthy(state="serving", enrolled=True)

    assert len({asked.credential_digest for asked in lab.control.enrolments}) == 1


@scenario
async def test_the_token_is_in_neither_arguments_environment_nor_log(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())

    process = await lab.spawn()
    await lab.healthy(state="serving")
    await lab.ask()
    status, _, _ = await lab.ask(key=lab.key.plain[:-1])

    assert status == 401
    proc = Path(f"/proc/{process.pid}")
    assert lab.control.token not in (proc / "cmdline").read_text()
    for secret in (lab.control.token, lab.key.plain, lab.key.plain[:-1], lab.key.digest, "messages"):
        assert secret not in lab.log


@scenario
async def test_serves_on_while_the_control_plane_is_away_across_a_restart_and_takes_news_when_it_is_back(
    lab: Lab,
) -> None:
    lab.control.publish(lab.endpoint())
    process = await lab.spawn()
    await lab.healthy(state="serving")

    await lab.control.stop()
    await lab.healthy(control_plane="away")
    away = await lab.ask()
    await lab.kill(process)
    await lab.spawn(token=False)
    await lab.healthy(state="serving", config_version=1)
    restarted = await lab.ask()
    lab.control.publish(lab.endpoint(keys=()))
    await lab.control.start()
    await lab.healthy(config_version=2, within_s=5)
    revoked = await lab.ask()

    assert (away[0], restarted[0], revoked[0]) == (200, 200, 401)


@pytest.mark.slow
@scenario
async def test_usage_outlives_sigkill_and_is_counted_once(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())
    lab.control.refuse_usage_with = 503
    process = await lab.spawn()
    await lab.healthy(state="serving")

    for _ in range(5):
        assert (await lab.ask())[0] == 200
    await lab.kill(process)
    process = await lab.spawn(token=False)
    await lab.healthy(state="serving", spooled_records=5)
    lab.control.refuse_usage_with = 0
    await until(lambda: _value(len(lab.control.records)), lambda count: count == 5)
    await lab.healthy(spooled_records=0)

    assert {(r.prompt_tokens, r.completion_tokens, r.status) for r in lab.control.records} == {(7, 3, 200)}
    assert {r.key_id for r in lab.control.records} == {lab.key.id}
    assert list((lab.state / "usage").glob("*.jsonl")) == []


@scenario
async def test_sigterm_lets_a_running_stream_end_takes_nothing_new_and_sends_its_usage(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())
    process = await lab.spawn()
    await lab.healthy(state="serving")

    async with lab.stream() as answer:
        lab.model.go.put_nowait(event_of(n=1))
        first = await answer.content.readuntil(b"\n\n")
        process.send_signal(signal.SIGTERM)
        with pytest.raises(aiohttp.ClientConnectionError):
            await _asked_until_refused(lab)
        lab.model.go.put_nowait(event_of(n=2))
        lab.model.go.put_nowait(b"")
        rest = await answer.content.read()
    status = await asyncio.wait_for(process.wait(), 10)

    assert first + rest == event_of(n=1) + event_of(n=2) + b"data: [DONE]\n\n"
    assert status == 0
    assert [(r.prompt_tokens, r.completion_tokens) for r in lab.control.records] == [(7, 2)]


@scenario
async def test_is_ready_only_once_it_has_enrolled(lab: Lab) -> None:
    lab.control.lose_enrol_answers = 1_000
    await lab.spawn()
    await lab.healthy(enrolled=False, state="enrolling")

    async with lab.http.get(f"{lab.url}/readyz") as before:
        enrolling = before.status
    lab.control.lose_enrol_answers = 0
    await lab.healthy(enrolled=True)
    async with lab.http.get(f"{lab.url}/readyz") as after:
        enrolled = after.status

    assert (enrolling, enrolled) == (503, 200)


@scenario
async def test_in_a_pod_it_ends_with_3_when_its_token_is_refused(lab: Lab) -> None:
    lab.control.token = "tnt_enrol_another"
    process = await lab.spawn("--end-when-hopeless")
    lab.control.token = "tnt_enrol_this"

    assert await asyncio.wait_for(process.wait(), 20) == 3
    assert "refuses the enrolment token" in lab.log


@pytest.mark.slow
@scenario
async def test_in_a_pod_it_ends_with_3_when_it_was_removed_and_at_every_start_after(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())
    process = await lab.spawn("--end-when-hopeless")
    await lab.healthy(state="serving")

    lab.control.answer_all_with = 410
    first = await asyncio.wait_for(process.wait(), 20)
    again = await lab.spawn("--end-when-hopeless", token=False)

    assert (first, await asyncio.wait_for(again.wait(), 20)) == (3, 3)


@scenario
async def test_a_second_process_on_one_folder_says_why_it_ends(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())
    await lab.spawn()
    await lab.healthy(state="serving")

    lab.port = 0
    second = await lab.spawn()

    assert await asyncio.wait_for(second.wait(), 10) == 2
    assert "is used by another gateway process" in lab.log


@scenario
async def test_a_removed_gateway_stops_serving_also_after_a_restart(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())
    process = await lab.spawn()
    await lab.healthy(state="serving")

    lab.control.answer_all_with = 410
    lab.control.publish(lab.endpoint())
    await lab.healthy(state="removed", within_s=5)
    before = await lab.ask()
    await lab.kill(process)
    await lab.spawn()
    await lab.healthy(state="removed")
    after = await lab.ask()

    assert (before[0], before[1]["error"]["code"]) == (503, "removed")
    assert (after[0], after[1]["error"]["code"]) == (503, "removed")


@scenario
async def test_a_revoked_credential_is_shown_and_the_last_configuration_stays_in_use(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())
    await lab.spawn()
    await lab.healthy(state="serving")

    lab.control.answer_all_with = 401
    lab.control.publish(lab.endpoint(state=EndpointState.SUSPENDED))
    health = await lab.healthy(control_plane="credential-revoked", within_s=5)
    answer = await lab.ask()

    assert (health["state"], health["config_version"], answer[0]) == ("serving", 1, 200)


async def _value(number: int) -> int:
    return number


async def _asked_until_refused(lab: Lab) -> None:
    """Ask for health until the port is closed."""
    while True:
        await lab.health()
