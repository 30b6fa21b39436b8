"""Every address of the portal. Each view is a `@page`; `verify` below stops the process for one that is not."""

from __future__ import annotations

from typing import Any

from django.urls import path

from frontend.addresses_estate import ESTATE
from frontend.addresses_governance import GOVERNANCE
from frontend.addresses_money import MONEY
from frontend.addresses_operations import OPERATIONS
from frontend.addresses_people import PEOPLE
from frontend.addresses_providers import PROVIDERS
from frontend.kernel.page import verify
from frontend.views import (
    endpoint_benchmarks,
    endpoint_live,
    endpoint_logs,
    endpoints,
    entrance,
    home,
    idling,
    inbox,
    isolation,
    leaked,
    live,
    machines,
    me,
    moves,
    namespaces,
    new,
    notices,
    personas,
    playground,
    playground_embeddings,
    quota,
    requests,
    rollouts,
    search,
    style,
)
from frontend.views import help as help_pages

app_name = "frontend"


def product(noun: str, views: Any) -> list[Any]:
    """Return the addresses that endpoints, machines and namespaces share."""
    one = f"t/<str:tenant>/{noun}s/<str:name>"
    return [
        path(f"t/<str:tenant>/{noun}s", views.listed, name=f"{noun}s"),
        path(one, views.show, name=noun),
        path(f"{one}/state", views.state, name=f"{noun}-state"),
        path(f"{one}/delete", views.delete, name=f"{noun}-delete"),
        path(f"{one}/renew", views.renew, name=f"{noun}-renew"),
    ]


ENDPOINT = "t/<str:tenant>/endpoints/<str:name>"
REQUEST = "t/<str:tenant>/requests/<str:name>"

