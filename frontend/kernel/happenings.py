"""Events as sentences: who did what, to what. Every kind that anything emits has its own; a test sees to it.

A sentence goes on from its subject ("Mia" or "The platform") and may name the object and what the event says.
Reads in the caller's read block, one query per kind of object on the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import Model
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as later

from frontend.design import numbers
from frontend.design.moments import absolute
from frontend.kernel import asks, words
from tenants.models import (
    Allocation,
    Boundary,
    Endpoint,
    Event,
    Machine,
    Namespace,
    Request,
    ServiceAccount,
    Webhook,
)

PRODUCTS: Final = ("endpoint", "machine", "namespace")


def _of_products(verb: str, sentence: str | Promise) -> dict[str, str | Promise]:
    return {f"{noun}.{verb}": sentence for noun in PRODUCTS}


PHASES: Final[Mapping[str, str | Promise]] = {
    "awaiting-approval": later("let %(object)s wait for a decision"),
    "waiting": later("let %(object)s wait for room"),
    "provisioning": later("began to build %(object)s"),
    "ready": later("saw %(object)s ready"),
    "degraded": later("saw %(object)s work only in part: %(why)s"),
    "suspended": later("suspended %(object)s"),
    "expiring": later("began the last days of %(object)s"),
    "deleting": later("began to take %(object)s down"),
    "released": later("took the last of %(object)s down"),
    "failed": later("stopped working on %(object)s: %(why)s"),
}
"""What passes say when the phase of anything changes: `<noun>.<phase>`."""
SENTENCES: Final[Mapping[str, str | Promise]] = {
    **{f"{noun}.{phase}": text for noun in (*PRODUCTS, "allocation", "boundary") for phase, text in PHASES.items()},
    # what runs
    **_of_products("requested", later("asked for %(object)s")),
    **_of_products("updated", later("changed %(changed)s of %(object)s")),
    **_of_products("first-ready", later("brought %(object)s up for the first time")),
    **_of_products("unhealthy", later("saw %(object)s in trouble: %(why)s")),
    **_of_products("tampered", later("saw somebody tamper with %(object)s: %(why)s")),
    "boundary.tampered": later("saw somebody tamper with %(object)s: %(why)s"),
    **_of_products("moving", later("is moving a part of %(object)s to other hardware")),
    **_of_products("unit-moved", later("moved a part of %(object)s to other hardware")),
    **_of_products("handed-over", later("gave %(object)s to %(to)s")),
    **_of_products("written-off", later("wrote %(object)s off")),
    **_of_products("reclaimed", later("began to take %(object)s back: its term and grace were over")),
    **_of_products("deletion-requested", later("asked for the deletion of %(object)s")),
    "endpoint.idle": later("saw that nobody called %(object)s for %(days)s days"),
    "endpoint.revised": later("gave %(object)s revision %(revision)s with %(model)s"),
    "endpoint.move-began": later("began to move %(object)s to another place"),
    "endpoint.move-beside": later("let %(object)s work at both places"),
    "endpoint.move-cut": later("let the address of %(object)s go over to the new place"),
    "endpoint.move-watching": later("saw the address of %(object)s at the new place"),
    "endpoint.move-leaving": later("began to give up the old place of %(object)s"),
    "endpoint.move-done": later("moved %(object)s"),
    "endpoint.move-undoing": later("let %(object)s go back to its old place: %(why)s"),
    "endpoint.move-undone": later("gave up the new place of %(object)s: %(why)s"),
    "endpoint.rollout-began": later("began to let revision %(revision)s take over from %(before)s at %(object)s"),
    "endpoint.rollout-step": later("gave revision %(revision)s %(weight)s %% of the requests of %(object)s"),
    "endpoint.rollout-promote-asked": later("promoted revision %(revision)s of %(object)s"),
    "endpoint.rollout-promoted": later("let revision %(revision)s of %(object)s take the place of %(before)s"),
    "endpoint.rollout-held": later("held revision %(revision)s of %(object)s at its step"),
    "endpoint.rollout-resumed": later("let revision %(revision)s of %(object)s go on"),
    "endpoint.rollout-abort-asked": later("aborted revision %(revision)s of %(object)s"),
    "endpoint.rollout-aborting": later("took the requests of %(object)s from revision %(revision)s: %(why)s"),
    "endpoint.rollout-aborted": later("went back to revision %(before)s at %(object)s: %(why)s"),
    "endpoint.rollout-done": later("replaced revision %(before)s of %(object)s by %(revision)s"),
    "endpoint.rolled-back": later("asked for revision %(revision)s of %(object)s again"),
    "endpoint.unit-given-back": later("gave back a unit of %(object)s that nothing runs on any more"),
    "endpoint.units-given-back": later("gave back the units of %(object)s, which sleeps"),
    "endpoint.slept": later("let %(object)s sleep: %(why)s"),
    "endpoint.woken": later("woke %(object)s: %(why)s"),
    "endpoint.idle-set": later("said when %(object)s sleeps by itself"),
    "endpoint.benchmark-asked": later("asked to measure %(object)s: %(load)s"),
    "endpoint.benchmark-cancelled": later("cancelled the benchmark %(benchmark)s of %(object)s"),
    "endpoint.benchmark-ended": later("ended the benchmark %(benchmark)s of %(object)s: %(state)s"),
    "endpoint.address-verified": later("reached %(object)s from outside at %(address)s"),
    "endpoint.address-lost": later("does not reach %(object)s from outside any more: %(why)s"),
    "endpoint.key-created": later("made the key %(key)s for %(object)s"),
    "endpoint.key-rolled": later("rolled the key %(key)s of %(object)s"),
    "endpoint.key-limited": later("set the limits of the key %(key)s of %(object)s"),
    "endpoint.key-revoked": later("revoked the key %(key)s of %(object)s"),
    "machine.ssh-certificate-made": later("got a certificate for logging in to %(object)s, until %(until)s"),
    "machine.power-changed": later("switched %(object)s %(power)s"),
    "machine.rebuilt": later("had %(object)s made anew of %(image)s"),
    "machine.resized": later("gave %(object)s %(vcpu)s vCPU, %(memory_gib)s GiB memory, %(disk_gib)s GiB disk"),
    "machine.console-opened": later("let a person see the screen of %(object)s until %(until)s"),
    "machine.lost": later("saw that %(object)s is gone from its provider"),
    "allocation.requested": later("asked for the capacity of %(object)s"),
    "allocation.placed": later("found a place for %(object)s"),
    "allocation.first-ready": later("began the term of %(object)s, to %(until)s"),
    "allocation.renewed": later("renewed %(object)s to %(until)s"),
    "allocation.class-changed": later("made %(object)s %(service_class)s"),
    "allocation.expiry-warning": later("warned that %(object)s ends soon"),
    "allocation.expiry-grace": later("said that the term of %(object)s is over; its days of grace run"),
    "allocation.review-overdue": later("said that the review of %(object)s is overdue"),
    "allocation.reclaimed": later("began to take the capacity of %(object)s back"),
    "allocation.given-back": later("took back all that %(object)s had"),
    "allocation.written-off": later("wrote the capacity of %(object)s off"),
    "allocation.deletion-requested": later("asked for %(object)s to be given back"),
    "boundary.requested": later("began to build an isolation of the tenant"),
    "boundary.unused": later("began to take an isolation down that nothing uses"),
    "boundary.certificate-asked": later("asked to have an isolation of the tenant certified"),
    "boundary.certified": later("tried to break out of an isolation of the tenant and said what held"),
    "namespace.credential-made": later("let a person into %(object)s until %(until)s"),
    "boundary.written-off": later("wrote an isolation of the tenant off"),
    "boundary.first-ready": later("finished %(object)s"),
    "boundary.unhealthy": later("saw an isolation of the tenant in trouble: %(why)s"),
    "gateway.enrolled": later("let a gateway of the tenant in"),
    "gateway.certificate-issued": later("gave a gateway of the tenant its certificate"),
    # requests and limits
    "request.submitted": later("filed %(object)s"),
    "request.revised": later("changed what %(object)s asks for"),
    "request.commented": later("wrote in the thread of %(object)s"),
    "request.stage-approved": later("approved a stage of %(object)s"),
    "request.approved": later("approved %(object)s"),
    "request.reduced": later("approved %(object)s for less"),
    "request.denied": later("denied %(object)s"),
    "request.withdrawn": later("took %(object)s back"),
    "request.expired": later("ended %(object)s: nobody decided in time"),
    "request.stale": later("saw %(object)s wait for %(days)s days"),
    "quota.set": later("set the limit of %(dimension)s to %(amount)s"),
    "quota.granted": later("granted %(dimension)s: the limit is now %(amount)s"),
    "quota.removed": later("removed the limit of %(dimension)s"),
    "budget.set": later("set the budget to %(amount)s %(currency)s a month"),
    "budget.removed": later("removed the budget"),
    "budget.reached": later("saw %(percent)s per cent of the budget for %(month)s spent"),
    # people and tenant
    "tenant.created": later("made the tenant"),
    "tenant.changed": later("changed %(fields)s of the tenant"),
    "tenant.ssh-authority-rotated": later("gave the tenant a new authority for SSH certificates"),
    "tenant.policy-set": later("set the policy of the tenant"),
    "tenant.suspended": later("suspended the tenant (%(depth)s): %(why)s"),
    "tenant.resumed": later("ended the suspension of the tenant"),
    "tenant.closed": later("closed the tenant"),
    "tenant.handover": later("saw %(person)s leave and found owners for what was left"),
    "member.added": later("made %(person)s %(role)s"),
    "member.changed": later("made %(person)s %(role)s, who was %(before)s"),
    "member.removed": later("took %(person)s out of the tenant"),
    "invitation.made": later("invited somebody as %(role)s"),
    "invitation.accepted": later("accepted an invitation"),
    "invitation.withdrawn": later("withdrew an invitation"),
    "service-account.created": later("made %(object)s as %(role)s"),
    "service-account.changed": later("changed %(object)s"),
    "service-account.disabled": later("switched %(object)s off: %(why)s"),
    "service-account.handed-over": later("gave %(object)s to %(to)s"),
    "token.issued": later("made the token %(name)s"),
    "token.revoked": later("revoked the token %(name)s: %(why)s"),
    "webhook.created": later("made %(object)s to %(host)s"),
    "webhook.updated": later("changed %(object)s"),
    "webhook.rolled": later("rolled the secret of %(object)s"),
    "webhook.removed": later("removed the webhook %(name)s"),
    "webhook.sent-again": later("sent a message of %(object)s again"),
    "webhook.disabled": later("switched %(object)s off: %(why)s"),
    "webhook.enabled": later("switched %(object)s on"),
    "webhook.failing": later("could not reach %(object)s for a day: %(why)s"),
    # accounts
    "person.created": later("opened an account"),
    "person.changed": later("changed %(fields)s of an account"),
    "person.suspended": later("suspended an account: %(why)s"),
    "person.resumed": later("let a suspended account in again"),
    "person.left": later("closed the account of somebody who left"),
    "person.erased": later("erased an account"),
    "person.roles-set": later("set platform roles: %(roles)s"),
    "person.password-set": later("set a password"),
    "person.recovery-made": later("made a recovery link: %(why)s"),
    "person.recovered": later("came back by a recovery link"),
    "person.demo-log-in": later("played a persona of the demo"),
    "person.logged-in": later("logged in"),
    "person.logged-out": later("logged out"),
    "person.login-failed": later("failed to log in"),
    "person.sessions-ended": later("ended other sessions"),
    "person.factor-added": later("added a second factor"),
    "person.factor-removed": later("removed a second factor"),
    "person.factor-failed": later("failed at the second factor"),
    "person.codes-made": later("made recovery codes"),
    "person.code-used": later("used a recovery code"),
    "person.identity-linked": later("linked an identity of %(provider)s"),
    "person.identity-unlinked": later("unlinked an identity"),
    "installation.link-made": later("made a set-up link"),
    "delegation.created": later("let somebody decide in his place from %(starts_at)s to %(ends_at)s"),
    "delegation.ended": later("ended a delegation"),
    # the platform
    "auto-approval-rule.created": later("made a rule that approves by itself"),
    "auto-approval-rule.changed": later("changed a rule that approves by itself"),
    "price-list.published": later("published the prices %(name)s from %(valid_from)s"),
    "served-model.created": later("offered the model %(name)s"),
    "served-model.changed": later("changed a model's offer"),
    "fit-correction.reset": later("forgot what starts of %(model)s had taught"),
    "model-stage.asked": later("asked for the files of %(model)s at %(provider)s"),
    "model-stage.removal-asked": later("had the files of %(model)s taken away from %(provider)s"),
    "model-stage.done": later("brought the files of %(model)s to %(provider)s"),
    "model-stage.failed": later("did not bring the files of %(model)s to %(provider)s"),
    "model-stage.removed": later("took the files of %(model)s away from %(provider)s"),
    "evidence.made": later("made a pack of evidence about the tenant"),
    "system.check-asked": later("called the doctor"),
    "provider.created": later("connected the provider %(name)s"),
    "provider.updated": later("changed %(changed)s of a provider"),
    "provider.enabled": later("switched a provider on"),
    "provider.disabled": later("switched a provider off"),
    "provider.deleted": later("removed a provider"),
    "provider.credential-set": later("set the credential %(credential)s of a provider"),
    "provider.credential-removed": later("removed the credential %(credential)s of a provider"),
    "provider.test-requested": later("asked for a test of a provider"),
    "provider.tested": later("tested a provider"),
    "provider.isolation-restored": later("put back what isolates tenants at a provider, which somebody had changed"),
    "provider.unreachable": later("lost a provider: it does not answer"),
    "provider.answers": later("reached a provider again"),
    "host.discovered": later("found a host"),
    "host.accepted": later("accepted a host"),
    "host.acceptance-requested": later("asked for the acceptance of a host"),
    "host.acceptance-failed": later("saw a host fail its acceptance"),
    "host.opened": later("opened a host"),
    "host.cordoned": later("closed a host for what is new"),
    "host.uncordoned": later("opened a host again for what is new"),
    "host.draining": later("began to empty a host"),
    "host.drain-cancelled": later("stopped emptying a host"),
    "host.drain-started-early": later("began to empty a host before the announced time"),
    "host.layout-planned": later("planned another layout of a host's GPUs"),
    "host.layout-started-early": later("began to change a host's layout before the announced time"),
    "host.layout-changed": later("changed the layout of a host's GPUs"),
    "host.layout-failed": later("could not change the layout of a host's GPUs"),
    "host.layout-cancelled": later("called a change of a host's layout off"),
    "host.maintenance": later("took a host out for work"),
    "host.returned": later("brought a host back"),
    "host.removed": later("removed a host"),
    "host.changed": later("saw a host changed"),
    "host.rebound": later("saw a host hand over its GPUs in another way"),
    "host.uses-changed": later("saw the use of a host by others changed"),
    "host.gpu-added": later("saw a GPU more in a host"),
    "host.gpu-replaced": later("saw a GPU of a host replaced"),
    "host.gpu-removed": later("saw a GPU of a host gone"),
    "host.gpu-faulty": later("saw a faulty GPU in a host: %(why)s"),
    "host.gpu-repaired": later("put a GPU of a host back into use"),
    "host.gpu-recovered": later("saw a GPU of a host work again"),
    "host-plan.created": later("planned work on a host"),
    "host-plan.started": later("started planned work on a host"),
    "host-plan.notice-ended": later("started planned work before its announced time"),
    "host-plan.cancel-requested": later("called planned work off"),
    "host-plan.done": later("finished planned work on a host"),
    "host-plan.cancelled": later("ended planned work that was called off"),
    "host-plan.carve": later("began to carve GPUs"),
    "host-plan.compare": later("carved GPUs and awaits what their provider shows"),
    "host-plan.restore": later("began to take a layout change back"),
    "host-plan.failed": later("gave planned work on a host up"),
    "finding.opened": later("found that something does not fit: %(why)s"),
    "finding.closed": later("saw that a finding is settled"),
    "finding.resolved": later("settled a finding: %(why)s"),
}
REPEATS: Final = tuple(sorted(kind for kind in SENTENCES if words.is_quiet(kind) and "first-ready" not in kind))
"""Kinds that say of the capacity what its product's own say as well; the list leaves them out unless asked."""
NOUNS: Final[Mapping[str, str | Promise]] = {
    "endpoint": later("Endpoints"),
    "machine": later("Machines"),
    "namespace": later("Namespaces"),
    "allocation": later("Capacity and terms"),
    "boundary": later("Isolation"),
    "request": later("Requests"),
    "quota": later("Limits"),
    "budget": later("Budget"),
    "member": later("Members"),
    "invitation": later("Invitations"),
    "service-account": later("Service accounts"),
    "token": later("Tokens"),
    "webhook": later("Webhooks"),
    "tenant": later("The tenant itself"),
    "gateway": later("Gateways"),
    "evidence": later("Evidence"),
}
"""What events of a tenant are about, as the filter offers them."""
LABELS: Final[Mapping[str, str | Promise]] = {
    "dimension": later("What"), "name": later("Name"), "before": later("Before"), "role": later("Role"),
    "amount": later("After"), "until": later("Until"), "why": later("Why"), "reason": later("Why"),
    "message": later("Message"), "text": later("Message"), "detail": later("Message"), "model": later("Model"),
    "revision": later("Revision"), "key": later("Key"), "new": later("New key"), "power": later("Power"),
    "image": later("Image"), "service_class": later("Class"), "changed": later("Changed"), "fields": later("Changed"),
    "currency": later("Currency"), "percent": later("Per cent"), "month": later("Month"), "spent": later("Spent"),
    "depth": later("Depth"), "days": later("Days"), "host": later("To"), "kinds": later("Kinds"),
    "stage": later("Stage"), "request_kind": later("Kind"), "read_only": later("Read only"),
    "expires_at": later("Ends"), "starts_at": later("From"), "ends_at": later("To"), "phase": later("State then"),
    "inherit": later("Inherited"), "overlap_s": later("Overlap in seconds"), "version": later("Version"),
    "tier": later("Tier"), "policy": later("After"), "weight": later("Share in per cent"),
    "strategy": later("Strategy"), "note": later("Note"),
}  # fmt: skip
"""Keys of events that the page of one shows, in words."""
PEOPLE: Final = ("person", "to", "owner", "delegate", "successor")
"""Keys that hold the id of a person."""


