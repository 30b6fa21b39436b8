"""Handing a lab's hosts to the control plane through its API, as an operator does: for the labs' walks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from controlplane.cli.client import Client, Json, pause
from controlplane.cli.walk import TENANT, Timeline, WalkFailed

PATIENCE_S: Final = 90.0
ACCEPTED_WITHIN_S: Final = 300.0
"""What boots on a host to try it is looked at every now and then."""
COMMAND_S: Final = 60.0


def store(
    ole: Client, *, name: str, kind: str, site: str, config: Mapping[str, Any], secrets: Mapping[str, str]
) -> None:
    """Store a provider and its credentials, or bring the one that is there to this. Raises `CliError`."""
    there = ole.find(f"/providers/{name}")
    if there is None:
        ole.post("/providers", {"name": name, "kind": kind, "site": site, "config": dict(config)})
    elif there["config"] != config:  # other ports than last time
        ole.patch(f"/providers/{name}", {"config": dict(config)}, version=there["version"])
    for key, value in secrets.items():
        ole.put(f"/providers/{name}/credentials/{key}", {"value": value})


def hand_over(ole: Client, *, provider: str, wanted: set[str], timeline: Timeline) -> None:
    """Test a provider's connection, accept the hosts of these names and open them. Raises `WalkFailed`, `CliError`."""
    answer: Json = ole.post(f"/providers/{provider}/test").body
    timeline.say("tenantry", f"tests the connection: {json.dumps(answer)[:220]}")
    until(f"{provider} shows its hosts", lambda: wanted <= {host["name"] for host in _hosts(ole, provider)})
    for host in _hosts(ole, provider):
        if host["name"] in wanted and host["state"] == "joining" and "requested_at" not in host["acceptance"]:
            ole.post(f"/hosts/{host['id']}/accept")
    until(
        f"the hosts of {provider} pass their acceptance",
        lambda: _passed(ole, provider, wanted),
        within_s=ACCEPTED_WITHIN_S,
    )
    for host in _hosts(ole, provider):
        if host["name"] in wanted and host["state"] == "accepted":
            ole.post(f"/hosts/{host['id']}/open")
            timeline.say(
                "Ole", f"opens {host['name']}: {host['gpu_count']} × {host['gpu_product']} ({host['binding']})"
            )


def until(words: str, is_true: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    """Look until something is so. Raises `WalkFailed` with its words."""
    end = time.monotonic() + within_s
    while not is_true():
        if time.monotonic() > end:
            raise WalkFailed(f"not so after {within_s:.0f} s: {words}")
        pause(0.5)


def _passed(ole: Client, provider: str, wanted: set[str]) -> bool:
    hosts = [host for host in _hosts(ole, provider) if host["name"] in wanted]
    for host in hosts:
        if host["acceptance"].get("passed") is False:
            raise WalkFailed(f"{host['name']} was not accepted: {host['acceptance']}")
    return all(host["state"] != "joining" for host in hosts)


def _hosts(ole: Client, provider: str) -> list[Json]:
    return [host for host in ole.items("/hosts", most=1000) if host["provider"] == provider]


def command_line(who: Client, *words: str) -> str:
    """Run `tenantry` as a process of its own, as a person would, and return what it printed. Raises `WalkFailed`."""
    with tempfile.TemporaryDirectory(prefix="tenantry-demo-") as folder:
        environ = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            "TENANTRY_CONFIG": str(Path(folder) / "config.toml"),
            "TENANTRY_URL": who.url,
            "TENANTRY_TOKEN": who.token,
            "TENANTRY_TENANT": TENANT,
        }
        done = subprocess.run(
            [sys.executable, "-m", "controlplane.cli", *words],
            env=environ, capture_output=True, text=True, timeout=COMMAND_S, check=False,
        )  # fmt: skip
    if done.returncode:
        raise WalkFailed(f"tenantry {words[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout
