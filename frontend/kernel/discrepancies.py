"""Findings in words: what each kind means, what may be done about it and what that does, whom it touches.

The kinds are those that inventory writes (a test compares). Reads in the caller's read block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db.models import Q
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.kernel.estate_windows import product_url
from tenants import finding_actions, findings
from tenants.models import Finding, Hold, Unit
from tenants.states import HoldKind

Text = str | Promise


@dataclass(frozen=True, slots=True)
class Meaning:
    """One kind of finding."""

    title: Text
    sentence: Text
    """What it means."""
    advice: Text
    """What usually mends it."""
    group: str = "drift"
    """`drift`, `security`, `orphan`, `contradiction`, `hardware`."""


GROUPS: Final[Mapping[str, Text]] = {
    "drift": gettext_lazy("Drift: it is not as it was left"),
    "security": gettext_lazy("Security: others changed what keeps tenants apart"),
    "orphan": gettext_lazy("Orphans: nobody owns it"),
    "contradiction": gettext_lazy("Contradictions: two sources disagree"),
    "hardware": gettext_lazy("Hardware: something is gone or new"),
}
MEANINGS: Final[Mapping[str, Meaning]] = {
    "orphan": Meaning(
        gettext_lazy("Nobody owns it"),
        gettext_lazy("Something with our mark is there that belongs to nothing here: restored from a backup, or left."),
        gettext_lazy("Have it deleted, or ignore it while somebody still needs it."),
        "orphan",
    ),
    "duplicate-object": Meaning(
        gettext_lazy("It is there twice"),
        gettext_lazy("The provider shows the same thing more than once; a copy or a clone keeps our mark."),
        gettext_lazy("Remove the copy at the provider, then look again."),
        "contradiction",
    ),
    "duplicates-in-lists": Meaning(
        gettext_lazy("The provider's lists are wrong"),
        gettext_lazy("Lists show entries twice. Each was counted once."),
        gettext_lazy("Nothing to do unless it stays; then look at the provider."),
        "contradiction",
    ),
    "stray-use": Meaning(
        gettext_lazy("It runs where it has no room"),
        gettext_lazy("Something of ours runs on a part of a GPU that it was not given. Nobody else is put there."),
        gettext_lazy("Give it the room it runs on (adopt), or have it moved back (repair)."),
    ),
    "wrong-device": Meaning(
        gettext_lazy("It runs on another GPU"),
        gettext_lazy("The provider put it on another GPU than the one chosen for it."),
        gettext_lazy("Let its room follow it (adopt), or have it built anew where its room is."),
    ),
    "foreign-use-on-hold": Meaning(
        gettext_lazy("Somebody else uses a tenant's room"),
        gettext_lazy("Something that is not ours runs on a part of a GPU that a tenant has."),
        gettext_lazy("Ask whoever runs the provider to stop it; the tenant's own things are not touched."),
        "contradiction",
    ),
    "duplicate-use": Meaning(
        gettext_lazy("It uses more than it has"),
        gettext_lazy("Something of ours is seen with more parts of a GPU than it was given, or with other ones."),
        gettext_lazy("Repair looks again. If it stays, rebuild the thing."),
        "contradiction",
    ),
    "unexplained-report": Meaning(
        gettext_lazy("The report cannot be true"),
        gettext_lazy("What the host reports fits no possible layout of its GPUs. Nothing new goes there."),
        gettext_lazy("Look at the host; a restart of its device plugin or driver often mends it."),
        "contradiction",
    ),
    "use-without-place": Meaning(
        gettext_lazy("No room for what is used"),
        gettext_lazy("Something uses a GPU somewhere on the host, and no legal place is left for it in our books."),
        gettext_lazy("Find out where it runs; nothing new goes to the host until then."),
        "contradiction",
    ),
    "host-overcommitted": Meaning(
        gettext_lazy("Others take more than is left"),
        gettext_lazy("Use by others takes more processors or memory than ours leave on the host."),
        gettext_lazy("Move either away, or ignore it where that is known."),
        "contradiction",
    ),
    "unknown-product": Meaning(
        gettext_lazy("Unknown GPU"),
        gettext_lazy("A GPU of a model that the catalogue does not know. It is left alone."),
        gettext_lazy("Wait for a version that knows it, or ignore it."),
        "hardware",
    ),
    "gpu-product-changed": Meaning(
        gettext_lazy("Another model of GPU"),
        gettext_lazy("A GPU is shown as another model than before. Nothing new goes there."),
        gettext_lazy("If the card was swapped, take it as it is now (adopt); else look at its driver."),
        "hardware",
    ),
    "layout-mismatch": Meaning(
        gettext_lazy("Impossible layout"),
        gettext_lazy("A GPU shows parts that its model cannot have. Nothing new goes there."),
        gettext_lazy("Look at how it was carved by hand, and at its driver."),
        "contradiction",
    ),
    "host-shrunk": Meaning(
        gettext_lazy("The host got smaller"),
        gettext_lazy("It shows fewer processors or less memory than is given out on it."),
        gettext_lazy("Give it back what it had, or drain it."),
    ),
    "host-binding-changed": Meaning(
        gettext_lazy("Who chooses the GPU has changed"),
        gettext_lazy("The host chooses GPUs in another way than when its room was given out."),
        gettext_lazy("Set it back, or drain the host and go by what it says now (adopt)."),
    ),
    "host-missing": Meaning(
        gettext_lazy("The host is gone"),
        gettext_lazy("The provider does not show it any more. Nothing of tenants was taken away from our side."),
        gettext_lazy("Bring it back, or take it out here (delete) once nothing of tenants is on it."),
        "hardware",
    ),
    "gpu-missing": Meaning(
        gettext_lazy("The GPU is gone"),
        gettext_lazy("The provider does not show it any more; what tenants have there counts as broken."),
        gettext_lazy("Look at the host, have the GPU repaired so that tenants are moved, or take it out (delete)."),
        "hardware",
    ),
    "gpu-moved": Meaning(
        gettext_lazy("The GPU is in another host"),
        gettext_lazy("A GPU shows up on another host than the one it belongs to here."),
        gettext_lazy("Put it back, or drain the old host so that it can be taken in at the new one."),
        "hardware",
    ),
    "changed-by-others": Meaning(
        gettext_lazy("Others changed it"),
        gettext_lazy("Something of ours is there and is not as we made it. What can be is set right at once."),
        gettext_lazy("Ask who works at the provider. What a running machine has wrong is mended when it is off."),
    ),
    "snapshots-kept": Meaning(
        gettext_lazy("Snapshots make its disks grow"),
        gettext_lazy("Somebody keeps snapshots of a machine of ours. Its disks grow until they are gone."),
        gettext_lazy("Ask who made them, and have them removed at the provider; nothing here removes a snapshot."),
    ),
    "cards-changed": Meaning(
        gettext_lazy("Its network card was changed"),
        gettext_lazy("A machine's card was put into another network or got another address. It was cut off at once."),
        gettext_lazy("Find out who did it. Its own network comes back by itself, another address when it is off."),
        "security",
    ),
    "isolation-changed": Meaning(
        gettext_lazy("Its network's rules were changed"),
        gettext_lazy("What keeps a tenant's network apart was changed by others. It is set right by the next step."),
        gettext_lazy("Find out who did it, and whether anybody heard what was not his to hear."),
        "security",
    ),
    "access-changed": Meaning(
        gettext_lazy("Others may reach it"),
        gettext_lazy("Who may reach a tenant's objects was changed by others. It is set right by the next step."),
        gettext_lazy("Find out who did it, and what they did meanwhile."),
        "security",
    ),
    "field-fight": Meaning(
        gettext_lazy("Somebody keeps changing it back"),
        gettext_lazy("A field was restored again and again, and taken back each time. It was left for some minutes."),
        gettext_lazy("Stop the program that is named, or have it leave our objects alone."),
        "contradiction",
    ),
    "step-overdue": Meaning(
        gettext_lazy("A step does not end"),
        gettext_lazy("A task of the provider goes on far longer than it should. Its own object waits for it."),
        gettext_lazy("Look at the task that is named, at the provider. If it hangs, cancel it there; we try again."),
        "contradiction",
    ),
    "foreign-object": Meaning(
        gettext_lazy("A stranger among a tenant's things"),
        gettext_lazy("Something that is not ours lies where only a tenant's machines should. It is not touched."),
        gettext_lazy("Have it moved elsewhere: its folder cannot go before it has."),
    ),
    "left-files": Meaning(
        gettext_lazy("Files are left of a machine"),
        gettext_lazy("A datastore has a directory that is named like a machine of ours, and no machine has it."),
        gettext_lazy("Have it deleted where the machine was ours and has gone; else ask whose it is."),
        "orphan",
    ),
    "isolation-restored": Meaning(
        gettext_lazy("What isolates tenants was changed"),
        gettext_lazy(
            "Rules of the whole cluster that keep tenants apart were changed or taken away by somebody else. They were "
            "put back, and every namespace there is tried again."
        ),
        gettext_lazy("Find out who may change them, and take that right away. It settles by itself after an hour."),
    ),
    "contradictory-host": Meaning(
        gettext_lazy("The host contradicts itself"),
        gettext_lazy("What it says of its GPUs cannot all be true or is not to be built on. Nothing new goes there."),
        gettext_lazy("Read the detail, mend the host's GPU software or layout, and look again."),
        "contradiction",
    ),
}
UNKNOWN: Final = Meaning(
    gettext_lazy("Something does not fit"),
    gettext_lazy("The detail says what was seen."),
    gettext_lazy("Look at it, then repair or ignore it."),
)


def meaning(kind: str) -> Meaning:
    """Return what a kind of finding means."""
    return MEANINGS.get(kind, UNKNOWN)


def kinds_of(group: str) -> list[str]:
    """Return the kinds of a group."""
    return [kind for kind, found in MEANINGS.items() if found.group == group]


@dataclass(frozen=True, slots=True)
class State:
    """Where a finding stands."""

    key: str
    """`open`, `ignored`, `leaving`, `resolved`."""
    word: str
    tone: str
    icon: str


def state_of(row: Finding) -> State:
    """Return where a finding stands."""
    if row.resolved_at is not None:
        return State("resolved", _("Settled"), "ok", "circle-check")
    if findings.ignored(row):
        return State("ignored", _("Ignored"), "quiet", "bell-off")
    if row.data.get("action") == "delete":
        return State("leaving", _("Being deleted"), "info", "hourglass")
    if row.blocks_placement:
        return State("open", _("Blocks"), "bad", "octagon-x")
    return State("open", _("Open"), "warn", "triangle-alert")


def actions(row: Finding) -> list[dict[str, Any]]:
    """Return what may be done about a finding, the likeliest first; those that do not fit say why."""
    words = {
        finding_actions.ADOPT: (_("Adopt"), "hand"),
        finding_actions.REPAIR: (_("Repair"), "wrench"),
        finding_actions.DELETE: (_("Delete"), "trash-2"),
        finding_actions.IGNORE: (_("Ignore"), "bell-off"),
    }
    found = [
        {
            "value": one.action,
            "label": words[one.action][0],
            "icon": words[one.action][1],
            "disabled": not one.is_offered,
            "text": one.text,
            "reason": one.reason,
        }
        for one in finding_actions.choices(row)
    ]
    return sorted(found, key=lambda one: bool(one["disabled"]))


def affected(row: Finding) -> list[dict[str, Any]]:
    """Return what of tenants has room on the GPU or host of a finding, and whose unit it speaks of."""
    wanted = Q(pk__in=[])
    if row.device_id is not None:
        wanted |= Q(device_id=row.device_id)
    elif row.host_id is not None:
        wanted |= Q(host_id=row.host_id)
    if unit := _uuid(row.data.get("unit")):
        wanted |= Q(unit_id=unit)
    for name in ("uid", "boundary"):  # of an object that others changed, or of the boundary that a stranger lies in
        if about := _uuid(row.data.get(name)):
            wanted |= Q(unit__allocation__product_id=about) | Q(unit__allocation__boundary_id=about)
    holds = Hold.objects.filter(wanted, kind=HoldKind.TENANT.value).select_related("tenant", "unit__allocation")
    units = {hold.unit_id: hold.unit for hold in holds.order_by("tenant__name")[:200] if hold.unit is not None}
    if unit and unit not in units:
        found = Unit.objects.filter(pk=unit, released_at__isnull=True).select_related("tenant", "allocation").first()
        units |= {found.pk: found} if found is not None else {}
    seen: dict[UUID, dict[str, Any]] = {}
    for one in units.values():
        allocation = one.allocation
        seen[allocation.pk] = {
            "name": allocation.name,
            "tenant": one.tenant.name,
            "url": product_url(allocation.product_kind, one.tenant.name, allocation.name),
            "since": one.placed_at,
        }
    return sorted(seen.values(), key=lambda one: (one["tenant"], one["name"]))


def _uuid(text: object) -> UUID | None:
    try:
        return UUID(str(text))
    except ValueError:
        return None
