"""`python -m controlplane.labs.kubernetes.model_stub serve MODEL [flags]`: stands for `vllm serve` in a simulated pod.

Behaves at its edges as vLLM 0.32.0 does: refuses flags and values that vLLM refuses (exit 2), ends where a service
link breaks it (exit 1), listens only once its model is "loaded", guards `/v1` by `VLLM_API_KEY` or `--api-key`,
answers `/health` without, and lets running requests come to an end at SIGTERM for `--shutdown-timeout` seconds. No
model runs: every answer says that it is from a simulated pod, or VM.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from controlplane.labs.kubernetes.containers import PLACE_VARIABLE
from provisioners.sandbox.stub import SIMULATED, Place, Stub

GUARDED: Final = ("/v1", "/v2", "/inference", "/cohere")
_SWITCHES: Final = (
    *("enable-prefix-caching", "enable-chunked-prefill", "enforce-eager", "enable-auto-tool-choice"),
    *("enable-log-requests", "disable-fastapi-docs", "disable-uvicorn-access-log", "async-scheduling"),
)
_NUMBERS: Final = (
    *("max-model-len", "max-num-seqs", "max-num-batched-tokens", "tensor-parallel-size", "pipeline-parallel-size"),
    *("shutdown-timeout", "max-num-queued-reqs", "max-num-queued-tokens", "seed", "kv-cache-memory-bytes"),
)
_TEXTS: Final = (
    *("revision", "tokenizer-revision", "code-revision", "tokenizer", "quantization", "tool-call-parser"),
    *("reasoning-parser", "download-dir", "load-format", "chat-template", "uvicorn-log-level"),
)
_DTYPES: Final = ("auto", "bfloat16", "float", "float16", "float32", "half")
_CACHE_DTYPES: Final = ("auto", "bfloat16", "float16", "fp8", "fp8_ds_mla", "fp8_e4m3", "fp8_e5m2", "fp8_inc")


def parser() -> argparse.ArgumentParser:
    """Return a parser for the flags of `vllm serve` that ours may write; any other is refused."""
    made = argparse.ArgumentParser(prog="vllm serve", allow_abbrev=False)
    made.add_argument("model_tag", nargs="?")
    made.add_argument("--model")
    made.add_argument("--host", default="0.0.0.0")  # noqa: S104 - vLLM's own default; the player sets it
    made.add_argument("--port", type=int, default=8000)
    made.add_argument("--served-model-name", nargs="+", default=[])
    made.add_argument("--api-key", nargs="+", default=[])
    made.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    made.add_argument("--dtype", choices=_DTYPES, default="auto")
    made.add_argument("--kv-cache-dtype", choices=_CACHE_DTYPES, default="auto")
    for name in _SWITCHES:
        made.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
    for name in _NUMBERS:
        made.add_argument(f"--{name}", type=int)
    for name in _TEXTS:
        made.add_argument(f"--{name}")
    return made


class CannotStart(Exception):
    """vLLM would end with exit code 1; the text is the end of its log."""


def check_environment(environment: dict[str, str]) -> None:
    """Refuse what a service link does to vLLM. Raises `CannotStart`."""
    port = environment.get("VLLM_PORT", "")
    if "://" in port:
        msg = (
            f"ValueError: VLLM_PORT '{port}' appears to be a URI. This may be caused by a Kubernetes service discovery "
            "issue, check the warning in: https://docs.vllm.ai/en/stable/serving/env_vars.html"
        )
        raise CannotStart(msg)
    home = Path(environment.get("HOME", "/"))
    while not home.exists():
        home = home.parent
    if "HOME" in environment and not os.access(home, os.W_OK):
        msg = f"PermissionError: [Errno 13] Permission denied: '{environment['HOME']}/.cache'"
        raise CannotStart(msg)


def place(given: argparse.Namespace, where: dict[str, Any]) -> Place:
    """Return what every answer says of its origin."""
    model = given.served_model_name[0] if given.served_model_name else given.model_tag or given.model
    return Place(
        model=model,
        revision=int(where.get("revision") or 0),
        endpoint=str(where.get("endpoint", "")),
        unit=str(where.get("unit", "")),
        host=str(where.get("node", "")),
        slots=tuple(where.get("slots", ())),
        tokens_s=float(where.get("tokens_s", 0.0)),
        origin=where.get("origin") or f"from a simulated pod ({where.get('pod', '')}) of the Kubernetes lab",
    )


def application(origin: Place, keys: list[str]) -> web.Application:
    """Return the server's routes."""
    stub = Stub()

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if keys and request.path.startswith(GUARDED) and request.method != "OPTIONS":
            given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
            if not any([hmac.compare_digest(given, key.encode()) for key in keys]):  # noqa: C419 - all are compared
                return web.json_response({"error": "Unauthorized"}, status=401, headers=SIMULATED)
        return await handler(request)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await stub.answer_at(request, origin, request.match_info["path"])

    app = web.Application(middlewares=[guard])
    app.router.add_route("*", "/{path:.*}", answer)
    return app


async def _serve(given: argparse.Namespace, where: dict[str, Any], keys: list[str]) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    origin = place(given, where)
    try:
        async with asyncio.timeout(float(where.get("load_s", 0.0))):  # loading the model; nobody listens before
            await stopping.wait()
            return
    except TimeoutError:
        pass
    runner = web.AppRunner(
        application(origin, keys), access_log=None, shutdown_timeout=float(given.shutdown_timeout or 0)
    )
    await runner.setup()
    await web.TCPSite(runner, given.host, given.port).start()
    _say(f"simulated: {origin.model} is served on port {given.port}; no model runs")
    await stopping.wait()
    await runner.cleanup()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Run until told to stop; 2 for wrong arguments, 1 where vLLM would fail at its start."""
    command, *rest = arguments or [""]
    if command != "serve":
        _say(f"vllm: error: invalid choice: {command!r}")
        return 2
    own = parser()
    given = own.parse_args(rest)
    if not (given.model_tag or given.model):
        own.error("a model is needed")
    if not 0 < given.gpu_memory_utilization <= 1:
        own.error("argument --gpu-memory-utilization: must be in (0, 1]")
    key = os.environ.get("VLLM_API_KEY", "")
    keys = given.api_key or ([key] if key else [])
    try:
        check_environment(dict(os.environ))
        asyncio.run(_serve(given, json.loads(os.environ.get(PLACE_VARIABLE, "{}")), keys))
    except (CannotStart, OSError) as error:
        _say(f"ERROR {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
