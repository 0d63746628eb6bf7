"""Write access to the records of retention: by SSH through the proxy of the node that holds the lease.

The proxy accepts such writes from its own node only, and only under the current term of the lease.
"""

from __future__ import annotations

from functools import partial

from kubeadm_registry import paths
from kubeadm_registry.access.executor import OnHost, holder, on_hosts
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.registry import SILENCE, Login, Registry
from kubeadm_registry.transport.host import side_by_side
from kubeadm_registry.upkeep.lease import TERM_HEADER


def record_writer(cluster: Cluster) -> Connect:
    """Returns what connects to the registry as the executor does: it may write the records in the current term.

    Raises Error (NoExecutor) if no node holds the lease, ConnectionFailed.
    """
    nodes = on_hosts(cluster)
    node, seen = holder(list(zip(nodes, side_by_side(OnHost.look, nodes), strict=True)))
    secrets, address = cluster.secrets, cluster.node(node.host).address
    login = Login(paths.RETENTION_NAME, secrets.password(paths.RETENTION_NAME))
    return partial(
        Registry, address, paths.REGISTRY_PORT, ca=secrets.trust, login=login,
        via=node.host.dial(address, paths.REGISTRY_PORT), timeout=SILENCE, headers={TERM_HEADER: str(seen.term)},
    )  # fmt: skip
