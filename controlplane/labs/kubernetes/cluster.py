"""One lab cluster: its processes, ports, readiness, adoption by a later caller, and its end.

A cluster is a folder. Each process leads a group of its own and outlives the caller; the record of pid and start mark in
`run/` lets any later caller find it, take it over and stop it. Everything listens on 127.0.0.1. Readiness is awaited by
asking, never by waiting in time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import ssl
import subprocess
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
from controlplane.embedded.programs import Program, Running
from controlplane.labs.kubernetes import build, stages
from controlplane.labs.kubernetes.client import Api
from controlplane.labs.kubernetes.credentials import Credentials, kubeconfig, store_private
from controlplane.labs.kubernetes.errors import LabError

NAMES: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
"""Its programs in the order of their start; they stop in the opposite one."""
PORTS: Final = ("apiserver", "etcd", "etcd-peer", "controller-manager", "scheduler", "kwok")
SERVICE_RANGE: Final = "10.96.0.0/16"
ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
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

    def __init__(self, name: str = "lab", *, folder: Path | None = None, pods: str = "played", audit: bool = False) -> None:
        """`folder` holds this cluster alone; `pods` and `audit` matter at its start only.

        `audit` writes every request to `logs/audit.jsonl`, so that a test can count a driver's calls.
        Raises `LabError` for a name that is no DNS label.
        """
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
            raise LabError(f"a cluster's name is a DNS label of at most 32 characters, not {name!r}")
        self.name = name
        self.folder = (folder or home() / name).absolute()
        self.pods = pods
        self.audit = audit
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

    def start(self, *, timeout_s: float = 90, tell: build.Tell | None = None) -> None:
        """Start what does not run yet and return when the cluster takes work; adopts what runs.

        Raises `NotBuilt` without programs and without Go, `LabError` when a process ends or is not ready in time.
        """
        built = build.ensure(tell=tell)
        self.places.make()
        with self._locked():
            self.credentials.make()
            self._issue()
            self._choose_ports()
            deadline = time.monotonic() + timeout_s
            for group in (("etcd", "kube-apiserver"), NAMES[2:]):
                running = [self._running(name, built) for name in group]
                for one in running:
                    if not one.is_alive():
                        _forget_dead()
                        one.start()
                        _STARTED.append(one)
                self._await(running, deadline)

    def stop(self) -> bool:
        """Stop every process, by its recorded identity; false when nothing ran. Data stays."""
        if not self.folder.is_dir():
            return False
        with self._locked():
            ran = [self._stop(name) for name in reversed(NAMES)]
        return any(ran)

    def _stop(self, name: str) -> bool:
        ran = programs.stop_recorded(self.places.run / f"{name}.json", self._work(name), grace_s=5 if name != "kube-apiserver" else 2)
        for one in [one for one in _STARTED if one.record_file == self.places.run / f"{name}.json"]:
            one.is_alive()  # reaps it
            _STARTED.remove(one)
        return ran

    def delete(self) -> None:
        """Stop it and delete all it has stored."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self, name: str) -> None:
        """Kill one process with SIGKILL, as a test of what survives; `start` starts it again."""
        process = programs.recorded(self.places.run / f"{name}.json")
        if process is None:
            raise LabError(f"{name} of cluster {self.name} does not run")
        programs.kill_group(process)
        process.wait_gone(10)

    def status(self) -> Status:
        """Return what runs now."""
        alive = {name: programs.recorded(self.places.run / f"{name}.json") for name in NAMES}
        pids = {name: process.pid for name, process in alive.items() if process is not None}
        ready = len(pids) == len(NAMES) and self._answers("apiserver", "/readyz")
        return Status(self.name, self.folder, self.url if self.ports else "", pids, ready)

    # --- its programs -----------------------------------------------------------------------------

    def _running(self, name: str, built: build.Programs) -> Running:
        command, ready = self._programs()[name]
        folder = self._work(name)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        program = Program(
            name=name,
            command=(str(built.path(name)), *command),
            environ=_plain_environ(),
            ready=lambda _: ready(),
            folder=folder,
            survives=True,
        )
        running = Running(program, self.places)
        running.process = programs.recorded(running.record_file)
        return running

    def _programs(self) -> dict[str, tuple[tuple[str, ...], Callable[[], bool]]]:
        """Return program → (arguments, sign of readiness)."""
        at = self.ports
        return {
            "etcd": (self._etcd(at), lambda: self._answers("etcd", "/readyz")),
            "kube-apiserver": (self._apiserver(at), lambda: self._answers("apiserver", "/readyz")),
            "kube-controller-manager": (self._controller_manager(at), lambda: self._answers("controller-manager", "/healthz")),
            "kube-scheduler": (self._scheduler(at), lambda: self._answers("scheduler", "/readyz")),
            "kwok": (self._kwok(at), lambda: self._answers("kwok", "/healthz")),
        }

    def _etcd(self, at: Mapping[str, int]) -> tuple[str, ...]:
        client, peer = f"http://{LOOPBACK}:{at['etcd']}", f"http://{LOOPBACK}:{at['etcd-peer']}"
        return (
            "--name=lab",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=lab={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            "--auto-compaction-retention=5m",
        )

    def _apiserver(self, at: Mapping[str, int]) -> tuple[str, ...]:
        pki = self.credentials
        words = [
            f"--etcd-servers=http://{LOOPBACK}:{at['etcd']}",
            f"--bind-address={LOOPBACK}",
            f"--advertise-address={LOOPBACK}",
            "--endpoint-reconciler-type=none",  # loopback is no address for the service `kubernetes`
            f"--secure-port={at['apiserver']}",
            f"--tls-cert-file={pki.certificate('apiserver')}",
            f"--tls-private-key-file={pki.key('apiserver')}",
            f"--client-ca-file={pki.ca}",
            f"--token-auth-file={pki.tokens}",
            f"--service-account-key-file={pki.service_accounts_public}",
            f"--service-account-signing-key-file={pki.service_accounts}",
            f"--service-account-issuer={ISSUER}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction,PodNodeSelector,ResourceQuota,LimitRanger",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={pki.certificate('apiserver-kubelet')}",
            f"--kubelet-client-key={pki.key('apiserver-kubelet')}",
            f"--kubelet-certificate-authority={pki.ca}",
            "--kubelet-preferred-address-types=InternalIP",
            "--shutdown-delay-duration=0s",
            "--profiling=false",
        ]
        if self.audit:
            policy = self.folder / "audit-policy.json"
            store_private(policy, json.dumps(_AUDIT_POLICY))
            words += [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}", "--audit-log-mode=batch"]
            words += ["--audit-log-batch-max-wait=200ms", "--audit-log-maxsize=200", "--audit-log-maxbackup=1"]
        return tuple(words)

    def _controller_manager(self, at: Mapping[str, int]) -> tuple[str, ...]:
        pki = self.credentials
        return (
            *self._component("controller-manager", at),
            f"--service-account-private-key-file={pki.service_accounts}",
            f"--root-ca-file={pki.ca}",
            f"--cluster-signing-cert-file={pki.ca}",
            f"--cluster-signing-key-file={pki.ca_key}",
            "--use-service-account-credentials=true",
            "--controllers=*",
            "--allocate-node-cidrs=false",
            # several small installations share one machine: a slow minute is no lost node
            "--node-monitor-grace-period=120s",
        )

    def _scheduler(self, at: Mapping[str, int]) -> tuple[str, ...]:
        return self._component("scheduler", at)

    def _component(self, name: str, at: Mapping[str, int]) -> tuple[str, ...]:
        config = self._config_of(name)
        return (
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--leader-elect=false",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={at[name]}",
            f"--tls-cert-file={self.credentials.certificate('apiserver')}",
            f"--tls-private-key-file={self.credentials.key('apiserver')}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--profiling=false",
        )

    def _kwok(self, at: Mapping[str, int]) -> tuple[str, ...]:
        return (
            f"--kubeconfig={self._config_of('kwok')}",
            f"--config={self.folder / 'kwok.yaml'}",
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={stages.MANAGED}",
            "--node-lease-duration-seconds=40",
            f"--node-ip={LOOPBACK}",
            f"--node-port={at['kwok']}",
            f"--server-address={LOOPBACK}:{at['kwok']}",
            f"--tls-cert-file={self.credentials.certificate('apiserver')}",
            f"--tls-private-key-file={self.credentials.key('apiserver')}",
        )

    # --- files ------------------------------------------------------------------------------------

    def _issue(self) -> None:
        """Make the certificates of the cluster's own programs and the configuration of kwok."""
        pki = self.credentials
        pki.client("controller-manager", user="system:kube-controller-manager")
        pki.client("scheduler", user="system:kube-scheduler")
        pki.client("kwok", user="lab-kwok", groups=("system:masters",))
        pki.client("apiserver-kubelet", user="lab-apiserver", groups=("system:masters",))
        store_private(self.folder / "kwok.yaml", stages.configuration(pods=self.pods))

    def _choose_ports(self) -> None:
        """Choose free ports, the same as last time where they are free or our own programs listen there."""
        if any(programs.recorded(self.places.run / f"{name}.json") for name in NAMES) and self.ports:
            self._write_configs()
            return
        mine = self.ports
        base = _FIRST_PORT + zlib.crc32(str(self.folder).encode()) % 1_200 * 10
        taken: dict[str, int] = {}
        for offset, name in enumerate(PORTS):
            taken[name] = ports.choose(mine.get(name, base + offset), taken=frozenset(taken.values()))
        ports.remember(self.places.ports_file, taken)
        self._write_configs()

    def _write_configs(self) -> None:
        pki = self.credentials
        store_private(self.kubeconfig, kubeconfig(url=self.url, ca=pki.ca, user={"token": self.admin_token}))
        for name in ("controller-manager", "scheduler", "kwok"):
            user = {"client-certificate": str(pki.certificate(name)), "client-key": str(pki.key(name))}
            store_private(self._config_of(name), kubeconfig(url=self.url, ca=pki.ca, user=user))

    def _config_of(self, name: str) -> Path:
        return self.folder / f"{name}.kubeconfig"

    def _work(self, name: str) -> Path:
        """Return the working folder of a program: tells its processes from others."""
        return self.folder / "work" / name

    # --- waiting ----------------------------------------------------------------------------------

    def _await(self, running: list[Running], deadline: float) -> None:
        waiting = list(running)
        while waiting:
            for one in list(waiting):
                if not one.is_alive():
                    raise LabError(f"{one.program.name} of cluster {self.name} ended:\n{one.log_tail()}", mend=f"see {one.log_file}")
                if one.program.ready(one):
                    waiting.remove(one)
            if waiting and time.monotonic() >= deadline:
                names = ", ".join(one.program.name for one in waiting)
                raise LabError(f"cluster {self.name}: {names} not ready in time:\n{waiting[0].log_tail()}", mend=f"see {waiting[0].log_file}")
            if waiting:
                time.sleep(_POLL_S)

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


def _forget_dead() -> None:
    for one in list(_STARTED):
        if not one.is_alive():
            _STARTED.remove(one)


def _plain_environ() -> dict[str, str]:
    """Return an environment without proxies, credentials and settings of the caller."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG", "TZ") if name in os.environ}
    return kept | {"GOGC": os.environ.get("TENANTRY_LAB_GOGC", "100")}


_AUDIT_POLICY: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "userGroups": ["system:nodes"]},
        {"level": "None", "users": ["system:kube-controller-manager", "system:kube-scheduler", "system:apiserver", "lab-kwok"]},
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata"},
    ],
}
