"""Who is let in to a machine by SSH: what sshd is told, and the program that it asks, run as it stands."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from uuid import UUID

import pytest

from provisioners.driver import DriverRejected
from provisioners.vsphere import cloud_init, guest_principals
from provisioners.vsphere.cloud_init import Seed

CA = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK5uPv4HWUAPaRKNzhxQCyb6tmQgh8X4cFI/hsNdW4A4"
URL = "https://control.example:8443/agent/v1/ssh/00000000-0000-4000-8000-000000000001/revoked"


def files(**given: str) -> dict[str, str]:
    seed = Seed(UUID(int=1), "box", ssh_ca=CA, ssh_principals=("machine-1",), **given)
    return {each["path"]: each["content"] for each in cloud_init.userdata(seed)["write_files"]}


def test_sshd_asks_the_program_or_reads_the_file_and_never_both():
    asking, reading = files(ssh_revoked_url=URL), files()

    assert (
        f"AuthorizedPrincipalsCommand /usr/local/lib/tenantry/ssh-principals {URL} /etc/ssh/tenantry/principals/%u %s\n"
        "AuthorizedPrincipalsCommandUser nobody\n"
    ) in asking[cloud_init.SSHD_FILE]
    assert "AuthorizedPrincipalsFile" not in asking[cloud_init.SSHD_FILE]
    assert asking[cloud_init.SSH_PROGRAM_FILE].startswith("#!/usr/bin/python3 -I\n")
    assert "AuthorizedPrincipalsCommand" not in reading[cloud_init.SSHD_FILE]
    assert cloud_init.SSH_PROGRAM_FILE not in reading


def test_a_control_plane_with_a_ca_of_its_own_is_checked_with_it():
    given = files(ssh_revoked_url=URL, ssh_revoked_ca_pem="-----BEGIN CERTIFICATE-----")

    assert (
        f"{URL} /etc/ssh/tenantry/principals/%u %s /etc/ssh/tenantry/control-plane.pem\n" in given[cloud_init.SSHD_FILE]
    )
    assert given["/etc/ssh/tenantry/control-plane.pem"] == "-----BEGIN CERTIFICATE-----"


@pytest.mark.parametrize(
    "address", ["ftp://x/y", "https://x/%u", "https://x/a b", "https://x/y\nPermitRootLogin yes", "https://x", "/x"]
)
def test_an_address_that_would_mean_something_to_sshd_is_refused(address):
    with pytest.raises(DriverRejected, match="ssh_revoked_url"):
        files(ssh_revoked_url=address)


@pytest.fixture
def home():
    """Answers what was taken back: `home.text`."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if server.is_something_else:  # type: ignore[attr-defined]
                self.wfile.write(b"220 a mail server\r\n")
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(server.text.encode())  # type: ignore[attr-defined]

        def log_message(self, *_words: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    server.text, server.is_something_else = "", False  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def asked(address: str, tmp_path, serial: int = 7) -> str:
    file = tmp_path / "principals"
    file.write_text("machine-1\n")
    words = [sys.executable, "-I", guest_principals.__file__, address, str(file), str(serial)]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout


def test_the_program_names_the_principals_until_the_certificate_is_taken_back(home, tmp_path):
    address = f"http://127.0.0.1:{home.server_port}/revoked"

    assert asked(address, tmp_path) == "machine-1\n"
    home.text = "serial: 70\nserial: 17\n"
    assert asked(address, tmp_path) == "machine-1\n"
    home.text += "serial: 7\n"
    assert asked(address, tmp_path) == ""


def test_where_nobody_answers_the_certificate_is_left_to_its_own_end(tmp_path):
    assert asked("http://127.0.0.1:1/revoked", tmp_path) == "machine-1\n"


def test_what_is_no_answer_of_the_control_plane_shuts_nobody_out(home, tmp_path):
    home.is_something_else = True

    assert asked(f"http://127.0.0.1:{home.server_port}/revoked", tmp_path) == "machine-1\n"


def test_a_list_that_is_too_long_to_be_read_lets_nobody_in(home, tmp_path):
    home.text = "serial: 8\n" * (guest_principals.MOST // 10 + 1)

    assert asked(f"http://127.0.0.1:{home.server_port}/revoked", tmp_path) == ""
