"""What is known of a served model: the catalogue's figures, else what its checked `config.json` says. Plain.

The catalogue knows repositories by name and was looked after by people, so it goes first; a model that it does not have
is known by its own configuration (`tenants.model_configs`), or not at all.
"""

from __future__ import annotations

from tenants import model_configs, models_catalogue
from tenants.models import ServedModel
from tenants.models_catalogue import Quantisation, ServedModelData, UnknownModel


def of(row: ServedModel) -> ServedModelData | None:
    """Return the figures of a served model, None where nobody knows them."""
    try:
        return models_catalogue.model(row.repository)
    except UnknownModel:
        return model_configs.facts_from(row.repository, row.geometry)


def quantisation_of(row: ServedModel) -> Quantisation:
    """Return the form of its weights; that of its publisher where the row says none that is known."""
    try:
        return Quantisation(row.quantisation)
    except ValueError:
        return Quantisation.NATIVE
