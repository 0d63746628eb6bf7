"""Packages of a Debian release, whatever release this machine runs: found, checked and downloaded by apt.

apt works in a directory of its own: it installs nothing, and this machine's lists, caches and packages stay as they
are. Its configuration (proxy, credentials) is this machine's, apart from the sources and from everything that would
let it accept an unsigned index.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kubeadm_registry.bundle.failures import refused, unavailable
from kubeadm_registry.bundle.make.context import Mirror, Progress, command
from kubeadm_registry.oci import descriptors as oci

_NO_APT = (
    "check the network and the mirror; run this with the apt of Debian or Ubuntu (a container is sufficient), "
    "or pass the program with --program NAME=TREE.tar.gz"
)
_NO_MIRROR = "set KUBEADM_REGISTRY_DEBIAN_MIRROR to the URL of a Debian mirror, as in sources.list"

#: A minute is enough for the index of a release on a slow line; packages are tens of megabytes.
_UPDATE_TIMEOUT = 300.0
_DOWNLOAD_TIMEOUT = 900.0
#: Takes out of this machine's configuration what an ``-o`` cannot: its hooks, which would work on this machine's own
#: files, and its preference for its own release.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Default-Release;
"""
#: Seconds for which an index is not fetched again.
_FRESH = 600.0


@dataclass(frozen=True, slots=True)
class Package:
    """A package in the signed index; *depends* has a tuple of alternative names for each package that it needs."""

    name: str
    version: str
    section: str
    sha256: str
    filename: str
    depends: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]

    @property
    def is_library(self) -> bool:
        """Whether this is a package of shared libraries (Debian policy 2.4: section libs, oldlibs for renamed ones)."""
        return self.section.rpartition("/")[2] in {"libs", "oldlibs"}


def parse_packages(text: str) -> Iterator[Package]:
    """Read the records of packages that ``apt-cache show`` prints; a record that lacks a field is left out."""
    for record in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for line in record.splitlines():
            key, colon, value = line.partition(":")
            if colon and not line[0].isspace():
                fields[key] = value.strip()
        if {"Package", "Version", "SHA256", "Filename"} <= fields.keys():
            depends = [*_relations(fields.get("Pre-Depends", "")), *_relations(fields.get("Depends", ""))]
            yield Package(
                name=fields["Package"],
                version=fields["Version"],
                section=fields.get("Section", ""),
                sha256=fields["SHA256"],
                filename=fields["Filename"],
                depends=tuple(depends),
                provides=tuple(name for names in _relations(fields.get("Provides", "")) for name in names),
            )


def _relations(field: str) -> Iterator[tuple[str, ...]]:
    """Split ``a (>= 1) | b:any, c`` into (a, b) and (c)."""
    for relation in field.split(","):
        names = tuple(re.split(r"[\s:(]", part.strip(), maxsplit=1)[0] for part in relation.split("|"))
        if any(names):
            yield names


def closure(roots: Sequence[str], packages: Mapping[str, Package]) -> tuple[Package, ...]:
    """Return *roots* and the packages of shared libraries that they need, directly or not, sorted by name.

    Shared libraries are in packages of their own, so other dependencies (service users, scripts, documentation)
    are not followed. Raises BundleError if one of *roots* is not in *packages*.
    """
    provided: dict[str, str] = {}
    for package in packages.values():
        for name in package.provides:
            provided.setdefault(name, package.name)
    found: dict[str, Package] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if name not in packages:
            raise unavailable(f"the release has no package {name}", hint="use the mirror of a complete release")
        found[name] = packages[name]
        for alternatives in packages[name].depends:
            choices = [packages.get(choice) or packages.get(provided.get(choice, "")) for choice in alternatives]
            chosen = next((choice for choice in choices if choice is not None), None)
            if chosen is not None and chosen.is_library:
                waiting.append(chosen.name)
    return tuple(found[name] for name in sorted(found))


def sources(release: str, architecture: str, debian: str, security: str, keyring: Path) -> str:
    """Return apt's list of sources, in deb822 form, for *release*; no security suite if *security* is empty."""
    suites = [(debian, f"{release} {release}-updates")]
    if security:
        suites.append((security, f"{release}-security"))
    return "\n".join(
        f"Types: deb\nURIs: {address}\nSuites: {names}\nComponents: main\nArchitectures: {architecture}\n"
        f"Targets: Packages\nSigned-By: {keyring}\n"
        for address, names in suites
    )


