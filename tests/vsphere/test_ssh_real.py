"""The system's own ssh at a machine on the lab's vCenter: from the spec through user-data to the guest's server."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from controlplane.cli.commands.machine_login import login_command
from controlplane.labs.vsphere.control import Control
from provisioners.driver import BoundarySpec, MachineSpec, Power
from provisioners.vsphere.driver import VSphereDriver
from tests.vsphere.test_machines_real import (  # noqa: F401 - fixtures are used by their names
    driver,
    drivers,
    home,
    machine,
    run,
    settings,
    unit,
    up,
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.vcsim,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="OpenSSH is not there"),
]
PRINCIPAL = "machine-1"


@pytest.fixture
def taken_back() -> Iterator[tuple[str, list[int]]]:
    """An address that tells the serials of a list."""
    serials: list[int] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write("".join(f"serial: {serial}\n" for serial in serials).encode())

        def log_message(self, *_words: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/revoked", serials
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def keys(tmp_path: Path) -> Callable[..., Path]:
    """Make a key with a certificate of the tenant's authority beside it."""

    def keygen(*words: str) -> None:
        subprocess.run(["ssh-keygen", "-q", *words], cwd=tmp_path, check=True, capture_output=True, timeout=30)

    def make(name: str, *, serial: int = 7, principal: str = PRINCIPAL, ca: str = "ca", valid: str = "-1m:+5m") -> Path:
        for each in (ca, name):
            if not (tmp_path / each).exists():
                keygen("-t", "ed25519", "-N", "", "-f", each)
        keygen("-s", ca, "-I", "who", "-n", principal, "-z", str(serial), "-V", valid, f"{name}.pub")
        return tmp_path / name

    keygen("-t", "ed25519", "-N", "", "-f", "ca")
    return make


@pytest.fixture
def spec(
    driver: VSphereDriver,  # noqa: F811
    home: BoundarySpec,  # noqa: F811
    vcenter_control: Control,
    keys: Callable[..., Path],
    taken_back: tuple[str, list[int]],
    tmp_path: Path,
) -> Iterator[MachineSpec]:
    """A running machine that trusts the authority."""
    del keys
    ca = " ".join((tmp_path / "ca.pub").read_text().split()[:2])
    made = machine(home, unit(profile="3g.40gb"), ssh_keys=(), ssh_ca=ca, ssh_principals=(PRINCIPAL,))
    made = replace(made, ssh_revoked_url=taken_back[0])
    yield made
    vcenter_control.clear()
    run(driver, made, deleting=True)


def ssh(address: str, key: Path, *command: str, login: str = "tenant") -> subprocess.CompletedProcess[str]:
    host, _colon, port = address.partition(":")
    answer = {"host": host, "port": port, "login": login, "principal": PRINCIPAL}
    words = login_command(
        answer, private=key, certificate=Path(f"{key}-cert.pub"), known=key.with_name("known_hosts"), command=command
    )
    words[1:1] = ["-F", "/dev/null", "-o", "BatchMode=yes"]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL)


def test_a_certificate_of_the_tenants_authority_opens_its_machine_and_nothing_else_does(driver, spec, keys, taken_back):  # noqa: F811
    address = up(driver, spec).address
    good = keys("good")

    said = ssh(address, good, "nvidia-smi", "-L")

    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("GPU 0: NVIDIA H100XM-3-40C")
    assert "simulated VM" in ssh(address, good, "uname", "-a").stdout
    assert ssh(address, good, "hostname", login="root").returncode == 255
    for other in (
        keys("another-machine", principal="machine-2"),
        keys("another-authority", ca="ca2"),
        keys("over", valid="-10m:-1m"),
    ):
        assert ssh(address, other, "hostname").returncode == 255, other

    taken_back[1].append(7)

    assert ssh(address, good, "hostname").returncode == 255
    assert ssh(address, keys("good", serial=8), "hostname").returncode == 0


def test_a_machine_that_is_switched_off_answers_nobody_and_keeps_its_host_key(driver, spec, keys):  # noqa: F811
    address = up(driver, spec).address
    good = keys("good")
    assert ssh(address, good, "hostname").returncode == 0

    off = run(driver, replace(spec, power=Power.OFF)).seen
    refused = ssh(address, good, "hostname")
    again = up(driver, spec).address

    assert off is not None
    assert off.address == ""
    assert refused.returncode == 255
    assert ssh(again, good, "hostname").returncode == 0
