"""A host: what it refuses, and its scripts in a real shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeadm_registry.containerd.survey import look, read_files
from kubeadm_registry.errors import CommandFailed, Error
from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import _WRITE, FileState, Host
from tests.unit.fakes import FakeTransport
from tests.unit.here import OWNER, Here, here, stub


def test_asking_takes_any_status_for_an_answer(server: FakeTransport) -> None:
    server.answer("grep", with_=Result(("grep",), 1, b" out \n", b"err"))
    result = server.host().query("grep", "x")
    assert (result.ok, result.code, result.text, result.stderr) == (False, 1, "out", b"err")


def test_acting_fails_with_the_command_its_status_and_its_words(server: FakeTransport) -> None:
    server.answer("mount", with_=Result(("mount", "a b"), 32, b"", b"mount: bad superblock\n"))
    with pytest.raises(CommandFailed) as caught:
        server.host().run("mount", "a b")
    assert str(caught.value) == "cp-1: mount 'a b' failed with exit status 32: mount: bad superblock"
    assert caught.value.result.code == 32


def test_a_command_that_says_nothing_is_told_so(server: FakeTransport) -> None:
    server.answer("true", with_=Result(("true",), 1))
    with pytest.raises(CommandFailed, match="failed with exit status 1 \\(no output\\)"):
        server.host().run("true")


def test_a_long_command_is_cut_to_one_line() -> None:
    shown = Result(("program", "line one\nline two", "x" * 300), 0).command
    assert len(shown) == 160
    assert "\n" not in shown
    assert shown.endswith("...")


def test_a_script_is_called_by_its_name_and_not_by_its_text() -> None:
    assert Result(("sh", "-c", "set -e; path=$1", "write", "/etc/a b", "644"), 1).command == "write '/etc/a b' 644"
    assert Result(("ip", "-c", "address"), 1).command == "ip -c address"
    assert Result(("sh", "-c", "exit 1"), 1).command == "sh -c 'exit 1'"


def test_a_read_only_host_asks_and_never_acts(server: FakeTransport, tmp_path: Path) -> None:
    server.put("/etc/a", "one")
    host = server.host().as_read_only()
    assert host.read("/etc/a") == b"one"
    for act in (
        lambda: host.run("systemctl", "daemon-reload"),
        lambda: host.write("/etc/a", b"two"),
        lambda: host.upload(tmp_path, "/etc/a"),
    ):
        with pytest.raises(AssertionError, match="cp-1 outside of a Change"):
            act()
    assert server.content("/etc/a") == b"one"
    assert server.acts == []


def test_hosts_are_equal_by_name_and_address_whatever_leads_to_them() -> None:
    assert Host("a", "10.0.0.1", FakeTransport()) == Host("a", "10.0.0.1", FakeTransport())
    assert "FakeTransport" not in repr(Host("a", "10.0.0.1", FakeTransport())), "a transport may hold passwords"


# ---- the scripts, in a real shell -----------------------------------------------------------------------------------


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(content=st.binary(max_size=5000), mode=st.sampled_from([0o600, 0o644, 0o755, 0o400]))
def test_what_is_written_is_read_with_its_mode_and_owner(tmp_path: Path, content: bytes, mode: int) -> None:
    path = str(tmp_path / "a file of 'mine'")
    here().write(path, content, mode=mode, owner=OWNER)
    assert here().state(path) == FileState(content, mode, OWNER)
    assert [one.name for one in tmp_path.iterdir()] == ["a file of 'mine'"], "nothing is left beside it"


def test_no_file_is_none_and_not_an_error(tmp_path: Path) -> None:
    assert here().state(str(tmp_path / "a")) is None
    assert here().read(str(tmp_path / "no" / "folder")) is None


def test_what_is_no_plain_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in (".", "dangling"):
        with pytest.raises(Error, match="is not a regular file") as caught:
            here().state(str(tmp_path / name))
        assert (caught.value.code, caught.value.host) == ("FileUnreadable", "here")


def test_a_link_is_read_through_with_the_mode_of_its_target(tmp_path: Path) -> None:
    here().write(str(tmp_path / "file"), b"x", mode=0o640, owner=OWNER)
    (tmp_path / "link").symlink_to("file")
    assert here().state(str(tmp_path / "link")) == FileState(b"x", 0o640, OWNER)


def test_a_name_with_a_blank_is_not_used(tmp_path: Path) -> None:
    """As that of the group of users from Active Directory: a record of an owner has none, and the number is as good."""
    stub(tmp_path / "bin", "stat", "echo '644 joe:domain users 1001:1002'")
    (tmp_path / "file").write_text("x")
    assert here(tmp_path / "bin").state(str(tmp_path / "file")) == FileState(b"x", 0o644, "joe:1002")


def test_what_is_read_ahead_is_what_each_question_would_be_answered(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "empty").touch(mode=0o600)
    (tmp_path / "two\nlines").write_text("one\ntwo\n")
    (tmp_path / "link").symlink_to("binary")
    (tmp_path / "dangling").symlink_to("nowhere")
    names = ("binary", "none", "empty", "folder", "two\nlines", "link", "dangling", "no/folder")
    paths = [str(tmp_path / name) for name in names]
    ahead = here().read_ahead(paths)
    assert [answer.argv[-1] for answer in ahead] == paths
    for answer in ahead:
        asked = here().query(*answer.argv)
        assert (answer.argv, answer.code, answer.stdout) == (asked.argv, asked.code, asked.stdout)
    assert here().read_ahead([str(tmp_path / "none")])[0].code == 3


def test_a_file_that_changes_while_it_is_read_ahead_is_asked_for_by_itself(tmp_path: Path) -> None:
    growing = tmp_path / "growing"
    growing.write_text("short\n")
    program = tmp_path / "programs"
    program.mkdir()
    stub(program, "cat", f'echo more >> {growing}; exec /bin/cat "$@"')
    host = Host("here", "10.0.0.11", Here(program))
    assert host.read_ahead([str(growing)]) == []


def test_files_are_shown_with_what_else_is_in_their_place(tmp_path: Path) -> None:
    """In the order in which they are asked for; what is empty, no plain file, or not there at all is told apart."""
    (tmp_path / "a b.toml").write_text("one\n\n2 3\n")
    (tmp_path / "b.toml").touch()
    (tmp_path / "c.toml").symlink_to("nowhere")
    (tmp_path / "d.toml").mkdir()
    (tmp_path / "e.toml").symlink_to("a b.toml")
    (tmp_path / r"f\ng.toml").touch()
    found = look(here(), str(tmp_path / "none"), f"{tmp_path}/*.toml", str(tmp_path / "b.toml"))
    shown = [
        (number, Path(path).name, file and (Path(file.real).name, file.state.content)) for number, path, file in found
    ]
    one = ("a b.toml", b"one\n\n2 3\n")
    assert shown == [
        (1, "a b.toml", one), (1, "b.toml", ("b.toml", b"")), (1, "c.toml", None), (1, "d.toml", None),
        (1, "e.toml", one), (1, r"f\ng.toml", (r"f\ng.toml", b"")), (2, "b.toml", ("b.toml", b"")),
    ]  # fmt: skip
    assert look(here(), str(tmp_path / "none")) == look(here()) == []


def test_files_that_change_while_they_are_shown_are_asked_for_again_and_then_refused(tmp_path: Path) -> None:
    growing, program = tmp_path / "growing", tmp_path / "programs"
    program.mkdir()
    host = Host("here", "10.0.0.11", Here(program))
    stub(program, "cat", f'[ -e {tmp_path}/once ] || echo more >> {growing}; touch {tmp_path}/once; exec /bin/cat "$@"')
    growing.write_text("short\n")
    assert [file.state.content for file in read_files(host, str(growing))] == [b"short\nmore\n"]
    stub(program, "cat", f'echo more >> {growing}; exec /bin/cat "$@"')
    with pytest.raises(Error, match=r"cannot read .*growing: something changes these files"):
        read_files(host, str(growing))


def test_a_refused_file_never_replaces_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("good")
    with pytest.raises(CommandFailed) as caught:
        here().write(
            str(path), b"bad", owner=OWNER, validate=("sh", "-c", 'cat "$1"; echo no >&2; exit 7', "v", "{path}")
        )
    assert caught.value.result.code == 7
    assert caught.value.result.stderr == b"badno\n", "what the program says on either output is told"
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_the_program_sees_the_new_file_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "config"
    script = 'test "$1" = "a b" && test "$2" != "$3" && grep -qx new "$2"'
    here().write(str(path), b"new", owner=OWNER, validate=("sh", "-c", script, "v", "a b", "{path}", str(path)))
    assert path.read_text() == "new"


def test_a_file_is_never_written_into_a_directory_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    with pytest.raises(CommandFailed):
        here().write(str(tmp_path / "config"), b"x", owner=OWNER)
    assert list((tmp_path / "config").iterdir()) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "config"]


def test_a_file_is_flushed_before_it_gets_its_name_and_the_name_after(tmp_path: Path) -> None:
    """A power cut after the rename must not leave an empty file under the good name."""
    log = tmp_path / "log"
    stub(tmp_path / "bin", "sync", f'echo sync "$@" >> {log}; exec /bin/sync "$@"')
    stub(tmp_path / "bin", "mv", f'echo mv "$@" >> {log}; exec /bin/mv "$@"')
    (tmp_path / "etc").mkdir()
    path = f"{tmp_path}/etc/config"
    here(tmp_path / "bin").write(path, b"x", owner=OWNER)
    flushed, renamed, flushed_name = log.read_text().splitlines()
    new = flushed.removeprefix("sync -- ")
    assert new.startswith(f"{tmp_path}/etc/.config.")
    assert renamed == f"mv -f -T -- {new} {path}"
    assert flushed_name == f"sync -- {tmp_path}/etc"


def test_without_the_folder_writing_fails_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"cannot create .*/no/|No such file or directory"):
        here().write(str(tmp_path / "no" / "file"), b"x", owner=OWNER)


@pytest.mark.parametrize("between", ["cat", "stat", "sha256sum", "chown", "chmod"])
def test_who_owns_the_directory_leads_nothing_elsewhere_by_a_link(tmp_path: Path, between: str) -> None:
    """The storage's key lies in a directory of the storage's user, who may put a link in place of the new file."""
    victim, folder, path = tmp_path / "victim", tmp_path / "etc", tmp_path / "etc" / "key"
    victim.write_text("not yours")
    victim.chmod(0o644)
    folder.mkdir()
    real = shutil.which(between)
    stub(tmp_path / "bin", between, f'for new in {folder}/.key.*; do ln -s -f {victim} "$new"; done; exec {real} "$@"')
    with suppress(CommandFailed):
        here(tmp_path / "bin").write(str(path), b"key", mode=0o600, owner=OWNER)
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("not yours", 0o644)


def test_the_new_file_is_made_by_this_write_and_nobody_else(tmp_path: Path) -> None:
    """A link of its name, made in the moment before, is not followed."""
    victim, folder = tmp_path / "victim", tmp_path / "etc"
    folder.mkdir()
    real = shutil.which("mktemp")
    stub(tmp_path / "bin", "mktemp", f'new=$({real} "$@"); ln -s -f {victim} "$new"; echo "$new"')
    with pytest.raises(CommandFailed):
        here(tmp_path / "bin").write(f"{folder}/key", b"key", owner=OWNER)
    assert not victim.exists()
    assert list(folder.iterdir()) == []


class Altering(Here):
    """A connection that hands the script other standard input than it was given."""

    def __init__(self, alter: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._alter = alter

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        return super().run(argv, stdin=self._alter(stdin), timeout=timeout)


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda content: b"", "0 of 12 bytes arrived"),
        (lambda content: content[:-1], "11 of 12 bytes arrived"),
        (lambda content: content + b"x", "13 of 12 bytes arrived"),
        (lambda content: content[:-1] + b"x", "other bytes arrived than were sent"),
    ],
)
def test_content_that_does_not_arrive_as_it_was_sent_replaces_nothing(
    tmp_path: Path, alter: Callable[[bytes], bytes], said: str
) -> None:
    path = tmp_path / "config"
    path.write_text("good")
    with pytest.raises(CommandFailed, match=said):
        Host("here", "192.0.2.1", Altering(alter)).write(str(path), b"twelve bytes", owner=OWNER)
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_being_written_is_not_one_of_those_that_programs_read(tmp_path: Path) -> None:
    """containerd reads every conf.d/*.toml, also those that begin with a dot; zot tells the format by the ending."""
    path, shown = tmp_path / "10-reg.toml", tmp_path / "shown"
    look = ("sh", "-c", 'ls -A "$1" > "$2"; echo "$3" >> "$2"', "look", str(tmp_path), str(shown), "{path}")
    here().write(str(path), b"x", owner=OWNER, validate=look)
    *there, seen = shown.read_text().splitlines()
    assert Path(seen).name in there
    assert Path(seen).suffix != ".toml"
    here().write(str(path), b"x", owner=OWNER, validate=(*look[:-1], "{path}.json"))
    assert shown.read_text().splitlines()[-1].endswith(".json")


def test_what_killed_runs_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "10-reg.toml"
    for name in (".new.0123456789-10-reg.toml", ".10-reg.toml.0123456789.kubeadm-registry.json"):
        (tmp_path / name).write_text("an earlier version left this")
    stays = [".new.0123456789-other.toml", ".10-reg.toml.swp", ".other.toml.0123456789.kubeadm-registry"]
    for name in stays:
        (tmp_path / name).touch()
    with pytest.raises(CommandFailed):
        here().write(str(path), b"x", owner=OWNER, validate=("sh", "-c", "kill -KILL $PPID"))
    left = sorted(one.name for one in tmp_path.iterdir() if one.name not in stays)
    assert [fnmatch(name, ".10-reg.toml.??????????.kubeadm-registry") for name in left] == [True]
    here().write(str(path), b"x", owner=OWNER)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*stays, "10-reg.toml"])


def test_writing_that_takes_too_long_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["timeout", "0.3", "sh", "-c", _WRITE, "write", str(tmp_path / "config"), "644", OWNER, "1", "", ""],
        stdin=subprocess.PIPE,
    )
    assert process.wait(20) == 124
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_owner_without_a_name_is_kept_as_a_number(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 54321, 0)
    state = here().state(str(path))
    assert state is not None
    assert state.owner == "54321:root"
    here().write(str(path), b"x", owner=state.owner)
    assert (path.stat().st_uid, path.stat().st_gid) == (54321, 0)
    (shown,) = read_files(here(), str(path))
    assert shown.state == FileState(b"x", 0o644, "54321:root")


class Failing(Here):
    """Cannot write an upload, and says why."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self._said = said

    def upload(self, source: Path, path: str) -> None:
        raise CommandFailed(Result(("upload", path), 1, b"", self._said.encode()), host="here")


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("mv: cannot move 'a' to 'b': Operation not permitted", "chattr -i"),
        ("mktemp: failed: Read-only file system", "read-write"),
        ("cat: write error: No space left on device", "df -h {etc}"),
    ],
)
def test_a_file_that_cannot_be_replaced_comes_with_what_to_do(tmp_path: Path, said: str, hint: str) -> None:
    stub(tmp_path / "bin", "mv", f'echo "{said}" >&2; exit 1')
    (tmp_path / "etc").mkdir()
    with pytest.raises(CommandFailed) as caught:
        here(tmp_path / "bin").write(f"{tmp_path}/etc/config", b"x", owner=OWNER)
    assert hint.format(etc=tmp_path / "etc") in caught.value.hint
    assert list((tmp_path / "etc").iterdir()) == []
    with pytest.raises(CommandFailed) as caught:
        Host("here", "192.0.2.1", Failing(said)).upload(tmp_path / "source", f"{tmp_path}/etc/config")
    assert hint.format(etc=tmp_path / "etc") in caught.value.hint
