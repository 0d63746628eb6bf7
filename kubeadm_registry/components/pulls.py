"""Records when images were pulled: a process beside the agent that reads the proxies' lines in the journal.

It is stopped after the proxies, so that it has read their last lines when a node goes down in order.
"""

from __future__ import annotations

from kubeadm_registry import paths
from kubeadm_registry.agent.pulls import POSITION_FILE, RECORD_FILE
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent, zipapp
from kubeadm_registry.components.units import Service, serve
from kubeadm_registry.engine.changes import File, Steps
from kubeadm_registry.transport.host import Host

NAME = paths.PULLS_NAME
UNIT = paths.unit(NAME)
USER = paths.user(NAME)
RECORD = f"{paths.PULLS_STATE}/{RECORD_FILE}"
POSITION = f"{paths.PULLS_STATE}/{POSITION_FILE}"
SERVICE = Service(
    NAME,
    units=(UNIT,),
    user=USER,
    restarted_by=(agent.ARCHIVE,),
)


def install(cluster: Cluster, host: Host) -> Steps:
    """Have it run, by the program of the agent, which is there."""
    yield from serve(
        SERVICE,
        (File(agent.ARCHIVE, zipapp.build()),),
        user=USER,
        python=agent.python(cluster, host),
        archive=agent.ARCHIVE,
        state=paths.PULLS_STATE,
        units=paths.HAPROXY_UNITS,
    )
