"""``bundle create | verify | inspect | sign | diff``."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from kubeadm_registry import bundle, config
from kubeadm_registry.access.session import wanted
from kubeadm_registry.bundle import make
from kubeadm_registry.cli.command import Context, command, key_option, names
from kubeadm_registry.cli.terminal import DEFAULT_BUNDLE, bundle_key
from kubeadm_registry.containerd.settings import PAUSE_IMAGES
from kubeadm_registry.engine.report import echo
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.images.kubernetes_images import images_of
from kubeadm_registry.printable import counted

#: As much of a digest as is compared by eye.
SHORT_DIGEST = len("sha256:") + 12


@click.group("bundle", short_help="Create, inspect and verify offline bundles")
def group() -> None:
    """Create, inspect and verify bundles: single files that carry programs and images across the air gap."""


def pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping. Raises ConfigError."""
    result = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not rest:
            raise ConfigError(f"{option} {value}: must be NAME=VALUE", code="UsageInvalid")
        result[name] = rest
    return result


@command("create", parent=group, writes_file=True, short_help="Create a bundle (needs internet access)")
@click.option(
    "--output-file", "file", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE, show_default=True,
    help="File to write.",
)  # fmt: skip
@click.option(
    "-f", "--file", "path", type=click.Path(path_type=Path), help="Include the programs that this cluster file needs."
)
@click.option("--with", "with_", metavar="NAMES", default="", help="Comma-separated programs to include.")
@click.option("--images-only", is_flag=True, help="Do not include programs, for example for a monthly image update.")
@click.option(
    "--program", "given", metavar="NAME=PATH", multiple=True, help="Use this file or directory for a program."
)
@click.option("--accept-digest", "accepted", metavar="NAME=sha256:...", multiple=True,
              help="Accept this SHA-256 digest for a program whose upstream publishes no checksum.")  # fmt: skip
@click.option(
    "--kubernetes-version", "kubernetes", metavar="VERSION",
    help="Add the images required by kubeadm of this version, and containerd's default pause images.",
)  # fmt: skip
@click.option("--image", "images", metavar="NAME", multiple=True, help="Add this image or other OCI artifact.")
@click.option(
    "--images-from", "paths", metavar="[NAME=]PATH", multiple=True,
    help="Add all images in an OCI image layout, an archive (docker save, podman save), a list with one name per "
    "line, or Kubernetes manifests (a file or directory). NAME:TAG names the only image in a layout or archive; "
    "NAME is prepended to the tags in a layout.",
)  # fmt: skip
@click.option(
    "--referrers", is_flag=True,
    help="Also add what refers to the images in their registries: signatures, attestations, SBOMs.",
)  # fmt: skip
@click.option(
    "--platform", "platforms", metavar="OS/ARCHITECTURE,...", default="",
    help="Platforms to include from multi-platform images.  [default: the nodes' platform for registries, all for "
    "files]",
)  # fmt: skip
@click.option(
    "--since", metavar="OLD-BUNDLE", type=click.Path(path_type=Path),
    help="Create a delta bundle: omit blobs that OLD-BUNDLE already contains.",
)  # fmt: skip
@click.option(
    "--sign",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Sign the bundle with this SSH key; see `bundle sign`.",
)
@click.option(
    "--architecture",
    type=click.Choice(["amd64", "arm64"]),
    help="Architecture of the nodes.  [default: that of this host]",
)
def create(
    context: Context, file: Path, path: Path | None, with_: str, images_only: bool, given: tuple[str, ...],
    accepted: tuple[str, ...], kubernetes: str | None, images: tuple[str, ...], paths: tuple[str, ...],
    referrers: bool, platforms: str, since: Path | None, sign: Path | None, architecture: str | None,
) -> None:  # fmt: skip
    """Create a bundle. Requires internet access unless every program and image is given as a file.

    Without -f and --with, the bundle contains the programs of ./cluster.yaml, or of a cluster with default settings if
    there is none, and kubeadm-registry itself. Programs come from --program, or else from the pinned catalogue:
    upstream releases, and distribution packages together with their dependencies as a self-contained build. Downloads
    are cached: an interrupted run resumes, and a later run downloads only what is new.
    """
    reporter = context.reporter()
    files = {name: Path(value) for name, value in pairs(given, "--program").items()}
    cluster_file = path or config.DEFAULT_FILE  # never replaced, also where it is not read: -o is not -f
    if images_only and (with_ or given):
        raise ConfigError("--images-only excludes programs", hint="omit --with and --program", code="UsageInvalid")
    if images_only:
        chosen: tuple[str, ...] = ()
    elif with_:
        chosen = names(with_)
    elif path is not None or cluster_file.exists():
        chosen = wanted(config.load(path))
    else:
        chosen = wanted(config.parse(config.SMALLEST, "defaults"))
    if kubernetes is not None:
        images = (*images, *images_of(kubernetes), *sorted(PAUSE_IMAGES))
    with _ended_by_signals():
        made = make.create(
            file,
            make.choose(chosen, files, pairs(accepted, "--accept-digest")),
            images=make.images_from(images, paths, referrers=referrers),
            platforms=bundle.platforms(names(platforms)),
            since=since,
            sign=sign,
            inputs=[cluster_file, *(make.named(one)[1] for one in paths), *files.values()],
            architecture=architecture or "",
            progress=reporter.note,
            meter=reporter.progress,
            mirror=make.Mirror.from_environment(),
        )
    if lacking := [name for name in make.told_of(paths) if name not in made.images]:
        reporter.note(
            f"not included, but named in arguments or variables of containers: {', '.join(lacking)}; add with --image "
            "those from which a controller creates pods",
            level="warning",
        )
    held = ", ".join(
        [f"{program.name} {program.version}" for program in made.programs]
        + ([counted(len(made.images), "image")] if made.images else [])
    )
    reporter.result(
        f"{made.path}: {made.size / 1e6:.1f} MB, {held}", path=str(made.path), size=made.size, index=made.index
    )


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that it removes its temporary files; unless ignored."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough: a second one must not end the cleaning up
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as nohup does it
                signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@command("verify", parent=group, short_help="Verify every digest in a bundle")
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE)
@key_option
@click.option(
    "--base", "bases", metavar="OLD-BUNDLE", multiple=True, type=click.Path(path_type=Path),
    help="Also check the blobs that the delta omits against this base bundle. May be repeated.",
)  # fmt: skip
def verify(context: Context, file: Path, key: Path | None, bases: tuple[Path, ...]) -> None:
    """Verify every digest in a bundle. Exits with code 1 on any mismatch."""
    reporter = context.reporter()
    bundle.verify(file, reporter.note, key=bundle_key(key), bases=bases, meter=reporter.progress)
    found = bundle.inspect(file)
    held = f"{counted(len(found['programs']), 'program')}, {counted(len(found['images']), 'image')}"
    reporter.result(f"{file}: OK ({held}, {'signed' if found['signed'] else 'not signed'})", path=str(file))


