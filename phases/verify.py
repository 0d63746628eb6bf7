"""End-to-end verification: push the canary image, and read it through every node and the virtual IP."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from kubeadm_registry.access import reach
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.engine.changes import Steps, Wait, wait
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.errors import Error, NotYetKnown, RegistryError
from kubeadm_registry.oci import canary
from kubeadm_registry.registry import Api, push_blob
from kubeadm_registry.transport.host import Host


def registry_at(cluster: Cluster, host: Host, address: str, role: str = "pull") -> AbstractContextManager[Api]:
    """The registry at *address*, which *host* can reach, for a small request. Raises as ``reach.connection`` does."""
    return reach.connection(cluster, host, address, role=role, timeout=20)()


@dataclass(frozen=True, slots=True)
class Canary:
    """The canary image is in the registry."""

    cluster: Cluster
    title = "push the canary image"

    def diff(self, host: Host) -> str | None:
        """That it is missing. Raises NotYetKnown while the registry does not answer."""
        try:
            with registry_at(self.cluster, host, self.cluster.node(host).address) as registry:
                missing = registry.manifest(canary.REPOSITORY, canary.MANIFEST.digest) is None
        except RegistryError as error:
            raise NotYetKnown(f"the registry does not respond yet: {error.message}") from error
        return f"{canary.REPOSITORY}:{canary.TAG}: new, {canary.MANIFEST.digest}" if missing else None

    def apply(self, host: Host) -> None:
        """Push it; again from the beginning during writer failover."""
        wait(host, self._push, what="the registry accepts a push", timeout=30, interval=0.5)

    def _push(self, host: Host) -> str | None:
        try:
            self._push_once(host)
        except RegistryError as error:
            if not error.temporary:
                raise
            return error.message
        return None

    def _push_once(self, host: Host) -> None:
        with registry_at(self.cluster, host, self.cluster.node(host).address, "push") as registry:
            for blob in (canary.LAYER, canary.CONFIG):
                push_blob(registry, canary.REPOSITORY, blob.digest, blob.content)
            manifest = canary.MANIFEST
            registry.push_manifest(canary.REPOSITORY, canary.TAG, manifest.content, manifest.media_type)


def serves(cluster: Cluster, address: str, host: Host) -> str | None:
    """Why *address* does not serve every byte of the canary image; None if it does. Raises NotYetKnown."""
    try:
        with registry_at(cluster, host, address) as registry:
            if registry.manifest(canary.REPOSITORY, canary.MANIFEST.digest) is None:
                return f"{address} serves no manifest of {canary.REPOSITORY}"
            if registry.blob(canary.REPOSITORY, canary.LAYER.digest) is None:
                return f"{address} serves no layer of {canary.REPOSITORY}"
    except NotYetKnown:
        raise
    except Error as error:
        return error.message
    return None


def push(cluster: Cluster, host: Host) -> Steps:
    """Wait until the proxy accepts pushes, then push."""
    yield Wait("the registry responds", partial(_answers, cluster), timeout=30)
    yield Canary(cluster)


def _answers(cluster: Cluster, host: Host) -> str | None:
    try:
        with registry_at(cluster, host, cluster.node(host).address) as registry:
            registry.manifest(canary.REPOSITORY, canary.MANIFEST.digest)
    except RegistryError as error:
        return error.message
    return None


def pull(cluster: Cluster, host: Host) -> Steps:
    """Read the canary image at this node's own address and at the virtual IP."""
    for address in (*cluster.node(host).addresses, *cluster.spec.vip.addresses):
        yield Wait(f"{address} serves the canary image", partial(serves, cluster, address), timeout=30)


PUSH = Phase("push", "Push the canary image through the proxy", push, on=leader)
PULL = Phase("pull", "Pull it through every node and the virtual IP", pull)
VERIFY = Phase("verify", "Verify the registry end to end", phases=(PUSH, PULL))
