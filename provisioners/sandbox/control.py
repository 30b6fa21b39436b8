"""Bending an estate: settings, faults, foreign use, broken hardware, objects removed behind our back.

These calls are no part of the driver contract; tests, demos and what-if use them, over HTTP as `/control/…`.
Bad input raises `BadControl` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from provisioners.driver import DriverRejected
from provisioners.sandbox import physics, views
from provisioners.sandbox.choosing import POLICIES
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.faults import EFFECTS, ERRORS
from provisioners.sandbox.records import FaultRecord, ForeignObject, ForeignUse, Settings, as_row

_CHOICES = {
    "policy": frozenset(POLICIES),
    "report_detail": frozenset({"window", "device", "never"}),
    "gateways": frozenset({"real", "simulated"}),
    "models": frozenset({"local", "stub"}),
}


class BadControl(ValueError):
    """The control call makes no sense for this estate; the message says why."""


def change_settings(estate: Estate, changes: Mapping[str, Any]) -> Settings:
    """Change some settings; `delays_s` is replaced as a whole. Raises `BadControl`."""
    estate.advance()
    known = {field.name for field in fields(Settings)}
    values = as_row(estate.state.settings)
    for name, value in changes.items():
        if name not in known:
            msg = f"no setting is called {name!r}; known: {', '.join(sorted(known))}"
            raise BadControl(msg)
        if name in _CHOICES and value not in _CHOICES[name]:
            msg = f"{name} is one of {', '.join(sorted(_CHOICES[name]))}"
            raise BadControl(msg)
        if name not in _CHOICES:
            _check_amount(name, value, like=values[name])
        values[name] = value
    estate.state.settings = Settings(**values)
    estate.state.touch("settings", "")
    return estate.state.settings


def _check_amount(name: str, value: Any, *, like: Any) -> None:
    amounts = list(value.values()) if isinstance(value, dict) and isinstance(like, dict) else [value]
    wanted = bool if isinstance(like, bool) else (int, float)
    for amount in amounts:
        if not isinstance(amount, wanted) or (not isinstance(like, bool) and (isinstance(amount, bool) or amount < 0)):
            msg = f"{name} takes {'true or false' if wanted is bool else 'numbers from 0'}"
            raise BadControl(msg)


def no_delays(estate: Estate) -> None:
    """Make everything immediate: steps without tasks, no boot, no loading, devices reported at once."""
    change_settings(estate, {"delays_s": {"": 0.0}, "boot_s": 0.0, "load_s": 0.0, "report_delay_s": 0.0})


def add_fault(estate: Estate, match: str, effect: str, **options: Any) -> FaultRecord:
    """Set a fault (words in `faults.py`); a `stale` one repeats what lists show now. Raises `BadControl`."""
    now = estate.advance()
    if effect not in EFFECTS:
        msg = f"no fault is called {effect!r}; known: {', '.join(sorted(EFFECTS))}"
        raise BadControl(msg)
    if options.get("error", "transient") not in ERRORS:
        msg = f"error is one of {', '.join(ERRORS)}"
        raise BadControl(msg)
    known = {field.name for field in fields(FaultRecord)} - {"uid", "match", "effect"}
    if not match or options.keys() - known:
        msg = f"a fault takes match, effect and {', '.join(sorted(known))}"
        raise BadControl(msg)
    fault = FaultRecord(uid=estate.state.next_id("fault"), match=match, effect=effect, **options)
    if effect == "stale":
        captured = views.PROVIDER.dump_python(views.snapshot(estate.state, now), mode="json")
        estate.state.put("captured", fault.uid, captured)
    estate.state.put("faults", fault.uid, fault)
    return fault


def clear_faults(estate: Estate, uid: str | None = None) -> None:
    """Remove one fault, or all."""
    for key in [uid] if uid else list(estate.state.faults):
        estate.state.drop("faults", key)
        estate.state.drop("captured", key)


def set_gpu_health(estate: Estate, device: str, *, healthy: bool, message: str = "") -> None:
    """Break or mend a GPU; what runs on it stays and is not ready. Raises `BadControl`."""
    estate.advance()
    gpu = estate.state.gpus.get(device)
    if gpu is None:
        msg = f"no GPU is called {device!r}"
        raise BadControl(msg)
    gpu.healthy, gpu.message = healthy, "" if healthy else message or "simulated fault"
    estate.state.touch("gpus", device)


def set_host_health(estate: Estate, host: str, *, healthy: bool, message: str = "") -> None:
    """Take a host down or bring it back. Raises `BadControl`."""
    estate.advance()
    record = estate.state.hosts.get(host)
    if record is None:
        msg = f"no host is called {host!r}"
        raise BadControl(msg)
    record.healthy, record.message = healthy, "" if healthy else message or "simulated outage"
    estate.state.touch("hosts", host)


def add_foreign_use(
    estate: Estate, name: str, host: str, windows: Sequence[Sequence[Any]], *, vcpu: int = 0, memory_gib: int = 0
) -> ForeignUse:
    """Let somebody else use windows [(device, start, profile)], vCPU and memory. Raises `BadControl`.

    Physics holds for foreigners too: a window in use, an illegal start, or too little room is refused.
    """
    estate.advance()
    state = estate.state
    if name in state.foreign_uses or host not in state.hosts:
        msg = f"{name!r} exists already or {host!r} is no host"
        raise BadControl(msg)
    record, load = state.hosts[host], state.loads[host]
    if load.vcpu + vcpu > record.vcpu or load.memory_gib + memory_gib > record.memory_gib:
        msg = f"{host} has not that much vCPU or memory left"
        raise BadControl(msg)
    use = ForeignUse(name, host, [], vcpu, memory_gib)
    for device, start, profile_name in windows:
        gpu = state.gpus.get(device)
        if gpu is None or gpu.host != host:
            msg = f"{host} has no GPU {device!r}"
            raise BadControl(msg)
        try:
            profile = physics.profile_of(gpu.product, profile_name)
        except DriverRejected as error:
            raise BadControl(error.detail) from error
        mine = [(at, size, other) for used, at, size, other in use.windows if used == device]
        if start not in physics.free_starts(state, gpu, profile) or physics.overlaps(start, profile.size, mine):
            msg = f"{profile_name or 'the whole GPU'} at {start} on {device} is not free"
            raise BadControl(msg)
        use.windows.append([device, start, profile.size, profile_name])
    state.occupy(f"foreign:{name}", host, use.windows, vcpu, memory_gib)
    state.put("foreign_uses", name, use)
    return use


def remove_foreign_use(estate: Estate, name: str) -> None:
    """Let a foreign use vanish. Raises `BadControl`."""
    estate.advance()
    use = estate.state.foreign_uses.get(name)
    if use is None:
        msg = f"no foreign use is called {name!r}"
        raise BadControl(msg)
    estate.state.vacate(f"foreign:{name}", use.host, use.windows, use.vcpu, use.memory_gib)
    estate.state.drop("foreign_uses", name)


def add_foreign_object(estate: Estate, name: str, note: str = "") -> ForeignObject:
    """Put something that is not ours under a name that we want."""
    estate.advance()
    found = ForeignObject(name, note)
    estate.state.put("foreign_objects", name, found)
    return found


def remove_foreign_object(estate: Estate, name: str) -> None:
    """Remove it again."""
    estate.state.drop("foreign_objects", name)


def remove_object(estate: Estate, uid: str) -> None:
    """Remove an object of ours and all that runs in it behind our back, as a careless administrator would.

    Raises `BadControl`.
    """
    estate.advance()
    state = estate.state
    owner = state.objects.get(uid)
    if owner is None:
        msg = f"no object has the id {uid!r}"
        raise BadControl(msg)
    for workload in state.workloads_of(uid):
        if workload.running:
            state.vacate(f"unit:{workload.uid}", workload.host, workload.windows, workload.vcpu, workload.memory_gib)
        state.drop("workloads", workload.uid)
    for gateway in [gateway for gateway in state.gateways.values() if gateway.owner == uid]:
        if gateway.simulated:
            state.drop("gateways", gateway.uid)
        else:
            gateway.wanted = False
            state.touch("gateways", gateway.uid)
    for task in [task for task in state.tasks.values() if task.owner == uid]:
        estate.cancel(task.uid)
    state.drop("objects", uid)
