"""The three places that a program for a bundle can come from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from kubeadm_registry import __version__
from kubeadm_registry.bundle import temporary, tree
from kubeadm_registry.bundle.catalogue import Packages, Release, catalogue, known, version_in
from kubeadm_registry.bundle.failures import refused, unavailable
from kubeadm_registry.bundle.make import elf, private, tool
from kubeadm_registry.bundle.make.context import BuildContext, command, locked, this_architecture
from kubeadm_registry.bundle.make.debian import Apt, unpack
from kubeadm_registry.bundle.make.download import fetch, published_digest
from kubeadm_registry.bundle.programs import Package, Program, Source, prefix_of
from kubeadm_registry.bundle.tool import NAME
from kubeadm_registry.errors import BundleError, ConfigError
from kubeadm_registry.oci import descriptors as oci

#: Counts up when trees are built in another way from the same packages, so that no old one is taken from the cache.
RECIPE = 2
#: Seconds for a program to tell its version.
VERSION_TIMEOUT = 10.0
#: Seconds to wait for another run that fetches packages into the same cache.
LOCK_DEADLINE = 600.0


@dataclass(frozen=True, slots=True)
class Built:
    """A program that is ready for a bundle: its description, and the file with its layer."""

    program: Program
    layer: Path


class ProgramSource(Protocol):
    """Something that a program can be made from."""

    def build(self, name: str, context: BuildContext) -> Built:
        """Make the program *name*; raises BundleError if that cannot be done."""


@dataclass(frozen=True, slots=True)
class FromFile:
    """A file of the user: an executable, a directory with ``bin/`` in it, or a tar.gz of such a directory."""

    path: Path

    def build(self, name: str, context: BuildContext) -> Built:
        """Take the file in; its version is what the program tells, if it runs on this machine."""
        target = context.new_directory(f"{name}/tree")
        entry_point = catalogue()[name].entry_point
        if self.path.is_dir():
            tree.take_directory(self.path, target)
        elif not self.path.is_file():
            raise refused(f"{name}: no such file: {self.path}", hint="check the path given with --program")
        elif _is_gzip(self.path):
            tree.take_archive(self.path, target, context.new_directory(f"{name}/unpacked"))
        else:
            tree.take_file(self.path, target, entry_point)
        entry_point = _entry_point(name, target, str(self.path), context.architecture)
        headers = elf.read(target / entry_point)
        if headers and headers.interpreter.startswith(("/lib", "/usr/lib")):
            context.progress(
                f"{name} is dynamically linked; every node must provide {', '.join(headers.needed)}", level="warning"
            )
        source = Source(kind="file", origin=_plain(self.path.name), checked="nothing: the user's own file")
        return _finish(name, target, entry_point, source, context, version=None)


@dataclass(frozen=True, slots=True)
class FromRelease:
    """A file that the program's own project publishes; *accept* is a digest accepted by the user."""

    release: Release
    accept: str = ""

    def build(self, name: str, context: BuildContext) -> Built:
        """Fetch the file, compare it with its digest and take it in."""
        release, architecture = self.release, context.architecture
        remedy = f"obtain it in another way and pass it with --program {name}=PATH"
        if architecture not in release.architectures:
            raise unavailable(f"{name} {release.version} is not published for {architecture}", hint=remedy)
        url = release.fill(release.url, architecture)
        if self.accept:
            digest, checked = self.accept, "a digest accepted by the user"
        elif architecture in release.sha256:
            digest, checked = release.sha256[architecture], "the digest in the catalogue"
        elif release.checksums:
            checksums = release.fill(release.checksums, architecture)
            digest = published_digest(context, checksums, url, hint=remedy)
            checked = f"the checksum published at {checksums}"
        else:
            raise refused(
                f"{name} {release.version}: upstream publishes no checksum; refusing to download {url} unverified",
                hint=f"pass the program with --program {name}=PATH, or, if you know its SHA-256 digest, accept "
                f"it with --accept-digest {name}=sha256:...",
            )
        file = fetch(context, url, digest, hint=remedy)
        target = context.new_directory(f"{name}/tree")
        entry_point = catalogue()[name].entry_point
        if release.member:
            unpacked = context.new_directory(f"{name}/unpacked")
            tree.take_archive(file, unpacked, context.new_directory(f"{name}/archive"))
            file = unpacked / release.member
            if not file.is_file():
                raise refused(f"{url} has no file {release.member}", hint=remedy)
        tree.take_file(file, target, entry_point)
        _entry_point(name, target, url, architecture)
        source = Source(kind="upstream-release", origin=url, checked=f"{checked}: {digest}")
        return _finish(name, target, entry_point, source, context, version=release.version)


