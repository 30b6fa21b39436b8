"""The caller's bell and wishes; a tenant's webhooks, their secrets and their log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.db.models import QuerySet

from tenants import access
from tenants.api import idempotency
from tenants.api.serializers.base import Out, Page, PageQuery, page_of
from tenants.api.serializers.notifications import (
    DeliveryOut,
    DeliveryQuery,
    KindOut,
    KindsOut,
    NotificationOut,
    NotificationQuery,
    PreferenceIn,
    PreferenceOut,
    PreferencesOut,
    ReadIn,
    RollWebhookIn,
    UnreadOut,
    WebhookChangeIn,
    WebhookIn,
    WebhookOut,
)
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.models import Delivery, Notification, Webhook
from tenants.notifications import reads as bell
from tenants.notifications import registry
from tenants.operations import notifications

NotificationPage = page_of(NotificationOut)
WebhookPage = page_of(WebhookOut)
DeliveryPage = page_of(DeliveryOut)


class Notifications(ApiView):
    """The caller's bell."""

    def show(self, row: Notification, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a row."""
        return NotificationOut.of(row)

    @reads("notifications.list", answers=NotificationPage, query=NotificationQuery)
    def get(self, call: Call) -> Page:
        """List the caller's notifications."""
        query: NotificationQuery = call.query
        return self.page(call, bell.bell(call.actor, unread=query.unread, kind=query.kind), NotificationPage, at="at")


class Unread(ApiView):
    """The bell's number."""

    @reads("notifications.count", answers=UnreadOut)
    def get(self, call: Call) -> Out:
        """Count the caller's unread notifications."""
        return UnreadOut(unread=bell.unread_count(call.actor))


class MarkRead(ApiView):
    """Read marks."""

    def unwrap(self, result: Any) -> Any:
        """Return how many are unread now."""
        return UnreadOut(unread=result)

    @writes("notifications.mark_read", body=ReadIn, answers=UnreadOut)
    def post(self, call: Call) -> Any:
        """Mark notifications as read, some or all. Safe to repeat."""
        return notifications.mark_read(ids=call.body.chosen, actor=call.actor, now=call.now)


class Kinds(ApiView):
    """The registry of kinds."""

    @reads("notification-kinds.list", answers=KindsOut)
    def get(self, call: Call) -> Out:
        """List the kinds of notifications: who gets them, when, and how by default."""
        del call
        return KindsOut(items=[KindOut.of(kind) for kind in registry.KINDS.values()])


class Preferences(ApiView):
    """How the caller wants to be told."""

    def unwrap(self, result: Any) -> Any:
        """Return the wish as it is now."""
        return PreferenceOut(kind=result.kind, bell=result.bell, mail=result.mail, own=True)

    @reads("notification-preferences.list", answers=PreferencesOut)
    def get(self, call: Call) -> Out:
        """List how the caller gets each kind."""
        return PreferencesOut(items=[PreferenceOut.of(wish) for wish in bell.preferences(call.actor)])

    @writes("notification-preferences.set", body=PreferenceIn, answers=PreferenceOut)
    def put(self, call: Call) -> Any:
        """Say how the caller wants one kind: in the bell, and by mail at once, daily or not at all."""
        body: PreferenceIn = call.body
        return notifications.set_preference(
            kind=body.kind, bell=body.bell, mail=body.mail, actor=call.actor, now=call.now
        )


# --- webhooks -------------------------------------------------------------------------------------------


class WebhookView(ApiView):
    """Webhooks of one tenant."""

    def rows(self, call: Call) -> QuerySet[Webhook]:
        """Return the tenant's webhooks."""
        return bell.webhooks(call.actor, call.home)

    def show(self, row: Webhook, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a webhook."""
        return WebhookOut.of(row, secret=secrets.get("secret"))


class Webhooks(WebhookView):
    """Webhooks of one tenant."""

    @reads("webhooks.list", answers=WebhookPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List webhooks."""
        return self.page(call, self.rows(call), WebhookPage)

    @writes("webhooks.create", body=WebhookIn, answers=WebhookOut, status=201)
    def post(self, call: Call) -> Any:
        """Create a webhook; the answer holds its secret, once."""
        body: WebhookIn = call.body
        return notifications.create_webhook(
            tenant=call.home, name=body.name, url=body.url, kinds=body.kinds, actor=call.actor, now=call.now
        )


class WebhookItem(WebhookView):
    """One webhook."""

    key = "name"

    @reads("webhooks.read", answers=WebhookOut)
    def get(self, call: Call) -> Any:
        """Read a webhook."""
        return call.target

    @writes("webhooks.update", body=WebhookChangeIn, answers=WebhookOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Change where it leads or what it gets."""
        changes = {field: getattr(call.body, field) for field in call.body.model_fields_set}
        return notifications.update_webhook(
            webhook=call.target, changes=changes, actor=call.actor, now=call.now, version=call.version
        )

    @writes("webhooks.delete", answers=None, versioned=True)
    def delete(self, call: Call) -> Any:
        """Remove a webhook; its secrets are forgotten."""
        return notifications.remove_webhook(webhook=call.target, actor=call.actor, now=call.now, version=call.version)


class WebhookRoll(WebhookView):
    """Rolling a secret."""

    key = "name"

    @writes("webhooks.roll", body=RollWebhookIn, answers=WebhookOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Make a new secret; the old one signs too for `overlap_s`. The answer holds the new one, once."""
        return notifications.roll_webhook(
            webhook=call.target, overlap_s=call.body.overlap_s, actor=call.actor, now=call.now, version=call.version
        )


class WebhookEnable(WebhookView):
    """Switching on."""

    key = "name"

    @writes("webhooks.enable", answers=WebhookOut)
    def post(self, call: Call) -> Any:
        """Let a webhook get messages again. Safe to repeat."""
        return notifications.enable_webhook(webhook=call.target, actor=call.actor, now=call.now, version=call.version)


class WebhookDisable(WebhookView):
    """Switching off."""

    key = "name"

    @writes("webhooks.disable", answers=WebhookOut)
    def post(self, call: Call) -> Any:
        """Send nothing more until it is enabled. Safe to repeat."""
        return notifications.disable_webhook(webhook=call.target, actor=call.actor, now=call.now, version=call.version)


class DeliveryView(WebhookView):
    """Deliveries of one webhook."""

    key = "name"
    found: Delivery

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant, webhook and, where the path names one, the delivery."""
        super().locate(declared, call)
        if "delivery" in call.path:
            self.found = access.find(self._log(call), call.path["delivery"])

    def _log(self, call: Call) -> QuerySet[Delivery]:
        return bell.deliveries(call.target).prefetch_related("tries").select_related("webhook__tenant")

    def show(self, row: Delivery, call: Call, secrets: Mapping[str, str]) -> Out:  # type: ignore[override]  # noqa: ARG002
        """Return a delivery."""
        return DeliveryOut.of(row)

    def again(self, row: Delivery, call: Call) -> Any:
        """Return the delivery read anew."""
        return self._log(call).get(pk=row.pk)

    def replayed(self, replay: idempotency.Replay, call: Call) -> Any:
        """Return the delivery that an earlier request made."""
        return access.find(self._log(call), replay.ids[0])


class WebhookTest(DeliveryView):
    """A test message."""

    @writes("webhooks.test", answers=DeliveryOut, status=201)
    def post(self, call: Call) -> Any:
        """Send a test message; read its delivery to see how it went."""
        return notifications.try_webhook(webhook=call.target, actor=call.actor, now=call.now)


class Deliveries(DeliveryView):
    """The log of one webhook."""

    @reads("webhook-deliveries.list", answers=DeliveryPage, query=DeliveryQuery)
    def get(self, call: Call) -> Page:
        """List deliveries of the last 30 days, with their attempts."""
        query: DeliveryQuery = call.query
        rows = self._log(call)
        return self.page(call, rows.filter(state=query.state) if query.state else rows, DeliveryPage)


class DeliveryItem(DeliveryView):
    """One delivery."""

    @reads("webhook-deliveries.read", answers=DeliveryOut)
    def get(self, call: Call) -> Any:
        """Read a delivery."""
        del call
        return self.found


class SendAgain(DeliveryView):
    """Sending again."""

    @writes("webhooks.send_again", answers=DeliveryOut)
    def post(self, call: Call) -> Any:
        """Send a message once more, under the same id."""
        return notifications.send_again(delivery=self.found, actor=call.actor, now=call.now)


STEPS: Final[Mapping[str, type[ApiView]]] = {
    "roll": WebhookRoll,
    "enable": WebhookEnable,
    "disable": WebhookDisable,
    "test": WebhookTest,
}
