"""Who can do something about a reason or an error, in one sentence each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

YOU: Final = _("You can, by changing what you send.")
YOURSELF: Final = _("You can, on the page of the thing itself.")
NOBODY: Final = _("Nobody has to: it goes on by itself.")
OWNER: Final = _("An owner of the tenant, or of one above it.")
OPERATOR: Final = _("An operator of the platform.")
DECIDER: Final = _("Whoever decides the request: its page says who is next.")
ACCOUNT: Final = _("You can, in your account; an operator can help you back in.")

REASONS: Final[Mapping[str, str | Promise]] = {
    "Done": NOBODY, "AwaitingDecision": DECIDER, "Denied": DECIDER, "OverQuota": OWNER, "NoCapacity": YOURSELF,
    "HeldByOthers": NOBODY, "PolicyForbids": OWNER, "WaitingForPlacement": NOBODY, "WaitingForBoundary": NOBODY,
    "StepRunning": NOBODY, "StepOverdue": OPERATOR, "Starting": NOBODY,
    "Asleep": YOURSELF, "Waking": NOBODY, "Overloaded": YOURSELF, "Replacing": NOBODY,
    "ProviderUnavailable": OPERATOR,
    "ProviderError": OPERATOR, "Rejected": YOURSELF, "NotSupported": YOURSELF, "NameTaken": OPERATOR,
    "Blocked": NOBODY, "InternalError": OPERATOR, "Unhealthy": NOBODY, "HostLost": OPERATOR, "Lost": YOURSELF,
    "WrittenOff": YOURSELF, "ByOperator": OPERATOR, "ByOwner": OWNER, "TermEnded": YOURSELF, "Grace": YOURSELF,
    "ReviewOverdue": YOURSELF,
}  # fmt: skip
BY_PERSON: Final[tuple[tuple[str | Promise, frozenset[str]], ...]] = (
    (
        ACCOUNT,
        frozenset({
            "unauthenticated", "second-factor", "token-read-only", "token-narrowed", "no-token", "too-many-tokens",
            "weak-password", "wrong-password", "left", "own-account",
        }),
    ),
    (
        OWNER,
        frozenset({
            "forbidden", "quota-exceeded", "policy-forbids", "policy-widens", "inherits", "beyond-parent",
            "tenant-closing", "tenant-closed", "above-you", "not-above", "last-owner", "too-many-invitations",
            "not-a-member", "member-already", "not-active", "too-many-webhooks", "requester-gone", "link-closed",
            "not-owner",
        }),
    ),
    (
        OPERATOR,
        frozenset({
            "dependency-down", "internal", "unknown-person", "no-parent", "tenant-suspended", "not-suspended", "in-use",
            "not-free", "host-state", "plan-running", "plan-state", "device-healthy", "provider-enabled", "not-placed",
            "resolved", "wrong-action", "secret-in-config", "not-pinned", "config-needed", "model-refused",
            "staged-already", "model-retired",
            "not-priced", "other-currency",
            "price-list-exists", "in-the-past", "last-operator", "own-roles", "not-left", "email-taken", "gone",
            "unknown-rule", "not-a-demo",
        }),
    ),
    (
        DECIDER,
        frozenset({
            "outcome-worse", "own-request", "not-your-stage", "decided", "decision-refused", "asked-already",
            "more-than-asked", "nothing-left", "no-longer-needed",
        }),
    ),
    (NOBODY, frozenset({"busy", "idempotency-running", "rate-limited", "deleting"})),
)  # fmt: skip
"""Who, and which errors; all others are for whoever sent them."""


def of_reason(code: str) -> str:
    """Return who can do something about a reason; `""` for one that is unknown."""
    return str(REASONS.get(code, ""))


def of_error(code: str) -> str:
    """Return who can do something about an error."""
    return str(next((who for who, codes in BY_PERSON if code in codes), YOU))
