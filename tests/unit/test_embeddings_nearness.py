"""How near vectors are to each other, as the playground of an embedding model shows it."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.views.playground_embeddings import cosine, nearness


def test_vectors_are_compared_in_the_order_of_their_texts() -> None:
    body = {
        "data": [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 0.0]}],
        "usage": {"prompt_tokens": 9},
    }

    assert nearness(body) == {"dimensions": 2, "tokens": 9, "near": [[1.0, 0.0], [0.0, 1.0]]}


def test_a_vector_without_length_is_near_to_nothing() -> None:
    assert cosine([0.0, 0.0], [1.0, 0.0]) == 0.0


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": []},
        {"data": [{"index": 0}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]},
        {"data": "no"},
    ],
)
def test_what_is_no_answer_with_vectors_is_refused(body: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        nearness(body)
