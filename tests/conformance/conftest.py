"""The drivers under test, one `Rig` each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.rigs import HttpRig, InProcessRig, Rig, SandboxThread

RIGS = ("in-process", "http")


@pytest.fixture(scope="session")
def sandbox_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxThread]:
    server = SandboxThread(tmp_path_factory.mktemp("sandbox"))
    yield server
    server.close()


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = InProcessRig() if request.param == "in-process" else HttpRig(request.getfixturevalue("sandbox_server"))
    yield made
    made.close()
