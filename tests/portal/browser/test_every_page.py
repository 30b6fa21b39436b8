"""Every page that anybody of the demo can reach, in chromium: axe in both themes, phone, zoom, motion, focus, faults.

Pages are found by following links (`tests.portal.lived_in`), so a new page is looked at without being named here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts.crawl import Seen
from tenants.demo import PERSONAS
from tenants.models import Person
from tests.portal import lived_in
from tests.portal.browser.conftest import PHONE, WIDE, Watch, cookies_of, serious, serving
from tests.portal.lived_in import NEWCOMER, VISITOR, LivedIn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ZOOMED = (720, 450)
"""A screen of 1440 × 900 at 200 %."""
QUIETLY = "Math.max(...document.getAnimations().map((a) => Number(a.effect.getComputedTiming().endTime)), 0)"
TOO_WIDE = """() => {
    const wide = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= wide) return [];
    const out = [...document.querySelectorAll("main *, header *, nav *")].filter((e) => e.checkVisibility() &&
        e.getBoundingClientRect().right > wide + 1 && !e.closest(".table-scroll"));
    return [document.documentElement.scrollWidth, ...out.slice(0, 3).map((e) => e.outerHTML.slice(0, 90))];
}"""
UNMARKED = """() => {
    const parts = ["outlineStyle", "outlineWidth", "boxShadow", "borderColor", "backgroundColor", "textDecorationLine",
        "stroke"];
    const look = (e) => { const s = getComputedStyle(e); return parts.map((part) => s[part]).join("|"); };
    const around = (e) => [e, e.parentElement, e.parentElement?.parentElement,
        e.nextElementSibling, ...[...e.querySelectorAll("*")].slice(0, 6)].filter(Boolean);
    const all = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")];
    const items = all.filter((e) => !e.disabled && e.type !== "hidden" && e.tabIndex >= 0 && e.checkVisibility() &&
        !e.closest("[inert]") && e.getClientRects().length).slice(0, 70);
    const bad = [];
    document.activeElement?.blur();
    for (const e of items) {
        const before = around(e).map(look).join();
        e.focus({ focusVisible: true });
        for (const change of document.getAnimations()) change.finish();
        if (document.activeElement === e && around(e).map(look).join() === before) bad.push(e.outerHTML.slice(0, 90));
        e.blur();
    }
    return bad;
}"""
UNLETTERED = """() => [...document.querySelectorAll(".strip .slot")].filter((slot) => {
    const state = [...slot.classList].find((name) => name.startsWith("is-")) ?? "";
    if (!state || state === "is-free" || state === "is-lit") return false;
    const letter = slot.textContent.trim() || slot.querySelector(".slot-letter");
    const picture = getComputedStyle(slot).backgroundImage !== "none" || slot.querySelector("pattern, use, svg");
    return !letter && !picture;
}).map((slot) => slot.outerHTML.slice(0, 90)).slice(0, 3)"""


@pytest.fixture(scope="module")
def found(superuser, _cleaner, django_db_blocker) -> Iterator[LivedIn]:
    with django_db_blocker.unblock(), lived_in.lived_in(_cleaner, superuser) as there:
        yield there


@pytest.fixture(scope="module")
def demo_site(found, test_database) -> Iterator[str]:
    with serving(test_database, **lived_in.site_environment()) as base:
        yield base


@pytest.mark.parametrize("who", [*(one.key for one in PERSONAS), NEWCOMER, VISITOR])
def test_every_page_pleases_axe_fits_every_screen_and_does_nothing_forbidden(who, found, demo_site, chromium):
    host = demo_site.removeprefix("http://")
    context = chromium.new_context(
        base_url=demo_site, viewport={"width": WIDE[0], "height": WIDE[1]}, reduced_motion="reduce"
    )
    if who != VISITOR:
        context.add_cookies(cookies_of(Person.objects.get(email=f"{who}@demo.test"), demo_site))
    wrong = []
    try:
        for page in found.pages(who):
            wrong += [f"{page.path}: {fault}" for fault in faults(context, page, host)]
    finally:
        context.close()

    assert "\n".join(wrong) == ""


def faults(context, seen: Seen, host: str) -> Iterator[str]:
    """Open a page in its own tab; yield what is wrong with it."""
    page, watch = context.new_page(), Watch(host)
    watch.of(page)
    try:
        status = page.goto(seen.path).status
        if status != 200:
            yield f"HTTP {status}"
            return
        if (heads := page.locator("h1").count()) != 1:
            yield f"{heads} first headings"
        yield from (f"light: {fault}" for fault in serious(page))
        page.emulate_media(color_scheme="dark")
        page.reload()  # a theme changed in place is measured half-way
        yield from (f"dark: {fault}" for fault in serious(page))
        if (longest := page.evaluate(QUIETLY)) > 1:
            yield f"moves for {longest} ms where motion is unwanted"
        yield from (f"no mark of the focus: {item}" for item in page.evaluate(UNMARKED))
        yield from (f"a slot that only colour tells: {item}" for item in page.evaluate(UNLETTERED))
        for size in (PHONE, ZOOMED):
            page.set_viewport_size({"width": size[0], "height": size[1]})
            if wide := page.evaluate(TOO_WIDE):
                yield f"wider than {size[0]} pixels: {wide}"
        yield from watch.faults()
    finally:
        page.close()
