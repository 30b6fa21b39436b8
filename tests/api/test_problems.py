"""Every error is problem+json with a documented code, whatever went wrong and wherever."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.db import OperationalError

from tenants import problems
from tenants.error_codes import HELP
from tenants.errors import ControlPlaneError, DependencyDown, RateLimited
from tests import factories
from tests.api.client import Api

pytestmark = pytest.mark.usefixtures("db")

ROOT = Path(__file__).resolve().parents[2]


def test_an_unknown_address_is_a_problem(api):
    answer = api(None).get("/api/v1/nothing/here")

    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.body == {
        "type": "/api/errors/no-route",
        "title": "There is no such object, or you may not see it",
        "status": 404,
        "detail": "There is no operation at this address.",
        "code": "no-route",
        "errors": [],
    }


def test_a_wrong_method_is_a_problem_that_lists_the_right_ones(api):
    answer = api(factories.person())("DELETE", "who")

    assert (answer.status, answer.body["code"]) == (405, "method-not-allowed")
    assert "GET" in answer.headers["Allow"]


def test_an_unwanted_representation_is_refused(api):
    answer = api(factories.person()).get("who", accept="text/csv")

    assert (answer.status, answer.body["code"]) == (406, "not-acceptable")


def test_no_proof_and_a_wrong_proof_look_alike(api):
    without = api(None).get("who")
    wrong = Api("tnt_test_aaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbcccccc").get("who")

    assert without.status == wrong.status == 401
    assert without.raw == wrong.raw
    assert without.headers["WWW-Authenticate"] == wrong.headers["WWW-Authenticate"] == 'Bearer realm="tenantry"'


def test_a_bug_is_answered_with_an_id_and_without_its_cause(api, monkeypatch, caplog):
    from tenants.api.views.people import Who

    def broken(self, call):
        raise ZeroDivisionError("secret of the house")

    me = api(factories.person())
    monkeypatch.setattr("tenants.access.people_data", lambda _: broken(None, None))
    answer = me.get("who")

    assert Who
    assert answer.status == 500
    assert answer.body["code"] == "internal"
    assert b"secret" not in answer.raw
    assert b"ZeroDivision" not in answer.raw
    record = next(r for r in caplog.records if r.name == "tenants.api")
    assert record.request_id == answer.body["request_id"] == answer.headers["X-Request-Id"]


@pytest.mark.parametrize("error", [DependencyDown(), OperationalError("server closed the connection")])
def test_a_database_that_is_away_is_503_with_retry_after(api, monkeypatch, error):
    me = api(factories.person())

    def away(*args, **kwargs):
        raise error

    monkeypatch.setattr("tenants.tokens.resolve", away)
    answer = me.get("who")

    assert (answer.status, answer.body["code"]) == (503, "dependency-down")
    assert answer.headers["Retry-After"] == "2"


def test_rate_limits_say_how_long_to_wait():
    assert problems.headers(RateLimited(retry_after_s=7)) == {"Retry-After": "7"}


def test_ready_names_what_is_away(api, monkeypatch):
    assert api(None).get("/readyz").body == {"status": "ready", "postgresql": "ok"}
    assert api(None).get("/healthz").status == 200

    def away(actor):
        raise DependencyDown

    monkeypatch.setattr("controlplane.health.acting", away)
    answer = api(None).get("/readyz")
    assert (answer.status, answer.body["data"]) == (503, {"dependency": "postgresql"})


def test_every_code_that_anything_raises_has_help():
    raised = set()
    for path in (ROOT / "tenants").rglob("*.py"):
        raised |= set(re.findall(r'code="([a-z][a-z-]+)"', path.read_text()))
    pending = [ControlPlaneError]
    while pending:
        found = pending.pop()
        pending += found.__subclasses__()
        raised.add(found.code)

    assert raised - set(HELP) == {"error"}


def test_the_help_pages_and_the_document_show_every_code(api):
    assert (ROOT / "docs" / "errors.md").read_text() == problems.help_document()
    page = api(None).get("/api/errors/quota-exceeded")
    assert page.status == 200
    assert b"ready-made request" in page.raw
    assert api(None).get("/api/errors/no-such-code").status == 404
