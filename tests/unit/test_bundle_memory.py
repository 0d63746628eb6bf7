"""Verifying streams: its memory is the same for a small bundle and a large one. Signing reads no more than names."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kubeadm_registry.bundle import archive, sign_file
from kubeadm_registry.oci import descriptors as oci
from tests.unit.bundle_files import image
from tests.unit.test_bundle_signing import keygen

pytestmark = pytest.mark.slow

MB = 2**20
#: Prints the most memory that the process had, in bytes.
PROGRAM = """
import re, sys
from pathlib import Path
from kubeadm_registry.bundle import problems
print(next((problem.code for problem in problems(Path(sys.argv[1]))), "whole"))
print(1024 * int(re.search("VmHWM:\\\\s+([0-9]+)", Path("/proc/self/status").read_text())[1]))
"""


def sparse(path: Path, size: int) -> Path:
    """A bundle with one layer of *size* zeros, which takes no room on the disk."""
    hashed = hashlib.sha256()
    for _ in range(size // MB):
        hashed.update(bytes(MB))
    digest = f"sha256:{hashed.hexdigest()}"
    files = image("registry.example/zeros:v1", b"")
    for name, content in list(files.items()):
        if b"image.layer" in content:  # the manifest: the digests above it follow
            del files[name]
            document = oci.Manifest.model_validate_json(content)
            layer = document.layers[0].model_copy(update={"digest": digest, "size": size})
            entry = put(files, document.model_copy(update={"layers": (layer,)}).to_json(), oci.MANIFEST)
    entry = entry.model_copy(update={"annotations": {oci.REFERENCE_NAME: "registry.example/zeros:v1"}})
    files = {name: held for name, held in files.items() if b"image.index" not in held and held}
    files[oci.INDEX_FILE] = oci.Index(manifests=(entry,)).to_json()
    with path.open("wb") as file:
        writer = archive.Writer(file)
        for name, content in files.items():
            writer.file(name, io.BytesIO(content), len(content))
        writer.file(oci.blob_name(digest), io.BytesIO(), 0)
        header = file.tell() - archive.BLOCK
        info = io.BytesIO()
        archive.Writer(info)._header(oci.blob_name(digest), size, 0o644, b"0")
        file.seek(header)
        file.write(info.getvalue())
        file.seek(size, io.SEEK_CUR)
        writer.finish()
    return path


def put(files: dict[str, bytes], content: bytes, media_type: str) -> oci.Descriptor:
    digest = oci.digest_of(content)
    files[oci.blob_name(digest)] = content
    return oci.Descriptor(media_type=media_type, digest=digest, size=len(content))


def most(path: Path, code: str = "whole") -> int:
    """The most memory, in bytes, of a process that verifies *path* and finds *code*."""
    arguments = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=120)
    found, memory = done.stdout.split()
    assert found == code
    return int(memory)


def test_the_memory_of_verify_is_flat(tmp_path: Path) -> None:
    small, large = (most(sparse(tmp_path / f"{size}.tar", size * MB)) for size in (1, 512))
    assert large < small + 4 * MB
    assert large < 200 * MB


@pytest.mark.parametrize("kind", ["descriptors", "annotations", "files"])
def test_the_memory_for_a_hostile_one_is_bounded(tmp_path: Path, kind: str) -> None:
    """As many as fit into the largest index, or the largest archive, that is read."""
    one = {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 1}
    index: dict[str, object] = {"schemaVersion": 2, "manifests": [one] if kind == "files" else []}
    if kind == "descriptors":
        index["manifests"] = [one] * (oci.MAX_INDEX // 111)
    if kind == "annotations":
        index["annotations"] = {f"k{number}": "" for number in range(oci.MAX_INDEX // 13)}
    content = json.dumps(index, separators=(",", ":")).encode()
    assert len(content) <= oci.MAX_INDEX
    with (tmp_path / "hostile.tar").open("wb") as file:
        writer = archive.Writer(file)
        for name, held in {oci.LAYOUT_FILE: oci.LAYOUT, oci.INDEX_FILE: content}.items():
            writer.file(name, io.BytesIO(held), len(held))
        for number in range(archive.MAX_MEMBERS - 2 if kind == "files" else 0):
            writer.file(f"blobs/sha256/{number:064x}", io.BytesIO(), 0)
        writer.finish()
    assert most(tmp_path / "hostile.tar", "whole" if kind == "annotations" else "BundleDamaged") < 200 * MB


def test_signing_writes_a_few_bytes_of_a_large_bundle(tmp_path: Path) -> None:
    path = sparse(tmp_path / "large.tar", 512 * MB)
    held = path.stat().st_blocks
    sign_file(path, keygen(tmp_path / "key"))
    assert path.stat().st_blocks - held < 64, "in blocks of 512 bytes"
