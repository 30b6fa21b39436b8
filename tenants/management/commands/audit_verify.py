"""`audit verify`: recompute every event hash, chain and checkpoint. Exit 0 whole, 3 broken."""

from __future__ import annotations

from tenants import audit
from tenants.management.commands import ledger_audit


class Command(ledger_audit.Command):
    """Print every place where a chain of events is broken."""

    help = "Recompute event hashes, chains and checkpoints. Exit 0 whole, 3 broken."
    checks = audit.TRAIL
