"""The corpus of corrupted bundles: each a named case, made from a good one, with the code by which it is refused.

*where* says who must find it besides ``verify``: ``open`` before anything else is looked at; ``plan`` seeding, before
it sends anything; ``stream`` seeding, while it sends the blob that is wrong, and before any manifest; ``programs`` and
``extract`` the installation of a program, before and while its layer is read.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from kubeadm_registry.bundle import archive, versions
from kubeadm_registry.bundle.make import FromLayout, choose, create
from kubeadm_registry.bundle.programs import ARTIFACT
from kubeadm_registry.oci import descriptors as oci
from tests.unit.bundle_files import contents, image, member, pax, raw, record, resealed, script, tar, write_layout

ONE, TWO = "registry.k8s.io/pause:3.10", "quay.io:443/org/app:v1"
LAYER = b"layer" * 1000
UNPACKED = "dev.kubeadm-registry.program.unpacked-size"

Files = dict[str, bytes]
Build = Callable[["Good"], bytes]


@dataclass(frozen=True)
class Good:
    """A bundle with a program and two images: its bytes, its files, and where each is."""

    content: bytes
    files: Files
    members: dict[str, archive.Member]

    @classmethod
    def read(cls, content: bytes, path: Path) -> Good:
        path.write_bytes(content)
        members = {one.name: one for one in archive.members(io.BytesIO(content))}
        return cls(content, contents(path), members)

    @classmethod
    def make(cls, folder: Path) -> Good:
        """Make it in the empty *folder*."""
        layouts = [
            write_layout(folder / f"{n}.tar", image(name, LAYER + bytes([n]))) for n, name in enumerate((ONE, TWO))
        ]
        programs = choose(["garage"], {"garage": script(folder / "garage")})
        create(folder / "good.tar", programs, images=[FromLayout(one) for one in layouts], cache=folder / "cache")
        return cls.read((folder / "good.tar").read_bytes(), folder / "good.tar")

    def index(self) -> Any:
        return json.loads(self.files[oci.INDEX_FILE])

    def entry(self, name: str) -> Any:
        """What the index says of an image, or of ``program/garage:...``."""
        return next(one for one in self.index()["manifests"] if one["annotations"][oci.REFERENCE_NAME].startswith(name))

    def document(self, digest: str) -> Any:
        return json.loads(self.files[oci.blob_name(digest)])

    def part(self, kind: str) -> str:
        """The digest of the first image's ``inner`` index, ``manifest``, ``config`` or ``layer``; ``program-...``."""
        whose, _, what = kind.rpartition("-")
        digest: str = self.entry("program/" if whose else ONE)["digest"]
        if what == "inner" or (whose and what == "manifest"):
            return digest
        manifest = digest if whose else self.document(digest)["manifests"][0]["digest"]
        if what == "manifest":
            return str(manifest)
        found = self.document(manifest)
        return str((found["config"] if what == "config" else found["layers"][0])["digest"])

    def name(self, kind: str) -> str:
        """The file of that part, or ``oci-layout`` or ``index.json`` itself."""
        return kind if kind in self.files else oci.blob_name(self.part(kind))


@dataclass(frozen=True)
class Case:
    """A corrupted bundle: how it is made, the code by which it is refused, and who finds it (see above)."""

    name: str
    build: Build
    code: str
    where: str


CASES: list[Case] = []


def case(code: str = "BundleDamaged", where: str = "open", name: str = "") -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        CASES.append(Case(name or build.__name__.replace("_", "-"), build, code, where))
        return build

    return add


def sealed(files: Files, digest: str, content: bytes) -> Files:
    """*files* with *content* in the place of the blob *digest*, and the digests of all that refer to it made right."""
    files = {name: held for name, held in files.items() if name != oci.blob_name(digest)}
    new = oci.digest_of(content)
    files[oci.blob_name(new)] = content
    for name, held in list(files.items()):
        if digest.encode() not in held:
            continue
        document = json.loads(held)
        for one in descriptors(document):
            if one.get("digest") == digest:
                one.update(digest=new, size=len(content))
        text = json.dumps(document).encode()
        if name == oci.INDEX_FILE:
            files = resealed(files | {name: text})
        else:
            files = sealed(files, "sha256:" + name.rpartition("/")[2], text)
    return files


