"""One lab cluster: its processes, ports, readiness, adoption by a later caller, and its end.

A cluster is a folder. Each process leads a group of its own and outlives the caller; the record of pid and start mark
in `run/` lets any later caller find it, take it over and stop it. Everything listens on 127.0.0.1. Readiness is
awaited by asking, never by waiting in time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from controlplane.embedded import places, ports, programs
from controlplane.embedded.places import Places
from controlplane.embedded.ports import LOOPBACK
from controlplane.embedded.processes import ProcessId
from controlplane.embedded.programs import Program, Running
from controlplane.labs import waiting
from controlplane.labs.building import Programs, Tell
from controlplane.labs.kubernetes import build
from controlplane.labs.kubernetes.client import Api
from controlplane.labs.kubernetes.credentials import Credentials, kubeconfig, store_private
from controlplane.labs.kubernetes.errors import LabError
from controlplane.labs.kubernetes.servers import PORTS, Servers

SERVERS: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
"""Its built programs in the order of their start; they stop in the opposite one."""
PLAYER: Final = "player"
"""Our own program that plays the pods of ours; only with `pods="played"`."""
KUBELET_API: Final = "kubelet-api"
"""Our own program that answers for the nodes' kubelets when logs are asked for."""
NAMES: Final = (*SERVERS, KUBELET_API, PLAYER)
_PLAYING: Final = "controlplane.labs.kubernetes.playing"
_ROOT: Final = Path(__file__).resolve().parents[3]
_GRACE_S: Final = 5.0
"""How long a program may take to end; what it stores, etcd keeps."""
_FIRST_PORT: Final = 20_000
_POLL_S: Final = 0.05
_STARTED: Final[list[Running]] = []
"""Processes that this process started: a forgotten child would stay a zombie."""


@dataclass(frozen=True, slots=True)
class Status:
    """What runs of a cluster now."""

    name: str
    folder: Path
    url: str
    processes: Mapping[str, int]
    """Name → pid of those that run."""
    ready: bool

    @property
    def runs(self) -> bool:
        """Whether anything runs."""
        return bool(self.processes)


