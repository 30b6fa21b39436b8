"""Our mark on objects: what is ours without its labels, and what only says that it is."""

from __future__ import annotations

from uuid import UUID

import pytest

from provisioners.driver import Kind, Ref
from provisioners.kubernetes.objects import MARK_ANNOTATION, Object, is_made_by_us, marked, ref_of, step_of

REF = Ref(Kind.ENDPOINT, UUID(int=7), UUID(int=2))


def made(name: str, step: str = "serving.replica[0]", *, labelled: bool = True) -> Object:
    plain = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}}
    obj = marked(plain, REF, step=step, want="w")
    if not labelled:
        del obj["metadata"]["labels"]
    return obj


@pytest.mark.parametrize("step", ["serving.secret", "serving.replica[0]", "serving.replica[12]"])
@pytest.mark.parametrize("labelled", [True, False])
def test_an_object_is_known_with_its_step_whether_or_not_it_kept_its_labels(step: str, labelled: bool) -> None:
    obj = made("tn-ep-1", step, labelled=labelled)

    assert (ref_of(obj), step_of(obj), is_made_by_us(obj)) == (REF, step, True)


def test_an_annotation_alone_makes_nothing_ours() -> None:
    assert not is_made_by_us(made("web", labelled=False))
    assert not is_made_by_us({"metadata": {"name": "tn-ep-1"}})


def test_a_mark_that_does_not_name_its_step_is_still_a_mark() -> None:
    obj = made("tn-ep-1", labelled=False)
    obj["metadata"]["annotations"][MARK_ANNOTATION] = f"endpoint/{REF.uid}/{REF.tenant_uid}"

    assert (ref_of(obj), step_of(obj)) == (REF, "")


@pytest.mark.parametrize("text", ["", "endpoint", "endpoint/x/y/z", "endpoint//", f"other/{REF.uid}/{REF.tenant_uid}"])
def test_a_mark_that_is_none_names_nobody(text: str) -> None:
    obj = made("tn-ep-1", labelled=False)
    obj["metadata"]["annotations"][MARK_ANNOTATION] = text

    assert ref_of(obj) is None
    assert not is_made_by_us(obj)
