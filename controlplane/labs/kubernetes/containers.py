"""From a container's real argv, environment and mounts to the process that plays it on this machine. Pure.

Programs that are known: our gateway and what brings models into mirrors, which are the real ones, `vllm serve`, for
which a stub stands, and the one that lists a node's GPUs. A pod's network
is this machine's loopback: each port that the program is told to listen on gets a port of the lab's, and only a
program that listens on the pod's address (not on the pod's own loopback) can be reached or probed. Paths under a
volume mount become that volume's folder; others lie in the container's layer, which ends with the container.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import provisioners
from provisioners.kubernetes.staging import CALL, TOLD

Object = dict[str, Any]
START_ERROR: Final = 128
"""What containerd records for a program that it could not start."""
PLACE_VARIABLE: Final = "TENANTRY_LAB_PLACE"
TERMINATION_VARIABLE: Final = "TENANTRY_LAB_TERMINATION"
"""File that becomes the container's termination message."""
CONTAINER_VARIABLE: Final = "TENANTRY_LAB_CONTAINER"
"""Marks a process as one container's, so that it is found again and never mistaken."""
_OURS: Final = "tenantry.internal"
_WILDCARDS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not listened on


class ImageMissing(Exception):
    """No such image can be pulled in the lab; the text is the kubelet's."""


class NotStarted(Exception):
    """The program cannot be started; the text is the runtime's."""

    def __init__(self, message: str, *, exit_code: int = START_ERROR, reason: str = "StartError") -> None:
        """Keep the exit code that the kubelet would show."""
        super().__init__(message)
        self.exit_code = exit_code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Image:
    """What the lab knows of an image: what it starts without a command, and whether as root."""

    entrypoint: tuple[str, ...]
    is_root: bool


@dataclass(frozen=True, slots=True)
class Mount:
    """One volume in a container."""

    path: str
    folder: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """The process that plays a container."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    ports: Mapping[int, int]
    """Port of the container → port on loopback; only those that can be reached from outside the pod."""


@dataclass(frozen=True, slots=True)
class _Program:
    """One program that the lab can play."""

    real: tuple[str, ...]
    port_flags: tuple[str, ...]
    default_ports: Mapping[str, int]
    default_host: str


GATEWAY: Final = _Program((sys.executable, "-m", "provisioners.gateway"), ("--port", "--metrics-port"), {}, "127.0.0.1")
MODEL_SERVER: Final = _Program(
    (sys.executable, "-m", "controlplane.labs.kubernetes.model_stub", "serve"),
    ("--port",),
    {"--port": 8000},
    "0.0.0.0",  # noqa: S104 - what vLLM does without --host; here it listens on loopback
)
ACCEPTANCE: Final = _Program((sys.executable, "-m", "controlplane.labs.kubernetes.smi"), (), {}, "127.0.0.1")
BRINGER: Final = _Program((sys.executable, *CALL[1:]), (), {}, "127.0.0.1")
_ACCEPTANCE_WORDS: Final = ["sh", "-c", "nvidia-smi -L > /dev/termination-log"]
_INTERPRETERS: Final = frozenset({"python", "python3", "/usr/bin/python3", "/usr/local/bin/python"})


def image_of(reference: str) -> Image:
    """Return what is known of an image. Raises `ImageMissing`."""
    repository = reference.partition("@")[0]
    name = repository.rsplit("/", 1)[-1].partition(":")[0]
    if "vllm" in name:
        return Image(("vllm", "serve"), is_root=True)
    if "gateway" in name or name.startswith("tenantry"):
        return Image(("python", "-m", "provisioners.gateway"), is_root=False)
    msg = f'failed to pull and unpack image "{reference}": failed to resolve reference: not found'
    raise ImageMissing(msg)


def check_user(pod: Object, container: Object, image: Image) -> None:
    """Refuse a root image under `runAsNonRoot`, in the kubelet's words. Raises `ConfigError`'s text by `ValueError`."""
    both = {**(pod["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}
    if both.get("runAsNonRoot") and "runAsUser" not in both and image.is_root:
        name, place = container["name"], f"{pod['metadata']['name']}_{pod['metadata']['namespace']}"
        msg = f'container has runAsNonRoot and image will run as root (pod: "{place}", container: {name})'
        raise ValueError(msg)
    if both.get("runAsNonRoot") and both.get("runAsUser") == 0:
        msg = "container's runAsUser breaks non-root policy"
        raise ValueError(msg)


def launch(
    pod: Object,
    container: Object,
    *,
    words: Sequence[str],
    environment: Mapping[str, str],
    mounts: Sequence[Mount],
    layer: Path,
    free_port: Callable[[], int],
    marker: str,
    load_s: float = 0.0,
    termination: Path = Path("/dev/null"),
    smi: Sequence[str] = (),
) -> Launch:
    """Return the process for `words`, the container's whole command line. Raises `NotStarted`."""
    program, arguments = _program(words)
    told = [Mount(TOLD, termination)] if program is BRINGER else []
    paths = _Paths(
        [*mounts, *told], layer, read_only=bool((container.get("securityContext") or {}).get("readOnlyRootFilesystem"))
    )
    ports: dict[int, int] = {}
    if program is not ACCEPTANCE and program is not BRINGER:
        arguments, ports = _networked(program, arguments, free_port)
    if program is GATEWAY or program is BRINGER:
        arguments = [paths.in_word(word) for word in arguments]
    own = {name: paths.in_value(value) for name, value in environment.items()}
    return Launch(
        argv=(*program.real, *arguments),
        environment={
            **own,
            "HOME": own.get("HOME", str(layer)),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(Path(provisioners.__file__).resolve().parent.parent),
            "HOSTNAME": pod["metadata"]["name"],
            CONTAINER_VARIABLE: marker,
            TERMINATION_VARIABLE: str(termination),
            **({PLACE_VARIABLE: json.dumps(place_of(pod, container, load_s))} if program is MODEL_SERVER else {}),
            **({PLACE_VARIABLE: json.dumps({"smi": list(smi)})} if program is ACCEPTANCE else {}),
        },
        ports=ports,
    )


