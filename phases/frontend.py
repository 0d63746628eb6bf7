"""The registry program, on loopback behind the proxy."""

from kubeadm_registry import paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import distribution, zot
from kubeadm_registry.engine.changes import NoService, Steps
from kubeadm_registry.engine.workflow import Phase
from kubeadm_registry.transport.host import Host

FRONTENDS = {zot.NAME: zot.install, distribution.NAME: distribution.install}


def install_frontend(cluster: Cluster, host: Host) -> Steps:
    """Install the frontend that the file names, in place of another kind."""
    wanted = cluster.spec.frontend.type
    for name in FRONTENDS:
        if name != wanted:
            yield NoService(paths.unit(name))
    yield from FRONTENDS[wanted](cluster, host)


FRONTEND = Phase("frontend", "Install the registry program and start it", install_frontend, one_at_a_time=True)
