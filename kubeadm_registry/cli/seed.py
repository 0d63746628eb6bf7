"""``seed``: the images of a bundle into the registry."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click

from kubeadm_registry import config, paths, whoami
from kubeadm_registry.access import session
from kubeadm_registry.access.loading import load
from kubeadm_registry.access.reach import answers
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import EXIT_DEGRADED, Context, command, file_option, key_option
from kubeadm_registry.config.values import EVERY_REGISTRY, LAST_PORT
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.images import pool
from kubeadm_registry.images import seed as seeding
from kubeadm_registry.images.detached import run_in_child
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.oci.references import OWN_HOST, parse, repository_prefix
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import Api, Limit, Upstream
from kubeadm_registry.registry.logins import Logins
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


class Target(click.ParamType[tuple[str, str]]):
    """A registry and a path in it: ``registry.example:5000/mirror``."""

    name = "registry"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return host and path. Fails for what is no part of an image's name."""
        text = str(value)
        host, _, below = text.partition("/")
        reference = parse(f"{host}/{below or 'path'}:tag")
        port = host.partition(":")[2]
        if reference is None or reference.host != host or (port and not 0 < int(port) <= LAST_PORT):
            self.fail(f"{text} is not a registry: write HOST[:PORT][/PATH], such as registry.example:5000", param, ctx)
        return host, below


@command("seed", short_help="Load a bundle's images into the registry")
@file_option
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Bundle to load.  [default: ./kubeadm-registry-bundle.tar]",
)
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
@click.option(
    "--to", "target", type=Target(), metavar="HOST[:PORT][/PATH]",
    help="Load the images into this registry instead, with your own login for it. No cluster file is needed.",
)  # fmt: skip
def seed(
    context: Context, path: Path | None, bundle: Path | None, key: Path | None, allow_older: bool, workers: int,
    rate: int, target: tuple[str, str] | None,
) -> None:  # fmt: skip
    """Load the images of a bundle into the registry.

    Only missing blobs are uploaded; interrupted uploads resume. Uses the registry network, or an SSH tunnel through a
    node if that is unreachable. Finally, every image is verified through every node and the virtual IP; images that an
    earlier run verified are read through the virtual IP, and each is only looked up on one of the nodes.

    \b
    Exit codes:
      0  every image can be pulled from every node
      1  failed
      5  all are loaded, but a node could not be asked
    """
    reporter = context.reporter()
    if target is not None:
        _elsewhere(reporter, target, bundle, key, workers, rate)
        return
    cluster_file = config.load(path)
    stop = run_in_child()
    with terminal.cluster(cluster_file, reporter, bundle=bundle, key=key, may_miss=True) as cluster:
        if cluster.bundle is None:
            raise ConfigError("no bundle found", hint="pass one with --bundle FILE", code="BundleMissing")
        secrets = session.installed_secrets(cluster.vault)
        items = _items(cluster.bundle)
        vip = cluster_file.spec.vip.address
        direct = answers(vip)
        loaded = load(
            cluster, cluster.bundle, items, journal_of(secrets),
            direct=direct, workers=workers, allow_older=allow_older, progress=reporter.progress, limit=Limit(rate),
            stop=stop,
        )  # fmt: skip
        sent, unproven, count = loaded.sent, loaded.unproven, len(cluster.bundle.images)
    if loaded.flaws:
        again = (
            "run seed again; if the same images are listed again, check that node with `kubeadm-registry status`; what "
            "is lost everywhere, `recover` loads again from the bundle"
        )
        raise _incomplete(loaded.flaws, again)
    for name, why in unproven.items():
        reporter.note(f"{why}; storage resynchronizes it automatically when it is back", host=name, level="warning")
    for upstream in sorted(without_mirror(items, cluster_file.spec.mirrors)):
        reporter.note(
            f"{upstream} is not in spec.mirrors, so containerd does not pull its images from this registry. "
            "Add it and run init, or reference images as "
            f"{endpoint(vip, paths.REGISTRY_PORT)}/{repository_prefix(upstream)}/...",
            level="warning",
        )
    servers = len(cluster_file.spec.nodes) - len(unproven)
    reporter.result(
        f"{count} of {counted(count, 'image')} can be pulled through the virtual IP and from "
        f"{counted(servers, 'node')}; {sent / 1e6:.1f} MB sent",
        images=count, sent=sent, unproven=list(unproven),
    )  # fmt: skip
    if unproven:
        sys.exit(EXIT_DEGRADED)


