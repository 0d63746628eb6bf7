"""Where a bundle is written to: what is never replaced, what is left after an interruption, what becomes of that."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kubeadm_registry import config
from kubeadm_registry.bundle import temporary, verify
from kubeadm_registry.bundle.make import FromLayout, create
from kubeadm_registry.cli.bundle import _ended_by_signals
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.oci import descriptors as oci
from tests.unit.bundle_files import Said, image, script, write_layout
from tests.unit.command_line import Terminal, failed, lines
from tests.unit.fake_upstream import FakeUpstream, serving
from tests.unit.test_bundle_memory import MB, sparse
from tests.unit.test_bundle_signing import keygen

pytest_plugins = ["tests.unit.command_line"]

ROOT = Path(__file__).parents[2]
PAUSE = "registry.k8s.io/pause:3.10"


def make(output: Path, layer: bytes = b"layer", **settings: object) -> Path:
    folder = output.parent / "work"
    folder.mkdir(exist_ok=True)
    source = FromLayout(write_layout(folder / "pause.tar", image(PAUSE, layer)))
    create(output, {}, images=[source], cache=folder / "cache", **settings)  # type: ignore[arg-type]
    return output


# ---- what is never replaced ------------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


def circle(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("put", [fifo, listening, device, circle])
def test_what_is_no_file_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    output = Path("out.tar")
    put(output)
    before = output.lstat()
    with pytest.raises(ConfigError, match="not a regular file") as caught:
        make(output)
    assert caught.value.code == "OutputInvalid"
    assert (output.lstat().st_ino, output.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tar", "work"]


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("-", "standard output is not supported"),
        ("folder", "it is a directory"),
        ("none/out.tar", "there is no directory /.*/none"),
    ],
)
def test_where_nothing_can_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=f"cannot write {output}: {why}") as caught:
        temporary.target(Path(output))
    assert caught.value.code == "OutputInvalid"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_of_roots_is_not_replaced(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", 0o666 | 0o020000, os.makedev(1, 3))
    with pytest.raises(ConfigError, match="not a regular file"):
        make(tmp_path / "null")
    assert (tmp_path / "null").is_char_device()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(tmp_path: Path, there: bool) -> None:
    (tmp_path / "stick").mkdir()
    target = tmp_path / "stick" / "real.tar"
    if there:
        target.write_bytes(b"the old one")
    (tmp_path / "out.tar").symlink_to("stick/real.tar")
    make(tmp_path / "out.tar")
    assert (tmp_path / "out.tar").is_symlink()
    assert not target.is_symlink()
    verify(target)


@pytest.mark.parametrize("name", ["base.tar", "link.tar", "hard.tar", "sub/../base.tar"])
def test_a_delta_does_not_replace_its_base(tmp_path: Path, name: str) -> None:
    base = make(tmp_path / "base.tar")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.tar").symlink_to("base.tar")
    os.link(base, tmp_path / "hard.tar")
    before = base.read_bytes()
    with pytest.raises(ConfigError, match="is created from") as caught:
        make(tmp_path / name, b"other", since=base)
    assert caught.value.code == "OutputInvalid"
    assert base.read_bytes() == before
    make(tmp_path / "delta.tar", b"other", since=base)


def test_nothing_that_it_is_made_of_is_replaced(run: Terminal) -> None:
    write_layout(run.folder / "pause.tar", image(PAUSE))
    script(run.folder / "garage")
    key = keygen(run.folder / "key")
    (run.folder / "list").write_text("registry.k8s.io/pause:3.10\n")
    for name in ("cluster.yaml", "other.yaml"):
        (run.folder / name).write_text(config.SMALLEST)
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    common = ("bundle", "create", "--with", "garage", "--program", "garage=garage", "--images-from", "pause.tar")
    theirs = [("cluster.yaml", ()), ("other.yaml", ("-f", "other.yaml")), ("key", ("--sign", str(key)))]
    for name, more in [("garage", ()), ("pause.tar", ()), *theirs]:
        result = run(*common, "-o", name, *more, "--format", "json")
        failed(result, 2)
        assert lines(result)[-1]["code"] == "OutputInvalid"
    failed(run("bundle", "create", "--images-only", "--images-from", "list", "-o", "list"), 2)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


# ---- interrupted -----------------------------------------------------------------------------------------------------


def until(what: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


@contextmanager
def running(folder: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """`bundle create -o out.tar` in *folder*, with all that is temporary in ``folder/tmp``."""
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp"),
    }  # fmt: skip
    # In the background of a script, or under nohup, the tests ignore what would end it, and would hand that on.
    argv = ["env", "--default-signal", sys.executable, "-m", "kubeadm_registry"]
    argv += ["bundle", "create", "-o", "out.tar", "--images-only", *map(str, arguments)]
    with subprocess.Popen(argv, cwd=folder, env=environment, stdout=-1, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.kill()


def temporaries(folder: Path) -> list[Path]:
    return [*folder.glob(".out.tar.*"), *(folder / "tmp").iterdir()]


def begun(folder: Path) -> bool:
    """Whether the bundle is being written."""
    return any(path.stat().st_size for path in folder.glob(".out.tar.*"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout that takes seconds to copy."""
    return sparse(tmp_path_factory.mktemp("large") / "large.tar", 512 * MB)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_ended_run_leaves_nothing(large: Path, tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, "--images-from", large) as process:
        until(lambda: begun(tmp_path), process)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"[Interrupted]" in said
    assert temporaries(tmp_path) == []
    assert not (tmp_path / "out.tar").exists()


