"""A model as somebody asks for it: to be offered by an operator, or by a tenant as his own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from tenants.api.serializers.base import In, line
from tenants.models.product import MODEL_SOURCE
from tenants.operations.served_models import ModelAsk
from tenants.states import ModelTask


class ModelPayload(In):
    """A model at a pinned commit. One that the catalogue does not know is checked by its `config.json`."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,58}[a-z0-9])?$", max_length=60)]
    repository: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
    ]
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40,64}$")]
    licence: line(0, 80) = ""  # type: ignore[valid-type]
    gating: line(0, 120) = Field("", description="What its publisher asks for before the weights may be loaded.")  # type: ignore[valid-type]
    source: Annotated[str, StringConstraints(pattern=MODEL_SOURCE, max_length=200)] = Field(
        "hub",
        description="`hub`, or a mirror with `<repository>/<commit>` in it: `s3://bucket/prefix`, `nfs://server/export`.",
    )
    quantisation: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,20}$")] = "native"
    task: ModelTask | None = Field(None, description="Left out: what its architecture is usually for.")
    config: dict[str, Any] | None = Field(
        None, description="Its `config.json`; needed where the catalogue has no figures of the repository."
    )
    files: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(min_length=1, max_length=200)], Annotated[int, Field(ge=0, le=2**53)]
            ],
            Field(max_length=2000),
        ]
        | None
    ) = Field(None, description="Path → bytes of what lies at the commit: then weights are what they weigh.")

    def ask(self) -> ModelAsk:
        """Return it as the operation takes it."""
        return ModelAsk(
            name=self.name,
            repository=self.repository,
            commit=self.commit,
            licence=self.licence,
            gating=self.gating,
            source=self.source,
            quantisation=self.quantisation,
            task=self.task,
            config=self.config,
            files=self.files,
        )
