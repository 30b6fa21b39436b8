"""Who must approve what: stages as data, auto-approval rules, and whether an outcome got worse. Pure.

A kind of request has a list of stages; a tenant's policy (`approvals`) may only add to what stands above it.
A proof is what a decider saw: where it would run, limits before and after, cost, whom it delays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from tenants.states import RequestKind

TENANT_OWNER: Final = "tenant-owner"
PARENT_OWNER: Final = "parent-owner"
PLATFORM_APPROVER: Final = "platform-approver"
DECIDERS: Final = (TENANT_OWNER, PARENT_OWNER, PLATFORM_APPROVER)
MOST_STAGES: Final = 5

DEFAULT_STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    RequestKind.QUOTA.value: (TENANT_OWNER, PLATFORM_APPROVER),
    RequestKind.TENANT.value: (PARENT_OWNER, PLATFORM_APPROVER),
    RequestKind.JOIN.value: (TENANT_OWNER,),
    RequestKind.WRITE_OFF.value: (PLATFORM_APPROVER,),
    RequestKind.MODEL.value: (TENANT_OWNER, PLATFORM_APPROVER),
}
SUPPORTED: Final = frozenset(DEFAULT_STAGES)
OUTCOME_RANK: Final = {"waits": 0, "grants": 1, "runs": 2}
"""What comes of a decision, better is larger: it would wait for room, it grants something, it runs at once."""


# --- stages -----------------------------------------------------------------------------------------


def stages_for(
    kind: str,
    approvals: Sequence[Mapping[str, Sequence[str]]],
    *,
    has_parent: bool,
    owns_tenant: bool,
    owns_parent: bool,
) -> tuple[str, ...]:
    """Return the stages a request must pass, in order; never empty.

    `approvals` are the policies' entries from the root down: the deepest that names the kind holds. A stage is
    left out where there is no such person or where the requester holds it himself; if none is left, the
    platform's approver decides.
    """
    stages: Sequence[str] = DEFAULT_STAGES[kind]
    for level in approvals:
        stages = level.get(kind, stages)
    left_out = {
        *([TENANT_OWNER] if owns_tenant else []),
        *([PARENT_OWNER] if owns_parent or not has_parent else []),
    }
    return tuple(stage for stage in stages if stage not in left_out) or (PLATFORM_APPROVER,)


def approvals_error(value: Any) -> str:
    """Return what is wrong with a policy's `approvals`, `""` if nothing is."""
    if not isinstance(value, Mapping):
        return "Give a list of stages for each kind of request."
    for kind, stages in value.items():
        if kind not in SUPPORTED:
            return f"There are no requests of kind {str(kind)[:40]!r}; known: {', '.join(sorted(SUPPORTED))}."
        if not isinstance(stages, list | tuple) or not 1 <= len(stages) <= MOST_STAGES:
            return f"{kind}: give 1 to {MOST_STAGES} stages."
        if any(stage not in DECIDERS for stage in stages) or len(set(stages)) != len(stages):
            return f"{kind}: each stage is one of {', '.join(DECIDERS)}, and none stands twice."
        if not narrows(kind, stages, {}):
            return f"{kind}: keep {', '.join(DEFAULT_STAGES[kind])}, in this order, and add to it."
    return ""


def narrows(kind: str, stages: Sequence[str], above: Mapping[str, Sequence[str]]) -> bool:
    """Whether `stages` hold everything that the level above asks for, in its order."""
    rest = iter(stages)
    return all(any(have == wanted for have in rest) for wanted in above.get(kind, DEFAULT_STAGES[kind]))


# --- auto-approval ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """Approves small quota requests by itself: every limit given must hold."""

    id: UUID
    name: str
    kind: str
    tenant: UUID | None
    """Only this tenant and its children; None = any."""
    limits: Mapping[str, int]
    """Dimension → the most it adds to one tenant in all; a dimension that is not named is not covered."""
    longest_s: int | None
    granted: Mapping[str, int] = field(default_factory=dict)
    """What it has added to this tenant already and still stands."""

    def covers(
        self, kind: str, path: Sequence[UUID], adds: Mapping[str, int], *, now: datetime, until: datetime | None
    ) -> bool:
        """Whether the rule approves adding `adds` to the tenant of this path until a moment (None: for good)."""
        return self.refusal(kind, path, adds, now=now, until=until) is None

    def refusal(
        self, kind: str, path: Sequence[UUID], adds: Mapping[str, int], *, now: datetime, until: datetime | None
    ) -> Refusal | None:
        """Return the first thing that keeps a request out, None where the rule approves it."""
        if kind != self.kind or not adds or (self.tenant is not None and self.tenant not in path):
            return Refusal(Refused.TENANT)
        if self.longest_s is not None and (until is None or until > now + timedelta(seconds=self.longest_s)):
            return Refusal(Refused.TIME)
        for dimension, amount in sorted(adds.items()):
            if dimension not in self.limits:
                return Refusal(Refused.NOT_NAMED, dimension)
            if self.granted.get(dimension, 0) + amount > self.limits[dimension]:
                return Refusal(Refused.AMOUNT, dimension)
        return None


