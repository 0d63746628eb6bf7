"""What the user gives to a session: passwords, the bundle beside the cluster file, and the key that signed it."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from kubeadm_registry.access import session
from kubeadm_registry.access.reach import to_vip
from kubeadm_registry.access.session import Prompts
from kubeadm_registry.cli.command import BUNDLE_KEY
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import RegistryCluster, load
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.images import pool

DEFAULT_BUNDLE = Path("kubeadm-registry-bundle.tar")
SUDO_PASSWORD = "KUBEADM_REGISTRY_SUDO_PASSWORD"  # noqa: S105  the name of a variable


def prompts() -> Prompts:
    """What connects to nodes: the password for sudo in the environment, and this terminal. Raises ConfigError."""
    return Prompts(_given_sudo_password(), _ask_sudo_password, _ask_passphrase)


def _given_sudo_password() -> str | None:
    """The password for sudo in the environment, if there is one. Raises ConfigError if it is not one line of text."""
    password = os.environ.get(SUDO_PASSWORD)
    try:
        (password or "").encode()
    except UnicodeEncodeError:
        hint = "set it in a UTF-8 terminal"
        raise ConfigError(f"{SUDO_PASSWORD} is not UTF-8 text", hint=hint, code="SudoPasswordInvalid") from None
    if "\n" in (password or ""):  # sudo reads one line; the shell that it starts would take the next for a command
        hint = f'remove it: export {SUDO_PASSWORD}="$(cat FILE)" leaves out the one at the end'
        raise ConfigError(f"{SUDO_PASSWORD} contains a line break", hint=hint, code="SudoPasswordInvalid")
    return password


def hidden(question: str) -> str | None:
    """What somebody types after *question*, unseen. None: the end of the input (Ctrl-D), or what is not UTF-8 text."""
    try:
        return getpass.getpass(question)
    except (EOFError, UnicodeDecodeError):
        return None


def _ask_sudo_password() -> str | None:
    return hidden("sudo password for the nodes: ") if sys.stdin.isatty() else None


def _ask_passphrase(key: Path) -> str | None:
    return hidden(f"Passphrase for {key}: ") if sys.stdin.isatty() else None


def bundle_key(given: Path | None) -> Path | None:
    """The key that must have signed a bundle: the one *given*, or that of the variable; None if nobody asks for one.

    Raises ConfigError if the variable is empty: whoever set it wants bundles to be checked.
    """
    named = os.environ.get(BUNDLE_KEY)
    if given is not None or named is None:
        return given
    if not named:
        raise ConfigError(f"{BUNDLE_KEY} is set but empty", code="KeyUnreadable",
                          hint="set it to a key file, or unset it to accept unsigned bundles")  # fmt: skip
    return Path(named)


def cluster(
    config: RegistryCluster, reporter: Reporter, *, bundle: Path | None, key: Path | None = None,
    may_miss: bool = False,
) -> AbstractContextManager[Cluster]:  # fmt: skip
    """``session.cluster`` for this terminal. *bundle* None: ./kubeadm-registry-bundle.tar if it is there, else none.

    A *key*, of the variable if it is None, must have signed the bundle.
    """
    bundle, signed_by = bundle_of(bundle, key)
    return session.cluster(config, prompts(), reporter.note, bundle=bundle, key=signed_by, may_miss=may_miss)


def bundle_of(given: Path | None, key: Path | None) -> tuple[Path | None, Path | None]:
    """The bundle to install from, and the key that must have signed it. Raises ConfigError."""
    bundle = DEFAULT_BUNDLE if given is None and DEFAULT_BUNDLE.exists() else given
    return bundle, bundle_key(key) if bundle is not None else None


@contextmanager
def registry(
    file: Path | RegistryCluster | None, reporter: Reporter, bundle: Path | None = None, key: Path | None = None
) -> Iterator[tuple[Cluster, pool.Connect, bool]]:
    """The cluster, the way to its registry through the virtual IP, and whether that is the registry's own network.

    *file*: the cluster file; or what it says, if it was read before, for it may be a pipe. *bundle*: the one that is
    asked about. One that lies here is for what installs programs; those that run are the nodes'.
    """
    cluster_file = file if isinstance(file, RegistryCluster) else load(file)
    signed_by = bundle_key(key) if bundle is not None else None
    with session.cluster(cluster_file, prompts(), reporter.note, bundle=bundle, key=signed_by, may_miss=True) as opened:
        session.installed_secrets(opened.vault)
        yield opened, *to_vip(opened)
