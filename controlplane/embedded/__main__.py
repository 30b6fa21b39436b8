"""`python -m controlplane.embedded up|demo|down|reset|status|doctor|exec`: Tenantry on one machine.

Exit status: 0 done, 1 something failed, 2 wrong words; `demo` with EXIT=1 ends with the status of the walk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from controlplane.embedded import machine, roster, supervisor
from controlplane.embedded.errors import EmbeddedError
from controlplane.embedded.installation import ROOT, Installation
from controlplane.embedded.places import Places
from controlplane.embedded.supervisor import Supervisor

VISITORS_END_S = 10.0
"""Their last request may have to end."""
DEMO_SWITCH = "TENANTRY_DEMO"
LOOPBACK_WEBHOOKS = {"TENANTRY_WEBHOOK_NETWORKS": "127.0.0.0/8"}
"""In a demo a webhook may lead to a program on the same machine."""
WALK = ("-c", "from controlplane.cli import main; main()", "demo-walk")
"""The walk runs as a process of its own, as any user of the command line would."""
LABS = {
    "kubernetes": ("-m", "controlplane.labs.kubernetes.demo"),
    "vsphere": ("-m", "controlplane.labs.vsphere.demo"),
    "all": ("-m", "controlplane.labs.demo"),
}
"""Name in LAB → what walks the golden path on that lab; with `--stop` it stops what it has started."""
VLLM_WALK = ("-m", "controlplane.labs.vllm.demo")
"""With VLLM=1: the path with a real vLLM at its end; the sandbox starts and ends it."""


def up(asked: argparse.Namespace) -> int:
    """Start all and stay until Ctrl-C or SIGTERM."""
    return _run(asked, walk=False)


def demo(asked: argparse.Namespace) -> int:
    """Start all, walk the golden path, make the estate lived-in, stay; EXIT=1 ends after the walk, with its status."""
    return _run(asked, walk=True)


def _run(asked: argparse.Namespace, *, walk: bool) -> int:
    began = time.monotonic()
    lab = os.environ.get("LAB", "") if walk else ""
    if lab and lab not in LABS:
        say(f"there is no lab {lab!r}; LAB is one of {', '.join(LABS)}")
        return 2
    real_vllm = walk and not lab and os.environ.get("VLLM") == "1"
    told: dict[str, str] = {**os.environ}
    if real_vllm:
        told |= _vllm()
    places = Places.from_environ(os.environ)
    visitors: subprocess.Popen[bytes] | None = None
    findings = machine.check(root=ROOT, state=places.state, fresh=False)
    for finding in findings:
        if not finding.ok:
            say(finding.line())
    if not all(finding.ok for finding in findings):
        return 1
    installation = Installation.load({DEMO_SWITCH: "1", **LOOPBACK_WEBHOOKS, **told} if walk else told)
    with supervisor.only_one(places.run):
        master = Supervisor(installation, tell=say)
        with supervisor.stopping_on_signals(master):
            try:
                say(f"Tenantry starts; state in {places.state}, logs in {places.logs}")
                master.start()
                say(f"ready after {time.monotonic() - began:.1f} s")
                say(f"  control plane  {installation.public_url}   (API {installation.public_url}/api/v1/)")
                say(f"  sandbox        {installation.sandbox_url}   (a simulated estate)")
                if places.logins_file.exists():
                    say(f"  log-ins        {places.logins_file}")
                words = VLLM_WALK if real_vllm else LABS.get(lab, WALK)
                status = _walk(master, installation, words) if walk else 0
                if walk and (asked.exit or os.environ.get("EXIT") == "1"):
                    return status
                if walk and not lab and not real_vllm and status == 0 and not master.stop_asked:
                    _live_in(master)
                    visitors = _visit(installation, places)
                if not master.stop_asked:
                    say("Ctrl-C stops everything; `make reset` forgets everything")
                    master.watch()
            except EmbeddedError as error:
                if not master.stop_asked:
                    say(str(error))
                    return 1
            finally:
                say("stopping")
                if visitors is not None:
                    _end(visitors)
                master.stop()
                if lab:
                    subprocess.run(
                        [sys.executable, *LABS[lab], "--stop"], env=installation.environ("web"), cwd=ROOT, check=False
                    )
                say("stopped")
    return 0


def _vllm() -> dict[str, str]:
    """Return what tells the sandbox where vLLM is. Raises `EmbeddedError` where `make vllm` has not installed it."""
    from controlplane.labs.vllm import build

    found = build.installed()
    return {roster.VLLM_PROGRAM: str(found.program), roster.VLLM_HOME: str(found.home)}


def _walk(master: Supervisor, installation: Installation, words: Sequence[str]) -> int:
    """Walk the golden path from the command line while everything is kept alive; returns its exit status."""
    child = subprocess.Popen([sys.executable, *words], env=installation.environ("web"), cwd=ROOT)
    try:
        master.watch(until=lambda: child.poll() is not None)
    finally:
        if child.poll() is None:
            child.terminate()
    status = child.wait()
    if status:
        say(f"the walk ended with status {status}")
    return status


def _live_in(master: Supervisor) -> None:
    """Make the demo look lived in, once, while no worker runs; DEMO=small makes less, DEMO=none nothing of it."""
    size = os.environ.get("DEMO", "full")
    if size == "none":
        return
    say("making the estate look lived in: three simulated sites with a history; workers pause for about a minute")
    try:
        with master.paused("dispatcher", "beat", "worker"):
            said = master.once("seed_demo", "owner", "seed_demo", *(["--small"] if size == "small" else []))
    except EmbeddedError as error:
        say(str(error))
        return
    say(f"  {said.strip()}")


def _visit(installation: Installation, places: Places) -> subprocess.Popen[bytes] | None:
    """Let a program use one endpoint of the demo as long as it stays; None where nothing of the past is wanted."""
    if os.environ.get("DEMO", "full") == "none" or not places.logins_file.exists():
        return None
    say("  a little simulated traffic goes to aurora's endpoint live-demo, so that its charts move")
    words = ("-m", "controlplane.demo.visitors", "--url", installation.public_url, "--logins", str(places.logins_file))
    with (places.logs / "visitors.log").open("ab") as log:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return subprocess.Popen([sys.executable, *words], env=kept, cwd=ROOT, stdout=log, stderr=log)


def _end(visitors: subprocess.Popen[bytes]) -> None:
    visitors.terminate()
    try:
        visitors.wait(VISITORS_END_S)
    except subprocess.TimeoutExpired:
        visitors.kill()


def down(_: argparse.Namespace) -> int:
    """Stop everything that runs from this state folder."""
    say("stopped" if supervisor.stop_all(Installation.load(os.environ), tell=say) else "nothing was running")
    return 0


def reset(asked: argparse.Namespace) -> int:
    """Stop everything and delete database, sandbox, broker, secrets and logs."""
    places = Places.from_environ(os.environ)
    if not (asked.yes or os.environ.get("YES") == "1"):
        if not sys.stdin.isatty():
            say(f"this deletes all data in {places.state}; say so with --yes (or YES=1)")
            return 2
        if input(f"delete all data in {places.state}? [y/N] ").strip().lower() not in {"y", "yes"}:
            say("nothing deleted")
            return 1
    supervisor.stop_all(Installation.load(os.environ), tell=say)
    for folder in (places.home_of_database, places.sandbox, places.broker, places.logs, places.scratch, places.run):
        if folder.exists():
            shutil.rmtree(folder)
    for file in (places.secrets_file, places.ports_file, places.logins_file):
        file.unlink(missing_ok=True)
    say(f"deleted: all data in {places.state}")
    return 0


def status(_: argparse.Namespace) -> int:
    """Show each program; 0 when all work."""
    return _show_liveness(Installation.load(os.environ))


def _show_liveness(installation: Installation) -> int:
    shown = supervisor.liveness(installation)
    for name, word in shown.items():
        say(f"  {name:<12} {word}")
    say(f"  at           {installation.public_url}")
    return 0 if all(word in {"working", "running", "external"} or word.isdigit() for word in shown.values()) else 1


def doctor(_: argparse.Namespace) -> int:
    """Check the machine and each program; prints all findings."""
    places = Places.from_environ(os.environ)
    findings = machine.check(root=ROOT, state=places.state, fresh=True)
    for finding in findings:
        say(finding.line())
    live = _show_liveness(Installation.load(os.environ))
    return 0 if live == 0 and all(finding.ok for finding in findings) else 1


def execute(asked: argparse.Namespace) -> int:
    """Become a program with the environment of this installation, as `python -m controlplane ledger_audit`."""
    if not asked.command:
        say("exec needs a program: exec worker python -m controlplane check")
        return 2
    return replace_us(asked.command, Installation.load(os.environ).environ(asked.process))


def replace_us(command: list[str], environ: dict[str, str]) -> NoReturn:
    """Become that program: signals and the exit status are then its own. Raises `EmbeddedError` when there is none."""
    path = shutil.which(command[0], path=environ["PATH"])
    if path is None:
        raise EmbeddedError(f"there is no program {command[0]}")
    os.execve(path, command, environ)  # noqa: S606 - the words of the person at the terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.embedded", description="Tenantry on one machine.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "up": up, "demo": demo, "down": down, "reset": reset, "status": status, "doctor": doctor, "exec": execute,
    }  # fmt: skip
    parsers = {
        verb: verbs.add_parser(verb, help=(action.__doc__ or "").split(".")[0]) for verb, action in actions.items()
    }
    parsers["demo"].add_argument("--exit", action="store_true", help="stop after the walk, with its status")
    parsers["reset"].add_argument("--yes", action="store_true", help="ask nothing")
    parsers["exec"].add_argument("process", choices=("web", "worker", "owner"), help="which database role it uses")
    parsers["exec"].add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(arguments)
    try:
        return actions[asked.verb](asked)
    except EmbeddedError as error:
        print(error, file=sys.stderr)
        return 1


def say(text: str) -> None:
    """Print one line at once; a reader that is gone must not keep programs from being stopped."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - lives as long as the process


if __name__ == "__main__":
    sys.exit(main())
