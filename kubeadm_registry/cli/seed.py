"""``seed``: the images of a bundle into the registry."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import click

from kubeadm_registry import config, paths, whoami
from kubeadm_registry.access import session
from kubeadm_registry.access.reach import answers, connection, prove
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import Context, bundle_option, command, file_option, key_option
from kubeadm_registry.config.values import EVERY_REGISTRY
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.images import pool
from kubeadm_registry.images import seed as seeding
from kubeadm_registry.images.detached import run_in_child
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.oci.references import parse, repository_prefix
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import Limit
from kubeadm_registry.secrets import Secrets

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
#: Bytes a second. All uploads share it, and a proxy ends one that brings nothing for long.
SLOWEST = 100_000


class Rate(click.ParamType[int]):
    """Bytes a second: ``2500k``, ``50M``, ``1.5G``; 0 is no limit."""

    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes. Fails for what is no number, and for less than SLOWEST."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([kMG]?)", str(value))
        if found is None:
            self.fail(f"{value} is not a valid rate: use a number with k, M or G, for example 50M", param, ctx)
        rate = int(float(found[1]) * UNITS[found[2]])
        if 0 < rate < SLOWEST:
            self.fail(f"{value} is below the minimum of {SLOWEST // 1000}k; slower uploads time out", param, ctx)
        return rate


@command("seed", short_help="Load a bundle's images into the registry")
@file_option
@bundle_option
@key_option
@click.option("--allow-older", is_flag=True, help="Allow a bundle that is older than the last one loaded.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=pool.WORKERS,
    show_default=True,
    help="Number of large blobs to upload in parallel.",
)
@click.option(
    "--limit-rate", "rate", type=Rate(), metavar="BYTES", default="0",
    help="Limit the total upload rate, in bytes per second. Accepts k, M and G (powers of 1000), for example 50M.",
)  # fmt: skip
def seed(
    context: Context, path: Path | None, bundle: Path | None, key: Path | None, allow_older: bool, workers: int,
    rate: int,
) -> None:  # fmt: skip
    """Load the images of a bundle into the registry.

    Only missing blobs are uploaded; interrupted uploads resume. Uses the registry network, or an SSH tunnel through a
    node if that is unreachable. Finally, every image is verified through every node and the virtual IP.
    """
    reporter = context.reporter()
    cluster_file = config.load(path)
    stop = run_in_child()
    with terminal.cluster(cluster_file, reporter, bundle=bundle, key=key, may_miss=True) as cluster:
        if cluster.bundle is None:
            raise ConfigError("no bundle found", hint="pass one with --bundle FILE", code="BundleMissing")
        secrets = session.installed_secrets(cluster.vault)
        items = seeding.plan(cluster.bundle)
        if not items:
            raise ConfigError(
                "the bundle contains no images",
                code="BundleEmpty",
                hint="add images with `bundle create --images-from PATH`",
            )
        vip = cluster_file.spec.vip.address
        direct = answers(vip)
        push = connection(cluster, cluster.hosts[0], vip, direct=direct)
        run = seeding.Seeder(
            cluster.bundle, push, journal_of(secrets),
            workers=workers, allow_older=allow_older, progress=reporter.progress, limit=Limit(rate),
            stop=stop,
        )  # fmt: skip
        sent = run.run(items)
        flaws, silent = prove(cluster, items, workers, direct=direct)
        unproven, count = {**cluster.absent, **silent}, len(cluster.bundle.images)
    if flaws:
        raise Error(
            "\n".join([f"{counted(len(flaws), 'image')} cannot be read:", *(f"  {flaw}" for flaw in flaws)]),
            code="SeedIncomplete",
            hint="run seed again; if the same images are listed again, check that node with `kubeadm-registry status`",
        )  # fmt: skip
    for name, why in unproven.items():
        reporter.note(f"warning: {why}; storage resynchronizes it automatically when it is back", host=name)
    for upstream in sorted(without_mirror(items, cluster_file.spec.mirrors)):
        reporter.note(
            f"warning: {upstream} is not in spec.mirrors, so containerd does not pull its images from this registry. "
            "Add it and run init, or reference images as "
            f"{endpoint(vip, paths.REGISTRY_PORT)}/{repository_prefix(upstream)}/..."
        )
    servers = len(cluster_file.spec.nodes) - len(unproven)
    reporter.result(
        f"{count} of {counted(count, 'image')} can be pulled through the virtual IP and from "
        f"{counted(servers, 'node')}; {sent / 1e6:.1f} MB sent",
        images=count, sent=sent, unproven=list(unproven),
    )  # fmt: skip


def without_mirror(items: Iterable[seeding.Item], mirrors: Collection[str]) -> set[str]:
    """The registries of *items* that are not among *mirrors*: those that containerd goes to elsewhere."""
    if EVERY_REGISTRY in mirrors:
        return set()
    return {reference.host for item in items if (reference := parse(item.name))} - set(mirrors)


def journal_of(secrets: Secrets) -> Journal:
    """The notes of earlier runs for this very cluster, in the user's state directory (XDG Base Directory 0.8)."""
    base = Path(os.environ.get("XDG_STATE_HOME") or whoami.home() / ".local" / "state")
    return Journal(base / "kubeadm-registry" / f"seed-{secrets.generation}.json")
