"""Documents: reading YAML, finding what differs, and what may be pruned."""

from __future__ import annotations

import pytest

from controlplane.cli import documents
from controlplane.cli.failures import UsageFault
from controlplane.cli.nouns import noun

TEXT = """
kind: Endpoint
name: chat
labels: {app: chat}
spec:
  model: llama-3-1-8b
  unit: {gpu: {product: H100-80GB, profile: 1g.10gb}, vcpu: 4, memory_gib: 16}
  replicas: 2
---
---
kind: Allocation
tenant: other
name: spare
spec: {units: [{gpu: {product: A100-80GB}}]}
"""
UNIT = {
    "gpu": {"product": "H100-80GB", "profile": "1g.10gb", "count": 1},
    "vcpu": 4,
    "memory_gib": 16,
    "spread_group": "",
}
LIVE = {
    "id": "1",
    "name": "chat",
    "tenant": "aurora",
    "phase": "Ready",
    "version": 3,
    "model": "llama-3-1-8b",
    "arguments": {},
    "labels": {"app": "chat", "team": "blue"},
    "description": "",
    "managed_by": "git",
    "spec": {"units": [UNIT, UNIT], "where": {"provider": "", "tier": "shared"}, "term": {"duration_s": 2592000}},
}


def read(text, **options):
    return documents.read(text, source="f.yaml", tenant=options.get("tenant", "aurora"), labels={"team": "blue"})


def test_documents_take_the_tenant_in_force_and_the_labels_given():
    chat, spare = read(TEXT)

    assert (chat.word, chat.tenant, chat.labels) == ("endpoint/chat", "aurora", {"app": "chat", "team": "blue"})
    assert (spare.word, spare.tenant, spare.source) == ("allocation/spare", "other", "f.yaml#3")
    assert chat.body("git")["managed_by"] == "git"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kind: Pod\nname: x", "kind 'Pod'"),
        ("kind: [1]\nname: x", "kind \\[1\\]"),
        ("kind: Endpoint", "a name is missing"),
        ("kind: Endpoint\nname: x\nspecs: {}", "there is no field specs"),
        ("kind: Endpoint\nname: x\nlabels: {a: 1}", "quote numbers"),
        ("kind: Endpoint\nname: x\nspec: 1", "spec is a mapping"),
        ("- 1", "a document is a mapping"),
        ("a: [", "is no YAML"),
        ("!!python/object/apply:os.system ['true']", "is no YAML"),
    ],
)
def test_a_wrong_document_is_refused_with_its_place(text, reason):
    with pytest.raises(UsageFault, match=reason):
        read(text)


def test_a_document_without_a_tenant_is_refused_when_none_is_in_force():
    with pytest.raises(UsageFault, match="of which tenant"):
        read(TEXT, tenant="")


def test_two_documents_of_one_object_are_refused():
    with pytest.raises(UsageFault, match="are both endpoint/chat"):
        documents.check([*read(TEXT), *read(TEXT)])


def test_what_is_as_wanted_is_the_same_and_what_is_not_said_is_left_alone():
    chat = read(TEXT)[0]

    assert documents.change_of(chat, LIVE, managed_by="git").verb == "same"


def test_a_difference_is_named_with_its_old_and_new_value():
    chat = read(TEXT.replace("vcpu: 4", "vcpu: 8").replace("{app: chat}", "{app: talk}"))[0]

    change = documents.change_of(chat, {**LIVE, "labels": {**LIVE["labels"], "old": "x"}}, managed_by="git")

    assert change.verb == "change"
    assert set(change.differences) == {"unit.vcpu: 4 → 8", "labels.app: chat → talk", "labels.old: x → (gone)"}


def test_what_is_not_there_or_released_is_made():
    chat = read(TEXT)[0]

    assert documents.change_of(chat, None, managed_by="git").verb == "create"
    assert documents.change_of(chat, {**LIVE, "phase": "Released"}, managed_by="git").verb == "create"


def test_pruning_takes_only_what_has_our_mark_and_every_label():
    mine = {**LIVE, "name": "old"}
    others = [
        {**mine, "name": "by-hand", "managed_by": "portal"},
        {**mine, "name": "unlabelled", "labels": {}},
        {**mine, "name": "going", "phase": "Deleting"},
        LIVE,
    ]

    found = documents.prunable(
        read(TEXT), [mine, *others], of=noun("endpoints"), labels={"team": "blue"}, managed_by="git"
    )

    assert [(change.verb, change.name) for change in found] == [("delete", "old")]


def test_pruning_without_a_label_is_refused():
    with pytest.raises(UsageFault, match="--prune needs -l"):
        documents.prunable([], [LIVE], of=noun("endpoints"), labels={}, managed_by="git")
