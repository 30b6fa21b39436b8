"""Keys of the last hop: by these a gateway proves itself to the model servers behind it. Nobody is ever shown one.

A revision has its own, made with it and sealed in its row, so a key changes exactly when servers are started anew: a
model server knows the one key that it was started with (`VLLM_API_KEY`). Revisions written before there were such keys
have none; their servers ask for none.
"""

from __future__ import annotations

import secrets
from uuid import UUID

from tenants import vault
from tenants.models import Revision

_TABLE = "tenants_revision"
_COLUMN = "hop_key_sealed"
_BYTES = 32


def make(revision: UUID) -> bytes:
    """Return a new key, sealed for the row of `revision`."""
    return vault.seal(secrets.token_urlsafe(_BYTES), table=_TABLE, column=_COLUMN, row=revision)


def plain(revision: Revision) -> str:
    """Return the key of a loaded revision, `""` where it has none. Raises `vault.VaultError`."""
    if revision.hop_key_sealed is None:
        return ""
    return vault.unseal(revision.hop_key_sealed, table=_TABLE, column=_COLUMN, row=revision.pk)
