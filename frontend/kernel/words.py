"""Words that tenants read for what passes say: steps, condition types, events. No ledger words.

A step or event without an entry shows its own name; tests see to it that none is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

STEPS: Final[Mapping[str, tuple[str | Promise, str | Promise]]] = {
    "namespace.create": (gettext_lazy("Creating the namespace"), gettext_lazy("Removing the namespace")),
    "namespace.limits": (gettext_lazy("Setting quota and limits"), gettext_lazy("Removing quota and limits")),
    "namespace.policies": (gettext_lazy("Closing the network"), gettext_lazy("Removing network policies")),
    "namespace.access": (gettext_lazy("Granting access"), gettext_lazy("Withdrawing access")),
    "namespace.gateway": (gettext_lazy("Starting the gateway"), gettext_lazy("Stopping the gateway")),
    "folder.create": (gettext_lazy("Creating the folder"), gettext_lazy("Removing the folder")),
    "pool.create": (gettext_lazy("Creating the resource pool"), gettext_lazy("Removing the resource pool")),
    "network.create": (gettext_lazy("Creating the port group"), gettext_lazy("Removing the port group")),
    "role.grant": (gettext_lazy("Granting the role"), gettext_lazy("Withdrawing the role")),
    "serving.secret": (gettext_lazy("Delivering secrets"), gettext_lazy("Removing secrets")),
    "vm.clone": (gettext_lazy("Cloning the machine"), gettext_lazy("Destroying the machine")),
    "vm.configure": (gettext_lazy("Fitting the machine"), gettext_lazy("Taking its devices away")),
    "vm.power": (gettext_lazy("Switching the machine's power"), gettext_lazy("Powering off")),
    "vm.gateway": (gettext_lazy("Starting the machine's gateway"), gettext_lazy("Stopping the machine's gateway")),
    "serving.replica": (gettext_lazy("Starting the model server"), gettext_lazy("Stopping the model server")),
    "serving.service": (gettext_lazy("Publishing the address"), gettext_lazy("Withdrawing the address")),
    "access.accounts": (gettext_lazy("Handing out accounts"), gettext_lazy("Closing accounts")),
    "layout.apply": (gettext_lazy("Carving the GPU"), gettext_lazy("Clearing the GPU's layout")),
}
EVENTS: Final[Mapping[str, str | Promise]] = {
    "endpoint.requested": gettext_lazy("Asked for"),
    "machine.requested": gettext_lazy("Asked for"),
    "namespace.requested": gettext_lazy("Asked for"),
    "allocation.placed": gettext_lazy("Its GPU is reserved"),
    "allocation.renewed": gettext_lazy("Renewed"),
    "allocation.class-changed": gettext_lazy("Class changed"),
    "endpoint.revised": gettext_lazy("New revision"),
    "endpoint.move-began": gettext_lazy("Begins to move"),
    "endpoint.move-beside": gettext_lazy("Works at both places"),
    "endpoint.move-cut": gettext_lazy("Its address goes over"),
    "endpoint.move-watching": gettext_lazy("Answers at the new place; the old one stays for a while"),
    "endpoint.move-leaving": gettext_lazy("The old place is given up"),
    "endpoint.move-done": gettext_lazy("Moved"),
    "endpoint.move-undoing": gettext_lazy("Goes back"),
    "endpoint.move-undone": gettext_lazy("Back at the old place"),
    "endpoint.rollout-began": gettext_lazy("Another revision begins to take over"),
    "endpoint.rollout-step": gettext_lazy("The new revision gets its share of the requests"),
    "endpoint.rollout-promote-asked": gettext_lazy("Promoted"),
    "endpoint.rollout-promoted": gettext_lazy("The new revision takes over"),
    "endpoint.rollout-held": gettext_lazy("Held at its step"),
    "endpoint.rollout-resumed": gettext_lazy("Goes on"),
    "endpoint.rollout-abort-asked": gettext_lazy("Abort asked for"),
    "endpoint.rollout-aborting": gettext_lazy("Aborted: the old revision gets all requests"),
    "endpoint.rollout-aborted": gettext_lazy("Back at the old revision"),
    "endpoint.rollout-done": gettext_lazy("The new revision serves alone"),
    "endpoint.rolled-back": gettext_lazy("Rollback asked for"),
    "endpoint.unit-given-back": gettext_lazy("A unit was given back"),
    "endpoint.units-given-back": gettext_lazy("Its units were given back"),
    "endpoint.slept": gettext_lazy("Sleeps: no replica runs"),
    "endpoint.woken": gettext_lazy("Woken"),
    "endpoint.idle-set": gettext_lazy("When it sleeps was changed"),
    "endpoint.updated": gettext_lazy("Description or labels changed"),
    "machine.updated": gettext_lazy("Description or labels changed"),
    "namespace.updated": gettext_lazy("Description or labels changed"),
    "machine.power-changed": gettext_lazy("Power switched"),
    "machine.rebuilt": gettext_lazy("Made anew"),
    "machine.resized": gettext_lazy("Resized"),
    "machine.lost": gettext_lazy("Gone from its provider"),
    "machine.ssh-certificate-made": gettext_lazy("Certificate for a login made"),
    "endpoint.key-created": gettext_lazy("Key made"),
    "endpoint.key-rolled": gettext_lazy("Key rolled"),
    "endpoint.key-limited": gettext_lazy("Limits of a key set"),
    "endpoint.key-revoked": gettext_lazy("Key revoked"),
    "endpoint.deletion-requested": gettext_lazy("Deletion asked for"),
    "machine.deletion-requested": gettext_lazy("Deletion asked for"),
    "namespace.deletion-requested": gettext_lazy("Deletion asked for"),
    "request.submitted": gettext_lazy("Request filed"),
    "request.decided": gettext_lazy("Request decided"),
}
CONDITIONS: Final[Mapping[str, str | Promise]] = {
    "Approved": gettext_lazy("Approved"),
    "Placed": gettext_lazy("Has its GPU"),
    "BoundaryReady": gettext_lazy("Isolation built"),
    "Provisioned": gettext_lazy("Built"),
    "Serving": gettext_lazy("Model server answers"),
    "Ready": gettext_lazy("Ready"),
    "Suspended": gettext_lazy("Suspended"),
    "Expiring": gettext_lazy("Ends soon"),
    "Deleted": gettext_lazy("Given back"),
    "Healthy": gettext_lazy("Healthy"),
}
LATER: Final[Mapping[str, str | Promise]] = {
    "ready": gettext_lazy("Ready"),
    "waiting": gettext_lazy("Waits"),
    "provisioning": gettext_lazy("Is being built"),
    "degraded": gettext_lazy("Works only in part"),
    "failed": gettext_lazy("Stopped"),
    "suspended": gettext_lazy("Suspended"),
    "expiring": gettext_lazy("Ends soon"),
    "released": gettext_lazy("Given back"),
    "given-back": gettext_lazy("Given back"),
    "idle": gettext_lazy("Idle"),
    "expiry-warning": gettext_lazy("Warned of its end"),
    "expiry-grace": gettext_lazy("Its term has ended; days of grace run"),
    "reclaimed": gettext_lazy("Taken back at its end"),
    "review-overdue": gettext_lazy("Nobody reviewed it in time"),
    "written-off": gettext_lazy("Written off"),
}
"""What passes and terms say of any kind of thing."""
SAID_BY_ITS_PRODUCT: Final = frozenset(
    {"requested", "deletion-requested", "ready", "first-ready", "waiting", "provisioning", "degraded", "released"}
)
"""Events of the capacity that the product's own events tell as well."""


