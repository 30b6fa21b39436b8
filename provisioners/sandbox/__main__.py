"""`python -m provisioners.sandbox serve | stop`: the sandbox as a process of its own.

The token comes from the environment (TENANTRY_SANDBOX_TOKEN), never from argv. The process may die and
be started again at any time: its store has all it acknowledged, its gateways and model servers go on meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
from pathlib import Path

from aiohttp import web

from provisioners.driver import Secret
from provisioners.sandbox import files, models
from provisioners.sandbox.gateways import GatewayKeeper, end_recorded
from provisioners.sandbox.hosting import Hosting, open_hosting
from provisioners.sandbox.models import ModelKeeper, Programs
from provisioners.sandbox.server import Server

STORE_NAME = "sandbox.sqlite3"
PID_NAME = "sandbox.pid"
MODELS_NAME = "models"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m provisioners.sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve estates until SIGTERM; gateways go on")
    serve.add_argument("--state", type=Path, required=True, help="folder of the store and the gateways")
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument(
        "--estate", action="append", default=[], metavar="NAME=FILE", help="make this estate if it is not there"
    )
    serve.add_argument("--vllm", type=Path, help="vLLM's program, for estates whose models are local")
    serve.add_argument("--hf-home", type=Path, help="where its weights are; nothing is fetched")
    serve.add_argument("--fast", action="store_true", help="survive kills, not power loss (for tests)")
    stop = commands.add_parser("stop", help="stop the server and every process of a state folder")
    stop.add_argument("--state", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if options.command == "stop":
        return _stop(options.state)
    return _serve(options)


def _serve(options: argparse.Namespace) -> int:
    token = os.environ.pop("TENANTRY_SANDBOX_TOKEN", "")
    if not token:
        sys.stderr.write("TENANTRY_SANDBOX_TOKEN is not set\n")
        return 2
    state: Path = options.state.resolve()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    url = f"http://{options.host}:{options.port}"
    hosting = open_hosting(state / STORE_NAME, url=url, power_safe=not options.fast)
    if not _seed(hosting, options.estate):
        return 2
    keeper = GatewayKeeper(hosting, state / "gateways")
    programs = Programs(options.vllm, options.hf_home) if options.vllm and options.hf_home else None
    model_keeper = ModelKeeper(hosting, state / MODELS_NAME, programs=programs)
    server = Server(hosting, keeper, token=Secret(token), models=model_keeper)
    (state / PID_NAME).write_text(str(os.getpid()), encoding="utf-8")
    web.run_app(
        server.application(),
        host=options.host,
        port=options.port,
        access_log=None,
        print=None,
        handle_signals=True,
        shutdown_timeout=2.0,
    )
    (state / PID_NAME).unlink(missing_ok=True)
    return 0


def _seed(hosting: Hosting, estates: list[str]) -> bool:
    for pair in estates:
        name, _, path = pair.partition("=")
        try:
            hosting.create(name, files.estate_from_file(Path(path)))
        except (OSError, files.BadEstate) as error:
            sys.stderr.write(f"estate {name}: {error}\n")
            return False
    return True


def _stop(state: Path) -> int:
    """End the server, if it runs, then every gateway and model server that its store knows."""
    state = state.resolve()
    pid_file = state / PID_NAME
    if pid_file.exists():
        pid = int(pid_file.read_text(encoding="utf-8"))
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and b"provisioners.sandbox" in command.read_bytes():
            handle = os.pidfd_open(pid)
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            _wait(handle)
        pid_file.unlink(missing_ok=True)
    if (state / STORE_NAME).exists():
        hosting = open_hosting(state / STORE_NAME, url="")
        end_recorded(hosting, state / "gateways")
        models.end_recorded(hosting, state / MODELS_NAME)
        hosting.close()
    return 0


def _wait(handle: int) -> None:
    """Wait up to ten seconds for a process to end."""
    select.select([handle], [], [], 10.0)
    os.close(handle)


if __name__ == "__main__":
    sys.exit(main())
