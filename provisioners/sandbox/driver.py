"""The sandbox as a driver: over HTTP to the sandbox server, and in process on the core itself.

Both give the same answers; conformance runs on both. The HTTP driver keeps one connection pool, gives
every call a deadline, and turns whatever goes wrong into a `DriverError`: an answer that did not come is
transient and proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from provisioners.driver import (
    Acceptance,
    Capabilities,
    Done,
    Driver,
    Handle,
    LayoutChange,
    LogLine,
    ModelFiles,
    Observed,
    ObservedProvider,
    ObservedUse,
    Poll,
    Power,
    Ref,
    Secret,
    Spec,
    StagedModel,
    Step,
    TransientDriverError,
)
from provisioners.sandbox import compose, connection
from provisioners.sandbox.estate import SECRET_FIELDS, Estate
from provisioners.sandbox.faults import Hanging, error_from_json

DEADLINE_S: Final = 10.0
"""For one call, connection and answer together at most twice this."""
SNAPSHOT_DEADLINE_S: Final = 25.0

_CAPABILITIES: Final = TypeAdapter(Capabilities)
_PROVIDER: Final = TypeAdapter(ObservedProvider)
_OBSERVED: Final = TypeAdapter(Observed)
_USES: Final = TypeAdapter(list[ObservedUse])
_ACCEPTANCE: Final = TypeAdapter(Acceptance)
_LOG: Final = TypeAdapter(list[LogLine])
_FILES: Final = TypeAdapter(ModelFiles)
_STAGED: Final = TypeAdapter(StagedModel)

T = TypeVar("T")


class _Composing:
    """The pure half that both drivers share."""

    def steps(self, spec: Spec) -> Sequence[Step]:
        """Return the ordered steps of `spec`."""
        return compose.steps(spec)

    def layout_steps(self, change: LayoutChange) -> Sequence[Step]:
        """Return a step for each GPU that is carved."""
        return compose.layout_steps(change)

    def snapshot(self) -> ObservedProvider:
        """Read the whole estate."""
        raise NotImplementedError

    def layout_refusal(self, change: LayoutChange) -> str:
        """Return why GPUs cannot be carved as asked for, `""` if they may be."""
        wanted = {change.device, *(device for device, _ in change.beside)}
        gpus = [gpu for host in self.snapshot().hosts if host.host == change.host for gpu in host.gpus]
        fixed = sorted(gpu.device for gpu in gpus if gpu.device in wanted and gpu.layout_change != "on-idle")
        return f"the layout of {', '.join(fixed)} cannot be set" if fixed else ""


class InProcessSandbox(_Composing):
    """The driver on an estate in this process: for unit tests and what-if, on any clock."""

    def __init__(self, estate: Estate) -> None:
        """Drive `estate`."""
        self.estate = estate

    def capabilities(self) -> Capabilities:
        """Ask the estate what it can do."""
        return _answered(self.estate.capabilities)

    def snapshot(self) -> ObservedProvider:
        """Read the whole estate."""
        return _answered(self.estate.snapshot)

    def observe(self, ref: Ref) -> Observed:
        """Read one object exactly."""
        return _answered(lambda: self.estate.observe(ref))

    def start(self, step: Step) -> Handle | Done:
        """Start one step or its undo."""
        return _answered(lambda: self.estate.start(step))

    def poll(self, handle: Handle) -> Poll:
        """Look at a running step."""
        return _answered(lambda: self.estate.poll(handle))

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Cut an object's network or restore it."""
        return _answered(lambda: self.estate.isolate(ref, cut_off=cut_off))

    def power(self, ref: Ref, *, want: Power) -> Handle | Done:
        """Switch an object's power."""
        return _answered(lambda: self.estate.power(ref, want=want))

    def evacuate(self, host: str) -> Sequence[ObservedUse]:
        """Stop placing on `host`; return what still uses it."""
        return _answered(lambda: self.estate.evacuate(host))

    def restore(self, host: str) -> Done:
        """Undo `evacuate`."""
        return _answered(lambda: self.estate.restore(host))

    def acceptance(self, host: str) -> Acceptance:
        """Run the acceptance checks of a host."""
        return _answered(lambda: self.estate.acceptance(host))

    def stage_model(self, files: ModelFiles) -> StagedModel:
        """Bring the files of a model into the cache, or say how far they are."""
        return _answered(lambda: self.estate.stage_model(files))

    def drop_model(self, files: ModelFiles) -> StagedModel:
        """Take them away again."""
        return _answered(lambda: self.estate.drop_model(files))

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterator[LogLine]:
        """Yield the newest lines of an object's log."""
        return self.estate.logs(ref, since=since, tail=tail)

    def close(self) -> None:
        """Nothing to give back."""


