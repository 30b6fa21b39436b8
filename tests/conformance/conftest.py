"""The drivers under test, one `Rig` each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conformance.rigs import HttpRig, InProcessRig, Rig, SandboxThread

if TYPE_CHECKING:
    from controlplane.labs.kubernetes.cluster import Cluster
    from controlplane.labs.vsphere.vcenter import VCenter

RIGS = (
    "in-process",
    "http",
    pytest.param("kubernetes", marks=[pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.timeout(300)]),
    pytest.param("vsphere", marks=[pytest.mark.real, pytest.mark.vcsim]),
)


@pytest.fixture(scope="session")
def sandbox_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxThread]:
    server = SandboxThread(tmp_path_factory.mktemp("sandbox"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def conformance_cluster(request: pytest.FixtureRequest) -> Cluster:
    """A cluster of the lab whose pods become ready by themselves: conformance asks for objects, not for answers."""
    from tests.conformance.kubernetes_rig import ready_cluster

    return ready_cluster(request)


@pytest.fixture(scope="session")
def conformance_vcenter(request: pytest.FixtureRequest) -> VCenter:
    """A vCenter of the lab with the hosts that conformance's specs name."""
    from tests.conformance.vsphere_rig import ready_vcenter

    return ready_vcenter(request)


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made: Rig
    if request.param == "in-process":
        made = InProcessRig()
    elif request.param == "http":
        made = HttpRig(request.getfixturevalue("sandbox_server"))
    elif request.param == "kubernetes":
        from tests.conformance.kubernetes_rig import KubernetesRig

        made = KubernetesRig(request.getfixturevalue("conformance_cluster"))
    else:
        from tests.conformance.vsphere_rig import VSphereRig

        made = VSphereRig(request.getfixturevalue("conformance_vcenter"))
    yield made
    made.close()
