"""What the operator is told by its environment, and how it logs in to the API server."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kubeadm_registry.custom_resources.names import NAMESPACE, PORT, SECRET_DIRECTORY
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.operator.leadership import Times
from kubeadm_registry.upkeep import kubeconfig
from kubeadm_registry.upkeep.api import Api

PREFIX = "KUBEADM_REGISTRY_OPERATOR_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one replica, called *name*. Without *kubeconfig* it logs in by the service account of its pod.

    *files* is the directory with what it takes to reach the registry (see ``way.py``). *port* is for metrics and
    probes, on all addresses. *health*, *images*, *plans*, *space*, *replacement*, *certificates* and *clients* are
    the seconds between two rounds of each kind.
    """

    name: str
    namespace: str = NAMESPACE
    kubeconfig: Path | None = None
    files: Path = Path(SECRET_DIRECTORY)
    port: int = PORT
    health: float = 30.0
    images: float = 300.0
    plans: float = 3600.0
    space: float = 600.0
    replacement: float = 30.0
    certificates: float = 3600.0
    clients: float = 60.0
    times: Times = field(default_factory=Times)

    def api(self, *, patience: float) -> Api:
        """A client of the API server, for one thread; a request may be repeated for *patience* seconds.

        Raises ConfigError.
        """
        agent = f"kubeadm-registry-operator/{self.name}"
        if self.kubeconfig is not None:
            return kubeconfig.by_kubeconfig(self.kubeconfig, patience=patience, agent=agent)
        return kubeconfig.in_cluster(patience=patience, agent=agent)


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings that the variables ``KUBEADM_REGISTRY_OPERATOR_{NAME,NAMESPACE,...}`` say. Raises ConfigError."""
    given = {key.removeprefix(PREFIX): value for key, value in environment.items() if key.startswith(PREFIX)}

    def number(key: str, default: float) -> float:
        try:
            return float(given.get(key, default))
        except ValueError:
            raise ConfigError(f"{PREFIX}{key} is not a number", hint="set it to seconds", code="UsageInvalid") from None

    default = Settings(socket.gethostname())
    lease = number("LEASE_SECONDS", default.times.duration)
    path = environment.get("KUBECONFIG", "")  # the name by which kopf knows it, too
    return Settings(
        given.get("NAME", default.name),
        given.get("NAMESPACE", default.namespace),
        Path(path) if path else None,
        Path(given.get("FILES", default.files)),
        int(number("PORT", default.port)),
        number("HEALTH_SECONDS", default.health),
        number("IMAGES_SECONDS", default.images),
        number("PLANS_SECONDS", default.plans),
        number("SPACE_SECONDS", default.space),
        number("REPLACEMENT_SECONDS", default.replacement),
        number("CERTIFICATES_SECONDS", default.certificates),
        number("CLIENTS_SECONDS", default.clients),
        Times(lease),
    )
