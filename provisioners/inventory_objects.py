"""Objects with our mark, against our rows: which passes must look, what nobody owns, whose GPU is bad.

A changed fingerprint or an object that is missing from a complete list makes its row due; the pass then
looks exactly and decides. What carries our mark and belongs to no live row is an orphan once two snapshots
in a row have shown it; only an operator's word removes it (`delete_wanted`). One exception: what is there shortly
after its row's end was made by a call of ours that came late, and goes without anybody's word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db.models import F, Q, QuerySet
from django.db.models.functions import Coalesce

from provisioners.driver import (
    Done,
    Driver,
    DriverError,
    Kind,
    ObservedObject,
    ObservedProvider,
    Presence,
    Ref,
    TransientDriverError,
    removal_of,
)
from tenants import desired, findings
from tenants.actor import SYSTEM
from tenants.findings import ORPHAN, Seen
from tenants.models import Allocation, Boundary, Endpoint, Finding, Machine, Namespace, Provider, Reconciled, Unit
from tenants.states import ConditionType, Phase, Reason, phase_of, set_condition
from tenants.transactions import acting

Clock = Callable[[], datetime]

DUPLICATE_OBJECT: Final = "duplicate-object"
KINDS: Final = frozenset({ORPHAN, DUPLICATE_OBJECT})
MODELS: Final[Mapping[Kind, type[Reconciled]]] = {
    Kind.BOUNDARY: Boundary,
    Kind.ENDPOINT: Endpoint,
    Kind.MACHINE: Machine,
    Kind.NAMESPACE: Namespace,
}
PRODUCTS: Final[Mapping[str, type[Reconciled]]] = {"endpoint": Endpoint, "machine": Machine, "namespace": Namespace}
WORKING: Final = frozenset({Phase.READY.value, Phase.DEGRADED.value, Phase.EXPIRING.value})
STEPS_AT_ONCE: Final = 20
LATE: Final = timedelta(minutes=15)
"""So long after a row's end a call of ours may still come through; what turns up later somebody brought back."""


@dataclass(slots=True)
class Compared:
    """What the list of objects showed."""

    findings: list[Seen] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    """Ids of objects that nobody seems to own; with the next snapshot they are orphans."""
    nudged: int = 0


def compare(
    provider: Provider, seen: ObservedProvider, *, now: datetime, clock: Clock, suspects: Sequence[str]
) -> Compared:
    """Compare all marked objects with our rows and make due what differs. `now`: when the snapshot was begun."""
    answer = Compared()
    shown: dict[UUID, ObservedObject] = {}
    for item in dict.fromkeys(seen.objects):
        if item.ref.kind is Kind.LAYOUT:
            continue
        if item.ref.uid in shown:
            answer.findings.append(
                Seen(DUPLICATE_OBJECT, str(item.ref.uid), f"{item.ref.name} exists more than once at the provider.")
            )
        shown[item.ref.uid] = item
    claimed: set[UUID] = set()
    for kind, model in MODELS.items():
        with acting(SYSTEM):
            rows = list(
                placed(live(model, provider.pk)).values_list(
                    "pk", "place", "tenant_id", "fingerprint", "phase", named=True
                )
            )
        for row in rows:
            found = shown.get(row.place)
            if found is not None and (found.ref.kind is not kind or found.ref.tenant_uid != row.tenant_id):
                continue  # marks of another owner: an orphan with our row's id
            claimed.add(row.place)
            if found is not None:
                if found.fingerprint[:64] != row.fingerprint:
                    answer.nudged += _look_again(model, row.pk, found.fingerprint[:64], clock())
            elif seen.complete and (row.fingerprint or row.phase in WORKING):
                answer.nudged += _look_again(model, row.pk, "", clock())
    _orphans([item for uid, item in shown.items() if uid not in claimed], suspects, now, answer)
    return answer


def live(model: type[Reconciled], provider: UUID) -> Any:
    """Return the rows of one kind at a provider that are not released."""
    of = {"provider_id": provider} if model is Boundary else {"boundary__provider_id": provider}
    return model._base_manager.filter(released_at__isnull=True, **of)


