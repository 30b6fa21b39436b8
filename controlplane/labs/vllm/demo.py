"""`python -m controlplane.labs.vllm.demo`: the golden path with a real vLLM at its end, for `make demo VLLM=1`.

An operator connects a sandbox estate whose models are local and offers the lab's small model; a member asks for it in a
namespace and in a VM, and is answered by the vLLM that a pass started in her boundary, through its gateway. vLLM, the
gateways and the control plane are real; hosts, GPUs and boundaries are simulated, and vLLM runs on this machine's CPU.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx

from controlplane.cli.client import Client, Json, pause
from controlplane.cli.walk import OPERATOR, Route, Timeline, Walk, WalkFailed
from controlplane.labs import connecting, showing
from controlplane.labs.vllm import build

PROVIDER: Final = "vllm-local"
SITE: Final = "here"
MODEL: Final = "tiny"
ARGUMENTS: Final[Json] = {"max_model_len": 1024, "dtype": "bfloat16", "enforce_eager": True}
"""Of the typed list, so that it starts soon on a CPU."""
FIRST_TOKEN_S: Final = 240.0
"""vLLM takes 20 to 45 s on two idle cores."""
PATIENCE_S: Final = 400.0
# No invented delays: what takes time here is the gateway's and the model server's start, and those are real.
ESTATE: Final[Json] = {
    "schema": "sandbox-estate/1",
    "settings": {"gateways": "real", "models": "local", "names": True, "delays_s": {"": 0.0}},
    "hosts": [
        {"host": "local-a", "name": "local-a.example", "binding": "device", "boundary_kinds": ["namespace"],
         "vcpu": 64, "memory_gib": 256, "gpus": [{"product": "H100-80GB", "count": 1}]},
        {"host": "local-b", "name": "local-b.example", "binding": "host", "boundary_kinds": ["vm"],
         "vcpu": 64, "memory_gib": 256, "gpus": [{"product": "A100-80GB", "count": 1}]},
    ],
}  # fmt: skip
PATHS: Final = (
    Route("an endpoint in a namespace, served by a real vLLM", "real-ns", PROVIDER, "H100-80GB/1g.10gb"),
    Route("an endpoint in a VM, served by a real vLLM", "real-vm", PROVIDER, "A100-80GB/1g.10gb", kind="vm"),
)


@dataclass
class VllmWalk(Walk):
    """An endpoint's walk whose answer has to come from a real vLLM."""

    limit_s: float = FIRST_TOKEN_S
    patience_s: float = PATIENCE_S

    def _what(self, path: Route) -> Json:
        return {**super()._what(path), "model": MODEL, "arguments": ARGUMENTS}

    def _check_answer(self, answer: httpx.Response) -> None:
        """See that no stub answered, and tell which process did. Raises `WalkFailed`."""
        said: Json = answer.json()
        name = str(said.get("system_fingerprint", ""))
        if "x-tenantry-simulated" in answer.headers or not name.startswith(f"vllm-{build.VERSION}"):
            raise WalkFailed(f"a stub answered, or another program: {answer.text[:200]}")
        (server,) = [one for one in model_servers() if one["ready"]]
        self.timeline.say(
            "vLLM",
            f"{server['told']['program']} answered, pid {server['pid']} on port {server['port']}: {name}, "
            f"{said['usage']['completion_tokens']} tokens, KV cache of {server['told']['kv_cache_tokens']:,} tokens",
            style="bold green",
        )


def model_servers() -> list[Json]:
    """Return what the sandbox knows of the model servers that it started."""
    return list(_sandbox("GET", f"estates/{PROVIDER}/control/models").json()["models"])


def connect(ole: Client, timeline: Timeline) -> None:
    """Make the estate, connect it and open its hosts; offer the small model. Raises `WalkFailed`, `CliError`."""
    found = build.installed()
    _sandbox("PUT", f"estates/{PROVIDER}", json=ESTATE)
    _sandbox("PATCH", f"estates/{PROVIDER}/control/settings", json=ESTATE["settings"])
    url, token = os.environ["TENANTRY_SANDBOX_URL"], os.environ["TENANTRY_SANDBOX_TOKEN"]
    config: dict[str, Any] = {"url": url, "estate": PROVIDER}
    connecting.store(ole, name=PROVIDER, kind="sandbox", site=SITE, config=config, secrets={"token": token})
    connecting.hand_over(ole, provider=PROVIDER, wanted={"local-a.example", "local-b.example"}, timeline=timeline)
    offered = [one for one in ole.items("/served-models") if one["name"] == MODEL]
    if offered and offered[0]["commit"] != found.commit:
        raise WalkFailed(f"{MODEL} is offered at another commit; start with `make reset`")
    if not offered:
        config, files = found.files()
        body = {"name": MODEL, "repository": found.repository, "commit": found.commit}
        ole.post("/served-models", {**body, "config": config, "files": files})
    said = f"offers {MODEL}: {found.repository} at {found.commit[:12]}…, random weights, made here"
    timeline.say("Ole", f"{said}; checked by its config.json")


def _sandbox(method: str, path: str, **options: Any) -> httpx.Response:
    """Call the sandbox's own interface, as whoever owns it. Raises `WalkFailed`."""
    headers = {"Authorization": f"Bearer {os.environ['TENANTRY_SANDBOX_TOKEN']}"}
    url = f"{os.environ['TENANTRY_SANDBOX_URL']}/{path}"
    with httpx.Client(headers=headers, timeout=30.0, trust_env=False) as http:
        try:
            return http.request(method, url, **options).raise_for_status()
        except httpx.HTTPError as error:
            raise WalkFailed(f"the sandbox does not do it: {error}") from error


def walks(people: showing.People, timeline: Timeline) -> dict[str, float]:
    """Connect and walk both paths. Raises `showing.FAILURES`."""
    timeline.title("A site whose models are real")
    connect(people[OPERATOR], timeline)
    took = {}
    for number, path in enumerate(PATHS, start=1):
        timeline.title(f"{number}. {path.title[0].upper()}{path.title[1:]}")
        took[path.title] = VllmWalk(people, timeline).walk(path)
    end = time.monotonic() + connecting.PATIENCE_S
    while left := model_servers():
        if time.monotonic() > end:
            raise WalkFailed(f"model servers are left: {[one['pid'] for one in left]}")
        pause(0.5)
    timeline.say("sandbox", "no model server is left", style="green")
    return took


def main(arguments: list[str]) -> int:
    """Walk; what was started ends with the sandbox."""
    told = (
        "The golden path with a REAL vLLM behind real gateways. It runs on this machine's CPU with a model of random "
        "weights; hosts, GPUs and boundaries are SIMULATED."
    )
    return showing.main("controlplane.labs.vllm.demo", __doc__, arguments, told=told, walks=walks, stop=lambda: None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
