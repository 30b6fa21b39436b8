"""What a driver raises: the class says what happens next, never the text."""

from __future__ import annotations

from typing import Any


class DriverError(Exception):
    """Root of all that a driver raises; the class decides what happens next, never the text."""

    reason = "ProviderError"

    def __init__(self, detail: str, *, raw: str = "", field: str = "") -> None:
        """`detail` is safe to show to a tenant; `raw` is the provider's own text, for operators.

        `field` is the provider's setting or secret to look at: `config.ca_pem`, `secret.token`; `""` for none.
        """
        super().__init__(detail)
        self.detail = detail
        self.raw = raw
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep errors picklable across process borders."""
        return (_rebuild_error, (type(self), self.detail, self.raw, dict(self.__dict__)))


def _rebuild_error(kind: type[DriverError], detail: str, raw: str, state: dict[str, Any]) -> DriverError:
    error = kind(detail, raw=raw)
    error.__dict__.update(state)
    return error


class TransientDriverError(DriverError):
    """Try again later: connection lost, provider busy, time-out. The outcome may be unknown."""

    reason = "ProviderUnavailable"

    def __init__(self, detail: str, *, raw: str = "", field: str = "", retry_after_s: float | None = None) -> None:
        """`retry_after_s` is what the provider asked for, if it did."""
        super().__init__(detail, raw=raw, field=field)
        self.retry_after_s = retry_after_s


class NoCapacity(DriverError):
    """The provider has no room for it right now (for example refused at power-on)."""

    reason = "NoCapacity"


class NotSupported(DriverError):
    """The driver or the provider lacks the capability; stop until the spec changes."""

    reason = "NotSupported"


class DriverRejected(DriverError):
    """The provider refused the spec; stop until the spec changes."""

    reason = "Rejected"


class Conflicting(DriverError):
    """Something that is not ours carries our name; people must look."""

    reason = "NameTaken"