def home(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of all lab clusters: below the installation's state folder."""
    return places.state_dir(os.environ if environ is None else environ) / "labs" / "kubernetes"


class Cluster:
    """A cluster by name; nothing is started by making one of these."""

    def __init__(
        self,
        name: str = "lab",
        *,
        folder: Path | None = None,
        pods: str = "played",
        audit: bool = False,
        player: tuple[str, ...] = (),
    ) -> None:
        """`folder` holds this cluster alone; the rest matters at its start only.

        `pods` is `played` or `ready` (`stages.configuration`); `player` holds further arguments of the player; `audit`
        writes every request to `logs/audit.jsonl`, so that a test can count a driver's calls.
        Raises `LabError` for a name that is no DNS label.
        """
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
            raise LabError(f"a cluster's name is a DNS label of at most 32 characters, not {name!r}")
        self.name = name
        self.folder = (folder or home() / name).absolute()
        self.pods = pods
        self.audit = audit
        self.player = player
        self.places = Places(self.folder)
        self.credentials = Credentials(self.folder / "pki")

    # --- what it offers ---------------------------------------------------------------------------

    @property
    def ports(self) -> dict[str, int]:
        """Ports by name; empty before the first start."""
        return ports.remembered(self.places.ports_file)

    @property
    def url(self) -> str:
        """Address of the API server."""
        return f"https://{LOOPBACK}:{self.ports.get('apiserver', 0)}"

    @property
    def ca_pem(self) -> str:
        """Certificate of its CA."""
        return self.credentials.ca.read_text()

    @property
    def admin_token(self) -> str:
        """Token of group system:masters."""
        return self.credentials.admin_token()

    @property
    def kubeconfig(self) -> Path:
        """File for kubectl, with the admin token."""
        return self.folder / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """One JSON object per request, when started with `audit`."""
        return self.places.logs / "audit.jsonl"

    def api(self) -> Api:
        """Return a client as administrator; close it."""
        return Api(self.url, ca=self.credentials.ca, token=self.admin_token)

    def kubectl(self, *words: str, text: str | None = None) -> str:
        """Run kubectl as administrator, `text` on its input; return what it printed. Raises `LabError`."""
        command = [str(build.ensure().path("kubectl")), "--kubeconfig", str(self.kubeconfig), *words]
        answer = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=_plain_environ())
        if answer.returncode != 0:
            raise LabError(f"kubectl {' '.join(words)}: {answer.stderr.strip()}")
        return answer.stdout

    # --- life -------------------------------------------------------------------------------------

    def start(self, *, timeout_s: float = 90, tell: Tell | None = None) -> None:
        """Start what does not run yet and return when the cluster takes work; adopts what runs.

        Raises `NotBuilt` without programs and without Go, `LabError` when a process ends or is not ready in time.
        """
        built = build.ensure(tell=tell)
        self.places.make()
        with self._locked():
            self._prepare()
            deadline = time.monotonic() + timeout_s
            for group in (SERVERS[:2], SERVERS[2:]):
                self._bring_up([self._server(name, built) for name in group], deadline)
            self._bring_up([self._kubelet_api(), *([self._player()] if self.pods == "played" else [])], deadline)

    def _bring_up(self, group: list[Running], deadline: float) -> None:
        """Start those that do not run and wait until all are ready."""
        for one in group:
            if not one.is_alive():
                _reap()
                one.start()
                _STARTED.append(one)
        self._await(group, deadline)

    def stop(self) -> bool:
        """Stop every process, by its recorded identity; false when nothing ran. Data stays."""
        if not self.folder.is_dir():
            return False
        ran = []
        if (self.folder / "node").is_dir():
            from controlplane.labs.kubernetes.real_node import RealNode  # it imports this module

            ran.append(RealNode(self).stop())
        with self._locked():
            ran += [self._stop(name) for name in reversed(NAMES)]
        return any(ran)

    def _stop(self, name: str) -> bool:
        file = self.places.run / f"{name}.json"
        ran = programs.stop_recorded(file, self._work(name), grace_s=_GRACE_S)
        _reap()
        if name == PLAYER and (self.folder / "pods").is_dir():
            words = [sys.executable, "-m", _PLAYING, "--cluster", str(self.folder), "--end"]
            subprocess.run(words, check=False, cwd=_ROOT, env=_plain_environ())
        return ran

    def delete(self) -> None:
        """Stop it and delete all it has stored."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self, name: str) -> None:
        """Kill one process with SIGKILL, as a test of what survives; `start` starts it again.

        Raises `LabError` when it does not run.
        """
        process = self._recorded(name)
        if process is None:
            raise LabError(f"{name} of cluster {self.name} does not run")
        programs.kill_group(process)
        process.wait_gone(10)

    def status(self) -> Status:
        """Return what runs now."""
        found = {name: self._recorded(name) for name in NAMES}
        pids = {name: process.pid for name, process in found.items() if process is not None}
        ready = set(SERVERS) <= set(pids) and self._answers("apiserver", "/readyz")
        return Status(self.name, self.folder, self.url if self.ports else "", pids, ready)

    # --- its programs -----------------------------------------------------------------------------

    def _server(self, name: str, built: Programs) -> Running:
        words, ready = self._commands()[name]
        return self._running(name, (str(built.path(name)), *words), _plain_environ(), ready)

    def _player(self) -> Running:
        return self._own(PLAYER, _PLAYING, self.player, lambda: True)

    def _kubelet_api(self) -> Running:
        port = self.ports["kubelet"]
        module = "controlplane.labs.kubernetes.kubelet_api"
        return self._own(KUBELET_API, module, ("--port", str(port)), lambda: not ports.is_free(port))

    def _own(self, name: str, module: str, words: tuple[str, ...], ready: Callable[[], bool]) -> Running:
        """One of our programs; it needs the repository's packages and nothing of the caller's environment."""
        command = (sys.executable, "-m", module, "--cluster", str(self.folder), *words)
        environ = _plain_environ() | {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}
        return self._running(name, command, environ, ready)

    def _running(
        self, name: str, command: tuple[str, ...], environ: Mapping[str, str], ready: Callable[[], bool]
    ) -> Running:
        folder = self._work(name)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        program = Program(name, command, environ, lambda _: ready(), folder, survives=True)
        running = Running(program, self.places)
        running.process = self._recorded(name)
        return running

    def _commands(self) -> dict[str, tuple[tuple[str, ...], Callable[[], bool]]]:
        """Return server → (arguments, sign of readiness)."""
        servers = self._servers()
        return {
            "etcd": (servers.etcd(), lambda: self._answers("etcd", "/readyz")),
            "kube-apiserver": (servers.apiserver(), lambda: self._answers("apiserver", "/readyz")),
            "kube-controller-manager": (
                servers.controller_manager(),
                lambda: self._answers("controller-manager", "/healthz"),
            ),
            "kube-scheduler": (servers.scheduler(), lambda: self._answers("scheduler", "/readyz")),
            "kwok": (servers.kwok(), lambda: self._answers("kwok", "/healthz")),
        }

    def _servers(self) -> Servers:
        audit_log = self.audit_log if self.audit else None
        return Servers(self.folder, self.ports, self.credentials, audit_log)

    def _prepare(self) -> None:
        """Make credentials, choose ports, write every file that a program reads."""
        self.credentials.make()
        mine = self.ports
        runs = any(self._recorded(name) for name in SERVERS)
        base = _FIRST_PORT + zlib.crc32(str(self.folder).encode()) % 1_200 * 10
        taken: dict[str, int] = {}
        for offset, name in enumerate(
            PORTS
        ):  # the same as last time where they are free, or our own servers listen there
            wanted = mine.get(name, base + offset)
            is_ours = runs and name in mine
            taken[name] = wanted if is_ours else ports.choose(wanted, taken=frozenset(taken.values()))
        ports.remember(self.places.ports_file, taken)
        self._servers().write_files(pods=self.pods)
        user = {"token": self.admin_token}
        store_private(self.kubeconfig, kubeconfig(url=self.url, ca=self.credentials.ca, user=user))

    def _recorded(self, name: str) -> ProcessId | None:
        return programs.recorded(self.places.run / f"{name}.json")

    def _work(self, name: str) -> Path:
        """Return the working folder of a program: tells its processes from others."""
        return self.folder / "work" / name

    # --- waiting ----------------------------------------------------------------------------------

    def _await(self, running: list[Running], deadline: float) -> None:
        late = list(running)

        def all_ready() -> bool:
            for one in list(late):
                if not one.is_alive():
                    raise LabError(
                        f"{one.program.name} of cluster {self.name} ended:\n{one.log_tail()}",
                        mend=f"see {one.log_file}",
                    )
                if one.program.ready(one):
                    late.remove(one)
            return not late

        if not waiting.until(all_ready, deadline, every_s=_POLL_S):
            names = ", ".join(one.program.name for one in late)
            raise LabError(
                f"cluster {self.name}: {names} not ready in time:\n{late[0].log_tail()}", mend=f"see {late[0].log_file}"
            )

    def _answers(self, port: str, path: str) -> bool:
        """Whether a program answers 200; certificates of loopback programs are checked against our CA."""
        scheme = "https" if port in {"apiserver", "controller-manager", "scheduler", "kwok"} else "http"
        headers = {"Authorization": f"Bearer {self.admin_token}"} if port == "apiserver" else {}
        with contextlib.suppress(httpx.HTTPError, OSError):
            url = f"{scheme}://{LOOPBACK}:{self.ports[port]}{path}"
            context = _context(self.credentials.ca) if scheme == "https" else False
            return httpx.get(url, headers=headers, verify=context, timeout=5, trust_env=False).status_code == 200
        return False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One caller at a time starts or stops this cluster."""
        with (self.folder / "cluster.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def existing(*, base: Path | None = None) -> list[Cluster]:
    """Return the clusters that have a folder below `base` (default: `home`)."""
    folder = base or home()
    if not folder.is_dir():
        return []
    return [Cluster(entry.name, folder=entry) for entry in sorted(folder.iterdir()) if (entry / "ports.json").is_file()]


def _context(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


def _reap() -> None:
    """Forget processes of ours that ended; asking reaps them."""
    _STARTED[:] = [one for one in _STARTED if one.is_alive()]


def _plain_environ() -> dict[str, str]:
    """Return an environment without proxies, credentials and settings of the caller."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG", "TZ") if name in os.environ}
    return kept | {"GOGC": os.environ.get("TENANTRY_LAB_GOGC", "100")}
