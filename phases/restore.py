"""Before the secrets of a backup go onto the nodes."""

from __future__ import annotations

from collections.abc import Iterator

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import backend
from kubeadm_registry.engine.phase import Check, Phase
from kubeadm_registry.transport.host import Host


def data_of_backup(cluster: Cluster, host: Host) -> Iterator[str]:
    """The node has no registry data, or data that was written with the secrets in the backup."""
    # A node that has secrets has those of the backup, or there would have been a SecretsConflict.
    if host.name in cluster.vault.data_without_secrets and not backend(cluster.spec).is_ours(cluster, host):
        yield (
            f"{cluster.spec.data_directory} has data of another registry, which the secrets in the backup cannot read; "
            "move it away, or name another node"
        )


RESTORABLE = Phase(
    "restore", "Check that the secrets in the backup fit the nodes",
    checks=(Check("DataOfBackup", data_of_backup, mandatory=True),),
)  # fmt: skip