def placed(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Return rows with `place`: the id that their object has at its provider (`Endpoint.seat`)."""
    found: QuerySet[Any] = rows.annotate(place=Coalesce("seat", "pk") if rows.model is Endpoint else F("pk"))
    return found


def _look_again(model: type[Reconciled], pk: UUID, fingerprint: str, now: datetime) -> int:
    """Note a fingerprint and make the row due, unless a pass is at it: then the next snapshot will tell again."""
    with acting(SYSTEM):
        free = Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=now)
        rows = model._base_manager.filter(free, pk=pk, released_at__isnull=True)
        if not rows.update(fingerprint=fingerprint):
            return 0
        desired.nudge_now(model._base_manager.get(pk=pk), at=now)
    return 1


# --- orphans ----------------------------------------------------------------------------------------


def _orphans(items: Sequence[ObservedObject], suspects: Sequence[str], now: datetime, answer: Compared) -> None:
    for item in items:
        with acting(SYSTEM):
            row = placed(MODELS[item.ref.kind]._base_manager.all()).filter(place=item.ref.uid).first()
        released_at = None if row is None else row.released_at
        if released_at is not None and released_at >= now:
            continue  # it went after the list was read
        answer.suspects.append(str(item.ref.uid))
        if str(item.ref.uid) not in suspects:
            continue
        if row is None:
            why = "no object of ours has its id"
        elif released_at is not None:
            why = "its object was released"
        else:
            why = "its object has another owner or provider"
        answer.findings.append(
            Seen(
                ORPHAN,
                str(item.ref.uid),
                f"{item.ref.name} carries our mark, but {why}.",
                data={
                    "kind": str(item.ref.kind),
                    "uid": str(item.ref.uid),
                    "tenant": str(item.ref.tenant_uid),
                    "released": released_at is not None,
                    **({"action": "delete"} if released_at is not None and now - released_at < LATE else {}),
                },
            )
        )


def delete_wanted(provider_id: UUID, driver: Driver, clock: Clock) -> int:
    """Take orphans away that an operator gave up or a late call made: the last part first, gone by an exact look.

    Never touches an object whose row lives. Returns how many steps were started.
    """
    with acting(SYSTEM):
        wanted = list(
            Finding.objects.filter(provider_id=provider_id, kind=ORPHAN, resolved_at__isnull=True)
            .filter(data__action="delete")
            .exclude(data__has_key="ignored")
            .order_by("pk")
        )
    return sum(_delete(row, driver, clock) for row in wanted)


def _delete(finding: Finding, driver: Driver, clock: Clock) -> int:
    ref = Ref(Kind(finding.data["kind"]), UUID(finding.data["uid"]), UUID(finding.data["tenant"]))
    started = 0
    for _ in range(STEPS_AT_ONCE):
        with acting(SYSTEM):
            rows = placed(MODELS[ref.kind]._base_manager.all())
            live = rows.filter(place=ref.uid, released_at__isnull=True).exists()
        if live:
            return started
        try:
            observed = driver.observe(ref)
            if not observed.exists:
                with acting(SYSTEM):
                    findings.close(finding, "deleted at the provider", now=clock())
                return started
            part = next((p for p in reversed(observed.parts) if p.presence is not Presence.ABSENT), None)
            if part is None or part.presence is Presence.CHANGING:
                return started
            answer = driver.start(removal_of(ref, part.step))
        except TransientDriverError:
            return started
        except DriverError as error:
            with acting(SYSTEM):
                _note(finding, f"{error.reason}: {error.detail}")
            return started
        started += 1
        if not isinstance(answer, Done):
            return started
    return started


def _note(finding: Finding, text: str) -> None:
    row = Finding.objects.select_for_update(no_key=True).get(pk=finding.pk)
    row.data = {**row.data, "trouble": text[:300]}
    row.save(update_fields=["data"])


# --- who stands on bad hardware ---------------------------------------------------------------------


def owners_of(units: Iterable[UUID]) -> list[Reconciled]:
    """Return the products (or bare allocations) that own units, by id; in the open transaction."""
    owners: dict[UUID, Reconciled] = {}
    rows = Unit.objects.filter(pk__in=set(units), released_at__isnull=True).select_related("allocation").order_by("pk")
    for unit in rows:
        allocation = unit.allocation
        model = PRODUCTS.get(allocation.product_kind)
        if model is None or allocation.product_id is None:
            owners[allocation.pk] = allocation
            continue
        owner = model._base_manager.filter(pk=allocation.product_id, released_at__isnull=True).first()
        if owner is not None:
            owners[owner.pk] = owner
    return [owner for _, owner in sorted(owners.items(), key=lambda entry: str(entry[0]))]


def nudge_units(units: Iterable[UUID], *, now: datetime) -> int:
    """Make the owners of units due, inside the open transaction; returns how many."""
    owners = owners_of(units)
    for owner in owners:
        desired.nudge_now(owner, at=now)
    return len(owners)


def tell_unhealthy(units: Iterable[UUID], reason: Reason, message: str, *, now: datetime) -> int:
    """Say at once that hardware under some units went bad, and make their owners due; their passes look further.

    Runs inside the open transaction, the host being locked. What an owner's pass finds later replaces it.
    """
    owners = owners_of(units)
    for owner in owners:
        desired.nudge_now(owner, at=now)
        if isinstance(owner, Allocation):
            continue
        row = type(owner)._base_manager.select_for_update(no_key=True).get(pk=owner.pk)
        row.conditions = set_condition(
            row.conditions, ConditionType.HEALTHY, "False", reason, message, now=now, generation=row.observed_generation
        )
        row.phase = phase_of(row.conditions, deleting=row.deletion_requested_at is not None, released=False).value
        row.save(update_fields=["conditions", "phase"])
        desired.happened(
            row, f"{desired.kind_of(row)}.unhealthy", actor=SYSTEM, at=now, nudge=False, reason=str(reason),
            message=message,
        )  # fmt: skip
    return len(owners)
