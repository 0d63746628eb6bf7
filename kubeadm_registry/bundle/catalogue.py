"""The pinned list of programs that a bundle can hold."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, TypeAdapter, model_validator

from kubeadm_registry.bundle.archive import safe_name
from kubeadm_registry.bundle.programs import Program, numbers
from kubeadm_registry.errors import BundleError, ConfigError
from kubeadm_registry.oci.descriptors import Digest


def _is_pattern(text: str) -> str:
    if re.compile(text).groups != 1:
        raise ValueError("the pattern must have one group: the version")
    return text


def _is_path(text: str) -> str:
    try:
        return safe_name(text)
    except BundleError as error:
        raise ValueError(error.message) from error


Path = Annotated[str, AfterValidator(_is_path)]
Https = Annotated[str, StringConstraints(pattern=r"^https://\S+$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
PackageName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]+$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Version(_Model):
    """How a program tells its version: its *arguments*, and the *pattern* whose one group finds it in the output.

    *series* are the beginnings of versions that this release can work with, such as ``2.8``, from the *oldest* on; all
    if they are empty.
    """

    arguments: tuple[str, ...]
    pattern: Annotated[str, AfterValidator(_is_pattern)]
    series: tuple[str, ...] = ()
    oldest: str = ""

    def supports(self, version: str) -> bool:
        """Whether this release can work with *version*."""
        if self.oldest and numbers(version) < numbers(self.oldest):
            return False
        return not self.series or any(
            version == one or version.startswith((f"{one}.", f"{one}-")) for one in self.series
        )

    def __str__(self) -> str:
        """What it can work with."""
        series = " or ".join(f"{one}.x" for one in self.series)
        return f"{series} from {self.oldest} on" if self.oldest else series


class Release(_Model):
    """A file that the program's own project publishes; *member* names the program if the file is a tar.gz."""

    version: str
    url: Https
    architectures: Mapping[str, str]
    checksums: Https | None = None
    sha256: Mapping[str, Digest] = {}
    member: Path | None = None

    def fill(self, address: str, architecture: str) -> str:
        """Return *address* with this version and the upstream's word for *architecture* in it."""
        return address.format(version=self.version, architecture=self.architectures[architecture])


class Packages(_Model):
    """Packages of a Debian *release* that a private tree is made of.

    *program* is the package whose version the tree has, *also* others that it needs beside the libraries. *files* maps
    paths in the tree to paths in the packages; *leave_out* are patterns of paths in the tree; *load* are libraries
    that the program opens when it runs, which its headers do not name.
    """

    release: Name
    program: PackageName
    also: tuple[PackageName, ...] = ()
    files: Mapping[Path, Path]
    leave_out: tuple[str, ...] = ()
    load: tuple[str, ...] = ()


class Entry(_Model):
    """A program of the catalogue."""

    summary: str
    entry_point: Path
    version: Version
    release: Release | None = None
    packages: Packages | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Entry:
        if (self.release is None) == (self.packages is None):
            raise ValueError("a program comes from a release or from packages")
        if not self.entry_point.startswith("bin/"):
            raise ValueError("entry_point must be in bin/")
        return self


_ENTRIES: TypeAdapter[dict[Name, Entry]] = TypeAdapter(dict[Name, Entry])


def parse(text: str) -> Mapping[str, Entry]:
    """Return the entries of a catalogue in YAML, by name; raises pydantic's ValidationError."""
    data: Any = yaml.safe_load(text)
    return _ENTRIES.validate_python(data)


def catalogue() -> Mapping[str, Entry]:
    """Return the catalogue of this version of the program, by name."""
    with _reading:  # or all threads that want it at the same time would parse it
        return _catalogue()


_reading = threading.Lock()


@cache
def _catalogue() -> Mapping[str, Entry]:
    return parse(resources.files(__package__).joinpath("catalogue.yaml").read_text(encoding="utf-8"))


def known(names: Iterable[str]) -> None:
    """Raise ConfigError if one of *names* is not in the catalogue."""
    if unknown := sorted(set(names) - set(catalogue())):
        raise ConfigError(
            f"unknown program{'s' if len(unknown) > 1 else ''}: {', '.join(unknown)}",
            hint=f"choose from: {', '.join(sorted(catalogue()))}",
            code="UnknownProgram",
        )


def version_command(program: Program) -> tuple[str, ...]:
    """Return the command that starts *program* on a host, from its final place, and ends at once."""
    entry = catalogue().get(program.name)
    return (program.executable, *(entry.version.arguments if entry else ("--version",)))


def version_in(name: str, output: str) -> str | None:
    """Return the version that the program *name* told in *output*; None if it told none."""
    found = re.search(catalogue()[name].version.pattern, output)
    return found.group(1) if found else None
