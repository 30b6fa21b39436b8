"""vLLM's call: exact flags, and nothing that could become one."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from provisioners.driver import BoundaryKind, DriverRejected, NotSupported, Secret
from provisioners.serving.runtime import RevisionFacts, UnitFacts, runtime
from provisioners.serving.vllm import FLAGS
from tenants.serving_arguments import ServingArguments

COMMIT = "0" * 39 + "1"
REVISION = RevisionFacts(
    uid=UUID(int=1), number=1, endpoint="chat", source="meta-llama/Llama-3.1-8B-Instruct", commit=COMMIT,
    quantisation="native", arguments={},
)  # fmt: skip
WHOLE = UnitFacts(gpus=2, profile="", memory_gib=64)


def argv(revision: RevisionFacts = REVISION, unit: UnitFacts = WHOLE) -> tuple[str, ...]:
    return runtime("vllm").render(revision, unit, BoundaryKind.NAMESPACE).argv


def test_the_call_names_the_pinned_model_and_the_endpoint() -> None:
    assert argv() == (
        "vllm",
        "serve",
        "meta-llama/Llama-3.1-8B-Instruct",
        f"--revision={COMMIT}",
        f"--tokenizer-revision={COMMIT}",
        "--served-model-name=chat",
        "--host=0.0.0.0",
        "--port=8000",
        "--tensor-parallel-size=2",
    )


@pytest.mark.parametrize("boundary", [BoundaryKind.NAMESPACE, BoundaryKind.VM])
def test_the_key_of_the_last_hop_is_a_secret_variable_and_stands_in_no_command_line(boundary: BoundaryKind) -> None:
    guarded = runtime("vllm").render(replace(REVISION, hop_key=Secret("hop-key")), WHOLE, boundary)
    open_ = runtime("vllm").render(REVISION, WHOLE, boundary)

    assert guarded.secrets == {"VLLM_API_KEY": Secret("hop-key")}
    assert open_.secrets == {}
    assert guarded.argv == open_.argv
    assert "hop-key" not in f"{guarded!r} {REVISION!r}"


def test_arguments_become_one_element_each() -> None:
    given = {
        "max_model_len": 8192,
        "gpu_memory_utilization": 0.9,
        "enforce_eager": False,
        "enable_prefix_caching": True,
    }

    assert argv(replace(REVISION, arguments=given))[9:] == (
        "--enable-prefix-caching",
        "--no-enforce-eager",
        "--gpu-memory-utilization=0.9",
        "--max-model-len=8192",
    )


def test_a_tool_parser_switches_tools_on() -> None:
    assert argv(replace(REVISION, arguments={"tool_call_parser": "hermes"}))[9:] == (
        "--tool-call-parser=hermes",
        "--enable-auto-tool-choice",
    )


def test_in_a_vm_it_listens_on_loopback_only() -> None:
    assert "--host=127.0.0.1" in runtime("vllm").render(REVISION, WHOLE, BoundaryKind.VM).argv


def test_every_argument_of_the_allow_list_has_a_flag() -> None:
    assert set(FLAGS) == set(ServingArguments.model_fields)


@pytest.mark.parametrize(
    "given",
    [
        {"trust_remote_code": True},
        {"middleware": "evil.module"},
        {"max-model-len": 4096},
        {"max_model_len": "4096 --trust-remote-code"},
        {"dtype": "--trust-remote-code"},
        {"gpu_memory_utilization": "$(TOKEN)"},
        {"tool_call_parser": "/etc/passwd"},
    ],
    ids=str,
)
def test_what_is_not_on_the_list_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(DriverRejected):
        argv(replace(REVISION, arguments=given))


@pytest.mark.parametrize(
    "change",
    [
        {"source": "--trust-remote-code"},
        {"source": "/models/mine"},
        {"source": "a/b/../c"},
        {"commit": "main"},
        {"endpoint": "--port=1"},
        {"endpoint": "Chat"},
    ],
    ids=str,
)
def test_names_that_could_be_flags_or_paths_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(DriverRejected):
        argv(replace(REVISION, **change))  # type: ignore[arg-type]


def test_another_runtime_is_not_supported() -> None:
    with pytest.raises(NotSupported):
        runtime("kserve")
