"""Plugin (`-p tests.labs.fixtures`): the labs' clusters, vCenters and vLLM for any test that asks for one.

Mark such a test `real` and `kube_apiserver`, `vcsim` or `vllm`. Without the built programs it is skipped with the
reason; with TENANTRY_LAB_BUILD=1 (`make test-real`) they are built before the first test, twelve minutes cold, and
with TENANTRY_LAB_NODE=real those of the real node too, and with TENANTRY_LAB_VLLM=1 vLLM (6 GB).
TENANTRY_TEST_CLUSTER=NAME (or its folder) takes a cluster that runs, and leaves it running: for the tenth run of the
same test; TENANTRY_TEST_VCENTER does so with a vCenter. Every test makes its own namespaces and nodes, or folders
and VMs, and takes them away; the cluster and the vCenter are shared.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests import environment

if TYPE_CHECKING:  # importing them costs every run a tenth of a second
    from controlplane.labs.kubernetes.client import Api
    from controlplane.labs.kubernetes.cluster import Cluster
    from controlplane.labs.vllm.build import Installed
    from controlplane.labs.vsphere.control import Control
    from controlplane.labs.vsphere.vcenter import VCenter

LABS = environment.STATE / "labs"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests that share a cluster or a vCenter with one worker: each idle apiserver takes a tenth of a core.

    For `--dist loadgroup`. Marks (`xdist_group`) would do, but xdist 3.8 writes them where pytest 9.2 does not look.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(Path(nodeid.partition("::")[0]).relative_to("tests"))

    return ByGroup(config, log)


def group_of(path: Path) -> str:
    """Return which tests run in one process: those of one folder.

    Tables of crash points have processes of their own; those on Kubernetes mostly await a cluster, so two go together.
    """
    folder = path.parts[0]
    if folder == "kubernetes":
        return f"{folder} {'a-f' if path.name < 'test_g' else 'g-z'}"
    return str(path) if folder == "crash" else folder


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the chosen tests need: here no test's own time runs."""
    if os.environ.get("TENANTRY_LAB_BUILD") != "1" or session.config.option.collectonly:
        return
    if any(item.get_closest_marker("vcsim") for item in session.items):
        from controlplane.labs.errors import NotBuilt as NoProgram
        from controlplane.labs.vsphere import build as vsphere

        with contextlib.suppress(NoProgram):  # then `vsphere_program` skips and says why
            vsphere.ensure()
    if os.environ.get("TENANTRY_LAB_VLLM") == "1" and any(item.get_closest_marker("vllm") for item in session.items):
        from controlplane.labs.errors import NotBuilt as NoVllm
        from controlplane.labs.vllm import build as vllm

        with contextlib.suppress(NoVllm):  # then `vllm_lab` skips and says why
            vllm.ensure()
    if any(item.get_closest_marker("kube_apiserver") for item in session.items):
        from controlplane.labs.kubernetes import build
        from controlplane.labs.kubernetes.errors import NotBuilt

        with contextlib.suppress(NotBuilt):  # then `kube_programs` skips and says why
            build.ensure(
                build.CONTROL_PLANE + (build.REAL_NODE if os.environ.get("TENANTRY_LAB_NODE") == "real" else ())
            )


@pytest.fixture(scope="session")
def kube_programs() -> None:
    """Skip where the lab's programs are not built."""
    from controlplane.labs.kubernetes import build

    if not build.is_built():
        todo = "the Kubernetes lab is not built\n  mend: python -m controlplane.labs.kubernetes build"
        pytest.skip(build.why_not_here() or todo)


@pytest.fixture(scope="session")
def kube_clusters(kube_programs: None) -> Iterator[Callable[..., Cluster]]:
    """Start clusters by name with `Cluster`'s own keywords; stopped and deleted at the end of the run."""
    from controlplane.labs.kubernetes.cluster import Cluster

    sweep_left_ones()
    folder = LABS / f"{os.getpid()}"
    made: dict[str, Cluster] = {}

    def start(name: str, **options: Any) -> Cluster:
        if name not in made:
            made[name] = Cluster(name, folder=folder / name, **options)
            made[name].start()
            with made[name].api() as api:
                anchor(api)
        return made[name]

    yield start
    for cluster in made.values():
        cluster.delete()
    shutil.rmtree(folder, ignore_errors=True)


