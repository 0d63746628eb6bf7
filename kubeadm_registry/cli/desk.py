"""Where commands read and write the records of retention: at the node that holds the lease."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kubeadm_registry.access.desk import desk
from kubeadm_registry.cli import terminal
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.engine.workflow import take_locks
from kubeadm_registry.errors import HostBusy
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention.standing import Standing
from kubeadm_registry.retention.trash import Trashed
from kubeadm_registry.transport.host import side_by_side
from kubeadm_registry.upkeep import store
from kubeadm_registry.upkeep.store import PATIENCE, restate


@dataclass(frozen=True, slots=True)
class Desk:
    """Where retention's records are read and written: a *registry* at the node that holds the lease, at *now*."""

    cluster: Cluster
    registry: Api
    key: str
    now: int

    def standing(self) -> Standing:
        """Pins and approvals."""
        return retry(lambda: store.read_standing(self.registry, self.key), PATIENCE)

    def restate(self, change: Callable[[Standing], Standing]) -> None:
        """Make of pins and approvals what *change* makes of them. Raises HostBusy."""
        self.alone()
        restate(self.registry, self.key, change)

    def alone(self) -> None:
        """Have no other command write these records until this one ends: the registry cannot compare before it writes.

        Waits up to PATIENCE seconds for one that does. Raises HostBusy. The executor writes none of them.
        """
        until = time.monotonic() + PATIENCE
        while True:
            try:
                take_locks(self.cluster.hosts[:1])
                return
            except HostBusy:
                if time.monotonic() > until:
                    raise
            time.sleep(0.2)

    def trash(self) -> list[Trashed]:
        """What is in the trash."""
        return list(retry(lambda: store.read_trash(self.registry, self.key), PATIENCE))


@contextmanager
def opened(file: Path | RegistryCluster | None, reporter: Reporter) -> Iterator[Desk]:
    """The desk of the cluster in *file*, as in ``terminal.registry``. Raises Error (NoExecutor) and what that does."""
    with terminal.registry(file, reporter) as (cluster, _, _), desk(cluster)() as registry:
        yield Desk(cluster, registry, cluster.secrets.retention_key, server_time(cluster))


def server_time(cluster: Cluster) -> int:
    """The time of the nodes, which agree on it: this machine's clock may be any."""
    said = side_by_side(lambda host: float(host.query("date", "+%s").text), cluster.hosts)
    return int(statistics.median(said))
