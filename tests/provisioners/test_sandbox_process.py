"""The sandbox server as a process with real gateways: served end to end, killed, restarted, emptied."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from provisioners.driver import Power, Presence, Secret, TransientDriverError
from provisioners.gateway import keys
from provisioners.gateway.protocol import Backend, EndpointConfig, EndpointKey
from tests.conformance.specs import HOP_KEY, endpoint, machine, namespace_boundary, unit, vm_boundary
from tests.gateway_lab import ControlPlane
from tests.sandbox_process import SandboxProcess, as_wanted, is_gone

TENANT = UUID("44444444-4444-4444-8444-444444444444")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    process = SandboxProcess(tmp_path_factory.mktemp("sandbox"))
    yield process
    process.stop()


@pytest.fixture
def sandbox(server: SandboxProcess) -> Iterator[SandboxProcess]:
    yield server
    for name in server.client.get(f"{server.url}/estates").json()["estates"]:
        assert server.client.delete(f"{server.url}/estates/{name}").status_code == 204
    assert server.gateways() == []


@contextmanager
def control_plane(gateway: UUID) -> Iterator[tuple[ControlPlane, asyncio.AbstractEventLoop]]:
    """Give a control plane that serves in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    control = ControlPlane(gateway)
    asyncio.run_coroutine_threadsafe(control.start(), loop).result(10)
    yield control, loop
    asyncio.run_coroutine_threadsafe(control.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def ask(address: str, key: str) -> tuple[int, dict[str, Any]]:
    async def call() -> tuple[int, dict[str, Any]]:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hello there"}]}
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as client,
            client.post(f"{address}/chat/completions", json=body) as answer,
        ):
            return answer.status, await answer.json()

    return asyncio.run(call())


@pytest.mark.slow
def test_a_completion_passes_a_real_gateway_that_survives_every_kill_and_leaves_with_its_boundary(
    sandbox: SandboxProcess,
) -> None:
    driver = sandbox.estate(gateways="real")
    boundary = namespace_boundary(TENANT)
    assert boundary.gateway is not None
    key = keys.make("test")
    with control_plane(boundary.gateway.uid) as (control, loop):
        gateway = replace(boundary.gateway, control_plane_url=control.url, enrolment_token=Secret(control.token))
        boundary = replace(boundary, gateway=gateway)
        spec = endpoint(boundary, unit(0))
        sandbox.wait_for(lambda: as_wanted(driver, boundary))
        seen = sandbox.wait_for(lambda: as_wanted(driver, spec))
        config = EndpointConfig(
            uid=spec.ref.uid,
            name="chat",
            tenant=TENANT,
            models=("chat",),
            keys=(EndpointKey(id=key.id, digest=key.digest),),
            backends=(Backend(unit_uid=spec.units[0].uid, url=seen.units[0].backend, revision=1, weight=100),),
            hop_keys=(HOP_KEY,),
        )
        loop.call_soon_threadsafe(control.publish, config)

        status, answer = sandbox.wait_for(lambda: (found := ask(seen.address, key.plain))[0] == 200 and found)

        assert status == 200
        assert answer["tenantry"]["simulated"] is True
        assert answer["tenantry"]["slots"] == ["node-a-gpu-0 slots 0-0 (1g.10gb)"]
        assert "simulated" in answer["choices"][0]["message"]["content"]
        assert ask(seen.address, "tnt_test_wrong")[0] == 401
        (first,) = sandbox.gateways()
        assert b"TENANTRY_GATEWAY_TOKEN" not in Path(f"/proc/{first}/cmdline").read_bytes()

        # The server dies: the gateway goes on, and is adopted again.
        sandbox.kill()
        assert sandbox.gateways() == [first]
        sandbox.start()
        assert sandbox.wait_for(lambda: as_wanted(driver, boundary)).address == seen.address
        assert sandbox.gateways() == [first]
        assert ask(seen.address, key.plain)[0] == 200

        # The gateway dies: it comes back at the same address without a new token.
        os.kill(first, signal.SIGKILL)
        sandbox.wait_for(lambda: sandbox.gateways() not in ([], [first]))
        sandbox.wait_for(lambda: as_wanted(driver, boundary))
        assert sandbox.wait_for(lambda: ask(seen.address, key.plain)[0] == 200)
        assert len(control.enrolments) == 1

        sandbox.wait_for(lambda: is_gone(driver, spec))
        sandbox.wait_for(lambda: is_gone(driver, boundary))
        assert sandbox.gateways() == []
        assert list((sandbox.folder / "state" / "gateways").glob("*/*")) == []
    driver.close()


