"""Certificates of endpoints: what an operator may give, and what is signed for whom."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from provisioners import tls_settings
from tenants import endpoint_tls
from tenants.endpoint_tls import Unfit
from tests.tls import Ca, pem_of

NOW = datetime.now(UTC).replace(microsecond=0)
ZONE = "models.example.net"


def request_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, *names: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])] if names else [])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
        )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()


def authority(ca: Ca) -> endpoint_tls.Authority:
    return endpoint_tls.read_authority(ca.bundle, now=NOW)


def signed(ca: Ca, request: str) -> tuple[endpoint_tls.Issued, x509.Certificate]:
    issued = endpoint_tls.sign(authority(ca), endpoint_tls.public_key_of(request), names=[f"*.acme.{ZONE}"], now=NOW)
    return issued, x509.load_pem_x509_certificates(issued.chain_pem.encode())[0]


def why(call: object, *given: object, **named: object) -> str:
    with pytest.raises(Unfit) as raised:
        call(*given, **named)  # type: ignore[operator]
    return str(raised.value)


# --- signing --------------------------------------------------------------------------------------


def test_an_authority_signs_the_names_that_it_is_told_and_none_that_the_request_asks_for() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = request_of(key, f"*.other.{ZONE}", "bank.example.com")

    issued, made = signed(Ca.make(within=ZONE), request)

    assert endpoint_tls.names_of(made) == (f"*.acme.{ZONE}",)
    assert made.subject.rfc4514_string() == f"CN=*.acme.{ZONE}"
    assert made.public_key() == key.public_key()
    assert (issued.key_pem, issued.names) == ("", (f"*.acme.{ZONE}",))
    assert made.not_valid_after_utc == NOW + timedelta(days=30)
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_what_an_authority_below_a_root_signs_is_believed_by_who_trusts_the_root() -> None:
    root = Ca.make("root")
    below = Ca.make("issuing", under=root, within=ZONE)

    issued, made = signed(below, request_of(ec.generate_private_key(ec.SECP256R1())))
    shown = x509.load_pem_x509_certificates(issued.chain_pem.encode())

    assert [one.subject for one in shown] == [made.subject, below.certificate.subject]
    assert authority(below).root_pem == root.pem
    store = Store([root.certificate])
    verifier = PolicyBuilder().store(store).time(NOW).build_server_verifier(x509.DNSName(f"chat.acme.{ZONE}"))
    assert len(verifier.verify(shown[0], shown[1:])) == 3


def test_a_certificate_ends_no_later_than_its_authority_and_one_that_ends_signs_nothing() -> None:
    request = request_of(ec.generate_private_key(ec.SECP256R1()))

    _, made = signed(Ca.make(days=10, at=NOW), request)

    assert made.not_valid_after_utc == NOW + timedelta(days=10)
    key = endpoint_tls.public_key_of(request)
    ending = authority(Ca.make(days=0.02, at=NOW))
    assert "an operator gives a new one" in why(endpoint_tls.sign, ending, key, names=["*.a.b"], now=NOW)


@pytest.mark.parametrize("request_pem", ["", "nonsense", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
def test_what_is_no_request_is_refused(request_pem: str) -> None:
    assert why(endpoint_tls.public_key_of, request_pem) == "The request cannot be read."


def test_a_request_with_another_kind_of_key_or_a_wrong_proof_is_refused() -> None:
    weak = request_of(rsa.generate_private_key(65537, 1024))
    strange = request_of(ed25519.Ed25519PrivateKey.generate())
    good = x509.load_pem_x509_csr(request_of(ec.generate_private_key(ec.SECP256R1())).encode())
    raw = bytearray(good.public_bytes(Encoding.DER))
    raw[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(raw)).public_bytes(Encoding.PEM).decode()

    assert "ECDSA" in why(endpoint_tls.public_key_of, weak)
    assert "ECDSA" in why(endpoint_tls.public_key_of, strange)
    assert why(endpoint_tls.public_key_of, forged) == "The request is not signed with its own key."


# --- authorities that are given -------------------------------------------------------------------


def test_an_authority_is_refused_with_what_is_wrong() -> None:
    good, other = Ca.make(), Ca.make()
    below = Ca.make("issuing", under=good)
    locked = good.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")).decode()

    def refused(text: str) -> str:
        return why(endpoint_tls.read_authority, text, now=NOW)

    assert "There is no certificate" in refused(pem_of(good.key))
    assert "one private key, of the authority; there are 0" in refused(good.pem)
    assert refused(good.pem + pem_of(other.key)) == "The key does not fit the certificate."
    assert "locked with a password" in refused(good.pem + locked)
    assert "no authority" in refused(Ca.make(is_ca=False).bundle)
    assert "ended on" in refused(Ca.make(days=-0.5).bundle)
    assert "up to the root" in refused(below.pem + pem_of(below.key))
    assert "cannot be read" in refused(good.bundle.replace("MII", "MIX", 1))


def test_an_authority_that_may_not_sign_for_the_zone_is_refused() -> None:
    judge = endpoint_tls.judge_authority

    judge(authority(Ca.make(within="example.net")), ZONE)
    judge(authority(Ca.make(within=ZONE)), ZONE)
    assert "may sign for example.org only" in why(judge, authority(Ca.make(within="example.org")), ZONE)
    assert "may sign for acme.models.example.net only" in why(judge, authority(Ca.make(within=f"acme.{ZONE}")), ZONE)
    above = Ca.make("root", within="example.org")
    assert "example.org only" in why(judge, authority(Ca.make(under=above)), ZONE)


# --- certificates that are given ------------------------------------------------------------------


def test_each_tenant_is_given_its_own_certificate_and_key() -> None:
    ca = Ca.make()
    given = endpoint_tls.read_given(ca.server(f"*.acme.{ZONE}") + ca.server(f"chat.beta.{ZONE}", f"b.beta.{ZONE}"))
    endpoint_tls.judge_given(given, ZONE, now=NOW)

    acme = endpoint_tls.hand_out(given, tenant="acme", zone=ZONE, now=NOW)
    beta = endpoint_tls.hand_out(given, tenant="beta", zone=ZONE, now=NOW)

    assert (acme.names, beta.names) == ((f"*.acme.{ZONE}",), (f"chat.beta.{ZONE}", f"b.beta.{ZONE}"))
    assert acme.key_pem != beta.key_pem
    assert "PRIVATE" not in repr(acme) + repr(given)
    text = why(endpoint_tls.hand_out, given, tenant="gamma", zone=ZONE, now=NOW)
    assert text == f"None of the given certificates is for *.gamma.{ZONE}."


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([f"*.acme.{ZONE}", f"*.beta.{ZONE}"], "good for one tenant only"),
        ([f"*.{ZONE}"], "another name"),
        ([f"*.acme.{ZONE}", "mail.example.net"], "mail.example.net is another name"),
        ([f"a.b.acme.{ZONE}"], "another name"),
        ([f"acme.{ZONE}"], "another name"),
        ([f"*.*.{ZONE}"], "another name"),
    ],
)
def test_a_certificate_that_is_good_beyond_one_tenant_is_refused(names: list[str], said: str) -> None:
    given = endpoint_tls.read_given(Ca.make().server(*names))

    assert said in why(endpoint_tls.judge_given, given, ZONE, now=NOW)
    assert said in why(endpoint_tls.hand_out, given, tenant="acme", zone=ZONE, now=NOW)


def test_given_certificates_are_refused_with_what_is_wrong() -> None:
    ca = Ca.make()
    one, other = ca.server(f"*.acme.{ZONE}"), ca.server(f"*.beta.{ZONE}")
    certificate, _, key = one.partition("-----BEGIN PRIVATE")
    read, judge = endpoint_tls.read_given, endpoint_tls.judge_given

    assert "no private key" in why(read, certificate)
    assert "does not fit" in why(read, certificate + "-----BEGIN PRIVATE" + other.partition("-----BEGIN PRIVATE")[2])
    assert "is an authority's" in why(read, ca.bundle)
    assert "belongs to no key" in why(read, one + Ca.make("strange").pem)
    assert "several certificates for acme" in why(judge, read(one + ca.server(f"a.acme.{ZONE}")), ZONE, now=NOW)
    assert "ended on" in why(judge, read(ca.server(f"*.acme.{ZONE}", days=-0.5)), ZONE, now=NOW)
    assert key


def test_one_certificate_that_has_ended_keeps_no_other_tenant_from_its_own() -> None:
    ca = Ca.make()
    given = endpoint_tls.read_given(ca.server(f"*.acme.{ZONE}", days=-0.5) + ca.server(f"*.beta.{ZONE}"))

    assert endpoint_tls.hand_out(given, tenant="beta", zone=ZONE, now=NOW).names == (f"*.beta.{ZONE}",)
    assert "ended on" in why(endpoint_tls.hand_out, given, tenant="acme", zone=ZONE, now=NOW)


# --- settings -------------------------------------------------------------------------------------


def test_settings_and_secrets_are_judged_together() -> None:
    text = Ca.make(within=ZONE).bundle

    assert tls_settings.unusable({"certificates": "own-ca"}) == ("zone", tls_settings.NEEDS_ZONE)
    assert tls_settings.unusable({"certificates": "own-ca", "zone": ZONE}) is None
    assert tls_settings.lacks({"certificates": "own-ca"}, []) is not None
    assert tls_settings.lacks({"certificates": "own-ca"}, ["endpoint-authority"]) is None
    assert tls_settings.judge("endpoint-authority", text, {"zone": f"{ZONE}."}, NOW) == ""
    assert tls_settings.judge("endpoint-authority", text, {}, NOW) == ""
    assert "only" in tls_settings.judge("endpoint-authority", text, {"zone": "other.net"}, NOW)


def test_a_wildcard_covers_one_label() -> None:
    names = ["*.acme.models.example.net", "chat.beta.models.example.net"]

    assert endpoint_tls.covers(names, "chat.acme.models.example.net")
    assert endpoint_tls.covers(names, "chat.beta.models.example.net")
    assert not endpoint_tls.covers(names, "a.chat.acme.models.example.net")
    assert not endpoint_tls.covers(names, "acme.models.example.net")
    assert not endpoint_tls.covers(names, "mail.beta.models.example.net")
