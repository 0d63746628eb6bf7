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

#: As much of a digest as people compare by eye.
SHORT = len("sha256:") + 12


@click.group("bundle")
def group() -> None:
    """Make and look into bundles: one file with the programs and images that cross the air gap."""


def pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping. Raises ConfigError."""
    result = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not rest:
            raise ConfigError(f"{option} {value}: must be NAME=VALUE", code="UsageError")
        result[name] = rest
    return result


@command("create", parent=group, short=False)
@click.option(
    "-o", "--output-file", "file", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE, show_default=True,
    help="Where to write it.",
)  # fmt: skip
@click.option(
    "-f", "--file", "path", type=click.Path(path_type=Path), help="Take the programs that this cluster file needs."
)
@click.option("--with", "with_", metavar="NAMES", default="", help="Programs to take, separated by commas.")
@click.option("--images-only", is_flag=True, help="Take no programs: what is seeded each month.")
@click.option("--program", "given", metavar="NAME=PATH", multiple=True, help="Take this program from a file or folder.")
@click.option("--accept-digest", "accepted", metavar="NAME=sha256:...", multiple=True,
              help="Vouch for the digest of a program that its upstream publishes without one.")  # fmt: skip
@click.option(
    "--kubernetes-version", "kubernetes", metavar="VERSION",
    help="Take the images that kubeadm of this version asks for, and the pause images of containerd's releases.",
)  # fmt: skip
@click.option("--image", "images", metavar="NAME", multiple=True, help="Take this image, or another OCI artifact.")
@click.option(
    "--images-from", "paths", metavar="[NAME=]PATH", multiple=True,
    help="Take all images of an OCI image layout, of an archive (docker save, podman save), of a list with a name "
    "a line, or of Kubernetes manifests, a file or a folder. NAME:TAG names the only image of a layout or an archive, "
    "NAME goes before the tags in a layout.",
)  # fmt: skip
@click.option(
    "--platform", "platforms", metavar="OS/ARCHITECTURE,...", default="",
    help="Of images that are there for several, take these.  [default: from registries the servers' own, else all]",
)  # fmt: skip
@click.option(
    "--since", metavar="OLD-BUNDLE", type=click.Path(path_type=Path),
    help="Leave out what this bundle has: a small file for where it has been used.",
)  # fmt: skip
@click.option(
    "--sign", metavar="KEY", type=click.Path(path_type=Path), help="Sign it with this SSH key; see bundle sign."
)
@click.option(
    "--architecture", type=click.Choice(["amd64", "arm64"]), help="Of the servers.  [default: this machine's]"
)
def create(
    context: Context, file: Path, path: Path | None, with_: str, images_only: bool, given: tuple[str, ...],
    accepted: tuple[str, ...], kubernetes: str | None, images: tuple[str, ...], paths: tuple[str, ...],
    platforms: str, since: Path | None, sign: Path | None, architecture: str | None,
) -> None:  # fmt: skip
    """Make a bundle. Needs internet, or the files themselves.

    Without -f and --with it holds the programs of a cluster with defaults, and this tool itself. Each comes from
    --program, or else from the pinned catalogue: upstream releases, and distribution packages with all they need as a
    private tree. Blobs that were fetched are kept: a run that was broken off goes on, a second one fetches what is new.
    """
    reporter = context.reporter()
    files = {name: Path(value) for name, value in pairs(given, "--program").items()}
    if images_only and (with_ or given):
        raise ConfigError("--images-only takes no programs", hint="leave out --with and --program", code="UsageError")
    if images_only:
        chosen: tuple[str, ...] = ()
    elif with_:
        chosen = names(with_)
    elif path is not None or config.DEFAULT_FILE.exists():
        chosen = (*wanted(config.load(path)), bundle.TOOL)
    else:
        chosen = (*wanted(config.parse(config.SMALLEST, "defaults")), bundle.TOOL)
    if kubernetes is not None:
        images = (*images, *images_of(kubernetes), *sorted(PAUSE_IMAGES))
    with _ended_by_signals():
        made = make.create(
            file,
            make.choose(chosen, files, pairs(accepted, "--accept-digest")),
            images=make.images_from(images, paths),
            platforms=bundle.platforms(names(platforms)),
            since=since,
            sign=sign,
            inputs=[*(make.named(one)[1] for one in paths), *files.values()],
            architecture=architecture or "",
            progress=reporter.note,
            meter=reporter.progress,
            mirror=make.Mirror.from_environment(),
        )
    held = ", ".join(
        [f"{program.name} {program.version}" for program in made.programs]
        + ([f"{len(made.images)} images"] if made.images else [])
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


@command("verify", parent=group)
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE)
@key_option
@click.option(
    "--base", "bases", metavar="OLD-BUNDLE", multiple=True, type=click.Path(path_type=Path),
    help="Look for what a delta leaves out in this bundle as well; again for those before it.",
)  # fmt: skip
def verify(context: Context, file: Path, key: Path | None, bases: tuple[Path, ...]) -> None:
    """Read a bundle whole and compare every byte with its digest. Exit code 1 if anything is wrong."""
    reporter = context.reporter()
    bundle.verify(file, reporter.note, key=bundle_key(key), bases=bases)
    reporter.result(f"{file} is whole", path=str(file))


@command("sign", parent=group)
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE)
@click.option("--key", metavar="KEY", type=click.Path(path_type=Path), required=True,
              help="A private SSH key, or a public one whose private key the agent or a security key has.")  # fmt: skip
def sign(context: Context, file: Path, key: Path) -> None:
    """Sign a bundle, or sign it anew. Only a few bytes at its end are written, however large it is."""
    index = bundle.sign_file(file, key)
    context.reporter().result(f"{file} is signed: index {index}", path=str(file), index=index)


@command("inspect", parent=group)
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE)
def inspect(context: Context, file: Path) -> None:
    """Show what a bundle holds: programs with version, origin and digest, and images."""
    description = bundle.inspect(file)
    if context.output == "json":
        echo(json.dumps(description))
        return
    for program in description["programs"]:
        source = program["source"]
        echo(f"program  {program['name']:<14} {program['version']:<22} {program['architecture']:<6} "
             f"{program['size'] / 1e6:7.1f} MB  {source['kind']}: {source['origin']}")  # fmt: skip
    for image in description["images"]:
        echo(f"image    {image['name']}  {image['digest']}")
    if description["base"]:
        echo(f"delta    number {description['sequence']}, since {description['base']}: leaves out "
             f"{description['leftOut'] / 1e6:.1f} MB")  # fmt: skip
    echo(f"index    {description['index']}, {'signed' if description['signed'] else 'not signed'}")


@command("diff", parent=group)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
def diff(context: Context, old: Path, new: Path) -> None:
    """Show what bundle NEW has that OLD has not: images and programs, and how many bytes they add."""
    found = bundle.diff(old, new)
    if context.output == "json":
        echo(json.dumps(found))
        return
    for sign, items in (("+", found["added"]), ("-", found["removed"]), ("~", found["changed"])):
        for item in items:
            by_version = item["version"] != item.get("wasVersion", "")
            now = item["version"] if by_version else item["digest"][:SHORT]
            was = f"{item['wasVersion'] if by_version else item['was'][:SHORT]} -> " if "was" in item else ""
            echo(f"{sign} {item['kind']:<8} {item['name']}  {was}{now}  "
                 f"{item['size'] / 1e6:.1f} MB, {item['adds'] / 1e6:.1f} MB new")  # fmt: skip
    echo(f"{new} adds {found['adds'] / 1e6:.1f} MB to {old}")
