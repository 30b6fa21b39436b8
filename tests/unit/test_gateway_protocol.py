"""Documents between gateway and control plane: one byte form, signatures, strict reading."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from provisioners.gateway.protocol import (
    Backend,
    BadDocument,
    ConfigDocument,
    EndpointConfig,
    EndpointKey,
    EnrolRequest,
    Envelope,
    UsageBatch,
    canonical,
    parse,
)
from provisioners.gateway.signing import BadSignature, Signer, verify

AT = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
SIGNER = Signer(bytes(range(32)))
TRUSTED = {SIGNER.key_id: SIGNER.public_key}


def document(**fields: object) -> ConfigDocument:
    endpoint = EndpointConfig(
        uid=UUID(int=3),
        name="alpha",
        tenant=UUID(int=4),
        hosts=("alpha.team.example",),
        models=("alpha",),
        backends=(Backend(unit_uid=UUID(int=5), url="http://10.0.0.1:8000/v1", revision=2),),
        keys=(EndpointKey(id="k1", digest="ab" * 32, expires_at=AT),),
    )
    given = {"version": 7, "boundary_uid": UUID(int=1), "gateway_uid": UUID(int=2), "issued_at": AT, **fields}
    return ConfigDocument(**{"endpoints": (endpoint,), **given})  # type: ignore[arg-type]


def test_a_document_comes_out_of_its_envelope_as_it_went_in() -> None:
    envelope = SIGNER.sign(document())

    assert verify(envelope, TRUSTED) == document()
    assert verify(parse(Envelope, envelope.model_dump_json()), TRUSTED) == document()
    assert base64.b64decode(envelope.payload) == canonical(document())


def test_the_byte_form_does_not_depend_on_order_and_names_its_schema() -> None:
    content = json.loads(canonical(document()))

    assert list(content) == sorted(content)
    assert content["schema"] == 1
    assert canonical(parse(ConfigDocument, json.dumps(dict(reversed(content.items()))))) == canonical(document())


def test_signatures_are_those_of_rfc_8032_over_prefix_and_payload() -> None:
    envelope = SIGNER.sign(document())
    again = Signer(bytes(range(32))).sign(document())

    assert envelope == again
    assert SIGNER.public_key == "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="


@pytest.mark.parametrize("field", ["payload", "signature", "key_id"])
def test_an_envelope_with_anything_changed_is_refused(field: str) -> None:
    envelope = SIGNER.sign(document())
    other = SIGNER.sign(document(version=8))
    stranger, _ = Signer.generate()

    changed = [
        envelope.model_copy(update={field: "" if field != "key_id" else stranger.key_id}),
        envelope.model_copy(update={field: "%%%"}),
        envelope.model_copy(update={field: getattr(stranger.sign(document()) if field == "key_id" else other, field)}),
    ]

    for tampered in changed:
        with pytest.raises(BadSignature):
            verify(tampered, TRUSTED)


def test_every_single_flipped_bit_of_the_payload_is_noticed() -> None:
    envelope = SIGNER.sign(document())
    payload = base64.b64decode(envelope.payload)

    for position in range(0, len(payload), 17):
        flipped = bytearray(payload)
        flipped[position] ^= 1
        with pytest.raises(BadSignature):
            verify(envelope.model_copy(update={"payload": base64.b64encode(flipped).decode()}), TRUSTED)


def test_a_strangers_signature_is_refused_even_under_our_key_id() -> None:
    stranger, _ = Signer.generate()

    with pytest.raises(BadSignature):
        verify(stranger.sign(document()), TRUSTED)
    with pytest.raises(BadSignature):
        verify(stranger.sign(document()).model_copy(update={"key_id": SIGNER.key_id}), TRUSTED)


def test_an_unknown_schema_is_refused_and_an_unknown_field_is_not() -> None:
    content = json.loads(canonical(document()))

    assert parse(ConfigDocument, json.dumps({**content, "later": 1})) == document()
    with pytest.raises(BadDocument, match="schema"):
        parse(ConfigDocument, json.dumps({**content, "schema": 2}))


def test_what_a_gateway_writes_may_hold_no_unknown_field() -> None:
    batch = json.loads(UsageBatch(id=uuid4(), gateway_uid=uuid4(), records=()).model_dump_json())

    with pytest.raises(BadDocument, match="surprise"):
        parse(UsageBatch, json.dumps({**batch, "surprise": 1}))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/v1",
        "file:///etc/passwd",
        "http://",
        "http://user:pw@x/v1",
        "http://x/v1?a=b",
        "http://x/v1#f",
        "x/v1",
        "",
    ],
)
def test_a_backend_must_have_a_plain_http_address(url: str) -> None:
    with pytest.raises(ValueError, match="must be http"):
        Backend(unit_uid=uuid4(), url=url, revision=1)


def test_a_bad_document_is_named_by_field_and_never_by_value() -> None:
    with pytest.raises(BadDocument) as caught:
        parse(EnrolRequest, json.dumps({"token": ["tne_secret"], "gateway_uid": "x", "extra": "tne_secret"}))

    assert "token" in str(caught.value)
    assert "tne_secret" not in str(caught.value)


def test_tokens_and_private_keys_are_in_no_repr() -> None:
    signer, seed = Signer.generate()
    request = EnrolRequest(token="tne_secret", gateway_uid=uuid4(), credential_digest="ab" * 32, version="1")

    assert "tne_secret" not in repr(request)
    assert seed.hex() not in repr(signer)
    assert repr(signer) == f"Signer({signer.key_id})"
