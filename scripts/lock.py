"""`make lock`: resolve pyproject.toml into the two hashed lock files, for every supported Python and system.

The second lock is the first plus what tests and checks need, in the same versions. No file names an index:
whoever installs chooses it. Needs `uv`, from PATH or beside this interpreter.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = "--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --quiet"
HEADER = "# Made by `make lock` from pyproject.toml. Hashes are checked; the index is the installer's choice.\n"


def main() -> int:
    """Write both files; words given here, as `--upgrade`, go to the resolver."""
    beside = Path(sys.executable).parent / "uv"
    uv = shutil.which("uv") or (str(beside) if beside.exists() else None)
    if uv is None:
        print("uv is needed: pip install uv", file=sys.stderr)
        return 1
    compile_ = [uv, "pip", "compile", "pyproject.toml", *OPTIONS.split(), "--no-header", "--no-annotate", *sys.argv[1:]]
    product, dev = ROOT / "requirements.lock", ROOT / "requirements-dev.lock"
    groups = ["--group", "build"]
    for target, more in ((product, []), (dev, ["--group", "test", "--group", "lint", "-c", product.name])):
        done = subprocess.run([*compile_, *groups, *more, "-o", target.name], cwd=ROOT, check=False)
        if done.returncode != 0:
            return done.returncode
        target.write_text(HEADER + target.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
