"""An action as a command and as a call of the API, to copy: what a page does, others can do from a script."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any


def twins(
    command: str, path: str, body: Mapping[str, Any] | None = None, *, method: str = "POST"
) -> list[dict[str, str]]:
    """Return an action as a command and as a call, for the component `code`."""
    return [
        {"label": "CLI", "text": command, "lang": "sh"},
        {"label": "API", "text": call(path, body, method=method), "lang": "sh"},
    ]


def call(path: str, body: Mapping[str, Any] | None = None, *, method: str = "POST") -> str:
    """Return a call of the API; `path` is below `/api/v1`, address and token come from the caller's environment."""
    lines = [
        f'curl -X {method} "$TENANTRY_URL/api/v1{path}" -H "Authorization: Bearer $TENANTRY_TOKEN"',
        '-H "Idempotency-Key: $(uuidgen)"',
    ]
    if body is not None:
        text = json.dumps(dict(body), ensure_ascii=False)
        lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(text)}"]
    return " \\\n  ".join(lines)
