"""What people can type or set stands in the documentation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from controlplane.cli.app import app, hoisted
from controlplane.cli.failures import ExitCode
from controlplane.cli.nouns import ALL
from controlplane.env import Environment
from tenants.states import ConditionType, Phase, Reason

ROOT = Path(__file__).resolve().parents[2]


def commands(group, path=()):
    """Yield every visible command of a group as its words."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name))


@pytest.mark.parametrize("words", sorted(commands(typer.main.get_command(app))))
def test_every_command_stands_in_its_page(words):
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")

    assert re.search(rf"`{re.escape(words)}[ `]", page), f"docs/cli.md does not speak of `{words}`"


def test_every_exit_status_and_noun_stands_in_the_page():
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")

    assert [code for code in ExitCode if f"\n| {int(code)} | " not in page] == []
    assert [noun.name for noun in ALL if noun.name not in page] == []


def test_every_environment_variable_is_documented():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")

    names = [str(field.alias) for field in Environment.model_fields.values()]

    assert len(names) > 10
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_reason_condition_and_phase_is_explained():
    page = (ROOT / "docs/reasons.md").read_text(encoding="utf-8")

    assert [reason for reason in Reason if f"\n| `{reason.value}` | " not in page] == []
    assert [kind for kind in ConditionType if f"\n| `{kind.value}` | " not in page] == []
    assert [phase for phase in Phase if phase.value not in page] == []


def test_every_link_of_the_documentation_leads_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]

    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]

    assert dead == []


def shown_commands():
    """Yield every command line of `tenantry` that the pages show, in blocks and in running text."""
    for page in (ROOT / "README.md", ROOT / "docs/endpoints.md"):
        text = page.read_text(encoding="utf-8")
        blocks = [line[4:] for line in text.splitlines() if line.startswith("    ")]
        inline = [re.sub(r"\s+", " ", found) for found in re.findall(r"`([^`]+)`", text)]
        for line in [*blocks, *inline]:
            for part in re.split(r"\s*&&\s*", line.partition(" #")[0]):
                if part.startswith("tenantry "):
                    yield pytest.param(hoisted(shlex.split(part)[1:]), id=part.strip())


@pytest.mark.parametrize("words", list(shown_commands()))
def test_every_command_that_a_page_shows_can_be_typed(words):
    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        context = command.make_context(command.name or "tenantry", list(words), parent=context)
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])

    command.make_context(name, list(words), parent=context)
