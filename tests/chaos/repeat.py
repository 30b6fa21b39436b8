"""Sends every hint six times, whatever broker there is, until its standard input ends.

Started by `stack.helper` with a worker's environment. Takes every row that is due or held, so that copies of
one message reach several worker processes at once, also while one of them is at work on that row.
"""

from __future__ import annotations

import select
import sys
from typing import Final

import django

TIMES: Final = 6
EVERY_S: Final = 0.4
KINDS: Final = ("allocation", "boundary", "endpoint", "machine", "namespace")


def main() -> int:
    """Repeat until told to end; prints how many messages were sent."""
    django.setup()
    from controlplane.celery import app
    from provisioners.kinds import PASSES
    from tenants.actor import SYSTEM
    from tenants.transactions import reading

    sent = 0
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        with reading(SYSTEM):
            busy = [
                (kind, pk)
                for kind in KINDS
                for pk in PASSES[kind]
                .model._base_manager.filter(released_at__isnull=True, due_at__isnull=False)
                .values_list("pk", flat=True)[:50]
            ]
        for kind, pk in busy:
            for _ in range(TIMES):
                arguments = {"kind": kind, "pk": str(pk)}
                app.send_task("provisioners.reconcile", kwargs=arguments, expires=15, ignore_result=True)
                sent += 1
    print(sent, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
