"""From a cluster file to a Cluster: connects to every host, side by side, and finds secrets and programs."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from kubeadm_registry import whoami
from kubeadm_registry.addresses import ip
from kubeadm_registry.agent.netlink import Addresses
from kubeadm_registry.bundle import Bundle, Program, check
from kubeadm_registry.cluster import Cluster, read_vault
from kubeadm_registry.components import programs
from kubeadm_registry.components.services import data_directories, services
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.config.worker_list import Worker
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.errors import ConfigError, ConnectionFailed, Error
from kubeadm_registry.secrets import Secrets, Vault
from kubeadm_registry.transport.host import Host, Transport, side_by_side
from kubeadm_registry.transport.local import Local
from kubeadm_registry.transport.ssh import UNREACHABLE, SshTarget, connect

DEFAULT_BUNDLE = Path("kubeadm-registry-bundle.tar")
#: The variable that names a key, as --key does: for every command that reads a bundle.
BUNDLE_KEY = "KUBEADM_REGISTRY_BUNDLE_KEY"
SUDO_PASSWORD = "KUBEADM_REGISTRY_SUDO_PASSWORD"  # noqa: S105  the name of a variable


def given_sudo_password() -> str | None:
    """The password for sudo in the environment, if there is one. Raises ConfigError if it is no text."""
    password = os.environ.get(SUDO_PASSWORD)
    try:
        (password or "").encode()
    except UnicodeEncodeError:
        hint = "set it in a terminal whose encoding is UTF-8"
        raise ConfigError(f"{SUDO_PASSWORD} is not UTF-8 text", hint=hint, code="SudoPasswordInvalid") from None
    return password


def ask_passphrase(key: Path) -> str | None:
    """The passphrase of a key file, from the terminal; None where there is none."""
    return getpass.getpass(f"Passphrase of {key}: ") if sys.stdin.isatty() else None


def target(config: RegistryCluster, node: Node | Worker, *, sudo_password: str | None) -> SshTarget:
    """How to reach *node*: its own settings over those for all."""
    ssh = node.ssh.over(config.spec.ssh)
    return SshTarget(
        name=node.name,
        address=node.address,
        user=ssh.user,
        port=ssh.port,
        identity_file=_path(ssh.identity_file),
        known_hosts_file=_path(ssh.known_hosts_file),
        sudo_password=sudo_password,
        passphrase=ask_passphrase,
    )


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


def reach(config: RegistryCluster, node: Node | Worker, sudo_password: str | None) -> Transport:
    """Connect to *node*; to this very machine without SSH. Raises ConnectionFailed."""
    # A worker with a port of its own is somebody behind this machine, such as a virtual one.
    behind = isinstance(node, Worker) and node.ssh.port is not None
    if os.geteuid() == 0 and not behind and is_here(node.address):
        return Local(node.name)
    return connect(target(config, node, sudo_password=sudo_password))


def attempt_all(config: RegistryCluster) -> tuple[list[Host], dict[str, str]]:
    """Every host that can be reached, connected side by side, and why each of the others cannot."""
    reached, failures = _attempt(config)
    return reached, {failure.host: f"{failure.message} ({failure.hint})" for failure in failures}


def secrets(config: RegistryCluster, reporter: Reporter) -> Secrets:
    """The cluster's secrets, of any server that answers: one may be lost. Raises ConnectionFailed, or Error."""
    return installed_secrets(vault(config, reporter))


def vault(config: RegistryCluster, reporter: Reporter) -> Vault:
    """What the servers that answer have of secrets. Raises ConnectionFailed if none answers, or Error."""
    reached, failures = _attempt(config)
    try:
        if not reached:
            raise _told(failures, reporter)
        return read_vault(config, reached, data_directories(config.spec))
    finally:
        for host in reached:
            host.transport.close()


def installed_secrets(vault: Vault) -> Secrets:
    """The secrets of a registry that was made. Raises Error (NotInstalled), NotYetKnown if this release needs more."""
    if not vault.made:
        raise Error("the servers have no secrets yet", hint="run init first", code="NotInstalled")
    return vault.secrets


def _attempt(config: RegistryCluster) -> tuple[list[Host], list[ConnectionFailed]]:
    """Connect to every host. Where sudo wants a password and a person is there, it is asked for, once for all."""
    results = _connect(config, config.spec.nodes, given_sudo_password())
    wanting = [node for node, one in zip(config.spec.nodes, results, strict=True) if _needs_password(one)]
    if wanting and sys.stdin.isatty():
        again = iter(_connect(config, wanting, getpass.getpass("Password for sudo on the servers: ")))
        results = [next(again) if _needs_password(one) else one for one in results]
    reached = [result for result in results if isinstance(result, Host)]
    return reached, [result for result in results if isinstance(result, ConnectionFailed)]


