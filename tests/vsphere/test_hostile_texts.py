"""Ten thousand different hostile texts through the pure builders: equal in structure afterwards, or refused by name."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import pytest
import yaml
from pyVmomi.SoapAdapter import Deserialize, SerializeToStr

from provisioners.driver import DriverRejected, Kind, Ref
from provisioners.vsphere import cloud_init, vms
from provisioners.vsphere.names import index_in, marker, parse_marker, parse_vm_name, vm_name
from tests.vsphere.test_builders import KEY, SEED, WANT, WORDS, bare_devices, spec_of

UID = UUID("6f1c2a52-0d7b-4a8e-9f0e-3a5d9f7b1c11")
REF = Ref(Kind.MACHINE, UID, UID)
HOME = Ref(Kind.BOUNDARY, UID, UID)
MORE = (
    "/", "%2f", "..", "а", "Ａ", "\u200b", "\u202e", "\x1b[", "\n", "\r", "\t", " ", "${", "}", "$$", "%", "%%", "`",
    "\\n", "<", ">", "<![CDATA[", "--", "<!--", "{", "[", "]", ",", ": ", "# ", "- ", "? ", "| ", "> ", "* ", "& ",
    "! ", "@", "---", "...", "true", "1e3", "1_000", "2026-01-01", "=", "<<", "\ufffe", "\uffff", "\U0010ffff", "é",
    "e\u0301", "\x00", "\x9f", f"tn-vm-{UID.hex}", f"machine/{UID}/{UID}", KEY,
)  # fmt: skip
RANGES = ((0, 0x20), (0x20, 0x7F), (0x7F, 0xA0), (0xA0, 0x250), (0x370, 0x530), (0x2000, 0x2070), (0xE000, 0xE010),
          (0xFFF0, 0x10000), (0x1F300, 0x1F700), (0x10FFF0, 0x110000))  # fmt: skip
TOGETHER = 25
"""Texts in one VM's configuration."""


def hostile(count: int) -> list[str]:
    """Return so many different texts, the same at every run: words that mean something somewhere, and characters."""
    dice = random.Random(5)
    found: dict[str, None] = {}
    while len(found) < count:
        parts = [
            dice.choice((*WORDS, *MORE)) if dice.random() < 0.6 else chr(dice.randrange(*dice.choice(RANGES)))
            for _ in range(dice.choice([1, 2, 3, 5, 8, 30]))
        ]
        found["".join(parts)] = None
    return list(found)


def assert_equal_afterwards(texts: Sequence[str]) -> None:
    """See that each text comes out of cloud-init's reader, and all of it out of the ConfigSpec's XML, as it went in."""
    files = {f"/etc/tenantry/{at}": (text, "0600") for at, text in enumerate(texts)}
    words = tuple(text.replace("\0", "") for text in texts)
    record = vms.record_text("0" * 16, texts=list(texts))
    info = cloud_init.guestinfo(replace(SEED, files=files, commands=(("/usr/bin/printf", *words),)))
    extra = {**info, "tenantry.want.configure": record}

    spec = spec_of(WANT, bare_devices(), extra=extra)
    back = Deserialize(SerializeToStr(spec))

    assert SerializeToStr(back) == SerializeToStr(spec)
    told = {one.key: one.value for one in back.extraConfig}
    assert {key: told[key] for key in extra} == extra
    assert json.loads(told["tenantry.want.configure"])["texts"] == list(texts)
    user = yaml.safe_load(cloud_init.unpacked(told["guestinfo.userdata"]))
    written = {one["path"]: one["content"] for one in user["write_files"]}
    assert [written[path] for path in files] == list(texts)
    assert user["runcmd"] == [["/usr/bin/printf", *words]]
    [account] = user["users"]
    assert account["ssh_authorized_keys"] == list(SEED.ssh_keys)


def refusals(text: str) -> dict[str, str]:
    """Return what is said of a text in each field that means something in a guest; empty where it is taken."""
    seeds = {
        "hostname": replace(SEED, hostname=text),
        "ssh_keys[0]": replace(SEED, ssh_keys=(text,)),
        "ssh_ca": replace(SEED, ssh_ca=text or " "),
        "ssh_principals[0]": replace(SEED, ssh_principals=(text,)),
        "ssh_revoked_url": replace(SEED, ssh_revoked_url=text or " "),
        "files": replace(SEED, files={text: ("", "0644")}),
    }
    found = {}
    for field, seed in seeds.items():
        found[field] = ""
        try:
            cloud_init.metadata(seed)
            cloud_init.userdata(seed)
        except DriverRejected as error:
            found[field] = error.detail
    return found


def assert_refused_or_plain(text: str) -> None:
    for field, said in refusals(text).items():
        plain = text.isascii() and text.isprintable() and (" " not in text or field in {"ssh_keys[0]", "ssh_ca"})
        assert said.startswith(f"{field}: ") or (not said and plain and not set(text) & set("$%`\\\"'<>{}")), (
            field,
            text,
        )


def assert_names_nothing(text: str) -> None:
    """See that no text makes, or is taken for, a name or a mark that is not made of ids."""
    for seen in (text, f"{vm_name(REF, None)}{text}", f"{text}{vm_name(REF, None)}"):
        if text and seen != vm_name(REF, None):
            parsed = parse_vm_name(seen, HOME)
            assert parsed is None or vm_name(*parsed) == seen
            with pytest.raises(LookupError):
                index_in(REF, seen)
        found = parse_marker(seen)
        assert found is None or marker(*found) == seen


def check(texts: Sequence[str]) -> None:
    for at in range(0, len(texts), TOGETHER):
        assert_equal_afterwards(texts[at : at + TOGETHER])
    for text in texts:
        assert_refused_or_plain(text)
        assert_names_nothing(text)


def test_hostile_texts_come_out_as_they_went_in_or_are_refused_with_their_field() -> None:
    check(hostile(300))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_hostile_texts_come_out_as_they_went_in_or_are_refused_with_their_field() -> None:
    texts = hostile(10_000)

    assert len(set(texts)) == 10_000
    check(texts)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_half_a_character_is_refused_and_the_refusal_says_where(text: str) -> None:
    with pytest.raises(DriverRejected, match=r"^userdata: holds half a character"):
        cloud_init.guestinfo(replace(SEED, files={"/etc/x": (text, "0644")}))
