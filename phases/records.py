"""What a newer release has left on a node, and this one must not read or write: told before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator

from kubeadm_registry import formats, members
from kubeadm_registry.agent import promised
from kubeadm_registry.agent.formats import Newer
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent, programs, replacing
from kubeadm_registry.engine.phase import Check
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host

_FILES = ((programs.RECORD, programs.FORMAT), (members.PATH, members.FORMAT), (replacing.USERS, replacing.NOTED))


def readable(cluster: Cluster, host: Host) -> Iterator[str]:
    """No newer release has left on the node what this one may not read or write."""
    for path, form in _FILES:
        try:
            form.over(host.read(path))
        except Error as error:
            yield error.advice
    # The agent of this release would give no vote: with that on most nodes nobody may write any more.
    path = agent.hardstate(cluster)
    try:
        for found in agent.promises(cluster, host):
            promised.FORMAT.seal({}, found)
    except Newer as error:
        yield f"{path}: {error}; {formats.HINT}"


RECORDS = Check("Records", readable, mandatory=True)