def test_a_killed_run_is_cleaned_up_by_the_next(large: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--images-from", large) as process:
        until(lambda: begun(tmp_path), process)
        process.kill()
        process.wait(30)
    assert len(temporaries(tmp_path)) == 2, "nothing can be done in a process that is killed"
    write_layout(tmp_path / "pause.tar", image(PAUSE))
    with running(tmp_path, "--images-from", "pause.tar") as process:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert temporaries(tmp_path) == []
    verify(tmp_path / "out.tar")


def has_begun(blobs: Path) -> bool:
    """Whether a part of a download is in *blobs*; others become whole meanwhile."""
    for part in blobs.glob("*.part"):
        with suppress(FileNotFoundError):
            if part.stat().st_size:
                return True
    return False


def test_an_ended_run_does_not_wait_for_downloads(tmp_path: Path) -> None:
    with serving(FakeUpstream(pace=0.05)) as upstream:
        upstream.image("a/b", "v1", bytes(64 * MB))  # 50 s and more
        with running(tmp_path, "--image", f"{upstream.host}/a/b:v1") as process:
            blobs = tmp_path / ".cache/kubeadm-registry/bundle/blobs/sha256"
            until(lambda: has_begun(blobs), process)
            begin = time.monotonic()
            process.terminate()
            process.communicate(timeout=60)
            assert process.returncode == 130
            assert time.monotonic() - begin < 30
    assert temporaries(tmp_path) == []
    assert list(blobs.glob("*.part")), "the next run goes on from there"


def test_an_ended_run_does_not_wait_for_compression(tmp_path: Path) -> None:
    from tests.unit.test_bundle_images import saved

    (tmp_path / "saved.tar").write_bytes(saved(os.urandom(64 * MB)))  # 2 s and more
    with running(tmp_path, "--images-from", "saved.tar") as process:
        notes = tmp_path / ".cache/kubeadm-registry/bundle/blobs/notes"
        until(lambda: any(new.stat().st_size for new in notes.glob(".deflated-*.new")), process)
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 130
    assert temporaries(tmp_path) == []
    assert list(notes.iterdir()) == []
    assert list((notes.parent / "sha256").iterdir()) == [], "it was not compressed to its end"


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt), _ended_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_what_nobody_holds_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".out.tar.0123abcd.new"
    others = [".out.tar.0123abcd", ".out.tar.backup.new", ".other.tar.0123abcd.new", "out.tar"]
    for name in [left.name, *others]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".out.tar.aaaaaaaa.new").symlink_to("out.tar")
    (tmp_path / ".out.tar.bbbbbbbb.new").mkdir()
    with temporary.file(tmp_path, "out.tar") as first:
        assert not left.exists()
        with temporary.file(tmp_path, "out.tar") as second:
            assert Path(first.name).exists(), "another run writes it"
            assert second.name != first.name
            second.write(b"whole")
            temporary.put(second, tmp_path / "put", mode=0o640)
        assert (tmp_path / "put").read_bytes() == b"whole"
        assert (tmp_path / "put").stat().st_mode & 0o777 == 0o640
    assert not Path(first.name).exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        *others, "put", ".out.tar.aaaaaaaa.new", ".out.tar.bbbbbbbb.new"
    }  # fmt: skip


