"""What a vCenter can do for us, found by asking it. `assess` is pure; `read` asks.

A gap comes with the one line that mends it. A right that is missing is named by vCenter itself, object by object
(`HasPrivilegeOnEntities`), and keyed `right:<privilege> on <what>` in `missing`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from provisioners.driver import Binding, BoundaryKind, Capabilities, DriverError, Lot
from provisioners.vsphere import libraries, means, privileges, reading_hosts, storage_policies, templates
from provisioners.vsphere.client import Found, MoRef, managed, reference
from provisioners.vsphere.ground import SWITCHES, Ground
from provisioners.vsphere.libraries import Libraries
from provisioners.vsphere.means import Packages
from provisioners.vsphere.names import parse_marker
from provisioners.vsphere.privileges import Place, Right
from provisioners.vsphere.reading_hosts import Host
from provisioners.vsphere.settings import Settings

OLDEST: Final = (8, 0)
"""The first with MIG-backed vGPU of Hopper, and with `vgpuMode`."""
RIGHT: Final = "right:"
MOST_NAMES: Final = 3
"""Of objects in one sentence."""
_OWN: Final = ("isolate", "power", "logs", "evacuate", "acceptance", "console", "canary", "zero")
"""What the driver does by itself wherever the rights are there."""


NO_MOVES: Final = (
    "The DNS records of endpoints in machines are set by people, so an address cannot be made to lead to another place "
    "and back. Make a new endpoint there, and change the address with your callers."
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What was asked of one vCenter."""

    about: Mapping[str, str]
    has_switch: bool = True
    hosts: tuple[Host, ...] = ()
    templates: Mapping[str, tuple[Found, ...]] | None = None
    """Name of a configured template → what is there under it."""
    library: libraries.Listed = libraries.NOTHING
    no_library: str = ""
    """Why content libraries could not be read."""
    lots: tuple[Lot, ...] = ()
    missing_datastores: tuple[str, ...] = ()
    no_policy: str = ""
    """What is wrong with the storage policy that is configured."""
    lacking: Mapping[Right, tuple[str, ...]] | None = None
    """Right that our account has not → names of the objects where not."""


def assess(facts: Facts, settings: Settings) -> Capabilities:
    """Return what the vCenter can do and what mends what it cannot."""
    missing = dict(_gaps(facts, settings))
    features: dict[str, bool] = dict.fromkeys(_OWN, True)
    features |= {"layout-change": False, "cluster": False, "move": False}
    missing["move"] = NO_MOVES
    features |= {name: name not in missing for name in ("networks", "templates", "gpu-hosts", "mig")}
    if settings.libraries:
        features["libraries"] = "libraries" not in missing
    for right, names in (facts.lacking or {}).items():
        missing[f"{RIGHT}{right.privilege} on {right.place}"] = (
            f"Needed to {privileges.why(right)}; missing on {some(names)}. See deploy/vcenter-role.md."
        )
    return Capabilities(
        kind="vsphere",
        version=f"{facts.about['full_name']} (API {facts.about['api_version']})",
        boundary_kinds=frozenset({BoundaryKind.VM}),
        bindings=frozenset({Binding.HOST}),
        features=features,
        missing=missing,
        simulated=settings.is_lab or "simulated" in facts.about["full_name"],
        images=_images(facts, settings),
        lots=facts.lots,
    )


def _images(facts: Facts, settings: Settings) -> frozenset[str]:
    """Return the slugs whose template or item is there and fit to be a machine; that of endpoints is no tenant's."""
    found = facts.templates or {}
    fit = {name for name, ones in found.items() if not templates.gaps(name, ones)}
    named = {slug for slug, name in settings.templates.items() if name in fit}
    return (frozenset(named) | libraries.slugs(facts.library, settings.templates)) - {settings.endpoint_image}


