"""Where the portal may call an endpoint: `tenants.reach`, off the event loop, and refused in the person's language.

The only outbound calls of the portal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from django.utils.translation import gettext as _

from tenants import reach
from tenants.errors import Conflict
from tenants.reach import Network, Target, ranges_of

__all__ = ["Network", "Target", "checked", "ranges_of"]


async def checked(address: str, ranges: Sequence[Network]) -> Target:
    """Return where to call. Raises `Conflict` (`address-refused`) for an address outside the ranges."""
    try:
        return await asyncio.to_thread(reach.checked, address, ranges)
    except Conflict as error:
        text = _("Its address is outside the ranges that the provider declares; an operator must add them.")
        raise Conflict(text, code="address-refused") from error
