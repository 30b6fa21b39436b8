"""Which programs an installation consists of, each with its command line, environment and sign of readiness.

No secret is in any command line: they travel in the environment, and the sandbox gets only its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

from controlplane.embedded import ports, programs
from controlplane.embedded.installation import ROOT, Installation
from controlplane.embedded.programs import Program

VLLM_PROGRAM: Final = "TENANTRY_SANDBOX_VLLM"
VLLM_HOME: Final = "TENANTRY_SANDBOX_HF_HOME"
"""vLLM's program and where its weights are, for estates of the sandbox whose models are local."""
STOP_ORDER: Final = (("dispatcher", "beat", "worker", "web"), ("sandbox",))
"""Groups that stop together, in this order; gateways and the database follow."""
NAMES: Final = tuple(name for group in STOP_ORDER for name in group)
REPLACED: Final = tuple(name for name in NAMES if name != "sandbox")
"""What a new supervisor stops when it finds it running; the sandbox it takes over."""


def sandbox(installation: Installation) -> Program:
    """The simulated estate: outlives a killed control plane, as a real provider would."""
    words = f"provisioners.sandbox serve --port {installation.ports['sandbox']} --state"
    given = installation.given
    vllm, home = given.get(VLLM_PROGRAM, ""), given.get(VLLM_HOME, "")
    return Program(
        name="sandbox",
        command=(
            *_module(words),
            str(installation.places.sandbox),
            *(("--vllm", vllm, "--hf-home", home) if vllm and home else ()),
        ),
        environ=installation.sandbox_environ(),
        ready=programs.answers(health_url(installation, "sandbox")),
        folder=ROOT,
        survives=True,
    )


def web(installation: Installation) -> Program:
    """API, agent API, admin and health: one granian worker, many threads.

    Its end does not wait for long polls and event streams, which may last: after the kill timeout they are cut.
    """
    words = f"granian --interface asginl --host {ports.LOOPBACK} --port {installation.ports['web']} --workers 1 --no-ws"
    words += " --workers-kill-timeout 3"
    return Program(
        name="web",
        command=_module(f"{words} controlplane.asgi:application"),
        environ=installation.environ("web"),
        ready=programs.answers(health_url(installation, "web")),
        folder=ROOT,
    )


def worker(installation: Installation) -> Program:
    """Celery worker: runs the passes."""
    slots = installation.given.get("TENANTRY_WORKER_SLOTS", "4")
    quiet = "--without-gossip --without-mingle --without-heartbeat"
    return Program(
        name="worker",
        command=_module(f"{_CELERY} worker --pool prefork --concurrency {slots} {quiet} --loglevel INFO"),
        environ=installation.environ("worker"),
        ready=programs.says(" ready."),
        folder=ROOT,
    )


def beat(installation: Installation) -> Program:
    """Celery beat: sends the sweep."""
    schedule = str(installation.places.run / "beat-schedule")
    return Program(
        name="beat",
        command=(*_module(f"{_CELERY} beat --loglevel INFO --pidfile= --schedule"), schedule),
        environ=installation.environ("worker"),
        ready=programs.says("beat: Starting"),
        folder=ROOT,
    )


def dispatcher(installation: Installation) -> Program:
    """Publishes nudges from the outbox."""
    return Program(
        name="dispatcher",
        command=_module("controlplane dispatcher"),
        environ=installation.environ("worker"),
        ready=programs.lives(1.0),
        folder=ROOT,
    )


def health_url(installation: Installation, name: str) -> str:
    """Return the address that `web` or `sandbox` answers with 200 when it works."""
    base: Mapping[str, str] = {"web": installation.web_url, "sandbox": installation.sandbox_url}
    path = {"web": "readyz", "sandbox": "healthz"}  # ready includes the database
    return f"{base[name]}/{path[name]}"


def _module(words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *words.split())


_CELERY: Final = "celery --app controlplane.celery"
