"""OpenAPI 3.1 out of the views' own declarations: what is checked is what is documented.

drf-spectacular walks the routes; everything about an operation comes from its `Declared`, and every schema
from the pydantic class that parses or writes the body.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal

from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from tenants.api.planning import WAIT_GOALS, PlanOut
from tenants.api.serializers.base import Problem
from tenants.models.fields import SLUG_PATTERN
from tenants.policies import ROUTES, Scope
from tenants.problems import CONTENT_TYPE

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tenants.api.views.base import Declared

REF: Final = "#/components/schemas/{model}"
MEANINGS: Final = {
    400: "The input is not valid; `errors` names the fields.",
    401: "No valid proof of who asks.",
    403: "Visible, but the role does not allow it.",
    404: "No such object, or not visible.",
    406: "This representation is not offered.",
    409: "The present state, a quota or a name is in the way.",
    412: "`If-Match` names another version.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "The `Idempotency-Key` was used for another request.",
    429: "Too many attempts; see `Retry-After`.",
    428: "`Idempotency-Key` or `If-Match` is missing.",
    503: "A part of the control plane does not answer; see `Retry-After`.",
}


class Pydantic(OpenApiSerializerExtension):
    """Schemas of pydantic classes: bodies as they are read, answers as they are written."""

    target_class = "pydantic.BaseModel"
    match_subclasses = True
    priority = 10

    def get_name(self, auto_schema: AutoSchema, direction: str) -> str:  # noqa: ARG002
        """Return the class's own name."""
        return str(self.target.__name__)

    def get_identity(self, auto_schema: AutoSchema, direction: str) -> str:  # noqa: ARG002
        """Return the name: nested classes are registered by it too."""
        return str(self.target.__name__)

    def map_serializer(self, auto_schema: AutoSchema, direction: str) -> dict[str, Any]:
        """Return the JSON Schema; nested classes become components of their own."""
        mode: Any = "validation" if direction == "request" else "serialization"
        _, found = models_json_schema([(self.target, mode)], ref_template=REF, schema_generator=Plain)
        schemas = found.get("$defs", {})
        own = schemas.pop(self.target.__name__)
        for name, schema in schemas.items():
            auto_schema.registry.register_on_missing(
                ResolvedComponent(name=name, type=ResolvedComponent.SCHEMA, object=name, schema=schema)
            )
        return dict(own)