def _answered(act: Callable[[], T]) -> T:
    """Do a call; where the estate hangs, the caller's deadline passes at once."""
    try:
        return act()
    except Hanging as error:
        msg = "the sandbox gave no answer in time"
        raise TransientDriverError(msg, raw=str(error)) from error


class SandboxDriver(_Composing):
    """The driver over HTTP. Thread-safe as far as `httpx.Client` is."""

    def __init__(
        self,
        url: str,
        *,
        token: Secret,
        estate: str,
        deadline_s: float = DEADLINE_S,
        made_of: Mapping[str, Any] | None = None,
    ) -> None:
        """Talk to the estate `estate` of the sandbox server at `url`; without one there, make it of `made_of`."""
        self._deadline_s = deadline_s
        self._made_of = made_of
        self._address = f"{url.rstrip('/')}/estates/{quote(estate, safe='')}"
        self._client = httpx.Client(
            base_url=f"{self._address}/",
            headers={"Authorization": f"Bearer {token.reveal()}"},
            timeout=deadline_s,
            trust_env=False,  # the sandbox is on loopback, never behind a proxy
            verify=url.startswith("https:"),  # reading the certificates takes longer than a call on loopback
        )

    def __repr__(self) -> str:
        """Show where it talks to, and no token."""
        return f"SandboxDriver({self._client.base_url})"

    def capabilities(self) -> Capabilities:
        """Ask the estate what it can do; one that is to be made on first use is made now."""
        if self._made_of is not None:
            self._call("PUT", self._address, body=self._made_of)  # one that is there stays as it is
        return _read(_CAPABILITIES, self._call("GET", "capabilities"))

    def snapshot(self) -> ObservedProvider:
        """Read the whole estate in one call."""
        return _read(_PROVIDER, self._call("GET", "snapshot", deadline_s=SNAPSHOT_DEADLINE_S))

    def observe(self, ref: Ref) -> Observed:
        """Read one object exactly."""
        return _read(_OBSERVED, self._call("GET", f"objects/{ref.kind}/{ref.uid}", params=_owner(ref)))

    def start(self, step: Step) -> Handle | Done:
        """Start one step or its undo."""
        return _started(self._json("POST", "steps", body=step_as_json(step)))

    def poll(self, handle: Handle) -> Poll:
        """Look at a running step."""
        answer = self._json("GET", f"tasks/{quote(handle.value, safe='')}")
        error = answer.get("error")
        return Poll(
            str(answer["state"]),
            progress=answer.get("progress"),
            error=None if error is None else error_from_json(error),
        )

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Cut an object's network or restore it."""
        self._json("POST", f"objects/{ref.kind}/{ref.uid}/isolate", params=_owner(ref), body={"cut_off": cut_off})
        return Done()

    def power(self, ref: Ref, *, want: Power) -> Handle | Done:
        """Switch an object's power."""
        path = f"objects/{ref.kind}/{ref.uid}/power"
        return _started(self._json("POST", path, params=_owner(ref), body={"want": str(want)}))

    def evacuate(self, host: str) -> Sequence[ObservedUse]:
        """Stop placing on `host`; return what still uses it."""
        return _read(_USES, self._call("POST", f"hosts/{quote(host, safe='')}/evacuate"))

    def restore(self, host: str) -> Done:
        """Undo `evacuate`."""
        self._call("POST", f"hosts/{quote(host, safe='')}/restore")
        return Done()

    def stage_model(self, files: ModelFiles) -> StagedModel:
        """Bring the files of a model into the cache, or say how far they are."""
        return _read(
            _STAGED, self._call("POST", f"models/{files.uid}/stage", body=_FILES.dump_python(files, mode="json"))
        )

    def drop_model(self, files: ModelFiles) -> StagedModel:
        """Take them away again."""
        return _read(
            _STAGED, self._call("POST", f"models/{files.uid}/drop", body=_FILES.dump_python(files, mode="json"))
        )

    def acceptance(self, host: str) -> Acceptance:
        """Run the acceptance checks of a host."""
        return _read(_ACCEPTANCE, self._call("POST", f"hosts/{quote(host, safe='')}/acceptance"))

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterator[LogLine]:
        """Yield the newest lines of an object's log."""
        params = {**_owner(ref), "since": since, "tail": str(tail)}
        yield from _read(_LOG, self._call("GET", f"objects/{ref.kind}/{ref.uid}/logs", params=params))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = httpx.Response(200, content=self._call(method, path, **options)).json()
        except ValueError as error:
            msg = "the sandbox's answer was no JSON"
            raise TransientDriverError(msg) from error
        if not isinstance(answer, dict):
            msg = "the sandbox's answer was no JSON object"
            raise TransientDriverError(msg)
        return answer

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> bytes:
        """Return the body of a good answer. Raises the `DriverError` that the server named, else a transient one."""
        try:
            response = self._client.request(
                method, path, params=params, json=body, timeout=deadline_s or self._deadline_s
            )
        except httpx.TimeoutException as error:
            msg = "the sandbox gave no answer in time"
            raise TransientDriverError(msg, raw=type(error).__name__) from error
        except httpx.HTTPError as error:
            msg = "the sandbox cannot be reached"
            raise TransientDriverError(msg, raw=f"{type(error).__name__}: {error}") from error
        if response.is_success:
            return response.content
        try:
            problem = response.json()
        except ValueError:
            problem = {}
        if not isinstance(problem, dict) or "error" not in problem:
            msg = f"the sandbox answered {response.status_code}"
            raise TransientDriverError(msg, raw=response.text[:500])
        raise error_from_json(problem)


