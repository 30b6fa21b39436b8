"""What is sent as the body of an apply: JSON to a JSON parser, and the same to a YAML parser."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from provisioners.kubernetes.client import json_as_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(st.dictionaries(TEXT, TEXT | st.lists(TEXT, max_size=3), max_size=4))
def test_every_text_is_read_back_by_either_parser(value: dict[str, Any]) -> None:
    assert json.loads(json_as_yaml(value)) == value
    assert yaml.safe_load(json_as_yaml(value)) == value


@pytest.mark.parametrize("text", ["🜲", r"\ud83d\udf32", r"\\ud83d\udf32", "\\🜲", "\x7f\x85\u2028\ufeff\ufffe", "\0"])
def test_what_looks_like_an_escape_is_none(text: str) -> None:
    assert json.loads(json_as_yaml(text)) == text
    assert yaml.safe_load(json_as_yaml([text])) == [text]
