"""Which services a registry node has, and which of them can be exchanged. Everything that lists services reads this.

A further backend is

1. a module beside this one with the names that `Backend` below lists; ``tests/unit/toy/backend.py`` is the smallest,
2. a directory ``templates/<its name>`` with ``unit.j2``, its systemd unit, and ``runbook.j2``, its part of the RUNBOOK,
3. a line in BACKENDS.

Two formats name it as well: the values of ``spec.backend.type`` in ``config/model.py`` (a test compares them with the
table), and ``bundle/catalogue.yaml``, where its program comes from. A frontend and a VIP manager are added in the same
way. Phases, settings of the node agent, status, firewall rules, port checks, reset, RUNBOOK and support archive
need no change.

Modules of services do not import this one: phases pass them what they need of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import (
    agent,
    distribution,
    garage,
    haproxy,
    keepalived,
    network,
    pulls,
    retention,
    zot,
)
from kubeadm_registry.components.existing import Existing
from kubeadm_registry.components.units import Service
from kubeadm_registry.config import Spec
from kubeadm_registry.engine.changes import Condition, Steps
from kubeadm_registry.transport.host import Host


class Backend(Protocol):
    """The storage: serves S3 at ``s3.url()``, with the key of the secrets and the bucket ``s3.bucket()``."""

    SERVICE: Service
    """Its directory in spec.dataDirectory has the name of the service."""
    CONFIG: str
    """Its configuration file: on the host from the first init to reset."""
    REGION: str
    """The S3 region for which requests are signed."""
    BLOCK: int
    """Bytes that one of the blocks has at most which the agent counts, where some have yet to be copied to a node."""
    DATA: tuple[str, ...]
    """Directories below its own. While one contains a file, no new secrets are generated, which could not read it."""

    def copies(self, servers: int, /) -> int:
        """Number of copies of each block on so many *servers*."""

    def clear(self, cluster: Cluster, host: Host, /) -> Steps:
        """Remove what *host*, which comes to the registry, stored when it was a member before.

        It is out of date, and must not come back. What it stores already as a member of the new list stays."""

    def install(self, cluster: Cluster, host: Host, /) -> Steps:
        """Install it on *host* and start it."""

    def form(self, cluster: Cluster, host: Host, /) -> Steps:
        """Create the storage cluster, with key and bucket; done on one *host*."""

    def move(self, cluster: Cluster, host: Host, /) -> Steps:
        """Give the members of a changed list their places in it, and take those that left theirs; done on one *host*.

        Reads and writes go on, and the data of those that leave stays where it is until the others have it."""

    def copied(self, cluster: Cluster, host: Host, /) -> Steps:
        """Wait until every member of a changed list has its copies; done on one *host*."""

    def joined(self, cluster: Cluster, host: Host, /) -> Steps:
        """Wait until it is fully replicated as *host* sees it."""

    def gate(self, cluster: Cluster, /) -> Condition:
        """Says None when the storage, or a frontend that needs it, may be restarted on a host."""

    def existing(self, host: Host, /) -> Existing | None:
        """What it was set up with on *host*; None without CONFIG. Raises Error if CONFIG is damaged."""

    def formed(self, host: Host, data_directory: str, /) -> bool:
        """Whether it may have stored data on *host*."""

    def is_ours(self, cluster: Cluster, host: Host, /) -> bool:
        """Whether its directory on *host* was created by this cluster; then reset may delete it."""

    def stored(self, cluster: Cluster, host: Host, /) -> int:
        """Bytes of what the frontend keeps in its bucket, each once, as *host* knows it. Raises NotYetKnown."""

    def places(self, cluster: Cluster, host: Host, /) -> frozenset[str]:
        """Names of the nodes that have a place in it as *host* knows it; none before it stores. Raises NotYetKnown."""

    def incoming(self, cluster: Cluster, host: Host, /) -> int:
        """Bytes that *host* is to take as a member of the changed list, beside what it has. Raises NotYetKnown."""

    def abandon(self, cluster: Cluster, host: Host, seconds: int, /) -> int:
        """Drop uploads to the bucket that began more than *seconds* ago and did not end; how many there were."""

    def blocks(self, cluster: Cluster, host: Host, keys: Sequence[str], /) -> Sequence[Mapping[str, int] | None]:
        """The blocks, by hash with their bytes, of each of the objects *keys* of the bucket; None: not there."""

    def lacking(self, cluster: Cluster, host: Host, wanted: Mapping[str, int], /) -> frozenset[str]:
        """Those of the blocks *wanted* that *host* does not have on its disk. Raises Error (StorageUnreadable)."""

    def lost(self, cluster: Cluster, /) -> Mapping[str, int]:
        """How many blocks each node has failed to get that are on no node's disk: it will never get them.

        Raises Error (StorageUnreadable) if a node does not tell what it has."""

    def agent_storage(self) -> dict[str, object] | None:
        """The value ``storage`` of the node agent (docs/agent.md); None: the agent only reads the canary image."""

    def agent_peer(self, cluster: Cluster, name: str, /) -> dict[str, object]:
        """Further values of the peer *name* for the node agent."""

    def agent_token(self, cluster: Cluster, /) -> str:
        """The admin token for the node agent; empty: none."""


class Frontend(Protocol):
    """The registry program, on loopback behind HAProxy, without authentication of its own."""

    SERVICE: Service
    SINGLE_WRITER: bool
    """Whether only one node may write at a time; the node agents then elect it."""
    FREES_BLOBS: bool
    """Whether DELETE of a blob frees its bytes, and is refused while a manifest of its repository needs it."""

    def install(self, cluster: Cluster, host: Host, storage: Backend, /) -> Steps:
        """Install it on *host* and start it."""

    def agent_frontend(self) -> dict[str, object]:
        """Further values of ``frontend`` for the node agent (docs/agent.md), besides type and unit."""

    def key(self, repository: str, digest: str, /) -> str:
        """The key of the blob *digest* of *repository* in its bucket."""

    def records(self, repository: str, /) -> tuple[str, ...]:
        """The keys of what it must read before it finds any image of *repository*."""


class VipManager(Protocol):
    """Keeps the virtual IP on one node whose agent has written 1 to ``paths.FIT``."""

    SERVICE: Service

    def install(self, cluster: Cluster, host: Host, /) -> Steps:
        """Install it on *host* and start it."""


BACKENDS: dict[str, Backend] = {"garage": garage}
FRONTENDS: dict[str, Frontend] = {"zot": zot, "distribution": distribution}
VIP_MANAGERS: dict[str, VipManager] = {"keepalived": keepalived}


def backend(spec: Spec) -> Backend:
    """The storage of a cluster."""
    return BACKENDS[spec.backend.type]


def frontend(spec: Spec) -> Frontend:
    """The registry program of a cluster."""
    return FRONTENDS[spec.frontend.type]


def vip_manager(_: Spec) -> VipManager:
    """What moves the virtual IP; there is one kind, so the cluster file has no key for it."""
    return VIP_MANAGERS["keepalived"]


def services(spec: Spec) -> tuple[Service, ...]:
    """The services of a cluster's nodes as status and RUNBOOK name them, in the order in which they start."""
    return (
        network.SERVICE,
        backend(spec).SERVICE,
        frontend(spec).SERVICE,
        haproxy.SERVICE,
        agent.SERVICE,
        vip_manager(spec).SERVICE,
    )


