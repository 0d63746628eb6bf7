"""The way to the registry: its CA and credentials, as the Secret ``registry`` has them in a directory of the pod.

==============  ======================================================================
ca.crt          the cluster CA; without it nothing can be looked at
username        ``push``: the ledger of retention is kept in the registry
password
retention-key   signs the ledger; without it there are no plans
metrics.pem     certificate and key that read the agents' metrics, and nothing else
helper-key      the SSH key that asks the nodes' helpers; without it nothing is carried out
helper-hosts    the nodes' host keys, as known_hosts
==============  ======================================================================

Files are read for each round, so a Secret that changes needs no restart.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography import x509

from kubeadm_registry import paths
from kubeadm_registry.access import collecting
from kubeadm_registry.access.collecting import Member
from kubeadm_registry.access.executor import ByHelper
from kubeadm_registry.components.helper import USER as HELPER_USER
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.registry import Login, Registry
from kubeadm_registry.transport.ssh_command import ask
from kubeadm_registry.transport.ssh_config import SshTarget

CA, USER, PASSWORD, KEY, METRICS = "ca.crt", "username", "password", "retention-key", "metrics.pem"
HELPER_KEY, HELPER_HOSTS = "helper-key", "helper-hosts"
Dial = Callable[[str, int], tuple[str, int]]
_HINT = "run `kubeadm-registry operator install` with the cluster file: it writes the Secret"


def directly(address: str, port: int) -> tuple[str, int]:
    """Where to connect for *address* and *port*: there."""
    return address, port


@dataclass(frozen=True, slots=True)
class Way:
    """The CA (PEM), who we are in the registry, the key of the ledger (or empty) and the file that reads metrics.

    *helper* are the files of the SSH key and of the nodes' host keys. *dial* says where to connect for an address that
    certificates name.
    """

    ca: str
    login: Login | None = None
    key: str = field(default="", repr=False)
    metrics: Path | None = None
    helper: tuple[Path, Path] | None = None
    dial: Dial = directly

    def registry(self, address: str, *, timeout: float) -> Callable[[], Registry]:
        """What connects to the registry at *address*; *timeout* is seconds of silence."""
        via = self.dial(address, paths.REGISTRY_PORT)
        return partial(Registry, address, paths.REGISTRY_PORT, ca=self.ca, login=self.login, via=via, timeout=timeout)

    def nodes(self, cluster: RegistryCluster) -> list[ByHelper] | None:
        """The nodes of *cluster*, each to be asked by its helper; None without a key for that."""
        found = [self.node(cluster, node) for node in cluster.spec.nodes]
        return None if self.helper is None else [one for one in found if one is not None]

    def node(self, cluster: RegistryCluster, node: Node) -> ByHelper | None:
        """A *node* of *cluster*, or one that was or is to be, to be asked by its helper; None without a key for that.

        It is known by ``hostKey``, where that is set.
        """
        if self.helper is None:
            return None
        key, hosts = self.helper
        target = SshTarget(
            node.name, node.address, HELPER_USER, cluster.spec.ssh_port(node),
            identity_file=key, known_hosts_file=hosts, host_key=node.host_key, config_file=Path(os.devnull),
        )  # fmt: skip
        return ByHelper(node.name, partial(ask, target))

    def members(self, cluster: RegistryCluster) -> list[Member] | None:
        """The same nodes, for freeing space."""
        nodes = self.nodes(cluster)
        return None if nodes is None else [collecting.ByHelper(one.name, one.ask) for one in nodes]

    def trust(self) -> ssl.SSLContext:
        """TLS that trusts the cluster CA alone."""
        return ssl.create_default_context(cadata=self.ca)


def read(directory: Path, dial: Dial = directly) -> Way:
    """The way by the files in *directory*. Raises ConfigError (NoCredentials)."""
    ca = _text(directory / CA)
    if not ca:
        raise ConfigError(f"there is no {CA} in {directory}", hint=_HINT, code="NoCredentials")
    try:
        x509.load_pem_x509_certificate(ca.encode())
    except ValueError as error:
        raise ConfigError(f"{directory / CA} is not a certificate", hint=_HINT, code="NoCredentials") from error
    user, password = _text(directory / USER), _text(directory / PASSWORD)
    metrics, helper = directory / METRICS, (directory / HELPER_KEY, directory / HELPER_HOSTS)
    return Way(
        ca,
        Login(user, password) if user and password else None,
        _text(directory / KEY),
        metrics if metrics.is_file() else None,
        helper if all(file.is_file() for file in helper) else None,
        dial,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint=_HINT, code="NoCredentials") from error