def test_a_folder_that_cannot_be_flushed_is_one_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that VirtualBox shares with its host."""
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with temporary.file(tmp_path, "out.tar") as file:
        file.write(b"whole")
        temporary.put(file, tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_bytes() == b"whole"


def test_directories_are_removed_with_all_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "work-0123abcd.new"
    (left / "below").mkdir(parents=True)
    (left / "below" / "file").touch()
    with temporary.directory("work-") as first:
        assert not left.exists()
        with temporary.directory("work-") as second:
            assert first.is_dir()
            (second / "file").touch()
        assert not second.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_another_one_took_for_left_behind_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its opening nobody holds it."""
    made: list[str] = []
    mkdtemp = tempfile.mkdtemp

    def interrupted(prefix: str, suffix: str) -> str:
        name = mkdtemp(prefix=prefix, suffix=suffix, dir=tmp_path)
        made.append(name)
        if len(made) == 1:
            Path(name).rmdir()
        return name

    monkeypatch.setattr(tempfile, "mkdtemp", interrupted)
    with temporary.directory("work-") as directory:
        assert [str(directory)] == made[1:]
        assert directory.is_dir()


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda held: held[:-1] + b"!", lambda held: bytes(len(held))], ids=["bit", "zeros"])
def test_damaged_blobs_in_the_cache_are_fetched_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    from kubeadm_registry.bundle.make.remote import FromRegistries

    said = Said()
    layers = [bytes([number]) * 100_000 for number in range(1, 4)]
    with serving(FakeUpstream()) as upstream:
        upstream.image("a/b", "v1", *layers)
        source = FromRegistries((f"{upstream.host}/a/b:v1",), patience=1)
        create(tmp_path / "a.tar", {}, images=[source], cache=tmp_path / "cache")
        blobs = tmp_path / "cache/blobs/sha256"
        for layer in layers[:2]:
            path = blobs / oci.digest_of(layer).removeprefix("sha256:")
            path.write_bytes(damage(path.read_bytes()))
        before = upstream.sent
        create(tmp_path / "b.tar", {}, images=[source], cache=tmp_path / "cache", progress=said)
        assert upstream.sent - before == 200_000, "the two that were damaged, and nothing else"
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "a.tar").read_bytes()
    assert any("comparing everything taken from the cache" in line for line in said)


def test_a_damaged_layer_of_an_archive_in_the_cache_is_compressed_again(tmp_path: Path) -> None:
    from kubeadm_registry.bundle.make import images_from
    from tests.unit.test_bundle_images import saved

    (tmp_path / "saved.tar").write_bytes(saved(bytes(100_000)))
    create(tmp_path / "a.tar", {}, images=images_from([], [tmp_path / "saved.tar"]), cache=tmp_path / "cache")
    [path] = (tmp_path / "cache/blobs/sha256").iterdir()
    path.write_bytes(bytes(path.stat().st_size))
    create(tmp_path / "b.tar", {}, images=images_from([], [tmp_path / "saved.tar"]), cache=tmp_path / "cache")
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "a.tar").read_bytes()


def test_packing_and_reading_tell_how_far_they_are(tmp_path: Path) -> None:
    packed: list[tuple[int, int]] = []
    read: list[tuple[int, int]] = []
    path = make(tmp_path / "a.tar", b"x" * 3_000_000, meter=lambda done, total: packed.append((done, total)))
    verify(path, meter=lambda done, total: read.append((done, total)))
    for told in (packed, read):
        assert len(told) >= 3
        assert told == sorted(told), "never of fewer than before"
        assert {total for _, total in told} == {told[-1][1]}
        assert told[-1][0] == told[-1][1] > 3_000_000
