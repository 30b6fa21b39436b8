"""The control address of a lab's vCenter: what shall go wrong, who is thrown out, and what is true about the GPUs.

The address is the vCenter's own (`/_lab/`), heard with the lab's first login only. Names of fields are those of
`deploy/labs/vsphere` (rules.go, control.go).
"""

from __future__ import annotations

import ssl
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from controlplane.labs.errors import LabError

AT_CALL: Final = "call"
AT_TASK: Final = "task"
AT_HTTP: Final = "http"
_DEADLINE_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Rule:
    """Makes calls go wrong; made by the methods of `Control`, and returned by it with its id and hits."""

    at: str
    """`call`: the call fails and nothing was done. `task`: its task fails or does not end. `http`: below both."""
    method: str
    """SOAP name (`CloneVM_Task`), at `http` also a path; `*` is all but logging in and out."""
    object: str = ""
    """Pattern on the object's name or id (`tenant-*`, `vm-42`); empty: any."""
    fault: str = ""
    """Name of an API fault: `TaskInProgress`."""
    message: str = ""
    skip: int = 0
    """How many matching calls pass first."""
    count: int = 0
    """How many it strikes then; 0: all."""
    delay_ms: int = 0
    endless: bool = False
    """A task that runs until it is cancelled or the rule is taken back."""
    late: bool = False
    """The task does its work and then reports the fault."""
    status: int = 0
    """HTTP status in the place of an answer."""
    drop: str = ""
    """`before`: the connection is cut and nothing was done. `after`: it was done and the answer is lost."""
    id: int = 0
    hits: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """What one device of a VM holds of one GPU."""

    vm: str
    """Object id, `vm-42`."""
    type: str
    """vGPU type; empty for passthrough."""
    start: int
    """-1 for a time-sliced or whole GPU."""
    size: int


@dataclass(frozen=True, slots=True)
class HeldGpu:
    """The truth about one GPU."""

    host: str
    pci_id: str
    mode: str
    """`mig`, `timeSliced`, or empty while no VM has fixed it."""
    held: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class GuestVm:
    """What a program inside a VM could see of it, and whether the VM runs."""

    id: str
    name: str
    uuid: str
    """Of its firmware."""
    running: bool
    booted: str
    """When it was switched on; another time is another boot, `""` while it is off."""
    info: dict[str, str]
    """guestinfo.*"""


