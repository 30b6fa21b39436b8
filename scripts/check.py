"""`make check`: every static check, each run even when an earlier one failed; ends with one line per check."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
OPENAPI = ROOT / "docs" / "openapi.yaml"


def run(*words: str) -> bool:
    """Run a program of the virtual environment; true when it ended with 0."""
    return subprocess.run([str(BIN / words[0]), *words[1:]], cwd=ROOT, check=False).returncode == 0


def openapi() -> bool:
    """The stored OpenAPI document is what the code says now."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "openapi.yaml"
        if not run("python", "-m", "controlplane", "spectacular", "--file", str(fresh), "--validate", "--fail-on-warn"):
            return False
        stored = OPENAPI.read_text() if OPENAPI.exists() else ""
        current = fresh.read_text()
    lines = stored.splitlines(), current.splitlines()
    drift = list(difflib.unified_diff(*lines, "docs/openapi.yaml", "code", lineterm=""))
    print("\n".join(drift[:60]))
    if drift:
        print("mend: make openapi")
    return not drift


CHECKS: dict[str, Callable[[], bool]] = {
    "lint": lambda: run("ruff", "check", "--output-format", "concise", "."),
    "format": lambda: run("ruff", "format", "--check", "."),
    "types": lambda: run("mypy"),
    "imports": lambda: run("lint-imports"),
    # it warns that it could not ask a database, which it need not here
    "migrations": lambda: run(
        "python", "-W", "ignore::RuntimeWarning", "-m", "controlplane", "makemigrations", "--check", "--dry-run"
    ),
    "openapi": openapi,
    "architecture": lambda: run("pytest", "-q", "-p", "no:cacheprovider", "tests/architecture"),
}


def main(names: list[str]) -> int:
    """Run the named checks, all without names; 0 when all pass."""
    unknown = set(names) - set(CHECKS)
    if unknown:
        print(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    os.environ["TENANTRY_PROCESS"] = "owner"
    results: dict[str, tuple[bool, float]] = {}
    for name in names or CHECKS:
        print(f"── {name}", flush=True)
        began = time.monotonic()
        results[name] = (CHECKS[name](), time.monotonic() - began)
    print("──")
    for name, (passed, seconds) in results.items():
        print(f"{'ok  ' if passed else 'FAIL'} {name:<13} {seconds:5.1f} s")
    return 0 if all(passed for passed, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
