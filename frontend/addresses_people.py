"""Addresses of people and their ways in: first steps, people and access, settings, set-up. For `frontend.urls`."""

from __future__ import annotations

from typing import Any, Final

from django.urls import path

from frontend.views import (
    access_review,
    closing,
    first,
    offboarding,
    people,
    service_accounts,
    settings,
    setup,
    webhooks,
)

TENANT: Final = "t/<str:tenant>"
ACCOUNT: Final = f"{TENANT}/people/accounts/<str:name>"
WEBHOOK: Final = f"{TENANT}/settings/webhooks/<str:name>"

PEOPLE: Final[list[Any]] = [
    path("ops/setup", setup.show, name="setup"),
    path("first", first.show, name="first"),
    path("first/tenant", first.tenant, name="first-tenant"),
    path("first/join", first.join, name="first-join"),
    path("first/asked/<str:name>", first.asked, name="first-request"),
    path("first/asked/<str:name>/withdraw", first.withdraw, name="first-withdraw"),
    path("first/asked/<str:name>/open", first.open_it, name="first-open"),
    path(f"{TENANT}/people", people.listed, name="people"),
    path(f"{TENANT}/people/invite", people.invite, name="people-invite"),
    path(f"{TENANT}/people/pass-ownership", people.hand_on, name="ownership-pass"),
    path(f"{TENANT}/people/leave", offboarding.leave, name="member-leave"),
    path(f"{TENANT}/people/review", access_review.show, name="access-review"),
    path(f"{TENANT}/people/review/keep", access_review.keep, name="access-review-keep"),
    path(f"{TENANT}/people/invitations/<uuid:link>/again", people.invite_again, name="invitation-again"),
    path(f"{TENANT}/people/invitations/<uuid:link>/withdraw", people.withdraw_invitation, name="invitation-withdraw"),
    path(f"{TENANT}/people/<uuid:member>/role", people.change_role, name="member-role"),
    path(f"{TENANT}/people/<uuid:member>/remove", offboarding.remove, name="member-remove"),
    path(f"{TENANT}/people/<uuid:person>/hand-over", offboarding.hand_over, name="member-hand-over"),
    path(f"{TENANT}/people/accounts", service_accounts.listed, name="service-accounts"),
    path(f"{TENANT}/people/accounts/new", service_accounts.create, name="service-account-new"),
    path(ACCOUNT, service_accounts.show, name="service-account"),
    path(f"{ACCOUNT}/change", service_accounts.change, name="service-account-change"),
    path(f"{ACCOUNT}/end", service_accounts.end, name="service-account-end"),
    path(f"{ACCOUNT}/tokens/new", service_accounts.create_token, name="service-account-token-new"),
    path(f"{ACCOUNT}/tokens/<str:token>/revoke", service_accounts.revoke_token, name="service-account-token-revoke"),
    path(f"{TENANT}/settings", settings.show, name="settings"),
    path(f"{TENANT}/settings/save", settings.save, name="settings-save"),
    path(f"{TENANT}/settings/policy", settings.set_policy, name="settings-policy"),
    path(f"{TENANT}/settings/suspend", settings.suspend, name="tenant-suspend"),
    path(f"{TENANT}/settings/resume", settings.resume, name="tenant-resume"),
    path(f"{TENANT}/settings/child", settings.create_child, name="tenant-child"),
    path(f"{TENANT}/settings/close", closing.close, name="tenant-close"),
    path(f"{TENANT}/settings/webhooks", webhooks.listed, name="webhooks"),
    path(f"{TENANT}/settings/webhooks/new", webhooks.create, name="webhook-new"),
    path(WEBHOOK, webhooks.show, name="webhook"),
    path(f"{WEBHOOK}/change", webhooks.change, name="webhook-change"),
    path(f"{WEBHOOK}/roll", webhooks.roll, name="webhook-roll"),
    path(f"{WEBHOOK}/test", webhooks.test, name="webhook-test"),
    path(f"{WEBHOOK}/enable", webhooks.enable, name="webhook-enable"),
    path(f"{WEBHOOK}/disable", webhooks.disable, name="webhook-disable"),
    path(f"{WEBHOOK}/remove", webhooks.remove, name="webhook-remove"),
    path(f"{WEBHOOK}/log/<uuid:delivery>/again", webhooks.send_again, name="webhook-send-again"),
]
