"""What becomes of findings: adopted, repaired, deleted or ignored, as `finding_actions` offers it.

An operation writes what should be true and nudges; what goes at a provider passes take away. Nothing here frees what a
tenant holds. Lock order: provider, host, devices, object, finding, chain head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from tenants import desired, finding_actions, findings, host_plans, ledger
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.models import Allocation, Boundary, Finding, GpuDevice, Hold, Host, Unit
from tenants.operations.guards import allow, clean_text, locked
from tenants.operations.host_parts import host_changed, refuse_running, set_state, take_out
from tenants.operations.placements import product_model
from tenants.states import HoldKind, HostState, ProductKind
from tenants.transactions import operation


@operation
def resolve(
    *, finding: Finding, action: str, reason: str, actor: Actor, now: datetime, version: int | None = None
) -> Finding:
    """Do something about a finding.

    `adopt`: what is there becomes what is written here. `repair`: look again now, and set right what can be; an
    ignored one counts again. `delete`: take what nobody owns away at its provider, or take out here what its provider
    does not show any more. `ignore`: known and all right, stays silent while it is seen; a deletion is called off.
    Raises `InvalidSpec`, and `Conflict` where the action does not fit the finding or would free what a tenant holds.
    """
    allow(actor, None, "findings.resolve")
    # All that has to look is made due first: provider, hosts and objects come before findings wherever both are locked.
    if finding.provider is not None:
        desired.nudge_now(finding.provider, at=now)
        ledger.refresh_placeable(finding.provider.pk)
    if finding.host_id is not None:
        locked(Host.objects.get(pk=finding.host_id))
    _nudge_owner(finding, now=now)
    row = locked(finding, version)
    if row.resolved_at is not None:
        msg = "This finding is resolved already."
        raise Conflict(msg, code="resolved", resolution=row.resolution)
    if action not in finding_actions.ACTIONS:
        msg = f"An action is one of {', '.join(finding_actions.ACTIONS)}."
        raise InvalidSpec(msg, field="action")
    chosen = finding_actions.choice(row, action)
    if not chosen.is_offered:
        msg = f"{action.capitalize()} does not fit this finding. {chosen.reason}"
        raise Conflict(msg, code="wrong-action", action=action)
    text = clean_text(reason, "reason", most=300, least=3)
    if action == finding_actions.IGNORE:
        row.data = _without(row.data, "action", "asked")
        row.data |= {"ignored": {"by": actor.word, "at": now.isoformat(), "reason": text}}
        row.blocks_placement = False
    else:
        row.data = _without(row.data, "ignored")
    if (done := _DONE.get((action, row.kind))) is not None:
        done(row, actor, now)
        row.resolved_at, row.resolution = now, f"{_PAST[action]}: {text}"
    elif action == finding_actions.DELETE:
        row.data |= {"action": "delete", "asked": {"by": actor.word, "reason": text}}
    row.save(update_fields=["data", "blocks_placement", "resolved_at", "resolution"])
    if row.provider is not None:
        ledger.refresh_placeable(row.provider.pk)
    desired.changed(row, "finding.resolved", actor=actor, at=now, action=action, reason=text, finding=row.kind)
    return row


def _without(data: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in names}


# --- adopting -------------------------------------------------------------------------------------------


def _adopt_stray(row: Finding, _actor: Actor, now: datetime) -> None:
    """Turn the stray holds over a unit's workload into its own."""
    unit, host = _live_unit(row), _host(row)
    if unit.host_id is not None:
        msg = "Only a live unit that holds nothing can be given the windows it runs on."
        raise Conflict(msg, code="wrong-action")
    stray = _stray(unit, host)
    for hold in stray:
        ledger.drop(hold.pk, now=now)
    devices, starts = [hold.device for hold in stray], [hold.start for hold in stray]
    if len(stray) != max(1, unit.gpu_count) or not ledger.claim_windows(
        unit.allocation, unit, host, devices, starts, now=now
    ):
        msg = f"The windows that it uses on {host.name} cannot be given to it."
        raise Conflict(msg, code="not-free")
    Allocation.objects.filter(pk=unit.allocation_id).update(queued_at=None)


def _adopt_other_device(row: Finding, _actor: Actor, now: datetime) -> None:
    """Move a unit's hold to where it runs."""
    unit, host = _live_unit(row), _host(row)
    held = list(Hold.objects.filter(unit=unit, kind=HoldKind.TENANT.value))
    stray = _stray(unit, host)
    # Of several windows nothing says which one runs where; of one it is clear.
    if (
        len(held) != 1
        or len(stray) != 1
        or held[0].host_id != host.pk
        or held[0].size != stray[0].size
        or held[0].device.product != stray[0].device.product
    ):
        msg = f"The room that it uses on {host.name} cannot take the place of what it holds; rebuild it instead."
        raise Conflict(msg, code="not-free")
    guessed = stray[0].note.endswith(host_plans.GUESS)
    ledger.drop(stray[0].pk, now=now)
    move = {"hold": str(held[0].pk), "device": str(stray[0].device_id), "start": stray[0].start, "settled": not guessed}
    ledger.rebind(host.pk, [move], now=now)


