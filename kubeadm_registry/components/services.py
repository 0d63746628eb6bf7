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
    """The largest size in bytes of a block; the agent counts the blocks that are still to be copied to a node."""
    DATA: tuple[str, ...]
    """Directories below its own. While one contains a file, no new secrets are generated: they could not read it."""

    def copies(self, servers: int, /) -> int:
        """Number of copies of each block on so many *servers*."""

    def clear(self, cluster: Cluster, host: Host, /) -> Steps:
        """Remove what *host*, which joins the registry, stored when it was a member earlier.

        That data is outdated and must not return. What it already stores as a member of the new list stays."""

    def install(self, cluster: Cluster, host: Host, /) -> Steps:
        """Install it on *host* and start it."""

    def form(self, cluster: Cluster, host: Host, /) -> Steps:
        """Create the storage cluster, with key and bucket; done on one *host*."""

    def move(self, cluster: Cluster, host: Host, /) -> Steps:
        """Add the new members of a changed list to the layout, and remove those that left; done on one *host*.

        Reads and writes continue, and nodes that leave keep their data until the others have it."""

    def copied(self, cluster: Cluster, host: Host, /) -> Steps:
        """Wait until every member of a changed list has its copies; done on one *host*."""

    def joined(self, cluster: Cluster, host: Host, /) -> Steps:
        """Wait until it is fully replicated as *host* sees it."""

    def gate(self, cluster: Cluster, /) -> Condition:
        """A condition that is None when the storage, or a frontend that needs it, may be restarted on a host."""

    def existing(self, host: Host, /) -> Existing | None:
        """The settings that it was installed with on *host*; None without CONFIG. Raises Error if CONFIG is damaged."""

    def formed(self, host: Host, data_directory: str, /) -> bool:
        """Whether it may have stored data on *host*."""

    def is_ours(self, cluster: Cluster, host: Host, /) -> bool:
        """Whether its directory on *host* was created by this cluster; then reset may delete it."""

    def stored(self, cluster: Cluster, host: Host, /) -> int:
        """Bytes in the frontend's bucket, without replicas, as *host* knows it. Raises NotYetKnown."""

    def places(self, cluster: Cluster, host: Host, /) -> frozenset[str]:
        """Names of the nodes in the layout that *host* knows; empty before there is one. Raises NotYetKnown."""

    def incoming(self, cluster: Cluster, host: Host, /) -> int:
        """Bytes that *host* must copy as a member of the changed list, besides those it has. Raises NotYetKnown."""

    def abandon(self, cluster: Cluster, host: Host, seconds: int, /) -> int:
        """Delete uploads to the bucket that began more than *seconds* ago and did not end; returns how many."""

    def blocks(self, cluster: Cluster, host: Host, keys: Sequence[str], /) -> Sequence[Mapping[str, int] | None]:
        """For each of the objects *keys* in the bucket its blocks, by hash with their bytes; None: no such object."""

    def lacking(self, cluster: Cluster, host: Host, wanted: Mapping[str, int], /) -> frozenset[str]:
        """The blocks in *wanted* that are not on the disk of *host*. Raises Error (StorageUnreadable)."""

    def lost(self, cluster: Cluster, /) -> Mapping[str, int]:
        """By node, how many blocks it failed to copy that are on no node's disk, so that it will never get them.

        Raises Error (StorageUnreadable) if a node does not report what it has."""

    def agent_storage(self) -> dict[str, object] | None:
        """The agent's setting ``storage`` (docs/agent.md); None: the agent only reads the canary image."""

    def agent_peer(self, cluster: Cluster, name: str, /) -> dict[str, object]:
        """Further settings of the agent for the peer *name*."""

    def agent_token(self, cluster: Cluster, /) -> str:
        """The admin token that the agent uses; empty: none."""


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
        """Further settings of the agent in ``frontend`` (docs/agent.md), besides type and unit."""

    def key(self, repository: str, digest: str, /) -> str:
        """The key of the blob *digest* of *repository* in its bucket."""

    def records(self, repository: str, /) -> tuple[str, ...]:
        """The keys of the objects that it must read before it finds any image in *repository*."""


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
    """The VIP manager. There is only one, so the cluster file has no key for it."""
    return VIP_MANAGERS["keepalived"]


def services(spec: Spec) -> tuple[Service, ...]:
    """The services on a cluster's nodes that status and RUNBOOK list, in the order in which they start."""
    return (
        network.SERVICE,
        backend(spec).SERVICE,
        frontend(spec).SERVICE,
        haproxy.SERVICE,
        agent.SERVICE,
        vip_manager(spec).SERVICE,
    )


def users(spec: Spec) -> tuple[Service, ...]:
    """The services that have a system user: those of ``services``, and those on which no pull or push depends."""
    return tuple(service for service in (*services(spec), retention.SERVICE, pulls.SERVICE) if service.user)


def every_service() -> tuple[Service, ...]:
    """The services that any cluster file may have installed on a node, in the order in which they start."""
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
    """The directories that may contain data of a registry, for every backend."""
    return [
        f"{spec.data_directory}/{part.SERVICE.name}/{directory}"
        for part in BACKENDS.values()
        for directory in part.DATA
    ]


def existing(host: Host) -> Existing | None:
    """The settings that any backend was installed with on *host*; None on a bare host. Raises Error if damaged."""
    return next((made for part in BACKENDS.values() if (made := part.existing(host)) is not None), None)


def formed(host: Host, data_directory: str) -> bool:
    """Whether any backend may have stored data in *data_directory* on *host*."""
    return any(part.formed(host, data_directory) for part in BACKENDS.values())
