"""The pure core of one simulated estate: a provider with hosts, GPUs, objects of ours, and tasks that take time.

Its driver-facing calls mean exactly what `driver.py` says; `control.py` bends it (faults, foreign use),
`views.py` shows it. No IO and no clock of its own: time and randomness are given, nothing is started or
stored here. Gateways are processes of the server (`gateways.py`), which reports what it sees.

Invariants: the same step started twice is one object; only marked objects with the right uid are touched;
no two windows overlap, whatever is asked (`physics.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from random import Random
from typing import Any, Final, TypeVar

from provisioners.driver import (
    Acceptance,
    Capabilities,
    Conflicting,
    Done,
    DriverError,
    DriverRejected,
    Handle,
    LogLine,
    ModelFiles,
    Observed,
    ObservedProvider,
    ObservedUse,
    Poll,
    Power,
    Ref,
    Secret,
    StagedModel,
    Step,
    TransientDriverError,
)
from provisioners.sandbox import effects, faults, staging, views
from provisioners.sandbox.records import ModelRecord, ObjectRecord, PartRecord, TaskRecord, WorkloadRecord
from provisioners.sandbox.state import State
from provisioners.steps import indexed, split

TOKEN_FIELD: Final = "enrolment_token"  # noqa: S105  the field's name
KEY_FIELD: Final = "hop_key"
"""What a real model server wants to be shown; an estate of stubs forgets it at once and goes by its digest."""
SECRET_FIELDS: Final = (TOKEN_FIELD, KEY_FIELD)
"""Payload fields that hold a `Secret`; they never reach a record."""
DEFAULT_DELAY_S: Final = 0.2
BUSY_RETRY_S: Final = 0.5
_PRUNE_EVERY_S: Final = 60.0

T = TypeVar("T")


class Estate:
    """One provider. Call from one thread at a time; every call first lets time pass up to now."""

    def __init__(self, state: State, *, clock: Callable[[], float], url: str) -> None:
        """Wrap `state`; `clock` gives seconds since the epoch, `url` is where this estate's stubs answer."""
        self.state = state
        self.url = url.rstrip("/")
        self.tokens: dict[str, Secret] = {}
        """Gateway uid → one-time token, until its gateway has enrolled or ended."""
        self.keys: dict[str, Secret] = {}
        """Unit uid → key of its model server, while that is a real one."""
        self.late_s = 0.0
        """How much later the answer of the last call is to go out; whoever serves it waits and sets it to 0."""
        self._clock = clock
        self._running = {task.uid for task in state.tasks.values() if task.state == "running"}
        self._pruned_at = clock()

    # --- time --------------------------------------------------------------------------------------

    def advance(self) -> float:
        """End every task that is due, oldest first, and return the time."""
        now = self._clock()
        due = [self.state.tasks[uid] for uid in self._running if self.state.tasks[uid].ends_at <= now]
        for task in sorted(due, key=lambda task: (task.ends_at, task.started_at)):
            if task.uid in self._running:  # not ended by what another one removed
                self._end(task)
        if now - self._pruned_at > _PRUNE_EVERY_S:
            self._pruned_at = now
            self._prune(now)
        return now

    def _prune(self, now: float) -> None:
        memory = self.state.settings.task_memory_s
        for task in list(self.state.tasks.values()):
            if task.state != "running" and task.ends_at + memory < now:
                self.state.drop("tasks", task.uid)

    def draw(self) -> Random:
        """Return a generator that depends on the seed and on how many were drawn before, also after a restart."""
        self.state.counters["draw"] += 1
        self.state.touch("counters", "")
        # Not for secrets: a seeded choice that repeats is the point.
        return Random(f"{self.state.settings.seed}:{self.state.counters['draw']}")  # noqa: S311

    # --- reading -----------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """Return what this estate can do."""
        return self._answer("capabilities", lambda: views.capabilities(self.state))

    def snapshot(self) -> ObservedProvider:
        """Return the whole estate, or what a fault makes of it."""
        now = self.advance()
        stale = faults.strike(self.state, "snapshot", "stale")
        if stale is not None and stale.uid in self.state.captured:
            return views.provider_from_json(self.state.captured[stale.uid], complete=stale.lying)
        doubled = faults.strike(self.state, "snapshot", "duplicates")
        shown = self._answer("snapshot", lambda: views.snapshot(self.state, now))
        return shown if doubled is None else views.doubled(shown)

    def observe(self, ref: Ref) -> Observed:
        """Return one object, read exactly."""
        now = self.advance()
        return self._answer("observe", lambda: views.observe(self.state, ref, now, self.url))

    def poll(self, handle: Handle) -> Poll:
        """Return the state of a task; `unknown` when it was forgotten or is too long ago."""
        self.advance()
        return self._answer("poll", lambda: self._polled(handle))

    def _polled(self, handle: Handle) -> Poll:
        task = self.state.tasks.get(handle.value)
        if task is None or task.forgotten:
            return Poll("unknown")
        if task.state == "running":
            length = max(task.ends_at - task.started_at, 1e-9)
            return Poll("running", progress=min(1.0, max(0.0, (self._clock() - task.started_at) / length)))
        if task.error is not None:
            return Poll("failed", error=faults.error_from_json(task.error))
        return Poll("done", progress=1.0)

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterator[LogLine]:
        """Yield the newest `tail` lines of an object's log since an RFC 3339 time ("" for all)."""
        self.advance()
        try:
            earliest = datetime.fromisoformat(since).timestamp() if since else 0.0
        except ValueError as error:
            msg = f"{since!r} is no RFC 3339 time"
            raise DriverRejected(msg) from error
        found = [line for line in self.state.logs if line.owner == str(ref.uid) and line.at >= earliest]
        for line in found[-tail:] if tail > 0 else []:
            yield LogLine(datetime.fromtimestamp(line.at, UTC).isoformat(), line.text, line.source)

    # --- steps -------------------------------------------------------------------------------------

    def start(self, step: Step) -> Handle | Done:
        """Start a step or its undo; the same key again is the same work. Raises `DriverError`s."""
        now = self.advance()
        call = f"{'undo' if step.undo else 'start'}:{step.name}"
        return self._answer(call, lambda: self._begin_undo(step, now) if step.undo else self._begin(step, now))

    def _begin(self, step: Step, now: float) -> Handle | Done:
        owner = self._owner_for(step, now)
        part = owner.parts.get(step.name)
        if part is not None and part.changing:
            return self._at_work(step, part)
        payload, secrets = _without_secrets(step.payload)
        if part is not None and part.have == step.want:
            self._hand_over(payload, secrets)
            return Done()
        delay = self._delay_s(step)
        work = self._work(owner, step.name, payload, now, now + delay)
        refused: DriverError | None = None
        reserved = False
        try:
            reserved = effects.begin(work)
        except DriverError as error:
            # Room is only known once the provider tries: what is asynchronous there fails in its task.
            if delay == 0 or error.reason != "NoCapacity" or split(step.name)[0] not in {"vm.power", "serving.replica"}:
                raise
            refused = error
        self.state.put("objects", owner.uid, owner)
        unit = payload.get("unit", {}) if isinstance(payload.get("unit", {}), dict) else {}
        part = owner.parts.setdefault(step.name, PartRecord(unit=unit.get("uid", "")))
        part.unit = unit.get("uid", part.unit)
        self._hand_over(payload, secrets)
        return self._run(step, owner, part, payload, now, delay, refused=refused, reserved=reserved)

    def _begin_undo(self, step: Step, now: float) -> Handle | Done:
        owner = self.state.objects.get(str(step.ref.uid))
        if owner is None or owner.tenant != str(step.ref.tenant_uid):
            return Done()
        part = owner.parts.get(step.name)
        if part is None:
            return Done()
        if part.changing:
            return self._at_work(step, part)
        delay = self._delay_s(step)
        effects.begin_undo(self._work(owner, step.name, {}, now, now + delay))
        return self._run(step, owner, part, {}, now, delay)

    def _run(
        self,
        step: Step,
        owner: ObjectRecord,
        part: PartRecord,
        payload: Mapping[str, Any],
        now: float,
        delay: float,
        *,
        refused: DriverError | None = None,
        reserved: bool = False,
    ) -> Handle | Done:
        call = f"{'undo' if step.undo else 'start'}:{step.name}"
        task = TaskRecord(
            uid=self.state.next_id("task"),
            owner=owner.uid,
            tenant=owner.tenant,
            kind=owner.kind,
            step=step.name,
            key=step.key,
            want=step.want,
            undo=step.undo,
            payload=dict(payload),
            started_at=now,
            ends_at=now + delay,
            reserved=reserved,
        )
        failing = faults.strike(self.state, call, "task-fail")
        if failing is not None:
            refused = faults.error_of(failing, call)
        task.error = None if refused is None else faults.error_as_json(refused)
        forgotten = faults.strike(self.state, call, "forget")
        if forgotten is not None:
            task.forgotten, task.lost = True, forgotten.lying
        part.changing, part.task = True, "" if task.forgotten else task.uid
        self.state.put("tasks", task.uid, task)
        self.state.touch("objects", owner.uid)
        self._running.add(task.uid)
        self.state.log(owner.uid, now, f"{call} begun")
        if delay == 0 and not task.forgotten:
            self._end(task)
            if task.state != "running":
                if task.error is not None:
                    raise faults.error_from_json(task.error)
                return Done()
        return Handle(task.uid)

    def _end(self, task: TaskRecord) -> None:
        """Make a due task's effect true, or leave it running while something outside is not gone yet."""
        owner = self.state.objects[task.owner]
        part = owner.parts[task.step]
        work = self._work(owner, task.step, task.payload, task.ends_at, task.ends_at)
        failed = task.error is not None or task.lost
        if not failed and task.undo and not effects.undo_can_finish(work):
            return
        if not failed and not task.undo:
            try:
                effects.finish(work)
            except DriverError as error:
                task.error, failed = faults.error_as_json(error), True
        self._running.discard(task.uid)
        task.state = "failed" if failed else "done"
        part.changing, part.task = False, ""
        if failed and not task.undo:
            if task.reserved:
                effects.abort(work)
            if task.reserved or not part.have:  # a refused change leaves what was there
                owner.parts.pop(task.step, None)
        elif not failed and task.undo:
            effects.finish_undo(work)
            owner.parts.pop(task.step, None)
        elif not failed:
            part.have = task.want
        self.state.touch("tasks", task.uid)
        self.state.touch("objects", owner.uid)
        self.state.log(owner.uid, task.ends_at, f"{'undo:' if task.undo else ''}{task.step} {task.state}")
        self._end_orphans(owner)
        if not owner.parts:
            self.state.drop("objects", owner.uid)

    def _end_orphans(self, owner: ObjectRecord) -> None:
        """End the tasks of parts that went with something else: with a destroyed machine goes its power."""
        for task in [self.state.tasks[uid] for uid in self._running]:
            if task.owner != owner.uid or task.step in owner.parts:
                continue
            self._running.discard(task.uid)
            task.state = "done" if task.undo else "failed"
            if not task.undo:
                task.error = faults.error_as_json(TransientDriverError("what it worked on was removed meanwhile"))
            self.state.touch("tasks", task.uid)

    def cancel(self, uid: str) -> None:
        """Forget a task at once and without effect; its object is gone."""
        self._running.discard(uid)
        self.state.drop("tasks", uid)

    def _at_work(self, step: Step, part: PartRecord) -> Handle:
        task = self.state.tasks.get(part.task)
        if task is not None and not task.forgotten and (task.key == step.key or (task.undo and step.undo)):
            return Handle(task.uid)
        msg = f"{step.name} is busy with another task"
        raise TransientDriverError(msg, retry_after_s=BUSY_RETRY_S)

    def _owner_for(self, step: Step, now: float) -> ObjectRecord:
        """Return the object of a step, a new and not yet stored one if there is none. Raises `Conflicting`."""
        ref = step.ref
        names = {ref.name, *(f"{ref.name}-{index}" for index in [split(step.name)[1]] if index is not None)}
        taken = names & self.state.foreign_objects.keys()
        if taken:
            msg = f"{min(taken)} exists at the provider and is not ours"
            raise Conflicting(msg, raw=self.state.foreign_objects[min(taken)].note)
        owner = self.state.objects.get(str(ref.uid))
        if owner is None:
            payload = step.payload
            return ObjectRecord(
                uid=str(ref.uid),
                kind=str(ref.kind),
                tenant=str(ref.tenant_uid),
                name=ref.name,
                created_at=now,
                boundary=str(payload.get("boundary", "")),
                boundary_kind=str(payload.get("boundary_kind", "")),
                model=f"{payload['host']}/{payload['device']}" if ref.kind == "layout" else "",
            )
        if owner.tenant != str(ref.tenant_uid) or owner.kind != ref.kind:
            msg = f"{owner.name} carries marks of another owner"
            raise Conflicting(msg)
        return owner

    def _delay_s(self, step: Step) -> float:
        delays = self.state.settings.delays_s
        bare = split(step.name)[0]
        delay = delays.get(bare, delays.get("", DEFAULT_DELAY_S))
        if step.undo:
            delay = delays.get(f"undo:{bare}", delay)
        late = faults.strike(self.state, f"{'undo' if step.undo else 'start'}:{step.name}", "delay")
        return delay if late is None else delay + late.seconds

    def _work(
        self, owner: ObjectRecord, step: str, payload: Mapping[str, Any], now: float, ends_at: float
    ) -> effects.Work:
        return effects.Work(self.state, owner, step, payload, now, ends_at, self.draw)

    def _hand_over(self, payload: Mapping[str, Any], secrets: Mapping[str, Secret]) -> None:
        if TOKEN_FIELD in secrets:
            self.tokens[str(payload["gateway"])] = secrets[TOKEN_FIELD]
        if KEY_FIELD in secrets and self.state.settings.models == "local":
            self.keys[str(payload["unit"]["uid"])] = secrets[KEY_FIELD]

    # --- operations beside steps -------------------------------------------------------------------

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Cut an object's network or restore it, at once; the parts that say otherwise no longer match their want."""
        self.advance()
        return self._answer("isolate", lambda: self._isolated(self._existing(ref), cut_off=cut_off))

    def _isolated(self, owner: ObjectRecord, *, cut_off: bool) -> Done:
        carriers = {"namespace.policies", "network.create", "access.accounts", "serving.service"}
        if owner.cut_off != cut_off:
            owner.cut_off = cut_off
            self._forget_wants(owner, carriers)
        for workload in self.state.workloads_of(owner.uid):
            if workload.is_vm and workload.cut_off != cut_off:
                workload.cut_off = cut_off
                self.state.touch("workloads", workload.uid)
                self._forget_wants(owner, {"vm.power"})
        return Done()

    def power(self, ref: Ref, *, want: Power) -> Handle | Done:
        """Switch all workloads of an object at once. Raises what physics raises."""
        now = self.advance()
        return self._answer("power", lambda: self._powered(self._existing(ref), want, now))

    def _powered(self, owner: ObjectRecord, want: Power, now: float) -> Done:
        for workload in self.state.workloads_of(owner.uid):
            if workload.running == (want == Power.ON):
                continue
            step = self._carrier(owner, workload)
            if want == Power.OFF:
                effects.stop(self.state, workload)
            else:
                effects.resume(self._work(owner, step, {}, now, now), workload)
            self.state.touch("workloads", workload.uid)
            self._forget_wants(owner, {"vm.power" if workload.is_vm else "serving.replica"})
        return Done()

    def _carrier(self, owner: ObjectRecord, workload: WorkloadRecord) -> str:
        bare = "vm.power" if workload.is_vm else "serving.replica"
        return bare if owner.kind == "machine" else f"{bare}[{workload.index}]"

    def _forget_wants(self, owner: ObjectRecord, bares: set[str]) -> None:
        for name, part in owner.parts.items():
            if split(name)[0] in bares and not part.changing:
                part.have = ""
        self.state.touch("objects", owner.uid)

    def _existing(self, ref: Ref) -> ObjectRecord:
        owner = self.state.objects.get(str(ref.uid))
        if owner is None or owner.tenant != str(ref.tenant_uid):
            msg = f"{ref.name} does not exist"
            raise DriverRejected(msg)
        return owner

    def stage_model(self, files: ModelFiles) -> StagedModel:
        """Begin to bring the files of a model into the cache, or say how far they are. Simulated."""
        now = self.advance()
        return self._answer("stage-model", lambda: staging.stage(self.state, files, now))

    def drop_model(self, files: ModelFiles) -> StagedModel:
        """Take them away again."""
        self.advance()
        return self._answer("drop-model", lambda: staging.drop(self.state, files))

    def evacuate(self, host: str) -> list[ObservedUse]:
        """Stop placing anything on a host; return what still uses it, foreign use included."""
        now = self.advance()
        return self._answer("evacuate", lambda: self._cordoned(host, now, in_maintenance=True))

    def restore(self, host: str) -> Done:
        """Undo `evacuate`."""
        now = self.advance()
        self._answer("restore", lambda: self._cordoned(host, now, in_maintenance=False))
        return Done()

    def _cordoned(self, host: str, now: float, *, in_maintenance: bool) -> list[ObservedUse]:
        record = self.state.hosts.get(host)
        if record is None:
            msg = f"the provider has no host {host!r}"
            raise DriverRejected(msg)
        record.in_maintenance = in_maintenance
        self.state.touch("hosts", host)
        return [use for use in views.uses(self.state, now) if use.host == host]

    def acceptance(self, host: str) -> Acceptance:
        """Run the (simulated) acceptance checks of a host."""
        self.advance()
        return self._answer("acceptance", lambda: views.acceptance(self.state, host))

    # --- gateways, as their keeper sees them -------------------------------------------------------

    def gateway_seen(self, uid: str, *, running: bool, enrolled: bool, pid: int, port: int, message: str) -> None:
        """Note what a gateway's process is doing; a token is forgotten once it has been used."""
        gateway = self.state.gateways.get(uid)
        if gateway is None:
            return
        before = (gateway.running, gateway.enrolled, gateway.pid, gateway.port, gateway.message)
        if (running, enrolled, pid, port, message) == before:
            return
        gateway.running, gateway.enrolled = running, enrolled
        gateway.pid, gateway.port, gateway.message = pid, port, message
        self.state.touch("gateways", uid)
        if enrolled:
            self.tokens.pop(uid, None)

    def gateway_gone(self, uid: str) -> None:
        """Note that an unwanted gateway's process has ended and its files are removed."""
        self.tokens.pop(uid, None)
        self.state.drop("gateways", uid)
        self.advance()

    def gateway_lost(self, uid: str, reason: str) -> None:
        """Note that a gateway died and cannot be started again without a new token: its part is gone."""
        gateway = self.state.gateways.get(uid)
        owner = None if gateway is None else self.state.objects.get(gateway.owner)
        self.gateway_gone(uid)
        if owner is None:
            return
        for name, part in list(owner.parts.items()):
            if part.gateway == uid and not part.changing:
                del owner.parts[name]
        self.state.log(owner.uid, self._clock(), f"gateway lost: {reason}", "gateway")
        self.state.touch("objects", owner.uid)
        if not owner.parts:
            self.state.drop("objects", owner.uid)

    # --- model servers, as their keeper sees them --------------------------------------------------

    def model_seen(self, record: ModelRecord) -> None:
        """Note what a replica's model server is doing."""
        self.state.put("models", record.uid, record)

    def model_gone(self, uid: str) -> None:
        """Note that a model server that nobody wants has ended and its files are removed."""
        self.state.drop("models", uid)
        if uid not in self.state.workloads:
            self.keys.pop(uid, None)
        self.advance()

    def model_lost(self, uid: str, reason: str) -> None:
        """Note that a model server cannot be started again as it is: its part is gone and will be made anew."""
        self.state.drop("models", uid)
        workload = self.state.workloads.get(uid)
        owner = None if workload is None else self.state.objects.get(workload.owner)
        if workload is None or owner is None:
            return
        owner.parts.pop(indexed("serving.replica", workload.index), None)
        effects.lose_replica(self.state, workload)
        self.state.log(owner.uid, self._clock(), f"model server lost: {reason}", "vllm")
        self.state.touch("objects", owner.uid)
        if not owner.parts:
            self.state.drop("objects", owner.uid)

    # --- faults ------------------------------------------------------------------------------------

    def _answer(self, call: str, act: Callable[[], T]) -> T:
        """Do a call as faults allow: fail before it, do it, or do it and lose the answer."""
        slow = faults.strike(self.state, call, "slow")
        if slow is not None:
            self.late_s = slow.seconds
        fault = faults.strike(self.state, call, "fail", "hang", "lost-answer")
        if fault is None:
            return act()
        if fault.effect == "fail":
            raise faults.error_of(fault, call)
        if fault.effect == "lost-answer" or fault.after_effect:
            act()
        if fault.effect == "hang":
            raise faults.Hanging(fault.seconds)
        msg = "the connection was lost before the answer came"
        raise TransientDriverError(msg)


def _without_secrets(payload: Any) -> tuple[dict[str, Any], dict[str, Secret]]:
    if not isinstance(payload, Mapping):
        msg = "a step without payload can only be undone"
        raise DriverRejected(msg)
    public = {name: value for name, value in payload.items() if name not in SECRET_FIELDS}
    return public, {name: payload[name] for name in SECRET_FIELDS if isinstance(payload.get(name), Secret)}
