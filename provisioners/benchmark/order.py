"""What the process that puts a load on an endpoint is told, and what it tells: one line of JSON each. Pure.

The order comes by standard input, key included, so that none shows in a list of processes. Progress and result go by
standard output. The end of standard input is the wish to end: a worker that died takes its load along.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

PROGRESS: Final = "progress"
"""`{"progress": {"sent": n, "failed": n}}`."""
RESULT: Final = "result"
"""`{"result": tenants.benchmarks.Result}`; the last line."""
TROUBLE: Final = "trouble"
"""`{"trouble": words}`, instead of a result: nothing could be measured."""


@dataclass(frozen=True, slots=True)
class Order:
    """One load, and where to put it."""

    url: str
    """`http(s)://<number>:<port>/v1`: a checked address."""
    host: str
    """For the header `Host`."""
    name: str
    """For TLS; `""` for plain HTTP."""
    ca_pem: str
    """Who signed its certificate; `""`: whom this machine trusts."""
    model: str
    key: str = field(repr=False)
    requests: int
    input_tokens: int
    output_tokens: int
    concurrency: int
    longest_s: float
    seed: int
    """Of the words of its prompts."""
