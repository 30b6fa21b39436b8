"""`python -m tests.crash --on vsphere`: the table on vCenters of the lab, one per job."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from controlplane.labs.vsphere.vcenter import VCenter
from provisioners.driver import Secret
from provisioners.steps import REGISTRY
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.settings import settings_of
from tenants.models import Host
from tests import factories
from tests.crash import lives, scenarios, tables, vcenter
from tests.crash.clock import Clock, Clocks
from tests.crash.databases import Databases
from tests.crash.world import Site, World
from tests.vsphere.ground import boundary, clear, walk

STEPS = ("folder", "pool", "network", "role", "vm", "serving")
ELSEWHERE = frozenset({"serving.secret"})
"""Steps of endpoints in namespaces: a guest is given nothing that is secret but its token."""


@dataclass(slots=True)
class Lab(lives.Lab):
    """A run on vCenters."""

    where: str = "vcenter"

    def site(self, database: str, clock: Clock) -> Site:
        """Return where a life of this process happens."""
        return vcenter.site(self.clusters[self.slot], database, clock)

    def lay_ground(self, here: World) -> dict[str, object]:
        """Make people and quota, and connect the vCenter with its hosts open."""
        scenarios.lay_people()
        place: VCenter = self.clusters[0]
        found = here.site.access().driver(deadline_s=0.0).capabilities()
        row = factories.provider(
            name="vcenter",
            kind="vsphere",  # the point's own driver is used; what counts here is what the core makes of it
            config=vcenter.config_of(place),
            capabilities={
                "boundary_kinds": sorted(str(kind) for kind in found.boundary_kinds),
                "bindings": sorted(str(binding) for binding in found.bindings),
            },
            due_at=here.clock(),
        )
        scenarios.connect(here, row, place.password)
        here.calm_down()  # what an open host offers is known from the second look on
        open_ones = set(Host.objects.filter(placeable=True).values_list("provider_ref", flat=True))
        assert set(vcenter.HOSTS) <= open_ones, list(Host.objects.values())
        return {}


def run(folder: Path, options: argparse.Namespace) -> bool:
    """Run the table; return whether all points held and every step was come to."""
    with ExitStack() as stack:
        store = Databases(folder)
        stack.callback(store.stop)
        store.start()
        lab = Lab(store, Clocks(), [_vcenter(folder, number, stack) for number in range(options.jobs)])
        lab.ground()
        mine = [name for name in REGISTRY if name.split(".")[0] in STEPS and name not in ELSEWHERE]
        wanted = [word for name in mine for word in (name, f"undo:{name}")]
        return tables.run(lab, lives.ON_VCENTERS, wanted, options)


def _vcenter(folder: Path, number: int, stack: ExitStack) -> VCenter:
    made = VCenter(f"crash-{number}", folder=folder / f"v{number}", world=vcenter.WORLD)
    stack.callback(made.delete)
    made.start()
    _warm_up(made)
    return made


def _warm_up(place: VCenter) -> None:
    """Make a boundary and remove it: what is made once per vCenter (attributes, root folder) is no step of a life."""
    driver = VSphereDriver(settings_of(vcenter.config_of(place), {"password": Secret(place.password)}))
    spec = boundary()
    walk(driver, spec)
    clear(driver, spec)
    driver.close()