def _gaps(facts: Facts, settings: Settings) -> Iterable[tuple[str, str]]:
    if version_of(facts.about["api_version"]) < OLDEST:
        yield "version", f"vCenter {facts.about['version']} is older than 8.0, the oldest that is supported."
    if not facts.has_switch:
        yield "networks", "The datacenter has no distributed switch, and each tenant's network is a port group of one."
    elif not settings.vlans:
        yield (
            "networks",
            "No range of VLANs is given, so no tenant gets a network of its own. Name one in the settings.",
        )
    if facts.missing_datastores:
        yield "datastores", f"vCenter shows no datastore {some(facts.missing_datastores)}."
    if facts.no_policy:
        yield "storage-policy", facts.no_policy
    said = [gap for name, found in (facts.templates or {}).items() for gap in templates.gaps(name, found)]
    if facts.no_library:
        yield "libraries", f"{facts.no_library}, so content libraries give no images."
    elif left := libraries.gaps(facts.library, settings.templates):
        yield "libraries", f"{'; '.join(left)}."
    if not settings.templates and not settings.libraries:
        yield "templates", "No template is named, so no machine can be made. Name one for each image in the settings."
    elif said:
        yield "templates", f"{'; '.join(said)}."
    yield from _host_gaps(facts.hosts)


def _host_gaps(hosts: Sequence[Host]) -> Iterable[tuple[str, str]]:
    """Say which hosts with GPUs are not ready, one line per remedy."""
    with_gpus = [host for host in hosts if host.gpus]
    if not with_gpus:
        yield "gpu-hosts", "No host shows a GPU: " + reading_hosts.NO_MANAGER[0].lower() + reading_hosts.NO_MANAGER[1:]
        return
    on: dict[str, list[str]] = defaultdict(list)
    for host in with_gpus:
        for problem in host.problems:
            on[problem].append(host.name)
    no_mig = on.pop(reading_hosts.NO_MIG, [])
    if on:
        yield "gpu-hosts", " ".join(f"{some(names)}: {problem}" for problem, names in sorted(on.items()))
    if no_mig:
        yield "mig", f"{some(no_mig)}: {reading_hosts.NO_MIG}"


def some(names: Sequence[str]) -> str:
    """Return the first of some names and how many more there are."""
    told = ", ".join(sorted(names)[:MOST_NAMES])
    return told if len(names) <= MOST_NAMES else f"{told} and {len(names) - MOST_NAMES} more"


