"""From approval to the first token of a real vLLM, against the same `vllm serve` by hand, alternating.

    python -m tests.benchmarks.vllm_start [ROUNDS]     five by default; needs `make vllm`

An installation of its own in a temporary folder: real control plane, gateways and vLLM; simulated hosts and GPUs, whose
tasks end at once, so that no invented delay is timed. Who asked waits by `?wait=`, as the CLI does. Ours runs from the
moment that the control plane took the last approval (`decided_at`) to the first token of a streamed chat through the
gateway, asked once the endpoint is Ready. By hand runs from the start of the process to the first token asked of vLLM
itself from then on. By hand gets the very argv and environment of the process that a pass started, but for port, key
and folders, and that is checked; each side has a cache of its own, filled by one start that does not count. Who goes
first changes from round to round. The idle installation runs beside both. Aim: median at most 1.10 × by hand plus 3 s.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from controlplane.cli.client import Client
from controlplane.cli.walk import OPERATOR, Opened, Timeline, WalkFailed, log_in
from controlplane.embedded import roster, supervisor
from controlplane.embedded.installation import Installation
from controlplane.embedded.places import Places
from controlplane.embedded.supervisor import Supervisor
from controlplane.labs.vllm import build, demo
from provisioners.sandbox import processes
from provisioners.sandbox.models import LOOPBACK, Programs
from provisioners.sandbox.ports import free_port
from provisioners.serving.runtime import Place
from provisioners.serving.vllm import KEY_VARIABLE, VLLM

LOOK_S = 0.05
STARTED_WITHIN_S = 600.0
AIM_TIMES, AIM_PLUS_S = 1.10, 3.0


@contextmanager
def installation() -> Iterator[tuple[Mapping[str, Client], Installation]]:
    """Start everything in a temporary folder, with the estate of the demo connected; stop it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="tenantry-bench-", dir="/tmp"))
    folder.chmod(0o755)
    found = build.installed()
    given = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        "TENANTRY_STATE_DIR": str(folder), "TENANTRY_DEMO": "1",
        roster.VLLM_PROGRAM: str(found.program), roster.VLLM_HOME: str(found.home),
    }  # fmt: skip
    made = Installation.load(given)
    master = Supervisor(made, tell=lambda _: None)
    with supervisor.only_one(Places(folder).run):
        try:
            master.start()
            os.environ.update({name: made.environ("web")[name] for name in _TOLD})
            people = log_in(made.public_url, json.loads(made.places.logins_file.read_text()))
            demo.connect(people[OPERATOR], Timeline(Console(quiet=True)))
            yield people, made
            for client in people.values():
                client.close()
        finally:
            master.stop()
            shutil.rmtree(folder, ignore_errors=True)


_TOLD = ("TENANTRY_SANDBOX_URL", "TENANTRY_SANDBOX_TOKEN", "TENANTRY_STATE_DIR")


@dataclass(frozen=True, slots=True)
class Call:
    """A vLLM process as it was started."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str


class Timed(demo.VllmWalk):
    """The walk, timed from the last decision to the first token; moments by the clock of this machine."""

    approved_at = 0.0
    first_token_at = 0.0
    call: Call

    def _decide(self, request: dict[str, Any]) -> dict[str, Any]:
        after = super()._decide(request)
        if after["state"] == "approved":
            self.approved_at = datetime.fromisoformat(after["decided_at"]).timestamp()
        return after

    def _until(self, made: dict[str, Any], goal: str) -> dict[str, Any]:
        """Wait as `tenantry ... --wait` does: a look at every step would take turns with vLLM on the same cores."""
        end = time.monotonic() + STARTED_WITHIN_S
        while time.monotonic() < end:
            row: dict[str, Any] = self.mia.get(self._address(made), wait=60, **{"for": f"{goal},Failed"})
            if row["phase"] == goal:
                return row
            if row["phase"] == "Failed":
                break
        raise WalkFailed(f"it is {row['phase']}: {row['conditions']}")

    def _first_use(self, ready: dict[str, Any], key: str) -> None:
        if not self.approved_at:
            raise WalkFailed("nobody had to approve it: there is nothing to measure from")
        self.first_token_at = first_token(ready["address"], ready["name"], key)
        (server,) = demo.model_servers()
        self.call = call_of(server["pid"])

    def _further_use(self, ready: dict[str, Any], key: str) -> None:
        """Nothing else is timed."""


def call_of(pid: int) -> Call:
    """Read how a process was started."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").decode()
    environment = dict(word.split("=", 1) for word in raw.split("\0"))
    return Call(processes.argv_of(pid), environment, str(Path(f"/proc/{pid}/cwd").readlink()))


