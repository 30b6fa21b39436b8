"""Flags of vLLM: all classed, the typed list is one class, no hostile text becomes a flag, a file or a shell's word."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from provisioners.driver import DriverRejected, Secret
from provisioners.serving.flags import FlagClass, class_of, flags
from provisioners.serving.runtime import Place, RevisionFacts, UnitFacts
from provisioners.serving.vllm import BOOLEANS, FLAGS, VLLM
from tenants.errors import InvalidSpec
from tenants.serving_arguments import ServingArguments, checked_arguments

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "vllm" / "serve-flags-0.32.0.txt"
EXAMPLE = "--json-arg"
"""Stands in the help as an example of how JSON is given; it is no flag."""
PLACE = Place("127.0.0.1", 18000)
KEY = "key-of-the-last-hop"


# --- all flags ----------------------------------------------------------------------------------------


@pytest.mark.shared
def test_every_flag_of_the_reference_is_classed_and_no_other() -> None:
    names = set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]*", REFERENCE.read_text())) - {EXAMPLE}
    whole = {name for name in names if not (name.startswith("--no-") and f"--{name.removeprefix('--no-')}" in names)}

    assert set(flags()) == whole
    assert all(flag.why for flag in flags().values())


def test_the_typed_list_is_the_class_of_tenants() -> None:
    tenants = {name for name, flag in flags().items() if flag.kind is FlagClass.TENANT}

    assert tenants == set(FLAGS.values())
    assert set(FLAGS) == set(ServingArguments.model_fields)
    assert {name for name, field in ServingArguments.model_fields.items() if bool in get_args(field.annotation)} == (
        BOOLEANS
    )


@pytest.mark.parametrize(
    "word",
    [
        "--trust-remote-code", "--api-key=x", "--hf-token", "--middleware=a.b", "--config=/etc/x",
        "--allowed-local-media-path=/", "--tool-parser-plugin=x", "--hf-overrides={}", "--no-trust-remote-code",
        "--invented", "-asc", "plain",
    ],
)  # fmt: skip
def test_what_runs_code_reads_files_or_is_unknown_is_never(word: str) -> None:
    assert class_of(word) is FlagClass.NEVER


def test_a_flag_switched_off_is_of_its_flags_class() -> None:
    assert class_of("--no-enforce-eager") is FlagClass.TENANT
    assert class_of("--port=1") is FlagClass.OPERATOR


# --- hostile texts ------------------------------------------------------------------------------------

HOSTILE = (
    "--trust-remote-code", "-q=awq", "--api-key=x", "a/b --port=1", "a/b\n--config=x", "$(id)", "`id`", "${HOME}",
    "$(VAR)", "a/b;id", "a/b|id", "a/b&&id", "../../etc/passwd", "a/..", "/etc/passwd", "@/etc/passwd", "a/b@main",
    "a/b:8000", "a/b\0", "'", '"', "\\", "~root/x", "file:///x/y", "http://x/y", "a//b", "Ａ/Ｂ", "a/b\u202e", "*",
    "a/b#c", "%s", "{{7*7}}", "", " ",
)  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=80),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}/[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.tuples(st.sampled_from(("a/b", "chat", "auto", "")), st.sampled_from(HOSTILE)).map("".join),
)
NAMES = st.one_of(TEXT, st.from_regex(r"[a-z][a-z0-9-]{0,39}", fullmatch=True))
COMMITS = st.one_of(st.from_regex(r"[0-9a-f]{40}", fullmatch=True), TEXT)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "max_model_len": st.integers(256, 4096), "max_num_seqs": st.integers(1, 64), "dtype": st.just("bfloat16"),
    "gpu_memory_utilization": st.floats(0.1, 0.98), "enforce_eager": st.booleans(), "quantization": st.just("fp8"),
    "enable_prefix_caching": st.booleans(), "tool_call_parser": st.just("hermes"),
}  # fmt: skip
ANY = st.one_of(TEXT, st.integers(), st.booleans(), st.floats(), st.none(), st.lists(TEXT, max_size=2))
ARGUMENTS = st.one_of(
    st.fixed_dictionaries({}, optional=GOOD),
    st.dictionaries(st.one_of(st.sampled_from(sorted(ServingArguments.model_fields)), TEXT), ANY, max_size=4),
)
USUAL = {
    "source": st.just("org/model"), "commit": st.just("0" * 40), "endpoint": st.just("chat"),
    "arguments": st.fixed_dictionaries({}, optional=GOOD),
}  # fmt: skip
WILD = {"source": TEXT, "commit": COMMITS, "endpoint": NAMES, "arguments": ARGUMENTS}


@st.composite
def revisions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a revision in which one thing, or everything, is whatever somebody thought of."""
    wild = draw(st.one_of(st.sampled_from([{name} for name in WILD]), st.just(set(WILD))))
    return {name: draw(WILD[name] if name in wild else USUAL[name]) for name in WILD}


def expected(asked: dict[str, Any]) -> list[str]:
    """Return the command line that the validated revision stands for, said otherwise than the product does."""
    found = [
        "vllm", "serve", asked["source"], f"--revision={asked['commit']}", f"--tokenizer-revision={asked['commit']}",
        "--load-format=safetensors", f"--served-model-name={asked['endpoint']}", "--host=127.0.0.1", "--port=18000",
        "--tensor-parallel-size=1",
    ]  # fmt: skip
    for name, value in sorted(checked_arguments(asked["arguments"]).items()):
        flag = name.replace("_", "-")
        found.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag}={value}")
    return [*found, *(["--enable-auto-tool-choice"] if asked["arguments"].get("tool_call_parser") else [])]


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(revisions())
def test_each_of_five_thousand_hostile_revisions_is_refused_or_exactly_what_was_validated(
    asked: dict[str, Any],
) -> None:
    facts = RevisionFacts(uid=UUID(int=1), number=1, quantisation="", hop_key=Secret(KEY), **asked)
    try:
        made = VLLM.render(facts, UnitFacts(1, "1g.10gb", 16), PLACE)
    except DriverRejected:
        event("refused")
        is_plain = re.fullmatch(r"[a-z]+/[a-z]+", asked["source"]) and asked["commit"] == "0" * 40
        if is_plain and asked["endpoint"] == "chat":
            with pytest.raises(InvalidSpec):  # then an argument was to blame, and the typed list says so too
                checked_arguments(asked["arguments"])
        return
    event("rendered")

    assert list(made.argv) == expected(asked)
    assert VLLM.moved(made.argv, made.environment, PLACE) == replace(made, secrets={})
    flags_of = made.argv[3:]
    assert all(class_of(word) is not FlagClass.NEVER for word in flags_of)
    assert len({word.partition("=")[0] for word in flags_of}) == len(flags_of)
    # Nothing that a shell, a kubelet or an argument parser would expand, split or read from a file.
    assert all(re.fullmatch(r"[A-Za-z0-9._/=-]+", word) for word in made.argv)
    assert not made.argv[2].startswith(("-", "@", "/", "."))
    assert KEY not in " ".join(made.argv)
    assert KEY not in str(dict(made.environment))
