"""What real starts have taught about the estimates of models, and its reset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet

from tenants.api.serializers.base import Out, Page, page_of
from tenants.api.serializers.estimates import FitCorrectionOut, FitCorrectionQuery
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.models import FitCorrection
from tenants.operations import fit_corrections

FitCorrectionPage = page_of(FitCorrectionOut)


class FitCorrectionView(ApiView):
    """Corrections of estimates."""

    def rows(self, call: Call) -> QuerySet[FitCorrection]:  # noqa: ARG002
        """Return all corrections; the policy is for platform roles."""
        return fit_corrections.rows()

    def show(self, row: FitCorrection, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a correction as it stands."""
        return FitCorrectionOut.of(fit_corrections.standing(row))


class FitCorrections(FitCorrectionView):
    """All corrections."""

    @reads("fit-corrections.list", answers=FitCorrectionPage, query=FitCorrectionQuery)
    def get(self, call: Call) -> Page:
        """List what real starts have made of the estimates, by model and size."""
        rows = self.rows(call)
        if call.query.model is not None:
            rows = rows.filter(model__name=call.query.model)
        return self.page(call, rows, FitCorrectionPage)


class FitCorrectionItem(FitCorrectionView):
    """One correction."""

    key = "correction"

    @reads("fit-corrections.read", answers=FitCorrectionOut)
    def get(self, call: Call) -> Any:
        """Read a correction with the starts that count."""
        return call.target


class FitCorrectionReset(FitCorrectionView):
    """Forgetting."""

    key = "correction"

    @writes("fit-corrections.reset", answers=FitCorrectionOut)
    def post(self, call: Call) -> Any:
        """Forget what starts up to now have taught: estimates are as computed until the next start."""
        return fit_corrections.reset(correction=call.target, actor=call.actor, now=call.now, version=call.version)
