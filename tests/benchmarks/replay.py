"""A public trace replayed through REST on a whole installation: does every request end with a true reason?

    python -m tests.benchmarks.replay --traces ../shared/traces [--within 15m] [--last 2000] [--tenants 20]

Starts an installation of its own (web, worker, beat, PostgreSQL with production settings, sandbox), makes an
estate from the node list of `spot-gpu-2026` (A800 and A100 become A100-80GB, H800 becomes H100-80GB, others are
whole GPUs; 8 GiB of memory per vCPU: `provisioners/sandbox/files.py`), sends the last GPU requests of the openb
pod list as allocations, and audits the ledger each minute meanwhile. Ends with 1 when an audit finds anything or a
request ends in none of ready, released, or waiting with a reason that the estate bears out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from provisioners.sandbox import files
from tests.chaos.stack import ROOT, ChaosFailed, Stack, until

ESTATE = "spot"
PRODUCTS = ("H100-80GB", "A100-80GB")
AUDIT_EVERY_S = 60.0
LIMITS = (
    "gpu.H100-80GB.slices=1000000", "gpu.A100-80GB.slices=1000000", "vcpu=100000000", "memory_gib=1000000000",
    "boundaries=1000",
)  # fmt: skip


class Auditor(threading.Thread):
    """Runs `ledger_audit` each minute until it is told to stop."""

    def __init__(self, stack: Stack) -> None:
        """Audit `stack`."""
        super().__init__(daemon=True)
        self.stack = stack
        self.ended = threading.Event()
        self.results: list[tuple[int, str]] = []

    def run(self) -> None:
        """Audit until stopped."""
        while not self.ended.wait(AUDIT_EVERY_S):
            began = time.monotonic()
            status, said = self.stack.command("ledger_audit")
            self.results.append((status, said))
            print(f"audit {len(self.results)}: {said.splitlines()[-1] if said else status}"
                  f" ({time.monotonic() - began:.1f} s)", flush=True)  # fmt: skip


def cli(stack: Stack, who: str, *words: str, given: str = "", shown: bool = False) -> str:
    """Run the product's own command line as a person; return what it prints. Raises `ChaosFailed` when it fails."""
    environment = {
        **stack.environ(),
        "TENANTRY_URL": stack.installation.web_url,
        "TENANTRY_TOKEN": stack.token(who),
        "TENANTRY_CONFIG": str(stack.state / "cli.toml"),
        "TENANTRY_SANDBOX_URL": stack.installation.sandbox_url,
        "TENANTRY_SANDBOX_TOKEN": stack.installation.sandbox_environ()["TENANTRY_SANDBOX_TOKEN"],
    }
    done = subprocess.run(
        [sys.executable, "-m", "controlplane.cli", *words],
        env=environment, cwd=ROOT, input=given, text=True, check=False,
        stdout=None if shown else subprocess.PIPE, stderr=None if shown else subprocess.PIPE,
    )  # fmt: skip
    if done.returncode:
        raise ChaosFailed(f"tenantry {' '.join(words)}: {done.returncode} {(done.stderr or '')[-1500:]}")
    return done.stdout or ""


def give_estate(stack: Stack, nodes: Path) -> None:
    """Bring a simulated estate into use as an operator does a real one: connect, accept, open."""
    operator = "ole@demo.test"
    url = stack.installation.sandbox_url
    cli(stack, operator, "sandbox", "put-estate", ESTATE, str(nodes))
    cli(stack, operator, "provider", "create", ESTATE, "--kind", "sandbox", "--site", "lab",
        "--config", f"url={url}", "--config", f"estate={ESTATE}")  # fmt: skip
    token = stack.installation.sandbox_environ()["TENANTRY_SANDBOX_TOKEN"]
    cli(stack, operator, "provider", "set-credential", ESTATE, "token", given=token)
    count = "SELECT count(*) FROM tenants_host h JOIN tenants_provider p ON p.id = h.provider_id WHERE p.name = %s"
    there = len(files.estate_from_spot_gpu(nodes)["hosts"])
    until(lambda: stack.number(count, ESTATE) == there, within_s=900, what=f"{there} hosts are seen")
    wanted = f"{count} AND h.gpu_product = ANY(%s)"
    for verb, before, after in (("accept", "joining", "accepted"), ("open", "accepted", "open")):
        each_host(stack, operator, verb, before)
        until(
            lambda after=after: stack.number(f"{wanted} AND h.state <> %s", ESTATE, list(PRODUCTS), after) == 0,
            within_s=900,
            what=f"all hosts are {after}",
        )
    for each in ("k8s-sim", "vsphere-sim"):
        cli(stack, operator, "provider", "disable", each)
    rows = stack.rows(
        "SELECT product, count(*) FROM tenants_gpudevice d JOIN tenants_provider p ON p.id = d.provider_id"
        " WHERE p.name = %s GROUP BY 1 ORDER BY 2 DESC", ESTATE,
    )  # fmt: skip
    print(f"{there} hosts, GPUs: {dict(rows)}; placed on are those of {', '.join(PRODUCTS)}", flush=True)


