"""Texts: every sentence is marked for translation, every field, code, reason and figure has its help, and pages of
tenants speak no words of the ledger.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from frontend.kernel import topic_people, topics
from frontend.kernel.topic_figures import FIGURES
from frontend.templatetags.portal import SHOW_CHOICES
from tenants.api import urls as api_urls
from tenants.api.serializers.base import In, Query
from tenants.error_codes import HELP
from tenants.field_help import FIELDS, help_of
from tenants.serving_arguments import ServingArguments
from tenants.states import Reason
from tests.template import ROOT

FRONTEND = ROOT / "frontend"
TEMPLATES = FRONTEND / "templates"
OF_OPERATORS = {
    "inbox", "style", "ops", "estate", "hosts", "gpus", "providers", "findings", "tenants", "prices", "policies",
    "system", "evidence", "decisions", "rules", "plans", "outbox", "console",
    "tenancies", "tenancy_changes", "devices", "verdicts", "diagnosis", "connect", "models_admin",
}  # fmt: skip
"""Folders of templates and names of modules that only people of the platform see."""
NOUN = r"(?:a|the|each|every|its|of|no|open|tenant|foreign|maintenance|fault|reserved|\d+)"
LEDGER = re.compile(
    rf"\b(boundar(?:y|ies)|ledger|slot ?masks?|masks?|claims?|allocations?|leases?|epochs?|{NOUN} holds?)\b",
    re.IGNORECASE,
)
"""`hold` only as a noun: a policy may hold, a page may hold words."""
WORD = re.compile(r"[A-Za-z]{2,}")
TAG = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", re.DOTALL)
TRANSLATED = re.compile(r"\{%\s*blocktrans(?:late)?\b.*?%\}.*?\{%\s*endblocktrans(?:late)?\s*%\}", re.DOTALL)
COMMENT = re.compile(r"\{%\s*comment\b.*?\{%\s*endcomment\s*%\}|<!--.*?-->", re.DOTALL)
HTML = re.compile(r"<[^>]*>", re.DOTALL)
SPOKEN = re.compile(r"""\b(?:title|aria-label|placeholder|alt)=(?:"([^"]*)"|'([^']*)')""")
SPOKEN_BY_PARTS = re.compile(
    r"""\{%\s*(?:part|component)\b[^%]*?\b(label|title|text|sentence|reason|action|note|lead|submit|caption|busy_label|example_text)=("(?:[^"]*)")"""
)
SAME_EVERYWHERE = {
    "Tenantry", "SSH", "GPU", "GPUs", "API", "CLI", "YAML", "JSON", "CSV", "curl", "Python", "kubeconfig", "tenantry",
    "GiB", "URL", "TOTP", "Ctrl", "kbd", "UUID", "CPU", "UTC", "ms", "PEM", "id", "OpenAI",
}  # fmt: skip
"""Names that no language translates."""


def templates() -> list[Path]:
    """Return every template of the portal; the living style page shows made-up data."""
    return [path for path in sorted(TEMPLATES.rglob("*.html")) if "style" not in path.parts]


def unmarked(source: str) -> list[str]:
    """Return the words of a template that no translation reaches."""
    text = TRANSLATED.sub(" ", COMMENT.sub(" ", source))
    found = [given[2].strip('"') for given in SPOKEN_BY_PARTS.finditer(text)]
    text = re.sub(r"\{%\s*block \w*class\b.*?endblock\s*%\}", " ", text, flags=re.DOTALL)
    plain = TAG.sub(" ", re.sub(r"<(script|style|code|pre|svg)\b.*?</\1>", " ", text, flags=re.DOTALL))
    found += [one or two for one, two in SPOKEN.findall(plain)]
    found.append(HTML.sub(" ", plain))
    return [
        words
        for piece in found
        for words in [word for word in WORD.findall(re.sub(r"&\w+;", " ", piece)) if word not in SAME_EVERYWHERE]
    ]


def modules() -> list[Path]:
    """Return every module that speaks to people."""
    return [path for path in sorted(FRONTEND.rglob("*.py")) if "migrations" not in path.parts]