def first_token(address: str, model: str, key: str) -> float:
    """Ask until the first token of a stream is there; return when that was (Unix seconds)."""
    body = {"model": model, "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 8, "stream": True}
    end = time.monotonic() + STARTED_WITHIN_S
    with httpx.Client(timeout=60.0, trust_env=False, headers={"Authorization": f"Bearer {key}"}) as http:
        while time.monotonic() < end:
            try:
                with http.stream("POST", f"{address}/chat/completions", json=body) as answer:
                    for line in answer.iter_lines() if answer.status_code == httpx.codes.OK else ():
                        if line.startswith("data: {") and '"content":"' in line.replace('"content":""', ""):
                            return time.time()
            except httpx.TransportError:
                pass
            pause()
    raise TimeoutError(f"no token at {address}")


def pause() -> None:
    """Wait a moment."""
    signal.sigtimedwait((), LOOK_S)


def product_s(people: Mapping[str, Client]) -> tuple[float, Call]:
    """Return the seconds from approval to the first token, and what was started."""
    walk = Timed(people, Timeline(Console(quiet=True)))
    limits = walk.limits()
    opened: Opened = walk.open(demo.PATHS[0])
    walk.give_back(opened)
    walk.restore(limits)
    while demo.model_servers():
        pause()
    return walk.first_token_at - walk.approved_at, walk.call


def by_hand_s(call: Call) -> float:
    """Return the seconds from start to first token of the same call, started here and ended again."""
    found, key = build.installed(), "key-by-hand"
    name = next(word.partition("=")[2] for word in call.argv if word.startswith("--served-model-name="))
    port = free_port(range(11000, 12000), ())
    with tempfile.TemporaryDirectory(prefix="vllm-by-hand-") as text:
        folder = Path(text)
        machine = Programs(found.program, found.home).environment(folder, CACHE)
        words = call.argv[
            call.argv.index("serve") + 1 :
        ]  # before it: interpreter and program, as the kernel shows them
        made = VLLM.moved(("vllm", "serve", *words), call.environment, Place(LOOPBACK, port, machine))
        environment = {**made.environment, KEY_VARIABLE: key}
        _check_same(call, made.argv, environment)
        began = time.time()
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(
                made.argv, executable=found.program, env=environment, cwd=folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            took = first_token(f"http://{LOOPBACK}:{port}/v1", name, key) - began
            _check_same(call_of(child.pid), call.argv, call.environment)
            return took
        finally:
            child.terminate()
            child.wait()
            while processes.kill(folder):
                pause()


def _check_same(call: Call, argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """See that two calls differ in port, key and folders only. Raises `AssertionError`."""
    words = [word for word in argv[argv.index("serve") :] if not word.startswith("--port=")]
    others = [word for word in call.argv[call.argv.index("serve") :] if not word.startswith("--port=")]
    assert words == others, f"{words} is not {others}"
    differing = {
        name for name in {*call.environment, *environment} if call.environment.get(name) != environment.get(name)
    }
    assert differing <= _OWN, f"environments differ in {sorted(differing - _OWN)}"


_OWN = {"HOME", "VLLM_CACHE_ROOT", KEY_VARIABLE}
"""What differs: whose folders, and the key."""
CACHE = Path(tempfile.gettempdir()) / "tenantry-vllm-by-hand"
"""Of what vLLM learns at a first start, as the sandbox keeps one too."""


def main(rounds: int) -> int:
    """Run alternating starts and print them; 1 where the aim is missed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # end what was started, then ourselves
    product: list[float] = []
    by_hand: list[float] = []
    with installation() as (people, _):
        seconds, call = product_s(people)
        print(f"warm-up: product {seconds:.1f} s, by hand {by_hand_s(call):.1f} s", flush=True)
        for number in range(1, rounds + 1):
            if number % 2 == 0:
                by_hand.append(by_hand_s(call))
            seconds, call = product_s(people)
            product.append(seconds)
            if number % 2:
                by_hand.append(by_hand_s(call))
            print(f"{number}: product {product[-1]:.1f} s, by hand {by_hand[-1]:.1f} s", flush=True)
    shutil.rmtree(CACHE, ignore_errors=True)
    ours, theirs = statistics.median(product), statistics.median(by_hand)
    most = AIM_TIMES * theirs + AIM_PLUS_S
    print(
        f"median of {rounds}: approval to first token {ours:.1f} s, by hand {theirs:.1f} s; aim: at most {most:.1f} s"
    )
    return 0 if ours <= most else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
