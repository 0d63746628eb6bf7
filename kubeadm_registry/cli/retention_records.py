"""The records of retention, as commands read and write them through the node that holds the lease."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kubeadm_registry.access.retention_records import record_writer
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
class Records:
    """Reads and writes the records of *cluster*, signed by *key*, in its *registry*; *now* is the nodes' time."""

    cluster: Cluster
    registry: Api
    key: str
    now: int

    def standing(self) -> Standing:
        """Pins and approvals."""
        return retry(lambda: store.read_standing(self.registry, self.key), PATIENCE)

    def restate(self, change: Callable[[Standing], Standing]) -> None:
        """Replace pins and approvals by what *change* returns for them. Raises HostBusy."""
        self.alone()
        restate(self.registry, self.key, change)

    def alone(self) -> None:
        """Lock out other commands that write these records until this one ends: the registry has no compare-and-swap.

        Waits up to PATIENCE seconds for such a command. Raises HostBusy. The executor writes none of these records.
        """
        until = time.monotonic() + PATIENCE
        while True:
            try:
                # All: the first one of another file, or of those that another workstation reaches, may be another.
                take_locks(self.cluster.hosts)
                return
            except HostBusy:
                if time.monotonic() > until:
                    raise
            time.sleep(0.2)

    def trash(self) -> list[Trashed]:
        """What is in the trash."""
        return list(retry(lambda: store.read_trash(self.registry, self.key), PATIENCE))


@contextmanager
def opened(file: Path | RegistryCluster | None, reporter: Reporter) -> Iterator[Records]:
    """The records of the cluster in *file*. Raises Error (NoExecutor), and what ``terminal.registry`` raises."""
    with terminal.registry(file, reporter) as (cluster, _, _), record_writer(cluster)() as registry:
        yield Records(cluster, registry, cluster.secrets.retention_key, server_time(cluster))


def server_time(cluster: Cluster) -> int:
    """The median of the nodes' clocks, in seconds since 1970: this machine's clock may be wrong."""
    said = side_by_side(lambda host: float(host.query("date", "+%s").text), cluster.hosts)
    return int(statistics.median(said))
