"""What the embedded running can fail with. Owns one error: a cause and the one line that mends it."""

from __future__ import annotations


class EmbeddedError(Exception):
    """The machine or a started program is not as needed; `mend` is one line a person can act on."""

    def __init__(self, detail: str, *, mend: str = "") -> None:
        """`detail` says what is wrong, `mend` the line that mends it (empty when there is none)."""
        super().__init__(detail)
        self.detail = detail
        self.mend = mend

    def __str__(self) -> str:
        """One or two lines for a terminal."""
        return f"{self.detail}\n  mend: {self.mend}" if self.mend else self.detail