def version_of(text: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as `8.0.3.0`; (0, 0) where it cannot be read."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


# --- asking ---------------------------------------------------------------------------------------


def read(ground: Ground, library: Libraries, packages: Packages) -> Capabilities:
    """Ask a vCenter, in a number of calls that does not grow with its objects. Raises `DriverError`."""
    settings, estate = ground.settings, ground.estate()
    kinds: dict[str, Sequence[str]] = {
        "HostSystem": reading_hosts.PATHS,
        "Datastore": means.DATASTORE_PATHS,
        "DistributedVirtualPortgroup": (*means.GROUP_PATHS, "customValue"),
        **dict.fromkeys(SWITCHES, means.SWITCH_PATHS),
    }
    rows = ground.client.rows(kinds, root=estate.datacenter)
    offered = {place.ref for place in estate.hosts.values()}
    stores = {str(one.values.get("name")): one.ref for one in rows["Datastore"]}
    named = templates.read(ground, settings.templates.values()) if settings.templates else {}
    places = _places(ground, [stores[name] for name in settings.datastores or stores if name in stores], named)
    hosts = tuple(reading_hosts.read(one) for one in rows["HostSystem"] if one.ref in offered)
    groups = rows["DistributedVirtualPortgroup"]
    listed, no_library = _listed(library)
    facts = Facts(
        library=listed,
        no_library=no_library,
        about=ground.client.about(),
        has_switch=estate.switch is not None,
        hosts=hosts,
        lots=means.lots(
            rows["Datastore"],
            [one for kind in SWITCHES for one in rows[kind]],
            groups,
            hosts,
            packages.of(hosts),
            settings,
            ours=frozenset(one.ref for one in groups if parse_marker(ground.attribute(one.values)) is not None),
        ),
        templates=named,
        no_policy=storage_policies.gap(ground.client, settings.storage_policy) if settings.storage_policy else "",
        missing_datastores=tuple(name for name in settings.datastores if name not in stores),
        lacking=lacking(ground, places, rights_of(settings)),
    )
    return assess(facts, settings)


def rights_of(settings: Settings) -> tuple[Right, ...]:
    """Return the rights that our account needs as a provider is set up."""
    return privileges.needed(
        groups=bool(settings.tenant_group),
        libraries=bool(settings.libraries),
        tags=settings.tags,
        policies=bool(settings.storage_policy),
    )


def _listed(library: Libraries) -> tuple[libraries.Listed, str]:
    """Return what content libraries hold, or why that is not known: a REST side that fails takes no template away."""
    try:
        return library.listed(), ""
    except DriverError as error:
        return libraries.Listed(), error.detail


def _places(
    ground: Ground, stores: Sequence[MoRef], named: Mapping[str, Sequence[Found]]
) -> dict[Place, tuple[MoRef, ...]]:
    estate = ground.estate()
    root = ground.client.reading(lambda session: reference(session.content.rootFolder))
    switch = estate.switch
    return {
        Place.ROOT: (root,),
        Place.VMS: (ground.root_folder() or estate.vm_folder,),
        Place.TEMPLATES: tuple(one.ref for found in named.values() for one in found),
        Place.POOLS: tuple(one.pool for one in estate.clusters),
        Place.CLUSTERS: tuple(one.ref for one in estate.clusters),
        Place.HOSTS: tuple(one.ref for one in estate.hosts.values()),
        Place.DATASTORES: tuple(stores),
        Place.NETWORKS: (switch.ref, switch.folder) if switch is not None else (),
    }


def lacking(
    ground: Ground, places: Mapping[Place, Sequence[MoRef]], rights: Iterable[Right]
) -> dict[Right, tuple[str, ...]]:
    """Return the rights that our account has not → names of the objects where not. Raises `DriverError`.

    All is asked in one call: every privilege of every object, of which the answers that matter are looked at. What this
    vCenter has no privilege for it does not ask for either, and one unknown name would end the whole call.
    """
    known = ground.client.reading(
        lambda session: {str(one.privId) for one in session.content.authorizationManager.privilegeList or ()}
    )
    wanted = [right for right in rights if places.get(right.place) and right.privilege in (known or {right.privilege})]
    refs = sorted({ref for right in wanted for ref in places[right.place]})
    asked = sorted({right.privilege for right in wanted})

    def ask(session: Any) -> dict[MoRef, frozenset[str]]:
        content = session.content
        told = content.authorizationManager.HasPrivilegeOnEntities(
            [managed(ref, session.si) for ref in refs], content.sessionManager.currentSession.key, asked
        )
        return {
            reference(one.entity): frozenset(each.privId for each in one.privAvailability if each.isGranted)
            for one in told or ()
        }

    given = ground.client.reading(ask) if refs else {}
    without = {
        right: [ref for ref in places[right.place] if right.privilege not in given.get(ref, frozenset())]
        for right in wanted
    }
    names = _names(ground, {ref for found in without.values() for ref in found})
    return {right: tuple(names[ref] for ref in found) for right, found in without.items() if found}


def _names(ground: Ground, refs: Iterable[MoRef]) -> dict[MoRef, str]:
    """Return names for people, the id where even that may not be read."""
    found = {ref: ref.id for ref in refs}
    for kind in {ref.kind for ref in found}:
        for one in ground.client.many(sorted(ref for ref in found if ref.kind == kind), "name"):
            found[one.ref] = str(one.values.get("name") or one.ref.id)
    return found