def is_quiet(kind: str) -> bool:
    """Whether an event says nothing that another one does not say."""
    noun, _dot, what = kind.partition(".")
    return what == "first-ready" or (noun == "allocation" and what in SAID_BY_ITS_PRODUCT)


_INDEX: Final = re.compile(r"^([a-z.]+)\[(\d+)\]$")


PLAIN: Final = (("boundaries", "isolations"), ("boundary", "isolation"), ("allocation", "capacity"))
"""Words of the machinery that messages of passes hold → words for tenants."""


def plain(message: str) -> str:
    """Return a message of a pass in words for tenants."""
    for word, instead in PLAIN:
        message = re.sub(rf"\b{word}\b", instead, message, flags=re.IGNORECASE)
    return message


def step(name: str, *, undo: bool = False) -> str:
    """Return what a step does, with the unit's number counted from one."""
    match = _INDEX.match(name)
    bare = match[1] if match else name
    found = STEPS.get(bare)
    text = str(found[1 if undo else 0]) if found else bare
    return _("%(step)s (unit %(number)d)") % {"step": text, "number": int(match[2]) + 1} if match else text


def event(kind: str) -> str:
    """Return what an event says."""
    what = kind.partition(".")[2]
    found = EVENTS.get(kind) or LATER.get(what)
    return str(found) if found else what.replace("-", " ").capitalize()


def condition(kind: str) -> str:
    """Return what a condition is about."""
    return str(CONDITIONS.get(kind, kind))
