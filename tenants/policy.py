"""A tenant's policy: what its path allows together. Pure.

A policy narrows: a level's list is what remains allowed there and below; absent means inherited, and absent on the
whole path means everything, but for what the platform itself allows only where a policy says so (`STANDARD`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tenants.states import Login

LIST_KEYS: Final = ("sites", "tiers", "products", "models", "runtimes", "logins")
RATE_KEYS: Final = ("requests_per_minute", "tokens_per_minute")
"""How much may be asked of all endpoints of one tenant together; a tenant above says it of each one below."""
NUMBER_KEYS: Final = ("longest_s", *RATE_KEYS)
KEYS: Final = (*LIST_KEYS, *NUMBER_KEYS)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule in force, and who set it: a tenant, or with an empty name the platform."""

    key: str
    tenant: str
    allowed: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Return it for people."""
        if not self.tenant:
            return f"Without a policy that says otherwise only these {self.key} are allowed: {', '.join(self.allowed)}."
        return f"The policy of {self.tenant} allows only these {self.key}: {', '.join(self.allowed) or 'none'}."


STANDARD: Final[Mapping[str, Rule]] = {"logins": Rule("logins", "", (Login.CERTIFICATE.value,))}
"""What holds for a list that no level of a path has: keys that stay on a machine outlive whoever brought them."""


@dataclass(frozen=True, slots=True)
class Most:
    """The smallest of a number's limits on a path, and who set it."""

    number: int
    tenant: str


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """What a path of tenants allows."""

    rules: Mapping[str, Rule] = field(default_factory=dict)
    most: Mapping[str, Most] = field(default_factory=dict)
    """By key of `NUMBER_KEYS`; absent: no limit."""

    @property
    def longest_s(self) -> int | None:
        """Return the longest term; None for any."""
        found = self.most.get("longest_s")
        return found.number if found is not None else None

    @property
    def longest_by(self) -> str:
        """Return who says so; `""` for nobody."""
        found = self.most.get("longest_s")
        return found.tenant if found is not None else ""

    def forbids(self, key: str, value: str) -> Rule | None:
        """Return the rule that forbids a value, None when it is allowed."""
        rule = self.rules.get(key) or STANDARD.get(key)
        return rule if rule is not None and value not in rule.allowed else None

    def bars(self, key: str, value: str) -> Rule | None:
        """Return the rule by which a policy further down cannot allow a value; the platform's standard it may widen."""
        return self.forbids(key, value) if key in self.rules else None


def effective_policy(levels: Sequence[tuple[str, Mapping[str, Any]]]) -> EffectivePolicy:
    """Fold (tenant name, policy) from the root down into what is allowed: lists intersect, numbers take the least."""
    rules: dict[str, Rule] = {}
    most: dict[str, Most] = {}
    for name, policy in levels:
        for key in LIST_KEYS:
            if key not in policy:
                continue
            allowed = tuple(policy[key])
            before = rules.get(key)
            if before is not None:
                allowed = tuple(v for v in allowed if v in before.allowed)
            rules[key] = Rule(key, name, allowed)
        for key in NUMBER_KEYS:
            number = policy.get(key)
            if number is not None and (key not in most or number < most[key].number):
                most[key] = Most(int(number), name)
    return EffectivePolicy(rules, most)
