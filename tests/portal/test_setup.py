"""Set-up: the one-time link leads there, and each line ticks itself from what is there."""

from __future__ import annotations

import html
import re

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tenants.models import PriceList
from tenants.states import PlatformRole
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def operator():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


def lines(answer) -> dict[str, str]:
    """Return title → what stands beside it."""
    body = answer.content.decode()
    found = re.findall(
        r"badge-word\">([^<]+)<.*?<strong>([^<]+)</strong> <span class=\"muted small\">([^<]*)<", body, re.DOTALL
    )
    return {html.unescape(title): f"{state}: {html.unescape(said)}" for state, title, said in found}


def test_a_new_installation_has_everything_to_do_but_its_operator(browse, operator):
    assert lines(browse(operator).get("/ops/setup")) == {
        "First operator": "done: 1 operator",
        "Your second factor": "to do: you have none",
        "A second operator, an approver": "to do: 1 operator, 0 approvers",
        "A provider": "to do: none",
        "A host that is open": "to do: 0 open",
        "A price list": "to do: none: costs show as --",
        "A model to serve": "to do: 0 offered",
        "The first tenant": "to do: 0 there",
        "Mail that arrives": "to do: no mail server; links are shown to whoever makes them",
        "A backup that was restored once": "not seen: cannot be seen from here",
    }


def test_lines_tick_themselves_from_the_facts(browse, operator):
    factories.person(platform=(PlatformRole.OPERATOR,))
    factories.person(platform=(PlatformRole.APPROVER,))
    factories.host(factories.provider(name="berlin"))
    factories.served_model()
    factories.tenant()
    PriceList.objects.create(name="Prices of 2026", valid_from=NOW, created_at=NOW)

    shown = lines(browse(operator).get("/ops/setup"))

    assert shown["A second operator, an approver"] == "done: 2 operators, 1 approver"
    assert shown["A provider"] == "done: berlin"
    assert shown["A host that is open"] == "done: 1 open"
    assert shown["A price list"] == "done: Prices of 2026"
    assert shown["A model to serve"] == "done: 1 offered"
    assert shown["The first tenant"] == "done: 1 there"


def test_a_provider_that_does_not_answer_is_still_to_do(browse, operator):
    provider = factories.provider(name="berlin")
    type(provider).objects.filter(pk=provider.pk).update(healthy=False)

    assert lines(browse(operator).get("/ops/setup"))["A provider"] == "to do: none that answers"


def test_it_costs_as_many_queries_for_forty_tenants_as_for_one(browse, operator):
    browser = browse(operator)

    def cost(count):
        for _ in range(count):
            factories.tenant()
        with CaptureQueriesContext(connection) as queries:
            browser.get("/ops/setup")
        return len(queries)

    cost(1)
    assert cost(1) == cost(40)


def test_only_operators_see_it(browse):
    owner = factories.member(factories.tenant())
    approver = factories.person(platform=(PlatformRole.APPROVER,))

    answers = [browse(who).get("/ops/setup").status_code for who in (None, owner, approver)]

    assert answers == [302, 403, 403]


def test_the_one_time_link_makes_the_first_operator_and_leads_to_the_checklist(browse, capsys):
    call_command("bootstrap", "--first-link")
    address = re.search(r"/accounts/link/[\w-]+/", capsys.readouterr().out)[0]
    visitor = browse(None)

    visitor.get(address)
    done = visitor.post(
        "/accounts/link/", {"email": "ole@example.org", "display_name": "Ole", "password": "a-long-enough-secret"}
    )
    shown = visitor.get(done["Location"])

    assert (done.status_code, done["Location"]) == (302, "/ops/setup")
    assert lines(shown)["First operator"] == "done: 1 operator"