@dataclass(frozen=True, slots=True)
class Thing:
    """What an event is about."""

    text: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Happening:
    """One event as a page shows it."""

    event: Event
    who: str
    what: str
    thing: Thing
    by_machine: bool
    """A pass or a service account rather than a person."""


@dataclass(slots=True)
class _Book:
    """What the events of a page name."""

    people: dict[UUID, str] = field(default_factory=dict)
    accounts: dict[UUID, str] = field(default_factory=dict)
    rows: dict[UUID, Model] = field(default_factory=dict)


MODELS: Final[Mapping[str, type[Model]]] = {
    "endpoint": Endpoint, "machine": Machine, "namespace": Namespace, "allocation": Allocation, "boundary": Boundary,
    "request": Request, "service-account": ServiceAccount, "webhook": Webhook,
}  # fmt: skip


def of(events: Sequence[Event], *, tenant: str) -> list[Happening]:
    """Return events as sentences; `tenant` is the name of the one whose pages the objects have."""
    book = _read(events)
    return [_happening(event, book, tenant) for event in events]


def _read(events: Sequence[Event]) -> _Book:
    book = _Book()
    people: set[UUID | None] = {event.person_id for event in events}
    accounts: set[UUID] = set()
    objects: dict[str, set[UUID]] = {}
    for event in events:
        people |= {person for name in PEOPLE if (person := _uuid(event.data.get(name))) is not None}
        kind, _colon, key = event.actor.partition(":")
        if kind == "service-account" and (found := _uuid(key)) is not None:
            accounts.add(found)
        if event.object_kind in MODELS and event.object_id is not None:
            objects.setdefault(event.object_kind, set()).add(event.object_id)
    book.people = asks.names(people)
    book.accounts = dict(ServiceAccount.objects.filter(pk__in=accounts).values_list("pk", "name")) if accounts else {}
    for noun, keys in objects.items():
        book.rows |= dict(MODELS[noun]._base_manager.in_bulk(keys))
    return book


