"""What may be imported where, seen by really starting the programs that must stay light."""

import subprocess
import sys

import pytest

LIGHT = (
    "provisioners.driver",
    "provisioners.sandbox.__main__",
    "provisioners.sandbox.driver",
    "provisioners.gateway.__main__",
    "provisioners.gateway.protocol",
    "controlplane.embedded.__main__",
    "controlplane.cli",
)


@pytest.mark.parametrize("module", LIGHT)
def test_a_program_that_runs_without_django_loads_none_of_it(module):
    code = f"import {module}, sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert {"django", "rest_framework", "celery"} & set(done.stdout.split()) == set()


@pytest.mark.parametrize("module", ["provisioners.gateway.__main__", "provisioners.gateway.protocol"])
def test_the_gateway_carries_no_driver_and_no_sandbox(module):
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert [name for name in done.stdout.split() if name.startswith(("provisioners.sandbox", "tenants"))] == []


def test_what_the_gateway_shares_with_the_control_plane_needs_no_http_server():
    code = "import provisioners.gateway.protocol, provisioners.gateway.keys, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "aiohttp" not in done.stdout.split()