def each_host(stack: Stack, who: str, verb: str, state: str) -> None:
    """Do one thing to every host of the estate that the replay can use; the others stay as they are."""
    headers = {"Authorization": f"Bearer {stack.token(who)}"}
    with httpx.Client(base_url=stack.url, headers=headers, timeout=60, trust_env=False) as http:
        found: list[str] = []
        cursor = ""
        while True:
            query = {"provider": ESTATE, "state": state, "limit": 200, "cursor": cursor}
            page = http.get("/hosts", params=query).raise_for_status().json()
            found += [row["id"] for row in page["items"] if row["gpu_product"] in PRODUCTS]
            cursor = page["next"]
            if not cursor:
                break

        def post(host: str) -> None:
            key = {"Idempotency-Key": f"{verb}-{host}"}
            http.post(f"/hosts/{host}/{verb}", headers=key).raise_for_status()

        with ThreadPoolExecutor(4) as clients:
            list(clients.map(post, found))


def explain_waiting(stack: Stack) -> tuple[Counter[str], int]:
    """Return reasons of those that wait, and how many of them wait although nothing like them would be refused.

    A reason is true when a fresh look at the ledger finds no room either: asked of the product's own `explain`.
    """
    rows = stack.rows(
        "SELECT c->>'reason', count(*) FROM tenants_allocation a, jsonb_array_elements(a.conditions) c"
        " WHERE a.phase = 'Waiting' AND c->>'type' = 'Placed' GROUP BY 1"
    )
    reasons = Counter({str(reason): int(number) for reason, number in rows})
    fits = stack.number(
        """
        WITH waits AS (
            SELECT a.id, u.value->'gpu'->>'product' AS product, u.value->'gpu'->>'profile' AS profile,
                   coalesce((u.value->'gpu'->>'count')::int, 1) AS gpus,
                   (u.value->>'vcpu')::int AS vcpu, (u.value->>'memory_gib')::int AS memory
            FROM tenants_allocation a, jsonb_array_elements(a.spec->'units') u WHERE a.phase = 'Waiting')
        SELECT count(DISTINCT w.id) FROM waits w JOIN tenants_host h
            ON h.gpu_product = w.product AND h.placeable AND h.free_vcpu >= w.vcpu AND h.free_memory_gib >= w.memory
        WHERE coalesce(w.profile, '') = '' AND h.empty_gpus >= w.gpus
        """
    )
    return reasons, fits


def main() -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    parser.add_argument("--within", default="15m")
    parser.add_argument("--last", type=int, default=2000)
    parser.add_argument("--tenants", type=int, default=20)
    options = parser.parse_args()
    nodes = options.traces / "spot-gpu-2026" / "node_info_df.csv"
    pods = options.traces / "openb" / "openb_pod_list_default.csv"
    for file in (nodes, pods):
        if not file.is_file():
            print(f"{file} is not there: give the folder of the traces with --traces")
            return 2
    with Stack(variables={k: v for k, v in os.environ.items() if k == "CELERY_BROKER_URL"}) as stack:
        give_estate(stack, nodes)
        tenants = f"replay-{{}}:{options.tenants}"
        operator = "ole@demo.test"
        cli(stack, operator, "sandbox", "prepare-replay", "--owner", operator, *LIMITS, "--tenants", tenants)
        auditor = Auditor(stack)
        auditor.start()
        words = ["sandbox", "replay", str(pods), "--within", options.within, "--last", str(options.last),
                 "--tenants", tenants, *(w for p in PRODUCTS for w in ("--product", p))]  # fmt: skip
        cli(stack, operator, *words, shown=True)
        auditor.ended.set()
        auditor.join()
        reasons, fits = explain_waiting(stack)
        status, said = stack.command("ledger_audit")
        bad = [result for result in [*auditor.results, (status, said)] if result[0]]
        print(f"waiting at the end: {dict(reasons)}; of these, {fits} for whole GPUs that a host has free")
        print(f"{len(auditor.results) + 1} audits, {len(bad)} with findings; {said}")
        return 1 if bad or fits else 0


if __name__ == "__main__":
    sys.exit(main())
