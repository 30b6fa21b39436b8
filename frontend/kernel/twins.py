"""The same deed by the command line and by the API, to copy beside a form."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any


def api(verb: str, path: str, body: Mapping[str, Any] | None = None, *, version: int | None = None) -> str:
    """Return a call of the API for a shell; `version` of what is changed, None for something new."""
    extra = f"-H 'If-Match: \"{version}\"'" if version is not None else "-H 'Idempotency-Key: '$(uuidgen)"
    text = f'curl -X {verb} "$TENANTRY/api/v1/{path}" -H "Authorization: Bearer $TOKEN" \\\n  {extra}'
    if body is None:
        return text
    given = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"{text} -H 'Content-Type: application/json' \\\n  -d {given}"


def read(path: str) -> str:
    """Return a call of the API that reads, for a shell."""
    return f'curl "$TENANTRY/api/v1/{path}" -H "Authorization: Bearer $TOKEN"'


def pair(command: str, call: str) -> list[dict[str, str]]:
    """Return the tabs of a code block: the command line, where it has a command, and the API."""
    found = [{"label": "CLI", "text": command, "lang": "shell"}] if command else []
    return [*found, {"label": "API", "text": call, "lang": "shell"}]
