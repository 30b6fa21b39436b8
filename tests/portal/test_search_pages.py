"""Search: by name, short id, id; nothing foreign; a bounded number of queries."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tenants.models import GpuDevice, Host
from tenants.states import PlatformRole
from tests import factories
from tests.portal.world import CANARY, build

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def world(db):
    return build()


def test_things_are_found_by_part_of_the_name_short_id_and_id(browse, world):
    browser = browse(world.acme.member)
    row = world.acme.endpoint

    for text in ("cha", row.short_id, row.short_id.upper(), str(row.pk)):
        answer = browser.get("/search", {"q": text}).content.decode()
        assert f'href="/t/acme/endpoints/{row.short_id}"' in answer, text
        assert "Acme Works" in answer

    assert f"/t/acme/machines/{world.acme.machine.short_id}" in browser.get("/search?q=box").content.decode()
    assert f"/t/acme/namespaces/{world.acme.namespace.short_id}" in browser.get("/search?q=space").content.decode()
    assert 'href="/t/acme"' in browser.get("/search?q=acme").content.decode()


def test_what_is_foreign_is_not_found_by_any_name(browse, world):
    browser = browse(world.acme.owner)
    foreign = world.foreign

    for text in (foreign.endpoint.short_id, str(foreign.machine.pk), foreign.tenant.short_id, CANARY[:5]):
        answer = browser.get("/search", {"q": text}).content.decode()
        assert "Nothing found" in answer, text
        assert CANARY not in answer, text


def test_hosts_and_gpus_are_for_platform_roles(browse, world):
    host, gpu = Host.objects.get(), GpuDevice.objects.earliest("number")
    auditor = browse(factories.person(platform=(PlatformRole.AUDITOR,)))
    member = browse(world.acme.member)

    assert host.name in auditor.get("/search", {"q": host.short_id}).content.decode()
    assert "GPU 0" in auditor.get("/search", {"q": gpu.short_id}).content.decode()
    assert "Nothing found" in member.get("/search", {"q": host.short_id}).content.decode()
    assert "Nothing found" in member.get("/search", {"q": gpu.short_id}).content.decode()


def test_the_number_of_queries_does_not_grow_with_what_is_found(browse, world):
    browser = browse(world.acme.member)
    browser.get("/search?q=nothing-there")

    with CaptureQueriesContext(connection) as few:
        browser.get("/search?q=nothing-there")
    with CaptureQueriesContext(connection) as many:
        browser.get("/search?q=a")
        browser.get("/search?q=ac")

    assert len(few) < 40
    assert len(many) < 2 * 40


def test_an_odd_question_is_answered(browse, world):
    browser = browse(world.acme.member)

    assert "What are you looking for?" in browser.get("/search").content.decode()
    assert "at least two characters" in browser.get("/search?q=x").content.decode()
    for text in ("%", "%%%", "<script>", "' OR 1=1", "a\0b", "a" * 5000):
        answer = browser.get("/search", {"q": text})
        assert answer.status_code == 200
        assert "<script>alert" not in answer.content.decode()
    assert browse(None).get("/search?q=chat").status_code == 302


def test_hardware_leads_to_its_page(browse, world):
    host, gpu = Host.objects.get(), GpuDevice.objects.earliest("number")
    auditor = browse(factories.person(platform=(PlatformRole.AUDITOR,)))

    assert f'href="/ops/hosts/{host.short_id}"' in auditor.get("/search", {"q": host.short_id}).content.decode()
    assert f'href="/ops/gpus/{gpu.short_id}"' in auditor.get("/search", {"q": gpu.short_id}).content.decode()
