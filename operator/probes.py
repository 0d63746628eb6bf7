"""Looks at the registry as its clients do, through the virtual IP and each node: by TLS and the canary image."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.oid import NameOID

from kubeadm_registry import paths, pki
from kubeadm_registry.agent.model import Level
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.oci import canary
from kubeadm_registry.operator.way import Way

#: Seconds of silence at each step.
PATIENCE = 5.0
#: Bytes of metrics at most; an agent has some 10 kB.
_LARGEST = 1024 * 1024
_LINE = re.compile(r"^kubeadm_registry_agent_([a-z_]+)(?:\{(.*)\})? (-?[0-9][0-9.e+-]{0,30})$", re.MULTILINE)
_LABEL = re.compile(r'([a-z]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of a look at one address: *reason* is empty if it serves the canary image, *why* says more.

    *node* is whose certificate is presented there, which ends at *ends*; empty and None if there was none to see.
    """

    reason: str = ""
    why: str = ""
    node: str = ""
    ends: datetime | None = None

    @property
    def serves(self) -> bool:
        """Whether an image can be pulled there."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class Agent:
    """What a node's agent says in its metrics of itself, and which other nodes are *unheard*; sizes in bytes, None
    where it does not say."""

    conditions: frozenset[str] = frozenset()
    values: Mapping[str, float] = field(default_factory=dict)
    unheard: frozenset[str] = frozenset()

    @property
    def holds_vip(self) -> bool:
        """Whether the node has the virtual IP."""
        return self.values.get("vip_held") == 1


def probe(way: Way, address: str) -> Probe:
    """Pull the canary image by digest at *address*, through everything that a client's pull goes through."""
    try:
        node, ends = _certificate(way, address)
    except ssl.SSLCertVerificationError as error:
        return Probe("NotTrusted", f"clients reject its certificate: {error.verify_message}")
    except OSError as error:
        why = (error.strerror or "the TLS handshake failed").lower()
        return Probe("Unreachable", "no response" if isinstance(error, TimeoutError) else why)
    try:
        with way.registry(address, timeout=PATIENCE)() as registry:
            found = registry.manifest(canary.REPOSITORY, canary.MANIFEST.digest)
            if found is None or registry.blob(canary.REPOSITORY, canary.LAYER.digest) is None:
                return Probe("CanaryMissing", "it does not have the canary image", node, ends)
    except RegistryError as error:
        reason = "CredentialsRefused" if error.status in (401, 403) else "NotServing"
        return Probe(reason, error.message, node, ends)
    return Probe(node=node, ends=ends)


def _certificate(way: Way, address: str) -> tuple[str, datetime]:
    """The name of the node whose certificate is presented at *address*, and when it ends. Raises OSError."""
    place = way.dial(address, paths.REGISTRY_PORT)
    with (
        socket.create_connection(place, PATIENCE) as line,
        way.trust().wrap_socket(line, server_hostname=address) as tls,
    ):
        certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else "", certificate.not_valid_after_utc


def authority_ends(way: Way) -> datetime:
    """When the CA's certificate ends."""
    return x509.load_pem_x509_certificate(way.ca.encode()).not_valid_after_utc


def agent(way: Way, address: str) -> Agent | str:
    """What the agent at *address* says; or why it says nothing, in one clause."""
    if way.metrics is None:
        return "the Secret has no certificate for metrics"
    try:
        if pki.expiry(way.metrics.read_text()) < datetime.now(UTC):
            return "the Secret's certificate for metrics has expired: run `kubeadm-registry operator install`"
        context = way.trust()
        context.load_cert_chain(way.metrics)
        host, port = way.dial(address, paths.AGENT_PORT)
        # By address, as certificates name nodes, whatever the way there.
        line = socket.create_connection((host, port), PATIENCE)
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        with context.wrap_socket(line, server_hostname=address) as connection.sock:
            connection.request("GET", "/metrics", headers={"Host": address})
            answer = connection.getresponse()
            body = answer.read(_LARGEST)
    except (OSError, http.client.HTTPException) as error:
        return ((error.strerror if isinstance(error, OSError) else "") or str(error) or "no response").lower()
    except ValueError:
        return "metrics.pem in the Secret is not a certificate: run `kubeadm-registry operator install`"
    if answer.status != http.HTTPStatus.OK:
        return f"it responds with {answer.status}"
    return parsed(body.decode("utf-8", "replace"))


def parsed(text: str) -> Agent:
    """What *text*, the metrics of an agent, says."""
    conditions: set[str] = set()
    values: dict[str, float] = {}
    unheard: set[str] = set()
    for name, labels, value in _LINE.findall(text):
        if name == "condition":
            conditions.update(value for key, value in _LABEL.findall(labels) if key == "name")
        elif name == "peer_level" and float(value) == Level.SILENT:
            unheard.update(value for key, value in _LABEL.findall(labels) if key == "peer")
        elif not labels:
            values[name] = float(value)
    return Agent(frozenset(conditions), values, frozenset(unheard))