def anchor(api: Api) -> None:
    """Keep one binding with a parameter for good: without any, an API server forgets its ConfigMaps until it restarts.

    Tests take ours away and make them again (https://github.com/kubernetes/kubernetes/issues/130887, 1.36 too).
    """
    group = "admissionregistration.k8s.io/v1"
    rule = {"apiGroups": ["tenantry.test"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["nothing"]}
    api.create({
        "apiVersion": group, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "test-anchor"},
        "spec": {
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": "true"}],
        },
    })  # fmt: skip
    api.create({
        "apiVersion": group, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "test-anchor"},
        "spec": {
            "policyName": "test-anchor", "validationActions": ["Deny"],
            "paramRef": {"name": "anchor", "namespace": "default", "parameterNotFoundAction": "Allow"},
        },
    })  # fmt: skip


@pytest.fixture(scope="session")
def kube_cluster(request: pytest.FixtureRequest, kube_programs: None) -> Cluster:
    """One shared cluster with the stand-ins and nodes of `furniture.usual_nodes()`; pods of ours are played."""
    from controlplane.labs.kubernetes import furniture
    from controlplane.labs.kubernetes.cluster import Cluster, home

    if name := os.environ.get("TENANTRY_TEST_CLUSTER"):
        # the state folder of these tests is their own; such a cluster lies where `up` put it
        folder = Path(name) if "/" in name else home({}) / name
        cluster = Cluster(folder.name, folder=folder)
        assert cluster.status().ready, f"python -m controlplane.labs.kubernetes up --name {name}"
    else:
        cluster = request.getfixturevalue("kube_clusters")("shared")
    with cluster.api() as api:
        furniture.furnish(api, furniture.usual_nodes())
    return cluster


@pytest.fixture
def kube_api(kube_cluster: Cluster) -> Iterator[Api]:
    """The lab's own client of the shared cluster, as administrator."""
    with kube_cluster.api() as api:
        yield api


@pytest.fixture
def kube_namespace(kube_api: Api) -> Iterator[str]:
    """A fresh namespace without our mark, deleted after the test."""
    name = f"test-{uuid4().hex[:10]}"
    kube_api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    kube_api.delete("v1", "Namespace", name)


@pytest.fixture(scope="session")
def vllm_lab() -> Installed:
    """Where the real vLLM and its small model are; skip where they are not installed."""
    from controlplane.labs.vllm import build

    if not build.is_built():
        pytest.skip(build.why_not_here() or build.MISSING)
    return build.installed()


@pytest.fixture(scope="session")
def vsphere_program() -> None:
    """Skip where the vSphere lab's program is not built."""
    from controlplane.labs.vsphere import build

    if not build.is_built():
        todo = "the vSphere lab is not built\n  mend: python -m controlplane.labs.vsphere build"
        pytest.skip(build.why_not_here() or todo)


@pytest.fixture(scope="session")
def vcenters(vsphere_program: None) -> Iterator[Callable[..., VCenter]]:
    """Start vCenters by name with `VCenter`'s own keywords; stopped and deleted at the end of the run."""
    from controlplane.labs.vsphere.vcenter import VCenter

    sweep_left_ones()
    folder = LABS / "vsphere" / f"{os.getpid()}"
    made: dict[str, VCenter] = {}

    def start(name: str, **options: Any) -> VCenter:
        if name not in made:
            made[name] = VCenter(name, folder=folder / name, **options)
            made[name].start()
        return made[name]

    yield start
    for vcenter in made.values():
        vcenter.delete()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def vcenter(request: pytest.FixtureRequest, vsphere_program: None) -> VCenter:
    """One shared vCenter with the hosts and templates of `worlds.usual()`."""
    from controlplane.labs.vsphere.vcenter import VCenter, home

    if name := os.environ.get("TENANTRY_TEST_VCENTER"):
        folder = Path(name) if "/" in name else home({}) / name
        vcenter = VCenter(folder.name, folder=folder)
        assert vcenter.status().ready, f"python -m controlplane.labs.vsphere up --name {name}"
        return vcenter
    started: VCenter = request.getfixturevalue("vcenters")("shared")
    return started


@pytest.fixture
def vcenter_control(vcenter: VCenter) -> Iterator[Control]:
    """The control address of the shared vCenter; its rules are taken back after the test."""
    with vcenter.control() as control:
        yield control
        control.clear()


def sweep_left_ones() -> None:
    """Stop and delete the clusters and vCenters of runs that were killed."""
    from controlplane.labs.kubernetes.cluster import Cluster
    from controlplane.labs.vsphere.vcenter import VCenter

    for base, kind in ((LABS, Cluster), (LABS / "vsphere", VCenter)):
        for folder in base.glob("[0-9]*"):
            if not Path(f"/proc/{folder.name}").exists():
                for left in folder.iterdir():
                    kind(left.name, folder=left).delete()
                shutil.rmtree(folder, ignore_errors=True)
