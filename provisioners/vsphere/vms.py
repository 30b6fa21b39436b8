"""One VM of ours as it was read, and what its records say that steps have made true of it. Pure.

A record is a key of the VM's own configuration that neither guest nor datasource reads (no `guestinfo.` before it);
it holds the step's want and what the step made, so that a look that knows no spec can say whether it is still so.
Invariant: a part shows its want only while what was made is as it was made; what can be mended by the same step at
once shows none, what has to wait for the VM to be off shows it with a message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from ipaddress import IPv4Address
from typing import Any, Final
from uuid import UUID

from provisioners.driver import ObservedUnit, Part, Power, Presence, Ref, Remark, RemarkKind, intent_hash
from provisioners.steps import indexed
from provisioners.vsphere import hardware
from provisioners.vsphere.client import Found, MoRef, reference
from provisioners.vsphere.hardware import Hardware
from provisioners.vsphere.names import instance_uuid

CLONE: Final = "vm.clone"
CONFIGURE: Final = "vm.configure"
POWER: Final = "vm.power"
RECORD: Final = "tenantry.want."
"""Before the last word of a step's name: the key of its record."""
CUT_OFF: Final = "it was cut off: its network card is not as it was made; switch it off and on to have it mended"
_MOST_NAMED: Final = 5
PATHS: Final = (
    *hardware.PATHS,
    "name",
    "parent",
    "resourcePool",
    "customValue",
    "runtime.host",
    "runtime.connectionState",
    "runtime.powerState",
    "runtime.question",
    "guest.toolsRunningStatus",
    "guest.net",
    "guest.ipAddress",
    "datastore",
    "snapshot",
)