def _adopt_binding(row: Finding, actor: Actor, now: datetime) -> None:
    """Go by who chooses GPUs on a host now. What others use there is looked at anew by the next snapshot."""
    host = _host(row)
    _refuse_held(Hold.objects.filter(host=host, kind=HoldKind.TENANT.value).count(), host.name)
    Host.objects.filter(pk=host.pk).update(binding=row.data["binding"])
    host_changed(host, "host.changed", actor=actor, now=now, fields=["binding"])


def _live_unit(row: Finding) -> Unit:
    found = Unit.objects.filter(pk=row.data.get("unit"), released_at__isnull=True).select_related("allocation")
    # locked: whoever places it somewhere else this moment is waited for
    unit = found.select_for_update(no_key=True, of=("self",)).first()
    if unit is None:
        msg = "Whoever it belonged to has given it back; nobody is there to be given room."
        raise Conflict(msg, code="wrong-action")
    return unit


def _host(row: Finding) -> Host:
    if row.host_id is None:
        msg = "This finding names no host."
        raise Conflict(msg, code="wrong-action")
    return Host.objects.get(pk=row.host_id)  # locked above


def _stray(unit: Unit, host: Host) -> list[Hold]:
    """Return the holds that keep others off what a unit uses without having it."""
    note = f"{host_plans.STRAY}{unit.pk}"
    rows = Hold.objects.filter(host=host, kind=HoldKind.FOREIGN.value, note__in=[note, note + host_plans.GUESS])
    return list(rows.select_related("device").order_by("device__number", "start"))


# --- taking out -----------------------------------------------------------------------------------------


def _remove_host(row: Finding, actor: Actor, now: datetime) -> None:
    """Take a host out that its provider does not show; an open one is cordoned on the way."""
    host = _host(row)
    refuse_running(host)
    if host.state == HostState.OPEN.value:
        set_state(host, HostState.CORDONED)
    take_out(host, actor=actor, now=now)


def _forget_gpu(row: Finding, actor: Actor, now: datetime) -> None:
    """Take a GPU off its host's list, with what is kept there for others; shown again it is a new one."""
    host = _host(row)
    refuse_running(host)
    gpu = row.device
    if gpu is None:
        msg = "This finding names no GPU."
        raise Conflict(msg, code="wrong-action")
    kept = Hold.objects.filter(device=gpu).order_by("start")
    _refuse_held(kept.filter(kind=HoldKind.TENANT.value).count(), f"{gpu} of {host.name}")
    for hold in kept.values_list("pk", flat=True):
        ledger.drop(hold, now=now)
    GpuDevice.objects.filter(pk=gpu.pk).update(removed_at=now, placeable=False)
    ledger.recount(host.pk, now=now)
    host_changed(host, "host.gpu-removed", actor=actor, now=now, device=gpu.provider_ref)


def _refuse_held(held: int, what: str) -> None:
    if held:
        msg = f"Tenants hold {held} windows of {what}; drain the host first."
        raise Conflict(msg, code="in-use", holds=held)


_PAST: Final[Mapping[str, str]] = {finding_actions.ADOPT: "adopted", finding_actions.DELETE: "taken out"}
_DONE: Final[Mapping[tuple[str, str], Callable[[Finding, Actor, datetime], None]]] = {
    (finding_actions.ADOPT, findings.STRAY_USE): _adopt_stray,
    (finding_actions.ADOPT, findings.WRONG_DEVICE): _adopt_other_device,
    (finding_actions.ADOPT, findings.PRODUCT_CHANGED): _forget_gpu,  # the next snapshot takes it in as it is
    (finding_actions.ADOPT, findings.BINDING_CHANGED): _adopt_binding,
    (finding_actions.DELETE, findings.HOST_MISSING): _remove_host,
    (finding_actions.DELETE, findings.GPU_MISSING): _forget_gpu,
}
"""What is done at once, in our rows; the rest is a worker's."""


# --- who has to look ------------------------------------------------------------------------------------


def _nudge_owner(row: Finding, *, now: datetime) -> None:
    """Make due whoever a finding is about: the owner of its unit, or the object that it names."""
    if (owner := _owner_of_unit(row.data.get("unit")) or _object(row.data)) is not None:
        desired.nudge_now(owner, at=now)


def _owner_of_unit(unit: str | None) -> Any:
    found = (
        Unit.objects.filter(pk=unit, released_at__isnull=True).select_related("allocation").first() if unit else None
    )
    if found is None:
        return None
    model = product_model(ProductKind(found.allocation.product_kind))
    return model._base_manager.filter(pk=found.allocation.product_id).first() if model else found.allocation


def _object(data: Mapping[str, Any]) -> Any:
    """Return the live row that `remarks` told a finding of, or the boundary that a stranger lies in."""
    word, uid = data.get("object"), data.get("uid")
    if word is None:
        word, uid = "boundary", data.get("boundary")
    try:
        pk = UUID(str(uid))
    except ValueError:
        return None
    model = Boundary if word == "boundary" else product_model(ProductKind(word)) if word in set(ProductKind) else None
    return model._base_manager.filter(pk=pk, released_at__isnull=True).first() if model is not None else None
