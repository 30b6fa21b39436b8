"""The real web server and a real gateway over loopback: keys, suspension, and a control plane that is away."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import aiohttp
import pytest
from django.db import connection

from provisioners import gateways
from tenants import hop_keys
from tenants.actor import SYSTEM
from tenants.models import Boundary, Endpoint, EndpointKey, EndpointUsage, GatewayReplica, Revision, Unit
from tenants.operations import endpoints, tenants
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import PlatformRole, Role, SuspensionDepth
from tenants.transactions import acting
from tests import environment, factories
from tests.gateway_lab import ROOT, Lab, Model, until

pytestmark = pytest.mark.usefixtures("db")

AT_ONCE_S = 5.0
"""Within this a gateway refuses what was revoked or suspended."""
T = TypeVar("T")


class Web:
    """The web process as it is run for real; keeps its port when it is stopped and started again."""

    def __init__(self, folder: Path, token: str, port: int) -> None:
        self.token, self.port = token, port
        self._log = folder / "web.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        environ = {
            **os.environ,
            **environment.ENVIRONMENT,
            "TENANTRY_PROCESS": "web",
            "TENANTRY_PUBLIC_URL": self.url,
        }
        words = f"-m granian --interface asginl --host 127.0.0.1 --port {self.port} --workers 1 --no-ws"
        words += " --workers-kill-timeout 3"
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *words.split(), "controlplane.asgi:application",
                cwd=ROOT, env=environ, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        async with aiohttp.ClientSession() as http:

            async def look() -> int:
                async with http.get(f"{self.url}/healthz") as answer:
                    return answer.status

            await until(look, lambda status: status == 200, within_s=60)

    async def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), 15)
        finally:
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                await self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        return self._log.read_text()


def world(model: Model) -> SimpleNamespace:
    """An endpoint served by `model`, which asks for its revision's key, and its gateway with a fresh token."""
    now = datetime.now(UTC)
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=1)
    tenant = factories.tenant()
    factories.generous(tenant)
    factories.served_model()
    actor = factories.actor(factories.member(tenant, Role.OWNER))
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16),))
    asked = EndpointAsk("alpha", RevisionAsk("llama-3-1-8b"), spec)
    made = endpoints.create(tenant=tenant, ask=asked, actor=actor, now=now)
    model.hop_key = hop_keys.plain(Revision.objects.get())
    unit = {"unit": str(Unit.objects.get().pk), "backend": f"{model.url}/v1", "ready": True}
    Endpoint.objects.update(observed={"revision": 1, "units": [unit]})
    with acting(SYSTEM):
        replica = gateways.of_boundary(Boundary.objects.get(), now=now)
        token = gateways.arm(replica, now=now).reveal()
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    return SimpleNamespace(
        tenant=tenant, actor=actor, operator=operator, endpoint=made.endpoint, key=made.key, secret=made.secret,
        gateway=replica.pk, token=token,
    )  # fmt: skip


async def in_thread(call: Callable[[], T]) -> T:
    def run() -> T:
        try:
            return call()
        finally:
            connection.close()

    return await asyncio.to_thread(run)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealLab(Lab):
    """The lab's model and gateway, with our own web process as the control plane."""

    async def prepare(self) -> SimpleNamespace:
        await self.model.start()
        self._stack.push_async_callback(self.model.stop)
        found = await in_thread(lambda: world(self.model))
        self.gateway_uid = found.gateway
        self.control: Any = Web(self.folder, found.token, free_port())
        self._stack.push_async_callback(self.control.stop)
        self.http = await self._stack.enter_async_context(aiohttp.ClientSession())
        await self.control.start()
        return found

    async def status(self, key: str) -> int:
        return (await self.ask(key=key))[0]

    async def within(self, wanted: int, key: str, *, since: float) -> None:
        """Wait until the answer has this status, at most `AT_ONCE_S` after `since`."""

        async def look() -> int:
            return await self.status(key)

        await until(look, lambda status: status == wanted, within_s=max(0.1, since + AT_ONCE_S - time.monotonic()))


async def walk(lab: RealLab) -> None:
    it = await lab.prepare()
    await lab.spawn()
    await lab.healthy(state="serving", enrolled=True, control_plane="up")
    assert await lab.status(it.secret) == 200

    # another key comes and goes
    key, second = await in_thread(
        lambda: endpoints.create_key(
            endpoint=it.endpoint, name="second", expires_at=None, actor=it.actor, now=datetime.now(UTC)
        )
    )
    await lab.within(200, second, since=time.monotonic())
    await in_thread(lambda: endpoints.revoke_key(endpoint=it.endpoint, key=key, actor=it.actor, now=datetime.now(UTC)))
    await lab.within(401, second, since=time.monotonic())
    assert await lab.status(it.secret) == 200

    # the tenant is suspended and resumed
    await in_thread(
        lambda: tenants.suspend(
            tenant=it.tenant, depth=SuspensionDepth.KEYS, reason="audit", actor=it.operator, now=datetime.now(UTC)
        )
    )
    await lab.within(403, it.secret, since=time.monotonic())
    await in_thread(lambda: tenants.resume(tenant=it.tenant, actor=it.operator, now=datetime.now(UTC)))
    await lab.within(200, it.secret, since=time.monotonic())

    # the control plane goes, which harms nobody, and is followed again within seconds when it is back
    stopped = time.monotonic()
    await lab.control.stop()
    assert time.monotonic() - stopped < 10, "an open long poll must not hold up the end of the web process"
    await lab.healthy(control_plane="away")
    assert await lab.status(it.secret) == 200
    await in_thread(
        lambda: endpoints.revoke_key(endpoint=it.endpoint, key=it.key, actor=it.actor, now=datetime.now(UTC))
    )
    assert await lab.status(it.secret) == 200
    await lab.control.start()
    await lab.within(401, it.secret, since=time.monotonic())

    # what was used arrived once, and the gateway says what it serves
    def used() -> tuple[int, bool]:
        tokens = sum(EndpointUsage.objects.values_list("prompt_tokens", flat=True))
        replica = GatewayReplica.objects.get()
        return tokens, replica.reported_version == replica.config_version

    await until(lambda: in_thread(used), lambda seen: seen == (7 * len(lab.model.seen), True), within_s=20)
    keys = await in_thread(lambda: set(EndpointUsage.objects.values_list("key_id", flat=True)))
    assert keys == {it.key.public_id, key.public_id}
    assert await in_thread(lambda: EndpointKey.objects.get(pk=it.key.pk).last_used_at) is not None
    for secret in (it.secret, second, it.token, "Traceback"):
        assert secret not in lab.control.log
        assert secret not in lab.log


@pytest.mark.slow
def test_keys_and_suspensions_hold_within_five_seconds_and_an_absent_control_plane_harms_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        lab = RealLab(tmp_path)
        try:
            await walk(lab)
        finally:
            await lab.__aexit__()

    asyncio.run(run())
