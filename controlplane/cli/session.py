"""One run of `tenantry`: which control plane, as whom, for which tenant, and where the words go."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import typer

from controlplane.cli.client import Client, Json
from controlplane.cli.config import Config, Context, chosen
from controlplane.cli.failures import UsageFault
from controlplane.cli.nouns import Noun
from controlplane.cli.screen import Screen


@dataclass
class Session:
    """What every command gets."""

    screen: Screen
    context_name: str = ""
    url: str = ""
    tenant_word: str = ""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    transport: httpx.BaseTransport | None = None
    """For tests: what answers instead of the network."""
    pause: Callable[[float], None] | None = None
    _client: Client | None = None

    @property
    def config(self) -> Config:
        """The stored contexts."""
        return Config.load(self.environ)

    @property
    def context(self) -> Context:
        """The context in force."""
        return chosen(self.config, self.environ, context=self.context_name, url=self.url, tenant=self.tenant_word)

    @property
    def client(self) -> Client:
        """The caller, made at its first use."""
        if self._client is None:
            self._client = self.client_of(self.context)
        return self._client

    def client_of(self, context: Context) -> Client:
        """Return a caller of another context."""
        client = Client(context.url, context.token, transport=self.transport)
        if self.pause is not None:
            client.pause = self.pause
        return client

    def close(self) -> None:
        """Give connections back."""
        if self._client is not None:
            self._client.close()

    def tenant(self, *, needed: bool = True) -> str:
        """Return the tenant in force: said, stored, or the only one. Raises `UsageFault` when needed and unclear."""
        if found := self.context.tenant:
            return found
        if not needed:
            return ""
        names = [str(tenant["name"]) for tenant in self.client.items("/tenants", most=3)]
        if len(names) == 1:
            return names[0]
        if not names:
            raise UsageFault("you belong to no tenant yet", hint="tenantry request join TENANT --role member")
        raise UsageFault(
            f"of which tenant? You see {', '.join(names)}{' …' if len(names) > 2 else ''}",
            hint=f"tenantry use --tenant {names[0]}",
        )

    def address(self, noun: Noun, name: str) -> str:
        """Return the address of one object."""
        return noun.one(name, tenant=self.tenant() if noun.of_tenant else "")

    def read(self, noun: Noun, name: str) -> Json:
        """Read one object."""
        return self.client.get(self.address(noun, name))


def of(ctx: typer.Context) -> Session:
    """Return the session that the root command made."""
    found: Any = ctx.obj
    if not isinstance(found, Session):  # pragma: no cover - the root callback always runs first
        raise UsageFault("no session")
    return found
