"""The cluster's own certificate authority and what it signs: pure functions over PEM text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kubeadm_registry.addresses import ip

#: Begins the name of an authority, before the name of its cluster.
_CA_OF = "kubeadm-registry CA of "
#: A common name has no more characters (ub-common-name in RFC 5280, appendix A.1). The name of a cluster may have as
#: many by itself, but one: where both do not fit, the other stands beside it, as the organizational unit.
_LONGEST_NAME = 64
CA_LIFETIME = timedelta(days=3650)
#: Long enough for a room that nobody visits for a year, short enough that renewal is practised.
LEAF_LIFETIME = timedelta(days=1095)
RENEW_BEFORE = timedelta(days=180)
#: An authority cannot be renewed in passing: each client must be told to trust the new one.
AUTHORITY_WARNING = timedelta(days=365)
#: Clocks of servers that were never online differ; a certificate must not be "not yet valid" on one of them.
BACKDATE = timedelta(days=1)
#: The organizational unit by which the proxies know each other from a client with any certificate of ours.
NODE_UNIT = "registry-node"
#: That of a client that may read the agents' metrics, and nothing else.
METRICS_UNIT = "registry-metrics"
#: Longer lines of a secret are secret by themselves; PEM's own "-----BEGIN PRIVATE KEY-----" is shorter.
_KEY_LINE = 30


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, PEM."""

    certificate: str
    key: str


