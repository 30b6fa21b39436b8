"""A worker of the product's own Celery app with one task more, which raises what a vCenter's faults become.

What the worker's parent process is told by the child that ran it is written to the file `RAISED_TO`, a line each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from celery.worker.request import Request

from controlplane.celery import app
from provisioners.driver import Conflicting, DriverError, NotSupported, TransientDriverError
from provisioners.vsphere.failures import TRANSPORT, distrusted, error_of

FAULTS: Final = (
    "TaskInProgress", "InsufficientGraphicsResourcesFault", "NotAuthenticated", "DuplicateName", "InvalidLogin",
    "NoPermission", "InvalidArgument", TRANSPORT,
)  # fmt: skip
"""One of each class at least."""
ERRORS: Final[dict[str, DriverError]] = {
    **{fault: error_of(fault, "words of vCenter", "and Ünicode \N{SNOWMAN}") for fault in FAULTS},
    "trust": distrusted("url: not for vc.example", "Hostname mismatch"),
    "asked to wait": TransientDriverError("busy", raw="503", retry_after_s=7.5),
    "somebody else's": Conflicting("a VM is there and is not ours"),
    "not here": NotSupported("not here", raw="none"),
}


class Told(Request):  # type: ignore[misc] # celery has no types
    """What the parent knows of a task; it is told of a failure by the pool."""

    def on_failure(self, exc_info: Any, *given: Any, **named: Any) -> Any:
        """Write down what came."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        line = json.dumps({"pid": os.getpid(), **shape_of(error)})
        with Path(os.environ["RAISED_TO"]).open("a") as told:
            told.write(f"{line}\n")
        return super().on_failure(exc_info, *given, **named)


def shape_of(error: BaseException) -> dict[str, Any]:
    """Return an error's class and all of its fields, as JSON."""
    kind = type(error)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "text": str(error), "fields": vars(error)}


@app.task(name="tests.raise", Request=Told)  # type: ignore[untyped-decorator] # celery has no types
def raise_error(*, what: str) -> None:
    """Raise one of `ERRORS`."""
    raise ERRORS[what]
