"""The audit trail of log-in: what the library does becomes events of the person it concerns."""

from __future__ import annotations

from typing import Any, Final

from allauth.mfa import signals
from allauth.mfa.models import Authenticator
from django.http import HttpRequest
from django.utils import timezone

from tenants.models import Person
from tenants.operations import accounts

TOLD_BY_MAIL: Final = {
    "mfa/email/totp_activated": ("factor-added", {"factor": "totp"}),
    "mfa/email/totp_deactivated": ("factor-removed", {"factor": "totp"}),
    "mfa/email/webauthn_added": ("factor-added", {"factor": "passkey"}),
    "mfa/email/webauthn_removed": ("factor-removed", {"factor": "passkey"}),
    "mfa/email/recovery_codes_generated": ("codes-made", {}),
    "socialaccount/email/account_disconnected": ("identity-unlinked", {}),
}
"""The library's notices to a person, by template, and the event each one is."""


def record(happening: str, person: Person, **data: Any) -> None:
    """Append an event that a person himself caused."""
    accounts.record(happening, person_id=person.pk, actor=accounts.as_person(person.pk), now=timezone.now(), **data)


def listen() -> None:
    """Connect to the two happenings that the library tells by signal only."""
    signals.authentication_failed.connect(_failed, dispatch_uid="tenantry.factor-failed")
    signals.authenticator_used.connect(_used, dispatch_uid="tenantry.code-used")


def _failed(*, request: HttpRequest, user: Any, **_more: Any) -> None:  # noqa: ARG001 - the signal's arguments
    if isinstance(user, Person):
        record("factor-failed", user)


def _used(*, user: Any, authenticator: Authenticator, **_more: Any) -> None:
    if isinstance(user, Person) and authenticator.type == Authenticator.Type.RECOVERY_CODES:
        record("code-used", user)