def make_ca(cluster: str) -> Pair:
    """A new authority (ECDSA P-256) that may sign end certificates only (path length 0, RFC 5280, 4.2.1.9)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _authority(cluster)
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, name, key.public_key(), datetime.now(UTC) + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Pair(_pem(certificate), _key_pem(key))


def cluster_of(ca_certificate: str) -> str | None:
    """The name of the cluster that an authority of ``make_ca`` was made for; None if it was made by others."""
    subject = x509.load_pem_x509_certificate(ca_certificate.encode()).subject
    names = [str(attribute.value) for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    units = [str(attribute.value) for attribute in subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
    if units == [_CA_OF.rstrip()] and len(names) == 1:
        return names[0]
    return next((name.removeprefix(_CA_OF) for name in names if name.startswith(_CA_OF)), None)


def _authority(cluster: str) -> x509.Name:
    """What an authority for the cluster called *cluster* is called."""
    whole = f"{_CA_OF}{cluster}"
    if len(whole) <= _LONGEST_NAME:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, whole)])
    beside = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, _CA_OF.rstrip())
    return x509.Name([beside, x509.NameAttribute(NameOID.COMMON_NAME, cluster)])


def issue(
    ca: Pair, common_name: str, names: Sequence[str], *, unit: str = NODE_UNIT, lifetime: timedelta = LEAF_LIFETIME
) -> Pair:
    """A server and client certificate for *names* (addresses and DNS names become subjectAltNames of their kind).

    Without names it is a client's alone. It ends with the authority at the latest, for it is worth nothing after that.
    """
    authority = x509.load_pem_x509_certificate(ca.certificate.encode())
    signer = _signer(ca)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    ends = min(datetime.now(UTC) + lifetime, authority.not_valid_after_utc)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = _builder(subject, authority.subject, key.public_key(), ends).add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(general_names(names)), critical=False)
    certificate = (
        builder.add_extension(x509.ExtendedKeyUsage(usages[0 if names else 1 :]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Pair(_pem(certificate), _key_pem(key))


def renewal_reason(
    ca_certificate: str, certificate: str, names: Sequence[str], now: datetime | None = None, *, replaced: str = ""
) -> str | None:
    """Return why *certificate* must be reissued (wrong CA, wrong names, close to expiry), or None.

    Good is also one that ends soon because its authority does: a new one would end no later. The one with the
    fingerprint *replaced* is to be replaced in any case.
    """
    now = now or datetime.now(UTC)
    try:
        leaf = x509.load_pem_x509_certificate(certificate.encode())
        authority = x509.load_pem_x509_certificate(ca_certificate.encode())
        leaf.verify_directly_issued_by(authority)
    except Exception as error:  # whatever is wrong with it, a new one is the remedy
        return f"was not issued by the cluster CA ({type(error).__name__})"
    if fingerprint(certificate) == replaced:
        return "is to be replaced"
    alternative = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if set(alternative) != set(general_names(names)):
        return "does not name exactly " + ", ".join(names)
    ends, last = leaf.not_valid_after_utc, authority.not_valid_after_utc
    if ends > last:
        return f"expires on {ends:%Y-%m-%d}, after its CA, which expires on {last:%Y-%m-%d}"
    if ends - now < RENEW_BEFORE and ends < last:
        return f"expires on {ends:%Y-%m-%d}"
    return None


def is_of(ca_certificate: str, certificate: x509.Certificate) -> bool:
    """Whether the authority signed *certificate*; of several in the text, one of them."""
    for authority in x509.load_pem_x509_certificates(ca_certificate.encode()):
        try:
            certificate.verify_directly_issued_by(authority)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            continue
        return True
    return False


def fingerprint(certificate: str) -> str:
    """SHA-256 of *certificate* (PEM; the first one in the text), hex."""
    return fingerprint_of(x509.load_pem_x509_certificate(certificate.encode()))


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of *certificate*, hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def sign(ca: Pair, content: bytes) -> bytes:
    """The signature of *content* by the authority (ECDSA with SHA-256, DER), as ``openssl dgst -verify`` takes it.

    *content* must be a text: a certificate is none, so that no signature of one is that of the other.
    """
    return _signer(ca).sign(content, ec.ECDSA(hashes.SHA256()))


def _signer(ca: Pair) -> ec.EllipticCurvePrivateKey:
    signer = serialization.load_pem_private_key(ca.key.encode(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError("the CA key is not an elliptic-curve key")
    return signer


def has_signed(ca_certificate: str, content: bytes, signature: bytes) -> bool:
    """Whether *signature* is that of ``sign`` by the authority with *ca_certificate*. Raises ValueError."""
    try:
        key = x509.load_pem_x509_certificate(ca_certificate.encode()).public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("the CA key is not an elliptic-curve key")
    try:
        key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def belong_together(ca: Pair) -> bool:
    """Whether the key is the one of the certificate."""
    try:
        return has_signed(ca.certificate, b"the same", sign(ca, b"the same"))
    except (ValueError, TypeError):
        return False


def printed_fingerprint(certificate: str) -> str:
    """The SHA-256 of *certificate* (PEM) as ``openssl x509 -fingerprint -sha256`` prints it."""
    found = x509.load_pem_x509_certificate(certificate.encode()).fingerprint(hashes.SHA256()).hex(":")
    return found.upper()


def addresses(certificate: str) -> list[str]:
    """The IP addresses that *certificate* names. Raises ValueError if it is none, or names nobody."""
    leaf = x509.load_pem_x509_certificate(certificate.encode())
    try:
        named = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ValueError(str(error)) from error
    return [str(one) for one in named.get_values_for_type(x509.IPAddress)]


def expiry(certificate: str) -> datetime:
    """When *certificate* (PEM; the first one in the text) ends."""
    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc


@lru_cache(maxsize=32)
def secret_lines(value: str) -> tuple[str, ...]:
    """The lines of the secret *value* that are secret by themselves, as where a mark stands before each.

    A private key in PEM ends with its public half (RFC 5915, section 3), which is in its certificate too, and now and
    then in the same digits: a line of nothing else is none.
    """
    lines = tuple(line for line in value.splitlines() if len(line) > _KEY_LINE)
    try:
        key = serialization.load_pem_private_key(value.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return lines
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return lines
    public = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return tuple(line for line in lines if base64.b64decode(line) not in public)


def general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """*names* as a certificate has them: addresses and DNS names."""
    return [x509.DNSName(name) if (address := ip(name)) is None else x509.IPAddress(address) for name in names]


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(datetime.now(UTC), ends) - BACKDATE)
        .not_valid_after(ends)
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def ssh_key(private: str = "") -> tuple[str, str]:
    """The SSH key *private*, or a new one if that is none: private and public, in OpenSSH's formats."""
    try:
        key: Any = serialization.load_ssh_private_key(private.encode(), None)
    except (ValueError, UnsupportedAlgorithm):
        key = ed25519.Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public.decode()
