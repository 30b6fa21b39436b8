"""Exports: what the filters show, exactly, safe for spreadsheets, and honest where it is not all."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from frontend.kernel import lists
from tests.portal.world import World, build


def table(body: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(body)))


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+49 30", "-2", "@sum", "\tx", "\rx", "\n=x", "  =1+1", "＝1", "＋1", "－1", "＠x"],
)
def test_a_text_that_a_spreadsheet_would_run_is_made_text(text):
    answer = lists.exported([{"name": text}], ["name"], name="x", form="csv")

    assert table(answer.content.decode())[1:] == [[f"'{text}"]]


def test_numbers_and_moments_stay_what_they_are():
    row = {"n": Decimal("-1.50"), "at": datetime(2026, 6, 1, tzinfo=UTC), "none": None, "text": 'a, "b"\nc'}

    answer = lists.exported([row], list(row), name="x", form="csv")

    assert table(answer.content.decode()) == [list(row), ["-1.50", "2026-06-01T00:00:00+00:00", "", 'a, "b"\nc']]
    assert json.loads(lists.exported([row], ["n", "none"], name="x", form="json").content) == [
        {"n": "-1.50", "none": None}
    ]


def test_a_file_that_is_not_all_says_so_in_its_name():
    rows = [{"n": number} for number in range(4)]

    cut = lists.exported(rows, ["n"], name="mine", form="json", most=3)
    whole = lists.exported(rows, ["n"], name="mine", form="json", most=None)

    assert cut["Content-Disposition"] == 'attachment; filename="mine-first-3.json"'
    assert [row["n"] for row in json.loads(cut.content)] == [0, 1, 2]
    assert (len(json.loads(whole.content)), whole["Content-Disposition"]) == (4, 'attachment; filename="mine.json"')


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.mark.parametrize("page", ["endpoints", "machines", "namespaces", "requests", "quota", "cost", "activity"])
def test_every_list_of_a_tenant_offers_both_files_with_its_filters(world, browse, page):
    browser = browse(world.acme.member)

    body = browser.get(f"/t/acme/{page}?q=nothing&after=x").content.decode()
    links = [html.unescape(link) for link in re.findall(r'href="(\?[^"]*format=(?:csv|json)[^"]*)"', body)]

    if page not in {"requests", "cost"}:  # they show no table without a row
        assert links == ["?q=nothing&format=csv", "?q=nothing&format=json"]
    for form, kind in (("csv", "text/csv; charset=utf-8"), ("json", "application/json")):
        answer = browser.get(f"/t/acme/{page}?format={form}")
        assert (answer.status_code, answer["Content-Type"]) == (200, kind)
        assert answer["Content-Disposition"].startswith('attachment; filename="acme-')
