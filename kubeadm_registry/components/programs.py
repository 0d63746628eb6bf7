"""The programs of the bundle on a host: each in a directory of its own, by digest, uploaded once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kubeadm_registry.bundle import Bundle, Program, temporary, tree
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.changes import Steps, unified
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged, Format, Found
from kubeadm_registry.paths import ETC, OPT, PROGRAMS, UNITS
from kubeadm_registry.transport.host import Host

#: Which programs a host has, so that later runs need no bundle.
RECORD = f"{OPT}/programs.json"
#: Version 1, of release 0.1, had the programs at the top and no room for anything else.
FORMAT = Format(RECORD, version=2, min_reader=2, min_writer=2)

#: In a program's folder: the digest of the layer that it was unpacked from.
_NOTE = ".digest"
#: Whether the file ``$2`` has the SHA-256 ``$1``.
_UPLOADED = 'echo "$1  $2" | sha256sum -c --quiet 2>&1'

#: ``$1`` archive, ``$2`` its SHA-256, ``$3`` target folder, ``$4`` the SHA-256 that is noted there. Unpacks beside the
#: target and renames: whole or not there. Of other builds those go before that no process runs and no file in ``$5``,
#: ``$6`` and ``$7`` names: they would fill the disk in the end. A process has its path without symbolic links.
_UNPACK = """
set -e
archive=$1 sent=$2 target=$3 digest=$4
echo "$sent  $archive" | sha256sum --check --quiet
umask 022
mkdir -p -- "$(dirname -- "$target")"
rm -rf -- "$(dirname -- "$target")"/.new.??????????*
for old in "$(dirname -- "$target")"/*/; do
  old=${old%/}
  [ -d "$old" ] && [ "$old" != "$target" ] || continue
  real=$(readlink -f -- "$old")
  [ -z "$(find /proc -mindepth 2 -maxdepth 2 -name exe -lname "$real/*" -print -quit 2>/dev/null)" ] || continue
  grep -rqsF -- "$old" "$5" "$6" "$7" || [ $? != 1 ] || rm -rf -- "$old"
done
new=$(mktemp -d -- "$(dirname -- "$target")/.new.XXXXXXXXXX")
trap 'rm -rf -- "$new"' EXIT
tar -xzf "$archive" -C "$new" --no-same-owner
echo "$digest" > "$new/.digest"
chmod 755 "$new"
[ ! -e "$target" ] || mv -T -- "$target" "$new.old"
mv -T -- "$new" "$target"
rm -rf -- "$new.old" "$archive"
sync -f -- "$target"
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """A program of the bundle in its folder, with exactly the bundle's bytes."""

    program: Program
    bundle: Bundle | None

    @property
    def title(self) -> str:
        """What apply does."""
        return f"install {self.program.name} {self.program.version}"

    @property
    def reads(self) -> tuple[str, ...]:
        """The note of the digest, which is there once all else is."""
        return (f"{self.program.prefix}/{_NOTE}",)

    def diff(self, host: Host) -> str | None:
        """That it is not there, or that another build is."""
        digest = host.read(*self.reads)
        if digest is not None and digest.decode().strip() == self.program.digest.removeprefix("sha256:"):
            return None
        verb = "new" if digest is None else "replaced"
        return f"{self.program.prefix}: {verb}, {self.program.unpacked / 1e6:.1f} MB, {self.program.digest}"

    def apply(self, host: Host) -> None:
        """Upload the layer, unless an earlier run did, and unpack it.

        Without a bundle, what this very machine has of the program: it is a node then, or was one.
        """
        sent = digest = self.program.digest.removeprefix("sha256:")
        archive = f"{PROGRAMS}/.{digest}.tar.gz"
        if not host.query("sh", "-c", _UPLOADED, "uploaded", digest, archive).ok:
            with temporary.directory("kubeadm-registry-layer-") as directory:
                local = directory / "layer.tar.gz"
                if self.bundle is not None:
                    self.bundle.extract(self.program, local)
                elif _is_here(self.program):
                    sent = tree.pack(Path(self.program.prefix), local, without=_NOTE).digest.removeprefix("sha256:")
                else:
                    raise Error(
                        f"{self.program.name} is not installed on this host",
                        host=host.name, code="BundleMissing", hint="pass the bundle with --bundle FILE",
                    )  # fmt: skip
                host.upload(local, archive)
        names = (RECORD, UNITS, ETC)
        host.run("sh", "-c", _UNPACK, "unpack", archive, sent, self.program.prefix, digest, *names, timeout=300)


def _is_here(program: Program) -> bool:
    """Whether the machine that this runs on has *program*, whole."""
    try:
        return (Path(program.prefix) / _NOTE).read_text().strip() == program.digest.removeprefix("sha256:")
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Recorded:
    """The record of the *programs*, with what a newer release has noted in it."""

    programs: Mapping[str, Program]
    title = f"write {RECORD}"
    path = RECORD
    reads = (RECORD,)

    def diff(self, host: Host) -> str | None:
        """What the record does not say yet. Raises NewerFormat if this release may not write it."""
        old = host.read(RECORD)
        found = _found(old)
        if found is not None and _merged(self.programs, found) == found.values:
            return None
        return unified(RECORD, old, self._content(old))

    def apply(self, host: Host) -> None:
        """Write the record whole."""
        host.write(RECORD, self._content(host.read(RECORD)))

    def _content(self, old: bytes | None) -> bytes:
        return record(self.programs, _found(old))


def install(cluster: Cluster, host: Host) -> Steps:
    """Every program of the cluster in its place, then the record of them."""
    for program in cluster.programs.values():
        yield Installed(program, cluster.bundle)
    yield Recorded(cluster.programs)


def record(programs: Mapping[str, Program], found: Found | None = None) -> bytes:
    """The content of the record, in place of the one that was *found*. Raises NewerFormat."""
    return FORMAT.render(_merged(programs, found or Found({})), found)


def read_record(content: bytes, host: str = "") -> dict[str, Program]:
    """The programs of a record. Raises Error (ProgramsDamaged, NewerFormat)."""
    try:
        return {name: _program(name, values) for name, values in _parse(content).values["programs"].items()}
    except Damaged as error:
        raise Error(
            f"{RECORD} is damaged: {error}",
            host=host,
            hint="pass the bundle with --bundle FILE",
            code="ProgramsDamaged",
        ) from error


def _parse(content: bytes) -> Found:
    """A record of any version as one of this. Raises Damaged, NewerFormat."""
    found = FORMAT.parse(content)
    programs = found.values if found.stamp["version"] == 1 else found.values.get("programs", {})
    if not isinstance(programs, dict) or not all(isinstance(values, dict) for values in programs.values()):
        raise Damaged("its programs are not JSON objects")
    others = {} if programs is found.values else found.values
    return Found({**others, "programs": programs}, found.stamp)


def _found(content: bytes | None) -> Found | None:
    """The record that a host has; None also if it is damaged, for it can be written anew."""
    try:
        return None if content is None else _parse(content)
    except Damaged:
        return None


def _merged(programs: Mapping[str, Program], found: Found) -> dict[str, Any]:
    """What the record says of *programs*, with what a newer release has noted of the same builds."""
    entries = {}
    for name, program in sorted(programs.items()):
        # As JSON has it: lists in place of tuples.
        new: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(program)))
        old = found.values.get("programs", {}).get(name, {})
        entries[name] = _over(old, new) if old.get("digest") == program.digest else new
        with suppress(Damaged):
            if _program(name, old) == program:
                entries[name] = _over(new, old)
    return {**found.values, "programs": entries}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both, those of *above* first, in the objects inside as well."""
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = _over(below[key], above[key])
    return both


_PROGRAM = TypeAdapter(Program)
#: What is only told to people, or can be looked up.
_DEFAULTS = {"source": {"kind": "unknown", "origin": "", "checked": ""}, "size": 0, "unpacked": 0}


def _program(name: str, values: Mapping[str, Any]) -> Program:
    """The program of an entry; keys of a newer release are left out. Raises Damaged."""
    try:
        return _PROGRAM.validate_python({"name": name, **_DEFAULTS, **values})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("programs", name, *first["loc"]))
        raise Damaged(f"{where}: {first['msg']}") from error
