"""House rules that no tool of its own checks: names, sizes, docstrings, locks, targets, words that must not appear."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from controlplane.embedded import first_run, machine

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("controlplane", "tenants", "provisioners", "frontend", "scripts")
MODULES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "migrations" not in path.parts
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCUMENTS_AN_API = {"provisioners/sandbox/server.py", "provisioners/sandbox/faults.py"}
"""Their docstrings are the reference of the sandbox's HTTP routes and faults, so they may be long."""
LOCKS = ("requirements.lock", "requirements-dev.lock")
TARGETS = """
setup demo up down reset test test-real test-ci check fmt migrations bench docs lab-kubernetes lab-vsphere vllm
"""


def name(path):
    return str(path.relative_to(ROOT))


def test_there_are_modules_to_check():
    assert len(MODULES) > 50


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_with_content_says_in_one_to_eight_lines_what_it_owns(path):
    source = path.read_text()
    if not source.strip():
        return

    words = ast.get_docstring(ast.parse(source))

    assert words, "no module docstring"
    assert len([line for line in words.splitlines() if line.strip()]) <= 8 or name(path) in DOCUMENTS_AN_API


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_module_outgrows_a_reader(path):
    assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 600


def test_no_module_hides_behind_a_name_that_says_nothing():
    empty_words = {"utils", "util", "helpers", "common", "services", "misc"}

    assert [name(path) for path in MODULES if path.stem in empty_words] == []


def test_migrations_are_named_for_what_they_do():
    numbered = [path for package in PACKAGES for path in (ROOT / package).rglob("migrations/[0-9]*.py")]

    assert numbered
    assert [name(path) for path in numbered if re.search(r"_auto_|^\d+_(initial_)?\d|^\d+\.py", path.name)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_hashes_and_no_index_is_named(lock):
    text = (ROOT / lock).read_text()

    pins = re.split(r"(?m)^(?=[a-z0-9])", text.partition("\n")[2])[1:]

    assert pins
    assert [pin.split()[0] for pin in pins if "--hash=sha256:" not in pin] == []
    assert re.findall(r"(?m)https?://\S+|^--\S+|[\w.-]+\.(?:com|org|net|io|internal)\b", text) == []


def test_the_two_locks_agree_and_the_second_is_the_larger():
    product, dev = (set(re.findall(r"(?m)^[a-z0-9][^\s;]*==[^\s;\\]+", (ROOT / lock).read_text())) for lock in LOCKS)

    assert product < dev


def test_everything_that_pyproject_asks_for_is_locked_in_a_version_that_it_allows():
    asked = {
        "requirements.lock": PROJECT["project"]["dependencies"],
        "requirements-dev.lock": PROJECT["dependency-groups"]["test"] + PROJECT["dependency-groups"]["lint"],
    }
    wrong = []
    for lock, requirements in asked.items():
        pins = dict(re.findall(r"(?m)^([a-z0-9][a-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", (ROOT / lock).read_text()))
        for requirement in map(Requirement, requirements):
            pinned = pins.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
            if pinned is None or not requirement.specifier.contains(pinned, prereleases=True):
                wrong.append((str(requirement), pinned))

    assert wrong == [], "mend: make lock"


def test_the_machine_check_asks_for_the_pythons_that_pyproject_names():
    lower, upper = (".".join(map(str, bound)) for bound in (machine.PYTHON_FROM, machine.PYTHON_BELOW))

    assert PROJECT["project"]["requires-python"] == f">={lower},<{upper}"
    assert (first_run.FROM, first_run.BELOW) == (machine.PYTHON_FROM, machine.PYTHON_BELOW)


def test_make_lists_every_target_with_one_line_of_help():
    text = (ROOT / "Makefile").read_text()
    listed = dict(re.findall(r"(?m)^([a-z-]+):.*## (.+)$", text))
    rules = re.findall(r"(?m)^([a-z-]+):.*\n((?:\t.*\n?)*)", text)

    assert [target for target in TARGETS.split() if target not in listed] == []
    assert {target: recipe.count("\t") for target, recipe in rules if recipe.count("\t") != 1} == {}


def test_ci_runs_the_same_targets_as_people():
    text = (ROOT / ".ci" / "run").read_text()

    assert re.search(r"for target in setup check test test-ci test-real; do", text)


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()

    assert text.lstrip().startswith("Apache License\n")
    assert "Copyright 2026 The Tenantry engineers" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_settings_for_tools_give_a_reason_for_every_rule_that_is_off():
    block = re.search(r"(?ms)^ignore = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text())

    assert block is not None
    lines = [line.strip() for line in block.group(1).splitlines() if line.strip() and not line.strip().startswith("#")]
    assert [line for line in lines if "# " not in line] == []
