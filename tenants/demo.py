"""Personas of a demo: who they are, and a log-in without a password, for installations that are nothing but a demo.

An installation is a demo where TENANTRY_DEMO says so and every provider is simulated; both are looked at each
time, so that a real provider ends it at once. Everywhere else there are no personas, and a log-in is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from django.conf import settings
from django.db.models import QuerySet

from tenants import desired, tokens
from tenants.actor import AUTH, Actor
from tenants.errors import Forbidden, NotVisible
from tenants.models import Person, Provider
from tenants.transactions import acting, operation

SIMULATED: Final = "sandbox"
"""The one provider kind that is simulated; a cluster of the lab is too, which its access and address say."""
LAB_URLS: Final = {"kubernetes": "https://127.0.0.1:", "vsphere": "https://127.0.0.2:"}


@dataclass(frozen=True, slots=True)
class Persona:
    """Somebody to look at the demo as."""

    key: str
    """What the log-in takes."""
    name: str
    role: str
    """In one or two words."""
    does: str
    """One sentence: what he or she is good for."""

    @property
    def email(self) -> str:
        """Return the address of the person behind it."""
        return f"{self.key}@demo.test"


PERSONAS: Final = (
    Persona("mia", "Mia", "member", "Deploys endpoints and machines in the tenant aurora."),
    Persona("omar", "Omar", "owner", "Owns acme and aurora: people, limits, first decisions."),
    Persona("ana", "Ana", "approver", "Decides requests for the platform, with proof before each click."),
    Persona("ole", "Ole", "operator", "Runs hosts, providers, prices and findings."),
    Persona("aud", "Aud", "auditor", "Sees everything and changes nothing."),
)


def real_providers() -> list[str]:
    """Return the names of providers that are not simulated. Opens its own transaction."""
    with acting(AUTH):
        return sorted(_real().values_list("name", flat=True))


def _real() -> QuerySet[Provider]:
    there = Provider.objects.filter(released_at__isnull=True).exclude(kind=SIMULATED)
    # By key: an exclusion by a setting that is not there would leave the provider out, too.
    for kind, url in LAB_URLS.items():
        labs = Provider.objects.filter(kind=kind, config__access="lab", config__url__startswith=url)
        there = there.exclude(pk__in=labs.values("pk"))
    return there


def is_demo() -> bool:
    """Whether this installation is a demo. Opens its own transaction."""
    return bool(settings.TENANTRY_DEMO) and not real_providers()


def personas() -> tuple[Persona, ...]:
    """Return the personas that can be taken up; none where this is no demo. Opens its own transactions."""
    if not is_demo():
        return ()
    with acting(AUTH):
        wanted = Person.objects.filter(email__in=[one.email for one in PERSONAS], is_active=True, left_at__isnull=True)
        there = set(wanted.values_list("email", flat=True))
    return tuple(one for one in PERSONAS if one.email in there)


def bar() -> tuple[Persona, ...]:
    """Return the personas to show on a page, inside its read block: one query in a demo, none anywhere else."""
    return PERSONAS if settings.TENANTRY_DEMO and not _real().exists() else ()


def log_in(key: str, *, now: datetime) -> Person:
    """Return the person behind a persona, for the interface to open a session for. Recorded as an event.

    Raises `Forbidden` (`not-a-demo`) everywhere but in a demo, `NotVisible` for one that is not there.
    """
    if not is_demo():
        msg = "Only a demo can be entered without a password."
        raise Forbidden(msg, code="not-a-demo")
    with acting(AUTH):
        known = {one.key: one.email for one in PERSONAS}
        person = Person.objects.filter(email=known.get(key, "")).first()
        actor = tokens.actor_of(person) if person is not None else None
    if person is None or actor is None:
        raise NotVisible
    _record(person=person, actor=actor, now=now)
    return person


@operation
def _record(*, person: Person, actor: Actor, now: datetime) -> None:
    desired.happened(person, "person.demo-log-in", actor=actor, at=now, nudge=False)
