"""Into a namespace with kubectl: `kubeconfig` once, and `kube-credential`, which kubectl itself runs."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Final

import typer

from controlplane.cli import session
from controlplane.cli.client import Json
from controlplane.cli.failures import CliError, TimedOut
from controlplane.cli.nouns import noun

EXEC_API: Final = "client.authentication.k8s.io/v1"
PATIENCE_S: Final = 30.0
PAUSE_S: Final = 0.2
Name = Annotated[str, typer.Argument(metavar="NAMESPACE", help="A namespace, by name or id.")]
Seconds = Annotated[int, typer.Option(min=60, max=3600, help="How long the token lasts.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("kubeconfig")(kubeconfig)
    app.command("kube-credential")(kube_credential)


def kubeconfig(
    ctx: typer.Context,
    name: Name,
    static: Annotated[
        bool, typer.Option("--static", help="With a token in it, for tools that run no program; ends within an hour.")
    ] = False,
    seconds: Seconds = 3600,
) -> None:
    """Print a kubeconfig for a namespace: it asks `tenantry kube-credential` for a token whenever kubectl needs one."""
    here = session.of(ctx)
    found = _credential(here, name, seconds)
    here.screen.line(str(found["static_kubeconfig" if static else "kubeconfig"]).rstrip("\n"))
    if static:
        here.screen.note(f"it holds a token and ends {found['expires_at']}")
    else:
        here.screen.next(
            f"tenantry kubeconfig {name} > {name}.kubeconfig", f"kubectl --kubeconfig {name}.kubeconfig get pods"
        )


def kube_credential(ctx: typer.Context, name: Name, seconds: Seconds = 3600) -> None:
    """Print a token for kubectl (client.authentication.k8s.io/v1); kubectl runs this by itself."""
    found = _credential(session.of(ctx), name, seconds)
    answer = {
        "apiVersion": EXEC_API,
        "kind": "ExecCredential",
        "status": {"token": found["token"], "expirationTimestamp": found["expires_at"]},
    }
    sys.stdout.write(json.dumps(answer) + "\n")


def _credential(here: session.Session, name: str, seconds: int) -> Json:
    """Ask for a credential and wait for a worker's answer. Raises `CliError`, `TimedOut`."""
    path = f"{noun('namespaces').collection(tenant=here.tenant())}/{name}/credentials"
    found: Json = here.client.post(path, {"seconds": seconds}).body
    began = time.monotonic()
    while found["state"] == "asked":
        if time.monotonic() - began > PATIENCE_S:
            raise TimedOut(f"no credential for namespace/{name} within {PATIENCE_S:.0f} s", hint="tenantry doctor")
        here.client.pause(PAUSE_S)
        found = here.client.get(f"{path}/{found['id']}")
    if found["state"] != "made":
        raise CliError(f"namespace/{name}: {found['error']}", hint=f"tenantry explain namespace/{name}")
    return found
