"""Load the images of bundles into the registry of a cluster, and check them through every node."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubeadm_registry.access import session
from kubeadm_registry.access.reach import ReadFailure, connection, prove
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.bundle.lineage import Lineage
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.errors import Error
from kubeadm_registry.images import seed as seeding
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.images.pool import WORKERS
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import Limit


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of it: bytes *sent*, what cannot be read, and the nodes that could not be asked, with the reason."""

    sent: int
    flaws: Sequence[ReadFailure]
    unproven: Mapping[str, str]


def load(
    cluster: Cluster, bundle: Bundle, items: Sequence[seeding.Item], journal: Journal, *, direct: bool,
    workers: int = WORKERS, allow_older: bool = False, progress: seeding.Progress = lambda done, total: None,
    limit: Limit | None = None, stop: threading.Event | None = None, record: bool = True, anew: Collection[str] = (),
) -> Loaded:  # fmt: skip
    """Push what the registry lacks of *items*, which *bundle* has, and look for all of them at every node.

    *direct*: by the registry's own network. *record*, *anew*: as for ``Seeder``. Raises what ``Seeder.run`` does, and
    RegistryError if the virtual IP does not answer.
    """
    push = connection(cluster, cluster.hosts[0], cluster.spec.vip.address, direct=direct)
    run = seeding.Seeder(
        bundle, push, journal, workers=workers, allow_older=allow_older, progress=progress, limit=limit, stop=stop,
        record=record, anew=anew,
    )  # fmt: skip
    sent = run.run(items)
    flaws, silent = prove(cluster, items, workers, direct=direct, known=run.known, read=run.read)
    unproven = {**cluster.absent, **silent}
    if record:
        journal.conclude(bundle.layout.lineage.index, proven=not (flaws or unproven))
    return Loaded(sent, flaws, unproven)


@dataclass(frozen=True, slots=True)
class Given:
    """A bundle that was given: its *path*, the *programs* and *items* in it, and its place in its *line*."""

    path: Path
    programs: frozenset[str]
    """Those that can be installed from it: a delta lists programs as well that only the bundle before it has."""
    items: tuple[seeding.Item, ...]
    line: Lineage


def given(paths: Sequence[Path], key: Path | None, note: session.Note) -> list[Given]:
    """The bundles in *paths* in that order, but each series from its first one on. Raises ConfigError, BundleError.

    Where two have an image under the same tag, the one that is loaded later counts.
    """
    found: list[Given] = []
    for path in paths:
        with session.open_bundle(path, key, note) as bundle:
            held = frozenset(name for name, one in bundle.programs.items() if bundle.layout.has(one.digest))
            found.append(Given(path, held, seeding.plan(bundle), bundle.layout.lineage))
    series: dict[str, Iterator[Given]] = {}
    for root in {one.line.root for one in found}:
        ones = [one for one in found if one.line.root == root]
        series[root] = iter(sorted(ones, key=lambda one: one.line.sequence))
    return [next(series[one.line.root]) for one in found]


def with_programs(config: RegistryCluster, bundles: Sequence[Given]) -> Path | None:
    """The bundle with the programs for the nodes: the one that has the most of them, the tool included, and of those
    the last. None: there are only images in them, and the nodes may have the programs already.
    """
    wanted = set(session.wanted(config))
    best = max(reversed(bundles), key=lambda one: len(wanted & one.programs))
    return best.path if wanted & best.programs else None


def load_given(
    cluster: Cluster, bundles: Sequence[Given], key: Path | None, journal: Journal, note: session.Note, *, direct: bool,
    progress: seeding.Progress, again: str, record: bool = True, anew: Collection[str] = (),
) -> None:  # fmt: skip
    """Load the items of each of *bundles*, in their order, for a command that is to be run *again* if that fails.

    Raises Error (SeedIncomplete), and what ``load`` does.
    """
    for one in bundles:
        if not one.items:
            continue
        with session.open_bundle(one.path, key, note) as bundle:
            try:
                loaded = load(
                    cluster, bundle, one.items, journal, direct=direct, progress=progress, record=record, anew=anew
                )
            except Error as error:
                if error.code != "BundleReplayed":
                    raise
                # An earlier run of this command came as far as the next bundle of the series.
                note(f"{one.path}: not loaded again, since a later bundle of its series was loaded")
                continue
        if loaded.flaws:
            lines = [f"{counted(len(loaded.flaws), 'image')} of {one.path} cannot be read:"]
            raise Error(
                "\n".join([*lines, *(f"  {flaw}" for flaw in loaded.flaws)]), code="SeedIncomplete",
                hint=f"run {again} again",
            )  # fmt: skip
        for name, why in loaded.unproven.items():
            note(f"{why}; storage resynchronizes it automatically when it is back", host=name, level="warning")
