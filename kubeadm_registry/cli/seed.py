"""``seed``: the images of a bundle into the registry."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from kubeadm_registry import config, paths
from kubeadm_registry import seed as seeding
from kubeadm_registry.cli import session
from kubeadm_registry.cli.main import Context, bundle_option, cli, command, file_option
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.errors import ConfigError, ConnectionFailed, Error, RegistryError
from kubeadm_registry.host import Host
from kubeadm_registry.registry import Login, Registry
from kubeadm_registry.secrets import Secrets

#: Seconds to find out whether the registry can be reached without SSH.
DIRECT = 2.0


@command(cli, "seed")
@file_option
@bundle_option
@click.option(
    "--workers", type=click.IntRange(1, 64), default=seeding.WORKERS, show_default=True, help="Blobs at a time."
)
def seed(context: Context, path: Path | None, bundle: Path | None, workers: int) -> None:
    """Bring the images of a bundle into the registry, straight from its file.

    What is there already is not sent again, also after a run that was killed, and not while the writer moves. The way
    is the registry's own network, or SSH through a server where that cannot be reached. It ends with the proof that
    every image can be read through every server and the virtual IP.
    """
    reporter = context.reporter()
    cluster_file = config.load(path)
    with session.cluster(cluster_file, reporter, bundle=bundle, may_miss=True) as cluster:
        if cluster.bundle is None:
            raise ConfigError("there is no bundle", hint="name one with --bundle FILE", code="BundleMissing")
        secrets = session.installed_secrets(cluster.vault)
        items = seeding.plan(cluster.bundle)
        if not items:
            raise ConfigError(
                "the bundle holds no images", code="BundleEmpty", hint="`bundle create --images-from PATH` takes them"
            )
        vip = cluster_file.spec.vip.address
        direct = answers(vip)
        push = connection(cluster, cluster.hosts[0], vip, "push", direct=direct)
        run = seeding.Seeder(cluster.bundle, push, journal_of(secrets), workers=workers, progress=reporter.progress)
        sent = run.run(items)
        flaws, silent = prove(cluster, items, workers, direct=direct)
        unproven = {**cluster.absent, **silent}
    if flaws:
        raise Error(
            f"{len(flaws)} images cannot be read:\n" + "\n".join(f"  {flaw}" for flaw in flaws), code="SeedIncomplete",
            hint="run seed again; if the same are named again, look at that server with `kubeadm-registry status`",
        )  # fmt: skip
    for name, why in unproven.items():
        reporter.note(f"{why}; the storage brings it the images when it is back", host=name)
    count, servers = len(items), len(cluster_file.spec.nodes) - len(unproven)
    reporter.result(
        f"{count} of {count} images can be pulled through the virtual IP and from {servers} servers; "
        f"{sent / 1e6:.1f} MB sent",
        images=count, sent=sent, unproven=list(unproven),
    )  # fmt: skip


def prove(
    cluster: Cluster, items: Sequence[seeding.Item], workers: int, *, direct: bool
) -> tuple[list[str], dict[str, str]]:
    """What cannot be read, in words (image, where, and why); and the servers that do not answer, with the reason.

    Raises RegistryError when the virtual IP does not answer.
    """
    flaws: list[str] = []
    silent: dict[str, str] = {}
    places = [(host.name, host, cluster.node(host).address) for host in cluster.hosts]
    places.append(("the virtual IP", cluster.hosts[0], cluster.spec.vip.address))
    for name, host, address in places:
        try:
            way = connection(cluster, host, address, "pull", direct=direct and answers(address))
            found = seeding.prove(way, items, workers)
        except (RegistryError, ConnectionFailed) as error:
            if address == cluster.spec.vip.address:
                raise
            silent[name] = error.message
            continue
        flaws += [f"{image} at {name}: {why}" for image, why in found.items()]
    return flaws, silent


def connection(cluster: Cluster, host: Host, address: str, role: str, *, direct: bool) -> seeding.Connect:
    """The way to the registry at *address*: *direct*, by its own network, or else SSH through *host*."""
    secrets = cluster.secrets
    login = Login(role, secrets.password(role))
    via = None if direct else host.dial(address, paths.REGISTRY_PORT)
    return partial(Registry, address, paths.REGISTRY_PORT, ca=secrets.ca_certificate, login=login, via=via, timeout=60)


def answers(address: str) -> bool:
    """Whether somebody takes connections at the registry's port of *address*, as seen from this machine."""
    try:
        socket.create_connection((address, paths.REGISTRY_PORT), timeout=DIRECT).close()
    except OSError:
        return False
    return True


def journal_of(secrets: Secrets) -> seeding.Journal:
    """The notes of earlier runs for this very cluster, in the user's state directory (XDG Base Directory 0.8)."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return seeding.Journal(base / "kubeadm-registry" / f"seed-{secrets.generation}.json")
