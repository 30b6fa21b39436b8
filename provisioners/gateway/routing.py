"""A configuration made ready for answering requests: who may call what, and where it goes. Pure.

Built once per configuration and swapped whole, so a request sees one version from beginning to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from provisioners.gateway import keys
from provisioners.gateway.limits import Scope
from provisioners.gateway.protocol import BudgetConfig, ConfigDocument, EndpointConfig, EndpointKey, KeyScope

_NOBODY: Final = "0" * 64
"""Compared with when no key was shown or its id is unknown, so that both take the same time."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One endpoint key that opens one endpoint."""

    key_id: str
    digest: str
    scopes: frozenset[KeyScope]
    ends_at: float
    """Unix seconds at which it stops opening anything (expiry or revocation); infinity without one."""
    endpoint: EndpointConfig
    key: EndpointKey

    @property
    def rates(self) -> Scope:
        """Return the key's own limits."""
        return Scope(f"key:{self.key.limits_id or self.key_id}", "this key", self.key.rates)

    def allows(self, scope: KeyScope) -> bool:
        """Say whether the key may do `scope`."""
        return scope in self.scopes or KeyScope.INFERENCE in self.scopes


class Routing:
    """Look-ups over one configuration."""

    def __init__(self, document: ConfigDocument) -> None:
        """Index `document`. The first endpoint wins where two claim one model or host name."""
        self.version: Final = document.version
        self.issued_at: Final = document.issued_at
        self.endpoints: Final = document.endpoints
        self.tenant_rates: Final = Scope("tenant", "this tenant", document.rates)
        self._by_model: dict[str, EndpointConfig] = {}
        self._by_host: dict[str, EndpointConfig] = {}
        self._by_uid: Final = {endpoint.uid: endpoint for endpoint in document.endpoints}
        grants: dict[str, list[Grant]] = {}
        for endpoint in document.endpoints:
            for model in endpoint.models:
                self._by_model.setdefault(model, endpoint)
            for host in endpoint.hosts:
                self._by_host.setdefault(host.lower(), endpoint)
            for key in endpoint.keys:
                grants.setdefault(key.id, []).append(_grant(key, endpoint))
        self._grants: Final = {key_id: tuple(found) for key_id, found in grants.items()}
        self.rate_scopes: Final = frozenset(
            {"tenant", *(f"key:{key.limits_id or key.id}" for endpoint in document.endpoints for key in endpoint.keys)}
        )
        self.tenant_budgets: Final = document.budgets
        self._nothing: Final = tuple(
            _grant(EndpointKey(id="-", digest=_NOBODY), endpoint) for endpoint in document.endpoints[:1]
        )

    def judge(self, authorization: Iterable[str], *, now: float) -> tuple[Grant, ...]:
        """Return the grants that the `Authorization` header values open at `now` (Unix seconds).

        Empty alike for no key, several, a malformed, unknown, wrong, expired or revoked one; every case
        hashes once and compares once or more, so that time tells them apart no better than the answer.
        """
        shown = list(authorization)
        scheme, _, plain = shown[0].partition(" ") if len(shown) == 1 else ("", "", "")
        try:
            presented = keys.parse(plain.strip())
        except keys.MalformedKey:
            presented = keys.PresentedKey("", "", keys.digest(plain))
        bearer = scheme.lower() == "bearer"
        candidates = self._grants.get(presented.id, self._nothing)
        return tuple(
            grant
            for grant in candidates
            # One comparison without short cut: the digest is compared whatever the rest says.
            if keys.equal(grant.digest, presented.digest) & bearer & (now < grant.ends_at)
        )

    def still_opens(self, grant: Grant, *, now: float) -> bool:
        """Say whether what an earlier configuration granted holds in this one as well, at `now`."""
        return any(
            each.endpoint.uid == grant.endpoint.uid and keys.equal(each.digest, grant.digest) and now < each.ends_at
            for each in self._grants.get(grant.key_id, ())
        )

    def select(self, *, host: str, model: str) -> EndpointConfig | None:
        """Return the endpoint meant by `Host` header value and `model`; None where they name none together."""
        by_host = self._by_host.get(_host_name(host))
        if by_host is not None:
            return by_host if model in by_host.models else None
        return self._by_model.get(model)

    def endpoint(self, uid: UUID) -> EndpointConfig | None:
        """Return an endpoint by its id; None where it is not served any more."""
        return self._by_uid.get(uid)

    def host_is_foreign(self, host: str, endpoint: EndpointConfig) -> bool:
        """Say whether `host` is the name of another endpoint than `endpoint`."""
        named = self._by_host.get(_host_name(host))
        return named is not None and named.uid != endpoint.uid


def budgets_of(document: ConfigDocument) -> Iterator[BudgetConfig]:
    """Yield every budget that a configuration names."""
    yield from document.budgets
    for endpoint in document.endpoints:
        for key in endpoint.keys:
            yield from key.budgets


def nano_at(endpoint: EndpointConfig, moment: datetime) -> int:
    """Return what a token costs at an endpoint, in billionths of the currency."""
    return next((price.nano for price in reversed(endpoint.token_prices) if price.starts_at <= moment), 0)


def _host_name(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def _grant(key: EndpointKey, endpoint: EndpointConfig) -> Grant:
    ends = [moment.timestamp() for moment in (key.expires_at, key.revoked_at) if moment is not None]
    return Grant(key.id, key.digest, frozenset(key.scopes), min(ends, default=float("inf")), endpoint, key)