def _happening(event: Event, book: _Book, tenant: str) -> Happening:
    thing = _thing(event, book, tenant)
    return Happening(
        event=event,
        who=who(event, book.people, book.accounts),
        what=sentence(event.kind, {**said(event, book.people), "object": thing.text}),
        thing=thing,
        by_machine=not event.actor.startswith("person:"),
    )


def who(event: Event, people: Mapping[UUID, str], accounts: Mapping[UUID, str]) -> str:
    """Return who did it; whoever shares no tenant with the actor stays unnamed."""
    kind, _colon, key = event.actor.partition(":")
    if kind == "service-account":
        name = accounts.get(_uuid(key) or UUID(int=0), "--")
        return _("Service account %(name)s") % {"name": name}
    if kind == "agent":
        return _("A gateway")
    if kind in {"system", "auth", "anonymous"} or event.person_id is None:
        return _("The platform")
    return people.get(event.person_id, _("Somebody who is no member"))


class _Known(dict[str, Any]):
    """Words of a sentence; what is not known reads as `--`."""

    def __missing__(self, key: str) -> str:
        return numbers.UNKNOWN


def sentence(kind: str, data: Mapping[str, Any]) -> str:
    """Return what an event says, going on from its subject; one without a sentence shows its own words."""
    found = SENTENCES.get(kind)
    if found is not None:
        return words.plain(str(found) % _Known(data))
    noun, _dot, verb = kind.partition(".")
    return words.plain(f"{noun.replace('-', ' ')}: {verb.replace('-', ' ')}")


