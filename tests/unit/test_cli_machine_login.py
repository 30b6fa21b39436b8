"""`tenantry ssh`: what it sends, what it hands to ssh, and what is left of it afterwards."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat

import httpx
import pytest

from controlplane.cli.app import run
from controlplane.cli.screen import Screen
from controlplane.cli.session import Session

PATH = "/api/v1/tenants/aurora/machines/box/ssh-certificates"
SIGNED = {
    "id": "1", "machine": "box", "serial": "7", "fingerprint": "SHA256:x", "principal": "machine-1",
    "host": "127.0.0.2", "port": 2201, "login": "tenant", "created_at": "2026-06-01T12:00:00Z",
    "expires_at": "2026-06-01T12:15:00Z",
    "revoked_at": None, "certificate": "ssh-ed25519-cert-v01@openssh.com AAAA",
}  # fmt: skip
FAKE_SSH = """#!/bin/sh
printf '%s\\n' "$@" > "$SEEN/words"
key=$2
cp "$key-cert.pub" "$SEEN/certificate"
ls -ld "$(dirname "$key")" "$key" > "$SEEN/modes"
echo "$key" > "$SEEN/key"
exit 42
"""
pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not there")


@pytest.fixture
def tenantry(tmp_path, capsys, monkeypatch):
    """Run one line with a fake ssh: (status, out, err, bodies)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(FAKE_SSH)
    (programs / "ssh").chmod(0o755)
    (programs / "ssh-keygen").symlink_to(shutil.which("ssh-keygen") or "")

    def go(*words, answer=(201, SIGNED), path=None):
        bodies = []

        def api(request):
            bodies.append((request.url.path, json.loads(request.content)))
            return httpx.Response(answer[0], json=answer[1])

        environ = {
            "TENANTRY_CONFIG": str(tmp_path / "conf" / "config.toml"), "TENANTRY_TOKEN": "tnt_x",
            "TENANTRY_TENANT": "aurora", "PATH": f"{programs}:/usr/bin:/bin" if path is None else path,
            "SEEN": str(tmp_path),
        }  # fmt: skip
        session = Session(Screen(colour=False), environ=environ, transport=httpx.MockTransport(api))
        status = run(list(words), session=session)
        out, err = capsys.readouterr()
        return status, out, err, bodies

    return go


def test_it_logs_in_with_a_key_made_for_it_and_leaves_nothing_behind(tenantry, tmp_path):
    status, _out, _err, bodies = tenantry("ssh", "box", "--", "nvidia-smi", "-L")

    words = (tmp_path / "words").read_text().splitlines()
    assert status == 42
    assert [path for path, _body in bodies] == [PATH]
    assert bodies[0][1]["public_key"].startswith("ssh-ed25519 AAAA")
    assert words[-8:] == ["-p", "2201", "-l", "tenant", "--", "127.0.0.2", "nvidia-smi", "-L"]
    for option in (
        "IdentitiesOnly=yes", "HostKeyAlias=machine-1", "StrictHostKeyChecking=accept-new",
        f"UserKnownHostsFile={tmp_path / 'conf' / 'known_hosts'}",
    ):  # fmt: skip
        assert option in words
    assert (tmp_path / "certificate").read_text() == SIGNED["certificate"] + "\n"
    assert [line.split()[0] for line in (tmp_path / "modes").read_text().splitlines()] == ["drwx------", "-rw-------"]
    assert not os.path.exists((tmp_path / "key").read_text().strip())  # noqa: PTH110 - a name from a shell


def test_a_machine_may_be_named_with_its_noun(tenantry):
    assert tenantry("ssh", "machine/box")[3][0][0] == PATH


def test_print_shows_a_command_that_works_as_it_stands(tenantry, tmp_path):
    status, out, err, _bodies = tenantry("ssh", "box", "--print")

    words = shlex.split(out)
    assert status == 0
    assert not (tmp_path / "words").exists()
    private = tmp_path / "conf" / "ssh" / "aurora" / "box" / "key"
    assert words[:3] == ["ssh", "-i", str(private)]
    assert f"CertificateFile={private}-cert.pub" in words
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert "2026-06-01T12:15:00Z" in err


def test_a_key_of_ones_own_is_signed_and_the_certificate_printed(tenantry, tmp_path):
    mine = tmp_path / "mine"
    mine.with_suffix(".pub").write_text("ssh-ed25519 AAAAmine me\n")

    status, out, _err, bodies = tenantry("ssh", "box", "--certificate-only", "--key", str(mine))

    assert (status, out) == (0, SIGNED["certificate"] + "\n")
    assert bodies[0][1] == {"public_key": "ssh-ed25519 AAAAmine me"}
    assert (tmp_path / "conf/ssh/aurora/box/mine-cert.pub").read_text() == SIGNED["certificate"] + "\n"


def test_why_nobody_is_let_in_is_said(tenantry, tmp_path):
    refused = {"title": "Not now", "detail": "box is not there yet: it has no address.", "code": "not-ready"}

    status, _out, err, _bodies = tenantry("ssh", "box", answer=(409, refused))

    assert status == 6
    assert "box is not there yet" in err
    assert not (tmp_path / "words").exists()


def test_without_openssh_it_says_what_to_install(tenantry, tmp_path):
    status, _out, err, bodies = tenantry("ssh", "box", path=str(tmp_path))

    assert (status, bodies) == (2, [])
    assert "ssh is not on this machine" in err
    assert "apt-get install openssh-client" in err


@pytest.mark.parametrize("name", ["../../etc", "a/b/c", ".."])
def test_a_name_that_is_a_path_makes_no_folder(tenantry, tmp_path, name):
    status, _out, _err, bodies = tenantry("ssh", name)
    tenantry("ssh", name, "--print")

    assert (status, bodies) == (2, [])
    assert not (tmp_path / "conf").exists()
