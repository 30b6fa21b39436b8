"""`python -m controlplane.labs.kubernetes.smi`: stands for `nvidia-smi -L > /dev/termination-log` in a simulated pod.

Says what the device plugin or the claim gave to this pod, in the words of `nvidia-smi -L`. No GPU is there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from controlplane.labs.kubernetes.containers import PLACE_VARIABLE, TERMINATION_VARIABLE


def main() -> int:
    """Write the list; 6 where no device is there, as the real one."""
    lines = json.loads(os.environ[PLACE_VARIABLE]).get("smi") or []
    text = "\n".join(lines) if lines else "No devices found."
    Path(os.environ[TERMINATION_VARIABLE]).write_text(text + "\n")
    return 0 if lines else 6


if __name__ == "__main__":
    sys.exit(main())
