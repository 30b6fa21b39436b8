"""`python -m tests.kubernetes.replica`: one control-plane replica, which sweeps until its standard input ends.

The first line of its input is JSON: `config` and `token` of the provider, `ttl_s` of its leases. It sweeps in real
time on the database of its environment, with a driver of its own, and says `ready` once before the first sweep.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

PAUSE_S = 0.3


def main() -> None:
    """Sweep until told to end."""
    told = json.loads(sys.stdin.readline())
    import django

    django.setup()
    from provisioners import sweep
    from provisioners.driver import Secret
    from provisioners.kubernetes.driver import make
    from provisioners.passes import Engine

    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    driver = make(told["config"], {"token": Secret(told["token"])})
    engine = Engine(driver_of=lambda _provider: driver, ttl=timedelta(seconds=told["ttl_s"]), base_s=0.2)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not ended.is_set():
        sweep.sweep(engine, budget_s=5.0)
        ended.wait(PAUSE_S)


class Replica:
    """A running replica, as its test sees it."""

    def __init__(self, config: dict[str, Any], token: str, *, ttl_s: float, log: Path) -> None:
        """Start one; its provider is reached as `config` says."""
        from tests import environment

        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.kubernetes.replica"],
                cwd=Path(__file__).resolve().parents[2],
                env={**environment.ENVIRONMENT, "PATH": os.environ["PATH"]},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"config": config, "token": token, "ttl_s": ttl_s}) + "\n")
        self.process.stdin.flush()

    def await_ready(self) -> None:
        """Wait until it sweeps."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.said()

    def said(self) -> str:
        """Return what it logged."""
        return self.log.read_text(errors="replace")[-4000:]

    def end(self) -> None:
        """Let it end after the sweep that it is in."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(60)

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


if __name__ == "__main__":
    main()