@dataclass(frozen=True, slots=True)
class FromPackages:
    """Packages of a Debian release, as a private tree. A tree of the same packages is kept in the cache.

    *tool*: this program itself is added, to the Python of the packages.
    """

    recipe: Packages
    tool: bool = False

    def build(self, name: str, context: BuildContext) -> Built:
        """Find the packages in the release's signed index, fetch them, and build the tree for its place on hosts."""
        recipe, architecture = self.recipe, context.architecture
        directory = context.cache / "debian" / f"{recipe.release}-{architecture}"
        apt = Apt(directory, recipe.release, architecture, context.mirror, context.progress)
        with locked(directory.with_suffix(".lock"), context.progress, deadline=LOCK_DEADLINE):
            apt.update()
            packages = apt.closure([recipe.program, *recipe.also])
            version = next(package.version for package in packages if package.name == recipe.program)
            parts = tuple(Package(p.name, p.version, p.sha256) for p in packages)
            wheels: list[Path] = []
            if self.tool:
                wheels = tool.wheels(context.cache, architecture, ".".join(version.split(".")[:2]))
                recipe = recipe.model_copy(update={"load": (*recipe.load, *tool.libraries(wheels))})
            inputs = [RECIPE, private.patchelf_version(), recipe.model_dump(mode="json"), [p.sha256 for p in packages]]
            if self.tool:
                version, parts = __version__, (*parts, *tool.packages(wheels))
                source_code = tool.copy_source(context.new_directory(f"{name}/source"))
                inputs += [[part.sha256 for part in parts], tree.content_digest(source_code)]
            key = oci.digest_of(oci.canonical([name, architecture, *inputs]))
            prefix = prefix_of(name, version, architecture, key)
            kept = _Kept(context.cache / "trees" / key.replace(":", "/", 1))
            if not kept.is_whole():
                files = apt.download(packages)
                context.progress(f"building {name} {version}" + ("" if self.tool else f" for {prefix}"))
                root = context.new_directory(f"{name}/root")
                unpack(files, root)
                target = context.new_directory(f"{name}/tree")
                private.assemble(root, recipe, target, tool.ANYWHERE if self.tool else prefix, architecture)
                if self.tool:
                    tool.add(target, source_code, wheels, architecture)
                _entry_point(name, target, recipe.program, architecture)
                kept.keep(target)
                shutil.rmtree(root)
        layer, packed = kept.layer, kept.packed()
        source = Source(
            kind="distribution-package",
            origin=f"Debian {recipe.release}, {recipe.program}" + (", and wheels by pip" if self.tool else ""),
            checked="the signed index of the release" + (", and pip's index" if self.tool else ""),
            packages=parts,
        )
        program = Program(
            name=name,
            version=version,
            architecture=architecture,
            prefix=prefix,
            entry_point=catalogue()[name].entry_point,
            source=source,
            **asdict(packed),
        )
        return Built(program, layer)


class _Kept:
    """A layer in the cache, and beside it a file with its digest and sizes, written last."""

    def __init__(self, path: Path) -> None:
        self.layer = path.with_name(path.name + ".tar.gz")
        self._facts = path.with_name(path.name + ".json")

    def is_whole(self) -> bool:
        try:
            facts = self.packed()
            with self.layer.open("rb") as file:
                return oci.digest_of_file(file) == facts.digest
        except (OSError, ValueError, TypeError):
            return False

    def packed(self) -> tree.Packed:
        facts: Any = json.loads(self._facts.read_text(encoding="utf-8"))
        return tree.Packed(digest=facts["digest"], size=facts["size"], unpacked=facts["unpacked"])

    def keep(self, content: Path) -> None:
        self.layer.parent.mkdir(parents=True, exist_ok=True)
        with (
            temporary.file(self.layer.parent, self.layer.name) as layer,
            temporary.file(self.layer.parent, self._facts.name) as facts,
        ):
            packed = tree.pack(content, Path(layer.name))
            facts.write(json.dumps(asdict(packed)).encode())
            temporary.put(layer, self.layer)
            temporary.put(facts, self._facts)


