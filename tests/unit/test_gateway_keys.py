"""Endpoint keys and agent credentials: form, checksum, digest."""

from __future__ import annotations

import hashlib
import re
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioners.gateway import keys
from tenants import credentials


def test_a_key_reads_back_with_its_parts() -> None:
    new = keys.make("prod")

    read = keys.parse(new.plain)

    assert re.fullmatch(r"tnt_prod_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}", new.plain)
    assert (read.env, read.id, read.digest) == ("prod", new.id, new.digest)
    assert new.digest == hashlib.sha256(new.plain.encode()).hexdigest()


def test_a_thousand_keys_are_a_thousand_keys() -> None:
    made = [keys.make() for _ in range(1000)]

    assert len({new.plain for new in made}) == len({new.id for new in made}) == 1000


@given(position=st.integers(min_value=0), letter=st.sampled_from("0123456789abcXYZ_"))
def test_any_one_changed_letter_is_a_malformed_key(position: int, letter: str) -> None:
    plain = keys.make("test").plain
    position %= len(plain)
    if plain[position] == letter:
        letter = "~"

    with pytest.raises(keys.MalformedKey):
        keys.parse(plain[:position] + letter + plain[position + 1 :])


@given(st.text())
def test_any_text_is_a_malformed_key_and_nothing_worse(text: str) -> None:
    with pytest.raises(keys.MalformedKey) as caught:
        keys.parse(text)

    assert not text or len(text) < 6 or text not in str(caught.value)


@pytest.mark.parametrize("env", ["", "Prod", "a_b", "a" * 17, "1a", "é"])
def test_an_environment_that_would_not_read_back_is_refused(env: str) -> None:
    with pytest.raises(ValueError, match="env must be"):
        keys.make(env)


def test_a_key_is_found_in_a_text_and_not_shown_by_repr() -> None:
    new = keys.make("live")

    assert [found[0] for found in keys.FINDER.finditer(f'posted "{new.plain}" in a chat')] == [new.plain]
    assert new.plain[-20:] not in repr(new)


def test_an_agent_credential_names_its_gateway() -> None:
    uid = uuid4()
    new = keys.make_agent_credential(uid)

    assert keys.parse_agent_credential(new.plain) == (uid, new.digest)
    for other in (keys.make().plain, keys.make_enrolment_token().plain, new.plain + "x", new.plain[:-1], ""):
        with pytest.raises(keys.MalformedKey):
            keys.parse_agent_credential(other)


def test_digests_are_compared_whole() -> None:
    digest = keys.digest("a")

    assert keys.equal(digest, keys.digest("a"))
    assert not keys.equal(digest, keys.digest("b"))
    assert not keys.equal(digest, digest[:-1])


def test_the_control_planes_keys_and_ours_are_one_form() -> None:
    theirs, ours = credentials.make("test"), keys.make("test")

    read_here, read_there = keys.parse(theirs.plain), credentials.parse(ours.plain)

    assert (read_here.env, read_here.id, read_here.digest) == ("test", theirs.id, theirs.digest.hex())
    assert (read_there.env, read_there.id, read_there.digest.hex()) == ("test", ours.id, ours.digest)
    assert keys.FINDER.pattern == credentials.FINDER.pattern
