"""Plugin (`-p tests.labs.fixtures`): the lab's clusters for any test that asks for one.

Mark such a test `real` and `kube_apiserver`. Without the built programs it is skipped with the reason; with
TENANTRY_LAB_BUILD=1 (`make test-real`) they are built before the first test, twelve minutes cold, and with
TENANTRY_LAB_NODE=real those of the real node too.
TENANTRY_TEST_CLUSTER=NAME (or its folder) takes a cluster that runs, and leaves it running: for the tenth run of the
same test. Every test makes its own namespaces and nodes and takes them away; the cluster is shared.
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

LABS = environment.STATE / "labs"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the chosen tests need: here no test's own time runs."""
    needed = any(item.get_closest_marker("kube_apiserver") for item in session.items)
    if needed and os.environ.get("TENANTRY_LAB_BUILD") == "1" and not session.config.option.collectonly:
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
        return made[name]

    yield start
    for cluster in made.values():
        cluster.delete()
    shutil.rmtree(folder, ignore_errors=True)


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


def sweep_left_ones() -> None:
    """Stop and delete the clusters of runs that were killed."""
    from controlplane.labs.kubernetes.cluster import Cluster

    for folder in LABS.glob("[0-9]*"):
        if not Path(f"/proc/{folder.name}").exists():
            for left in folder.iterdir():
                Cluster(left.name, folder=left).delete()
            shutil.rmtree(folder, ignore_errors=True)