urlpatterns: list[Any] = [
    path("", home.landing, name="landing"),
    path("login", entrance.log_in, name="log-in"),
    path("logout", entrance.log_out, name="log-out"),
    path("personas", personas.choose, name="personas"),
    path("help", help_pages.listed, name="help"),
    path("help/<str:code>", help_pages.show, name="help-topic"),
    path("search", search.find, name="search"),
    path("leaked", leaked.show, name="leaked"),
    path("me", me.show, name="me"),
    path("me/tokens/new", me.create_token, name="token-new"),
    path("me/tokens/<str:token>/revoke", me.revoke_token, name="token-revoke"),
    path("me/notifications", notices.listed, name="notices"),
    path("me/notifications/read", notices.mark_read, name="notices-read"),
    path("me/notifications/preferences", notices.preferences, name="notice-preferences"),
    path("me/notifications/preferences/set", notices.set_preferences, name="notice-preferences-set"),
    path("style", style.show, name="style"),
    path("style/entrance", style.entrance, name="style-entrance"),
    *PEOPLE,
    # one tenant
    path("t/<str:tenant>", home.show, name="home-of"),
    path("t/<str:tenant>/live", live.tenant, name="live-tenant"),
    path("t/<str:tenant>/live/<str:kind>/<uuid:key>", live.product, name="live"),
    path("t/<str:tenant>/new", new.choose, name="new"),
    path("t/<str:tenant>/new/endpoint", new.endpoint, name="new-endpoint"),
    path("t/<str:tenant>/new/machine", new.machine, name="new-machine"),
    path("t/<str:tenant>/new/namespace", new.namespace, name="new-namespace"),
    *product("endpoint", endpoints),
    path(f"{ENDPOINT}/playground", playground.show, name="endpoint-playground"),
    path(f"{ENDPOINT}/playground/chat", playground.chat, name="endpoint-chat"),
    path(f"{ENDPOINT}/playground/embed", playground_embeddings.embed, name="endpoint-embed"),
    path(f"{ENDPOINT}/keys", endpoints.keys, name="endpoint-keys"),
    path(f"{ENDPOINT}/keys/new", endpoints.create_key, name="endpoint-key-new"),
    path(f"{ENDPOINT}/keys/<str:key>/roll", endpoints.roll_key, name="endpoint-key-roll"),
    path(f"{ENDPOINT}/keys/<str:key>/limits", endpoints.limit_key, name="endpoint-key-limit"),
    path(f"{ENDPOINT}/keys/<str:key>/revoke", endpoints.revoke_key, name="endpoint-key-revoke"),
    path(f"{ENDPOINT}/revisions", rollouts.show, name="endpoint-revisions"),
    path(f"{ENDPOINT}/revisions/new", rollouts.revise, name="endpoint-revise"),
    path(f"{ENDPOINT}/sleep", idling.sleep, name="endpoint-sleep"),
    path(f"{ENDPOINT}/wake", idling.wake, name="endpoint-wake"),
    path(f"{ENDPOINT}/idle", idling.set_idle, name="endpoint-idle"),
    path(f"{ENDPOINT}/rollout/promote", rollouts.promote, name="endpoint-promote"),
    path(f"{ENDPOINT}/rollout/hold", rollouts.hold, name="endpoint-hold"),
    path(f"{ENDPOINT}/rollout/resume", rollouts.resume, name="endpoint-resume"),
    path(f"{ENDPOINT}/rollout/abort", rollouts.abort, name="endpoint-abort"),
    path(f"{ENDPOINT}/rollback", rollouts.rollback, name="endpoint-rollback"),
    path(f"{ENDPOINT}/moves", moves.show, name="endpoint-moves"),
    path(f"{ENDPOINT}/move", moves.begin, name="endpoint-move"),
    path(f"{ENDPOINT}/move/cut-over", moves.cut_over, name="endpoint-cut-over"),
    path(f"{ENDPOINT}/move/finish", moves.finish, name="endpoint-finish-move"),
    path(f"{ENDPOINT}/move/undo", moves.undo, name="endpoint-undo-move"),
    path(f"{ENDPOINT}/cost", endpoints.cost, name="endpoint-cost"),
    path(f"{ENDPOINT}/built", endpoints.built, name="endpoint-built"),
    path(f"{ENDPOINT}/load", endpoint_live.show, name="endpoint-live"),
    path(f"{ENDPOINT}/load/part", endpoint_live.part, name="endpoint-live-part"),
    path(f"{ENDPOINT}/load/live", endpoint_live.stream, name="endpoint-live-stream"),
    path(f"{ENDPOINT}/endpoint-ca.pem", endpoints.authority, name="endpoint-ca"),
    path(f"{ENDPOINT}/logs", endpoint_logs.show, name="endpoint-logs"),
    path(f"{ENDPOINT}/logs/ask", endpoint_logs.ask, name="endpoint-log-ask"),
    path(f"{ENDPOINT}/logs/<uuid:log>", endpoint_logs.part, name="endpoint-log"),
    path(f"{ENDPOINT}/benchmarks", endpoint_benchmarks.show, name="endpoint-benchmarks"),
    path(f"{ENDPOINT}/benchmarks/part", endpoint_benchmarks.part, name="endpoint-benchmarks-part"),
    path(f"{ENDPOINT}/benchmarks/new", endpoint_benchmarks.ask, name="endpoint-benchmark-new"),
    path(f"{ENDPOINT}/benchmarks/<str:benchmark>/cancel", endpoint_benchmarks.cancel, name="endpoint-benchmark-cancel"),
    *product("machine", machines),
    path("t/<str:tenant>/machines/<str:name>/power", machines.power, name="machine-power"),
    path("t/<str:tenant>/machines/<str:name>/console", machines.ask_console, name="machine-console-ask"),
    path("t/<str:tenant>/machines/<str:name>/console/<uuid:console>", machines.console, name="machine-console"),
    path("t/<str:tenant>/machines/<str:name>/rebuild", machines.rebuild, name="machine-rebuild"),
    path("t/<str:tenant>/machines/<str:name>/resize", machines.resize, name="machine-resize"),
    *product("namespace", namespaces),
    path("t/<str:tenant>/isolation", isolation.show, name="isolation"),
    path("t/<str:tenant>/isolation/<str:place>/certify", isolation.certify, name="isolation-certify"),
    path("t/<str:tenant>/quota", quota.show, name="quota"),
    path("t/<str:tenant>/quota/ask", quota.ask, name="quota-ask"),
    path("t/<str:tenant>/requests", requests.listed, name="requests"),
    path(REQUEST, requests.show, name="request"),
    path(f"{REQUEST}/edit", requests.edit, name="request-edit"),
    path(f"{REQUEST}/comment", requests.comment, name="request-comment"),
    path(f"{REQUEST}/withdraw", requests.withdraw, name="request-withdraw"),
    *OPERATIONS,
    *MONEY,
    # whoever decides
    path("ops/inbox", inbox.listed, name="inbox"),
    path("ops/inbox/equal", inbox.equal, name="inbox-equal"),
    path("ops/inbox/equal/approve", inbox.approve_equal, name="inbox-equal-approve"),
    path("ops/inbox/<str:key>", inbox.show, name="decide"),
    path("ops/inbox/<str:key>/decide", inbox.decide, name="request-decide"),
    path("ops/inbox/<str:key>/comment", inbox.comment, name="decide-comment"),
    *ESTATE,
    *PROVIDERS,
    *GOVERNANCE,
]

verify(urlpatterns)
