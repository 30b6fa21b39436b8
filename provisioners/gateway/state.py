"""What a gateway keeps on disk: who it is, and the last configuration it accepted.

One folder (0700) per gateway, locked by the process that uses it; the lock goes with the process, however
it ends. Files are replaced whole (write, fsync, rename, fsync of the folder), so a kill at any line leaves the
old or the new one. The enrolment token is here only until enrolment is answered.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final
from uuid import UUID

from provisioners.driver import Secret
from provisioners.gateway import keys
from provisioners.gateway.protocol import ConfigDocument, EnrolAnswer, Envelope, ProtocolError, canonical, parse
from provisioners.gateway.signing import BadSignature, verify

_IDENTITY: Final = "identity.json"
_CONFIG: Final = "config.json"


class StateError(Exception):
    """The folder cannot be used; the text says why and what mends it."""


class ConfigRefused(ProtocolError):
    """A configuration that is well signed but must not be served: older, or not ours."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this gateway is. Secrets are left out of the repr."""

    gateway_uid: str
    credential: str = field(repr=False)
    """Bearer secret towards the control plane, made here; it knows the digest only."""
    token: str = field(default="", repr=False)
    """One-time enrolment token, kept until enrolment is answered so that a kill in between is harmless."""
    boundary_uid: str = ""
    trusted: dict[str, str] = field(default_factory=dict)
    """Pinned public keys: key id to raw key in base64."""
    removed: bool = False
    """The control plane said that this gateway is gone: nothing is served again."""

    @property
    def enrolled(self) -> bool:
        """Whether the control plane has answered the enrolment."""
        return bool(self.boundary_uid)


class StateFolder:
    """The gateway's folder, locked. Not thread-safe: used by the event loop only."""

    def __init__(self, path: Path, gateway_uid: UUID, token: Secret | None) -> None:
        """Open or make `path` for `gateway_uid`.

        A `token` other than what is known starts an enrolment when none is done. Raises `StateError` when
        another process holds the folder, when it belongs to another gateway, or when there is neither an
        identity nor a token.
        """
        self.path: Final = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            message = f"{path} is used by another gateway process; stop that one or give another --state"
            raise StateError(message) from error
        try:
            self.identity = self._open_identity(gateway_uid, token)
        except BaseException:
            self.close()
            raise

    def _open_identity(self, gateway_uid: UUID, token: Secret | None) -> Identity:
        known = self._read_identity()
        if known is not None and known.gateway_uid != str(gateway_uid):
            message = f"{self.path} belongs to gateway {known.gateway_uid}; give {gateway_uid} a folder of its own"
            raise StateError(message)
        if known is not None and (known.enrolled or token is None or known.token == token.reveal()):
            return known
        if token is None:
            message = "not enrolled and no token given: set TENANTRY_GATEWAY_TOKEN to a fresh one-time token"
            raise StateError(message)
        credential = known.credential if known else keys.make_agent_credential(gateway_uid).plain
        fresh = Identity(str(gateway_uid), credential, token.reveal())
        self._write(_IDENTITY, json.dumps(asdict(fresh)).encode())
        return fresh

    @property
    def credential_digest(self) -> str:
        """What the control plane knows our credential by."""
        return keys.digest(self.identity.credential)

    def enrolled(self, answer: EnrolAnswer) -> None:
        """Keep what the control plane answered; forget the token. Raises `ConfigRefused` if it is not for us."""
        if str(answer.gateway_uid) != self.identity.gateway_uid:
            message = "enrolment answer is for another gateway"
            raise ConfigRefused(message)
        self._keep(
            replace(
                self.identity,
                token="",
                boundary_uid=str(answer.boundary_uid),
                trusted={answer.key_id: answer.public_key},
            )
        )

    def accept(self, envelope: Envelope, *, have: ConfigDocument | None) -> ConfigDocument:
        """Check `envelope`, keep it on disk, return its document.

        Raises `BadSignature`, `BadDocument`, or `ConfigRefused` for one that belongs to another gateway or
        boundary, is older than `have`, or has its version but another content.
        """
        document = self._checked(envelope)
        if have is not None and document.version < have.version:
            message = f"version {document.version} is older than {have.version}, which is being served"
            raise ConfigRefused(message)
        if have is not None and document.version == have.version:
            if canonical(document) != canonical(have):
                message = f"version {document.version} came twice with different content"
                raise ConfigRefused(message)
            return have
        self._write(_CONFIG, envelope.model_dump_json().encode())
        # After the configuration: the stored one is signed by a key of the set before, which must still hold if we
        # are killed here; a set that is to be of use names the key that signed it until the next version.
        if document.signing_keys:
            trusted = {key.key_id: key.public_key for key in document.signing_keys}
            if envelope.key_id in trusted and trusted != self.identity.trusted:
                self._keep(replace(self.identity, trusted=trusted))
        return document

    def last_config(self) -> ConfigDocument | None:
        """Return the last accepted configuration, checked again; None where there is none.

        Raises `ProtocolError` if the file does not hold up (it is left in place for people to look at).
        """
        try:
            text = (self.path / _CONFIG).read_bytes()
        except FileNotFoundError:
            return None
        return self._checked(parse(Envelope, text))

    def forget(self) -> None:
        """Keep only that this gateway was removed."""
        self._keep(replace(self.identity, removed=True))
        (self.path / _CONFIG).unlink(missing_ok=True)
        (self.path / "certificate.pem").unlink(missing_ok=True)

    def keep(self, name: str, content: bytes) -> None:
        """Keep one more file, replaced whole and durably, readable for us alone. Raises `OSError`."""
        self._write(name, content)

    def close(self) -> None:
        """Give the folder back."""
        os.close(self._lock)

    def _checked(self, envelope: Envelope) -> ConfigDocument:
        if not self.identity.trusted:
            message = "no key is pinned yet"
            raise BadSignature(message)
        document = verify(envelope, self.identity.trusted)
        if str(document.gateway_uid) != self.identity.gateway_uid:
            message = "configuration is for another gateway"
            raise ConfigRefused(message)
        if str(document.boundary_uid) != self.identity.boundary_uid:
            message = "configuration is for another boundary"
            raise ConfigRefused(message)
        return document

    def _keep(self, identity: Identity) -> None:
        self._write(_IDENTITY, json.dumps(asdict(identity)).encode())
        self.identity = identity

    def _read_identity(self) -> Identity | None:
        try:
            return Identity(**json.loads((self.path / _IDENTITY).read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            message = f"{self.path / _IDENTITY} cannot be read; restore it, or remove the folder and enrol again"
            raise StateError(message) from error

    def _write(self, name: str, content: bytes) -> None:
        """Replace a file durably: whoever reads it later finds the old or the new content, whole."""
        temporary = self.path / f"{name}.new"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        temporary.replace(self.path / name)
        sync_folder(self.path)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
