"""What a new VM is told of itself: cloud-init's metadata and user-data, packed for guestinfo. Pure.

Everything is built as objects and dumped once; JSON is YAML, so nothing is quoted by hand and equal input gives equal
bytes. No secret belongs in here: whoever reads the VM's configuration reads guestinfo, and so does every process in
the guest. Formats: cloud-init, datasource "VMware" (keys `guestinfo.metadata`, `guestinfo.userdata`) and its
modules write_files, runcmd and users; OpenSSH, sshd_config(5) and the manual of authorized principals.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from provisioners.driver import DriverRejected

LONGEST_VALUE: Final = 60_000
"""Characters of one packed value; the guest's channel carries 64 KiB."""
LOGIN: Final = "tenant"
"""Account of people in a machine, whatever the image calls its own."""
SSH_CA_FILE: Final = "/etc/ssh/tenantry/ca.pub"
SSH_PRINCIPALS_FOLDER: Final = "/etc/ssh/tenantry/principals"
"""One file per account, with one principal on a line."""
SSH_REVOKED_FILE: Final = "/etc/ssh/tenantry/revoked"
"""Keys and certificates that are let in no more. It has to be there: without it sshd lets nobody in."""
SSH_PROGRAM_FILE: Final = "/usr/local/lib/tenantry/ssh-principals"
"""Asked by sshd at each login by certificate (`guest_principals.py`)."""
SSH_HOME_CA_FILE: Final = "/etc/ssh/tenantry/control-plane.pem"
"""What that program checks the control plane's certificate with, where it is not in the image."""
SSHD_FILE: Final = "/etc/ssh/sshd_config.d/10-tenantry.conf"

_HOST_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_KEY: Final = re.compile(r"[a-z0-9@.-]{5,60} [A-Za-z0-9+/]{20,4000}={0,2}( [\x20-\x7e]{0,200})?")
_PRINCIPAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
_ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._-]+)+")
_PATH: Final = re.compile(r"(/[A-Za-z0-9._@-]+)+")
_NO_YAML: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_MODE: Final = re.compile(r"0[0-7]{3}")

_PROGRAM: Final = Path(__file__).with_name("guest_principals.py")

Files = Mapping[str, tuple[str, str]]
"""Path → (text, mode such as `0644`); owned by root."""


@dataclass(frozen=True, slots=True)
class Seed:
    """What one VM is told at its first boot."""

    instance_id: UUID
    """cloud-init runs as for a new machine when it changes."""
    hostname: str
    ssh_keys: tuple[str, ...] = ()
    """Public keys that are let in at any time, on one line each."""
    ssh_ca: str = ""
    """Public key of the CA whose certificates are let in; empty: nobody's are."""
    ssh_principals: tuple[str, ...] = ()
    """Of which a certificate must carry one."""
    ssh_revoked_url: str = ""
    """Asked at each login for the certificates that count no more; empty: nothing is asked."""
    ssh_revoked_ca_pem: str = ""
    """What the certificate of that address is checked with; empty: the image's own."""
    files: Files = field(default_factory=dict)
    commands: tuple[tuple[str, ...], ...] = ()
    """Run once, after the files are there, each as program and arguments."""


def metadata(seed: Seed) -> dict[str, Any]:
    """Return what the VM is, and that its one card asks for its address."""
    if not _HOST_NAME.fullmatch(seed.hostname):
        raise DriverRejected("hostname: is no DNS label")
    return {
        "instance-id": str(seed.instance_id),
        "local-hostname": seed.hostname,
        "wait-on-network": {"ipv4": True, "ipv6": False},
        "network": {"version": 2, "ethernets": {"nic0": {"match": {"name": "e*"}, "dhcp4": True}}},
    }


def userdata(seed: Seed) -> dict[str, Any]:
    """Return the cloud-config. Raises `DriverRejected` with the field for what would mean something else in a guest."""
    files = {**_ssh_files(seed), **{_path(path): given for path, given in seed.files.items()}}
    return {
        "ssh_pwauth": False,
        "disable_root": True,
        "ssh_deletekeys": True,  # host keys that lie in the template are everybody's
        "package_update": False,
        "users": _users(seed),
        "write_files": [
            {"path": path, "content": text, "permissions": _mode(path, mode), "owner": "root:root"}
            for path, (text, mode) in sorted(files.items())
        ],
        "runcmd": [_command(number, words) for number, words in enumerate(seed.commands)],
    }


