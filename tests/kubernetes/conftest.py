"""Fixtures of the driver's tests that need a real kube-apiserver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kubernetes.ground import Ground


@pytest.fixture(scope="module")
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Our rights, policies and two tenants on the lab's shared cluster."""
    cluster = request.getfixturevalue("kube_cluster")
    from provisioners.driver import Secret
    from provisioners.kubernetes.settings import Settings
    from tests.kubernetes.ground import Ground

    made = Ground(
        Settings(
            slug="lab", url=cluster.url, ca_pem=cluster.ca_pem, token=Secret(cluster.admin_token), access="lab",
            lab=True, registries=("registry.internal/",), reads_per_s=500, writes_per_s=500, call_deadline_s=30,
        )
    )  # fmt: skip
    made.build()
    yield made
    made.tear_down()
