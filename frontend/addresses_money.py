"""Addresses of a tenant's costs, budget and history, and of renewing many at once."""

from __future__ import annotations

from typing import Any, Final

from django.urls import path

from frontend.views import activity, cost, renewals

MONEY: Final[list[Any]] = [
    path("t/<str:tenant>/cost", cost.show, name="cost"),
    path("t/<str:tenant>/cost/budget", cost.budget, name="cost-budget"),
    path("t/<str:tenant>/cost/budget/remove", cost.remove_budget, name="cost-budget-remove"),
    path("t/<str:tenant>/cost/<str:name>", cost.one, name="cost-of"),
    path("t/<str:tenant>/activity", activity.listed, name="activity"),
    path("t/<str:tenant>/activity/verify", activity.verify, name="activity-verify"),
    path("t/<str:tenant>/activity/<int:number>", activity.show, name="activity-one"),
    path("t/<str:tenant>/renew", renewals.renew, name="renew"),
    path("t/<str:tenant>/renew/done", renewals.done, name="renew-done"),
]
