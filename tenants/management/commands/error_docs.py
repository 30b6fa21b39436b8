"""Write `docs/errors.md` from the registry of error codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from tenants.problems import help_document


class Command(BaseCommand):
    """`python -m controlplane error_docs [file]`."""

    help = "write docs/errors.md from the registry of error codes"

    def add_arguments(self, parser: Any) -> None:
        """Take the file."""
        parser.add_argument("file", nargs="?", default="docs/errors.md", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        """Write it."""
        options["file"].write_text(help_document(), encoding="utf-8")
