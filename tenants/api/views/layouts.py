"""Changing how the GPUs of a host are carved: who would be concerned, and the plan."""

from __future__ import annotations

from typing import Any

from tenants import access
from tenants.api.serializers.base import Out
from tenants.api.serializers.layouts import LayoutIn, LayoutPreviewIn, LayoutPreviewOut
from tenants.api.serializers.platform import HostPlanOut
from tenants.api.views.base import Call, writes
from tenants.api.views.platform import HostView
from tenants.models import HostPlan
from tenants.operations import layouts


class LayoutPreview(HostView):
    """What a layout change would touch."""

    key = "host"

    @writes("hosts.preview_layout", body=LayoutPreviewIn, answers=LayoutPreviewOut, plannable=False)
    def post(self, call: Call) -> Any:
        """Say whom a layout change would concern at this moment; changes nothing."""
        found = layouts.preview_layout(
            host=call.target, layouts=call.body.by_gpu(), evict=call.body.evict, actor=call.actor, now=call.now
        )
        return LayoutPreviewOut.of(found)


class HostLayout(HostView):
    """Changing the layout of a host's GPUs."""

    key = "host"

    @writes("hosts.layout", body=LayoutIn, answers=HostPlanOut, status=201)
    def post(self, call: Call) -> Any:
        """Carve GPUs of a host anew by plan: notice, moves, carving, and the host comes back."""
        return layouts.change_layout(
            host=call.target,
            layouts=call.body.by_gpu(),
            reason=call.body.reason,
            evict=call.body.evict,
            starts_at=call.body.starts_at,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )

    def again(self, row: Any, call: Call) -> Any:  # noqa: ARG002
        """Return the plan."""
        return HostPlan.objects.select_related("host").get(pk=row.pk)

    def replayed(self, replay: Any, call: Call) -> Any:  # noqa: ARG002
        """Return the plan an earlier request made."""
        return access.find(HostPlan.objects.select_related("host"), replay.ids[0])

    def show(self, row: Any, call: Call, secrets: Any) -> Out:  # noqa: ARG002
        """Return the plan."""
        return HostPlanOut.of(row)
