"""Which services a registry node has, and which of them can be exchanged. Everything that lists services reads this.

A further backend is

1. a module beside this one that has what `Backend` below asks for; ``garage.py`` is the example,
2. a directory ``templates/<its name>`` with ``unit.j2``, its systemd unit, and ``runbook.j2``, its part of the RUNBOOK,
3. a line in BACKENDS, and its name among the values of ``spec.backend.type`` (``config/model.py``).

A frontend and a VIP manager are added in the same way. Phases, settings of the node agent, status, firewall rules,
reset and RUNBOOK need no change. Modules of services do not import this one: they are given what they need of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent, distribution, garage, haproxy, keepalived, network, zot
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
    DATA: tuple[str, ...]
    """Directories in its own: with a file in one of them, no new secrets are made, which could not open it."""

    def copies(self, servers: int, /) -> int:
        """How many of so many *servers* keep each block."""

    def install(self, cluster: Cluster, host: Host, /) -> Steps:
        """Install it on *host* and start it."""

    def form(self, cluster: Cluster, host: Host, /) -> Steps:
        """Make one storage of the servers, with key and bucket; done on one *host*."""

    def joined(self, cluster: Cluster, host: Host, /) -> Steps:
        """Wait until it is fully replicated as *host* sees it."""

    def gate(self, cluster: Cluster, /) -> Condition:
        """Says None while it, or a frontend that needs it, may be restarted on a host."""

    def existing(self, host: Host, /) -> Existing | None:
        """What it was set up with on *host*; None without CONFIG. Raises Error if that cannot be told."""

    def formed(self, host: Host, data_directory: str, /) -> bool:
        """Whether it may store something on *host* already."""

    def is_ours(self, cluster: Cluster, host: Host, /) -> bool:
        """Whether its directory on *host* is known to be of this cluster; then reset may delete it."""

    def agent_storage(self) -> dict[str, object] | None:
        """What the node agent looks after, ``storage`` in docs/agent.md; None: it only reads the canary image."""

    def agent_peer(self, cluster: Cluster, name: str, /) -> dict[str, object]:
        """What the node agent needs besides to know of the storage of the peer *name*."""

    def agent_token(self, cluster: Cluster, /) -> str:
        """The token with which the node agent may administer it; empty: none."""


class Frontend(Protocol):
    """The registry program, on loopback behind HAProxy, without a login of its own."""

    SERVICE: Service
    SINGLE_WRITER: bool
    """Whether only one server may write at a time; the node agents then elect it."""

    def install(self, cluster: Cluster, host: Host, storage: Backend, /) -> Steps:
        """Install it on *host* and start it."""

    def agent_frontend(self) -> dict[str, object]:
        """What the node agent needs besides type and unit, ``frontend`` in docs/agent.md."""

    def key(self, repository: str, digest: str, /) -> str:
        """Where it keeps the blob *digest* of *repository* in its bucket."""


class VipManager(Protocol):
    """Keeps the virtual IP at one server on which the node agent's file ``paths.FIT`` says 1."""

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
