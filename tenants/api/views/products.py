"""What the three products share."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import Prefetch, QuerySet

from tenants import access
from tenants.api.views.base import ApiView, Call
from tenants.errors import InvalidSpec
from tenants.models import (
    Unit,
)
from tenants.models.fields import slug_validator

UNITS = Prefetch("allocation__units", Unit.objects.select_related("host").order_by("index"))


class ProductView(ApiView):
    """What the three products share. `PUT` makes an object or brings it to what is asked."""

    model: ClassVar[type[Any]]

    def rows(self, call: Call) -> QuerySet[Any]:
        """Return the products the actor may see."""
        return (
            access.scoped(self.model, call.actor, tenant=call.tenant)
            .select_related("tenant", "allocation", "boundary__provider")
            .prefetch_related(UNITS)
        )

    def put_target(self, call: Call) -> Any:
        """Return the live object of the name, None when it is to be made. Raises `InvalidSpec` for a bad name."""
        name = call.path["name"]
        found = self.rows(call).filter(name=name, released_at__isnull=True).first()
        if found is None:
            try:
                slug_validator(name)
            except Exception as error:
                raise InvalidSpec("Use a DNS label: a-z, 0-9, '-', at most 40 characters.", field="name") from error
        return found

    def find(self, call: Call) -> Any:
        """Return the named object; a `PUT` may name one that is not there yet."""
        if call.request.method != "PUT":
            return super().find(call)
        return self.put_target(call)


class WithinProduct(ApiView):
    """What belongs to one product, the target: a way in, a screen."""

    within: ClassVar[type[Any]]

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant and product."""
        super().locate(declared, call)
        found = access.scoped(self.within, call.actor, tenant=call.tenant).select_related("tenant")
        call.target = access.find(found, call.path["name"])
