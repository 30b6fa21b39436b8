"""The guest agent's hands in a real guest, with the tools of one played by small programs."""

from __future__ import annotations

import http.server
import json
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provisioners.vsphere import guest_agent
from provisioners.vsphere.guest_agent import GATEWAY, REPLICA, RealGuest, fetch, health

pytestmark = pytest.mark.slow

Tool = Callable[[str, str], None]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Put a program in front of the guest's; each notes its arguments, one JSON list per line, before its script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def make(name: str, script: str) -> None:
        file = str(tmp_path / "calls")
        note = f"import json,sys; open({file!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + chr(10))"
        (folder / name).write_text(f'#!/bin/sh\npython3 -S -c "{note}" "$@"\n{script}\n')
        (folder / name).chmod(0o755)

    return make


def calls(tmp_path: Path) -> list[list[str]]:
    return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def test_guestinfo_goes_through_the_tools_as_one_argument(tool: Tool, tmp_path: Path) -> None:
    tool("vmware-rpctool", 'case "$1" in "info-get a.key") echo "some value";; info-get*) exit 1;; esac')
    guest = RealGuest()

    assert (guest.info_get("a.key"), guest.info_get("b.key")) == ("some value", "")
    guest.info_set("a.key", '{"say": "two words; $HOME `id`"}')

    assert calls(tmp_path)[-1] == ["vmware-rpctool", 'info-set a.key {"say": "two words; $HOME `id`"}']
    tool("vmware-rpctool", "exit 1")
    with pytest.raises(OSError, match="cannot be written"):
        guest.info_set("a.key", "x")


def test_a_unit_is_read_anew_forgiven_enabled_and_started(tool: Tool, tmp_path: Path) -> None:
    tool("systemctl", 'case "$1" in is-active) echo activating; exit 3;; esac')
    guest = RealGuest()

    guest.restart(REPLICA)

    assert [call[1] for call in calls(tmp_path)] == ["daemon-reload", "reset-failed", "enable", "restart"]
    assert guest.status(REPLICA) == "activating"
    guest.stop(REPLICA)
    assert calls(tmp_path)[-1] == ["systemctl", "disable", "--now", REPLICA]
    tool("systemctl", "exit 1")
    with pytest.raises(OSError, match="cannot be started"):
        guest.restart(REPLICA)


def test_the_gateway_gets_a_certificate_for_its_addresses_once(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("systemctl", "")
    tool("hostname", "echo 10.1.2.3 fd00::1")
    shown = tmp_path / "tls.crt", tmp_path / "tls.key"
    monkeypatch.setattr(guest_agent, "CERTIFICATE", str(shown[0]))
    monkeypatch.setattr(guest_agent, "CERTIFICATE_KEY", str(shown[1]))
    monkeypatch.setattr(RealGuest, "machine_uuid", lambda _: "9D2F4A50-1111-4A4F-9F3B-3C7A4D0F1A22")

    RealGuest().restart(GATEWAY)
    first = shown[0].read_bytes()
    RealGuest().restart(GATEWAY)

    words = ["openssl", "x509", "-in", str(shown[0]), "-noout", "-ext", "subjectAltName"]
    names = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "DNS:9d2f4a50-1111-4a4f-9f3b-3c7a4d0f1a22" in names
    assert "IP Address:10.1.2.3" in names
    assert shown[0].read_bytes() == first
    assert stat.S_IMODE(shown[1].stat().st_mode) == 0o600


def test_files_are_replaced_whole_with_their_mode(tmp_path: Path) -> None:
    guest, path = RealGuest(), str(tmp_path / "deep" / "file.env")

    guest.write(path, "first", 0o644)
    guest.write(path, "second ü", 0o600)

    assert guest.read(path) == "second ü"
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert [entry.name for entry in Path(path).parent.iterdir()] == ["file.env"]
    guest.remove(path)
    guest.remove(path)
    assert guest.read(path) == ""


def test_the_licence_is_the_drivers_word_and_nothing_without_a_driver(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("nvidia-smi", "echo '    License Status  : Unlicensed (Unrestricted)'; echo '    Product Name : x'")
    assert RealGuest().licence() == "Unlicensed (Unrestricted)"

    monkeypatch.setenv("PATH", str(tmp_path))
    assert RealGuest().licence() == ""


class Answers(http.server.BaseHTTPRequestHandler):
    """Notes who asked, and answers by the path."""

    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization", "")))
        status = {"/moved": 302, "/refused": 401, "/nonsense": 200, "/list": 200}.get(self.path, 200)
        body = {"/nonsense": b"{", "/list": b"[]"}.get(self.path, b'{"gateway": "g"}')
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def answering() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server on loopback, and who asked it what."""
    asked: list[tuple[str, str]] = []
    handler = type("Handler", (Answers,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join(5)


def test_a_credential_goes_to_one_address_and_follows_nobody(answering: tuple[str, list[tuple[str, str]]]) -> None:
    url, asked = answering

    assert fetch(f"{url}/serving", "", "tna_secret") == (200, b'{"gateway": "g"}')
    assert fetch(f"{url}/moved", "", "tna_secret") == (302, b"")
    assert fetch(f"{url}/refused", "", "tna_secret") == (401, b"")

    assert asked == [(path, "Bearer tna_secret") for path in ("/serving", "/moved", "/refused")]


def test_a_gateways_health_is_an_object_or_nothing(answering: tuple[str, list[tuple[str, str]]]) -> None:
    url, _ = answering

    assert health(f"{url}/healthz") == {"gateway": "g"}
    assert health(f"{url}/nonsense") == health(f"{url}/list") == health("http://127.0.0.1:9/healthz") == {}
