"""One real vLLM for the tests of this folder: started by the sandbox in a namespace, reached through a real gateway."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from provisioners.driver import EndpointSpec, Observed, Secret, ServingSpec
from provisioners.gateway import keys
from provisioners.gateway.protocol import Backend, EndpointConfig, EndpointKey, KeyScope
from provisioners.serving.runtime import PLACES, RevisionFacts, UnitFacts
from provisioners.serving.vllm import VLLM
from tests.conformance.specs import endpoint, namespace_boundary, unit
from tests.gateway_lab import ControlPlane
from tests.sandbox_process import SandboxProcess, as_wanted, is_gone

if TYPE_CHECKING:
    from controlplane.labs.vllm.build import Installed

TENANT = UUID("44444444-4444-4444-8444-444444444444")
HOP_KEY = "real-vllm-key-of-the-last-hop"
NAME = "chat"
STARTED_WITHIN_S = 300.0
ARGUMENTS = {"max_model_len": 1024, "dtype": "bfloat16", "enforce_eager": True}


@dataclass
class Served:
    """A running vLLM behind a gateway."""

    address: str
    """The gateway's, ending in /v1."""
    key: str
    chat_only: str
    """A key that opens chat and nothing else."""
    shut: Mapping[str, str]
    """What is wrong → a well-formed key that opens nothing here."""
    facts: RevisionFacts
    spec: EndpointSpec
    seen: Observed
    server: dict[str, Any]
    """What the sandbox knows of the model server."""
    log: str


def facts_of(lab: Installed, *, embeds: bool = False) -> RevisionFacts:
    return RevisionFacts(
        uid=uuid4(), number=1, endpoint=NAME, source=lab.repository, commit=lab.commit, quantisation="",
        arguments=ARGUMENTS, embeds=embeds, hop_key=Secret(HOP_KEY),
    )  # fmt: skip


def serving_of(facts: RevisionFacts) -> ServingSpec:
    made = VLLM.render(facts, UnitFacts(1, "1g.10gb", 16), next(iter(PLACES.values())))
    return ServingSpec(
        facts.uid, facts.number, NAME, facts.source, facts.commit, "vllm", made.argv, made.environment, made.secrets
    )


@pytest.fixture(scope="session")
def served(vllm_lab: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that writes."""
    with running(vllm_lab, tmp_path_factory.mktemp("vllm")) as found:
        yield found


@pytest.fixture(scope="session")
def embedding(vllm_lab: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The same model, as one that embeds."""
    with running(vllm_lab, tmp_path_factory.mktemp("vllm-embeds"), embeds=True) as found:
        yield found


@contextmanager
def running(vllm_lab: Installed, folder: Path, *, embeds: bool = False) -> Iterator[Served]:
    """Start all of it, and end all of it."""
    sandbox = SandboxProcess(folder, "--vllm", str(vllm_lab.program), "--hf-home", str(vllm_lab.home))
    boundary = namespace_boundary(TENANT)
    assert boundary.gateway is not None
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    control = ControlPlane(boundary.gateway.uid)
    asyncio.run_coroutine_threadsafe(control.start(), loop).result(10)
    try:
        driver = sandbox.estate(models="local", gateways="real")
        gateway = replace(boundary.gateway, control_plane_url=control.url, enrolment_token=Secret(control.token))
        boundary = replace(boundary, gateway=gateway)
        facts = facts_of(vllm_lab, embeds=embeds)
        spec = replace(endpoint(boundary, unit(0)), serving=serving_of(facts))
        sandbox.wait_for(lambda: as_wanted(driver, boundary), within_s=60)
        seen = sandbox.wait_for(lambda: as_wanted(driver, spec), within_s=STARTED_WITHIN_S)
        whole, chat_only = keys.make("test"), keys.make("test")
        expired, revoked, foreign = keys.make("test"), keys.make("test"), keys.make("test")
        past = datetime.now(UTC) - timedelta(days=1)
        config = EndpointConfig(
            uid=spec.ref.uid,
            name=NAME,
            tenant=TENANT,
            models=(NAME,),
            keys=(
                EndpointKey(id=whole.id, digest=whole.digest),
                EndpointKey(id=chat_only.id, digest=chat_only.digest, scopes=(KeyScope.CHAT,)),
                EndpointKey(id=expired.id, digest=expired.digest, expires_at=past),
                EndpointKey(id=revoked.id, digest=revoked.digest, revoked_at=past),
            ),
            backends=(Backend(unit_uid=spec.units[0].uid, url=seen.units[0].backend, revision=1, weight=100),),
            hop_keys=(HOP_KEY,),
        )
        opens_other = (EndpointKey(id=foreign.id, digest=foreign.digest),)
        other = config.model_copy(update={"uid": uuid4(), "name": "other", "models": ("other",), "keys": opens_other})
        loop.call_soon_threadsafe(control.publish, config, other)
        sandbox.wait_for(lambda: sandbox.client.get(seen.address.removesuffix("/v1") + "/readyz").is_success)
        (server,) = sandbox.client.get(f"{driver._address}/control/models").json()["models"]
        (log,) = (folder / "state" / "models").glob("*/*/vllm.log")
        shut = {
            "unknown": keys.make("test").plain, "expired": expired.plain, "revoked": revoked.plain,
            "foreign": foreign.plain,
        }  # fmt: skip
        yield Served(seen.address, whole.plain, chat_only.plain, shut, facts, spec, seen, server, log.read_text())
        sandbox.wait_for(lambda: is_gone(driver, spec), within_s=60)
        sandbox.wait_for(lambda: is_gone(driver, boundary), within_s=60)
        driver.close()
    finally:
        sandbox.stop()
        asyncio.run_coroutine_threadsafe(control.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
