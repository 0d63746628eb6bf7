"""What a Linux executable or library says about itself in its ELF headers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from kubeadm_registry.bundle.failures import refused

_MACHINES = {"EM_X86_64": "amd64", "EM_AARCH64": "arm64"}


@dataclass(frozen=True, slots=True)
class Elf:
    """Headers of an ELF file.

    *architecture* is Go's word for it, or ELF's own where we do not run; *interpreter* is the loader of a dynamically
    linked program, else empty; *needed* are the libraries it is linked with; *search_path* where it looks for them.
    """

    architecture: str
    interpreter: str
    needed: tuple[str, ...]
    search_path: str


def read(path: Path) -> Elf | None:
    """Return the headers of the file *path*, or None if it is not ELF; raises BundleError if it is broken ELF."""
    with path.open("rb") as file:
        return read_from(file, str(path))


def read_from(file: BinaryIO, name: str) -> Elf | None:
    """Return the headers of the open *file*, which errors call *name*; else as ``read``."""
    if file.read(4) != b"\x7fELF":
        return None
    try:
        elf = ELFFile(file)
        interpreter = ""
        tags: list[tuple[str, str]] = []
        for segment in elf.iter_segments():
            if isinstance(segment, InterpSegment):
                interpreter = segment.get_interp_name()
            elif isinstance(segment, DynamicSegment):
                tags += _names(segment)
        machine = str(elf["e_machine"])
    except (ELFError, AttributeError, ValueError, KeyError, TypeError, OSError) as error:
        raise refused(f"{name} is a damaged ELF file: {error}", hint="build or download it again") from error
    return Elf(
        architecture=_MACHINES.get(machine, machine),
        interpreter=interpreter,
        needed=tuple(text for tag, text in tags if tag == "needed"),
        search_path=":".join(text for tag, text in tags if tag in {"runpath", "rpath"}),
    )


def _names(segment: DynamicSegment) -> Iterator[tuple[str, str]]:
    for tag in segment.iter_tags():
        if tag.entry.d_tag in {"DT_NEEDED", "DT_RPATH", "DT_RUNPATH"}:
            kind = tag.entry.d_tag.removeprefix("DT_").lower()
            yield kind, getattr(tag, kind)
