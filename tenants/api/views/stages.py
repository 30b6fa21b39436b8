"""Files of served models at providers: list, ask, take away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet

from tenants import access
from tenants.api.serializers.base import Out, Page, page_of
from tenants.api.serializers.stages import ModelStageIn, ModelStageOut, ModelStageQuery
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.models import ModelStage, Provider, ServedModel
from tenants.operations import model_stages
from tenants.transactions import acting

ModelStagePage = page_of(ModelStageOut)


class ModelStageView(ApiView):
    """Files of models at providers."""

    def rows(self, call: Call) -> QuerySet[ModelStage]:  # noqa: ARG002
        """Return all stages; the policy is for platform roles."""
        return model_stages.rows()

    def show(self, row: ModelStage, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a stage."""
        return ModelStageOut.of(row)


class ModelStages(ModelStageView):
    """All stages."""

    @reads("model-stages.list", answers=ModelStagePage, query=ModelStageQuery)
    def get(self, call: Call) -> Page:
        """List files of models at providers, and how far those on their way are."""
        rows = self.rows(call)
        if call.query.model is not None:
            rows = rows.filter(model__name=call.query.model)
        if call.query.provider is not None:
            rows = rows.filter(provider__name=call.query.provider)
        return self.page(call, rows, ModelStagePage, at="asked_at")

    @writes("model-stages.create", body=ModelStageIn, answers=ModelStageOut, status=201)
    def post(self, call: Call) -> Any:
        """Have a model's files brought to a provider before an endpoint asks for them."""
        with acting(call.actor):
            provider = access.find(Provider.objects.all(), call.body.provider)
            model = access.find(ServedModel.objects.all(), call.body.model)
        return model_stages.stage(provider=provider, model=model, actor=call.actor, now=call.now)


class ModelStageItem(ModelStageView):
    """One stage."""

    key = "stage"

    @reads("model-stages.read", answers=ModelStageOut)
    def get(self, call: Call) -> Any:
        """Read how far a model's files are."""
        return call.target


class ModelStageRemove(ModelStageView):
    """Taking away."""

    key = "stage"

    @writes("model-stages.remove", answers=ModelStageOut)
    def post(self, call: Call) -> Any:
        """Have a model's files taken away from a provider; what serves from them goes on."""
        return model_stages.remove(stage=call.target, actor=call.actor, now=call.now, version=call.version)