def descriptors(document: Any) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict):
        yield document
        for value in document.values():
            yield from descriptors(value)
    elif isinstance(document, list):
        for value in document:
            yield from descriptors(value)


def edited(good: Good, kind: str, edit: Callable[[Any], object]) -> bytes:
    """The bundle with another document, all digests above it made right: only what the document says is wrong."""
    digest = good.part(kind)
    document = good.document(digest)
    edit(document)
    return tar(*sealed(good.files, digest, json.dumps(document).encode()).items())


def indexed(good: Good, edit: Callable[[Any], object]) -> bytes:
    """The bundle with another index.json."""
    index = good.index()
    edit(index)
    return tar(*resealed(good.files | {oci.INDEX_FILE: json.dumps(index).encode()}).items())


# ---- content ---------------------------------------------------------------------------------------------------------


def flip(kind: str, good: Good) -> bytes:
    at = good.members[good.name(kind)]
    changed = bytearray(good.content)
    changed[at.offset + at.size // 2] ^= 1
    return bytes(changed)


for _kind, _where in {
    "inner": "plan", "manifest": "plan", "config": "stream", "layer": "stream", "program-manifest": "programs",
    "program-layer": "extract",
}.items():  # fmt: skip
    case(where=_where, name=f"flip-in-{_kind}")(partial(flip, _kind))


@case(code="BundleDamaged", name="flip-in-oci-layout")
def _flip_layout(good: Good) -> bytes:
    return good.content.replace(b'"1.0.0"', b'"1.0.1"', 1)


@case(code="BundleIncomplete", where="plan")
def a_digest_in_the_index_that_is_nowhere(good: Good) -> bytes:
    digest = good.entry(ONE)["digest"]
    other = digest[:-1] + ("0" if digest[-1:] != "0" else "1")
    return indexed(
        good, lambda index: next(one for one in descriptors(index) if one.get("digest") == digest).update(digest=other)
    )


@case()
def flip_in_a_name_in_the_index(good: Good) -> bytes:
    """All names are proper ones and all digests are there, but one of an image's name is another."""
    return good.content.replace(b"pause:3.10", b"pause:3.11", 1)


@case()
def flip_in_the_index_s_digest(good: Good) -> bytes:
    digest = oci.digest_of(good.files[oci.INDEX_FILE]).encode()
    return good.content.replace(digest, digest[:-1] + (b"0" if digest[-1:] != b"0" else b"1"), 1)


@case()
def flip_in_the_key_of_the_index_s_digest(good: Good) -> bytes:
    return good.content.replace(versions.INDEX_DIGEST.encode(), versions.INDEX_DIGEST.encode()[:-1] + b"y", 1)


@case()
def flip_in_a_header(good: Good) -> bytes:
    at = good.members[oci.INDEX_FILE].offset - archive.BLOCK
    return good.content[:at] + b"j" + good.content[at + 1 :]


def cut(where: str, part: float, good: Good) -> bytes:
    if not where:
        return good.content[: int(part)]
    at = good.members[good.name(where)]
    begin = at.offset - archive.BLOCK if part < 0 else at.offset
    length = archive.BLOCK if part < 0 else at.size
    return good.content[: begin + int(abs(part) * length)]


for _length in (0, 1, 257, 511, 512, 513, 1024):
    case(name=f"cut-at-byte-{_length}")(partial(cut, "", _length))
for _kind in ("index.json", "inner", "manifest", "config", "layer", "program-layer"):
    case(name=f"cut-in-the-header-of-{_kind}")(partial(cut, _kind, -0.5))
    case(name=f"cut-before-{_kind}")(partial(cut, _kind, 0))
    case(name=f"cut-in-{_kind}")(partial(cut, _kind, 0.5))


@case()
def cut_before_the_end_mark(good: Good) -> bytes:
    last = list(good.members.values())[-1]
    return good.content[: -(-(last.offset + last.size) // archive.BLOCK) * archive.BLOCK]


@case()
def cut_in_the_end_mark(good: Good) -> bytes:
    return cut_before_the_end_mark(good) + bytes(archive.BLOCK)


@case()
def more_after_the_end_mark(good: Good) -> bytes:
    return good.content + good.content


def missing(kind: str, good: Good) -> bytes:
    return tar(*((name, held) for name, held in good.files.items() if name != good.name(kind)))


for _kind, _where in {
    "index.json": "open", "inner": "plan", "manifest": "plan", "config": "plan", "layer": "plan",
    "program-manifest": "programs", "program-layer": "extract",
}.items():  # fmt: skip
    case(code="BundleIncomplete", where=_where, name=f"missing-{_kind}")(partial(missing, _kind))


@case(code="BundleInputRefused")
def missing_oci_layout(good: Good) -> bytes:
    return missing("oci-layout", good)


def other_size(kind: str, by: int, good: Good) -> bytes:
    """The descriptor's size is wrong; all digests are right."""
    digest, above = good.part(kind), {"layer": "manifest", "config": "manifest", "manifest": "inner"}.get(kind)

    def edit(document: Any) -> None:
        for one in descriptors(document):
            if one.get("digest") == digest:
                one["size"] += by

    return edited(good, above, edit) if above else indexed(good, edit)


for _kind in ("layer", "config", "manifest", "inner"):
    for _by in (-1, 1):
        case(where="plan", name=f"size-of-{_kind}-off-by-{_by}")(partial(other_size, _kind, _by))


@case(where="plan")
def sizes_that_disagree_between_images(good: Good) -> bytes:
    """The first image's layer is in the second image as well, a byte longer there."""

    def edit(document: Any) -> None:
        digest = good.part("layer")
        document["layers"].append({"mediaType": oci.LAYER, "digest": digest, "size": len(LAYER) + 2})

    second = good.document(good.entry(TWO)["digest"])["manifests"][0]["digest"]
    document = good.document(second)
    edit(document)
    return tar(*sealed(good.files, second, json.dumps(document).encode()).items())


def data(content: bytes, good: Good) -> bytes:
    def edit(document: Any) -> None:
        document["config"]["data"] = base64.b64encode(content).decode()

    return edited(good, "manifest", edit)


case(where="plan", name="data-of-another-content")(partial(data, b'{"os":"lunix"}'))
case(where="plan", name="data-of-another-length")(partial(data, b'{"os":"linux"} '))


@case(where="plan")
def data_that_is_no_base64(good: Good) -> bytes:
    return edited(good, "manifest", lambda document: document["config"].update(data="e30=!"))


@case()
def data_in_the_index_of_another_content(good: Good) -> bytes:
    return indexed(good, lambda index: index["manifests"][0].update(data="e30="))


# ---- the archive -----------------------------------------------------------------------------------------------------


def with_member(block: bytes, good: Good) -> bytes:
    """The bundle with *block*, a header and what follows it, after its first file."""
    at = good.members[oci.INDEX_FILE].offset - archive.BLOCK
    return good.content[:at] + block + good.content[at:]


OUT = b"../../escaped"
LONG = b"a/" * 60 + b"../" * 70 + b"escaped"
for _name, _block in {
    "name": raw(OUT),
    "absolute-name": raw(b"/tmp/escaped"),
    "prefix": raw(b"escaped", prefix=b"../.."),
    "absolute-prefix": raw(b"escaped", prefix=b"/tmp"),
    "gnu-long-name": raw(b"././@LongLink", size=b"%011o\0" % len(LONG), kind=b"L") + LONG.ljust(512, b"\0") + raw(b"a"),
    "pax-path": pax(record(b"path", OUT)) + raw(b"a"),
    "pax-path-twice": pax(record(b"path", b"a"), record(b"path", OUT)) + raw(b"a"),
    "pax-path-after-gnu-long-name": raw(b"L", size=b"%011o\0" % 2, kind=b"L") + b"a\0".ljust(512, b"\0")
    + pax(record(b"path", OUT)) + raw(b"a"),
    "pax-global-path": pax(record(b"path", OUT), kind=b"g") + raw(b"a"),
    "pax-linkpath": pax(record(b"linkpath", OUT)) + raw(b"a"),
    "pax-linkpath-of-a-link": pax(record(b"linkpath", OUT)) + raw(b"a", kind=b"2"),
    "pax-hdrcharset": pax(record(b"hdrcharset", b"BINARY"), record(b"path", b"\xff/../../escaped")) + raw(b"a"),
    "gnu-long-link": raw(b"././@LongLink", size=b"%011o\0" % len(LONG), kind=b"K") + LONG.ljust(512, b"\0")
    + raw(b"a", kind=b"2"),
    "backslashes": raw(b"..\\..\\escaped"),
    "newline": raw(b"a\nb"),
}.items():  # fmt: skip
    case(name=f"escape-by-{_name}")(partial(with_member, _block))

for _name, _block in {
    "symbolic-link": raw(b"blobs/sha256/a", kind=b"2", link=b"/etc/shadow"),
    "hard-link": raw(b"blobs/sha256/a", kind=b"1", link=b"index.json"),
    "device": raw(b"blobs/sha256/a", kind=b"3"),
    "fifo": raw(b"blobs/sha256/a", kind=b"6"),
    "sparse-file": raw(b"blobs/sha256/a", kind=b"S"),
    "pax-sparse-file": pax(record(b"GNU.sparse.major", b"1")) + raw(b"a"),
    "negative-size": raw(b"a", size=b"\xff" * 12),
    "size-with-a-minus": raw(b"a", size=b"-0000000001\0"),
    "octal-size-of-8-GiB": raw(b"a", size=b"77777777777\0"),
    "binary-size-of-2-to-the-88": raw(b"a", size=b"\x80" + b"\xff" * 11),
    "binary-size-of-2-to-the-63": raw(b"a", size=b"\x80" + bytes(3) + b"\x80" + bytes(7)),
    "pax-size-huge": pax(record(b"size", b"9" * 18)) + raw(b"a"),
    "pax-size-of-more-digits": pax(record(b"size", b"9" * 40)) + raw(b"a"),
    "pax-size-negative": pax(record(b"size", b"-1")) + raw(b"a"),
    "extended-header-of-8-GiB": raw(b"h", size=b"77777777777\0", kind=b"x") + raw(b"a"),
    "a-thousand-extended-headers": pax(record(b"comment", b"x")) * 1000 + raw(b"a"),
    "directory-with-content": raw(b"a", size=b"00000000001\0", kind=b"5") + b"x".ljust(512, b"\0"),
}.items():  # fmt: skip
    case(name=_name)(partial(with_member, _block))


def twice(kind: str, good: Good) -> bytes:
    return tar(*good.files.items(), (f"./{good.name(kind)}", b"another"))


for _kind in ("index.json", "layer"):
    case(name=f"{_kind}-twice")(partial(twice, _kind))


@case()
def not_a_tar(_: Good) -> bytes:
    return b"PK\x03\x04" + bytes(2000)


@case()
def a_compressed_bundle(good: Good) -> bytes:
    return gzip.compress(good.content)


# ---- what documents say ----------------------------------------------------------------------------------------------


def chain(depth: int, good: Good) -> bytes:
    """Indexes that lie in each other."""
    files = dict(good.files)
    held = oci.Descriptor.model_validate(good.entry(ONE))
    for _ in range(depth):
        content = oci.Index(manifests=(held.model_copy(update={"annotations": None}),)).to_json()
        held = oci.Descriptor(media_type=oci.INDEX, digest=oci.digest_of(content), size=len(content))
        files[oci.blob_name(held.digest)] = content
    index = good.index()
    for one in index["manifests"]:
        if one["annotations"][oci.REFERENCE_NAME] == ONE:
            one.update(digest=held.digest, size=held.size)
    return tar(*(files | {oci.INDEX_FILE: json.dumps(index).encode()}).items())


for _depth in (oci.MAX_DEPTH, 10_000):
    case(where="plan", name=f"{_depth}-nested-indexes")(partial(chain, _depth))


@case(where="plan")
def a_manifest_as_a_layer(good: Good) -> bytes:
    def edit(document: Any) -> None:
        document["layers"].append(good.document(good.entry(TWO)["digest"])["manifests"][0])

    return edited(good, "manifest", edit)


@case(where="plan")
def a_layer_in_an_index(good: Good) -> bytes:
    def edit(document: Any) -> None:
        document["manifests"].append({"mediaType": oci.LAYER, "digest": good.part("layer"), "size": len(LAYER) + 1})

    return edited(good, "inner", edit)


@case()
def a_layer_as_an_image(good: Good) -> bytes:
    return indexed(good, lambda index: index["manifests"][-1].update(mediaType=oci.LAYER))


def called(kind: str, media_type: str, good: Good) -> bytes:
    return edited(good, kind, lambda document: document.update(mediaType=media_type))


for _kind, _type in {
    "manifest-that-calls-itself-an-index": ("manifest", oci.INDEX),
    "manifest-of-docker-called-one-of-oci": ("manifest", oci.DOCKER_MANIFEST),
    "index-that-calls-itself-a-manifest": ("inner", oci.MANIFEST),
    "index-of-docker-called-one-of-oci": ("inner", oci.DOCKER_INDEX),
}.items():
    case(where="plan", name=_kind)(partial(called, *_type))


@case(where="plan")
def a_manifest_that_is_an_index_too(good: Good) -> bytes:
    return edited(good, "manifest", lambda document: document.update(manifests=[]))


@case(where="plan")
def an_index_that_is_a_manifest_too(good: Good) -> bytes:
    return edited(good, "inner", lambda document: document.update(layers=[]))


@case(where="plan")
def a_manifest_that_is_no_json(good: Good) -> bytes:
    return tar(*sealed(good.files, good.part("manifest"), b"{").items())


@case(where="plan")
def a_manifest_of_many_brackets(good: Good) -> bytes:
    return tar(*sealed(good.files, good.part("manifest"), b"[" * 200_000).items())


@case(where="plan")
def a_manifest_of_5_MiB(good: Good) -> bytes:
    return tar(*sealed(good.files, good.part("manifest"), b" " * (5 * 2**20)).items())


@case(where="plan")
def a_digest_that_is_a_path(good: Good) -> bytes:
    return edited(good, "manifest", lambda document: document["config"].update(digest="sha256:../../../etc/shadow"))


@case()
def an_image_without_a_host(good: Good) -> bytes:
    return indexed(
        good, lambda index: index["manifests"][-1].update(annotations={oci.REFERENCE_NAME: "../../escaped:1"})
    )


@case()
def an_image_twice(good: Good) -> bytes:
    return indexed(good, lambda index: index["manifests"].append(index["manifests"][-1]))


# ---- programs --------------------------------------------------------------------------------------------------------


@cache
def zeros(size: int) -> bytes:
    """A tar.gz of a program and a file of *size* zeros, a thousandth of it long."""
    members = (
        (member("bin", tarfile.DIRTYPE), b""),
        (member("bin/garage", mode=0o755), b"#!"),
        ("bin/zeros", bytes(size)),
    )
    return gzip.compress(tar(*members), mtime=0)


def program(layer: bytes, unpacked: int, good: Good) -> bytes:
    """The bundle with that layer for its program, which says that it unpacks to so many bytes."""
    files = sealed(good.files, good.part("program-layer"), layer)
    index = json.loads(files[oci.INDEX_FILE])
    digest = next(one["digest"] for one in index["manifests"] if one.get("artifactType") == ARTIFACT)
    manifest = json.loads(files[oci.blob_name(digest)])
    manifest["annotations"][UNPACKED] = str(unpacked)
    return tar(*sealed(files, digest, json.dumps(manifest).encode()).items())


_TREE = (member("bin", tarfile.DIRTYPE), b""), (member("bin/garage", mode=0o755), b"#!")
_HEADERS = b"".join(pax(record(b"comment", b"x" * 60_000)) + raw(b"f%d" % number) for number in range(1500))
for _name, (_layer, _unpacked) in {
    "zip-bomb-in-a-program": (zeros(64 * 2**20), 2),
    "zip-bomb-of-headers-in-a-program": (gzip.compress(_HEADERS + bytes(1024)), 2),
    "zip-bomb-after-the-end-of-a-program": (gzip.compress(tar(*_TREE) + bytes(64 * 2**20)), 2),
    "program-that-is-larger-than-it-says": (zeros(1), 2),
    "program-that-is-smaller-than-it-says": (gzip.compress(tar(*_TREE)), 3),
    "program-that-is-no-gzip": (b"hello", 2),
    "program-with-a-symbolic-link": (gzip.compress(tar(*_TREE, (member("l", tarfile.SYMTYPE, "/etc"), b""))), 2),
    "program-with-a-hard-link": (gzip.compress(tar(*_TREE, (member("l", tarfile.LNKTYPE, "bin/garage"), b""))), 2),
    "program-that-leads-out": (gzip.compress(tar(*_TREE, ("../../escaped", b""))), 2),
    "program-with-an-absolute-name": (gzip.compress(tar(*_TREE, ("/tmp/escaped", b""))), 2),
}.items():  # fmt: skip
    case(where="extract", name=_name)(partial(program, _layer, _unpacked))
