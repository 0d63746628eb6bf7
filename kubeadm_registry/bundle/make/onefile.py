"""This program as one file for ``make dist``: it runs on any Linux machine of its architecture without Python.

The file is a shell script, ``onefile.sh``, followed by the tree that ``bundle create`` packs for bundles. The same
inputs give the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kubeadm_registry.bundle import temporary
from kubeadm_registry.bundle.make.context import BuildContext, Mirror, default_cache, this_architecture
from kubeadm_registry.bundle.make.sources import Built, choose
from kubeadm_registry.bundle.programs import ARCHITECTURES, MACHINES, Program, slug
from kubeadm_registry.bundle.tool import NAME
from kubeadm_registry.disk import refusal
from kubeadm_registry.errors import Error
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.printable import Level

#: The file with the checksums, in the form that ``sha256sum --check`` reads.
SUMS = "SHA256SUMS"
#: Bytes of tree for each MB that it takes on a disk: whole blocks, and the byte code that Python writes beside it.
_ON_DISK = 800_000


def head(program: Program) -> bytes:
    """The script in front of the layer of *program*, with the digest of the layer and the byte at which it starts."""
    text = Path(__file__).with_suffix(".sh").read_text(encoding="utf-8")
    values = {
        "VERSION": program.version,
        "MACHINE": MACHINES[program.architecture],
        "MEGABYTES": str(-(-program.unpacked // _ON_DISK)),
        "DIGEST": program.digest.removeprefix("sha256:"),
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    start = 0
    while start != (right := len(text.replace("@START@", str(start)).encode()) + 1):
        start = right  # the number of its digits counts too
    return text.replace("@START@", str(start)).encode()


def write(built: Built, folder: Path) -> Path:
    """Write the file and the checksums to *folder*, which is made if needed; returns the path of the file.

    SHA256SUMS lists the files of all architectures that *folder* has of this version. Raises OSError.
    """
    program = built.program
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{NAME}-{slug(program.version)}-linux-"
    target = folder / f"{prefix}{program.architecture}"
    with temporary.file(folder, target.name) as file, built.layer.open("rb") as layer:
        file.write(head(program))
        while piece := layer.read(1 << 20):
            file.write(piece)
        temporary.put(file, target, mode=0o755)
    lines = []
    for path in sorted(folder / f"{prefix}{architecture}" for architecture in ARCHITECTURES):
        if path.is_file():
            with path.open("rb") as content:
                lines.append(f"{oci.digest_of_file(content).removeprefix('sha256:')}  {path.name}\n")
    with temporary.file(folder, SUMS) as file:
        file.write("".join(lines).encode())
        temporary.put(file, folder / SUMS, mode=0o644)
    return target


def _tell(text: str, *, level: Level = "info") -> None:
    click.echo(f"{'warning: ' * (level == 'warning')}{text}", err=True)


def make(folder: Path, architecture: str) -> Path:
    """Build the program for *architecture* and write it as one file to *folder*. Raises Error, OSError."""
    with temporary.directory("kubeadm-registry-bundle-") as scratch:
        context = BuildContext(
            architecture=architecture,
            scratch=scratch,
            cache=default_cache(),
            progress=_tell,
            mirror=Mirror.from_environment(),
        )
        return write(choose([NAME])[NAME].build(NAME, context), folder)


@click.command()
@click.option("--architecture", type=click.Choice(ARCHITECTURES), default=this_architecture(), show_default=True)
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path, architecture: str) -> None:
    """Write kubeadm-registry as one file, and SHA256SUMS, to FOLDER."""
    try:
        path = make(folder, architecture)
    except (Error, OSError) as error:
        told = error if isinstance(error, Error) else refusal(error)
        if told is None:
            raise
        click.echo(f"error: {told}\n  hint: {told.hint}", err=True)
        sys.exit(1)
    click.echo(path)


if __name__ == "__main__":
    main()
