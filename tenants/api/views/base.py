"""What every REST view shares: one read block per read, one operation per write, strict input, problems.

A view names its operations with `@reads` and `@writes`; everything that the protocol asks for (policy, scope,
body, `If-Match`, `Idempotency-Key`, `plan`, `wait`) happens here, and the OpenAPI document is made of the same
declarations. Handlers of reads run inside the read block; handlers of writes run outside any transaction and
call exactly one operation.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final, TypeVar
from uuid import UUID

from django.db import connection, models
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel
from rest_framework.request import Request
from rest_framework.views import APIView

from tenants import access
from tenants.actor import Actor
from tenants.api import idempotency, parsing, planning
from tenants.api.pagination import slice_of
from tenants.api.scoping import actor_of
from tenants.api.serializers.base import NoQuery, Out, Page, PageQuery
from tenants.errors import (
    ControlPlaneError,
    InvalidSpec,
    NotVisible,
    PreconditionFailed,
    PreconditionRequired,
)
from tenants.models import Tenant
from tenants.policies import ROUTES, Scope
from tenants.transactions import acting, before_commit

POLL_S: Final = 0.25
LONGEST_WAIT_S: Final = 60
PATH_KEY: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$")
ETAG: Final = re.compile(r'^"([1-9][0-9]{0,9})"$')
M = TypeVar("M", bound=models.Model)


@dataclass(frozen=True, slots=True)
class Declared:
    """What one method of a view is: read by the dispatcher and by the OpenAPI document."""

    operation_id: str
    summary: str
    description: str
    writes: bool
    answers: type[Out] | None
    """None: 204."""
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | None = None
    status: int = 200
    versioned: bool = False
    """`If-Match` must be sent."""
    plannable: bool = True
    waitable: bool = False
    """The answer has a phase: `?wait=<s>&for=<phase>`."""
    statuses: tuple[int, ...] = ()
    """Further statuses that this operation answers with."""


@dataclass(slots=True)
class Call:
    """One request on its way through a view."""

    request: HttpRequest
    actor: Actor
    now: datetime
    path: Mapping[str, str]
    query: Any
    body: Any = None
    version: int | None = None
    """From `If-Match`."""
    tenant: Tenant | None = None
    target: Any = None
    """The object named by the path."""

    @property
    def home(self) -> Tenant:
        """Return the tenant of a route that has one in its path."""
        assert self.tenant is not None
        return self.tenant

    def named(self, rows: Callable[[], QuerySet[M]], key: str | None) -> M | None:
        """Return the row that a body names, None where it names none. Raises `NotVisible`."""
        if key is None:
            return None
        with acting(self.actor):
            return access.find(rows(), key)


@dataclass(frozen=True, slots=True)
class Answered:
    """Result of a write with a status of its own (PUT: 201 when it created)."""

    result: Any
    status: int


Handler = Callable[[Any, Call], Any]


def reads(
    operation_id: str,
    *,
    answers: type[Out],
    query: type[BaseModel] = NoQuery,
    waitable: bool = False,
    statuses: tuple[int, ...] = (),
) -> Callable[[Handler], Callable[..., HttpResponse]]:
    """Make a handler the GET of an operation. It returns an `Out`, or a row that `show` turns into one."""

    def decorate(function: Handler) -> Callable[..., HttpResponse]:
        summary, description = _words(function)
        declared = Declared(
            operation_id,
            summary,
            description,
            writes=False,
            answers=answers,
            query=query,
            waitable=waitable,
            statuses=statuses,
        )

        def run(self: ApiView, request: Request, **path: str) -> HttpResponse:
            call = self.open(declared, request, path)
            with acting(call.actor):
                self.locate(declared, call)
                answer = self.rendered(function(self, call), call, {})
            if waitable and self.wait_s:
                answer = self.waited(answer, call, {})
            return self.respond(answer, 200)

        return _declared(declared, run, function)

    return decorate


def writes(
    operation_id: str,
    *,
    answers: type[Out] | None,
    body: type[BaseModel] | None = None,
    query: type[BaseModel] = NoQuery,
    status: int = 200,
    versioned: bool = False,
    plannable: bool = True,
    waitable: bool = False,
    statuses: tuple[int, ...] = (),
) -> Callable[[Handler], Callable[..., HttpResponse]]:
    """Make a handler a change: it calls one operation and returns its result, as it is or `Answered` with a status."""

    def decorate(function: Handler) -> Callable[..., HttpResponse]:
        summary, description = _words(function)
        declared = Declared(
            operation_id,
            summary,
            description,
            writes=True,
            answers=answers,
            query=query,
            body=body,
            status=status,
            versioned=versioned,
            plannable=plannable,
            waitable=waitable,
            statuses=statuses,
        )

        def run(self: ApiView, request: Request, **path: str) -> HttpResponse:
            return self.change(declared, function, self.open(declared, request, path))

        return _declared(declared, run, function)

    return decorate


class ApiView(APIView):
    """One address. Subclasses say which rows it is about (`rows`) and how one looks (`show`)."""

    operations: ClassVar[dict[str, str]] = {}
    """Method → operation id, collected from the decorators."""
    declarations: ClassVar[dict[str, Declared]] = {}
    key: ClassVar[str] = ""
    """Path parameter that names the target; empty for collections."""
    slugs: ClassVar[frozenset[str]] = frozenset()
    """Path parameters that make something of their name, so they must be DNS labels."""
    wait_s: float = 0.0
    wait_for: frozenset[str] = frozenset()
    planning: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Collect the declared operations of the class's methods."""
        super().__init_subclass__(**options)
        found = {
            method.upper(): handler.declared
            for method in ("get", "post", "put", "patch", "delete")
            if (handler := getattr(cls, method, None)) is not None and hasattr(handler, "declared")
        }
        cls.declarations = found
        if "operations" not in cls.__dict__:
            cls.operations = {method: declared.operation_id for method, declared in found.items()}

    # -- what subclasses say ---------------------------------------------------------------------------

    def rows(self, call: Call) -> QuerySet[Any]:
        """Return the rows this address is about, scoped to the actor, with what `show` needs."""
        raise NotImplementedError

    def show(self, row: Any, call: Call, secrets: Mapping[str, str]) -> Out:
        """Return how a row looks. Inside a read block."""
        raise NotImplementedError

    def find(self, call: Call) -> Any:
        """Return the object that the path names. Raises `NotVisible`."""
        return access.find(self.rows(call), call.path[self.key])

    def again(self, row: Any, call: Call) -> Any:
        """Return a row read anew, with what `show` needs."""
        return self.rows(call).get(pk=row.pk)

    def replayed(self, replay: idempotency.Replay, call: Call) -> Any:
        """Return what an earlier request made, by its ids."""
        row = self.rows(call).filter(pk=replay.ids[0]).first() if replay.ids else None
        if row is None:
            raise NotVisible("What this request made is gone by now.")
        return row

    def unwrap(self, result: Any) -> Any:
        """Return the row (or rows) in what an operation returns."""
        return result[0] if isinstance(result, tuple) else result

    def secrets_of(self, result: Any) -> Mapping[str, str]:
        """Return the secrets in what an operation returns: shown once, kept sealed for replays."""
        return {"secret": result[1]} if isinstance(result, tuple) else {}

    def ids_of(self, row: Any) -> list[UUID]:
        """Return the ids an idempotency record keeps of a result."""
        rows = row if isinstance(row, list) else [row]
        return [each.pk for each in rows if isinstance(each, models.Model)]

    # -- steps -------------------------------------------------------------------------------------------

    def open(self, declared: Declared, request: Request, path: Mapping[str, str]) -> Call:
        """Check path and query. Raises `NotVisible`, `InvalidSpec`."""
        for value in path.values():
            if not PATH_KEY.match(value):
                raise NotVisible
        plain = request._request
        given = plain.GET.copy()
        self._take_options(declared, given)
        return Call(
            request=plain,
            actor=actor_of(request),
            now=datetime.now(UTC),
            path=path,
            query=parsing.query_as(declared.query, given),
        )

    def _take_options(self, declared: Declared, given: Any) -> None:
        """Take `plan`, `wait` and `for` out of the query, where this operation knows them."""
        if declared.writes and declared.plannable and "plan" in given:
            words = [str(word).lower() for word in given.pop("plan")]
            if words not in (["true"], ["false"]):
                raise InvalidSpec("Say true or false.", field="plan")
            self.planning = words == ["true"]
        if declared.waitable:
            self.wait_s = _seconds(given.pop("wait")) if "wait" in given else 0.0
            words = given.pop("for") if "for" in given else []
            goals = {word for each in words for word in str(each).split(",")}
            if unknown := goals - planning.WAIT_GOALS:
                known = ", ".join(sorted(planning.WAIT_GOALS))
                raise InvalidSpec(f"Wait for one of {known}.", field="for", given=len(unknown))
            self.wait_for = frozenset(goals or {"Released" if declared.operation_id.endswith(".delete") else "Ready"})

    def locate(self, declared: Declared, call: Call) -> None:
        """Find tenant and target under the policy, in the caller's read block. Raises `NotVisible`, `Forbidden`."""
        policy = ROUTES[declared.operation_id]
        if "tenant" in call.path:
            call.tenant = access.tenant_for(call.actor, call.path["tenant"], policy)
        if self.key:
            call.target = self.find(call)
            if policy.scope is Scope.TENANT and call.tenant is None:
                access.check(call.actor, self.tenant_of(call.target), policy)

    def tenant_of(self, target: Any) -> Tenant | None:
        """Return the tenant whose roles count for a target that no tenant in the path leads to."""
        return target if isinstance(target, Tenant) else getattr(target, "tenant", None)

    def change(self, declared: Declared, function: Handler, call: Call) -> HttpResponse:
        """Run one write: scope, preconditions, body, replay or operation, answer."""
        policy = ROUTES[declared.operation_id]
        with acting(call.actor):
            self.locate(declared, call)
        call.version = self._expected_version(declared, call)
        raw = parsing.read(call.request)
        tree = parsing.tree(raw) if raw.strip() else None
        attempt = idempotency.attempt_of(call.request, call.actor, policy, tree, planning=self.planning)
        if attempt is not None and (answer := self._replay(declared, attempt, call)) is not None:
            return answer
        call.body = _body(declared, tree)
        if self.planning:
            return self._plan(declared, function, call)
        hook = _recorder(self, declared, attempt, call)
        try:
            with before_commit(hook):
                result = function(self, call)
        except ControlPlaneError:
            # A twin under the same key may have won while this one ran: its answer is the answer of both.
            if attempt is not None and (answer := self._replay(declared, attempt, call)) is not None:
                return answer
            raise
        return self._answered(declared, result, call)

    def _answered(self, declared: Declared, result: Any, call: Call) -> HttpResponse:
        status = declared.status
        if isinstance(result, Answered):
            status, result = result.status, result.result
        if declared.answers is None:
            return HttpResponse(status=204)
        row, secrets = self.unwrap(result), self.secrets_of(result)
        with acting(call.actor):
            answer = self.rendered(row if isinstance(row, Out) else self.again(row, call), call, secrets)
        if self.wait_s:
            call.target = row
            answer = self.waited(answer, call, secrets)
        return self.respond(answer, status)

    def _replay(self, declared: Declared, attempt: idempotency.Attempt, call: Call) -> HttpResponse | None:
        with acting(call.actor):
            replay = idempotency.replay_of(attempt, now=call.now)
            if replay is None:
                return None
            if declared.answers is None:
                return HttpResponse(status=204, headers={"Idempotency-Replayed": "true"})
            answer = self.rendered(self.replayed(replay, call), call, replay.secrets)
        response = self.respond(answer, replay.status)
        response["Idempotency-Replayed"] = "true"
        return response

    def _plan(self, declared: Declared, function: Handler, call: Call) -> HttpResponse:
        """Run the operation, look at what it would have made, and roll everything back."""

        def look(result: Any) -> None:
            row = self.unwrap(result)
            with connection.cursor() as cursor:
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            outcome = None
            if declared.answers is not None and row is not None:
                outcome = self.rendered(row if isinstance(row, Out) else self.again(row, call), call, {})
            raise planning.RolledBack(planning.effects(declared.operation_id, row, outcome, now=call.now))

        try:
            with before_commit(look):
                function(self, call)
        except planning.RolledBack as done:
            return self.respond(done.plan, 200)
        raise AssertionError  # pragma: no cover - the hook always raises

    def rendered(self, answer: Any, call: Call, secrets: Mapping[str, str]) -> Out:
        """Return an answer as its type."""
        return answer if isinstance(answer, Out) else self.show(answer, call, secrets)

    def waited(self, answer: Out, call: Call, secrets: Mapping[str, str]) -> Out:
        """Look every `POLL_S` until the object has a phase that is waited for, or the time is over.

        Each look is a read block of its own and gives its connection back: a waiter holds a thread, no connection. One
        column is read; the object is shown again when that changes, and at the end.
        """
        quiet = threading.Event()
        end = datetime.now(UTC) + timedelta(seconds=self.wait_s)
        phase = str(getattr(answer, "phase", ""))
        while phase not in self.wait_for and not quiet.is_set():
            connection.close()
            quiet.wait(POLL_S)
            if datetime.now(UTC) >= end:
                quiet.set()
            try:
                with acting(call.actor):
                    found = self.rows(call).filter(pk=call.target.pk).values_list("phase", flat=True).first()
                    if found != phase or quiet.is_set():
                        answer = self.rendered(self.again(call.target, call), call, secrets)
            except (NotVisible, models.ObjectDoesNotExist):
                break
            phase = str(getattr(answer, "phase", ""))
        return answer

    def respond(self, answer: Out, status: int) -> HttpResponse:
        """Return the answer with its `ETag` where it has a version."""
        response = HttpResponse(answer.model_dump_json(), status=status, content_type="application/json")
        version = getattr(answer, "version", None)
        if isinstance(version, int):
            response["ETag"] = f'"{version}"'
        return response

    def page(self, call: Call, rows: QuerySet[Any], answers: type[Page], *, at: str = "created_at") -> Page:
        """Return one page of `rows`; the query is a `PageQuery`."""
        query: PageQuery = call.query
        found = slice_of(rows, cursor=query.cursor, limit=query.limit, order=query.order, at=at)
        return answers(next=found.next, items=[self.show(row, call, {}) for row in found.rows])  # type: ignore[call-arg]

    def _expected_version(self, declared: Declared, call: Call) -> int | None:
        given = call.request.headers.get("If-Match")
        version = getattr(call.target, "version", None)
        if given is None or given == "*":
            if declared.versioned and not self.planning and version is not None and given is None:
                raise PreconditionRequired(
                    'Send the object\'s ETag in If-Match, as in If-Match: "3".', field="If-Match"
                )
            return None
        found = ETAG.match(given)
        if found is None:
            raise PreconditionFailed(
                'No version looks like this; send the ETag as it was given, as in "3".', field="If-Match"
            )
        wanted = int(found[1])
        if call.request.method == "PUT" and call.target is None:
            raise PreconditionFailed("There is no such object yet; leave If-Match out to create it.")
        if version is not None and wanted != version:
            raise PreconditionFailed(expected=wanted, present=version)
        return wanted


