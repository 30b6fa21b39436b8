"""Shapes of namespaces and of credentials for them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from tenants.api.serializers.base import In, Name, Out
from tenants.api.serializers.capacity import UnitIn
from tenants.api.serializers.products import ProductIn, ProductOut, product
from tenants.models import (
    Namespace,
    NamespaceCredential,
)
from tenants.operations.namespace_access import Answer
from tenants.specs import (
    NamespaceAsk,
)


class NamespacePut(ProductIn):
    """A namespace boundary handed to people (the name stands in the address)."""

    units: Annotated[list[UnitIn], Field(min_length=1, max_length=64)]
    gang: bool = True

    def ask(self, name: str) -> NamespaceAsk:
        """Return the domain's shape."""
        return NamespaceAsk(name, self.capacity(self.units, gang=self.gang), self.labels, self.description)


class NamespaceIn(NamespacePut):
    """A namespace boundary handed to people."""

    name: Name


class NamespaceOut(ProductOut):
    """A namespace boundary handed to people."""

    @classmethod
    def of(cls, row: Namespace) -> NamespaceOut:
        """Return a namespace."""
        return cls(**product(row))


class NamespaceCredentialIn(In):
    """What lets the caller into a namespace."""

    seconds: Annotated[int, Field(ge=60, le=3600, description="How long it is to last.")] = 3600


class CredentialOut(Out):
    """What lets the caller into a namespace: asked for, and answered by a worker some hundred milliseconds later."""

    id: str
    namespace: str
    state: Literal["asked", "made", "refused"]
    error: str
    expires_at: datetime | None
    token: str | None = Field(None, description="For the cluster's API server; shows to the person who asked only.")
    kubeconfig: str | None = Field(None, description="Asks `tenantry kube-credential` for a token; holds no secret.")
    static_kubeconfig: str | None = Field(None, description="Holds the token, and ends with it.")

    @classmethod
    def of(cls, row: NamespaceCredential, answer: Answer | None) -> CredentialOut:
        """Return a credential; its namespace must be loaded."""
        return cls(
            id=str(row.pk),
            namespace=row.namespace.name,
            state="made" if answer is not None else "refused" if row.answered_at is not None else "asked",
            error=row.error,
            expires_at=row.expires_at,
            token=None if answer is None else answer.token,
            kubeconfig=None if answer is None else answer.kubeconfig,
            static_kubeconfig=None if answer is None else answer.static_kubeconfig,
        )