def users(spec: Spec) -> tuple[Service, ...]:
    """The services with users on a cluster's nodes: those above, and what no pull and no push depends on."""
    return tuple(service for service in (*services(spec), retention.SERVICE, pulls.SERVICE) if service.user)


def every_service() -> tuple[Service, ...]:
    """All that any cluster file may have put on a node, in the order in which they start."""
    exchangeable: tuple[Mapping[str, Backend | Frontend], ...] = (BACKENDS, FRONTENDS)
    return (
        network.GUARD,
        network.SERVICE,
        *(part.SERVICE for table in exchangeable for part in table.values()),
        haproxy.SERVICE,
        agent.SERVICE,
        *(part.SERVICE for part in VIP_MANAGERS.values()),
        retention.SERVICE,
        pulls.SERVICE,
    )


def data_directories(spec: Spec) -> list[str]:
    """Where data of a registry may be, of any backend."""
    return [
        f"{spec.data_directory}/{part.SERVICE.name}/{directory}"
        for part in BACKENDS.values()
        for directory in part.DATA
    ]


def existing(host: Host) -> Existing | None:
    """What *host* was set up with, by any backend; None on a bare one. Raises Error if that cannot be told."""
    return next((made for part in BACKENDS.values() if (made := part.existing(host)) is not None), None)


def formed(host: Host, data_directory: str) -> bool:
    """Whether a storage of any backend in *data_directory* may store something on *host* already."""
    return any(part.formed(host, data_directory) for part in BACKENDS.values())
