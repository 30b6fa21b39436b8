"""`/agent/v1/certificate`: where a gateway that ends TLS gets the certificate of its tenant."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

from django.http import HttpRequest, HttpResponse

from provisioners.agent_api.views import AgentView, as_json, authenticated, document, refuse_other
from provisioners.gateway.protocol import CertificateAnswer, CertificateRequest
from tenants import endpoint_trust
from tenants.models import GatewayReplica
from tenants.operations import endpoint_certificates
from tenants.transactions import reading


class CertificateView(AgentView):
    """Where a gateway brings its public key and takes its certificate."""

    operations: ClassVar[dict[str, str]] = {"POST": "agents.certificate"}

    def post(self, request: HttpRequest) -> HttpResponse:
        """Answer 200 with a certificate for the names of the gateway's tenant, 404 where none is given from here."""
        actor = authenticated(request)
        asked = document(request, CertificateRequest)
        refuse_other(asked.gateway_uid, actor)
        with reading(actor):
            # Read first: what is made afterwards is this version or a later one, and then it is asked for once more.
            rows = GatewayReplica.objects.select_related("boundary__provider", "tenant")
            row = rows.filter(pk=asked.gateway_uid).first()
            version = "" if row is None else endpoint_trust.version_of(row.boundary.provider, row.tenant.name)
        made = endpoint_certificates.issue(
            gateway=asked.gateway_uid, request_pem=asked.request_pem, actor=actor, now=datetime.now(UTC)
        )
        return as_json(
            CertificateAnswer(chain_pem=made.chain_pem, key_pem=made.key_pem, version=version or "0" * 64), secret=True
        )
