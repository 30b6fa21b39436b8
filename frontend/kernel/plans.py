"""What an operation would do: run in its own transaction, looked at, and rolled back.

The same code decides in the preview and in the deed, so a preview is no second opinion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from django.db import connection

from tenants.transactions import before_commit

T = TypeVar("T")


class _RolledBack(Exception, Generic[T]):
    def __init__(self, answer: T) -> None:
        super().__init__()
        self.answer = answer


def planned(run: Callable[[], Any], look: Callable[[Any], T]) -> T:
    """Call the operation `run`, return what `look(its result)` sees inside its transaction, and undo everything.

    Raises what the operation raises. Must run outside any read block.
    """

    def hook(result: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        raise _RolledBack(look(result))

    try:
        with before_commit(hook):
            run()
    except _RolledBack as done:
        answer: T = done.answer
        return answer
    raise AssertionError  # pragma: no cover - the hook always raises
