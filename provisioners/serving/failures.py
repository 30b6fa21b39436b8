"""What vLLM says when it does not start, in plain words: what is wrong, and what to change. Pure.

The texts are those of vLLM 0.32.0 and of the libraries under it (PyTorch, huggingface_hub, argparse), as their logs end
with them; the first that is found in a log's end is told. Numbers are taken over; nothing else of a log is, for it may
name paths and addresses. A text that is not known gives no words: who tells it says where the log is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from re import Match
from typing import Final

Words = Callable[[Match[str]], str]


def _plain(text: str) -> Words:
    return lambda _: text


_KNOWN: Final[tuple[tuple[re.Pattern[str], Words], ...]] = (
    (
        re.compile(r"estimated maximum model length is (\d+)"),
        lambda found: (
            "the context is too long for the memory that its GPU has left beside the model: "
            f"max_model_len can be {int(found[1])} at most there"
        ),
    ),
    (
        re.compile(r"max seq len \((\d+)\)"),
        lambda found: (
            f"the GPU has too little memory left for a context of {int(found[1])} tokens: ask for a shorter one "
            "(max_model_len), or for a larger GPU"
        ),
    ),
    (
        re.compile(r"No available memory for the cache blocks"),
        _plain("the model leaves no GPU memory for requests: it needs a larger GPU, or a smaller model"),
    ),
    (
        re.compile(r"Free memory on device .{0,200}less than desired GPU memory utilization", re.DOTALL),
        _plain("something else uses memory of its GPU"),
    ),
    (
        re.compile(r"CUDA out of memory|torch\.(?:cuda\.)?OutOfMemoryError"),
        _plain("its GPU has too little memory: it needs a larger one, a smaller model, or fewer users at once"),
    ),
    (
        re.compile(r"max_model_len \((\d+)\) is greater than the derived max_model_len \([a-z_]+=(\d+)"),
        lambda found: (
            f"the model takes a context of {int(found[2])} tokens at most, and {int(found[1])} were asked for "
            "(max_model_len)"
        ),
    ),
    (
        re.compile(r"only supported on GPUs with compute capability of at least (\d+\.\d+)"),
        lambda found: f"its GPU is too old for this kind of numbers: compute capability {found[1]} is needed",
    ),
    (
        re.compile(r"attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)"),
        lambda found: f"a model of {int(found[1])} attention heads cannot be split over {int(found[2])} GPUs",
    ),
    (
        re.compile(r"(?:Model architectures|are not supported for now)"),
        _plain("this version of vLLM does not know this kind of model"),
    ),
    (
        re.compile(r"trust_remote_code=True|contains custom code"),
        _plain("the model brings a program of its own, which is never run here: an operator must choose another one"),
    ),
    (
        re.compile(r"GatedRepoError|gated repo|401 Client Error|RepositoryNotFoundError"),
        _plain("the weights may not be read: the repository is gated or not there, and an operator must see to that"),
    ),
    (
        re.compile(r"RevisionNotFoundError|EntryNotFoundError"),
        _plain("the repository does not have the commit that the model is pinned to"),
    ),
    (
        re.compile(r"LocalEntryNotFoundError|Max retries exceeded|Temporary failure in name resolution"),
        _plain("the place where its weights lie cannot be reached from there"),
    ),
    (re.compile(r"No space left on device"), _plain("the disk that it loads its weights to is full")),
    (
        re.compile(r"error: (?:unrecognized arguments|argument [^:\n]{1,60}: )"),
        _plain("this version of vLLM does not take one of its arguments"),
    ),
    (re.compile(r"EngineDeadError|EngineCore encountered an issue"), _plain("its engine died while it served")),
)


def words_of(log: str) -> str:
    """Return what the end of a model server's log says is wrong, "" where it says nothing that is known."""
    for pattern, words in _KNOWN:
        found = pattern.search(log)
        if found is not None:
            return words(found)
    return ""
