"""The certificate of an endpoint on its page: whom callers trust, until when, what is wrong with it."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.utils import timezone

from tenants.models import AddressCheck, Boundary, Endpoint, GatewayReplica, Provider
from tests.portal.world import build
from tests.tls import Ca

pytestmark = pytest.mark.usefixtures("db")
PAGE = "/t/acme/endpoints/chat"
ADDRESS = "https://chat.acme.models.test/v1"


@pytest.fixture
def world(db):
    made = build()
    made.ca = Ca.make()
    boundary = Boundary.objects.filter(tenant=made.acme.tenant, kind="namespace").get()
    made.now = timezone.now()
    Endpoint.objects.filter(name="chat").update(
        boundary=boundary, phase="Ready", ready_at=made.now, address=ADDRESS, reachable_from="tenant"
    )
    provider = Provider.objects.get(pk=boundary.provider_id)
    provider.config |= {"zone": "models.test", "certificates": "own-ca"}
    ends = (made.now + timedelta(days=900)).isoformat()
    provider.observed |= {"endpoint_tls": {"endpoint-authority": {"ca_pem": made.ca.pem, "not_after": ends}}}
    provider.save()
    told = {"version": "v", "trouble": "", "not_after": (made.now + timedelta(days=20)).isoformat()}
    made.gateway = GatewayReplica.objects.create(
        tenant=made.acme.tenant,
        boundary=boundary,
        created_at=made.now,
        enrolled_at=made.now,
        report={"certificate": told},
    )
    return made


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def test_callers_find_whom_to_trust_beside_the_calls_that_name_the_file(world, browse):
    browser = browse(world.acme.viewer)
    page = browser.get(PAGE)
    file = browser.get(f"{PAGE}/endpoint-ca.pem")

    words = text(page)
    assert f"curl --cacert endpoint-ca.pem {ADDRESS}/chat/completions" in words
    assert 'ssl.create_default_context(cafile="endpoint-ca.pem")' in words
    assert "tenantry address chat --ca > endpoint-ca.pem" in words
    assert "Its certificate ends" in words
    assert (file.status_code, file.content.decode().strip()) == (200, world.ca.pem.strip())
    assert "attachment" in file["Content-Disposition"]
    assert "PRIVATE" not in page.content.decode()


def test_a_certificate_that_runs_out_or_is_missing_is_said(world, browse):
    GatewayReplica.objects.update(report={"certificate": {"version": "v", "trouble": "The authority has ended."}})
    warning = {"key": "certificate", "ok": True, "warns": True, "text": "It ends tomorrow."}
    AddressCheck.objects.create(
        endpoint=Endpoint.objects.get(name="chat"), tenant=world.acme.tenant, address=ADDRESS, ok=True,
        findings=[warning], checked_at=world.now, due_at=world.now,
    )  # fmt: skip

    words = text(browse(world.acme.viewer).get(PAGE))

    assert "Its certificate runs out It ends tomorrow." in words
    assert "A gateway has not got its certificate The authority has ended." in words


def test_where_nobody_special_signs_there_is_no_file(world, browse):
    Provider.objects.update(observed={}, config={})
    browser = browse(world.acme.viewer)

    assert browser.get(f"{PAGE}/endpoint-ca.pem").status_code == 404
    assert f"curl {ADDRESS}/chat/completions" in text(browser.get(PAGE))
