"""Namespaces, and credentials for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from tenants.api.serializers.base import LabelledQuery, Out, Page, page_of
from tenants.api.serializers.capacity import LabelledIn
from tenants.api.serializers.namespaces import (
    CredentialOut,
    NamespaceCredentialIn,
    NamespaceIn,
    NamespaceOut,
    NamespacePut,
)
from tenants.api.views.base import Answered, Call, reads, writes
from tenants.api.views.filters import labelled
from tenants.api.views.products import ProductView, WithinProduct
from tenants.errors import NotVisible
from tenants.models import (
    Namespace,
    NamespaceCredential,
)
from tenants.operations import (
    namespace_access,
    namespaces,
    replacements,
)

NamespacePage = page_of(NamespaceOut)


class NamespaceView(ProductView):
    """Namespaces."""

    model = Namespace

    def show(self, row: Namespace, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a namespace."""
        return NamespaceOut.of(row)


class NamespacesAnywhere(NamespaceView):
    """Namespaces of all tenants that the caller sees."""

    @reads("namespaces.list", answers=NamespacePage, query=LabelledQuery)
    def get(self, call: Call) -> Page:
        """List namespaces."""
        return self.page(call, labelled(self.rows(call), call), NamespacePage)


class Namespaces(NamespacesAnywhere):
    """Namespaces of one tenant."""

    @writes("namespaces.create", body=NamespaceIn, answers=NamespaceOut, status=201, waitable=True)
    def post(self, call: Call) -> Any:
        """Create a namespace."""
        body: NamespaceIn = call.body
        return namespaces.create(
            tenant=call.home, ask=body.ask(body.name), managed_by=body.managed_by, actor=call.actor, now=call.now
        )


class CredentialView(WithinProduct):
    """What lets people into a namespace."""

    within = Namespace

    def rows(self, call: Call) -> QuerySet[NamespaceCredential]:
        """Return what the caller himself asked for."""
        return NamespaceCredential.objects.filter(
            namespace=call.target, person_id=call.actor.person_id or UUID(int=0)
        ).select_related("namespace")

    def show(self, row: NamespaceCredential, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a credential with its answer, where there is one."""
        return CredentialOut.of(row, namespace_access.unsealed(row))


class Credentials(CredentialView):
    """Asking for one."""

    @writes("namespaces.credential", body=NamespaceCredentialIn, answers=CredentialOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Ask for a credential of one's own in a namespace, for an hour at most; read it at its own address.

        It ends with the membership, whatever its expiry says.
        """
        return namespace_access.ask(namespace=call.target, seconds=call.body.seconds, actor=call.actor, now=call.now)


class CredentialItem(CredentialView):
    """One credential."""

    @reads("namespaces.read_credential", answers=CredentialOut)
    def get(self, call: Call) -> Any:
        """Read a credential that one asked for oneself; it is gone two minutes after the asking."""
        try:
            found = self.rows(call).filter(pk=UUID(call.path["credential"])).first()
        except ValueError:
            found = None
        if found is None:
            raise NotVisible
        return found


class NamespaceItem(NamespaceView):
    """One namespace."""

    key = "name"

    @reads("namespaces.read", answers=NamespaceOut, waitable=True)
    def get(self, call: Call) -> Any:
        """Read a namespace."""
        return call.target

    @writes("namespaces.put", body=NamespacePut, answers=NamespaceOut, versioned=True, waitable=True)
    def put(self, call: Call) -> Any:
        """Create a namespace, or bring the existing one to this. An existing one needs `If-Match`."""
        ask = call.body.ask(call.path["name"])
        who = {"managed_by": call.body.managed_by, "actor": call.actor, "now": call.now}
        if call.target is None:
            return Answered(namespaces.create(tenant=call.home, ask=ask, **who), 201)
        return replacements.replace_namespace(namespace=call.target, ask=ask, version=call.version, **who)

    @writes("namespaces.update", body=LabelledIn, answers=NamespaceOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Change labels or description."""
        return namespaces.update(
            namespace=call.target, changes=call.body.changes(), actor=call.actor, now=call.now, version=call.version
        )

    @writes("namespaces.delete", answers=NamespaceOut, versioned=True, waitable=True)
    def delete(self, call: Call) -> Any:
        """Delete a namespace with everything in it."""
        return namespaces.delete(namespace=call.target, actor=call.actor, now=call.now, version=call.version)
