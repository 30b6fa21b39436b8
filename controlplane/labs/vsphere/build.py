"""What the vSphere lab is built of, and its workshop (`controlplane.labs.building`)."""

from __future__ import annotations

import sys
from typing import Final

from controlplane.labs import building
from controlplane.labs.building import Module, Programs, Tell, Workshop
from controlplane.labs.errors import LabError

VCENTER: Final = Module("vsphere", ("tenantry.internal/lab/vsphere",), renamed=(("vsphere", "vcenter"),), minutes=1.5)
"""`deploy/labs/vsphere`: govmomi's simulator with GPUs and faults."""


def is_built() -> bool:
    """Whether the program is in the cache."""
    return _workshop().is_built((VCENTER,))


def why_not_here() -> str:
    """Return why the program can neither be found nor built here; empty when it can."""
    return _workshop().why_not_here((VCENTER,))


def ensure(*, tell: Tell | None = None) -> Programs:
    """Return the program, built first where the cache lacks it. Raises as `Workshop.ensure`."""
    return _workshop().ensure((VCENTER,), tell=tell)


def _workshop() -> Workshop:
    return Workshop("vsphere", "the vSphere lab", building.SOURCES)


def main() -> int:
    """`python -m controlplane.labs.vsphere.build`: build what is missing; needs the standard library only."""
    try:
        for folder in ensure().folders:
            print(folder)
    except LabError as error:
        building.say_on_stderr(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
