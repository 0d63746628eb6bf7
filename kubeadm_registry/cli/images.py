"""``images list | check | copy | delete | wanted``, and those of ``pins``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from kubeadm_registry import config
from kubeadm_registry.access.collecting import Member, as_root
from kubeadm_registry.access.reach import ReadFailure, prove
from kubeadm_registry.access.space import Quiet
from kubeadm_registry.bundle import temporary
from kubeadm_registry.bundle.lists import names_in
from kubeadm_registry.cli import pins, terminal
from kubeadm_registry.cli.collect import collect, grace_option
from kubeadm_registry.cli.command import EXIT_DEGRADED, Context, command, dry_delete_option, file_option, key_option
from kubeadm_registry.cli.tables import columns, wide_screen
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import frontend
from kubeadm_registry.disk import naming
from kubeadm_registry.engine.report import Reporter, echo
from kubeadm_registry.engine.workflow import take_locks
from kubeadm_registry.errors import ConfigError, Error, Problem
from kubeadm_registry.images import blobs, inventory, pool, seed
from kubeadm_registry.images import check as checking
from kubeadm_registry.images import copy as copying
from kubeadm_registry.images import delete as deleting
from kubeadm_registry.images import wanted as wishes
from kubeadm_registry.images.kubernetes_images import images_of
from kubeadm_registry.images.names import OURS, Place, place_in, tag_in
from kubeadm_registry.phases.space import one_by_one
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.transport.host import side_by_side

DEFAULT_WANTED = Path("wanted-images.txt")


@click.group("images", short_help="List, check, copy and delete images")
def group() -> None:
    """List, check, copy and delete images, and find images that nodes failed to pull."""


for one in (collect, pins.pin, pins.unpin, pins.pins):
    group.add_command(one)


# ---- list -------------------------------------------------------------------------------------------------------


@command("list", parent=group, short_help="List images, tags and platforms")
@file_option
@click.option("--referrers", is_flag=True, help="Also list what refers to each image, such as signatures.")
@click.option("--all", "everything", is_flag=True, help="Include the canary image and the tags that list referrers.")
@click.argument("repository", default="")
def list_command(context: Context, path: Path | None, referrers: bool, everything: bool, repository: str) -> None:
    """List the images in the registry with their tags and platforms, or those below a REPOSITORY.

    SIZE counts every blob once per image; images may share blobs. Untagged manifests are not listed, because
    registries do not report them.
    """
    cluster_file = config.load(path)
    prefix = place_in(cluster_file.spec, repository).repository if repository else ""
    with terminal.registry(cluster_file, context.reporter()) as (_, connect, _):
        places = inventory.places(connect, prefix, everything=everything)
        images = inventory.look(connect, places, referrers=referrers)
    if context.output == "json":
        echo(json.dumps({"images": [image.to_dict() for image in images]}))
    else:
        _show(images, referrers=referrers)


def _show(images: Sequence[inventory.Image], *, referrers: bool) -> None:
    console = wide_screen()
    table = columns()
    # On a narrow terminal names and platforms break, so that nothing is cut off.
    for title in ("IMAGE", "DIGEST", "PLATFORMS", *(["REFERRERS"] if referrers else [])):
        table.add_column(title, no_wrap=title in ("DIGEST", "REFERRERS"), overflow="fold")
    table.add_column("SIZE", no_wrap=True, justify="right")
    for image in images:
        if image.graph is None:
            table.add_row(str(image.place), image.flaw)
            continue
        lacking = f" (missing: {', '.join(image.absent)})" if image.absent else ""
        count = [str(len(image.referrers))] if referrers else []
        root = image.graph.root
        size = f"{image.graph.size(root) / 1e6:.1f} MB"
        table.add_row(str(image.place), root.digest[:19], ", ".join(image.platforms) + lacking, *count, size)
    console.print(table)
    console.print(counted(len(images), "image"))


# ---- check ------------------------------------------------------------------------------------------------------


@command("check", parent=group, short_help="Check that images can be pulled")
@file_option
@click.option(
    "--kubernetes-version", "version", metavar="VERSION", help="Check the images required by kubeadm of this version."
)
@click.option(
    "--images-from", "lists", metavar="FILE", multiple=True, type=click.Path(path_type=Path),
    help="Check the images in a list with one name per line, as `kubeadm config images list` prints it, or in "
    "Kubernetes manifests.",
)  # fmt: skip
@click.option("--bundle", type=click.Path(path_type=Path), help="Check the images in a bundle.")
@key_option
def check(
    context: Context, path: Path | None, version: str | None, lists: tuple[Path, ...], bundle: Path | None,
    key: Path | None,
) -> None:  # fmt: skip
    """Check that images can be pulled from every node: those of a Kubernetes version, a list or a bundle, or all.

    For all platforms, every manifest is read through each node and the virtual IP and compared with its digest, and
    the last byte of every blob is read. Exits with code 1 if something is missing, 5 if a node is unreachable.
    """
    reporter = context.reporter()
    names = [*(images_of(version) if version else ()), *(name for file in lists for name in names_in(file))]
    cluster_file = config.load(path)
    spec = cluster_file.spec
    places = list(dict.fromkeys(place_in(spec, name) for name in names))
    everything = not (names or bundle)
    with terminal.registry(cluster_file, reporter, bundle, key) as (cluster, connect, direct):
        items = list(seed.plan(cluster.bundle)) if cluster.bundle else []
        unlisted: Mapping[Place, str] = {}
        if everything:
            places, unlisted = inventory.all_places(connect, frontend(cluster.spec).records)
        found, missing = checking.find(connect, places)
        missing |= {str(one): why for one, why in unlisted.items()}
        items += found
        flaws, silent = prove(cluster, items, pool.WORKERS, direct=direct)
        unproven = {**cluster.absent, **silent}
        servers = len(cluster.spec.nodes) - len(unproven)
    flaws += [ReadFailure(name, "", why) for name, why in missing.items()]
    for name, why in unproven.items():
        reporter.note(why, host=name, level="warning")
    for flaw in flaws:
        kind = "ImageReadable" if flaw.where else "ImagePresent"
        reporter.problem(Problem(kind, flaw.where, f"{flaw.image}: {flaw.why}"))
    count, bad = len(items) + len(missing), len({flaw.image for flaw in flaws})
    if bad:
        raise Error(
            f"{bad} of {counted(count, 'image')} cannot be pulled from every node", code="ImagesMissing",
            hint="load them with `seed`, from a bundle made with `bundle create --images-from FILE`; an image that is "
            'listed but damaged is not re-uploaded, see "Replacing a damaged image" in docs/images.md',
        )  # fmt: skip
    reporter.result(
        f"{count} of {counted(count, 'image')} can be pulled through the virtual IP and from "
        f"{counted(servers, 'node')}",
        images=count, unproven=list(unproven),
    )  # fmt: skip
    if unproven:
        sys.exit(EXIT_DEGRADED)


# ---- copy, delete -----------------------------------------------------------------------------------------------


@command("copy", parent=group, short_help="Copy an image within the registry")
@file_option
@click.option("--referrers", is_flag=True, help="Also copy what refers to the image, such as signatures.")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
def copy(context: Context, path: Path | None, referrers: bool, source: str, target: str) -> None:
    """Copy an image within the registry to another name or tag, with all its platforms.

    Without a tag, DST gets the tag of SRC. Distribution mounts the layers; with zot they are copied through this host.
    """
    reporter = context.reporter()
    cluster_file = config.load(path)
    spec = cluster_file.spec
    origin, goal = place_in(spec, source), place_in(spec, target)
    if not origin.reference:
        raise ConfigError(f"{source} has neither a tag nor a digest", hint="add a tag or a digest", code="UsageInvalid")
    if goal.repository.startswith(OURS):
        raise ConfigError(
            f"{target}: {goal.repository} belongs to kubeadm-registry itself", hint="copy it to another repository",
            code="UsageInvalid",
        )  # fmt: skip
    goal = Place(goal.repository, goal.reference or tag_in(source) or origin.reference)
    with terminal.registry(cluster_file, reporter) as (_, connect, _):
        copied = copying.copy(connect, origin, goal, referrers=referrers)
    reporter.result(
        f"copied {origin} to {goal}: {counted(copied.manifests, 'manifest')}, {copied.sent / 1e6:.1f} MB sent",
        digest=copied.digest, manifests=copied.manifests, sent=copied.sent,
    )  # fmt: skip


@command("delete", parent=group, short_help="Delete tags or images")
@file_option
@click.option("--all-tags", is_flag=True, help="Delete all tags of a repository, and all other tags of an image.")
@click.option("--yes", is_flag=True, help="Do not prompt for confirmation.")
@dry_delete_option
@grace_option
@click.argument("names", metavar="NAME[:TAG|@DIGEST]...", nargs=-1, required=True)
def delete(
    context: Context, path: Path | None, all_tags: bool, yes: bool, dry_run: bool, grace: str, names: tuple[str, ...]
) -> None:
    """Delete a tag, or a digest together with all its tags.

    zot deletes a single tag. Distribution deletes by digest, which also removes other tags of the same image; this is
    refused unless --all-tags is given. Manifests that a remaining index refers to are never deleted.

    With zot, deleting a digest frees its space immediately, except for blobs that other manifests need; deleting a tag
    alone frees nothing, because its image stays. With Distribution, `images collect` frees the space.
    """
    reporter = context.reporter()
    cluster_file = config.load(path)
    spec = cluster_file.spec
    places = [place_in(spec, name) for name in names]
    seconds = wishes.seconds(grace, option="--grace")
    freed = blobs.Freed()
    with terminal.registry(cluster_file, reporter) as (cluster, connect, _):
        planned = deleting.plan(connect, places, all_tags=all_tags)
        for one in planned:
            reporter.note(f"{'would delete' if dry_run else 'to be deleted:'} {one}")
        if any(one.digest not in ("", one.place.reference) for one in planned):
            reporter.note("a tag alone frees no space: its image stays; `images delete NAME@DIGEST` deletes that")
        if not (yes or dry_run or not sys.stdin.isatty()):
            click.confirm(f"Delete {'this' if len(planned) == 1 else f'these {len(planned)}'}?", abort=True, err=True)
            if deleting.plan(connect, places, all_tags=all_tags) != planned:
                raise Error(
                    "nothing was deleted: images were pushed or deleted before you answered, so other images would be "
                    "deleted now",
                    code="ImageChanged", hint="run it again",
                )  # fmt: skip
        members = as_root(cluster, connect)
        found = {} if dry_run or not _frees(cluster, members, reporter) else deleting.blobs(connect, planned)
        gone = [one for one in planned if not dry_run and deleting.carry_out(connect, one)]
        if found:
            freed = one_by_one(members, connect, found, seconds)
    if freed.relied:
        reporter.note(
            f"{counted(freed.relied, 'blob')} stay for now, because a push relied on them recently; see --grace"
        )
    count = len(planned) if dry_run else len(gone)
    reporter.result(
        f"{'would delete' if dry_run else 'deleted'} {counted(count, 'name')}"
        + (f", freed {freed.bytes / 1e6:.1f} MB" if found else ""),
        dryRun=dry_run, freed=freed.bytes,
        deleted=[
            {"name": str(one.place), "digest": one.digest, "tags": list(one.tags)}
            for one in (planned if dry_run else gone)
        ],
    )  # fmt: skip


def _frees(cluster: Cluster, members: Sequence[Member], reporter: Reporter) -> bool:
    """Whether the blobs of what is deleted can be freed now; if not, what frees them is told."""
    if not frontend(cluster.spec).FREES_BLOBS:
        reporter.note("`images collect` frees the space")
        return False
    try:
        Quiet(members, 0).check()
    except Error as error:
        why = error.message
    else:
        why = f"{', '.join(cluster.absent)} cannot be reached" if cluster.absent else ""
    if why:
        reporter.note(f"{why}; so pushes cannot wait there, and `images collect` frees the space", level="warning")
        return False
    take_locks(cluster.hosts)
    return True


# ---- wanted -----------------------------------------------------------------------------------------------------


@command("wanted", parent=group, writes_file=True, short_help="List images that nodes failed to pull")
@file_option
@click.option(
    "--since", default="7d", show_default=True, metavar="TIME", help="Period to search, such as 7d, 12h or 30m."
)
@click.option(
    "--output-file", "file", type=click.Path(path_type=Path), default=DEFAULT_WANTED, show_default=True,
    help="File to write the list to.",
)  # fmt: skip
def wanted(context: Context, path: Path | None, since: str, file: Path) -> None:
    """Write a list of images that nodes requested and the registry did not have, for `bundle create --images-from`.

    The list comes from the HAProxy logs on all reachable nodes. Images that the registry has by now are omitted.
    """
    reporter = context.reporter()
    back = wishes.seconds(since)
    straight = file.is_char_device() or file.is_fifo()  # /dev/stdout, a pipe
    if not straight:
        temporary.target(file, [path or config.DEFAULT_FILE])  # before all nodes are asked: -o is not -f
    with terminal.registry(path, reporter) as (cluster, connect, _):
        asked = side_by_side(partial(wishes.ask, back=back), cluster.hosts)
        now = datetime.now(UTC)
        for host, one in zip(cluster.hosts, asked, strict=True):
            if one.begins is None or (now - one.begins).total_seconds() < back:
                begins = "is empty" if one.begins is None else f"begins at {one.begins.isoformat()}"
                reporter.note(f"its log {begins}", host=host.name, level="warning")
            if not one.complete:
                reporter.note(
                    f"over {wishes.MOST} different requests; the rarest are omitted", host=host.name, level="warning"
                )
        found = wishes.together(asked)
        there = {item for item, has in pool.each(connect, _has, list(found)) if has}
        absent = cluster.absent
    for name, why in absent.items():
        reporter.note(f"{why}; its request log was not read", host=name, level="warning")
    missing = {one: wish for one, wish in found.items() if one not in there}
    names = sorted(str(one) for one in missing if wishes.is_name(one))
    _write(file, wishes.to_text(missing, since, now), straight=straight)
    reporter.result(
        f"{file}: {counted(len(names), 'image')} missing ({len(there)} requested earlier now available)",
        path=str(file), wanted=names, arrived=len(there), unasked=list(absent),
    )  # fmt: skip
    if absent:
        sys.exit(EXIT_DEGRADED)


def _write(file: Path, text: str, *, straight: bool) -> None:
    """Write *text* to *file*: whole or not at all, but for what cannot be replaced. Raises OSError, ConfigError."""
    if straight:
        with naming(file):
            file.write_text(text, encoding="utf-8")
        return
    target = temporary.target(file)
    with temporary.file(target.parent, target.name) as new:
        new.write(text.encode())
        temporary.put(new, target, mode=0o644)


def _has(registry: Api, one: Place) -> bool:
    return retry(lambda: registry.digest(one.repository, one.reference), inventory.PATIENCE) is not None