def sentences(path: Path) -> Iterator[str]:
    """Yield the literals that a module hands to gettext."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in {"_", "gettext", "gettext_lazy", "ngettext", "ngettext_lazy", "pgettext"}:
            yield from (
                each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
            )


def shapes(root: type) -> Iterator[type]:
    """Yield every shape of input of the API."""
    for each in root.__subclasses__():
        if each.__module__.startswith("tenants."):
            yield each
        yield from shapes(each)


assert api_urls.urlpatterns, "the routes name every shape"
SHAPES = sorted({*shapes(In), *shapes(Query), ServingArguments}, key=lambda each: each.__name__)


# --- translation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", templates(), ids=lambda path: str(path.relative_to(TEMPLATES)))
def test_every_text_of_a_template_is_marked_for_translation(path):
    assert unmarked(path.read_text(encoding="utf-8")) == []


def test_the_heuristic_sees_what_is_not_marked():
    assert unmarked('<p>{% translate "Good" %} bad</p>') == ["bad"]
    assert unmarked('<a title="Bad one" href="/x">{{ row.name }}</a>') == ["Bad", "one"]
    assert unmarked('{% part "button" label="Bad" kind="primary" %}') == ["Bad"]
    assert unmarked('{% part "button" label=_("Good") %}{% blocktranslate %}Good {{ n }}{% endblocktranslate %}') == []
    assert unmarked("{# a comment #}<code>tenantry get</code>{% comment %}more{% endcomment %}&nbsp;·") == []


# --- help -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=lambda each: each.__name__)
def test_every_input_field_has_a_sentence_and_an_example_that_it_takes(shape):
    wrong = {}

    for name, field in shape.model_fields.items():
        found = help_of(name, shape.__name__)
        if found is None or not found.sentence.endswith(".") or found.example in ("", None):
            wrong[name] = "no help"
            continue
        kind = field.annotation if not field.metadata else field.rebuild_annotation()
        try:
            TypeAdapter(kind).validate_json(json.dumps(found.example))
        except ValidationError as error:
            wrong[name] = error.errors()[0]["msg"]

    assert wrong == {}


def test_no_help_is_left_over_for_a_shape_that_is_gone():
    known = {each.__name__ for each in SHAPES}

    gone = [key for key in FIELDS if "." in key and (key.partition(".")[0] not in known or not hasattr_field(key))]

    assert gone == []


def hasattr_field(key: str) -> bool:
    """Whether the shape of `Shape.field` has the field."""
    shape, _, name = key.partition(".")
    return any(each.__name__ == shape and name in each.model_fields for each in SHAPES)


FIELD = re.compile(r"""\{%\s*part\s+"(field|stepper)"(.*?)%\}""", re.DOTALL)


def test_every_field_of_a_form_says_what_it_is_for_with_an_example():
    wrong = []

    for path in templates():
        for _kind, given in FIELD.findall(path.read_text(encoding="utf-8")):
            name = re.search(r'\bname="([^"]+)"', given)
            kind = re.search(r'\btype="([^"]+)"', given)
            shows = "example=" in given or (kind is not None and kind[1] in SHOW_CHOICES)
            # a name that a view makes is a row of `limits`: the component looks it up when it is shown
            if name is not None and help_of(name[1]) is None and not ("sentence=" in given and shows):
                wrong.append((str(path.relative_to(TEMPLATES)), name[1]))

    assert wrong == []


def test_every_reason_and_every_error_code_says_what_to_do_and_who_can():
    found = {topic.code: topic for topic in topics.everything() if topic.group in {"reason", "error"}}

    assert set(found) == {each.value for each in Reason} | set(HELP)
    assert [code for code, topic in found.items() if not (topic.text and topic.who)] == []
    assert [code for code, topic in found.items() if topic.group == "reason" and not topic.next_step] == []


STAT = re.compile(r"""\{%\s*part\s+"stat"\s[^%]*?\blabel=_\("([^"]+)"\)([^%]*)%\}""")


def test_every_figure_that_a_page_shows_has_its_help():
    shown = [given for path in templates() for given in STAT.findall(path.read_text(encoding="utf-8"))]
    explained = {str(figure.title) for figure in FIGURES}

    assert len(shown) >= 15
    # what has a note beside it is explained there
    assert sorted({label for label, rest in shown if "note=" not in rest} - explained) == []


def charts(path: Path) -> Iterator[str]:
    """Yield the titles of the charts that a module draws."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Chart":
            for given in node.keywords:
                if given.arg == "title" and isinstance(given.value, ast.Call):
                    yield from (str(each.value) for each in given.value.args if isinstance(each, ast.Constant))


def test_every_chart_has_its_help():
    drawn = {title for path in modules() if path.stem != "style" for title in charts(path)}

    assert drawn >= {"Cost by day"}
    assert sorted(drawn - {str(figure.title) for figure in FIGURES}) == []


def test_the_help_opens_each_figure_and_each_field_and_finds_them_by_their_words(browse):
    browser = browse(None)

    figure = browser.get("/help/cost-a-day").content.decode()
    field = browser.get("/help/field-max-model-len").content.decode()
    found = browser.get("/help?q=conversation+tokens").content.decode()

    assert ("Cost a day" in figure, "How it is measured" in figure) == (True, True)
    assert ("How many tokens one conversation may have" in field, "8192" in field) == (True, True)
    assert 'href="/help/field-max-model-len"' in found


# --- words of the ledger ----------------------------------------------------------------------------------


def of_tenants(path: Path) -> bool:
    """Whether tenants see it; "What was built" is the one page that may say how."""
    return not (OF_OPERATORS & {*path.parts, path.stem}) and path.stem not in {"built", "story"}


def test_no_template_for_tenants_uses_words_of_the_ledger():
    found = {}

    for path in templates():
        text = HTML.sub(
            " ", re.sub(r"\{[%{#](?!\s*(?:trans|blocktrans)).*?[%}#]\}", " ", path.read_text(encoding="utf-8"))
        )
        if of_tenants(path) and (hits := LEDGER.findall(text)):
            found[str(path.relative_to(TEMPLATES))] = hits

    assert found == {}


def test_no_sentence_for_tenants_uses_words_of_the_ledger():
    found = {
        f"{path.relative_to(FRONTEND)}: {text}"
        for path in modules()
        if of_tenants(path)
        for text in sentences(path)
        if LEDGER.search(re.sub(r"%\(\w+\)s|\{\w+\}", " ", text))
    }

    assert found == set()


def test_who_can_do_something_is_said_of_codes_that_exist():
    named = {code for _who, codes in topic_people.BY_PERSON for code in codes}

    assert sorted(named - set(HELP)) == []
    assert set(topic_people.REASONS) == {each.value for each in Reason}
    assert sum(len(codes) for _who, codes in topic_people.BY_PERSON) == len(named)