def guestinfo(seed: Seed) -> dict[str, str]:
    """Return the keys of a VM's configuration that cloud-init reads. Raises `DriverRejected`, also for too much."""
    texts = {
        "metadata": dumped(metadata(seed)),
        "userdata": f"#cloud-config\n{dumped(userdata(seed))}\n",
    }
    found: dict[str, str] = {}
    for key, text in texts.items():
        try:
            value = packed(text)
        except UnicodeEncodeError as error:
            raise DriverRejected(f"{key}: holds half a character") from error
        if len(value) > LONGEST_VALUE:
            raise DriverRejected(f"{key}: has {len(value)} characters when packed; {LONGEST_VALUE} is the most")
        found |= {f"guestinfo.{key}": value, f"guestinfo.{key}.encoding": "gzip+base64"}
    return found


def dumped(value: Any) -> str:
    """Return JSON that a YAML reader takes for the same.

    YAML knows no pairs of surrogates, so what lies beyond 16 bits stands as it is; and it folds or refuses some
    characters that JSON leaves alone, so those are escaped.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return _NO_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def packed(text: str) -> str:
    """Return a text as gzip and base64; equal texts give equal bytes. Raises `UnicodeEncodeError`."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")


def unpacked(value: str) -> str:
    """Return the text of a packed value, as the datasource reads it."""
    return gzip.decompress(base64.b64decode(value)).decode()


# --- single fields --------------------------------------------------------------------------------


def _users(seed: Seed) -> list[dict[str, Any]]:
    """Return the account of people; where nobody is let in there is none, not even the image's own."""
    if not seed.ssh_keys and not seed.ssh_ca:
        return []
    account: dict[str, Any] = {"name": LOGIN, "shell": "/bin/bash", "lock_passwd": True}
    account["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
    account["ssh_authorized_keys"] = [_key(f"ssh_keys[{at}]", key) for at, key in enumerate(seed.ssh_keys)]
    return [account]


def _ssh_files(seed: Seed) -> dict[str, tuple[str, str]]:
    lines = ["PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin no"]
    if not seed.ssh_ca:
        return {SSHD_FILE: (_lines(lines), "0644")}
    principals = [_principal(at, name) for at, name in enumerate(seed.ssh_principals)]
    lines += [f"TrustedUserCAKeys {SSH_CA_FILE}", f"RevokedKeys {SSH_REVOKED_FILE}"]
    asked: dict[str, tuple[str, str]] = {}
    if seed.ssh_revoked_url:
        # sshd takes what either of file and program says, so there is one of them.
        address = _address(seed.ssh_revoked_url)
        trust = f" {SSH_HOME_CA_FILE}" if seed.ssh_revoked_ca_pem else ""
        lines += [
            f"AuthorizedPrincipalsCommand {SSH_PROGRAM_FILE} {address} {SSH_PRINCIPALS_FOLDER}/%u %s{trust}",
            "AuthorizedPrincipalsCommandUser nobody",
        ]
        asked[SSH_PROGRAM_FILE] = ("#!/usr/bin/python3 -I\n" + _PROGRAM.read_text(encoding="utf-8"), "0755")
        if trust:
            asked[SSH_HOME_CA_FILE] = (seed.ssh_revoked_ca_pem, "0644")
    else:
        lines.append(f"AuthorizedPrincipalsFile {SSH_PRINCIPALS_FOLDER}/%u")
    return asked | {
        SSHD_FILE: (_lines(lines), "0644"),
        SSH_CA_FILE: (_lines([_key("ssh_ca", seed.ssh_ca)]), "0644"),
        f"{SSH_PRINCIPALS_FOLDER}/{LOGIN}": (_lines(principals), "0644"),
        SSH_REVOKED_FILE: ("", "0644"),
    }


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _key(name: str, text: str) -> str:
    """A second line would be a second key, and words before the type would be options of sshd."""
    if not _KEY.fullmatch(text):
        raise DriverRejected(f"{name}: is no OpenSSH public key on one line")
    return text


def _principal(at: int, text: str) -> str:
    if not _PRINCIPAL.fullmatch(text):
        raise DriverRejected(f"ssh_principals[{at}]: has other signs than letters, digits and . _ : @ -")
    return text


def _address(text: str) -> str:
    """In sshd's configuration a blank ends a word and a percent sign begins a token."""
    if not _ADDRESS.fullmatch(text):
        raise DriverRejected("ssh_revoked_url: is no plain http(s) address")
    return text


def _path(path: str) -> str:
    if not _PATH.fullmatch(path) or ".." in path.split("/"):
        raise DriverRejected(f"files: {path[:60]!r} is no path")
    return path


def _mode(path: str, mode: str) -> str:
    if not _MODE.fullmatch(mode):
        raise DriverRejected(f"files[{path}]: the mode is written as 0644")
    return mode


def _command(number: int, words: tuple[str, ...]) -> list[str]:
    """A list is run as it is, without a shell; an empty one or an empty program means nothing."""
    if not words or not words[0] or any("\0" in word for word in words):
        raise DriverRejected(f"commands[{number}]: names no program")
    return list(words)
