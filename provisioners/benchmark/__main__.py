"""`python -m provisioners.benchmark`: one load, by an order on standard input; see `order`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from dataclasses import asdict
from typing import Any

from provisioners.benchmark.load import Load, Trouble
from provisioners.benchmark.order import PROGRESS, RESULT, TROUBLE, Order
from tenants.benchmarks import Stopped


def main() -> int:
    """Run one load; 0 with a result, 1 with a trouble."""
    order = Order(**json.loads(sys.stdin.readline()))
    return asyncio.run(_run(order))


async def _run(order: Order) -> int:
    load = Load(order, tell=lambda sent, failed: _say(PROGRESS, {"sent": sent, "failed": failed}))
    loop = asyncio.get_running_loop()

    def follow() -> None:  # a thread: standard input may be anything, also what no event loop can wait for
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(load.stop, Stopped.CANCELLED)

    threading.Thread(target=follow, name="end-of-input", daemon=True).start()
    try:
        made = await load.run()
    except Trouble as trouble:
        _say(TROUBLE, str(trouble))
        return 1
    _say(RESULT, asdict(made))
    return 0


def _say(what: str, value: Any) -> None:
    print(json.dumps({what: value}), flush=True)  # noqa: T201 - that is what it is for


if __name__ == "__main__":
    sys.exit(main())