def _recorder(
    view: ApiView, declared: Declared, attempt: idempotency.Attempt | None, call: Call
) -> Callable[[Any], None]:
    """Return the hook that writes the idempotency record in the operation's transaction."""

    def hook(result: Any) -> None:
        if attempt is None:
            return
        row = view.unwrap(result)
        idempotency.record(
            attempt,
            kind=declared.operation_id.partition(".")[0],
            ids=view.ids_of(row),
            secrets=view.secrets_of(result),
            status=declared.status if declared.answers is not None else 204,
            now=call.now,
        )

    return hook


def _declared(declared: Declared, run: Callable[..., HttpResponse], function: Handler) -> Callable[..., HttpResponse]:
    run.declared = declared  # type: ignore[attr-defined]
    run.__name__, run.__qualname__, run.__doc__ = function.__name__, function.__qualname__, function.__doc__
    return run


def _body(declared: Declared, tree: Any) -> Any:
    if declared.body is None:
        if tree not in (None, {}):
            raise InvalidSpec("This operation takes no body.", field="")
        return None
    if tree is None:
        raise InvalidSpec("A JSON body is needed.", field="")
    return parsing.body_as(declared.body, tree)


def _seconds(given: Sequence[Any]) -> float:
    try:
        seconds = float(given[0]) if len(given) == 1 else -1.0
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_WAIT_S:
        raise InvalidSpec(f"Wait 0 to {LONGEST_WAIT_S} seconds.", field="wait")
    return seconds


def _words(function: Callable[..., Any]) -> tuple[str, str]:
    summary, _, rest = (function.__doc__ or "").strip().partition("\n")
    return summary.rstrip("."), " ".join(rest.split())


def path_parameters(route: str) -> Iterator[str]:
    """Yield the names of the parameters in a route."""
    return (found for found in re.findall(r"<(?:[a-z]+:)?([a-z_]+)>", route))
