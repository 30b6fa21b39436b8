"""What machines ask before they let somebody in by SSH: which certificates of their authority count no more.

Public: a machine has no principal of its own, an authority's id is told to its machines only, and serials tell nobody
anything. One line per serial, as `ssh-keygen -k` reads it (OpenSSH, ssh-keygen(1), "KEY REVOCATION LISTS").
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID

from django.http import HttpRequest, HttpResponse

from provisioners.agent_api.views import AgentView
from tenants.actor import AUTH
from tenants.operations import machine_access
from tenants.transactions import reading


class RevokedView(AgentView):
    """Certificates that are not over and count no more."""

    operations: ClassVar[dict[str, str]] = {"GET": "agents.ssh_revoked"}

    def get(self, request: HttpRequest, authority: UUID) -> HttpResponse:
        """Answer 200 with `serial: <number>` lines; none for an authority that nobody has."""
        del request
        with reading(AUTH):
            serials = machine_access.revoked(authority, now=datetime.now(UTC))
        text = "".join(f"serial: {serial}\n" for serial in serials)
        return HttpResponse(text, content_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-store"})
