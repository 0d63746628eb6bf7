"""From a cluster file to a Cluster: connects to every node, in parallel, and finds secrets and programs.

Nothing here asks a terminal, reads the environment or prints: ``Prompts`` and ``Note`` come from the caller.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from kubeadm_registry import whoami
from kubeadm_registry.addresses import ip, is_ipv6
from kubeadm_registry.agent.netlink import Addresses
from kubeadm_registry.bundle import TOOL, Bundle, Program, opened
from kubeadm_registry.cluster import Cluster, read_members, read_vault
from kubeadm_registry.components import programs
from kubeadm_registry.components.services import data_directories, services
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.config.client_list import ClientNode
from kubeadm_registry.errors import ConfigError, ConnectionFailed, Error
from kubeadm_registry.printable import Level
from kubeadm_registry.secrets import Secrets, Vault
from kubeadm_registry.transport.host import Host, Transport, side_by_side
from kubeadm_registry.transport.local import Local
from kubeadm_registry.transport.ssh import UNREACHABLE, SshTarget, connect


class Note(Protocol):
    """Takes what is worth knowing and fails nothing. ``Reporter.note`` is one."""

    def __call__(self, text: str, *, host: str = "", level: Level = "info") -> None:
        """Take *text*, about *host* if it is about one."""


def _nothing(*_: object) -> None:
    """Answer no question."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """The secrets of whoever connects: those known already, and where to ask for the others."""

    sudo_password: str | None = field(default=None, repr=False)
    ask_sudo_password: Callable[[], str | None] = _nothing
    """Asked once for all nodes that want a password for sudo and did not take *sudo_password*. None: give up."""
    passphrase: Callable[[Path], str | None] = _nothing
    """Asked for the passphrase of a private key. None: do without that key."""


def host(config: RegistryCluster, node: Node, prompts: Prompts) -> Host:
    """*node*, connected. Raises ConnectionFailed."""
    return Host(node.name, node.address, reach(config, node, prompts))


def target(config: RegistryCluster, node: Node | ClientNode, prompts: Prompts) -> SshTarget:
    """How to reach *node*: its own settings over those for all."""
    ssh = node.ssh.over(config.spec.ssh)
    return SshTarget(
        name=node.name,
        address=node.address,
        user=ssh.user,
        port=ssh.port,
        identity_file=_path(ssh.identity_file),
        known_hosts_file=_path(ssh.known_hosts_file),
        host_key=node.host_key if isinstance(node, Node) else None,
        sudo_password=prompts.sudo_password,
        passphrase=prompts.passphrase,
        source=own_address(config, node.address) if isinstance(node, Node) else None,
    )


def own_address(config: RegistryCluster, peer: str) -> str | None:
    """By which address *peer* knows this machine, if it is a node: it may let in no other (components/replacing).

    Of several in one network the kernel could take another one.
    """
    own = (at for one in config.spec.nodes for at in one.addresses if is_ipv6(at) == is_ipv6(peer))
    return next(filter(is_here, own), None)


def _path(text: str | None) -> Path | None:
    return None if text is None else whoami.expand(text)


def is_here(address: str) -> bool:
    """Whether *address* is one of this machine. A name is not, since it may be one of ssh_config alone.

    The kernel's routes say it. That a socket can be bound says nothing: with ``ip_nonlocal_bind``, which is usual
    beside keepalived, each address can. Where the kernel cannot be asked, SSH leads to this machine as well.
    """
    parsed = ip(address)
    if parsed is None or parsed.is_unspecified or parsed.is_multicast or not hasattr(socket, "AF_NETLINK"):
        return False
    try:
        with closing(Addresses()) as addresses:
            return addresses.here(address)
    except OSError:
        return False


def reach(config: RegistryCluster, node: Node | ClientNode, prompts: Prompts) -> Transport:
    """Connect to *node*; to this very machine without SSH. Raises ConnectionFailed."""
    # A client with a port of its own is somebody behind this machine, such as a virtual one.
    behind = isinstance(node, ClientNode) and node.ssh.port is not None
    if os.geteuid() == 0 and not behind and is_here(node.address):
        return Local(node.name)
    return connect(target(config, node, prompts))


def attempt(config: RegistryCluster, node: Node, prompts: Prompts) -> Host:
    """Connect to *node*, asking nothing. Raises ConnectionFailed."""
    return host(config, node, replace(prompts, passphrase=_nothing))


def attempt_all(config: RegistryCluster, prompts: Prompts) -> tuple[list[Host], dict[str, str]]:
    """Every host that can be reached, connected side by side, and why each of the others cannot."""
    reached, failures = _attempt(config, prompts)
    return reached, {failure.host: f"{failure.message} ({failure.hint})" for failure in failures}


def secrets(config: RegistryCluster, prompts: Prompts, note: Note) -> Secrets:
    """The cluster's secrets, of any server that answers: one may be lost. Raises ConnectionFailed, or Error."""
    with reading(config, prompts, note) as read:
        return installed_secrets(read())


@contextmanager
def reading(config: RegistryCluster, prompts: Prompts, note: Note) -> Iterator[Callable[[], Vault]]:
    """What reads the secrets of the servers that answer, each time. Raises ConnectionFailed if none does, or Error."""
    reached, failures = _attempt(config, prompts)
    try:
        if not reached:
            raise _told(failures, note)
        yield partial(read_vault, config, reached, data_directories(config.spec))
    finally:
        for host in reached:
            host.transport.close()


