"""Certificates: who is named, who signed, how long; and when a new one is due."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kubeadm_registry import config, paths, pki
from kubeadm_registry.components import haproxy
from kubeadm_registry.config.values import label
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import PreflightFailed
from kubeadm_registry.phases.base import BASE
from kubeadm_registry.phases.identity import SECRETS
from tests.unit.fake_cluster import FakeCluster, authority
from tests.unit.test_workflow import Recorder

NAMES = ("cp-1", "10.0.0.11", "fd00::11", "registry.lan", "localhost")
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def leaf() -> pki.Pair:
    return pki.issue(authority(), "cp-1", NAMES)


def load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def test_the_authority_signs_end_certificates_only() -> None:
    ca = load(authority().certificate)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert constraints.value.path_length == 0
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "kubeadm-registry CA of registry"


@pytest.mark.parametrize("length", [1, 41, 42, 63])
def test_a_cluster_may_have_a_name_of_any_length_that_its_file_may_have(length: int) -> None:
    name = "r" * length
    label(name)
    made = pki.make_ca(name)
    assert pki.cluster_of(made.certificate) == name
    leaf = load(pki.issue(made, "n" * 63, ["10.0.0.11"]).certificate)
    leaf.verify_directly_issued_by(load(made.certificate))


def test_a_certificate_names_addresses_as_addresses_and_names_as_names(leaf: pki.Pair) -> None:
    names = load(leaf.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["cp-1", "registry.lan", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("10.0.0.11"), ip_address("fd00::11")]


def test_a_certificate_serves_asks_and_signs_nothing(leaf: pki.Pair) -> None:
    certificate = load(leaf.certificate)
    certificate.verify_directly_issued_by(load(authority().certificate))
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usages = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usages == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    assert [unit.value for unit in units] == [pki.NODE_UNIT]


def test_a_certificate_without_names_is_a_clients_alone() -> None:
    pair = pki.issue(authority(), "metrics", [], unit=pki.METRICS_UNIT)
    extensions = load(pair.certificate).extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_clocks_that_differ_by_hours_do_not_matter(leaf: pki.Pair) -> None:
    for certificate in (load(leaf.certificate), load(authority().certificate)):
        assert certificate.not_valid_before_utc < NOW - timedelta(hours=23)


@pytest.mark.parametrize(
    ("name", "trusted"),
    [("cp-1", True), ("10.0.0.11", True), ("fd00::11", True), ("fd00:0::11", True), ("cp-2", False),
     ("10.0.0.12", False)],
)  # fmt: skip
def test_a_tls_client_trusts_it_by_these_names(leaf: pki.Pair, tmp_path: Path, name: str, trusted: bool) -> None:
    """A whole handshake in memory, as OpenSSL judges."""
    client = ssl.create_default_context(cadata=authority().certificate)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    both = tmp_path / "both.pem"
    both.write_text(leaf.certificate + leaf.key)
    server.load_cert_chain(both)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=name)
    answering = server.wrap_bio(to_server, to_client, server_side=True)

    def shake() -> None:
        for _ in range(4):
            for side in (asking, answering):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        assert asking.getpeercert()

    if trusted:
        shake()
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            shake()


@pytest.mark.parametrize(
    ("days_before_end", "due"), [(pki.RENEW_BEFORE.days + 2, False), (pki.RENEW_BEFORE.days - 1, True), (-1, True)]
)
def test_a_certificate_is_renewed_before_its_end(leaf: pki.Pair, days_before_end: int, due: bool) -> None:
    end = pki.expiry(leaf.certificate)
    flaw = pki.renewal_reason(authority().certificate, leaf.certificate, NAMES, end - timedelta(days=days_before_end))
    assert flaw == (f"expires on {end:%Y-%m-%d}" if due else None)


def test_it_lives_as_long_as_said(leaf: pki.Pair) -> None:
    assert abs(pki.expiry(leaf.certificate) - NOW - pki.LEAF_LIFETIME) < timedelta(hours=1)
    assert abs(pki.expiry(authority().certificate) - NOW - pki.CA_LIFETIME) < timedelta(hours=1)
    assert pki.LEAF_LIFETIME > pki.RENEW_BEFORE * 2


def ending(monkeypatch: pytest.MonkeyPatch, days: float) -> pki.Pair:
    """An authority that ends in so many days."""
    with monkeypatch.context() as patch:
        patch.setattr(pki, "CA_LIFETIME", timedelta(days=days))
        return pki.make_ca("registry")


@pytest.mark.parametrize("days", [-3, 0.5, 100, 1000])
def test_no_certificate_outlives_its_authority(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    ca = ending(monkeypatch, days)
    issued = pki.issue(ca, "cp-1", NAMES)
    assert pki.expiry(issued.certificate) == pki.expiry(ca.certificate)
    assert pki.renewal_reason(ca.certificate, issued.certificate, NAMES) is None, "a new one would end no later"


def test_one_that_claims_to_outlive_its_authority_is_issued_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As release 0.1 issued them: the end that it shows is not the one that clients see."""
    ca = ending(monkeypatch, 900)
    last = pki.expiry(ca.certificate)
    monkeypatch.setattr(pki, "min", lambda wanted, _: wanted, raising=False)
    issued = pki.issue(ca, "cp-1", NAMES)
    ends = pki.expiry(issued.certificate)
    assert ends > last
    flaw = pki.renewal_reason(ca.certificate, issued.certificate, NAMES)
    assert flaw == f"expires on {ends:%Y-%m-%d}, after its CA, which expires on {last:%Y-%m-%d}"


def test_one_that_ends_soon_is_renewed_while_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    ca = ending(monkeypatch, 100)
    issued = pki.issue(ca, "cp-1", NAMES, lifetime=timedelta(days=99))
    assert "expires on" in (pki.renewal_reason(ca.certificate, issued.certificate, NAMES) or "")


