"""`python -m tests.api.fuzz [--minutes N] [--seed N]`: schemathesis over the OpenAPI document, on a real server.

Starts its own database, fills it with the matrix's world, starts the web process as production does (granian,
cp_app, pool) and runs all checks, stateful too. Exit status 0: no finding and no 5xx.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
# These end the proof that the run itself comes with, or the person behind it.
LEFT_OUT = ("login.delete", "tokens.revoke", "people.set_password", "people.leave", "people.suspend")
CONFIG = """
[parameters]
"path.tenant" = "acme"
"query.wait" = 0.1

# What fits the schema may still be refused: another version, a header that is missing or was used.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "412", "422", "428", "429"]

# A tag that is none matches no version.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "412", "415", "422", "428", "429"]
"""
# Refused for what no schema can say: nobody has this e-mail, no such model or image, a common password, a past moment,
# a price of another currency, nothing asked for, a payload of another kind of request, signs nobody can see, a kind
# of notification that the caller never gets, an address that nothing may be sent to, a line that is no SSH key.
BY_MEANING = (
    "auto-approval-rules.create", "delegations.create", "endpoints.create", "endpoints.create_key", "endpoints.put",
    "endpoints.revise", "machines.create", "machines.put", "machines.rebuild", "machines.resize",
    "machines.ssh_certificate", "members.create", "members.hand_over", "namespaces.create", "namespaces.put",
    "allocations.create", "allocations.create_batch", "allocations.renew", "people.create",
    "people.leave", "people.update", "people.suspend", "prices.create", "requests.comment", "served-models.create",
    "served-models.update", "providers.set_credential", "providers.create", "providers.update",
    "quotas.set", "requests.create",
    "model-stages.create", "requests.create_join", "requests.create_model", "requests.create_tenant",
    "requests.create_write_off",
    "requests.decide",
    "requests.revise", "service-account-tokens.create", "service-accounts.create", "service-accounts.update",
    "costs.list", "tenants.create", "tenants.create_child", "tenants.set_policy", "tenants.suspend", "tenants.update",
    "tokens.create", "findings.resolve", "hosts.drain", "hosts.layout", "hosts.preview_layout",
    "hosts.maintenance",
    "notifications.mark_read", "notification-preferences.set", "webhooks.create", "webhooks.update",
)  # fmt: skip
# A path is text: `null` and `true` are names like any other.
TEXT = """
[[operations]]
include-operation-id = ["providers.set_credential", "providers.remove_credential"]
checks.negative_data_rejection.expected-statuses = ["2xx", "4xx"]
"""
MEANING = """
[[operations]]
include-operation-id = "{name}"
checks.positive_data_acceptance.expected-statuses = ["2xx", "4xx"]
"""


def main() -> int:
    """Run; return the exit status of schemathesis, or 1 after a 5xx."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--port", type=int, default=8477)
    options.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    options.add_argument("--examples", type=int, default=30)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenantry-fuzz-") as folder:
        Path(folder).chmod(0o755)  # started by root, PostgreSQL runs as another user
        os.environ["TENANTRY_TEST_STATE"] = folder
        return run(asked, Path(folder))


def run(asked: argparse.Namespace, folder: Path) -> int:
    """Start everything, fuzz, stop everything."""
    from controlplane.embedded.postgres import EmbeddedPostgres
    from tests import environment

    server = EmbeddedPostgres(environment.STATE, profile="test")
    server.start()
    web: subprocess.Popen[bytes] | None = None
    log = (folder / "web.log").open("wb")
    try:
        server.create_database(environment.DATABASE)
        owner = {**os.environ, "TENANTRY_PROCESS": "owner"}
        subprocess.run([sys.executable, "-m", "controlplane", "migrate", "-v", "0"], check=True, cwd=ROOT, env=owner)
        token = fill()
        web = subprocess.Popen(
            ["granian", "--interface", "asginl", "--host", "127.0.0.1", "--port", str(asked.port), "--workers", "1",
             "controlplane.asgi:application"],
            cwd=ROOT, env={**os.environ, "TENANTRY_PROCESS": "web"}, stdout=log, stderr=log,
        )  # fmt: skip
        base = f"http://127.0.0.1:{asked.port}"
        ready(base)
        (folder / "schemathesis.toml").write_text(
            CONFIG + TEXT + "".join(MEANING.format(name=name) for name in BY_MEANING)
        )
        left_out = [word for name in LEFT_OUT for word in ("--exclude-operation-id", name)]
        done = subprocess.run(
            ["schemathesis", "--config-file", str(folder / "schemathesis.toml"), "run", f"{base}/api/schema",
             "--url", base, "--header", f"Authorization: Bearer {token}", "--checks", "all",
             "--phases", asked.phases, "--seed", str(asked.seed), "--max-examples", str(asked.examples),
             "--max-time", str(int(asked.minutes * 60)), "--request-timeout", "30", "--workers", "1", *left_out],
            cwd=folder, check=False,
        )  # fmt: skip
        bugs = [line for line in (folder / "web.log").read_text().splitlines() if "unhandled error" in line]
        for line in bugs[:20]:
            sys.stdout.write(line[:2000] + "\n")
        return done.returncode or int(bool(bugs))
    finally:
        if web is not None:
            web.terminate()
            web.wait(20)
        log.close()
        server.stop("immediate")


def fill() -> str:
    """Make the world; return the token of somebody who may do everything."""
    import django

    django.setup()
    from django.db import connections

    from tenants.models import PlatformMembership
    from tenants.states import PlatformRole
    from tests.api.client import token_of
    from tests.api.world import build
    from tests.conftest import NOW

    boss = build().acme.owner
    for role in PlatformRole:
        PlatformMembership.objects.create(person=boss, role=role.value, created_at=NOW)
    token = token_of(boss)
    connections.close_all()
    return token


def ready(base: str) -> None:
    """Wait until the web process answers. Raises `TimeoutError` after 30 s."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if httpx.get(f"{base}/readyz", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
    raise TimeoutError("the web process does not get ready")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    sys.exit(main())
