"""A disk that is full and its like are no mistakes of the program: they are told with the path and what to do."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kubeadm_registry import config
from kubeadm_registry.cli.command import Context, exit_on_error
from kubeadm_registry.disk import naming, read_text, refusal
from kubeadm_registry.locks import locked
from tests.unit.bundle_files import image, write_layout

PROGRAM = (sys.executable, "-m", "kubeadm_registry")


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, "DiskFull", "/data/x: no space left on device"),
        (errno.EDQUOT, "DiskFull", "/data/x: disk quota exceeded"),
        (errno.EROFS, "ReadOnly", "/data/x: read-only file system"),
        (errno.EFBIG, "FileTooLarge", "/data/x: file too large"),
        (errno.EACCES, "NotPermitted", "/data/x: permission denied"),
        (errno.EIO, "DiskFailed", "/data/x: input/output error"),
        (errno.EMFILE, "TooManyFiles", "/data/x: too many open files"),
        (errno.ENAMETOOLONG, "PathUnusable", "/data/x: file name too long"),
        (errno.EISDIR, "PathUnusable", "/data/x: is a directory"),
        (errno.ENOLCK, "PathUnusable", "/data/x: no locks available"),
    ],
)
def test_what_the_system_refuses_has_a_code_a_path_and_a_remedy(
    capsys: pytest.CaptureFixture[str], number: int, code: str, words: str
) -> None:
    def work() -> None:
        with naming("/data/x"):
            raise OSError(number, "as Python says it")

    with pytest.raises(SystemExit) as caught:
        exit_on_error(Context(), work)
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error [{code}] {words}\nhint: ")
    assert "Bug" not in said
    if code == "DiskFull":  # each place where this program writes by itself
        assert all(name in said for name in ("TMPDIR", "XDG_CACHE_HOME", "XDG_STATE_HOME"))


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS version 3 has none where rpc.statd does not run."""

    def flock(_file: object, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="No locks") as caught, locked(tmp_path / "lock", Exception(), deadline=0):
        pytest.fail("nobody holds it")
    assert caught.value.filename == str(tmp_path / "lock")


def test_too_little_memory_is_no_bug_either(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise MemoryError

    with pytest.raises(SystemExit):
        exit_on_error(Context(), work)
    assert capsys.readouterr().err.startswith("error [MemoryFull] cannot continue: cannot allocate memory\n")


def test_errors_of_the_network_stay_what_they_are() -> None:
    """Who talks to the network deals with them; one that nobody has dealt with is a mistake."""
    with pytest.raises(ConnectionResetError) as caught, naming("/data/x"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert caught.value.filename is None
    assert refusal(caught.value) is None


def test_a_name_that_python_gives_is_kept(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, naming("/other"):
        (tmp_path / "x").read_bytes()
    told = refusal(caught.value)
    assert told is not None
    assert (told.message, told.code) == (f"{tmp_path}/x: no such file or directory", "PathUnusable")


@pytest.mark.parametrize(
    "arguments",
    [
        ("config", "print-defaults"),
        ("config", "print-defaults", "-o", "json"),
        ("config", "validate"),
        ("config", "validate", "-o", "json"),
        ("config", "kubeadm"),
        ("init", "-f", "nowhere.yaml", "-o", "json"),
        ("--help",),
    ],
    ids=" ".join,
)
def test_standard_output_that_is_full(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "cluster.yaml").write_text(config.SMALLEST)
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            (*PROGRAM, *arguments), stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
        )
    assert ended.returncode == (2 if "init" in arguments else 1), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Bug" not in ended.stderr
    if "init" not in arguments:
        assert "error [DiskFull] standard output: no space left on device\n" in ended.stderr


def test_a_bundle_that_finds_no_room_names_its_file_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit of a file's size stands for the full disk, which a test without root cannot have."""
    write_layout(tmp_path / "layout.tar", image("registry.k8s.io/pause:3.10", os.urandom(300_000)))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    ended = subprocess.run(
        (*PROGRAM, "bundle", "create", "-o", "x.tar", "--images-only", "--images-from", "layout.tar"),
        preexec_fn=limit, capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error [FileTooLarge] {tmp_path}/x.tar: file too large\nhint: raise ")
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"layout.tar"}


# ---- small files of users -------------------------------------------------------------------------------------------


def test_text_is_read_without_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa: \xc3\xbc\n")
    assert read_text(tmp_path / "x", 100) == "a: ü\n"


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("a: 1\n" * 9))
    writer.start()
    assert read_text(tmp_path / "pipe", 100) == "a: 1\n" * 9
    writer.join()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x" * 4097, "it is larger than 4 KiB"),
        ("a: 1".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        (b"a: 1\nb: \xff\n", "it is not UTF-8 text: byte 0xff in line 2"),
    ],
)
def test_what_is_no_small_text_is_said_so(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_text(tmp_path / "x", 4096)


def test_a_device_without_an_end_is_not_read_for_ever() -> None:
    with pytest.raises(ValueError, match="larger than 4 KiB"):
        read_text(Path("/dev/zero"), 4096)
