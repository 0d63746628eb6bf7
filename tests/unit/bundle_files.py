"""Small programs, layouts and archives for the tests of the bundle."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

from kubeadm_registry.bundle import versions
from kubeadm_registry.bundle.make.context import BuildContext, this_architecture
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.printable import Level

MACHINES = {"amd64": 62, "arm64": 183, "riscv64": 243}


class Said(list[str]):
    """What was told while a bundle was made."""

    def __call__(self, text: str, *, level: Level = "info") -> None:
        self.append(f"warning: {text}" if level == "warning" else text)


def script(path: Path, output: str = "garage v2.3.0 [features: none]") -> Path:
    """Write an executable script that prints *output*."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{output}'\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def elf(architecture: str = "", *, interpreter: str = "", needed: tuple[str, ...] = (), rpath: str = "") -> bytes:
    """Return the smallest ELF file with these headers: one loaded segment, an interpreter and a dynamic section."""
    base = 0x400000
    strings = b"\0"
    tags = []
    for tag, text in [(1, name) for name in needed] + ([(15, rpath)] if rpath else []):
        tags.append((tag, len(strings)))
        strings += text.encode() + b"\0"
    parts = 1 + bool(interpreter) + bool(tags)
    start = 64 + 56 * parts
    body = interpreter.encode() + b"\0"
    strings_at = start + len(body)
    dynamic_at = strings_at + len(strings)
    tags += [(5, base + strings_at), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *tag) for tag in tags)
    total = dynamic_at + len(dynamic)

    def segment(kind: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, 5, offset, base + offset, base + offset, size, size, 8)

    segments = segment(1, 0, total)
    if interpreter:
        segments += segment(3, start, len(body))
    if len(tags) > 3:
        segments += segment(2, dynamic_at, len(dynamic))
    machine = MACHINES[architecture or this_architecture()]
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + start, 64, 0, 0, 64, 56, parts, 64, 0, 0)
    return header + segments + body + strings + dynamic


def tar(*members: tuple[str | tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return an archive with *members*: a name, or a whole header, and the content."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return output.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """Return the header of a member of any *kind*."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def raw(
    name: bytes, *, size: bytes = b"00000000000\0", kind: bytes = b"0", prefix: bytes = b"", link: bytes = b""
) -> bytes:
    """Return a header whose every field is as given, with the right checksum."""
    header = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + b"00000000000\0"
    header += (
        b" " * 8 + kind + link.ljust(100, b"\0") + b"ustar\x0000" + bytes(80) + prefix.ljust(155, b"\0") + bytes(12)
    )
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header of pax with those *records*."""
    text = b"".join(records)
    return raw(b"h", size=b"%011o\0" % len(text), kind=kind) + text.ljust(-(-len(text) // 512) * 512, b"\0")


def record(key: bytes, value: bytes) -> bytes:
    """Return a record of pax, which begins with its own length."""
    length = len(key) + len(value) + 3
    digits = len(str(length))
    while len(str(length + digits)) != digits:
        digits = len(str(length + digits))
    return b"%d %s=%s\n" % (length + digits, key, value)


def contents(path: Path) -> dict[str, bytes]:
    """Return the files of an archive, in its order."""
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive if info.isfile()}  # type: ignore[union-attr]


def write_layout(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write *files* as a layout in an archive."""
    path.write_bytes(tar(*files.items()))
    return path


def resealed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """*files* of a bundle whose index was changed, with the index's digest made right where they tell it."""
    told = json.loads(files[oci.LAYOUT_FILE])
    if versions.INDEX_DIGEST in told and oci.INDEX_FILE in files:
        return {**files, oci.LAYOUT_FILE: versions.layout_file(files[oci.INDEX_FILE])}
    return dict(files)


def image(name: str, layer: bytes = b"layer", **annotations: str) -> dict[str, bytes]:
    """Return the files of a layout that holds one image of one layer."""

    def blob(content: bytes, media_type: str) -> oci.Descriptor:
        digest = oci.digest_of(content)
        files[oci.blob_name(digest)] = content
        return oci.Descriptor(media_type=media_type, digest=digest, size=len(content))

    files: dict[str, bytes] = {oci.LAYOUT_FILE: oci.LAYOUT}
    config = blob(b'{"os":"linux"}', "application/vnd.oci.image.config.v1+json")
    manifest = oci.Manifest(config=config, layers=(blob(layer, oci.LAYER),))
    inner = blob(oci.Index(manifests=(blob(manifest.to_json(), oci.MANIFEST),)).to_json(), oci.INDEX)
    entry = inner.model_copy(update={"annotations": annotations or {oci.REFERENCE_NAME: name}})
    files[oci.INDEX_FILE] = oci.Index(manifests=(entry,)).to_json()
    return files


def context(path: Path, **settings: object) -> BuildContext:
    """Return a context for this machine below *path*."""
    for name in ("scratch", "cache"):
        (path / name).mkdir(exist_ok=True)
    return BuildContext(
        architecture=str(settings.pop("architecture", this_architecture())),
        scratch=path / "scratch",
        cache=path / "cache",
        **settings,  # type: ignore[arg-type]
    )