class Plain(GenerateJsonSchema):
    """Without the title of every field, which only repeats its name."""

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        """Say that keys of another form are refused; pydantic's own pattern leaves them open."""
        found = super().dict_schema(schema)
        patterns = found.pop("patternProperties", None)
        if patterns:
            ((pattern, values),) = patterns.items()
            found["propertyNames"] = {"pattern": pattern}
            found["additionalProperties"] = values
        return found

    def default_schema(self, schema: Any) -> dict[str, Any]:
        """Leave out a default of null: the field may be left out, and where null is no value it is never sent."""
        found = super().default_schema(schema)
        if found.get("default", ...) is None:
            del found["default"]
        return found

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Leave titles out."""
        return False


class DeclaredSchema(AutoSchema):
    """One operation of the document, from the view's declaration."""

    view: Any

    @property
    def declared(self) -> Declared:
        """Return the declaration of this method."""
        found: Declared = self.view.declarations[self.method]
        return found

    def get_operation_id(self) -> str:
        """Return the operation's id; a list across tenants says so."""
        declared = self.declared
        across = ROUTES[declared.operation_id].scope is Scope.TENANT and "{tenant}" not in self.path
        return declared.operation_id + ("-anywhere" if across else "")

    def get_summary(self) -> str:
        """Return the first line of the handler's docstring."""
        return self.declared.summary

    def get_description(self) -> str:  # type: ignore[override]  # drf-spectacular's own signature
        """Return the rest of it."""
        return self.declared.description

    def get_tags(self) -> list[str]:
        """Return the noun."""
        return [self.declared.operation_id.partition(".")[0]]

    def get_auth(self) -> list[dict[str, list[str]]]:
        """Return how to prove who asks."""
        return [] if ROUTES[self.declared.operation_id].scope is Scope.PUBLIC else [{"token": []}, {"session": []}]

    def get_request_serializer(self) -> Any:
        """Return the class of the body."""
        return self.declared.body

    def _get_request_body(self, direction: Any = "request") -> Any:  # noqa: ARG002
        if self.declared.body is None:
            return None
        return {"content": {"application/json": {"schema": self._ref(self.declared.body, "request")}}, "required": True}

    def _ref(self, model: Any, direction: Literal["request", "response"]) -> dict[str, Any]:
        return dict(self.resolve_serializer(model, direction).ref)

    def _get_response_bodies(self, direction: Any = "response") -> dict[str, Any]:  # noqa: ARG002
        declared = self.declared
        answers: dict[str, Any] = {}
        if declared.answers is None:
            answers["204"] = {"description": "Done."}
            if declared.plannable:
                answers["200"] = self._json(PlanOut, "What would happen (`plan=true`).")
        else:
            statuses = {200, 201} if hasattr(self.view, "put_target") and self.method == "PUT" else {declared.status}
            for status in statuses:
                answers[str(status)] = self._json(declared.answers, declared.answers.__doc__ or "")
            if declared.writes and declared.plannable:
                answers["200"] = self._planned(declared) if "200" in answers else self._json(PlanOut, "A plan.")
        if declared.answers is not None and "version" in declared.answers.model_fields:
            for word in ("200", "201"):
                if word in answers:
                    answers[word]["headers"] = {
                        "ETag": {"description": "Version, for `If-Match`.", "schema": {"type": "string"}}
                    }
        problem = self._ref(Problem, "response")
        for status in self._errors(declared):
            answers[str(status)] = {
                "description": MEANINGS[status],
                "content": {CONTENT_TYPE: {"schema": problem}},
            }
        return answers

    def _planned(self, declared: Declared) -> dict[str, Any]:
        own, plan = (self._ref(each, "response") for each in (declared.answers, PlanOut))
        return {
            "description": "The object, or with `plan=true` what would happen.",
            "content": {"application/json": {"schema": {"oneOf": [own, plan]}}},
        }

    def _json(self, model: type[BaseModel], description: str) -> dict[str, Any]:
        content = {"application/json": {"schema": self._ref(model, "response")}}
        return {"description": " ".join(description.split()), "content": content}

    def _errors(self, declared: Declared) -> list[int]:
        policy = ROUTES[declared.operation_id]
        found = {400, 406, 503}
        if policy.scope is not Scope.PUBLIC:
            found |= {401, 403}
        if "{" in self.path:
            found |= {404}
        if declared.writes:
            found |= {404, 409, 412, 413, 415}
            if declared.versioned or (self.method == "POST" and policy.idempotency):
                found |= {428}
            if self.method == "POST" and policy.idempotency:
                found |= {422}
        found |= set(declared.statuses)
        return sorted(found)

    def _get_parameters(self) -> list[dict[str, Any]]:
        declared = self.declared
        found = [
            _path(name, slug=name in self.view.slugs or (name == self.view.key and self.method == "PUT"))
            for name in re.findall(r"{([a-z_]+)}", self.path)
        ]
        found += _query(declared.query)
        if declared.writes and declared.plannable:
            found.append(_option("plan", {"type": "boolean"}, "true: say what would happen and change nothing."))
        if declared.waitable:
            found.append(_option("wait", {"type": "number", "minimum": 0, "maximum": 60}, "Seconds to wait at most."))
            goals = {"type": "string", "enum": sorted(WAIT_GOALS)}
            found.append(_option("for", goals, "Phase to wait for; several with commas."))
        if declared.versioned:
            found.append(_header("If-Match", r'^"[1-9][0-9]{0,8}"$', "`ETag` of the object as you read it."))
        if self.method == "POST" and ROUTES[declared.operation_id].idempotency:
            found.append(_header("Idempotency-Key", r"^[A-Za-z0-9._:-]{1,100}$", "New for each thing you want done."))
        return found


class Token(OpenApiAuthenticationExtension):
    """The two proofs the API takes."""

    target_class = "tenants.api.authentication.PrincipalAuthentication"
    name = ["token", "session"]

    def get_security_definition(self, auto_schema: AutoSchema) -> list[dict[str, Any]]:  # noqa: ARG002
        """Return bearer token and session cookie."""
        return [
            {"type": "http", "scheme": "bearer", "description": "`tenantry login` makes one."},
            {"type": "apiKey", "in": "cookie", "name": "sessionid"},
        ]


def _path(name: str, *, slug: bool) -> dict[str, Any]:
    pattern = SLUG_PATTERN if slug else "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": "Name." if slug else "Name, short id or id.",
        "schema": {"type": "string", "pattern": pattern},
    }


def _option(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _header(name: str, pattern: str, description: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _query(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema(mode="validation", schema_generator=Plain)
    known = schema.get("$defs", {})
    required = schema.get("required", [])
    found = []
    for name, raw in schema.get("properties", {}).items():
        inner = _inlined(raw, known)
        description = inner.pop("description", "")
        if "anyOf" in inner:  # a parameter is left out, never null
            inner = next(each for each in inner["anyOf"] if each.get("type") != "null")
        inner.pop("default", None)
        found.append({**_option(name, inner, description), "required": name in required})
    return found


def _inlined(schema: Any, known: Any) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            own = {key: value for key, value in schema.items() if key != "$ref"}
            return {**_inlined(known[schema["$ref"].rpartition("/")[2]], known), **own}
        return {key: _inlined(value, known) for key, value in schema.items()}
    return [_inlined(each, known) for each in schema] if isinstance(schema, list) else schema
