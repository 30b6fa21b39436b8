"""`tenantry ssh MACHINE`: a key made for this login, a certificate that opens that machine, and the system's own ssh.

The key lives in a folder that nobody else can read and goes with it. Host keys are kept in a file of our own under the
machine's id, so a machine that got another address is still the same one, and one with the same address is not.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from controlplane.cli import session
from controlplane.cli.client import Json
from controlplane.cli.config import config_path
from controlplane.cli.failures import CliError, UsageFault
from controlplane.cli.nouns import noun

INSTALL: Final = "apt-get install openssh-client"
KNOWN_HOSTS: Final = "known_hosts"
KEYS: Final = "ssh"
KEYGEN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Key:
    """A private key, its public half and the certificate beside it."""

    private: Path

    @property
    def public(self) -> Path:
        """The public half."""
        return self.private.with_name(f"{self.private.name}.pub")

    @property
    def certificate(self) -> Path:
        """Where ssh looks for the certificate of this key."""
        return self.private.with_name(f"{self.private.name}-cert.pub")


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command("ssh")(ssh)


def ssh(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MACHINE", help="A machine, by name or id.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="What to run there; without one, a shell.")
    ] = None,
    shown: Annotated[
        bool, typer.Option("--print", help="Do not log in: write key and certificate, and print the command.")
    ] = False,
    certificate_only: Annotated[
        bool, typer.Option("--certificate-only", help="Only sign a key; print the certificate.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(help="A private key of yours, with its .pub beside it; default: a new one."),
    ] = None,
) -> None:
    """Log in to a machine by SSH, with a certificate that opens it for some minutes."""
    here = session.of(ctx)
    kind, _slash, rest = name.partition("/")
    machine = rest if rest and noun(kind).name == "machines" else name
    if shown and certificate_only:
        raise UsageFault("--print and --certificate-only: choose one")
    if machine.startswith(".") or not all(letter.isalnum() or letter in "-_." for letter in machine):
        raise UsageFault("name a machine as `tenantry get machines` does")
    programs = Programs.found(here.environ, login=not certificate_only, keygen=key is None)
    with _folder_for(here, machine, keep=shown or certificate_only) as folder:
        pair = Key(key) if key is not None else programs.new_key(folder)
        answer = _certificate(here, machine, pair)
        certificate = Key(folder / pair.private.name).certificate
        _private_file(certificate, answer["certificate"])
        words = login_command(
            answer, private=pair.private, certificate=certificate, known=_known(here), command=command or ()
        )
        if certificate_only:
            _show(here, answer, certificate)
        elif shown:
            here.screen.line(shlex.join(words))
            here.screen.note(f"the certificate ends {answer['expires_at']}; a session goes on after it")
        else:
            raise typer.Exit(programs.run(words))


def _show(here: session.Session, answer: Json, certificate: Path) -> None:
    if here.screen.format != "table":
        here.screen.document(answer)
        return
    here.screen.line(answer["certificate"])
    here.screen.note(f"in {certificate}; it ends {answer['expires_at']}")


def login_command(answer: Json, *, private: Path, certificate: Path, known: Path, command: Sequence[str]) -> list[str]:
    """Return the words that log in: this key and no other one, this machine's host key and no other one."""
    options = {
        "CertificateFile": certificate,
        "IdentitiesOnly": "yes",
        "PreferredAuthentications": "publickey",
        "HostKeyAlias": answer["principal"],
        "UserKnownHostsFile": known,
        "StrictHostKeyChecking": "accept-new",
    }
    words = ["ssh", "-i", str(private)]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    return [*words, "-p", str(answer["port"]), "-l", str(answer["login"]), "--", str(answer["host"]), *command]


@dataclass(frozen=True, slots=True)
class Programs:
    """What OpenSSH brings, as this machine has it."""

    ssh: str
    keygen: str
    environ: Mapping[str, str]

    @classmethod
    def found(cls, environ: Mapping[str, str], *, login: bool, keygen: bool) -> Programs:
        """Return them. Raises `UsageFault` for one that is needed and not there."""
        where = {name: shutil.which(name, path=environ.get("PATH", os.defpath)) or "" for name in ("ssh", "ssh-keygen")}
        for name, is_needed in (("ssh", login), ("ssh-keygen", keygen)):
            if is_needed and not where[name]:
                raise UsageFault(f"{name} is not on this machine: it is part of OpenSSH", hint=INSTALL)
        return cls(where["ssh"], where["ssh-keygen"], environ)

    def new_key(self, folder: Path) -> Key:
        """Make a key pair in a folder. Raises `CliError`."""
        made = Key(folder / "key")
        for old in (made.private, made.public, made.certificate):
            old.unlink(missing_ok=True)
        words = [self.keygen, "-q", "-t", "ed25519", "-N", "", "-C", "tenantry", "-f", str(made.private)]
        try:
            subprocess.run(words, check=True, capture_output=True, timeout=KEYGEN_S, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError) as error:
            raise CliError(f"no key could be made in {folder}: {type(error).__name__}") from error
        return made

    def run(self, words: Sequence[str]) -> int:
        """Run ssh in the foreground; return its exit status. Ctrl+C is for whatever runs at the other end."""
        child = subprocess.Popen([self.ssh, *words[1:]], env=dict(self.environ))
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return child.wait()
        finally:
            signal.signal(signal.SIGINT, before)


def _certificate(here: session.Session, machine: str, pair: Key) -> Json:
    """Have the public half signed. Raises `CliError`."""
    try:
        public = pair.public.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageFault(f"{pair.public} cannot be read: {type(error).__name__}") from error
    path = f"{noun('machines').collection(tenant=here.tenant())}/{machine}/ssh-certificates"
    found: Json = here.client.post(path, {"public_key": public}).body
    if not found.get("certificate"):
        raise CliError(f"machine/{machine}: no certificate came", hint=f"tenantry explain machine/{machine}")
    return found


def _known(here: session.Session) -> Path:
    folder = config_path(here.environ).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / KNOWN_HOSTS


@contextmanager
def _folder_for(here: session.Session, machine: str, *, keep: bool) -> Iterator[Path]:
    """Give a folder that only its owner can read: one of the machine's that stays, or one that goes with all in it."""
    if not keep:
        with tempfile.TemporaryDirectory(prefix="tenantry-ssh-") as name:
            yield Path(name)
        return
    folder = config_path(here.environ).parent / KEYS / here.tenant() / machine
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    yield folder


def _private_file(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text.rstrip("\n") + "\n")
