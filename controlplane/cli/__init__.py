"""`tenantry`: the command line of people and automation. httpx, typer and rich only, no Django."""

from controlplane.cli.app import main

__all__ = ["main"]
