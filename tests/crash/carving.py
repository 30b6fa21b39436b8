"""Layout changes as scenarios: the one GPU of a node is carved anew by a plan of the core, and back again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tenants.models import Host, HostPlan, Intent, MigDevice
from tenants.operations import layouts
from tests.crash.scenarios import Act, Scenario, operator
from tests.crash.world import World

LAYOUT: Final = "layout/node"
MIG_HOST: Final = "node-m"
HALVES: Final = ("3g.40gb", "3g.40gb")
SEVEN: Final = ("1g.10gb",) * 7


def _host() -> Host:
    return Host.objects.select_related("provider").get(provider_ref=MIG_HOST)


def _change(profiles: tuple[str, ...]) -> Act:
    def act(world: World) -> None:
        layouts.change_layout(
            host=_host(), layouts={"0": list(profiles)}, reason="a crash table", actor=operator(), now=world.clock()
        )

    return act


def _carved(profiles: tuple[str, ...]) -> Callable[[], bool]:
    """Return a condition: the plan is done, the host is open, and inventory shows these profiles."""

    def is_so() -> bool:
        plan = HostPlan.objects.order_by("created_at").last()
        shown = MigDevice.objects.filter(device__host__provider_ref=MIG_HOST).values_list("profile", flat=True)
        return (
            plan is not None
            and plan.state == "done"
            and plan.lease_expires_at is None
            and _host().state == "open"
            and sorted(shown) == sorted(profiles)
            and not Intent.objects.filter(settled_at__isnull=True).exists()
        )

    return is_so


CARVE: Final = Scenario(f"{LAYOUT} change carve", (), _change(HALVES), _carved(HALVES))
BACK: Final = Scenario(f"{LAYOUT} change back", (_change(HALVES),), _change(SEVEN), _carved(SEVEN))