def step_as_json(step: Step) -> dict[str, Any]:
    """Return a step for the wire; its secrets stand apart from the payload."""
    payload = dict(step.payload or {})
    secrets = {name: payload.pop(name, None) for name in SECRET_FIELDS}
    return {
        "ref": {"kind": str(step.ref.kind), "uid": str(step.ref.uid), "tenant_uid": str(step.ref.tenant_uid)},
        "name": step.name,
        "key": step.key,
        "want": step.want,
        "limit_s": step.limit_s,
        "undo": step.undo,
        "payload": payload,
        "secrets": {name: secret.reveal() for name, secret in secrets.items() if isinstance(secret, Secret)},
    }


def _owner(ref: Ref) -> dict[str, str]:
    return {"tenant": str(ref.tenant_uid)}


def _started(answer: Mapping[str, Any]) -> Handle | Done:
    return Done() if answer.get("done") else Handle(str(answer["handle"]))


def _read(adapter: TypeAdapter[T], content: bytes) -> T:
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        msg = "the sandbox's answer was not understood"
        raise TransientDriverError(msg, raw=str(error)[:500]) from error


def make(config: Mapping[str, Any], secrets: Mapping[str, Secret]) -> Driver:
    """Return the driver for one provider row: config `url`, `estate`, optional `deadline_s`, `make`; secret `token`."""
    return SandboxDriver(
        str(config["url"]),
        token=secrets["token"],
        estate=str(config["estate"]),
        deadline_s=float(config.get("deadline_s") or DEADLINE_S),
        made_of=connection.document(str(config.get("make") or "")),
    )
