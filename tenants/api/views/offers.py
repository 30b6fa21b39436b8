"""What the platform offers and for how much: served models, dated prices, the catalogue of GPU products."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from django.db.models import Prefetch, QuerySet

from tenants import gpu_catalogue, machine_images
from tenants.api.serializers.base import Out, Page, PageQuery, page_of
from tenants.api.serializers.platform import (
    CatalogueOut,
    GpuProductOut,
    MachineImageOut,
    MachineImagesOut,
    PriceListIn,
    PriceListOut,
    ServedModelChangeIn,
    ServedModelIn,
    ServedModelOut,
    ServedModelQuery,
)
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.models import Price, PriceList, Provider, ServedModel
from tenants.operations import pricing, served_models

ServedModelPage = page_of(ServedModelOut)
PriceListPage = page_of(PriceListOut)


class ServedModelView(ApiView):
    """Served models."""

    def rows(self, call: Call) -> QuerySet[ServedModel]:  # noqa: ARG002
        """Return what the caller may see: what is offered to all, and the own models of his tenants."""
        return ServedModel.objects.select_related("tenant")

    def show(self, row: ServedModel, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a served model."""
        return ServedModelOut.of(row)


class ServedModels(ServedModelView):
    """All served models."""

    @reads("served-models.list", answers=ServedModelPage, query=ServedModelQuery)
    def get(self, call: Call) -> Page:
        """List served models."""
        rows = self.rows(call)
        if call.query.enabled is not None:
            rows = rows.filter(enabled=call.query.enabled)
        return self.page(call, rows, ServedModelPage)

    @writes("served-models.create", body=ServedModelIn, answers=ServedModelOut, status=201)
    def post(self, call: Call) -> Any:
        """Add a model at a pinned commit."""
        body: ServedModelIn = call.body
        return served_models.create(ask=body.ask(), actor=call.actor, now=call.now)


class ServedModelItem(ServedModelView):
    """One served model."""

    key = "model"

    @reads("served-models.read", answers=ServedModelOut)
    def get(self, call: Call) -> Any:
        """Read a served model."""
        return call.target

    @writes("served-models.update", body=ServedModelChangeIn, answers=ServedModelOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Enable or disable a served model, or correct its licence or gating."""
        return served_models.update(
            model=call.target,
            enabled=call.body.enabled,
            licence=call.body.licence,
            gating=call.body.gating,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )


class PriceListView(ApiView):
    """Price lists."""

    def rows(self, call: Call) -> QuerySet[PriceList]:  # noqa: ARG002
        """Return all price lists with their prices."""
        prices = Prefetch("prices", Price.objects.order_by("item"))
        return PriceList.objects.select_related("provider").prefetch_related(prices)

    def show(self, row: PriceList, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a price list."""
        return PriceListOut.of(row)


class PriceLists(PriceListView):
    """All price lists."""

    @reads("prices.list", answers=PriceListPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List price lists."""
        return self.page(call, self.rows(call), PriceListPage)

    @writes("prices.create", body=PriceListIn, answers=PriceListOut, status=201)
    def post(self, call: Call) -> Any:
        """Publish prices from a date on; they are never changed backwards."""
        body: PriceListIn = call.body
        provider = call.named(Provider.objects.all, body.provider)
        return pricing.publish(
            name=body.name,
            prices={item: Decimal(amount) for item, amount in body.prices.items()},
            valid_from=body.valid_from,
            provider=provider,
            site=body.site,
            currency=body.currency,
            actor=call.actor,
            now=call.now,
        )


class PriceListItem(PriceListView):
    """One price list."""

    key = "price_list"

    @reads("prices.read", answers=PriceListOut)
    def get(self, call: Call) -> Any:
        """Read a price list."""
        return call.target


class Catalogue(ApiView):
    """GPU products."""

    @reads("catalogue.list", answers=CatalogueOut)
    def get(self, call: Call) -> Out:  # noqa: ARG002
        """List every GPU product with its MIG profiles and their source."""
        return CatalogueOut(items=[GpuProductOut.of(product) for product in gpu_catalogue.products()])


class MachineImages(ApiView):
    """Images of machines."""

    @reads("machine-images.list", answers=MachineImagesOut)
    def get(self, call: Call) -> Out:  # noqa: ARG002
        """List every image of which machines can be made: what the enabled providers say that they have."""
        return MachineImagesOut(items=[MachineImageOut(name=name) for name in machine_images.offered()])
