"""CustomResourceDefinitions of a folder onto a lab cluster: what other projects bring to a customer's cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import yaml

from controlplane.labs import waiting
from controlplane.labs.kubernetes.client import Api
from controlplane.labs.kubernetes.errors import LabError

SERVED_WITHIN_S: Final = 60.0


def install(api: Api, folder: Path) -> int:
    """Apply the definitions in the YAML files below `folder`, wait until they are served, return how many.

    Raises `LabError` when one is not served within a minute.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a hundred definitions are ten megabytes
    names = []
    for file in sorted(folder.rglob("*.y*ml")):
        for made in yaml.load_all(file.read_text(), Loader=loader):
            if isinstance(made, dict) and made.get("kind") == "CustomResourceDefinition":
                made.pop("status", None)
                api.apply(made)
                names.append(made["metadata"]["name"])
    if not waiting.until(lambda: set(names) <= _served(api), time.monotonic() + SERVED_WITHIN_S):
        raise LabError(f"not served: {', '.join(sorted(set(names) - _served(api)))}")
    return len(names)


def _served(api: Api) -> set[str]:
    found = set()
    for made in api.list("apiextensions.k8s.io/v1", "CustomResourceDefinition"):
        conditions = (made.get("status") or {}).get("conditions") or ()
        if any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
            found.add(made["metadata"]["name"])
    return found