@pytest.mark.slow
def test_a_gateway_that_dies_before_it_enrolled_is_an_absent_part_and_a_new_token_starts_it(
    sandbox: SandboxProcess,
) -> None:
    driver = sandbox.estate(gateways="real")
    boundary = namespace_boundary(TENANT)
    assert boundary.gateway is not None
    nobody_home = replace(boundary, gateway=replace(boundary.gateway, control_plane_url="http://127.0.0.1:9"))
    sandbox.wait_for(lambda: as_wanted(driver, nobody_home) or sandbox.gateways())
    part = driver.observe(boundary.ref).part("namespace.gateway")
    assert (part.presence, part.ready) == (Presence.PRESENT, False)
    sandbox.kill()
    for pid in sandbox.gateways():
        os.kill(pid, signal.SIGKILL)
    sandbox.start()

    sandbox.wait_for(lambda: driver.observe(boundary.ref).part("namespace.gateway").presence == Presence.ABSENT)

    with control_plane(boundary.gateway.uid) as (control, _loop):
        token = Secret(control.token)
        gateway = replace(boundary.gateway, control_plane_url=control.url, enrolment_token=token)
        assert sandbox.wait_for(lambda: as_wanted(driver, replace(boundary, gateway=gateway))).exists
    driver.close()


@pytest.mark.slow
def test_a_gateway_whose_token_is_refused_is_an_absent_part_and_a_fresh_token_starts_it(
    sandbox: SandboxProcess,
) -> None:
    driver = sandbox.estate(gateways="real")
    boundary = namespace_boundary(TENANT)
    assert boundary.gateway is not None
    with control_plane(boundary.gateway.uid) as (control, _loop):
        expired = replace(boundary.gateway, control_plane_url=control.url, enrolment_token=Secret("expired"))
        for step in driver.steps(replace(boundary, gateway=expired)):
            driver.start(step)
        sandbox.wait_for(lambda: control.enrolments)

        sandbox.wait_for(lambda: driver.observe(boundary.ref).part("namespace.gateway").presence == Presence.ABSENT)

        assert sandbox.gateways() == []
        fresh = replace(boundary, gateway=replace(expired, enrolment_token=Secret(control.token)))
        assert sandbox.wait_for(lambda: as_wanted(driver, fresh)).exists
    driver.close()


@pytest.mark.slow
def test_a_newer_token_or_another_control_plane_replaces_a_gateway_that_waits(sandbox: SandboxProcess) -> None:
    driver = sandbox.estate(gateways="real")
    boundary = namespace_boundary(TENANT)
    assert boundary.gateway is not None
    nobody_home = replace(boundary, gateway=replace(boundary.gateway, control_plane_url="http://127.0.0.1:9"))
    sandbox.wait_for(lambda: as_wanted(driver, nobody_home) or sandbox.gateways())
    (first,) = sandbox.gateways()

    assert nobody_home.gateway is not None
    newer = replace(nobody_home.gateway, enrolment_token=Secret("newer"))
    driver.start(driver.steps(replace(boundary, gateway=newer))[-1])
    sandbox.wait_for(lambda: sandbox.gateways() not in ([], [first]))

    with control_plane(boundary.gateway.uid) as (control, _loop):
        token = Secret(control.token)
        gateway = replace(boundary.gateway, control_plane_url=control.url, enrolment_token=token)
        assert sandbox.wait_for(lambda: as_wanted(driver, replace(boundary, gateway=gateway))).exists
    driver.close()


