"""The secrets: generated once, and stored on every node before the first of them is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from kubeadm_registry import pki, secrets
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.components import haproxy
from kubeadm_registry.engine.changes import Absent, Steps
from kubeadm_registry.engine.phase import Check, Phase
from kubeadm_registry.errors import Error
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.transport.host import Host


@dataclass(frozen=True, slots=True)
class SecretsFile:
    """This node has the cluster's secrets, readable by root only."""

    cluster: Cluster
    title = "store the secrets"

    def diff(self, host: Host) -> str | None:
        """Whether it has them, without showing any.

        Raises Error (SecretsLost, SecretsChanged) or NewerFormat if it cannot get them.
        """
        vault = self.cluster.vault
        state = host.state(secrets.PATH)
        missing = vault.missing
        if state is None or missing or not vault.secrets.same_as(state.content):
            vault.check()
            if state is not None and self._older_than(state.content):
                # This run read them before it had the lock: to write them back would undo what the other one did.
                raise Error(
                    f"another run has changed {secrets.PATH} in the meantime", host=host.name, code="SecretsChanged",
                    hint="run the command again",
                )  # fmt: skip
            if not vault.made:
                return f"{secrets.PATH}: new CA, credentials and keys for this cluster"
            if missing:
                return f"{secrets.PATH}: new in this cluster: {', '.join(missing)}"
            revision = f", revision {vault.secrets.revision}" if vault.secrets.revision else ""
            return f"{secrets.PATH}: as on the other nodes, generation {vault.secrets.generation}{revision}"
        if (state.mode, state.owner) != (0o600, "root:root"):
            return f"{secrets.PATH}: mode {state.mode:o} -> 600, owner {state.owner} -> root:root"
        return None

    def _older_than(self, content: bytes) -> bool:
        """Whether the *content* of a node's file is newer than what this run has read; also if it has read none."""
        if not self.cluster.vault.made:
            return True
        generation, number = secrets.revision_in(content)
        vault = self.cluster.vault
        # Another run's next revision has the number of this one's.
        return generation == vault.preview().generation and number > vault.seen

    def apply(self, host: Host) -> None:
        """Write them; missing ones are generated first, once for all nodes. Raises NewerFormat."""
        host.write(secrets.PATH, self.cluster.vault.ensure().to_json(), mode=0o600)


def storable(cluster: Cluster, host: Host) -> Iterator[str]:
    """No new secrets would be generated over existing data, and this release may write the file."""
    SecretsFile(cluster).diff(host)
    yield from ()


def store(cluster: Cluster, host: Host) -> Steps:
    """Store the secrets on this node."""
    yield SecretsFile(cluster)
    # The copy that a reset left in the data directory is no longer needed.
    yield Absent(secrets.kept_path(cluster.spec.data_directory))


STORE = Phase(
    "store",
    "Store the CA, credentials and keys on every node",
    store,
    checks=(*OF_MEMBERS, Check("Secrets", storable)),
)


def lasting(cluster: Cluster, _: Host) -> Iterator[str]:
    """The cluster CA has not expired: no certificate that it signed is valid afterwards."""
    if not cluster.vault.made:
        return
    ends = pki.expiry(cluster.vault.secrets.ca_certificate)
    if ends < datetime.now(UTC):
        yield f"the cluster CA expired on {ends:%Y-%m-%d}; {AUTHORITY_HINT}"


def ending(cluster: Cluster, host: Host) -> Iterator[str]:
    """That the authority ends, in good time."""
    ends = pki.expiry(cluster.vault.secrets.ca_certificate)
    if host == cluster.leader and datetime.now(UTC) > ends - pki.AUTHORITY_WARNING:
        yield f"the cluster CA expires on {ends:%Y-%m-%d}, and every certificate with it; {AUTHORITY_HINT}"


AUTHORITY_HINT = "replace it with `kubeadm-registry certs renew --ca --nodes FILE` (or --no-clients)"
CERTIFICATES = Phase(
    "certificates",
    "Issue each node's certificate",
    haproxy.identity,
    checks=(*OF_MEMBERS, Check("Authority", lasting, on=leader)),
    notices=ending,
)
SECRETS = Phase("secrets", "Generate the cluster CA, credentials and keys", phases=(STORE, CERTIFICATES))
