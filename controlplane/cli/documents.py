"""Objects as YAML documents, for `apply` and `plan`: read them, compare them with what is there, decide what to do.

    kind: Endpoint              # Endpoint, Machine, Namespace, Allocation
    tenant: aurora              # left out: the tenant in force
    name: chat
    labels: {app: chat}
    spec: {model: …, unit: {…}} # the body of the API's PUT, without name, labels and managed_by

Pure. Whoever applies from a repository marks its objects `managed_by: git`; pruning removes only objects with that
same mark and the given labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import yaml

from controlplane.cli.failures import UsageFault
from controlplane.cli.nouns import Noun, noun

Json = dict[str, Any]
KINDS: Final[Mapping[str, str]] = {
    "Endpoint": "endpoints",
    "Machine": "machines",
    "Namespace": "namespaces",
    "Allocation": "allocations",
}
KEYS: Final = frozenset({"kind", "tenant", "name", "labels", "description", "spec"})
MANAGERS: Final = frozenset({"git", "api", "cli"})
Verb = Literal["create", "change", "same", "delete"]


@dataclass(frozen=True, slots=True)
class Document:
    """One object as a file wants it."""

    noun: Noun
    tenant: str
    name: str
    spec: Json
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    source: str = ""
    """File and number of the document, for messages."""

    @property
    def word(self) -> str:
        """Return how people call it."""
        return f"{self.noun.singular}/{self.name}"

    def body(self, managed_by: str) -> Json:
        """Return the body of its PUT."""
        return {
            **self.spec,
            "labels": dict(self.labels),
            "description": self.description,
            "managed_by": managed_by,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """What to do with one object, and why."""

    verb: Verb
    noun: Noun
    tenant: str
    name: str
    differences: tuple[str, ...] = ()
    document: Document | None = None
    present: Json | None = None


def read(text: str, *, source: str, tenant: str, labels: Mapping[str, str]) -> list[Document]:
    """Return the documents of one YAML text; `labels` are put on each. Raises `UsageFault` naming the place."""
    try:
        raw = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise UsageFault(f"{source} is no YAML: {error}") from error
    return [
        _document(body, source=f"{source}#{number}", tenant=tenant, labels=labels)
        for number, body in enumerate(raw, start=1)
        if body is not None
    ]


def _document(body: Any, *, source: str, tenant: str, labels: Mapping[str, str]) -> Document:
    if not isinstance(body, dict):
        raise UsageFault(f"{source}: a document is a mapping with kind, name and spec")
    if unknown := sorted(str(key) for key in body if key not in KEYS):
        raise UsageFault(f"{source}: there is no field {unknown[0]}; known: {', '.join(sorted(KEYS))}")
    kind = body.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UsageFault(f"{source}: kind {kind!r}; known: {', '.join(KINDS)}")
    name, spec = body.get("name"), body.get("spec", {})
    own = body.get("labels") or {}
    home = body.get("tenant") or tenant
    if not isinstance(name, str) or not name:
        raise UsageFault(f"{source}: a name is missing")
    if not isinstance(spec, dict):
        raise UsageFault(f"{source}: spec is a mapping")
    if not isinstance(own, dict) or not all(isinstance(each, str) for each in own.values()):
        raise UsageFault(f"{source}: labels are text by text; quote numbers")
    if not home:
        raise UsageFault(f"{source}: of which tenant? Say it in the document or with --tenant")
    return Document(
        noun(KINDS[kind]), str(home), name, spec, {**own, **labels}, str(body.get("description") or ""), source
    )


def check(documents: Sequence[Document]) -> None:
    """Raise `UsageFault` for two documents of the same object."""
    seen: dict[tuple[str, str, str], str] = {}
    for document in documents:
        key = (document.noun.name, document.tenant, document.name)
        if key in seen:
            raise UsageFault(f"{document.source} and {seen[key]} are both {document.word} of {document.tenant}")
        seen[key] = document.source


def change_of(document: Document, present: Json | None, *, managed_by: str) -> Change:
    """Return what brings one object to its document."""
    made = Change("create", document.noun, document.tenant, document.name, document=document)
    if present is None or present.get("phase") == "Released":
        return made
    differences = tuple(compare(document.body(managed_by), normal(present)))
    verb: Verb = "change" if differences else "same"
    return Change(verb, document.noun, document.tenant, document.name, differences, document, present)


def normal(present: Json) -> Json:
    """Return a live object in the words of its PUT, as far as the API says them back."""
    stored = present.get("spec") or {}
    units = stored.get("units") or []
    found: Json = {
        **{key: stored[key] for key in ("where", "term", "on_shortage", "storage_gib", "gang") if key in stored},
        **{key: present[key] for key in ("model", "runtime", "arguments", "image", "disk_gib", "ssh_keys", "power",
                                         "labels", "description", "managed_by") if key in present},
        "units": units,
    }  # fmt: skip
    if units:
        found["unit"] = units[0]
        found["replicas"] = len(units)
    return found


def compare(wanted: Any, present: Any, at: str = "") -> Iterable[str]:
    """Yield `path: old → new` for what is wanted and differs; what a document does not say is left alone."""
    if isinstance(wanted, Mapping):
        have = present if isinstance(present, Mapping) else {}
        for key, value in wanted.items():
            yield from compare(value, have.get(key), f"{at}.{key}" if at else str(key))
        if at == "labels" and isinstance(present, Mapping):
            yield from (f"labels.{key}: {value} → (gone)" for key, value in present.items() if key not in wanted)
    elif isinstance(wanted, list) and isinstance(present, list) and len(wanted) == len(present):
        for number, (new, old) in enumerate(zip(wanted, present, strict=True)):
            yield from compare(new, old, f"{at}[{number}]")
    elif wanted != present and not (wanted in (None, "", [], {}) and present in (None, "", [], {})):
        yield f"{at}: {_short(present)} → {_short(wanted)}"


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def prunable(
    documents: Sequence[Document], present: Iterable[Json], *, of: Noun, labels: Mapping[str, str], managed_by: str
) -> list[Change]:
    """Return the deletions of live objects that no document names any more.

    Only objects with every given label and the same `managed_by`: never what somebody else made. Raises
    `UsageFault` without a label, because everything would match.
    """
    if not labels:
        raise UsageFault("--prune needs -l key=value: it removes only objects with that label")
    kept = {(each.tenant, each.name) for each in documents if each.noun is of}
    return [
        Change("delete", of, str(item["tenant"]), str(item["name"]), present=item)
        for item in present
        if item.get("managed_by") == managed_by
        and all((item.get("labels") or {}).get(key) == value for key, value in labels.items())
        and item.get("phase") not in {"Released", "Deleting"}
        and (str(item["tenant"]), str(item["name"])) not in kept
    ]
