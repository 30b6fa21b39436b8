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

    def __init__(self, chain: Path, key: Path, *, may_come_later: bool = False) -> None:
        """Load both. Raises `OSError` (`ssl.SSLError` is one) where they cannot be used.

        `may_come_later`: files that are not there yet are waited for, and the context is without them until then.
        """
        self._files: Final = (chain, key)
        self.context: Final = server_context()
        self.is_shown = True
        """Whether the context shows these files; False while something else was loaded into it."""
        self.is_there = True
        """Whether the files have been loaded."""
        self.fingerprint = ""
        """SHA-256 of their certificate, in hexadecimal digits; `""` while they have not been loaded."""
        self._seen: tuple[tuple[int, int, int], ...] = ()
        try:
            self._seen = self._look()
            self.context.load_cert_chain(*self._files)
            self.fingerprint = fingerprint_in(chain.read_bytes())
        except FileNotFoundError:
            if not may_come_later:
                raise
            self.is_there = False

    async def keep(self, *, every_s: float = CHECK_S) -> None:
        """Look for new files again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            if self.is_shown:
                self._take_new()

    def show(self) -> None:
        """Show these files again. What cannot be loaded leaves the context as it is."""
        self.is_shown, self._seen = True, ()
        self._take_new()

    def _take_new(self) -> None:
        try:
            seen = self._look()
            if seen == self._seen:
                return
            # Tried apart first: a pair that does not fit would leave the context in use without any key.
            server_context().load_cert_chain(*self._files)
            self.context.load_cert_chain(*self._files)
            self.fingerprint = fingerprint_in(self._files[0].read_bytes())
        except (OSError, ValueError) as error:
            if not self.is_there and isinstance(error, FileNotFoundError):
                return  # they are waited for
            log.error("the new certificate cannot be used, the last one stays in use: %s", error)  # noqa: TRY400
            return
        self._seen, self.is_there = seen, True
        log.info("callers are shown the new certificate")

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        found = (path.stat() for path in self._files)
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)


def fingerprint_in(chain: bytes) -> str:
    """Return the SHA-256 of the first certificate of a chain, in hexadecimal digits. Raises `ValueError`."""
    text = chain.decode("ascii", errors="replace")
    begin, end = text.index(_BEGIN), text.index(_END) + len(_END)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[begin:end])).hexdigest()


def server_context() -> ssl.SSLContext:
    """Return a context for callers, with no certificate yet."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
