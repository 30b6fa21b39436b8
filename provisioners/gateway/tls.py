"""The certificate that callers are shown: loaded at the start, and again whenever its files are replaced.

Whoever renews it (cert-manager, a person) only replaces the files. Open connections go on with what they began with.
Files that do not fit together, as in the middle of being replaced, leave the last good pair in use and are looked at
again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from pathlib import Path
from typing import Final

log = logging.getLogger("tenantry.gateway")

CHECK_S: Final = 10.0
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"


class Certificate:
    """A chain and its key on disk, and the context that shows them."""

    def __init__(self, chain: Path, key: Path) -> None:
        """Load both. Raises `OSError` (`ssl.SSLError` is one) where they cannot be used."""
        self._files: Final = (chain, key)
        self.context: Final = _server_context()
        self._seen = self._look()
        self.context.load_cert_chain(*self._files)
        self.fingerprint = _fingerprint(chain)
        """SHA-256 of the certificate that is shown, in hexadecimal digits."""

    async def keep(self, *, every_s: float = CHECK_S) -> None:
        """Look for new files again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            self._take_new()

    def _take_new(self) -> None:
        try:
            seen = self._look()
            if seen == self._seen:
                return
            # Tried apart first: a pair that does not fit would leave the context in use without any key.
            _server_context().load_cert_chain(*self._files)
            self.context.load_cert_chain(*self._files)
            self.fingerprint = _fingerprint(self._files[0])
        except (OSError, ValueError) as error:
            log.error("the new certificate cannot be used, the last one stays in use: %s", error)  # noqa: TRY400
            return
        self._seen = seen
        log.info("callers are shown the new certificate")

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        found = (path.stat() for path in self._files)
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)


def _fingerprint(chain: Path) -> str:
    """Return the digest of the first certificate of a chain. Raises `OSError`, `ValueError`."""
    text = chain.read_text(encoding="ascii", errors="replace")
    begin, end = text.index(_BEGIN), text.index(_END) + len(_END)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[begin:end])).hexdigest()


def _server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
