"""What people can type or set stands in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from controlplane.cli.app import app
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