class Refused(StrEnum):
    """Why a rule leaves a request to people."""

    TENANT = "tenant"
    """Another tenant, or another kind of request."""
    TIME = "time"
    """For longer than the rule allows, or for good."""
    NOT_NAMED = "not-named"
    """It asks for a dimension that the rule does not name."""
    AMOUNT = "amount"
    """More than the rule allows, with what it has granted already."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason, and the dimension it is about."""

    why: Refused
    dimension: str = ""


@dataclass(frozen=True, slots=True)
class PastAsk:
    """A quota request as it was when it was filed."""

    id: UUID
    kind: str
    tenant: UUID
    path: Sequence[UUID]
    adds: Mapping[str, int]
    at: datetime
    until: datetime | None


Grants = Sequence[tuple[Mapping[str, int], datetime | None]]
"""What was added, and until when it stands (None: for good)."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a rule would have done with past requests."""

    approved: tuple[PastAsk, ...]
    refused: tuple[tuple[PastAsk, Refusal], ...]


def replay(rule: Rule, asks: Sequence[PastAsk], granted: Mapping[UUID, Grants] | None = None) -> Replayed:
    """Return what a rule would have done with past requests had it been there, oldest first.

    What it adds counts for the later ones of the same tenant while it stands, as in life; `granted` is what it had
    added to each tenant before the first of them.
    """
    standing = {tenant: list(found) for tenant, found in (granted or {}).items()}
    approved, refused = [], []
    for ask in sorted(asks, key=lambda one: (one.at, one.id)):
        total: dict[str, int] = {}
        for adds, until in standing.get(ask.tenant, ()):
            if until is None or until > ask.at:
                for dimension, amount in adds.items():
                    total[dimension] = total.get(dimension, 0) + amount
        why = replace(rule, granted=total).refusal(ask.kind, ask.path, ask.adds, now=ask.at, until=ask.until)
        if why is None:
            approved.append(ask)
            standing.setdefault(ask.tenant, []).append((ask.adds, ask.until))
        else:
            refused.append((ask, why))
    return Replayed(tuple(approved), tuple(refused))


# --- proofs -------------------------------------------------------------------------------------------


def differences(seen: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return in sentences what got worse since a proof was seen; empty if the outcome is the same or better."""
    worse = []
    before, after = str(seen.get("outcome", "")), str(present["outcome"])
    if OUTCOME_RANK.get(after, 0) < OUTCOME_RANK.get(before, 0):
        worse.append(f"It would have been {_WORDS[before]}; now it {_WORDS_NOW[after]}.")
    cost_before, cost_now = _cost(seen), _cost(present)
    if cost_before is not None and cost_now is not None and cost_now > cost_before:
        worse.append(f"It cost {cost_before}; now it costs {cost_now}.")
    delayed = len(present.get("delays", ())) - len(seen.get("delays", ()))
    if delayed > 0:
        worse.append(f"{delayed} more would have to wait for it.")
    limits = {(line["tenant"], line["dimension"]): line["after"] for line in seen.get("quota", ())}
    for line in present.get("quota", ()):
        known = limits.get((line["tenant"], line["dimension"]))
        if known is not None and line["after"] > known:
            worse.append(
                f"{line['dimension']} of {line['tenant']} would have become {known}; now it becomes {line['after']}."
            )
    return worse


_WORDS: Final = {"runs": "running at once", "grants": "granted", "waits": "waiting"}
_WORDS_NOW: Final = {"runs": "runs at once", "grants": "is granted", "waits": "waits for room"}


def _cost(proof: Mapping[str, Any]) -> Decimal | None:
    cost = proof.get("cost")
    return Decimal(str(cost["total"])) if isinstance(cost, Mapping) else None
