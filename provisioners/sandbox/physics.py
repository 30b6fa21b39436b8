"""What a provider itself enforces, whatever anybody asks for: legal windows, no two on one slot, room on a host.

Reads the state, never changes it. The geometry is the catalogue's; everything else is checked here anew,
so that a wrong ledger meets a refusal and not a second user on the same window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from provisioners.driver import Binding, DriverRejected, NoCapacity, TransientDriverError
from provisioners.sandbox import choosing
from provisioners.sandbox.records import GpuRecord, HostRecord, Window, WorkloadRecord
from provisioners.sandbox.state import State
from tenants import gpu_catalogue

Taken = tuple[int, int, str]
"""(start, size, profile)."""


def profile_of(product: str, name: str) -> gpu_catalogue.Profile:
    """Return a profile of the catalogue, the whole GPU for "". Raises `DriverRejected`."""
    try:
        return gpu_catalogue.profile(product, name)
    except LookupError as error:
        raise DriverRejected(str(error.args[0])) from error


def taken(state: State, device: str) -> list[Taken]:
    """Return every window in use on a GPU, whoever uses it."""
    return [window for windows in state.occupied.get(device, {}).values() for window in windows]


def mode_of(state: State, gpu: GpuRecord) -> str:
    """Return what a GPU shows: `empty`, `mig` or `full`; a dynamic one shows what runs on it."""
    if gpu.layout_change != "dynamic":
        return gpu.mode
    profiles = [profile for _start, _size, profile in taken(state, gpu.device)]
    if not profiles:
        return "empty"
    return "full" if "" in profiles else "mig"


def carved(state: State, gpu: GpuRecord) -> list[Taken]:
    """Return the MIG devices that exist on a GPU: the fixed layout, or what is in use on a dynamic one."""
    if gpu.layout_change != "dynamic":
        return [(start, size, profile) for start, size, profile in gpu.layout]
    return sorted(window for window in taken(state, gpu.device) if window[2])


def free_starts(state: State, gpu: GpuRecord, profile: gpu_catalogue.Profile) -> list[int]:
    """Return the starts at which a window of `profile` is legal, carved or carvable, and free now."""
    if not gpu.healthy:
        return []
    in_use = taken(state, gpu.device)
    if gpu.layout_change != "dynamic":
        legal = _carved_starts(gpu, profile)
    elif profile.name == "":
        legal = [0]
    else:
        legal = list(profile.starts)
        if any(not other for _start, _size, other in in_use):
            return []
    if profile.media and any(other and profile_of(gpu.product, other).media for _start, _size, other in in_use):
        return []
    return [start for start in legal if not overlaps(start, profile.size, in_use)]


def _carved_starts(gpu: GpuRecord, profile: gpu_catalogue.Profile) -> list[int]:
    if profile.name == "":
        return [] if gpu.mode == "mig" else [0]
    return [start for start, _size, name in gpu.layout if name == profile.name]


def overlaps(start: int, size: int, windows: Iterable[Taken]) -> bool:
    """Tell whether [start, start + size) touches any of `windows`."""
    return any(start < other + length and other < start + size for other, length, _profile in windows)


def check_layout(product: str, windows: Sequence[Taken]) -> None:
    """Refuse a layout that breaks the geometry. Raises `DriverRejected` saying which window is wrong."""
    seen: list[Taken] = []
    media = 0
    for start, size, name in windows:
        profile = profile_of(product, name)
        if not name or start not in profile.starts or size != profile.size:
            msg = f"{product} has no {name or 'whole-GPU'} window of size {size} at {start}"
            raise DriverRejected(msg)
        if overlaps(start, size, seen):
            msg = f"the window {name} at {start} overlaps another one"
            raise DriverRejected(msg)
        seen.append((start, size, name))
        media += profile.media
    if media > 1:
        msg = "only one profile with media engines fits on a GPU"
        raise DriverRejected(msg)


def host_of(state: State, host: str) -> HostRecord:
    """Return a host. Raises `DriverRejected` if the provider knows none of that id."""
    found = state.hosts.get(host)
    if found is None:
        msg = f"the provider has no host {host!r}"
        raise DriverRejected(msg)
    return found


def check_host(state: State, workload: WorkloadRecord) -> HostRecord:
    """Return the host if it is up and has vCPU and memory for `workload`.

    Raises `TransientDriverError` while it does not respond, `NoCapacity` without room or during
    maintenance, `DriverRejected` if it cannot run this kind of workload at all.
    """
    host = host_of(state, workload.host)
    wanted = "vm" if workload.is_vm else "namespace"
    if wanted not in host.boundary_kinds:
        msg = f"host {host.name} runs no workloads of {wanted} boundaries"
        raise DriverRejected(msg)
    if not host.healthy:
        msg = f"host {host.name} does not respond"
        raise TransientDriverError(msg)
    if host.in_maintenance:
        msg = f"host {host.name} is being evacuated"
        raise NoCapacity(msg)
    load = state.loads[host.host]
    for word, used, asked, total in (
        ("vCPU", load.vcpu, workload.vcpu, host.vcpu),
        ("GiB of memory", load.memory_gib, workload.memory_gib, host.memory_gib),
    ):
        if used + asked > total:
            msg = f"host {host.name} has {total - used} {word} left, {asked} asked for"
            raise NoCapacity(msg)
    return host


def windows_for(state: State, workload: WorkloadRecord, draw: choosing.Draw) -> list[Window]:
    """Return the windows that `workload` gets now, as its host's binding decides.

    `device` honours device and start, `gpu` honours the device and chooses the start, `host` chooses
    both by the estate's policy. Raises `NoCapacity`, `DriverRejected`.
    """
    if not workload.product:
        return []
    host = host_of(state, workload.host)
    if workload.binding != host.binding:
        msg = f"host {host.name} binds by {host.binding}, not by {workload.binding}"
        raise DriverRejected(msg)
    profile = profile_of(workload.product, workload.profile)
    count = 1 if workload.profile else workload.gpu_count
    if host.binding == Binding.HOST:
        return _chosen_by_host(state, workload, profile, count, draw)
    if len(workload.devices) != count:
        msg = f"{count} devices must be named for a host that binds by {host.binding}"
        raise DriverRejected(msg)
    windows: list[Window] = []
    for position, device in enumerate(workload.devices):
        gpu = _named_gpu(state, workload, device)
        starts = free_starts(state, gpu, profile)
        if host.binding == Binding.DEVICE:
            asked = workload.starts[position] if position < len(workload.starts) else 0
            if asked not in profile.starts:
                msg = f"{profile.name or 'a whole GPU'} cannot start at {asked} on {workload.product}"
                raise DriverRejected(msg)
            starts = [start for start in starts if start == asked]
        if not starts:
            msg = f"the window asked for on {device} is not free"
            raise NoCapacity(msg)
        choice = choosing.choose(
            state.settings.policy, [_candidate(state, gpu, profile, start) for start in starts], draw
        )
        windows.append([device, choice.start, profile.size, profile.name])
    return windows


def _named_gpu(state: State, workload: WorkloadRecord, device: str) -> GpuRecord:
    gpu = state.gpus.get(device)
    if gpu is None or gpu.host != workload.host or gpu.product != workload.product:
        msg = f"host {workload.host} has no {workload.product} called {device}"
        raise DriverRejected(msg)
    if not gpu.healthy:
        msg = f"{device} is faulty: {gpu.message}"
        raise NoCapacity(msg)
    return gpu


def _chosen_by_host(
    state: State, workload: WorkloadRecord, profile: gpu_catalogue.Profile, count: int, draw: choosing.Draw
) -> list[Window]:
    gpus = [state.gpus[device] for device in state.gpus_of[workload.host]]
    same = [gpu for gpu in gpus if gpu.product == workload.product]
    if not same:
        msg = f"host {workload.host} has no {workload.product}"
        raise DriverRejected(msg)
    candidates = [_candidate(state, gpu, profile, start) for gpu in same for start in free_starts(state, gpu, profile)]
    windows: list[Window] = []
    for _ in range(count):
        if not candidates:
            msg = f"host {workload.host} has no room for {profile.name or 'a whole GPU'} of {workload.product}"
            raise NoCapacity(msg)
        choice = choosing.choose(state.settings.policy, candidates, draw)
        windows.append([choice.device, choice.start, profile.size, profile.name])
        candidates = [candidate for candidate in candidates if candidate.device != choice.device]
    return windows


def _candidate(state: State, gpu: GpuRecord, profile: gpu_catalogue.Profile, start: int) -> choosing.Candidate:
    in_use = taken(state, gpu.device)
    after = [*in_use, (start, profile.size, profile.name)]
    others = gpu_catalogue.product(gpu.product).placeable
    lost = sum(
        other.size
        for other in others
        for at in other.starts
        if not overlaps(at, other.size, in_use) and overlaps(at, other.size, after)
    )
    return choosing.Candidate(gpu.device, gpu.index, start, sum(size for _s, size, _p in in_use), lost)
