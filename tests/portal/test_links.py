"""Links of the portal: everything that is shown can be opened, and every page is linked from somewhere."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

from frontend import urls
from frontend.kernel.page import routes
from tests.portal import lived_in
from tests.portal.lived_in import LivedIn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TITLE = r"<title>\s*(.*?)\s*</title>"
OWN = r"<style\b|\sstyle=|\son[a-z]+=\"|<script(?![^>]*(?:\bsrc=|application/json))[^>]*>"
NOT_LINKED = {
    "t/<str:tenant>/live": "a stream that a page listens to",
    "t/<str:tenant>/live/<str:kind>/<uuid:key>": "a stream that a page listens to",
    "t/<str:tenant>/renew/done": "the answer to a renewal",
    "t/<str:tenant>/endpoints/<str:name>/load/live": "a stream that a page listens to",
    "t/<str:tenant>/endpoints/<str:name>/logs/<uuid:log>": "a part that a page fetches by itself, for minutes",
    "t/<str:tenant>/endpoints/<str:name>/endpoint-ca.pem": "a file, linked where callers need an authority",
    "t/<str:tenant>/machines/<str:name>/console/<uuid:console>": "where a form leads, for a minute",
}
"""Routes that answer GET and that no link leads to, each with its reason."""


@pytest.fixture(scope="module")
def found(superuser, _cleaner, django_db_blocker) -> Iterator[LivedIn]:
    with django_db_blocker.unblock(), lived_in.lived_in(_cleaner, superuser) as there:
        yield there


def test_no_link_leads_to_an_error(found):
    broken = [
        f"{who}: {one.via} → {one.path} {one.answer.status}"
        for who, seen in found.seen.items()
        for one in seen
        if one.answer.status >= 400
    ]

    assert "\n".join(broken) == ""


def test_every_page_is_reached_by_links(found):
    looking = {path for path, declared in routes(urls.urlpatterns) if declared and "GET" in declared.methods}

    assert sorted(looking - found.routes() - set(NOT_LINKED)) == []
    assert set(NOT_LINKED) <= looking


def test_every_page_has_a_title_and_one_first_heading_and_no_style_or_script_of_its_own(found):
    wrong = []

    for who, seen in found.seen.items():
        for one in (each for each in seen if each.is_page):
            body = one.answer.body
            titles = re.findall(TITLE, body.partition("</head>")[0], re.DOTALL)
            if len(titles) != 1 or not titles[0].removesuffix("· Tenantry").strip():
                wrong.append(f"{who} {one.path}: titles {titles}")
            if len(re.findall(r"<h1\b", body)) != 1:
                wrong.append(f"{who} {one.path}: {len(re.findall(r'<h1', body))} first headings")
            if hits := re.findall(OWN, body):
                wrong.append(f"{who} {one.path}: {sorted(set(hits))}")

    assert "\n".join(wrong) == ""


def test_pages_of_one_person_have_titles_of_their_own(found):
    shared = []

    for who, seen in found.seen.items():
        titles = defaultdict(set)
        for one in (each for each in seen if each.is_page and "?" not in each.path):
            title = re.search(TITLE, one.answer.body, re.DOTALL)
            titles[title[1]].add(one.route)
        shared += [f"{who}: {title}: {sorted(of)}" for title, of in titles.items() if len(of) > 1]

    assert "\n".join(shared) == ""


def test_whole_pages_and_not_fragments_are_what_people_open(found):
    first = [one for one in found.seen["mia"] if one.is_page]

    assert len({one.route for one in first}) >= 25
