"""The reader of bundles under random damage: a BundleError, or the very same blobs; never much memory or time.

KUBEADM_REGISTRY_FUZZ is how many damaged bundles are tried, 300 if it is not set; `make fuzz` tries 20,000.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeadm_registry.bundle import Bundle, archive, problems
from kubeadm_registry.errors import BundleError
from kubeadm_registry.images import seed
from kubeadm_registry.oci import descriptors as oci
from tests.unit.corrupted import Files, Good

EXAMPLES = int(os.environ.get("KUBEADM_REGISTRY_FUZZ", "300"))
MEMORY = 32 * 2**20
SECONDS = 1.0
Change = tuple[str, float, float, bytes]

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,  # processor time is what counts here, and it is measured below
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
changes = st.lists(
    st.tuples(
        st.sampled_from(("flip", "insert", "delete", "swap", "copy", "text")),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=16),
            # What means something to one who reads tar archives or manifests.
            st.sampled_from(
                (b"\0", b"7", b"\xff", b"\x80", b"x", b"L", b"2", b"../", b"{", b"]", b"-1", b"9" * 12, b'"')
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    return Good.make(tmp_path_factory.mktemp("good"))


def changed(content: bytes, change: Change) -> bytes:
    kind, first, second, new = change
    if not content:
        return new
    at, blocks = int(first * len(content)), len(content) // archive.BLOCK
    low, high = sorted((int(first * blocks) * archive.BLOCK, int(second * blocks) * archive.BLOCK))
    block, other = slice(low, low + archive.BLOCK), slice(high, high + archive.BLOCK)
    begin, end = at, at + len(new)
    match kind:
        case "flip":
            end, new = at + 1, bytes([content[at] ^ (new[0] or 1)])
        case "insert":
            end = at
        case "delete":
            end, new = at + 1 + int(second * 1024), b""
        case "copy":
            begin, end, new = high, high, content[block]
        case "swap" if low != high:
            begin, end, new = low, other.stop, content[other] + content[block.stop : high] + content[block]
    return content[:begin] + new + content[end:]


def sealed(content: bytes) -> bytes:
    """*content* with the checksums of what looks like headers made right, so that a change reaches what is behind."""
    blocks = [content[at : at + archive.BLOCK] for at in range(0, len(content), archive.BLOCK)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == archive.BLOCK:
            bare = block[:148] + b" " * 8 + block[156:]
            blocks[number] = bare[:148] + b"%06o\0 " % sum(bare) + bare[156:]
    return b"".join(blocks)


def look(path: Path, good: Good) -> None:
    """Read *path* in every way there is. What comes of it is refused, or what was in the good one."""
    found = list(problems(path))
    try:
        with Bundle.open(path) as bundle:
            for item in seed.plan(bundle):
                for descriptor in (*item.manifests, *item.blobs):
                    with bundle.layout.blob(descriptor) as content:
                        assert content.read() == good.files[oci.blob_name(descriptor.digest)]
            for program in bundle.programs.values():
                bundle.extract(program, path.with_name("layer"))
    except BundleError:
        assert found, "what cannot be read is also found"
        return
    if not found:
        with Bundle.open(path) as bundle, Bundle.open(path.with_name("good.tar")) as before:
            assert (bundle.programs, bundle.images) == (before.programs, before.images)


def within_bounds(path: Path, content: bytes, good: Good) -> None:
    path.with_name("good.tar").write_bytes(good.content)
    path.write_bytes(content)
    begin = time.process_time()
    tracemalloc.start()
    try:
        look(path, good)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MEMORY
    assert time.process_time() - begin < SECONDS
    assert {file.name for file in path.parent.iterdir()} <= {"good.tar", "bundle.tar", "layer"}


@bounded
@given(changes, st.booleans())
def test_any_damage(good: Good, tmp_path: Path, changes: list[Change], seal: bool) -> None:
    content = good.content
    for change in changes:
        content = changed(content, change)
    within_bounds(tmp_path / "bundle.tar", sealed(content) if seal else content, good)


@bounded
@given(changes, st.sampled_from(("index.json", "inner", "manifest", "config", "program-manifest", "program-layer")))
def test_damage_in_one_file_under_right_digests(good: Good, tmp_path: Path, changes: list[Change], kind: str) -> None:
    """The archive and all digests are right: what a document says, or a layer unpacks to, is wrong."""
    from tests.unit.bundle_files import resealed, tar
    from tests.unit.corrupted import sealed as sealed_files

    content = good.files[good.name(kind)]
    for change in changes:
        content = changed(content, change)
    files: Files = (
        resealed(good.files | {kind: content})
        if kind in good.files
        else sealed_files(good.files, good.part(kind), content)
    )
    path = tmp_path / "bundle.tar"
    path.write_bytes(tar(*files.items()))
    begin = time.process_time()
    codes = {problem.code for problem in problems(path)}
    assert codes <= {"BundleDamaged", "BundleIncomplete", "NewerFormat"}
    try:
        with Bundle.open(path) as bundle:
            seed.plan(bundle)
            for program in bundle.programs.values():
                bundle.extract(program, tmp_path / "layer")
    except BundleError as error:
        assert error.code in codes
    assert time.process_time() - begin < SECONDS