@dataclass(frozen=True, slots=True)
class Vm:
    """One VM of ours."""

    ref: MoRef
    index: int | None
    name: str
    mark: str
    folder: MoRef | None
    pool: MoRef | None
    host: MoRef | None
    power: str
    """`poweredOn`, `poweredOff` or `suspended`, as last heard."""
    connection: str
    """`connected`; anything else: vCenter does not know how it is (`disconnected`, `inaccessible`, `orphaned`)."""
    question: str
    """What vCenter wants to know of people before it goes on."""
    has_tools: bool
    """Whether a guest is there that can be asked to shut down."""
    have: Hardware
    devices: Sequence[Any]
    extra: Mapping[str, str]
    """Its configuration beside the hardware, guestinfo too."""
    net: Sequence[Any]
    """What the tools tell of cards and addresses."""
    primary: str
    """The address that the tools call the VM's own."""
    datastores: tuple[MoRef, ...]
    snapshots: tuple[str, ...] = ()
    """Names of those that are kept of it, with when each was made."""

    @property
    def is_on(self) -> bool:
        """Whether it runs."""
        return self.power == "poweredOn" and self.is_known

    @property
    def is_off(self) -> bool:
        """Whether it is surely off; a suspended one is neither, nor one of which vCenter does not know."""
        return self.power == "poweredOff" and self.is_known

    @property
    def is_known(self) -> bool:
        """Whether what was read is how it is."""
        return self.connection == "connected"

    @property
    def is_connected(self) -> bool:
        """Whether a card of it is in a network."""
        return hardware.is_connected(self.devices)

    def record(self, step: str) -> dict[str, Any]:
        """Return what a step recorded, empty where there is nothing or nonsense."""
        try:
            found = json.loads(self.extra.get(key_of(step), "") or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def named(self, step: str) -> str:
        """Return a step's name as this VM has it: `vm.power[1]`, of a machine `vm.power`."""
        return step if self.index is None else indexed(step, self.index)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a VM should lie, as far as it could be read; None is not known."""

    folder: MoRef | None = None
    pool: MoRef | None = None
    host: str = ""
    """Name of the host that it is on."""
    is_marked: bool = True
    network: str = ""
    """Key of its boundary's port group; read only for a VM whose cards are not as recorded."""


def vm_of(found: Found, index: int | None, mark: str) -> Vm:
    """Return a VM from a read of `PATHS`."""
    values = found.values

    def ref_at(path: str) -> MoRef | None:
        return None if values.get(path) is None else reference(values[path])

    return Vm(
        ref=found.ref,
        index=index,
        name=str(values.get("name", "")),
        mark=mark,
        folder=ref_at("parent"),
        pool=ref_at("resourcePool"),
        host=ref_at("runtime.host"),
        power=str(values.get("runtime.powerState", "")),
        connection=str(values.get("runtime.connectionState", "")),
        question=str(values["runtime.question"].text) if values.get("runtime.question") is not None else "",
        has_tools=values.get("guest.toolsRunningStatus") == "guestToolsRunning",
        have=hardware.read(values),
        devices=tuple(values.get("config.hardware.device") or ()),
        extra=hardware.extra_of(values),
        net=tuple(values.get("guest.net") or ()),
        primary=str(values.get("guest.ipAddress") or ""),
        datastores=tuple(reference(one) for one in values.get("datastore") or ()),
        snapshots=tuple(_snapshots(getattr(values.get("snapshot"), "rootSnapshotList", None) or ())),
    )


def _snapshots(trees: Sequence[Any]) -> Iterator[str]:
    for tree in trees:
        yield f"{str(tree.name)[:80]} ({tree.createTime.astimezone(UTC):%Y-%m-%d %H:%M} UTC)"
        yield from _snapshots(tree.childSnapshotList or ())


def key_of(step: str) -> str:
    """Return the key of a step's record."""
    return RECORD + step.rpartition(".")[2]


def record_text(want: str, **made: Any) -> str:
    """Return the text of a record, in ASCII."""
    return json.dumps({"want": want, **made}, sort_keys=True, separators=(",", ":"))


def power_want(power: Power, *, cut_off: bool) -> dict[str, Any]:
    """Return what `vm.power` makes true."""
    return {"power": str(power), "cut_off": cut_off}


def power_record(power: Power, *, cut_off: bool, since: float) -> str:
    """Return the record of a power state that is wanted since a time."""
    want = power_want(power, cut_off=cut_off)
    return record_text(intent_hash(want), **want, since=round(since))


def is_itself(vm: Vm, ref: Ref) -> bool:
    """Whether a VM with our mark is the one that we made, and not a copy of it that somebody made."""
    return vm.have.instance_uuid.lower() == instance_uuid(ref, vm.index)


# --- what is shown --------------------------------------------------------------------------------


def parts(vm: Vm, around: Surroundings) -> tuple[Part, ...]:
    """Return the parts that a VM has, in the order of their steps."""
    if not vm.is_known:
        why = f"vCenter does not know how it is: it is {vm.connection or 'not described'}"
        return tuple(Part(vm.named(one), Presence.UNKNOWN, message=why, ready=False) for one in (CLONE, POWER))
    found = (_clone(vm), _configured(vm, around), _powered(vm, around.network))
    return tuple(part for part in found if part.presence is not Presence.ABSENT)


def _clone(vm: Vm) -> Part:
    name, want = vm.named(CLONE), str(vm.record(CLONE).get("want", ""))
    if not want:
        return Part(name, Presence.FAILED, message="nobody knows of what it was made: its record is gone")
    return Part(name, Presence.PRESENT, have=want)


def _configured(vm: Vm, around: Surroundings) -> Part:
    name, record = vm.named(CONFIGURE), vm.record(CONFIGURE)
    if not record and not vm.have.gpus:
        return Part(name, Presence.ABSENT)
    try:
        made = Hardware.from_json(record["hardware"])
    except (KeyError, TypeError):
        return Part(name, Presence.PRESENT, message="what was fitted is not recorded")
    drift = hardware.differences(made, vm.have)
    now = [one.text for one in drift if vm.is_off or not one.needs_off]
    if vm.is_on and vm.is_connected:
        now += [one.text for one in drift if one.aspect == hardware.MAC]  # cut off at once, mended when it is off
    place = []
    if around.folder is not None and vm.folder != around.folder:
        place.append("it lies in another folder")
    if around.pool is not None and vm.pool != around.pool:
        place.append("it is in another resource pool")
    if not around.is_marked:
        place.append("its mark is gone")
    elsewhere = around.host != record.get("host", "")
    mended = [*now, *place]
    if elsewhere and vm.is_off:
        mended.append(f"it is on host {around.host or 'none'}")
    later = [one.text for one in drift if one.needs_off]
    if elsewhere and not vm.is_off:
        later.append(f"it runs on host {around.host or 'none'}")
        place.append(later[-1])
    remarks = _remarks(vm, drift, place, is_strayed=is_strayed(vm, around.network))
    if mended:
        return Part(name, Presence.PRESENT, message="; ".join(mended), remarks=remarks)
    message = f"changed by hand, mended when it is off: {'; '.join(later)}" if later else ""
    return Part(name, Presence.PRESENT, have=str(record.get("want", "")), message=message, remarks=remarks)


def _remarks(
    vm: Vm, drift: Sequence[hardware.Difference], place: Sequence[str], *, is_strayed: bool
) -> tuple[Remark, ...]:
    """Return what others did to a VM since it was fitted."""
    found = []
    if others := [*(one.text for one in drift if not one.is_of_cards), *place]:
        found.append(Remark(RemarkKind.CHANGED, f"changed by others: {'; '.join(others)}", "hardware"))
    if is_strayed and (of_cards := [one.text for one in drift if one.is_of_cards]):
        found.append(Remark(RemarkKind.CARDS, f"cards changed by others: {'; '.join(of_cards)}", "cards"))
    if vm.snapshots:
        shown = ", ".join(vm.snapshots[:_MOST_NAMED])
        found.append(Remark(RemarkKind.SNAPSHOTS, f"{len(vm.snapshots)} kept: {shown}", "snapshots"))
    return tuple(found)


def is_strayed(vm: Vm, network: str = "") -> bool:
    """Whether a card is in another network or has another address than when it was fitted.

    Port groups have new keys in an inventory that was rebuilt: cards that are all on `network`, the key of now of
    their boundary's port group, have not strayed, whatever was recorded.
    """
    try:
        made = Hardware.from_json(vm.record(CONFIGURE)["hardware"])
    except (KeyError, TypeError):
        return False
    is_home = bool(network) and vm.have.networks == (network,) * len(made.networks)
    strayed = [one for one in hardware.differences(made, vm.have) if one.is_of_cards]
    return any(not (is_home and one.aspect == hardware.NETWORK) for one in strayed)


def _powered(vm: Vm, network: str) -> Part:
    name, record = vm.named(POWER), vm.record(POWER)
    want = str(record.get("want", ""))
    if vm.question and want:  # its task waits for the answer, and nothing else would come of another
        return Part(name, Presence.PRESENT, have=want, message=f"vCenter asks people: {vm.question}", ready=False)
    if vm.is_off and (record.get("power") != Power.OFF or not want):
        return Part(name, Presence.ABSENT)  # what should run and does not is not there
    as_wanted = record.get("power") == (Power.OFF if vm.is_off else Power.ON) and vm.power != "suspended"
    strayed = not vm.is_off and is_strayed(vm, network)
    connected = vm.is_connected == (not (record.get("cut_off", False) or strayed))
    if as_wanted and connected and strayed and vm.is_on:
        return Part(name, Presence.PRESENT, have=want, message=CUT_OFF, ready=False)
    if as_wanted and connected:
        waiting = _waiting(vm)
        return Part(name, Presence.PRESENT, have=want, message=waiting, ready=not waiting)
    return Part(name, Presence.PRESENT, message="" if connected else "its network was changed by hand")


def _waiting(vm: Vm) -> str:
    """Return what a VM that was switched on still lacks before anybody can use it."""
    if not vm.is_on:
        return ""
    if not vm.has_tools:
        return "it is starting: nothing is heard of its tools yet"
    return "its tools tell no address yet" if vm.is_connected and not address(vm) else ""


def unit_uid(vm: Vm) -> UUID | None:
    """Return the unit that a VM was fitted for."""
    try:
        return UUID(str(vm.record(CONFIGURE)["unit"]))
    except (KeyError, ValueError):
        return None


def units(vm: Vm, host: str, on_devices: Sequence[str], *, backend: str = "") -> tuple[ObservedUnit, ...]:
    """Return where a VM's unit really is; `on_devices`: GPUs that the host says carry it."""
    uid = unit_uid(vm)
    if uid is None:
        return ()
    profile = str(vm.record(CONFIGURE).get("profile", ""))
    if not on_devices:
        return (ObservedUnit(uid, host, "", None, profile, exact=False, backend=backend),)
    return tuple(
        ObservedUnit(uid, host, device, None, profile, exact=True, index=at, backend=backend)
        for at, device in enumerate(on_devices)
    )


def address(vm: Vm) -> str:
    """Return the address that the tools tell of the VM's own card; `""` while there is none.

    Just after a card was changed they may know an address and not yet whose it is.
    """
    macs = {str(card.macAddress).lower() for card in hardware.cards(vm.devices)}
    for told in vm.net:
        if str(told.macAddress).lower() not in macs:
            continue  # a bridge of containers in the guest
        for one in (told.ipConfig.ipAddress if told.ipConfig else None) or ():
            if _is_usable(str(one.ipAddress)):
                return str(one.ipAddress)
    return vm.primary if len(macs) == 1 and _is_usable(vm.primary) else ""


def _is_usable(found: str) -> bool:
    """Whether a guest's word can be where it is: a guest may say anything, also where whoever asks is himself."""
    try:
        told = IPv4Address(found)
    except ValueError:
        return False
    return not (told.is_loopback or told.is_link_local or told.is_multicast or told.is_unspecified or told.is_reserved)
