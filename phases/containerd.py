"""Configure containerd on the nodes to pull from the registry; the rest of its configuration is kept."""

from __future__ import annotations

from collections.abc import Iterator

from kubeadm_registry import containerd
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import Spec
from kubeadm_registry.engine.changes import Steps
from kubeadm_registry.engine.phase import Check, Phase
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.secrets import Secrets, basic
from kubeadm_registry.transport.host import Host


def settings(spec: Spec, secrets: Secrets) -> containerd.ContainerdSettings:
    """The settings for containerd."""
    login = "" if spec.proxy.anonymous_pull else f"Basic {basic('pull', secrets.pull_password)}"
    return containerd.ContainerdSettings(
        vip_addresses=spec.vip.addresses,
        vip_name=spec.vip.name or "",
        ca_pem=secrets.trust.encode(),
        mirrors=spec.mirrors,
        sandbox_image=spec.containerd.sandbox_image,
        node_addresses=tuple(address for node in spec.nodes for address in node.addresses),
        authorization=login,
    )


def point(cluster: Cluster, host: Host) -> Steps:
    """Configure containerd on this node to pull from the registry."""
    return containerd.steps(host, settings=settings(cluster.spec, cluster.secrets), turn=cluster.turn)


def usable(cluster: Cluster, host: Host) -> Iterator[str]:
    """containerd's configuration allows it to use the mirrors."""
    return containerd.problems(host, cluster.spec.containerd.sandbox_image)


def notices(cluster: Cluster, host: Host) -> Iterator[str]:
    """Settings of the user that are kept although they differ from those that init would write."""
    return containerd.notices(host, settings(cluster.spec, cluster.secrets))


USABLE = Check("Containerd", usable)
CONTAINERD = Phase(
    "containerd",
    "Configure containerd to pull through the virtual IP",
    point,
    checks=(*OF_MEMBERS, USABLE),
    one_at_a_time=True,
    notices=notices,
)
