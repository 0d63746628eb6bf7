"""Load the images of a bundle into the registry of a cluster, and check them through every node."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kubeadm_registry.access.reach import ReadFailure, connection, prove
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.images import seed as seeding
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.images.pool import WORKERS
from kubeadm_registry.registry import Limit


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of it: bytes *sent*, what cannot be read, and the nodes that could not be asked, with the reason."""

    sent: int
    flaws: Sequence[ReadFailure]
    unproven: Mapping[str, str]


def load(
    cluster: Cluster, bundle: Bundle, items: Sequence[seeding.Item], journal: Journal, *, direct: bool,
    workers: int = WORKERS, allow_older: bool = False, progress: seeding.Progress = lambda done, total: None,
    limit: Limit | None = None, stop: threading.Event | None = None,
) -> Loaded:  # fmt: skip
    """Push what the registry lacks of *items*, which *bundle* has, and look for all of them at every node.

    *direct*: by the registry's own network. Raises what ``Seeder.run`` does, and RegistryError if the virtual IP does
    not answer.
    """
    push = connection(cluster, cluster.hosts[0], cluster.spec.vip.address, direct=direct)
    run = seeding.Seeder(
        bundle, push, journal, workers=workers, allow_older=allow_older, progress=progress, limit=limit, stop=stop
    )
    sent = run.run(items)
    flaws, silent = prove(cluster, items, workers, direct=direct, known=run.known)
    unproven = {**cluster.absent, **silent}
    journal.conclude(bundle.layout.lineage.index, proven=not (flaws or unproven))
    return Loaded(sent, flaws, unproven)