class Apt:
    """apt, at work in *directory* for one *release* and *architecture*."""

    def __init__(self, directory: Path, release: str, architecture: str, mirror: Mirror, progress: Progress) -> None:
        self._directory = directory
        self._release = release
        self._architecture = architecture
        self._mirror = mirror
        self._progress = progress
        self._sources = directory / "debian.sources"
        self._configuration = directory / "apt.conf"

    def update(self) -> None:
        """Fetch the index of the release and check its signature; raises BundleError if that fails.

        An index that was fetched from the same mirrors less than ten minutes ago is good enough: one bundle needs it
        once for each program.
        """
        debian, security = self._mirrors()
        if not security:
            self._progress(
                f"no mirror of Debian security updates found; using {self._release} without them", level="warning"
            )
        if not self._mirror.keyring.is_file():
            raise unavailable(
                f"{self._mirror.keyring} not found; its keys verify Debian releases",
                hint="install the package debian-archive-keyring, or set KUBEADM_REGISTRY_DEBIAN_KEYRING",
            )
        for name in ("lists/partial", "cache/archives/partial", "packages"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        self._configuration.write_text(_CONFIGURATION, encoding="utf-8")
        text = sources(self._release, self._architecture, debian, security, self._mirror.keyring)
        fetched = self._directory / "fetched"
        known = fetched.is_file() and fetched.read_text(encoding="utf-8") == text
        if known and 0 <= time.time() - fetched.stat().st_mtime < _FRESH:
            return
        fetched.unlink(missing_ok=True)
        self._sources.write_text(text, encoding="utf-8")
        self._progress(f"reading the package index of Debian {self._release}")
        self._run("apt-get", "update", timeout=_UPDATE_TIMEOUT)
        fetched.write_text(text, encoding="utf-8")

    def closure(self, roots: Sequence[str]) -> tuple[Package, ...]:
        """Return *roots*, at the newest version in the index, and the packages of shared libraries that they need."""
        kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
        depends = self._run("apt-cache", "depends", "--recurse", *(f"--no-{kind}" for kind in kinds), *roots)
        names = sorted({line for line in depends.splitlines() if re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", line)})
        shown = self._run("apt-cache", "show", "--no-all-versions", *names)
        return closure(roots, {package.name: package for package in parse_packages(shown)})

    def download(self, packages: Iterable[Package]) -> list[Path]:
        """Return the files of *packages*, fetched unless they are there, each with the digest that the index gives."""
        files = {package: self._directory / "packages" / f"{package.sha256}.deb" for package in packages}
        missing = [package for package, file in files.items() if not _has_digest(file, package.sha256)]
        if missing:
            self._progress(f"downloading {len(missing)} packages of Debian {self._release}")
            folder = self._directory / "cache"
            wanted = [f"{package.name}={package.version}" for package in missing]
            self._run("apt-get", "download", *wanted, timeout=_DOWNLOAD_TIMEOUT, cwd=folder)
            fetched = {_digest(file): file for file in folder.glob("*.deb")}
            for package in missing:
                if package.sha256 not in fetched:
                    raise refused(
                        f"package {package.name} does not match its digest in the signed index",
                        hint="try again, or use another mirror",
                    )
                fetched[package.sha256].replace(files[package])
        return list(files.values())

    def _mirrors(self) -> tuple[str, str]:
        """Return the addresses of Debian and of its security updates; the second may be empty."""
        mirror = self._mirror
        debian = mirror.debian or _configured("Debian")
        # A mirror that the user names may be one without internet beside it: then no other host is asked.
        security = mirror.security or ("" if mirror.debian else _configured("Debian-Security"))
        if not debian:
            raise unavailable("apt on this host has no Debian mirror", hint=_NO_MIRROR)
        for address in filter(None, (debian, security)):
            if not re.fullmatch(r"(https?|file|copy|mirror\+https?)://?[^\s\[\]]+", address):
                raise refused(f"{address!r} is not a valid mirror URL", hint=_NO_MIRROR)
        return debian, security

    def _run(self, program: str, *arguments: str, timeout: float = 60, cwd: Path | None = None) -> str:
        options = {
            "Dir::Etc::SourceList": self._sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State": self._directory,
            "Dir::State::Lists": self._directory / "lists",
            "Dir::State::Status": self._directory / "status",
            "Dir::Cache": self._directory / "cache",
            # Container images of Debian turn these two caches off, and every question then takes a second.
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "APT::Architecture": self._architecture,
            "APT::Architectures": self._architecture,
            "APT::Update::Error-Mode": "any",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::AllowWeakRepositories": "false",
            "Acquire::AllowDowngradeToInsecureRepositories": "false",
            "Acquire::Languages": "none",
            # The cache belongs to the user; apt's own unprivileged user could not write there.
            "APT::Sandbox::User": "root",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return command(
            [program, "-q", "-c", self._configuration, *words, *arguments],
            what=f"packages of Debian {self._release}",
            hint=_NO_APT,
            timeout=timeout,
            cwd=cwd,
        )


@cache
def _configured(label: str) -> str:
    """Return the first repository with the *label* (``Debian``) in this machine's apt configuration, or nothing."""
    rows = command(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Label: {label}"],
        what="this machine's mirror of Debian",
        hint=_NO_APT,
        timeout=60,
    ).splitlines()
    return rows[0].strip() if rows else ""


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return oci.digest_of_file(content).removeprefix("sha256:")


def _has_digest(file: Path, sha256: str) -> bool:
    return file.is_file() and _digest(file) == sha256


def unpack(packages: Iterable[Path], root: Path) -> None:
    """Unpack package files, whose digests are right, to the directory *root*; runs none of their scripts."""
    # That the disk is full its tar need not say.
    hint = f"free space in {tempfile.gettempdir()}, or set TMPDIR to another directory"
    for package in packages:
        command(["dpkg-deb", "--extract", package, root], what=f"unpack {package}", hint=hint, timeout=300)