def installed_secrets(vault: Vault) -> Secrets:
    """The secrets of a registry that was made. Raises Error (NotInstalled), NotYetKnown if this release needs more."""
    if not vault.made:
        raise Error("the nodes have no secrets yet", hint="run init first", code="NotInstalled")
    return vault.secrets


def _attempt(config: RegistryCluster, prompts: Prompts) -> tuple[list[Host], list[ConnectionFailed]]:
    """Connect to every host. Where sudo wants a password, it is asked for, once for all."""
    results = _connect(config, config.spec.nodes, prompts)
    wanting = [node for node, one in zip(config.spec.nodes, results, strict=True) if _needs_password(one)]
    if wanting and (password := prompts.ask_sudo_password()) is not None:
        again = iter(_connect(config, wanting, replace(prompts, sudo_password=password)))
        results = [next(again) if _needs_password(one) else one for one in results]
    reached = [result for result in results if isinstance(result, Host)]
    return reached, [result for result in results if isinstance(result, ConnectionFailed)]


def _needs_password(result: Host | ConnectionFailed) -> bool:
    return isinstance(result, ConnectionFailed) and result.code == "SudoNeeded"


def _connect(config: RegistryCluster, nodes: Sequence[Node], prompts: Prompts) -> list[Host | ConnectionFailed]:
    def attempt(node: Node) -> Host | ConnectionFailed:
        try:
            return host(config, node, prompts)
        except ConnectionFailed as error:
            error.host = error.host or node.name
            return error

    return side_by_side(attempt, nodes)


def _told(failures: Sequence[ConnectionFailed], note: Note) -> ConnectionFailed:
    """The first of the *failures*, to be raised; the others are told of."""
    for failure in failures[1:]:
        note(f"{failure.message} ({failure.hint})", host=failure.host)
    return failures[0]


def can_miss(config: RegistryCluster, reached: int, failures: Sequence[ConnectionFailed], vault: Vault) -> bool:
    """Whether the work can be done on the *reached* hosts alone.

    Only a cluster that was made once can, and of which all secrets are known: the missing server may have those that
    the others lack. More than half of it must be there, for else its storage takes nothing; and a host that answers
    and is not trusted is not one that is down.
    """
    down = all(failure.code == UNREACHABLE for failure in failures)
    return vault.known and down and 2 * reached > len(config.spec.nodes)


def open_bundle(path: Path, key: Path | None, note: Note) -> AbstractContextManager[Bundle]:
    """The bundle *path*, which *key* must have signed; None: nobody asks for a signature.

    Raises ConfigError (BundleMissing), and as a context manager what ``bundle.opened`` does.
    """
    if not path.exists():
        raise ConfigError(f"no such bundle: {path}", code="BundleMissing",
                          hint="check the path, or create one with `kubeadm-registry bundle create`")  # fmt: skip
    return opened(path, key, note)


@contextmanager
def cluster(
    config: RegistryCluster, prompts: Prompts, note: Note, *, bundle: Path | None = None, key: Path | None = None,
    may_miss: bool = False, backup: bytes | None = None,
) -> Iterator[Cluster]:  # fmt: skip
    """The cluster with connected hosts, and *bundle* opened if there is one.

    A *key* must have signed the bundle, or no host is contacted. None: nobody asks for a signature.
    *may_miss*: less than half of the servers of a cluster that was made before may be unreachable. *backup*: a secrets
    file for the nodes that have none. Raises ConfigError, BundleError, ConnectionFailed (after telling of each host
    that failed), Error (SecretsConflict, SecretsDamaged).
    """
    with ExitStack() as stack:
        held = stack.enter_context(open_bundle(bundle, key, note)) if bundle is not None else None
        connected, failures = _attempt(config, prompts)
        for host in connected:
            stack.callback(host.transport.close)
        if failures and not (may_miss and connected):
            raise _told(failures, note)
        vault = read_vault(config, connected, data_directories(config.spec), backup)
        if failures and not can_miss(config, len(connected), failures, vault):
            raise _told(failures, note)
        found = select(config, held.programs) if held is not None else installed(connected)
        absent = {failure.host: failure.message for failure in failures}
        recorded = read_members(config, connected)
        yield Cluster(config, tuple(connected), vault, found, held, absent=absent, recorded=recorded)


#: Programs that a bundle may lack: Python is for hosts that have none, the tool for retention on the nodes.
OPTIONAL = ("python", TOOL)


def wanted(config: RegistryCluster) -> tuple[str, ...]:
    """The programs that the nodes get, OPTIONAL ones last."""
    return (*(one.program for one in services(config.spec) if one.program), *OPTIONAL)


def select(config: RegistryCluster, available: Mapping[str, Program]) -> dict[str, Program]:
    """Those of the bundle's programs that the nodes get."""
    return {name: available[name] for name in wanted(config) if name in available}


def installed(connected: Sequence[Host]) -> dict[str, Program]:
    """The programs as an earlier run recorded them on the hosts; none on bare hosts.

    Raises NewerFormat, and Error (ProgramsDamaged) if no host has a record that is not damaged.
    """
    flaw: Error | None = None
    for host in connected:
        content = host.read(programs.RECORD)
        try:
            if content is not None:
                return programs.read_record(content, host.name)
        except Error as error:
            if error.code != "ProgramsDamaged":
                raise
            flaw = flaw or error
    if flaw is not None:
        raise flaw
    return {}