@command("sign", parent=group, short_help="Sign a bundle with an SSH key")
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE)
@click.option("--key", metavar="KEY", type=click.Path(path_type=Path), required=True,
              help="Private SSH key, or a public one whose private key is in the agent or security key.")  # fmt: skip
def sign(context: Context, file: Path, key: Path) -> None:
    """Sign a bundle, or replace its signature. Only a few bytes at its end are written, whatever its size."""
    index = bundle.sign_file(file, key)
    context.reporter().result(f"{file} is signed: index {index}", path=str(file), index=index)


@command("inspect", parent=group, short_help="Show a bundle's programs and images")
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE)
def inspect(context: Context, file: Path) -> None:
    """Show the programs in a bundle, with version, digest, origin and what they were compared with, and its images."""
    description = bundle.inspect(file)
    if context.output == "json":
        echo(json.dumps(description))
        return
    for program in description["programs"]:
        source = program["source"]
        echo(f"program  {program['name']:<14} {program['version']:<22} {program['architecture']:<6} "
             f"{program['size'] / 1e6:7.1f} MB  {program['digest']}  {source['kind']}: {source['origin']}, "
             f"compared with {source['checked'] or 'nothing'}")  # fmt: skip
    for image in description["images"]:
        echo(f"image    {image['name']}  {image['digest']}")
    if description["base"]:
        echo(f"delta    number {description['sequence']}, based on {description['base']}: omits "
             f"{description['leftOut'] / 1e6:.1f} MB")  # fmt: skip
    echo(f"index    {description['index']}, {'signed' if description['signed'] else 'not signed'}")


@command("diff", parent=group, short_help="Compare the contents of two bundles")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
def diff(context: Context, old: Path, new: Path) -> None:
    """Show images and programs added, removed or changed between two bundles, and the number of bytes added."""
    found = bundle.diff(old, new)
    if context.output == "json":
        echo(json.dumps(found))
        return
    for sign, items in (("+", found["added"]), ("-", found["removed"]), ("~", found["changed"])):
        for item in items:
            by_version = item["version"] != item.get("wasVersion", "")
            now = item["version"] if by_version else item["digest"][:SHORT_DIGEST]
            was = f"{item['wasVersion'] if by_version else item['was'][:SHORT_DIGEST]} -> " if "was" in item else ""
            echo(f"{sign} {item['kind']:<8} {item['name']}  {was}{now}  "
                 f"{item['size'] / 1e6:.1f} MB, {item['adds'] / 1e6:.1f} MB new")  # fmt: skip
    echo(f"{new} adds {found['adds'] / 1e6:.1f} MB to {old}")