def said(event: Event, people: Mapping[UUID, str]) -> dict[str, Any]:
    """Return what an event says in words, under the names that sentences use."""
    found = {key: _word(key, value, people) for key, value in event.data.items()}
    why = next((found[key] for key in ("why", "reason", "message", "detail", "text") if found.get(key)), None)
    if why is not None:
        found["why"] = str(why)
    found.setdefault("person", people.get(_uuid(event.data.get("person")) or UUID(int=0), _("somebody")))
    return found


def _word(key: str, value: Any, people: Mapping[UUID, str]) -> Any:  # noqa: PLR0911 - a table
    if value is None or value == "":
        return None
    if key in PEOPLE:
        person = _uuid(value)
        return people.get(person, _("somebody who is no member")) if person is not None else str(value)
    if key == "dimension":
        return asks.dimension(str(value))
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if isinstance(value, list):
        return ", ".join(str(each).replace("_", " ") for each in value if not isinstance(each, dict | list)) or None
    if isinstance(value, dict):
        return None
    if key in {"until", "expires_at", "starts_at", "ends_at", "valid_from"}:
        try:
            return absolute(datetime.fromisoformat(str(value)))
        except ValueError:
            return str(value)
    if isinstance(value, int) and key == "amount":
        return numbers.number(value)
    return str(value)


