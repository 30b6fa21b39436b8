"""`make bench`: every bench, one after another, in one run. Single readings: compare the rows of one run.

python -m tests.benchmarks [claims|api|passes|gateway|portal|streams|estate|boundaries|clones|
                            refresh|key_refusals …]
"""

from __future__ import annotations

import subprocess
import sys

BENCHES = (
    "claims",
    "api",
    "passes",
    "gateway",
    "portal",
    "streams",
    "estate",
    "boundaries",
    "clones",
    "refresh",
    "key_refusals",
)


def main() -> int:
    """Run the named benches, all by default; return how many failed."""
    failed = 0
    for name in sys.argv[1:] or BENCHES:
        print(f"== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
