"""The program that brings a model into a mirror, run for real against a stand-in of the hub on loopback."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.labs.vllm.build import Installed
from provisioners.kubernetes.staging import bring
from tests.kubernetes.hub import COMMIT, REPOSITORY, WANTED, Hub, serving

PROGRAM = Path(bring.__file__).read_text(encoding="utf-8")
PART = "0123456789ab"
pause = threading.Event().wait


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as made:
        yield made


def start(hub: Hub, root: Path, task: str = "bring", **changes: str) -> subprocess.Popen[str]:
    words = {
        "root": str(root), "repository": REPOSITORY, "commit": COMMIT, "part": PART, "hub": hub.url,
        "told": str(root.parent / "told"), "pause-s": "0.01",
    } | changes  # fmt: skip
    argv = [sys.executable, "-I", "-B", "-c", PROGRAM, task, *(f"--{name}={value}" for name, value in words.items())]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PATH": "/usr/bin"})


def run(hub: Hub, root: Path, task: str = "bring", **changes: str) -> list[dict[str, Any]]:
    """Return every line that it said; the last is the verdict."""
    process = start(hub, root, task, **changes)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert json.loads((root.parent / "told").read_text()) == lines[-1]
    return lines


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "mirror"
    found.mkdir()
    return found


def final(root: Path) -> Path:
    return root / REPOSITORY / COMMIT


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_model_server_reads_is_brought_and_nothing_else(hub: Hub, root: Path) -> None:
    lines = run(hub, root)

    there = files_in(final(root))
    assert there.keys() == WANTED | {bring.RECORD}
    assert all(there[name] == hub.files[name] for name in WANTED)
    assert lines[-1] == {"done": True, "bytes_done": hub.total, "bytes_total": hub.total, "files": len(WANTED)}
    assert lines[-2] == {"bytes_done": hub.total, "bytes_total": hub.total}
    assert [path.name for path in (root / REPOSITORY).iterdir()] == [COMMIT]
    assert final(root).stat().st_mode & 0o777 == 0o755


def test_a_second_run_asks_nobody_and_is_done(hub: Hub, root: Path) -> None:
    run(hub, root)
    hub.asked.clear()

    again = run(hub, root)

    assert again == [
        {"done": True, "bytes_done": hub.total, "bytes_total": hub.total, "files": len(WANTED), "was_there": True}
    ]
    assert hub.asked == []


def test_killed_in_the_middle_it_goes_on_where_it_was_and_nobody_ever_sees_half_a_model(hub: Hub, root: Path) -> None:
    hub.held.clear()
    process = start(hub, root)
    hidden = root / REPOSITORY / f".{COMMIT}.{PART}"

    def come() -> int:
        return sum(path.stat().st_size for path in hidden.rglob("*.part")) if hidden.exists() else 0

    while come() < 2_000_000:
        assert process.poll() is None
        pause(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    seen_after_the_kill, kept = final(root).exists(), come()
    hub.held.set()
    hub.sent = 0
    lines = run(hub, root)

    assert not seen_after_the_kill
    assert lines[-1]["done"]
    late = 2 * 65536  # what the stand-in still sent to the one that was killed
    assert hub.sent <= hub.total - kept + late + 5_000, "what was there is not loaded again, but for the listing"
    assert all(files_in(final(root))[name] == hub.files[name] for name in WANTED)


def test_sigterm_ends_it_at_once(hub: Hub, root: Path) -> None:
    hub.held.clear()
    process = start(hub, root)
    while not (root / REPOSITORY).exists():
        pause(0.02)
    process.terminate()

    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    process.communicate()


def test_what_an_earlier_run_left_damaged_is_loaded_anew(hub: Hub, root: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    hidden = root / REPOSITORY / f".{COMMIT}.{PART}"
    hidden.mkdir(parents=True)
    (hidden / f"{name}.part").write_bytes(b"damaged" * 1000)
    (hidden / "config.json.part").write_bytes(b"x" * 10_000)

    assert run(hub, root)[-1]["done"]
    assert files_in(final(root))[name] == hub.files[name]


@pytest.mark.parametrize("changes", [{"cut_after": 1_000_000}, {"busy": 4}])
def test_a_hub_that_breaks_off_or_is_busy_is_asked_again(root: Path, changes: dict[str, Any]) -> None:
    with serving(Hub(**changes)) as hub:
        assert run(hub, root)[-1]["done"]
        assert all(files_in(final(root))[name] == hub.files[name] for name in WANTED)


def test_a_hub_that_cannot_go_on_in_the_middle_is_read_from_the_beginning(root: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    part = root / REPOSITORY / f".{COMMIT}.{PART}" / f"{name}.part"
    part.parent.mkdir(parents=True)
    with serving(Hub(knows_ranges=False)) as hub:
        part.write_bytes(hub.files[name][:1_000_000])

        assert run(hub, root)[-1]["done"]
        assert files_in(final(root))[name] == hub.files[name]


def test_what_others_left_in_the_hidden_folder_comes_into_no_model(hub: Hub, root: Path) -> None:
    hidden = root / REPOSITORY / f".{COMMIT}.{PART}"
    hidden.mkdir(parents=True)
    outside = root / "outside"
    outside.write_text("theirs")
    (hidden / "evil.py").write_text("boom")
    (hidden / "old.json.part").write_text("x")
    (hidden / "config.json").symlink_to(outside)
    (hidden / "tokenizer.json.part").symlink_to(outside)

    assert run(hub, root)[-1]["done"]
    assert files_in(final(root)).keys() == WANTED | {bring.RECORD}
    assert not any(path.is_symlink() for path in final(root).rglob("*"))
    assert outside.read_text() == "theirs"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"error": (401, "GatedRepo")}, "gated"),
        ({"error": (403, "GatedRepo")}, "gated"),
        ({"error": (403, "")}, "gated"),
        ({"listing_error": (401, "")}, "gated"),
        ({"listing_error": (401, "RepoNotFound")}, "not-found"),
        ({"listing_error": (404, "RevisionNotFound")}, "not-found"),
        ({"error": (500, "")}, "hub-away"),
        ({"files": {"config.json": b"{}", "pytorch_model.bin": b"x"}}, "no-safetensors"),
        ({"files": {"model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}'}}, "not-whole"),
        ({"commit": COMMIT, "sent_instead": {"model-00001-of-00002.safetensors": b"\x02" * 3_000_000}}, "other-bytes"),
        ({"sent_instead": {"model-00001-of-00002.safetensors": b"\x01" * 3_000_001}}, "other-bytes"),
        ({"extra": [{"rfilename": "x.json", "size": 2**60, "blobId": "0" * 40}]}, "no-room"),
        ({"extra": [{"rfilename": "x.json"}]}, "strange-list"),
    ],
)  # fmt: skip
def test_what_cannot_be_brought_is_said_in_one_word(root: Path, changes: dict[str, Any], word: str) -> None:
    with serving(Hub(**changes)) as hub:
        verdict = run(hub, root)[-1]

    assert verdict["failed"] == word
    assert word in bring.WORDS
    assert not final(root).exists()


def test_a_hub_that_is_away_and_a_mirror_that_takes_nothing_are_said(root: Path, hub: Hub) -> None:
    away = run(Hub(url="http://127.0.0.1:9"), root)[-1]
    (root / "meta-llama").write_text("a file is in the way")
    process = start(hub, root)
    _, err = process.communicate(timeout=60)

    assert away["failed"] == "hub-away"
    assert process.returncode == 1, "what nobody foresaw is an accident, not a verdict"
    assert "FileExistsError" in err or "NotADirectoryError" in err


STRANGE = (
    "../../escape.json", "/etc/x.json", "a/../../x.json", ".hidden.json", "a\x00b.json", "a b.json", "-x.json",
    "a//b.json", "x.json\n", "$(id).json", "~/x.json", "a\\b.json", f"{'d/' * 9}x.json", "",
)  # fmt: skip


def test_names_that_are_no_plain_paths_are_left_where_they_are(root: Path) -> None:
    entries = [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in STRANGE]
    with serving(Hub(extra=entries)) as hub:
        assert run(hub, root)[-1]["files"] == len(WANTED)

    assert bring.listed({"siblings": entries}, COMMIT) == []
    assert {path.name for path in root.parent.iterdir()} == {"mirror", "told"}


@pytest.mark.parametrize(
    "changes",
    [
        {"repository": "../x"}, {"repository": "a/../b"}, {"repository": "a"}, {"commit": "main"},
        {"commit": "../" * 20}, {"part": "../x"}, {"part": ""},
    ],
)  # fmt: skip
def test_it_takes_no_names_that_lead_elsewhere(hub: Hub, root: Path, changes: dict[str, str]) -> None:
    process = start(hub, root, **changes)
    process.communicate(timeout=60)

    assert process.returncode == 2
    assert list(root.iterdir()) == []


def test_of_two_that_bring_the_same_at_once_one_is_first_and_both_are_done(hub: Hub, root: Path) -> None:
    hub.held.clear()
    both = [start(hub, root, part=part, told="") for part in ("a" * 12, "b" * 12)]
    while len(list(root.rglob("*.part"))) < 4:
        pause(0.02)
    hub.held.set()
    verdicts = [json.loads(process.communicate(timeout=60)[0].splitlines()[-1]) for process in both]

    assert [verdict["bytes_done"] for verdict in verdicts] == [hub.total] * 2
    assert [path.name for path in (root / REPOSITORY).iterdir()] == [COMMIT]


def test_only_what_was_brought_is_removed_and_nothing_beside_it(hub: Hub, root: Path) -> None:
    run(hub, root)
    other = root / REPOSITORY / ("f" * 40)
    other.mkdir()
    hidden = root / REPOSITORY / f".{COMMIT}.{PART}"
    hidden.mkdir()
    (hidden / "x.part").write_text("left")
    theirs = root / REPOSITORY / f".{COMMIT}.{'e' * 12}"
    theirs.mkdir()

    first, second = run(hub, root, "remove")[-1], run(hub, root, "remove")[-1]
    other_commit = run(hub, root, "remove", commit="f" * 40)[-1]

    assert first == second == {"removed": True}
    assert {path.name for path in (root / REPOSITORY).iterdir()} == {other.name, theirs.name}
    assert other_commit == {"failed": "foreign"}


def test_a_folder_that_is_there_without_weights_is_not_taken_for_a_model(hub: Hub, root: Path) -> None:
    final(root).mkdir(parents=True)
    (final(root) / "config.json").write_text("{}")

    assert run(hub, root)[-1] == {"failed": "unfinished"}


def test_parts_of_models_that_embed_are_brought(root: Path) -> None:
    files = {
        "config.json": b"{}",
        "model.safetensors": b"\x01" * 200,
        "modules.json": json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]).encode(),
        "1_Pooling/config.json": b"{}",
        "2_Dense/model.safetensors": b"\x02" * 200,
        "onnx/model.safetensors": b"\x03" * 200,
        "onnx/model.onnx": b"\x04" * 200,
    }
    with serving(Hub(files=files)) as hub:
        run(hub, root)

    assert files_in(final(root)).keys() == files.keys() - {"onnx/model.safetensors", "onnx/model.onnx"} | {bring.RECORD}


def test_it_needs_nothing_but_python_and_fits_into_one_argument() -> None:
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name) or ""
        for node in ast.walk(ast.parse(PROGRAM))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }

    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
    assert len(PROGRAM.encode()) * 2 < 131_072, "Linux takes 128 KiB as one argument"


@pytest.mark.real
@pytest.mark.vllm
def test_the_stand_in_is_a_hub_to_the_real_client_and_both_bring_the_same(
    hub: Hub, root: Path, tmp_path: Path, vllm_lab: Installed
) -> None:
    program = (
        "import sys; from huggingface_hub import HfApi, snapshot_download as load;"
        "info = HfApi().model_info(sys.argv[1], revision=sys.argv[2], files_metadata=True);"
        "print(sorted((s.rfilename, s.size) for s in info.siblings if s.rfilename.endswith('.json')));"
        "load(sys.argv[1], revision=sys.argv[2], local_dir=sys.argv[3],"
        " allow_patterns=['model*.safetensors', '*.json', '*.txt', 'tokenizer.model', '*.jinja', 'LICENSE'])"
    )
    there = tmp_path / "theirs"
    environment = {"PATH": "/usr/bin", "HF_ENDPOINT": hub.url, "HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    subprocess.run(
        [str(vllm_lab.python), "-c", program, REPOSITORY, COMMIT, str(there)], env=environment, check=True, timeout=300,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    run(hub, root)

    theirs = {name: data for name, data in files_in(there).items() if not name.startswith(".")}
    ours = {name: data for name, data in files_in(final(root)).items() if name != bring.RECORD}
    assert theirs == ours


@pytest.mark.real
@pytest.mark.vllm
def test_a_gated_repository_is_gated_to_the_real_client_as_well(
    root: Path, tmp_path: Path, vllm_lab: Installed
) -> None:
    program = (
        "import sys; from huggingface_hub import hf_hub_download as load; from huggingface_hub.errors import *\n"
        "try: load(sys.argv[1], 'config.json', revision=sys.argv[2])\n"
        "except GatedRepoError: print('gated')"
    )
    with serving(Hub(error=(401, "GatedRepo"))) as hub:
        environment = {"PATH": "/usr/bin", "HF_ENDPOINT": hub.url, "HOME": str(tmp_path)}
        found = subprocess.run(
            [str(vllm_lab.python), "-c", program, REPOSITORY, COMMIT], env=environment, timeout=300,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        ours = run(hub, root)[-1]

    assert (found.stdout.strip(), ours["failed"]) == ("gated", "gated")
