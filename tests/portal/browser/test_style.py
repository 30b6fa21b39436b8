"""The style page in chromium: nothing forbidden happens, axe is content, keys and pointer do what they promise."""

from __future__ import annotations

import base64
import itertools

import pytest

from tests.portal.browser.conftest import PHONE, WIDE, serious


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_screen(visit, scheme, size):
    page = visit("/style", size=size, scheme=scheme)

    widths = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")

    assert serious(page) == []
    assert widths[0] <= widths[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_entrance_pleases_axe(visit, scheme):
    page = visit("/style/entrance", scheme=scheme)

    assert serious(page) == []


def test_nothing_overflows_at_twice_the_size_of_letters(visit):
    page = visit("/style", size=(720, 450), device_scale_factor=2)

    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_chosen_theme_stays_on_the_next_page(visit):
    page = visit("/style", scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.locator(".page-actions [data-theme-set=dark]").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.goto("/style/entrance")

    assert light != dark
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


@pytest.mark.parametrize("key", ["/", "Control+k"])
def test_a_key_leads_to_the_search(visit, key):
    page = visit("/style")

    page.keyboard.press(key)

    assert page.evaluate("document.activeElement.name") == "q"


def test_pointing_at_a_holder_lights_it_up_everywhere(visit):
    page = visit("/style")

    page.locator(".strip.is-large [data-holder='ep-7k2m']").first.hover()
    lit = page.locator(".is-lit")

    assert lit.count() == page.locator("[data-holder='ep-7k2m'], [data-holders~='ep-7k2m']").count() >= 8
    assert page.locator("[data-holder='t-1'].is-lit").count() == 0


def test_a_strip_says_its_slots_and_has_a_table_twin(visit):
    page = visit("/style")

    first = page.locator(".strip.is-large").first
    name = first.get_attribute("aria-label")
    links = first.get_by_role("link").all()
    page.locator(".twin > summary").first.click()

    assert name == "h100-03 · GPU 2: 1 of 8 slots free"
    assert links[0].get_attribute("aria-label").startswith("slots 0–3: Mine, chat-prod, 4g.40gb")
    assert page.locator(".twin").first.get_by_role("row").count() == 15


GREYS = """async text => {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes], {type: "image/png"}));
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  const pixels = pen.getImageData(0, 0, picture.width, picture.height).data;
  const greys = [];
  for (let at = 0; at < pixels.length; at += 4)
    greys.push(0.2126 * pixels[at] + 0.7152 * pixels[at + 1] + 0.0722 * pixels[at + 2]);
  return greys;
}"""
"""Brightness (Rec. 709) of each pixel of a picture in base64, 0 to 255: what is left of it in grey."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_state_of_a_strip_is_told_from_every_other_in_grey(visit, scheme):
    page = visit("/style", scheme=scheme, device_scale_factor=2)
    states = page.locator(".strip-legend").first.locator(".slot").all()
    names = [state.get_attribute("class") for state in states]

    greys = []
    for state in states:
        state.scroll_into_view_if_needed()
        box = state.bounding_box()
        clip = {"x": round(box["x"]), "y": round(box["y"]), "width": int(box["width"]), "height": int(box["height"])}
        greys.append(page.evaluate(GREYS, base64.b64encode(page.screenshot(clip=clip)).decode()))

    assert len(set(names)) == len(names) >= 6
    assert len({len(grey) for grey in greys}) == 1
    alike = [
        (names[a], names[b])
        for a, b in itertools.combinations(range(len(names)), 2)
        if sum(abs(x - y) > 48 for x, y in zip(greys[a], greys[b], strict=True)) < len(greys[a]) / 50
    ]
    assert alike == []


def test_deleting_needs_the_name_typed_and_escape_gives_the_focus_back(visit):
    page = visit("/style")
    opener = page.locator("#dialogs [data-opens=delete-example]")

    opener.click()
    button = page.locator("#delete-example [data-confirmed]")
    before = button.is_disabled()
    page.keyboard.press("Tab")
    page.locator("[data-confirm]").fill("chat-pro")
    wrong = button.is_disabled()
    page.locator("[data-confirm]").fill("chat-prod")
    right = button.is_disabled()
    page.keyboard.press("Escape")

    assert (before, wrong, right) == (True, True, False)
    assert page.evaluate("document.activeElement.dataset.opens") == "delete-example"


def test_a_stepper_counts_and_stops_at_its_limits(visit):
    page = visit("/style")
    box = page.locator("[data-field=ex-context]")

    less, more = box.get_by_role("button").all()
    at_the_edge = less.is_disabled()
    more.click()

    assert at_the_edge
    assert box.locator("input").input_value() == "2"
    assert not less.is_disabled()


def test_rows_are_walked_with_j_and_k(visit):
    page = visit("/style")

    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")

    assert page.evaluate("document.activeElement.textContent") == "chat-prod"


def test_twins_of_code_change_with_the_arrow_keys(visit):
    page = visit("/style")

    page.get_by_role("tab", name="CLI").focus()
    page.keyboard.press("ArrowRight")

    assert page.get_by_role("tabpanel").inner_text().startswith("curl -X POST")


def test_a_chart_says_its_points_by_keyboard_and_takes_new_ones(visit):
    page = visit("/style")
    plot = page.locator("#tokens .chart-plot")

    plot.focus()
    page.keyboard.press("End")
    said = page.locator("#live").inner_text()
    before = page.locator("#tokens .line-1").get_attribute("d")
    page.evaluate("""() => {
        const data = JSON.parse(document.getElementById('tokens').dataset.chart), item = document.createElement('data');
        Object.assign(item.dataset, {chartAppend: 'tokens', t: data.times.at(-1) + 60, v: '[777]'});
        document.body.append(item);
        document.dispatchEvent(new CustomEvent('htmx:afterSettle', {detail: {target: document.body}}));
    }""")

    assert "tokens/s" in said
    assert page.locator("#tokens .line-1").get_attribute("d") != before
    assert page.locator("#tokens [data-last='0']").inner_text() == "777"


def test_an_answer_that_fails_says_so_and_stays_until_it_is_dismissed(visit, watch):
    watch.expected.append("404")
    page = visit("/style")

    page.evaluate("htmx.ajax('GET', '/api/v1/none', {target: '#live'})")
    toast = page.locator("#toasts .toast")
    toast.wait_for()
    words = toast.locator("p").inner_text()
    toast.get_by_role("button", name="Dismiss").click()

    assert words == "That did not work: There is no operation at this address."
    assert toast.count() == 0


def test_title_and_icon_tell_the_state_of_what_is_built(visit):
    page = visit("/style")

    title, icon = page.title(), page.locator("#favicon").get_attribute("href")

    assert title == "◌ Style · Tenantry"
    assert icon.endswith("favicon-building.svg")


def test_the_rail_is_a_drawer_on_a_phone(visit):
    page = visit("/style", size=PHONE)
    link = page.locator(".rail").get_by_role("link", name="Quota")

    hidden = link.is_visible()
    page.locator(".bar-menu-button").click()
    shown = link.is_visible()
    page.keyboard.press("Escape")
    page.locator(".rail").wait_for(state="hidden")

    assert (hidden, shown) == (False, True)


def test_nothing_moves_where_motion_is_unwanted(visit):
    page = visit("/style", reduced_motion="reduce")

    longest = page.evaluate(
        "Math.max(...document.getAnimations().map((a) => Number(a.effect.getComputedTiming().endTime)), 0)"
    )

    assert longest < 1


def test_the_states_of_a_strip_differ_without_colour(visit):
    page = visit("/style")

    letters = page.locator(".strip-legend").first.locator("li .slot-letter").all_inner_texts()
    pictures = (
        page.locator(".strip-legend")
        .first.locator(".slot")
        .evaluate_all("items => items.map((item) => getComputedStyle(item).backgroundImage)")
    )

    assert letters == ["", "M", "O", "R", "F", "S", "X"]
    assert len({*pictures[3:]}) == 4