def _items(bundle: Bundle, below: str = "") -> tuple[seeding.Item, ...]:
    """The images of *bundle*. Raises ConfigError if there are none."""
    if items := seeding.plan(bundle, below):
        return items
    hint = "add images with `bundle create --images-from PATH`"
    raise ConfigError("the bundle contains no images", code="BundleEmpty", hint=hint)


def _elsewhere(
    reporter: Reporter, target: tuple[str, str], bundle: Path | None, key: Path | None, workers: int, rate: int
) -> None:
    """Load the images into the registry *target*, a host and a path there, which need not be one of ours."""
    host, below = target
    stop = run_in_child()
    path, key = bundle or terminal.DEFAULT_BUNDLE, terminal.bundle_key(key)
    logins = Logins(host)
    with (
        session.open_bundle(path, key, reporter.note) as opened,
        Upstream(host, logins.of, pushes=True, advice=logins.advice) as registry,
    ):
        folder = f"{below}/" if below else ""
        items = _items(opened, folder)

        def connect() -> AbstractContextManager[Api]:
            return nullcontext(registry)  # which any number of threads may use

        where = hashlib.sha256(f"{host}/{below}".encode()).hexdigest()[:16]

        def load(anew: Collection[str] = ()) -> int:
            run = seeding.Seeder(
                opened, connect, Journal(_state() / f"seed-to-{where}.json"), workers=workers, record=False,
                progress=reporter.progress, limit=Limit(rate), stop=stop, below=folder, anew=anew,
            )  # fmt: skip
            return run.run([item for item in items if item.name in anew] if anew else items)

        sent = load()
        flaws = seeding.prove(connect, items, workers)
        if flaws:  # a registry may have a tag, and have deleted what of the image has none
            sent += load(anew=flaws)
            flaws = seeding.prove(connect, items, workers)
        count = len(opened.images)
    if flaws:
        raise _incomplete([f"{name}: {why}" for name, why in flaws.items()], "run seed again")
    summary = f"{counted(count, 'image')} can be pulled from {'/'.join(filter(None, target))}; {sent / 1e6:.1f} MB sent"
    reporter.result(summary, images=count, sent=sent, unproven=[])


def _incomplete(flaws: Sequence[object], hint: str) -> Error:
    lines = [f"{counted(len(flaws), 'image')} cannot be read:", *(f"  {flaw}" for flaw in flaws)]
    return Error("\n".join(lines), code="SeedIncomplete", hint=hint)


def without_mirror(items: Iterable[seeding.Item], mirrors: Collection[str]) -> set[str]:
    """The registries of *items* that are not among *mirrors*: those that containerd goes to elsewhere.

    The operator's image is of none, and is always named by the virtual IP.
    """
    if EVERY_REGISTRY in mirrors:
        return set()
    return {reference.host for item in items if (reference := parse(item.name))} - {*mirrors, OWN_HOST}


def journal_of(secrets: Secrets) -> Journal:
    """The notes of earlier runs for this very cluster, in the user's state directory (XDG Base Directory 0.8)."""
    return Journal(_state() / f"seed-{secrets.generation}.json")


def _state() -> Path:
    """Where this user's programs keep what they know (XDG Base Directory 0.8)."""
    return Path(os.environ.get("XDG_STATE_HOME") or whoami.home() / ".local" / "state") / "kubeadm-registry"
