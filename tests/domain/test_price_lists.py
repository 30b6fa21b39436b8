"""Price lists are dated and never change what was charged; served models are pinned."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from tenants.errors import Conflict, Forbidden, InvalidSpec, PreconditionFailed
from tenants.models import Event, Price, PriceList, ServedModel
from tenants.operations import pricing, served_models
from tenants.operations.served_models import ModelAsk
from tenants.states import PlatformRole, Role
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

GPU = "gpu.H100-80GB.slices"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def operator():
    return factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))


def publish(operator, name="2026", valid_from=NOW, prices=None, **values):
    return pricing.publish(
        name=name, prices=prices or {GPU: Decimal("0.50")}, valid_from=valid_from, actor=operator, now=NOW, **values
    )


def test_the_first_list_may_begin_in_the_past_and_no_later_one(operator):
    publish(operator, valid_from=NOW - timedelta(days=30))

    with pytest.raises(InvalidSpec) as refusal:
        publish(operator, "again", valid_from=NOW - timedelta(seconds=1))

    assert (refusal.value.field, refusal.value.specific_code) == ("valid_from", "in-the-past")
    assert PriceList.objects.count() == 1


def test_a_new_list_holds_from_its_date_on_and_splits_the_cost(operator):
    publish(operator, valid_from=NOW - timedelta(days=1))
    publish(operator, "dearer", valid_from=NOW + timedelta(hours=2), prices={GPU: Decimal(1)})

    cost = pricing.cost_of({GPU: 8}, NOW, NOW + timedelta(hours=3))

    assert cost == {"total": "16.000000", "currency": "EUR", "until": (NOW + timedelta(hours=3)).isoformat()}


def test_a_providers_price_binds_tighter_than_the_general_one(operator):
    site = factories.provider(name="berlin-1")
    publish(operator)
    publish(operator, "berlin", provider=site, prices={GPU: Decimal("0.25")})

    end = NOW + timedelta(hours=1)

    assert pricing.cost_of({GPU: 4}, NOW, end, provider="berlin-1")["total"] == "1.000000"
    assert pricing.cost_of({GPU: 4}, NOW, end, provider="munich-1")["total"] == "2.000000"


def test_what_has_no_price_has_no_cost(operator):
    publish(operator)

    assert pricing.cost_of({GPU: 1, "vcpu": 1}, NOW, NOW + timedelta(hours=1)) is None


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"prices": {"gpu.H100.slices": Decimal(1)}}, "prices.gpu.H100.slices"),
        ({"prices": {"endpoints": Decimal(1)}}, "prices.endpoints"),
        ({"prices": {GPU: Decimal(-1)}}, f"prices.{GPU}"),
        ({"prices": {GPU: Decimal("NaN")}}, f"prices.{GPU}"),
        ({"prices": {GPU: Decimal("0.0000000001")}}, f"prices.{GPU}"),
        ({"currency": "eur"}, "currency"),
        ({"currency": "EURO"}, "currency"),
        ({"site": "Berlin"}, "site"),
        ({"name": "a\x00"}, "name"),
    ],
)
def test_a_bad_price_list_names_its_field(operator, values, field):
    with pytest.raises(InvalidSpec) as refusal:
        publish(operator, **values)

    assert refusal.value.field == field
    assert (PriceList.objects.count(), Price.objects.count()) == (0, 0)


def test_two_lists_of_one_start_are_a_conflict(operator):
    publish(operator)

    with pytest.raises(Conflict):
        publish(operator, "other")


def test_all_prices_are_in_one_currency(operator):
    publish(operator)

    with pytest.raises(InvalidSpec):
        publish(operator, "usd", valid_from=NOW + timedelta(days=1), currency="USD")


def test_only_operators_set_prices():
    with pytest.raises(Forbidden):
        publish(factories.actor(factories.member(factories.tenant(), Role.OWNER)))


# --- served models ----------------------------------------------------------------------------------


def create(operator, **values):
    values = {"name": "llama", "repository": "meta-llama/Llama-3.1-8B-Instruct", "commit": COMMIT} | values
    return served_models.create(ask=ModelAsk(**values), actor=operator, now=NOW)


def test_a_model_is_pinned_and_can_be_switched_off(operator):
    row = create(operator)

    served_models.update(model=row, enabled=False, actor=operator, now=NOW, version=1)

    row.refresh_from_db()
    assert (row.commit, row.enabled, row.version) == (COMMIT, False, 2)
    assert Event.objects.filter(kind="served-model.changed", data__enabled=False).count() == 1
    with pytest.raises(PreconditionFailed):
        served_models.update(model=row, enabled=True, actor=operator, now=NOW, version=1)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"commit": "main"}, "commit"),
        ({"commit": "v1.0"}, "commit"),
        ({"commit": COMMIT[:39]}, "commit"),
        ({"commit": COMMIT.upper()}, "commit"),
        ({"repository": "llama"}, "repository"),
        ({"repository": "a/../b"}, "repository"),
        ({"repository": "--flag/x"}, "repository"),
        ({"repository": "a/b..c"}, "repository"),
        ({"name": "Llama 3"}, "name"),
        ({"repository": "acme/unknown"}, "config"),
        ({"source": "file:///models"}, "source"),
        ({"source": "nfs://files/../etc"}, "source"),
        ({"quantisation": "3bit"}, "quantisation"),
        ({"licence": "x" * 81}, "licence"),
    ],
)
def test_a_bad_model_names_its_field(operator, values, field):
    with pytest.raises(InvalidSpec) as refusal:
        create(operator, **values)

    assert refusal.value.field == field
    assert ServedModel.objects.count() == 0


def test_a_models_name_is_taken_once(operator):
    create(operator)

    with pytest.raises(Conflict):
        create(operator, commit="f" * 40)
