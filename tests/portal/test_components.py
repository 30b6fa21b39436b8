"""Parts of the design system: exact words and shapes, without a database."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.template import Context, Template, TemplateSyntaxError
from django.test import RequestFactory
from django.utils import timezone, translation

from frontend.design import charts, icons, moments, numbers, phases, quota_bar, strip, timeline
from frontend.design.strip import Gpu, HostCell, Run, SlotState, Span
from frontend.design.timeline import StepState, Timeline, TimelineStep
from frontend.views.style import heat
from tenants.states import Phase

NOW = datetime(2026, 11, 21, 13, 20, tzinfo=UTC)
FREE, MINE, OTHERS = SlotState.FREE, SlotState.MINE, SlotState.OTHERS


def render(source, **values):
    return Template("{% load portal %}" + source).render(Context(values))


def words(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.mark.parametrize(
    ("value", "text"),
    [(12480, "12,480"), (3.14159, "3.14"), (381.44, "381.4"), (Decimal("2.0"), "2"), (None, "--"), ("", "--"),
     (float("nan"), "--"), (0, "0")],
)  # fmt: skip
def test_numbers_are_grouped_and_unmeasurable_is_two_dashes(value, text):
    assert numbers.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(950, "950"), (1250, "1.3k"), (1000, "1k"), (3_200_000, "3.2M"), (0.5, "0.5"), (None, "--")]
)
def test_large_numbers_shrink_to_a_letter(value, text):
    assert numbers.short(value) == text


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [("1204.5", "EUR", "€1,204.50"), (-3, "USD", "−$3.00"), (12, "SEK", "12.00 SEK"), (None, "EUR", "--")],
)
def test_money_has_its_sign_or_its_code(amount, currency, text):
    assert numbers.money(amount, currency) == text


def test_numbers_follow_the_locale():
    with translation.override("de"):
        assert numbers.number(12480.5) == "12.480,5"


@pytest.mark.parametrize(("mib", "text"), [(512, "512 MiB"), (81_920, "80 GiB"), (1_572_864, "1.5 TiB"), (None, "--")])
def test_memory_takes_the_unit_that_reads_best(mib, text):
    assert numbers.memory(mib) == text


@pytest.mark.parametrize(
    ("count", "text"), [(1, "1 byte"), (900, "900 bytes"), (1_536, "1.5 KiB"), (1_500_000, "1.4 MiB")]
)
def test_sizes_of_files_take_the_unit_that_reads_best(count, text):
    assert numbers.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4 s"), (0, "0 s"), (48, "48 s"), (60, "1 min"), (200, "3 min 20 s"), (7_500, "2 h 5 min"),
     (356_400, "4 d 3 h"), (86_400, "1 d"), (-5, "−5 s"), (None, "--")],
)  # fmt: skip
def test_spans_have_at_most_two_units(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [(1, "slot", "1 slot"), (12, "slot", "12 slots"), (3, "gpu", "3 GPUs"), (2, "GiB", "2 GiB"), (None, "slot", "--")]
)  # fmt: skip
def test_units_stand_in_words_and_in_the_right_number(count, unit, text):
    assert numbers.quantity(count, unit) == text


@pytest.mark.parametrize(
    ("offset", "text"),
    [(timedelta(seconds=4), "now"), (timedelta(minutes=-5), "5 minutes ago"), (timedelta(minutes=1), "in 1 minute"),
     (timedelta(hours=30), "in 30 hours"), (timedelta(days=29, hours=3), "in 29 days"),
     (timedelta(days=-2), "2 days ago")],
)  # fmt: skip
def test_moments_are_relative_in_one_unit(offset, text):
    assert moments.relative(NOW + offset, NOW) == text


def test_the_exact_time_is_in_the_zone_of_the_person():
    with timezone.override("Europe/Berlin"):
        html = moments.when(NOW, "both", NOW - timedelta(hours=1))

    assert 'datetime="2026-11-21T13:20:00+00:00"' in html
    assert words(html) == "in 1 hour 21 Nov 2026, 14:20 CET"


def test_no_moment_is_two_dashes():
    assert moments.when(None) == "--"


def test_every_phase_has_colour_icon_and_word_and_other_words_are_unknown():
    assert set(phases.PHASES) == set(Phase)
    assert len({look.icon for look in phases.PHASES.values()}) == len(Phase) - 1  # building and deleting turn alike
    assert all(icons.drawing(look.icon) for look in phases.PHASES.values())
    assert words(render('{% phase "AwaitingApproval" %}')) == "Awaiting approval"
    assert words(render('{% phase "Nonsense" %}')) == "Unknown"


def test_an_icon_is_hidden_unless_it_is_named():
    plain, named = icons.icon("cpu"), icons.icon("cpu", label='a "b"')

    assert 'aria-hidden="true"' in plain
    assert 'role="img" aria-label="a &quot;b&quot;"' in named
    with pytest.raises(KeyError):
        icons.icon("no-such-icon")


def test_a_component_sees_its_own_values_and_slots_only():
    source = (
        '{% component "card" title="Quota" %}<b>{{ outside }}</b>'
        '{% slot "actions" %}<i>act</i>{% endslot %}{% endcomponent %}'
    )

    html = render(source, outside="in", note="leak")

    assert "<h2>Quota</h2>" in html
    assert '<div class="card-body"><b>in</b></div>' in html
    assert '<div class="card-actions"><i>act</i></div>' in html
    assert "leak" not in html


@pytest.mark.parametrize("source", ["{% part %}", '{% part "stat" label %}', "{% slot %}{% endslot %}"])
def test_a_misspelt_component_tag_says_so(source):
    with pytest.raises(TemplateSyntaxError):
        render(source)


def test_values_are_escaped_in_every_python_made_part():
    evil = '<script>"x"</script>'
    above, series, later = (quota_bar.Above(evil, 1, 2),), [charts.Series(evil, [1.0])], NOW + timedelta(days=1)

    html = "".join((
        strip.strip(Gpu(evil, (Run(MINE, 1, evil, evil, evil, evil),))),
        strip.table([Gpu(evil, (Run(MINE, 1, evil, evil, evil, evil),))]),
        strip.heat_map([HostCell(evil, evil, [[(MINE, 1)]], (evil,))], evil),
        strip.over_time(evil, 1, [Span(0, 1, NOW, None, MINE, evil, evil, evil, evil)], NOW, later, NOW),
        quota_bar.quota_bar(quota_bar.QuotaLine(evil, evil, 1, 2, above=above, ends=evil, url=evil)),
        charts.chart(charts.Chart(evil, evil, evil, [NOW], series, note=evil, limit=1, limit_label=evil)),
        charts.shares([charts.Share(evil, 1, evil, evil)], evil),
        charts.sparkline([1, 2], evil),
    ))  # fmt: skip

    assert "<script" not in html
    assert '"x"' not in html


def test_a_strip_counts_its_slots_from_zero_and_says_until_when():
    gpu = Gpu("GPU 2", (Run(MINE, 4, "chat", "4g.40gb", until=NOW), Run(OTHERS, 3), Run(FREE, 1)))

    html = strip.strip(gpu)

    assert 'aria-label="GPU 2: 1 of 8 slots free"' in html
    assert "slots 0–3: Mine, chat, 4g.40gb, until 21 Nov 2026, 13:20 UTC" in html
    assert "slots 4–6: Others" in html
    assert "slot 7: Free" in html
    assert [(first, run.size) for first, run in gpu.starts()] == [(0, 4), (4, 3), (7, 1)]


def test_a_holder_that_may_not_be_known_leaves_no_trace():
    html = strip.strip(Gpu("GPU 0", (Run(OTHERS, 8),)), "row")

    assert "data-holder" not in html
    assert "href" not in html


@pytest.mark.parametrize("slots", [0, 17])
def test_a_strip_of_too_many_slots_is_refused(slots):
    with pytest.raises(ValueError, match="1 to 16 slots"):
        strip.strip(Gpu("x", (Run(FREE, slots),)))


def test_the_heat_map_joins_equal_neighbours_into_one_rectangle():
    host = HostCell("h", "/h", [[(OTHERS, 8)], [(OTHERS, 4), (OTHERS, 4)], [(MINE, 2), (FREE, 6)], [(OTHERS, 8)]])

    assert strip.rectangles(host) == {OTHERS: "M0 0h8v2h-8zM0 3h8v1h-8z", MINE: "M0 2h2v1h-2z"}


def test_a_gpu_with_fewer_slots_is_as_wide_as_the_others():
    host = HostCell("h", "/h", [[(OTHERS, 8)], [(MINE, 2), (FREE, 2)]])

    assert strip.rectangles(host)[MINE] == "M0 1h4v1h-4z"


def test_ten_thousand_gpus_take_at_most_three_hundred_kilobytes():
    hosts = heat(1_250)

    html = strip.heat_map(hosts)

    assert sum(len(host.gpus) for host in hosts) == 10_000
    assert html.count("<a ") == 1_250
    assert len(html.encode()) < 270_000  # the page around it has its share too


def test_a_window_over_time_lies_where_its_slots_and_hours_are():
    span = Span(2, 3, NOW + timedelta(hours=6), NOW + timedelta(hours=12), MINE, "chat")

    html = strip.over_time("GPU 2", 8, [span], NOW, NOW + timedelta(days=1), NOW + timedelta(hours=1))

    assert f'x="25%" y="{2 * strip.LANE + 1}" width="25%" height="{3 * strip.LANE - 2}"' in html
    assert html.count('class="lane"') == 8
    assert 'class="now" x1="4.167%"' in html


def test_what_lies_outside_the_time_shown_is_left_out():
    past = Span(0, 1, NOW - timedelta(days=3), NOW - timedelta(days=2), MINE, "gone")

    html = strip.over_time("GPU", 1, [past], NOW, NOW + timedelta(days=1), NOW)

    assert 'class="block"' not in html


def test_a_quota_bar_says_used_of_limit_and_what_is_left_by_the_tightest_limit():
    line = quota_bar.QuotaLine("H100", "slot", 14, 32, 4, 6, (quota_bar.Above("Aurora", 120, 128),))

    html = quota_bar.quota_bar(line)

    assert words(html).startswith("H100 18 of 32 slots")
    assert "14 used" in words(html)
    assert line.left == 8
    assert '<rect class="pending" x="43.750%" width="12.500%"' in html


def test_a_quota_bar_over_its_limit_says_by_how_much():
    line = quota_bar.QuotaLine("Endpoints", "endpoint", 12, 10, 1)

    html = quota_bar.quota_bar(line)

    assert "3 over the limit" in words(html)
    assert "0 left" in words(html)
    assert '<rect class="beyond" x="76.923%" width' not in html
    assert 'class="beyond" x="76.923%"' in html


def test_asking_beyond_the_limit_is_no_fault():
    html = quota_bar.quota_bar(quota_bar.QuotaLine("L40S", "gpu", 3, 4, 0, 3))

    assert "beyond" not in html
    assert 'class="limit" x1="66.667%"' in html


def test_a_quota_that_could_not_be_read_is_two_dashes():
    assert words(quota_bar.quota_bar(quota_bar.QuotaLine("A100", "slot", None, 16))) == "A100 -- · could not be read"


def test_a_timeline_names_the_step_that_runs_and_what_is_usual():
    steps = [
        TimelineStep("Reserve", StepState.DONE, 0.4, 0.5, 0.9),
        TimelineStep("Clone", StepState.RUNNING, 74, 41, 62, NOW, slower_because="the disk is full"),
    ]

    line = Timeline("building", steps, NOW, total_s=75)
    html = render('{% part "timeline" timeline=line %}', line=line)

    assert (line.title, line.done, steps[1].is_slow, steps[1].progress) == ("Clone", 1, True, 97)
    assert 'data-page-state="building"' in html
    assert "Slower than usual because the disk is full" in words(html)
    assert "usually 41 s, at most 1 min 2 s for nine of ten" in words(html)
    assert "1 of 2 steps" in words(html)


def test_a_failed_timeline_shows_the_raw_error_behind_one_click():
    step = TimelineStep(
        "Clone", StepState.FAILED, 12, retries=3, error="HTTP 503 <b>", next_step="Choose a smaller disk."
    )

    html = render('{% part "timeline" timeline=line %}', line=Timeline("failed", [step], NOW, total_s=12))

    assert "Stopped at “Clone”" in html
    assert "3 retries" in words(html)
    assert html.index("<details") < html.index("HTTP 503 &lt;b&gt;")
    assert timeline.Timeline("ready", [], total_s=45.6).title == "Ready after 46 s"


@pytest.mark.parametrize(
    ("top", "end"), [(0, 1), (0.3, 0.3), (7, 8), (381, 400), (500, 500), (501, 600), (99_000, 100_000)]
)
def test_an_axis_ends_at_a_round_number(top, end):
    assert charts.nice(top)[0] == pytest.approx(end)


def test_a_gap_breaks_the_line_and_the_area_and_a_lone_value_is_a_dot():
    values = [1.0, None, 3.0, 4.0]

    assert charts.line_path(values, lambda i: i, lambda v: v) == "M0 1h0M2 3L3 4"
    assert charts.area_path(values, lambda i: i, lambda v: v).count("z") == 2


def test_a_chart_says_itself_and_has_a_table_twin():
    times = [NOW, NOW + timedelta(minutes=1)]

    html = charts.chart(charts.Chart("t", "Speed", "tokens/s", times, [charts.Series("chat", [10.0, 30.0])]))

    assert "chat: last 30, lowest 10, highest 30" in html
    assert html.count("<tr>") == 3
    data = json.loads(re.search(r'data-chart="([^"]+)"', html)[1].replace("&quot;", '"'))
    assert (data["values"], data["times"][1] - data["times"][0]) == ([[10.0, 30.0]], 60)


def test_uneven_series_are_refused():
    with pytest.raises(ValueError, match="one value per moment"):
        charts.chart(charts.Chart("t", "Speed", "x", [NOW], [charts.Series("chat", [])]))


def test_sorting_turns_round_and_keeps_the_filters():
    request = RequestFactory().get("/x", {"phase": "Ready", "sort": "name", "page": "3"})

    link = Template('{% load portal %}{% sort_link "name" %}|{% sorted_as "name" %}|{% export_link "csv" %}').render(
        Context({"request": request}, autoescape=False)
    )

    assert link == "?phase=Ready&sort=-name|ascending|?phase=Ready&sort=name&format=csv"


def test_a_field_is_tied_to_its_sentence_and_its_error():
    html = render('{% part "field" name="disk" sentence="In GiB." error="Too small." value=0 type="number" min=0 %}')

    assert '<label class="label" for="id_disk">' in html
    assert 'aria-describedby="disk-help disk-error"' in html
    assert 'aria-invalid="true"' in html
    assert 'value="0"' in html
    assert 'min="0"' in html


def test_a_disabled_button_says_why_and_is_still_reached_by_keyboard():
    html = render('{% part "button" label="Renew" href="/x" disabled=True reason="Too early" %}')

    assert html.startswith("<button")
    assert 'aria-disabled="true"' in html
    assert "Too early" in words(html)


def test_no_template_of_the_design_has_inline_style_or_script():
    from pathlib import Path

    import frontend

    faults = [
        f"{path.name}: {match[0]}"
        for path in (Path(frontend.__file__).parent / "templates").rglob("*.html")
        for match in re.finditer(
            r"\sstyle=|\son[a-z]+=\"|<script(?![^>]*(?:src=|application/json))|<style|hx-on|javascript:",
            path.read_text(),
        )
    ]

    assert faults == []


def test_every_class_of_a_template_has_a_rule():
    from pathlib import Path

    import frontend

    folder = Path(frontend.__file__).parent
    rules = "".join(path.read_text() for path in (folder / "static/frontend/css").glob("*.css"))
    known = set(re.findall(r"\.([a-zA-Z][\w-]*)", rules))
    plain = {"rail-brand-link", "in-grey"}
    used = set()
    for path in (folder / "templates/frontend/components").glob("*.html"):
        for names in re.findall(r'class="([^"{}]*)"', path.read_text()):
            used |= set(names.split())

    assert sorted(used - known - plain) == []