def _needs_password(result: Host | ConnectionFailed) -> bool:
    return isinstance(result, ConnectionFailed) and result.code == "SudoNeeded"


def _connect(
    config: RegistryCluster, nodes: Sequence[Node], sudo_password: str | None
) -> list[Host | ConnectionFailed]:
    def attempt(node: Node) -> Host | ConnectionFailed:
        try:
            return Host(node.name, node.address, reach(config, node, sudo_password))
        except ConnectionFailed as error:
            error.host = error.host or node.name
            return error

    return side_by_side(attempt, nodes)


def _told(failures: Sequence[ConnectionFailed], reporter: Reporter) -> ConnectionFailed:
    """The first of the *failures*, to be raised; the others are told of."""
    for failure in failures[1:]:
        reporter.note(f"{failure.message} ({failure.hint})", host=failure.host)
    return failures[0]


def can_miss(config: RegistryCluster, reached: int, failures: Sequence[ConnectionFailed], vault: Vault) -> bool:
    """Whether the work can be done on the *reached* hosts alone.

    Only a cluster that was made once can, and of which all secrets are known: the missing server may have those that
    the others lack. More than half of it must be there, for else its storage takes nothing; and a host that answers
    and is not trusted is not one that is down.
    """
    down = all(failure.code == UNREACHABLE for failure in failures)
    return vault.known and down and 2 * reached > len(config.spec.nodes)


def bundle_key(given: Path | None) -> Path | None:
    """The key that must have signed a bundle: the one *given*, or that of the variable; None if nobody asks for one.

    Raises ConfigError if the variable is empty: whoever set it wants bundles to be checked.
    """
    named = os.environ.get(BUNDLE_KEY)
    if given is not None or named is None:
        return given
    if not named:
        raise ConfigError(f"{BUNDLE_KEY} is set and empty", code="KeyUnreadable",
                          hint="let it name a key, or unset it to use bundles without a check")  # fmt: skip
    return Path(named)


@contextmanager
def cluster(
    config: RegistryCluster, reporter: Reporter, *, bundle: Path | None, key: Path | None = None,
    may_miss: bool = False,
) -> Iterator[Cluster]:  # fmt: skip
    """The cluster with connected hosts. *bundle* None: ./kubeadm-registry-bundle.tar if it is there, else none.

    A *key*, of the variable if it is None, must have signed the bundle, or no host is contacted.
    *may_miss*: less than half of the servers of a cluster that was made before may be unreachable. Raises
    ConfigError, BundleError, ConnectionFailed (after telling of each host that failed), Error (SecretsConflict,
    SecretsDamaged).
    """
    if bundle is None and DEFAULT_BUNDLE.exists():
        bundle = DEFAULT_BUNDLE
    if bundle is not None and not bundle.exists():
        raise ConfigError(f"there is no bundle {bundle}", code="BundleMissing",
                          hint="make one with `kubeadm-registry bundle create -o FILE`")  # fmt: skip
    with ExitStack() as stack:
        opened = stack.enter_context(Bundle.open(bundle)) if bundle is not None else None
        if opened is not None and (key := bundle_key(key)) is not None:
            reporter.note(f"{bundle} is signed by {check(opened.layout, key)}")
        connected, failures = _attempt(config)
        for host in connected:
            stack.callback(host.transport.close)
        if failures and not (may_miss and connected):
            raise _told(failures, reporter)
        vault = read_vault(config, connected, data_directories(config.spec))
        if failures and not can_miss(config, len(connected), failures, vault):
            raise _told(failures, reporter)
        found = select(config, opened.programs) if opened is not None else installed(connected)
        absent = {failure.host: failure.message for failure in failures}
        yield Cluster(config, tuple(connected), vault, found, opened, absent=absent)


def wanted(config: RegistryCluster) -> tuple[str, ...]:
    """The programs that the file needs. ``python`` is for hosts that have none; a bundle may lack it."""
    return (*(one.program for one in services(config.spec) if one.program), "python")


def select(config: RegistryCluster, available: Mapping[str, Program]) -> dict[str, Program]:
    """Those of the bundle's programs that the file needs."""
    return {name: available[name] for name in wanted(config) if name in available}


def installed(connected: Sequence[Host]) -> dict[str, Program]:
    """The programs as an earlier run recorded them on the hosts; none on bare hosts."""
    for host in connected:
        content = host.read(programs.RECORD)
        if content is not None:
            return programs.read_record(content, host.name)
    return {}