def _thing(event: Event, book: _Book, tenant: str) -> Thing:
    row = book.rows.get(event.object_id) if event.object_id is not None else None
    noun = event.object_kind
    name = str(getattr(row, "name", "") or event.data.get("name") or "")
    if isinstance(row, Request):
        return Thing(
            _("request %(id)s") % {"id": row.short_id},
            reverse("frontend:request", kwargs={"tenant": tenant, "name": row.short_id}),
        )
    if isinstance(row, Allocation):
        noun, name = row.product_kind, row.name
    kinds = {
        "endpoint": _("the endpoint %(name)s"), "machine": _("the machine %(name)s"),
        "namespace": _("the namespace %(name)s"), "service-account": _("the service account %(name)s"),
        "webhook": _("the webhook %(name)s"), "bare": _("the capacity %(name)s"),
        "boundary": _("an isolation of the tenant"), "provider": _("the provider %(name)s"),
    }  # fmt: skip
    if noun not in kinds:
        return Thing("")
    text = kinds[noun] % {"name": name or numbers.UNKNOWN}
    short = getattr(row, "short_id", "") if noun == event.object_kind else name
    if noun in PRODUCTS and short:
        return Thing(text, reverse(f"frontend:{noun}", kwargs={"tenant": tenant, "name": short}))
    return Thing(text)


def facts(event: Event, people: Mapping[UUID, str]) -> list[dict[str, Any]]:
    """Return what an event says beside its sentence: before, after and the rest that has words."""
    shown = {key: _word(key, value, people) for key, value in event.data.items()}
    return [
        {"label": str(LABELS[key]), "value": words.plain(str(shown[key]))}
        for key in LABELS
        if shown.get(key) is not None
    ]


def _uuid(text: object) -> UUID | None:
    try:
        return UUID(str(text)) if text else None
    except ValueError:
        return None