@pytest.mark.slow
def test_a_gateway_in_a_vm_stops_with_the_machine_and_comes_back_with_it(sandbox: SandboxProcess) -> None:
    driver = sandbox.estate(gateways="real")
    boundary = vm_boundary(TENANT)
    spec = endpoint(boundary, unit(0, host="esx-a"))
    with control_plane(spec.units[0].uid) as (control, _loop):
        gateway = replace(spec.gateways[0], control_plane_url=control.url, enrolment_token=Secret(control.token))
        spec = replace(spec, gateways=(gateway,))
        sandbox.wait_for(lambda: as_wanted(driver, boundary))
        sandbox.wait_for(lambda: as_wanted(driver, spec))
        (first,) = sandbox.gateways()

        driver.power(spec.ref, want=Power.OFF)
        sandbox.wait_for(lambda: sandbox.gateways() == [])
        driver.power(spec.ref, want=Power.ON)
        sandbox.wait_for(lambda: len(sandbox.gateways()) == 1)

        assert sandbox.gateways() != [first]
        assert sandbox.wait_for(lambda: as_wanted(driver, spec)).exists
        sandbox.wait_for(lambda: is_gone(driver, spec))
        assert sandbox.gateways() == []
    driver.close()


@pytest.mark.slow
def test_a_machine_moved_to_another_host_gets_a_new_gateway_and_leaves_no_old_one(sandbox: SandboxProcess) -> None:
    driver = sandbox.estate(gateways="real")
    boundary = vm_boundary(TENANT)
    spec = endpoint(boundary, unit(0, host="esx-a"))
    with control_plane(spec.units[0].uid) as (control, _loop):
        gateway = replace(spec.gateways[0], control_plane_url=control.url, enrolment_token=Secret(control.token))
        spec = replace(spec, gateways=(gateway,))
        sandbox.wait_for(lambda: as_wanted(driver, boundary))
        sandbox.wait_for(lambda: as_wanted(driver, spec))
        (first,) = sandbox.gateways()
        control.credential_digest = ""  # its new disk has no credential: it enrols anew
        moved = replace(spec, units=(replace(spec.units[0], host="esx-b", devices=("esx-b-gpu-0",)),))
        clone = driver.steps(moved)[0]
        assert clone.replaces

        driver.start(clone.undoing())
        sandbox.wait_for(lambda: as_wanted(driver, moved))

        assert len(sandbox.gateways()) == 1
        assert sandbox.gateways() != [first]
        assert {one.host for one in driver.observe(spec.ref).units} == {"esx-b"}
    driver.close()


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_killed_server_and_tasks_go_on(sandbox: SandboxProcess) -> None:
    driver = sandbox.estate(gateways="simulated", delays_s={"": 0.2, "folder.create": 0.6})
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    handle = driver.start(driver.steps(boundary)[0])

    sandbox.kill()
    with pytest.raises(TransientDriverError):
        driver.observe(boundary.ref)
    sandbox.start()

    part = driver.observe(boundary.ref).part("folder.create")
    assert part.presence in (Presence.CHANGING, Presence.PRESENT)
    assert sandbox.wait_for(lambda: driver.poll(handle).state == "done")  # type: ignore[arg-type]
    for wanted in (boundary, spec):
        sandbox.wait_for(lambda wanted=wanted: as_wanted(driver, wanted))
    assert len(driver.snapshot().objects) == 2
    driver.close()


@pytest.mark.slow
def test_stop_ends_the_server_and_every_gateway(tmp_path: Path) -> None:
    process = SandboxProcess(tmp_path)
    driver = process.estate(gateways="real")
    boundary = namespace_boundary(TENANT)
    process.wait_for(lambda: as_wanted(driver, boundary) or process.gateways())

    process.stop()

    process.wait_for(lambda: process.gateways() == [])
    assert process.process is not None
    assert process.process.returncode == 0
    driver.close()
