"""containerd on the servers: it takes the mirrored images from the registry, and everything else in it stays.

``steps`` points a host's containerd at the registry, ``restore_steps`` takes that back, ``problems`` and ``notices``
look without touching. What is decided is pure and lies in ``settings`` (config.toml), ``hosts`` (hosts.toml) and
``proxy`` (the unit's environment); ``survey`` asks the host.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from kubeadm_registry import paths
from kubeadm_registry.containerd import backup, hosts, survey
from kubeadm_registry.containerd.backup import Backup
from kubeadm_registry.containerd.changes import DROP_IN, Config, HostsFiles, NoProxy
from kubeadm_registry.containerd.restart import OWED, Restart
from kubeadm_registry.containerd.restore import (
    BackupRemoved,
    DirectoriesRemoved,
    NoHostsFiles,
    NoLeftovers,
    OriginalConfig,
    ProxyDropInRemoved,
    obstacles,
)
from kubeadm_registry.containerd.settings import CERTS_D, Refused, Version, refusals
from kubeadm_registry.engine.changes import Absent, Change
from kubeadm_registry.transport.host import Host

__all__ = [
    "OWED",
    "ContainerdSettings",
    "notices",
    "problems",
    "restore_problems",
    "restore_steps",
    "steps",
]


@dataclass(frozen=True, slots=True)
class ContainerdSettings:
    """What containerd has to know about the registry."""

    vip_addresses: tuple[str, ...]
    """One or two addresses, the one to try first in front."""
    ca_pem: bytes
    """The certificate of the CA that signed the registry's."""
    mirrors: tuple[str, ...]
    """Upstream registries whose images are taken from ours (``registry.k8s.io``)."""
    vip_name: str = ""
    """A name for the VIP by which images may be called too; empty: none."""
    port: int = paths.REGISTRY_PORT
    sandbox_image: str | None = None
    """The pause image that kubeadm wants; None leaves containerd's own."""
    node_addresses: tuple[str, ...] = ()
    """Left out of the HTTP proxy, together with the VIP."""
    authorization: str = field(default="", repr=False)
    """``Basic ...``, where the registry does not let anybody pull; the files are then for root alone."""


def problems(host: Host, sandbox_image: str | None = None) -> Iterator[str]:
    """Everything that keeps this host's containerd from using the mirrors, one sentence with its remedy each.

    *sandbox_image* is the pause image that kubeadm wants, as in ContainerdSettings.
    """
    shown = survey.ask(host)
    yield from survey.problems(host, shown)
    yield from backup.problems(host)
    if shown is None or shown.version is None:
        return
    config = Config(shown, shown.version, CERTS_D, sandbox_image)
    try:
        configuration = survey.configuration(host, shown.config, shown.version)
        reasons = list(refusals(configuration.layers, shown.version))
        if not reasons:
            merged = config.plan(host, configuration)
            config.prove_found(host, configuration, merged)
            reasons = list(survey.fixed(host, configuration, list(merged.texts)))
            if merged.texts and (mode := survey.kills_containers(shown)):
                yield (
                    f"{survey.UNIT} has {mode}, so that the restart after its configuration was changed would kill "
                    f"all containers: set KillMode=process in [Service] (`systemctl edit {survey.UNIT}`)"
                )
    except Refused as error:
        reasons = [error]
    for reason in reasons:
        yield f"{reason.message}: {reason.hint}" if reason.hint else reason.message


def notices(host: Host, settings: ContainerdSettings) -> Iterator[str]:
    """What stays as it is although it is not what we would write, and what a restart would end. Nothing stops us."""
    shown = survey.ask(host)
    if shown is None or shown.version is None:
        return
    yield from survey.notices(host, shown)
    _, merged = Config(shown, shown.version, CERTS_D, settings.sandbox_image).read(host)
    yield from merged.notices
    directory, *others = merged.directories
    files = _hosts_files(settings, directory, shown.version)
    yield from files.notices(host)
    yield from files.hidden(host, others)


#: For whom nobody else waits.
_ALONE: AbstractContextManager[object] = nullcontext()


def steps(
    host: Host, *, settings: ContainerdSettings, turn: AbstractContextManager[object] = _ALONE
) -> Iterator[Change]:
    """Point this host's containerd at the registry; *turn* is held during a restart.

    Raises Refused before the first change.
    """
    shown = survey.ask(host)
    if shown is None or shown.version is None:
        raise Refused(next(survey.problems(host, shown)), host=host.name)
    config = Config(shown, shown.version, CERTS_D, settings.sandbox_image)
    configuration, merged = config.read(host)
    config.prove_found(host, configuration, merged)
    files = _hosts_files(settings, merged.hosts_directory, shown.version)
    changed = [file.real if (file := configuration.file(path)) else path for path in merged.texts]
    parents = ["/etc/containerd", *files.directories, *(posixpath.dirname(path) for path in changed)]
    for path in configuration.leftovers:
        yield Absent(path)
    above = dict.fromkeys(directory for path in parents for directory in _with_those_above(path))
    yield Backup(changed, [*above, DROP_IN.rpartition("/")[0]])
    yield config
    yield files
    no_proxy = (*settings.vip_addresses, *([settings.vip_name] if settings.vip_name else []), *settings.node_addresses)
    yield NoProxy(shown, no_proxy)
    yield Restart(shown, turn)


def restore_problems(host: Host) -> Iterator[str]:
    """Everything that keeps this host's files from being put back as they were, one sentence with its remedy each."""
    return obstacles(host, survey.ask(host))


def restore_steps(host: Host, *, turn: AbstractContextManager[object] = _ALONE) -> Iterator[Change]:
    """Take all of it back; *turn* is held during a restart.

    Must run before /etc/kubeadm-registry is removed, which holds the originals.
    """
    shown = survey.ask(host)
    yield OriginalConfig()
    yield NoHostsFiles()
    yield ProxyDropInRemoved()
    yield NoLeftovers()
    yield DirectoriesRemoved()
    if shown is not None:
        yield Restart(shown, turn)
    yield BackupRemoved()


def _with_those_above(directory: str) -> Iterator[str]:
    """*directory* and those in which it lies, without the root."""
    while directory.strip("/"):
        yield directory
        directory = posixpath.dirname(directory)


def _hosts_files(settings: ContainerdSettings, directory: str, version: Version) -> HostsFiles:
    ca = f"{directory}/{hosts.CA_NAME}"
    mirrors = hosts.mirrors(settings.vip_addresses, settings.vip_name, settings.port, settings.mirrors)
    files = {
        mirror.registry: hosts.render(mirror, ca=ca, containerd=version, authorization=settings.authorization).encode()
        for mirror in mirrors
    }
    return HostsFiles(directory, settings.ca_pem, files, mode=0o600 if settings.authorization else 0o644)
