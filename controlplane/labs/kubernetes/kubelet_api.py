"""The part of a kubelet that the API server asks for logs, for all simulated nodes of one cluster.

`python -m controlplane.labs.kubernetes.kubelet_api --cluster FOLDER --port PORT` reads the log files of played pods
(FOLDER/pods/<uid>/<container>.log) and changes nothing. Only who has a client certificate of the cluster's CA is
answered. The files hold no times of lines: each line is given the time of the file's last change.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aiohttp import web

from controlplane.embedded.ports import LOOPBACK
from controlplane.labs.kubernetes.credentials import Credentials

FOLDER: Final = web.AppKey("folder", Path)
SIMULATED: Final = "simulated pod: no container runs here\n"
_POLL_S: Final = 0.2


def application(folder: Path) -> web.Application:
    """Return the server of one cluster's folder."""
    made = web.Application()
    made[FOLDER] = folder
    made.router.add_get("/containerLogs/{namespace}/{pod}/{container}", _logs)
    made.router.add_get("/healthz", _health)
    return made


def log_file(folder: Path, namespace: str, pod: str, container: str) -> Path | None:
    """Return the newest log of a played container, None for a pod that nobody plays."""
    found = []
    for state in (folder / "pods").glob("*/state.json"):
        with contextlib.suppress(OSError, ValueError):
            log = state.parent / f"{container}.log"
            if json.loads(state.read_text()).get("pod") == f"{namespace}/{pod}" and log.is_file():
                found.append(log)
    return max(found, key=lambda log: log.stat().st_mtime, default=None)


async def _health(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _logs(request: web.Request) -> web.StreamResponse:
    names = (request.match_info[name] for name in ("namespace", "pod", "container"))
    log = log_file(request.app[FOLDER], *names)
    if log is None:
        return web.Response(text=_stamped(SIMULATED, datetime.now(UTC), request))
    answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await answer.prepare(request)
    text = log.read_text(errors="replace")
    await answer.write(_stamped(_chosen(text, log, request), _changed(log), request).encode())
    if request.query.get("follow") == "true":
        await _follow(log, len(text.encode()), answer, request)
    await answer.write_eof()
    return answer


async def _follow(log: Path, read: int, answer: web.StreamResponse, request: web.Request) -> None:
    """Send what is written, until the file goes or the asker does."""
    with contextlib.suppress(OSError):
        while request.transport is not None and not request.transport.is_closing():
            if more := _read_from(log, read):
                read += len(more)
                await answer.write(_stamped(more.decode(errors="replace"), _changed(log), request).encode())
            await asyncio.sleep(_POLL_S)


def _read_from(log: Path, at: int) -> bytes:
    with log.open("rb") as file:
        file.seek(at)
        return file.read()


def _chosen(text: str, log: Path, request: web.Request) -> str:
    """Return the lines that `tailLines`, `sinceTime` and `sinceSeconds` ask for."""
    changed = _changed(log)
    if since := request.query.get("sinceTime"):
        with contextlib.suppress(ValueError):
            if changed < datetime.fromisoformat(since):
                return ""
    if seconds := request.query.get("sinceSeconds"):
        with contextlib.suppress(ValueError):
            if (datetime.now(UTC) - changed).total_seconds() > float(seconds):
                return ""
    lines = text.splitlines(keepends=True)
    if (tail := request.query.get("tailLines", "")).isdigit():
        lines = lines[len(lines) - min(int(tail), len(lines)) :]
    return "".join(lines)


def _stamped(text: str, moment: datetime, request: web.Request) -> str:
    if request.query.get("timestamps") != "true":
        return text
    stamp = moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return "".join(f"{stamp} {line}" for line in text.splitlines(keepends=True))


def _changed(log: Path) -> datetime:
    return datetime.fromtimestamp(log.stat().st_mtime, UTC)


async def serve(folder: Path, port: int) -> None:
    """Serve until SIGTERM."""
    pki = Credentials(folder / "pki")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki.ca))
    context.load_cert_chain(pki.certificate("apiserver"), pki.key("apiserver"))
    context.verify_mode = ssl.CERT_REQUIRED
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    runner = web.AppRunner(application(folder), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, port, ssl_context=context).start()
    await stopping.wait()
    await runner.cleanup()


def main(words: list[str]) -> int:
    """Run the server."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.labs.kubernetes.kubelet_api", description=__doc__)
    parser.add_argument("--cluster", type=Path, required=True, help="the cluster's folder")
    parser.add_argument("--port", type=int, required=True, help="loopback port")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO)
    asyncio.run(serve(given.cluster.absolute(), given.port))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
