"""vLLM's call: exact flags, and nothing that could become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from provisioners.driver import BoundaryKind, DriverRejected, NotSupported, Secret
from provisioners.serving.runtime import PLACES, Place, RevisionFacts, UnitFacts, runtime
from provisioners.serving.vllm import FLAGS
from tenants.serving_arguments import ServingArguments

COMMIT = "0" * 39 + "1"
REVISION = RevisionFacts(
    uid=UUID(int=1), number=1, endpoint="chat", source="meta-llama/Llama-3.1-8B-Instruct", commit=COMMIT,
    quantisation="native", arguments={},
)  # fmt: skip
WHOLE = UnitFacts(gpus=2, profile="", memory_gib=64)


def argv(revision: RevisionFacts = REVISION, unit: UnitFacts = WHOLE) -> tuple[str, ...]:
    return runtime("vllm").render(revision, unit, PLACES[BoundaryKind.NAMESPACE]).argv


def test_the_call_names_the_pinned_model_and_the_endpoint() -> None:
    assert argv() == (
        "vllm",
        "serve",
        "meta-llama/Llama-3.1-8B-Instruct",
        f"--revision={COMMIT}",
        f"--tokenizer-revision={COMMIT}",
        "--load-format=safetensors",
        "--served-model-name=chat",
        "--host=0.0.0.0",
        "--port=8000",
        "--tensor-parallel-size=2",
    )


@pytest.mark.parametrize("boundary", [BoundaryKind.NAMESPACE, BoundaryKind.VM])
def test_the_key_of_the_last_hop_is_a_secret_variable_and_stands_in_no_command_line(boundary: BoundaryKind) -> None:
    guarded = runtime("vllm").render(replace(REVISION, hop_key=Secret("hop-key")), WHOLE, PLACES[boundary])
    open_ = runtime("vllm").render(REVISION, WHOLE, PLACES[boundary])

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

    assert argv(replace(REVISION, arguments=given))[10:] == (
        "--enable-prefix-caching",
        "--no-enforce-eager",
        "--gpu-memory-utilization=0.9",
        "--max-model-len=8192",
    )


def test_a_tool_parser_switches_tools_on() -> None:
    assert argv(replace(REVISION, arguments={"tool_call_parser": "hermes"}))[10:] == (
        "--tool-call-parser=hermes",
        "--enable-auto-tool-choice",
    )


@pytest.mark.parametrize(
    ("mirror", "named", "form"),
    [
        ("nfs://files.example/exports/models", "/mirror", "safetensors"),
        ("s3://weights/mirror", "s3://weights/mirror", "runai_streamer"),
    ],
)
def test_from_a_mirror_the_commit_is_a_part_of_the_path_and_nothing_is_asked_of_a_hub(
    mirror: str, named: str, form: str
) -> None:
    revision = replace(REVISION, mirror=mirror)

    made = runtime("vllm").render(revision, WHOLE, PLACES[BoundaryKind.NAMESPACE])

    assert made.argv[2:5] == (
        f"{named}/meta-llama/Llama-3.1-8B-Instruct/{COMMIT}", f"--load-format={form}", "--served-model-name=chat",
    )  # fmt: skip
    assert made.environment["HF_HUB_OFFLINE"] == "1"
    place = Place("127.0.0.1", 18123)
    assert runtime("vllm").moved(made.argv, made.environment, place).argv == (
        runtime("vllm").render(revision, WHOLE, place).argv
    )


def test_a_model_that_embeds_is_run_as_one() -> None:
    assert argv(replace(REVISION, embeds=True))[-1] == "--runner=pooling"


def test_in_a_vm_it_listens_on_loopback_only() -> None:
    assert "--host=127.0.0.1" in runtime("vllm").render(REVISION, WHOLE, PLACES[BoundaryKind.VM]).argv


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
        {"source": "a/b..c"},
        {"mirror": "nfs://h/../etc"},
        {"mirror": "nfs://h"},
        {"mirror": "s3://b/$(id)"},
        {"mirror": "/etc"},
        {"mirror": "file:///etc"},
        {"mirror": "https://h/x"},
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


ARGUMENTS = {"max_model_len": 1024, "enforce_eager": True, "enable_prefix_caching": False, "tool_call_parser": "hermes"}


@pytest.mark.parametrize("boundary", [BoundaryKind.NAMESPACE, BoundaryKind.VM])
@pytest.mark.parametrize("given", [{}, ARGUMENTS], ids=["plain", "arguments"])
def test_a_call_moved_to_a_place_is_the_one_rendered_there(boundary: BoundaryKind, given: dict[str, object]) -> None:
    vllm, revision = runtime("vllm"), replace(REVISION, arguments=given)
    place = Place("127.0.0.1", 18123, {"HF_HUB_OFFLINE": "1", "HF_HOME": "/models"})
    here = vllm.render(revision, WHOLE, PLACES[boundary])

    assert vllm.moved(here.argv, here.environment, place) == vllm.render(revision, WHOLE, place)


def test_a_place_is_named_by_exactly_two_words_and_its_environment() -> None:
    place = Place("127.0.0.1", 18123, {"HF_HUB_OFFLINE": "1"})
    here, there = (runtime("vllm").render(REVISION, WHOLE, each) for each in (PLACES[BoundaryKind.NAMESPACE], place))

    assert [pair for pair in zip(here.argv, there.argv, strict=True) if pair[0] != pair[1]] == [
        ("--host=0.0.0.0", "--host=127.0.0.1"),
        ("--port=8000", "--port=18123"),
    ]
    assert there.environment == {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    assert there.port == 18123


@pytest.mark.parametrize(
    "change",
    [
        lambda call: ["sh", "-c", *call],
        lambda call: call[:2],
        lambda call: [*call, "--trust-remote-code"],
        lambda call: [*call, "--api-key=x"],
        lambda call: [*call, "--port=1"],
        lambda call: [*call, "--dtype=--config"],
        lambda call: [*call, "--dtype"],
        lambda call: [*call, "--enforce-eager=x"],
        lambda call: [*call, "--middleware=evil.module"],
        lambda call: [*call, "second/model"],
        lambda call: [*call[:2], "/models/mine", *call[3:]],
        lambda call: [*call[:2], f"/mirror/../etc/{COMMIT}", *call[3:]],
        lambda call: ["--load-format=pt" if word.startswith("--load-format") else word for word in call],
        lambda call: [*call, "--runner=draft"],
        lambda call: [word for word in call if not word.startswith("--revision=")],
    ],
)
def test_a_call_that_was_never_rendered_is_not_moved(change: Callable[[list[str]], list[str]]) -> None:
    with pytest.raises(DriverRejected):
        runtime("vllm").moved(change(list(argv())), {}, Place("127.0.0.1", 18123))
