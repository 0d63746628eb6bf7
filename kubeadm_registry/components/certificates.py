"""Every certificate of a cluster: as files on the nodes, and as HAProxy and the agents present them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509

from kubeadm_registry import certificates, paths, pki
from kubeadm_registry.agent import served
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import haproxy
from kubeadm_registry.components.served import Served
from kubeadm_registry.engine.changes import Steps, Wait
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host, side_by_side

#: A node's certificate that ends sooner is told of; `init` renews it much earlier.
SOON = timedelta(days=30)
#: Seconds. The agent looks for another certificate every ten.
_AGENT = 30.0


def leaf(cluster: Cluster, host: Host) -> Steps:
    """Issue the node's certificate, if another is wanted, and load it into the proxies."""
    yield from haproxy.identity(cluster, host)
    yield Served()


def presented() -> Wait:
    """Wait until the agent presents it as well."""
    return Wait("the agent presents the certificate", certificates.agent_lags, timeout=_AGENT)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a certificate. *rejected*: clients or nodes do not accept it."""

    code: str
    text: str
    rejected: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """One certificate on one node. *what* is ``ca``, ``file``, ``haproxy`` or ``agent``, *where* a path or port."""

    node: str
    what: str
    where: str
    certificate: x509.Certificate | None
    """None: there should be one."""
    problems: tuple[Problem, ...] = field(default=())

    def days(self, now: datetime) -> int | None:
        """Full days that are left; negative after its end."""
        return None if self.certificate is None else (self.certificate.not_valid_after_utc - now).days

    def to_dict(self, now: datetime) -> dict[str, Any]:
        """As an object of JSON."""
        found: dict[str, Any] = {"node": self.node, "certificate": self.what, "where": self.where}
        if (one := self.certificate) is not None:
            found |= {
                "subject": one.subject.rfc4514_string(),
                "issuer": one.issuer.rfc4514_string(),
                "serialNumber": f"{one.serial_number:x}",
                "fingerprint": pki.fingerprint_of(one),
                "expires": one.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "days": self.days(now),
            }
        problems = [{"code": p.code, "message": p.text, "rejected": p.rejected} for p in self.problems]
        return {**found, "problems": problems}


def check(cluster: Cluster, now: datetime) -> list[Seen]:
    """All certificates on the hosts of *cluster*, in the order of the file. Raises ConnectionFailed."""
    found = side_by_side(lambda host: list(_of(cluster, host, now)), cluster.hosts)
    return [one for seen in found for one in seen]


def _of(cluster: Cluster, host: Host, now: datetime) -> Iterator[Seen]:
    secrets = cluster.secrets
    trust, name = secrets.trust, host.name
    shown, trouble = _shown(host)
    wanted = {pki.fingerprint_of(one) for one in x509.load_pem_x509_certificates(trust.encode())}
    authorities = _read(host, paths.CA)
    if not authorities:
        yield Seen(name, "ca", paths.CA, None, (Problem("Missing", "is missing or damaged; run init", rejected=True),))
    for one in authorities:
        yield Seen(name, "ca", paths.CA, one, tuple(_of_authority(one, wanted, shown, now)))
    leaf = next(iter(_read(host, paths.NODE_PEM)), None)
    if leaf is None:
        problem = Problem("Missing", "is missing or damaged; run init", rejected=True)
        yield Seen(name, "file", paths.NODE_PEM, None, (problem,))
    else:
        names = haproxy.names(cluster, host)
        flaws = [*_of_leaf(leaf, trust, now), *_wanted(leaf, secrets.ca_certificate, names)]
        yield Seen(name, "file", paths.NODE_PEM, leaf, tuple(flaws))
    yield from _presented(name, shown, trouble, trust, now)


def _presented(
    name: str, shown: Mapping[str, Any], trouble: Sequence[str], trust: str, now: datetime
) -> Iterator[Seen]:
    port = f":{paths.REGISTRY_PORT}"
    for fingerprint, pem in shown.get("handshakes", {}).items():
        one = x509.load_pem_x509_certificate(pem.encode())
        flaws = [*_of_leaf(one, trust, now), *_loaded(fingerprint, shown)]
        yield Seen(name, "haproxy", port, one, tuple(flaws))
    if trouble or not shown.get("handshakes"):
        text = "; ".join(trouble) or "no proxy runs"
        yield Seen(name, "haproxy", port, None, (Problem("NotSeen", f"cannot see what is served: {text}"),))
    port = f":{paths.AGENT_PORT}"
    if (pem := shown.get("agent")) is None:
        yield Seen(name, "agent", port, None, (Problem("NotSeen", "the agent does not present a certificate"),))
    else:
        one = x509.load_pem_x509_certificate(pem.encode())
        fingerprint = served.fingerprint(ssl.PEM_cert_to_DER_cert(pem))
        yield Seen(name, "agent", port, one, (*_of_leaf(one, trust, now), *_loaded(fingerprint, shown)))


def _shown(host: Host) -> tuple[dict[str, Any], list[str]]:
    """What the host says of what is served, and why not."""
    try:
        shown = certificates.ask(host, "show", agent=True)
    except Error as error:
        return {}, [error.message]
    return shown, list(shown["trouble"])


def _read(host: Host, path: str) -> list[x509.Certificate]:
    """The certificates in a file; none if there is none, or if it is damaged."""
    content = host.read(path)
    try:
        return [] if content is None else x509.load_pem_x509_certificates(content)
    except ValueError:
        return []


def _of_authority(
    one: x509.Certificate, wanted: set[str], shown: Mapping[str, Any], now: datetime
) -> Iterator[Problem]:
    ends = one.not_valid_after_utc
    if pki.fingerprint_of(one) not in wanted:
        yield Problem("OtherAuthority", "is not the cluster CA; run init", rejected=True)
    elif ends < now:
        yield Problem("Expired", "has expired; run certs renew --ca", rejected=True)
    elif ends - now < pki.AUTHORITY_WARNING:
        yield Problem("EndsSoon", "expires within a year; run certs renew --ca")
    if "trusted" in shown and (stale := certificates.mistrusting(shown)):
        yield Problem("NotLoaded", f"{', '.join(stale)} trusts other CAs; run init")


def _of_leaf(one: x509.Certificate, trust: str, now: datetime) -> Iterator[Problem]:
    if not pki.is_of(trust, one):
        yield Problem("OtherAuthority", "is not signed by the cluster CA; run init", rejected=True)
    if one.not_valid_after_utc < now:
        yield Problem("Expired", "has expired; run init", rejected=True)
    elif one.not_valid_after_utc - now < SOON:
        yield Problem("EndsSoon", "expires soon; run init")
    elif one.not_valid_before_utc > now:
        yield Problem("NotYetValid", "is not valid yet; check the clocks", rejected=True)


def _wanted(leaf: x509.Certificate, ca: str, names: Sequence[str]) -> Iterator[Problem]:
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if set(found) != set(pki.general_names(names)):
        yield Problem("OtherNames", f"does not name exactly {', '.join(names)}; run init")
    if not pki.is_of(ca, leaf):
        yield Problem("FormerAuthority", "is not signed by the CA that signs now; run certs renew --ca to its end")


def _loaded(fingerprint: str, shown: Mapping[str, Any]) -> Iterator[Problem]:
    if fingerprint != shown["file"]:
        yield Problem("NotLoaded", f"is not the one in {paths.NODE_PEM}; run init")