def choose(
    names: Iterable[str], given: Mapping[str, Path] | None = None, accepted: Mapping[str, str] | None = None
) -> dict[str, ProgramSource]:
    """Return where each of the programs *names* comes from: the file *given* for it, or else the catalogue.

    *accepted* are digests, by program, that the user vouches for. A program in *given* need not be in *names*.
    Raises ConfigError for names that the catalogue does not have, and for what is no digest.
    """
    given, accepted = given or {}, accepted or {}
    known([*names, *given, *accepted])
    for name, digest in accepted.items():
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise ConfigError(
                f"{digest!r} is not a valid digest for {name}",
                hint="use sha256: and 64 hexadecimal digits, as printed by `sha256sum`",
                code="DigestInvalid",
            )
    chosen: dict[str, ProgramSource] = {}
    for name in sorted({*names, *given}):
        entry = catalogue()[name]
        if name in given:
            chosen[name] = FromFile(given[name])
        elif entry.release:
            chosen[name] = FromRelease(entry.release, accepted.get(name, ""))
        elif entry.packages:
            chosen[name] = FromPackages(entry.packages, tool=name == NAME)
    return chosen


def _finish(
    name: str, target: Path, entry_point: str, source: Source, context: BuildContext, *, version: str | None
) -> Built:
    """Pack a tree that runs anywhere, named by its own content."""
    key = tree.content_digest(target)
    version = version or _supported(name, _told_version(name, target / entry_point, context))
    version = version or key.replace(":", "-")[:19]
    prefix = prefix_of(name, version, context.architecture, key)
    layer = target.with_name("layer.tar.gz")
    packed = tree.pack(target, layer)
    program = Program(
        name=name,
        version=version,
        architecture=context.architecture,
        prefix=prefix,
        entry_point=entry_point,
        source=source,
        **asdict(packed),
    )
    return Built(program, layer)


def _entry_point(name: str, target: Path, origin: str, architecture: str) -> str:
    """Return the path in the tree *target* of the executable, checked: it runs on Linux on *architecture*."""
    usual = catalogue()[name].entry_point
    choices = [usual, f"bin/{name}"]
    found = next((choice for choice in choices if (target / choice).is_file()), None)
    if found is None:
        raise refused(f"{name}: {origin} has no {usual}", hint=f"pass an executable, or a tree that contains {usual}")
    program = target / found
    if not program.stat().st_mode & 0o100:
        raise refused(f"{name}: {found} of {origin} is not executable", hint="make it executable with `chmod +x`")
    with program.open("rb") as file:
        start = file.read(4)
    if not start.startswith((b"#!", b"\x7fELF")):
        raise refused(
            f"{name}: {origin} is neither a Linux executable nor a script", hint="pass a program built for Linux"
        )
    headers = elf.read(program)
    if headers and headers.architecture != architecture:
        raise refused(
            f"{name}: {origin} is built for {headers.architecture}, the bundle is for {architecture}",
            hint=f"pass a program built for {architecture}",
        )
    return found


def _supported(name: str, version: str | None) -> str | None:
    """*version*, if it is known. Raises BundleError (BundleInputRefused) if this release cannot work with it."""
    told = catalogue()[name].version
    if version is not None and not told.supports(version):
        raise refused(f"{name} {version} is not supported; this release works with {told}", hint=f"pass {name} {told}")
    return version


def _told_version(name: str, program: Path, context: BuildContext) -> str | None:
    """Ask *program* for its version; None if this machine cannot run it or it tells none."""
    if context.architecture != this_architecture():
        context.progress(
            f"cannot run {name} here to determine its version, and `upgrade` refuses other builds beside one that it "
            f"knows by its digest: create the bundle on a {context.architecture} host",
            level="warning",
        )
        return None
    words = catalogue()[name].version.arguments
    try:
        output = command(
            [program, *words], what=f"version of {name}", hint="", timeout=VERSION_TIMEOUT, complaints_too=True
        )
    except BundleError as error:
        if isinstance(error.__cause__, PermissionError):  # its mode lets it run; and no upgrade knows it by its digest
            raise unavailable(
                f"{error.message}; is {context.scratch.parent} mounted with noexec?",
                hint="set TMPDIR to a directory where programs may run",
            ) from error
        context.progress(f"cannot determine the version of {name}: {error.message}", level="warning")
        return None
    version = version_in(name, output)
    if version is None:
        context.progress(f"cannot determine the version of {name}: {_plain(output.strip())}", level="warning")
    return _plain(version) if version else None


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _plain(text: str) -> str:
    """Return *text* as one line of plain ASCII, 200 characters at most."""
    return re.sub(r"[^\x20-\x7e]", "?", text)[:200] or "?"
