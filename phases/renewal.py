"""What the storage has lost a part of.

The storage still lists such a blob, so the registry says that it is there and takes no other. Its object is deleted;
Distribution, which remembers the blobs that it has, starts again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kubeadm_registry.access import presence
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.components import s3
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.engine.changes import Steps, wait
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.errors import Error
from kubeadm_registry.phases.verify import serves
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.host import Host

#: Seconds for all deletions, and the transient unit that makes them.
LONGEST, UNIT = 1800.0, "kubeadm-registry-renewal"
#: Seconds that a registry has to serve again.
SERVED = 60.0


@dataclass(frozen=True, slots=True)
class Renewal:
    """One run: *keys* are those of the objects that go. The frontends restart once, whatever a run before has done."""

    keys: frozenset[str]

    @property
    def delete(self) -> Phase:
        """Nothing of a blob is listed that cannot be read."""
        return Phase("blobs", "Delete what is left of blobs that cannot be read", self._delete, on=leader)

    @property
    def restart(self) -> Phase:
        """No frontend remembers them."""
        return Phase("restart", "Restart the registry on each node", self._restart, one_at_a_time=True)

    def _delete(self, cluster: Cluster, host: Host) -> Steps:
        if self.keys:
            yield _Deleted(cluster, self.keys)

    def _restart(self, cluster: Cluster, host: Host) -> Steps:
        if not frontend(cluster.spec).FREES_BLOBS:
            yield _Restarted(cluster)


@dataclass(frozen=True, slots=True)
class _Deleted:
    cluster: Cluster
    keys: frozenset[str]
    title = "delete unreadable blobs"

    def diff(self, host: Host) -> str | None:
        broken = presence.broken(self.cluster, self.keys)
        return f"{counted(len(broken), 'blob')} of which the storage has lost a part: deleted" if broken else None

    def apply(self, host: Host) -> None:
        # Once more: somebody may have pushed one again.
        keys = presence.broken(self.cluster, self.keys)
        gone = s3.delete(self.cluster, host, backend(self.cluster.spec).REGION, keys, seconds=LONGEST, unit=UNIT)
        if left := len(keys - gone):
            raise Error(f"{left} blobs were not deleted in time", host=host.name, code="DeletionLate",
                        hint="run the command again")  # fmt: skip


@dataclass
class _Restarted:
    cluster: Cluster
    title = "restart the registry"
    _done: bool = False

    def diff(self, _: Host) -> str | None:
        return None if self._done else "the registry restarts, to forget the blobs that were deleted"

    def apply(self, host: Host) -> None:
        for other in self.cluster.hosts:  # while one restarts, the others serve
            wait(other, self._served(other), what="the node serves reads", timeout=SERVED)
        host.run("systemctl", "restart", "--", frontend(self.cluster.spec).SERVICE.unit, timeout=SERVED)
        wait(host, self._served(host), what="the node serves reads", timeout=SERVED)
        self._done = True

    def _served(self, host: Host) -> Callable[[Host], str | None]:
        return partial(serves, self.cluster, self.cluster.node(host).address)