def _program(words: Sequence[str]) -> tuple[_Program, list[str]]:
    given = list(words)
    if not given:
        msg = "no command specified"
        raise NotStarted(msg)
    if given[0] in _INTERPRETERS and given[1:3] == ["-m", "provisioners.gateway"]:
        return GATEWAY, given[3:]
    if tuple(given[: len(CALL)]) == CALL:
        return BRINGER, given[len(CALL) :]
    if given == _ACCEPTANCE_WORDS:
        return ACCEPTANCE, []
    if given[:2] == ["vllm", "serve"]:
        return MODEL_SERVER, given[2:]
    if given[0] in _INTERPRETERS or given[0] == "vllm":
        rest = " ".join(given[1:4])
        msg = f"{given[0]}: cannot run {rest!r}: the lab plays our own programs and `vllm serve` only"
        raise NotStarted(msg, exit_code=2, reason="Error")
    msg = (
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
        f'unable to start container process: error during container init: exec: "{given[0]}": executable file not '
        "found in $PATH"
    )
    raise NotStarted(msg)


def _networked(
    program: _Program, arguments: Sequence[str], free_port: Callable[[], int]
) -> tuple[list[str], dict[int, int]]:
    """Return the arguments with the lab's ports, and which container port is which."""
    words = list(arguments)
    host = _take(words, "--host") or program.default_host
    wanted: dict[str, int] = {}
    for flag in program.port_flags:
        text = _take(words, flag)
        if text is None and flag not in program.default_ports:
            continue
        if text is not None and not text.isdigit():
            words.append(f"{flag}={text}")  # the program says itself what is wrong with it
            continue
        wanted[flag] = program.default_ports[flag] if text is None else int(text)
    ports = {port: free_port() for port in dict.fromkeys(wanted.values())}
    words += ["--host=127.0.0.1", *(f"{flag}={ports[port]}" for flag, port in wanted.items())]
    return words, ports if host in _WILDCARDS else {}


def _take(words: list[str], flag: str) -> str | None:
    """Remove `flag value` or `flag=value` from the words and return the last value, None where it is not there."""
    found: str | None = None
    at = 0
    while at < len(words):
        if words[at] == flag and at + 1 < len(words):
            found = words[at + 1]
            del words[at : at + 2]
        elif words[at].startswith(f"{flag}="):
            found = words[at].partition("=")[2]
            del words[at]
        else:
            at += 1
    return found


class _Paths:
    """Paths of a container on this machine."""

    def __init__(self, mounts: Sequence[Mount], layer: Path, *, read_only: bool) -> None:
        self._mounts = sorted(mounts, key=lambda mount: len(mount.path), reverse=True)
        self._layer = layer
        self._read_only = read_only

    def in_value(self, value: str) -> str:
        """Return a variable's value: a path under a mount is moved, anything else stays."""
        mount = self._mount_of(value)
        return value if mount is None else self._moved(mount, value)

    def in_word(self, word: str) -> str:
        """Return an argument: any absolute path in it is moved. Raises `NotStarted` where it cannot be written."""
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if not value.startswith("/"):
            return word
        mount = self._mount_of(value)
        if (mount is None and self._read_only) or (mount is not None and mount.read_only and flag == "--state"):
            msg = f"cannot start: [Errno 30] Read-only file system: '{value}'"
            raise NotStarted(msg, exit_code=2, reason="Error")
        moved = f"{self._layer}{value}" if mount is None else self._moved(mount, value)
        return f"{flag}{equals}{moved}"

    def _mount_of(self, path: str) -> Mount | None:
        return next(
            (m for m in self._mounts if path == m.path or path.startswith(m.path.rstrip("/") + "/")), None
        )  # fmt: skip

    def _moved(self, mount: Mount, path: str) -> str:
        rest = path[len(mount.path.rstrip("/")) :].lstrip("/")
        return str(mount.folder / rest) if rest else str(mount.folder)


def place_of(pod: Object, container: Object, load_s: float) -> Object:
    """Return what a played model server may say of where it runs: never which device the node chose."""
    meta = pod["metadata"]
    marks = {**(meta.get("annotations") or {}), **(meta.get("labels") or {})}
    limits = (container.get("resources") or {}).get("limits") or {}
    slots = [f"{count} × {name}" for name, count in sorted(limits.items()) if name.startswith("nvidia.com/")]
    slots += [f"claim {claim['name']}" for claim in pod["spec"].get("resourceClaims") or ()]
    return {
        "pod": f"{meta['namespace']}/{meta['name']}",
        "node": pod["spec"].get("nodeName", ""),
        "endpoint": marks.get(f"{_OURS}/uid", ""),
        "unit": marks.get(f"{_OURS}/unit", ""),
        "revision": marks.get(f"{_OURS}/revision", "0"),
        "slots": slots,
        "load_s": load_s,
    }
