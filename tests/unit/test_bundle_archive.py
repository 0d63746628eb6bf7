"""The reader of archives takes what tools write, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tarfile
import time
from pathlib import Path

import pytest
from bundle_files import member, pax, raw, record, tar
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeadm_registry.bundle import archive, files
from kubeadm_registry.errors import BundleError


def read(content: bytes, **limits: int) -> dict[str, bytes]:
    file = io.BytesIO(content)
    found = {}
    for item in archive.members(file, **limits):
        assert file.tell() == item.offset
        found[item.name] = file.read(item.size)
    return found


def refusal(content: bytes, **limits: int) -> str:
    with pytest.raises(BundleError) as caught:
        read(content, **limits)
    assert caught.value.code == "BundleDamaged"
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_other_tools_write(form: int) -> None:
    long = "blobs/" + "d" * 90 + "/" + "f" * 64
    content = tar(
        ("a", b"1"), (member("blobs", tarfile.DIRTYPE), b""), (f"./{long}", b"2" * 513), ("z", b""), form=form
    )
    assert read(content) == {"a": b"1", "blobs": b"", long: b"2" * 513, "z": b""}


def test_reads_names_that_only_pax_can_write() -> None:
    name = "é" * 120
    assert read(tar((name, b"x"), form=tarfile.PAX_FORMAT)) == {name: b"x"}


def test_skips_the_directory_itself() -> None:
    assert read(tar((member(".", tarfile.DIRTYPE), b""), ("./a", b"1"))) == {"a": b"1"}


def test_zeros_may_fill_up_a_large_block() -> None:
    archive = tar(("a", b"1"))
    assert read(archive + bytes(5 * 2**20)) == {"a": b"1"}
    assert "continues after its end mark" in refusal(archive + bytes(5 * 2**20) + b"x")
    assert "continues after its end mark" in refusal(archive + bytes(65 * 2**20))


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/passwd", "a/../b", "a//b", "a\\b", "a\nb", "a\x7f", ""], ids=repr
)
def test_refuses_names_that_lead_out(name: str) -> None:
    assert "unsafe name" in refusal(tar((name, b"x"), form=tarfile.PAX_FORMAT))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"7"]
)
def test_refuses_what_is_no_file(kind: bytes) -> None:
    assert "neither a file nor a directory" in refusal(tar((member("a", kind, "/etc/shadow"), b"")))


def test_refuses_a_name_twice() -> None:
    assert "twice" in refusal(tar(("a", b"1"), ("b", b""), ("./a", b"2")))


def test_refuses_sparse_files_and_global_names() -> None:
    for key, kind in [("GNU.sparse.size", tarfile.XHDTYPE), ("path", tarfile.XGLTYPE)]:
        text = f"30 {key}=".ljust(29, "1") + "\n"
        assert "not supported" in refusal(tar((member("h", kind), text.encode()), ("a", b"")))


def test_refuses_headers_without_bounds() -> None:
    header = member("h", tarfile.XHDTYPE)
    assert "extended header" in refusal(tar((header, b"x" * (archive.MAX_EXTENDED_HEADER + 1)), ("a", b"")))


def test_takes_as_many_extended_headers_as_tools_write_and_no_more() -> None:
    one = pax(record(b"comment", b"x"))
    end = raw(b"a") + raw(b"b") + bytes(1024)
    for most in (archive.MAX_EXTENDED_HEADERS, 1):
        assert list(read(one * most + raw(b"first") + one * archive.MAX_EXTENDED_HEADERS + end)) == ["first", "a", "b"]
    refused = refusal(one * (archive.MAX_EXTENDED_HEADERS + 1) + end)
    assert refused == "the archive has too many extended headers"


@pytest.mark.parametrize("first", ["pax", "gnu"])
def test_refuses_two_names_for_one_member(first: str) -> None:
    """GNU tar, which unpacks programs on the nodes, takes that of pax, wherever it stands."""
    text = b"bin/x\0"
    long = (member("././@LongLink", b"L"), text)
    names = [(member("h", tarfile.XHDTYPE), record(b"path", b"../evil")), long]
    content = tar(*(names if first == "pax" else reversed(names)), ("bin/y", b"1"))
    assert refusal(content) == "a member of the archive has two names or sizes"


def test_takes_extended_headers_of_so_many_bytes_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"".join(pax(record(b"comment", b"x" * 90)) + raw(b"%d" % number) for number in range(10)) + bytes(1024)
    size = 10 * len(record(b"comment", b"x" * 90))
    monkeypatch.setattr(archive, "MAX_EXTENDED_BYTES", size)
    assert len(read(content)) == 10
    monkeypatch.setattr(archive, "MAX_EXTENDED_BYTES", size - 1)
    assert "too many extended headers" in refusal(content)


def test_takes_so_many_records_in_an_extended_header() -> None:
    for count, kind in [(archive.MAX_RECORDS, b"x"), (archive.MAX_RECORDS, b"g")]:
        assert list(read(pax(*[record(b"a", b"1")] * count, kind=kind) + raw(b"a") + bytes(1024))) == ["a"]
        refused = refusal(pax(*[record(b"a", b"1")] * (count + 1), kind=kind) + raw(b"a") + bytes(1024))
        assert refused == f"an extended header in the archive has more than {count} records"


@pytest.mark.parametrize("count", [10_000, archive.MAX_RECORDS], ids=["too many", "as many as may be"])
def test_many_small_records_cost_little(count: int) -> None:
    """They are read before any signature is checked. Each byte used to be copied for every record before it."""
    block = pax(*[record(b"a", b"1")] * count)
    content = b"".join(block + raw(b"%d" % number) for number in range(5_000_000 // (len(block) + 512))) + bytes(1024)
    begin = time.process_time()
    with contextlib.suppress(BundleError):
        read(content)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("text", [b"5 path", b"99 path=b\n", b"0 path=b\n", b"-1 a=b\n", b"x", b"1 ", b"2 ="], ids=repr)
def test_refuses_wrong_lengths_in_extended_headers(text: bytes) -> None:
    assert "wrong length" in refusal(tar((member("h", tarfile.XHDTYPE), text), ("a", b"")))


def test_refuses_more_than_it_may_unpack() -> None:
    content = tar(("a", b"12345"), ("b", b"12345"))
    assert read(content, max_bytes=10)
    assert "more than 9 bytes" in refusal(content, max_bytes=9)


def test_refuses_what_comes_after_the_end() -> None:
    content = tar(("a", b"1"))
    assert "after its end" in refusal(content + b"x")
    assert "after its end" in refusal(content + tar(("b", b"2")))


def test_refuses_other_files() -> None:
    assert "not a tar archive" in refusal(b"PK\x03\x04" + b"x" * 1000)
    assert "truncated" in refusal(b"")


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=3 * 512 - 1))
def test_notices_every_cut(length: int) -> None:
    content = tar(("a", b"1" * 100))[: 4 * 512]
    assert "truncated" in refusal(content[:length]) or length in range(1024, 1536)
    assert read(content) == {"a": b"1" * 100}


@settings(deadline=None)
@given(st.data())
def test_no_change_leads_anywhere_else(data: st.DataObject) -> None:
    """A changed archive is read or refused; no other error, no name that is not safe."""
    content = bytearray(tar(("some/name", b"1" * 600), (member("d", tarfile.DIRTYPE), b""), form=tarfile.GNU_FORMAT))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 2047))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # with the checksums made right, so that the change reaches the rest
        for at in (0, 512 * 3):
            content[at + 148 : at + 156] = b" " * 8
            content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    try:
        names = read(bytes(content))
    except BundleError:
        return
    for name in names:
        assert archive.safe_name(name) == name


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=130), st.binary(max_size=1100)
    ).filter(lambda files: len({name.lower() for name in files}) == len(files))
)
def test_what_is_written_is_read_the_same_by_all(files: dict[str, bytes]) -> None:
    output = io.BytesIO()
    writer = archive.Writer(output)
    for name, content in files.items():
        writer.file(name, io.BytesIO(content), len(content), executable=len(content) % 2 == 0)
    writer.finish()
    assert read(output.getvalue()) == files
    output.seek(0)
    with tarfile.open(fileobj=output) as other:
        for info in other:
            assert other.extractfile(info).read() == files[info.name]  # type: ignore[union-attr]
            assert (info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "")
            assert info.mode == (0o755 if info.size % 2 == 0 else 0o644)


def test_the_writer_refuses_content_that_is_too_short() -> None:
    with pytest.raises(BundleError, match="shorter"):
        archive.Writer(io.BytesIO()).file("a", io.BytesIO(b"12"), 3)


def test_a_size_above_8_gib_is_read() -> None:
    info = member("a")
    info.size = 2**40
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert next(archive.members(io.BytesIO(header))).size == 2**40


def test_which_file_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stick that was pulled out, say: the error of the system names no file."""

    def fail(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "bundle.tar").write_bytes(b"content")
    with files.regular(tmp_path / "bundle.tar") as file:
        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(OSError, match="bundle"):
            archive.Window(file, 0, 7).read(7)