@pytest.mark.parametrize("names", [NAMES[:-1], (*NAMES, "more.lan"), ("cp-1",)])
def test_other_names_need_another_certificate(leaf: pki.Pair, names: tuple[str, ...]) -> None:
    assert (
        pki.renewal_reason(authority().certificate, leaf.certificate, names)
        == f"does not name exactly {', '.join(names)}"
    )


def test_the_order_of_names_does_not_matter(leaf: pki.Pair) -> None:
    assert pki.renewal_reason(authority().certificate, leaf.certificate, NAMES[::-1]) is None


def test_a_certificate_of_another_authority_is_no_good(leaf: pki.Pair) -> None:
    other = pki.make_ca("registry")
    flaw = pki.renewal_reason(other.certificate, leaf.certificate, NAMES)
    assert flaw == "was not issued by the cluster CA (InvalidSignature)"


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_replaced_too(text: str) -> None:
    assert "cluster CA" in (pki.renewal_reason(authority().certificate, text, NAMES) or "")


def test_a_key_of_another_kind_cannot_sign() -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="not an elliptic-curve key"):
        pki.issue(pki.Pair(authority().certificate, pem.decode()), "x", ("x",))


# ---- on servers ---------------------------------------------------------------------------------------------------


def identity(fake: FakeCluster) -> dict[str, str]:
    """What differs of the certificates, by server."""
    actions = run((BASE, SECRETS), fake.cluster, Recorder())
    return {action.host: action.diff for action in actions if "certificate of this node" in action.title}


@pytest.fixture
def installed(three: FakeCluster) -> FakeCluster:
    assert set(identity(three)) == {"cp-1", "cp-2", "cp-3"}
    assert identity(three) == {}
    return three


def test_each_server_is_named_with_all_its_names(installed: FakeCluster) -> None:
    for name, address in (("cp-1", "10.0.0.11"), ("cp-3", "10.0.0.13")):
        server = installed.servers[name]
        pem = server.content(paths.NODE_PEM).decode()
        wanted = (name, address, "10.0.0.10", "localhost", "127.0.0.1", "::1")
        assert pki.renewal_reason(authority().certificate, pem, wanted) is None
        assert pem.index("BEGIN CERTIFICATE") < pem.index("PRIVATE KEY")
        assert server.files()[paths.NODE_PEM].mode == 0o640
        assert server.files()[paths.NODE_PEM].owner == f"root:{haproxy.USER}"


def test_no_two_servers_have_one_key(installed: FakeCluster) -> None:
    assert len({server.content(paths.NODE_PEM) for server in installed.servers.values()}) == 3


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (lambda: pki.issue(pki.make_ca("registry"), "cp-2", ("cp-2",)), "was not issued by the cluster CA"),
        (lambda: pki.issue(authority(), "cp-2", ("cp-2",)), "does not name exactly cp-2, 10.0.0.12"),
    ],
    ids=["another authority", "other names"],
)
def test_only_the_server_whose_certificate_does_not_fit_gets_another(
    installed: FakeCluster, pair: Callable[[], pki.Pair], why: str
) -> None:
    wrong = pair()
    installed.servers["cp-2"].put(paths.NODE_PEM, wrong.certificate + wrong.key, 0o640, f"root:{haproxy.USER}")
    (difference,) = identity(installed).items()
    assert difference[0] == "cp-2"
    assert why in difference[1]
    assert identity(installed) == {}


def test_a_name_for_the_vip_is_put_into_every_certificate(installed: FakeCluster) -> None:
    text = config.SMALLEST.replace("{address: 10.0.0.10}", "{address: 10.0.0.10, name: registry.lan}")
    installed.config = config.parse(text, "x")
    assert set(identity(installed)) == {"cp-1", "cp-2", "cp-3"}
    assert identity(installed) == {}


def of_authority(monkeypatch: pytest.MonkeyPatch, fake: FakeCluster, days: float) -> None:
    """The cluster has an authority that ends in so many days."""
    assert fake.fixed is not None
    ca = ending(monkeypatch, days)
    fake.fixed = replace(fake.fixed, ca_certificate=ca.certificate, ca_key=ca.key)


@pytest.mark.parametrize(("days", "told"), [(pki.AUTHORITY_WARNING.days + 2, False), (30, True)])
def test_init_tells_in_good_time_that_the_authority_ends(
    monkeypatch: pytest.MonkeyPatch, three: FakeCluster, days: int, told: bool
) -> None:
    of_authority(monkeypatch, three, days)
    recorder = Recorder()
    run((BASE, SECRETS), three.cluster, recorder)
    assert three.fixed is not None
    ends = f"{pki.expiry(three.fixed.ca_certificate):%Y-%m-%d}"
    wanted = f"the cluster CA expires on {ends}, and every certificate with it; replace it with"
    assert [text.startswith(wanted) for host, text in recorder.notes if host == "cp-1"] == [True] * told
    assert len(recorder.notes) == told
    assert run((BASE, SECRETS), three.cluster, Recorder()) == []


def test_nothing_is_done_under_an_authority_that_has_ended(monkeypatch: pytest.MonkeyPatch, three: FakeCluster) -> None:
    of_authority(monkeypatch, three, -1)
    with pytest.raises(PreflightFailed) as caught:
        run((BASE, SECRETS), three.cluster, Recorder())
    (problem,) = caught.value.problems
    assert (problem.check, problem.host) == ("Authority", "cp-1")
    assert problem.text.startswith("the cluster CA expired on ")
    assert "--nodes FILE" in problem.text, "`certs renew --ca` alone is refused"
