"""Files of served models brought into a mirror on NFS by a pod of ours, before an endpoint asks for them.

Here is what its program is called by; `bring` is that program, `stages` makes the pod and reads it.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

PROGRAM: Final = resources.files(__name__).joinpath("bring.py").read_text(encoding="utf-8")
CALL: Final = ("python3", "-I", "-B", "-c", PROGRAM)
"""How it is started: no shell, nothing of the environment or of the folder it is started in."""
TOLD: Final = "/dev/termination-log"
"""Where its verdict goes."""