class Control:
    """A client of the control address; close it, or use it as a context."""

    def __init__(self, url: str, *, ca: str, user: str, password: str) -> None:
        """`url` is the vCenter's base, `ca` the file of its CA."""
        context = ssl.create_default_context(cafile=ca)
        self._http = httpx.Client(
            base_url=f"{url}/_lab", auth=(user, password), verify=context, timeout=_DEADLINE_S, trust_env=False
        )

    # --- faults -----------------------------------------------------------------------------------

    def add(self, rule: Rule) -> Rule:
        """Let a rule strike from now on. Raises `LabError` for one that means nothing."""
        given = {name: value for name, value in asdict(rule).items() if name not in {"id", "hits"}}
        return Rule(**self._ask("POST", "/rules", given))

    def fail_call(self, method: str, fault: str, *, count: int = 1, **more: Any) -> Rule:
        """Let a call fail at once with an API fault."""
        return self.add(Rule(AT_CALL, method, fault=fault, count=count, **more))

    def fail_task(self, method: str, fault: str, *, count: int = 1, **more: Any) -> Rule:
        """Let the task of a call fail; with `late=True` after its work was done."""
        return self.add(Rule(AT_TASK, method, fault=fault, count=count, **more))

    def hang_task(self, method: str, *, count: int = 1, object: str = "") -> Rule:  # noqa: A002 - the rule's field
        """Let the task of a call run for ever."""
        return self.add(Rule(AT_TASK, method, endless=True, count=count, object=object))

    def slow_task(self, method: str, delay_ms: int, *, count: int = 0, object: str = "") -> Rule:  # noqa: A002 - as above
        """Let the task of a call take longer, without holding up reads of its object."""
        return self.add(Rule(AT_TASK, method, delay_ms=delay_ms, count=count, object=object))

    def slow_call(self, method: str, delay_ms: int, *, count: int = 0) -> Rule:
        """Let a call wait before it is carried out."""
        return self.add(Rule(AT_HTTP, method, delay_ms=delay_ms, count=count))

    def lose_answer(self, method: str, *, count: int = 1) -> Rule:
        """Carry a call out and cut the connection before its answer."""
        return self.add(Rule(AT_HTTP, method, drop="after", count=count))

    def cut(self, method: str, *, count: int = 1) -> Rule:
        """Cut the connection before a call is carried out."""
        return self.add(Rule(AT_HTTP, method, drop="before", count=count))

    def answer(self, method: str, status: int, *, count: int = 1) -> Rule:
        """Answer a call with an HTTP status."""
        return self.add(Rule(AT_HTTP, method, status=status, count=count))

    def rules(self) -> list[Rule]:
        """Return the rules in force, with what each has struck."""
        return [Rule(**one) for one in self._ask("GET", "/rules")]

    def clear(self, rule: Rule | None = None) -> None:
        """Take back one rule, or all; endless tasks of theirs go on and end."""
        self._ask("DELETE", "/rules" + (f"?id={rule.id}" if rule else ""))

    def deny(self, *privileges: str) -> None:
        """Let vCenter say of some privileges that nobody has them, until this is called again; none is enforced."""
        self._ask("POST", "/rights", {"denied": list(privileges)})

    # --- sessions, counts -------------------------------------------------------------------------

    def end_sessions(self, user: str = "") -> int:
        """End the sessions of a user, or all, as an idle time-out does; returns how many."""
        return int(self._ask("DELETE", f"/sessions?user={quote(user)}")["ended"])

    def sessions(self) -> list[str]:
        """Return the user of each session."""
        return [one["user"] for one in self._ask("GET", "/sessions")]

    def calls(self) -> dict[str, int]:
        """Return calls by method (elsewhere by path) since the last `forget_calls`."""
        return dict(self._ask("GET", "/calls"))

    def forget_calls(self) -> None:
        """Count from nothing again."""
        self._ask("DELETE", "/calls")

    # --- the estate -------------------------------------------------------------------------------

    def rebuild_inventory(self) -> None:
        """Give every object another reference (`vm-42` → `vm-1000042`); here, ids stay those of the start."""
        self._ask("POST", "/references")

    def gpus(self) -> list[HeldGpu]:
        """Return the truth about every GPU, host by host."""
        return [
            HeldGpu(
                host=host["name"],
                pci_id=gpu["pci_id"],
                mode=gpu["fixed_mode"],
                held=tuple(Window(**one) for one in gpu["held"] or ()),
            )
            for host in self._ask("GET", "/gpus")
            for gpu in host["gpus"]
        ]

    def inventory(self) -> dict[str, Any]:
        """Return all that there is by name: VMs, folders, pools, port groups, and what lies in each datastore."""
        return dict(self._ask("GET", "/inventory"))

    def set_policy(self, policy: str) -> None:
        """Change how every host chooses from now on."""
        self._ask("POST", "/policy", {"policy": policy})

    def add_vm(self, name: str, host: str, *types: str, power_on: bool = True) -> None:
        """Make a VM that is not ours on a host, with vGPUs. Raises `LabError`, also when the host has no room."""
        given = {"name": name, "host": host, "types": list(types), "power_on": power_on}
        self._ask("POST", "/vms", given)

    def remove_vm(self, name: str) -> None:
        """Destroy such a VM."""
        self._ask("DELETE", f"/vms?name={quote(name)}")

    def boot_guests(self, *, boot: bool) -> None:
        """Say whether VMs powered on from now on show a booted guest."""
        self._ask("POST", "/guests", {"boot": boot})

    def guests(self) -> list[GuestVm]:
        """Return every VM that has something in guestinfo."""
        return [GuestVm(**one) for one in self._ask("GET", "/guests")]

    def set_guestinfo(self, vm_id: str, key: str, value: str) -> None:
        """Write a key `guestinfo.tenantry.*` as the guest's tools do. Raises `LabError`, also for a VM that is off."""
        self._ask("POST", "/guestinfo", {"id": vm_id, "key": key, "value": value})

    # --- asking -----------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return self._http.get("/health").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise LabError(f"the lab's control address does not answer: {error}") from error
        if answer.status_code != httpx.codes.OK:
            raise LabError(f"the lab refuses: {answer.text.strip() or answer.status_code}")
        return answer.json()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()
