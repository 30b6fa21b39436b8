"""Tokens and keys have one form, read alike by the control plane and by gateways."""

import pytest

from provisioners.gateway import keys
from tenants import credentials


def test_what_the_control_plane_makes_a_gateway_reads():
    made = credentials.make("demo")

    seen = keys.parse(made.plain)

    assert (seen.env, seen.id, seen.digest) == ("demo", made.id, made.digest.hex())


def test_what_a_gateway_makes_the_control_plane_reads():
    made = keys.make("demo")

    seen = credentials.parse(made.plain)

    assert (seen.env, seen.id, seen.digest.hex()) == ("demo", made.id, made.digest)


def test_a_changed_character_is_told_by_the_checksum():
    plain = credentials.make("demo").plain
    wrong = plain[:-1] + ("0" if plain[-1] != "0" else "1")

    with pytest.raises(credentials.MalformedSecret):
        credentials.parse(wrong)


@pytest.mark.parametrize("text", ["", "tnt_", "tnt_demo_x_y", "Bearer x", "tnt_DEMO_000000000000_" + "0" * 38])
def test_what_has_another_form_is_refused(text):
    with pytest.raises(credentials.MalformedSecret):
        credentials.parse(text)


def test_the_plain_text_is_in_no_repr():
    made = credentials.make("demo")

    assert repr(made) == f"NewSecret(id={made.id!r})"


def test_the_environment_must_start_with_a_letter():
    with pytest.raises(ValueError, match="starting with a letter"):
        credentials.make("1a")
