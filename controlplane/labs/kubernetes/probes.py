"""A container's own probes, run as a kubelet runs them: thresholds, periods and words are the pod's and the kubelet's.

Time is the lab's: `hurry` 0.1 makes ten seconds one, for periods, delays and back-off. Time-outs, liveness and the
whole of a startup budget are real, because the programs behind are. Exec and gRPC probes are not played and fail with a
message that says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

Object = dict[str, Any]
DEFAULT_PERIOD_S: Final = 10.0
SHORTEST_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe of one container."""

    kind: str
    """`startup`, `readiness` or `liveness`."""
    what: Object
    delay_s: float
    period_s: float
    timeout_s: float
    successes: int
    failures: int

    @classmethod
    def of(cls, container: Object, kind: str, *, hurry: float) -> Probe | None:
        """Return the container's probe of a kind, None where it has none."""
        given = container.get(f"{kind}Probe")
        if given is None:
            return None
        # Programs start no faster in a hurry: what a container is killed for takes as long as it says.
        period = float(given.get("periodSeconds") or DEFAULT_PERIOD_S)
        failures = int(given.get("failureThreshold") or 3)
        pace = 1.0 if kind == "liveness" else hurry
        return cls(
            kind,
            given,
            delay_s=float(given.get("initialDelaySeconds") or 0) * pace,
            period_s=max(SHORTEST_S, period * pace),
            timeout_s=float(given.get("timeoutSeconds") or 1),
            successes=int(given.get("successThreshold") or 1),
            failures=round(failures / hurry) if kind == "startup" else failures,
        )


@dataclass(slots=True)
class Verdict:
    """What the results of one probe say so far; changes after as many equal results in a row as the probe asks."""

    probe: Probe
    passed: bool = False
    failed: bool = False
    """As often in a row as its threshold: a container is killed for it (startup, liveness)."""
    _run: int = 0
    _last: bool | None = None

    def take(self, *, succeeded: bool) -> None:
        """Count one result."""
        self._run = self._run + 1 if succeeded is self._last else 1
        self._last = succeeded
        if succeeded and self._run >= self.probe.successes:
            self.passed, self.failed = True, False
        elif not succeeded and self._run >= self.probe.failures:
            self.passed, self.failed = False, True


def port_of(container: Object, port: int | str) -> int | None:
    """Return a port by its number or its name in the container."""
    if isinstance(port, int):
        return port
    if port.isdigit():
        return int(port)
    named = (p["containerPort"] for p in container.get("ports") or () if p.get("name") == port)
    return next(named, None)


async def ask(
    client: aiohttp.ClientSession, probe: Probe, container: Object, ports: Mapping[int, int], pod_ip: str
) -> str:
    """Ask once; return "" where it succeeded, else the kubelet's message."""
    http, tcp = probe.what.get("httpGet"), probe.what.get("tcpSocket")
    target = http if http is not None else tcp
    if target is None:
        return "the lab plays HTTP and TCP probes only"
    port = port_of(container, target["port"])
    if port is None:
        return f"couldn't find port: {target['port']}"
    path = "" if http is None else http.get("path") or "/"
    scheme = "http" if http is None else http.get("scheme", "HTTP").lower()
    real = ports.get(port)
    refused = f"dial tcp {pod_ip}:{port}: connect: connection refused"
    if http is not None:
        refused = f'Get "{scheme}://{pod_ip}:{port}{path}": {refused}'
    if real is None:
        return refused
    try:
        async with asyncio.timeout(probe.timeout_s):
            if http is None:
                _, writer = await asyncio.open_connection("127.0.0.1", real)
                writer.close()
                return ""
            headers = {entry["name"]: entry["value"] for entry in http.get("httpHeaders") or ()}
            url = f"{scheme}://127.0.0.1:{real}{path}"
            async with client.get(url, headers=headers, allow_redirects=False) as answer:
                good = 200 <= answer.status < 400
                return "" if good else f"HTTP probe failed with statuscode: {answer.status}"
    except TimeoutError:
        return f'Get "{scheme}://{pod_ip}:{port}{path}": context deadline exceeded'
    except (aiohttp.ClientError, OSError):
        return refused
