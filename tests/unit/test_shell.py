import hashlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kubeadm_registry.errors import CommandFailed, CommandTimeout, ConnectionFailed, Error
from kubeadm_registry.transport import commands
from kubeadm_registry.transport import process as process_module
from kubeadm_registry.transport import shell as shell_module
from kubeadm_registry.transport.host import Host
from kubeadm_registry.transport.local import Local, ProcessStream
from kubeadm_registry.transport.process import NotStarted, start_argv, started
from kubeadm_registry.transport.shell import INLINE_STDIN, Shell, _Question


def spawn(argv):
    mark = secrets.token_hex(16)
    stream = ProcessStream(start_argv(argv, mark))
    return started(stream, mark)


@pytest.fixture(params=["sh", "dash", "bash"])
def open_shell(request, tmp_path):
    """Opens shells, as many as asked for, that share a lock file."""
    if not shutil.which(request.param):
        pytest.skip(f"no such file or directory {request.param} on this machine")
    shells = []

    def open_one():
        shells.append(Shell(spawn, "cp-1", program=request.param, lock_file=str(tmp_path / "lock")))
        return shells[-1]

    yield open_one
    for one in shells:
        one.close()


@pytest.fixture
def shell(open_shell):
    return open_shell()


def test_each_command_is_recorded_for_whoever_wants_it(shell, tmp_path):
    seen = []
    shell.run(["true"])
    with commands.told(seen.append):
        shell.run(["sh", "-c", "exit $1", "leave", "3"])
        (tmp_path / "a").write_bytes(b"a")
        shell.upload(tmp_path / "a", str(tmp_path / "b"))
    shell.run(["true"])
    assert [(one.host, one.command, one.code) for one in seen] == [
        ("cp-1", "leave 3", 3), ("cp-1", f"upload {tmp_path / 'b'}", 0),
    ]  # fmt: skip
    assert all(0 <= one.seconds < 10 for one in seen)


def wait_until(what, true, seconds=30):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)


def pids_of(word):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if word in (entry / "cmdline").read_bytes().decode(errors="replace").split("\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


# What a command says and how it ends


def test_output_status_and_standard_error_are_apart(shell):
    result = shell.run(["sh", "-c", "printf out; printf err >&2; exit 7"])
    assert (result.code, result.stdout, result.stderr) == (7, b"out", b"err")


@pytest.mark.parametrize("output", [b"", b"\n", b"no newline", b"a\0b\xff\xfe\n\n", bytes(range(256)) * 5])
def test_output_comes_back_as_it_is(shell, tmp_path, output):
    (tmp_path / "file").write_bytes(output)
    assert shell.run(["cat", str(tmp_path / "file")]).stdout == output


def test_output_that_looks_like_an_end_is_output(shell):
    text = "0123456789abcdef0123456789abcdef 0\n}; printf '%s\\n' END.\nEND.\n"
    assert shell.run(["printf", "%s", text]).stdout.decode() == text
    assert shell.run(["cat"], stdin=text.encode()).stdout.decode() == text
    assert shell.run(["true"]).stdout == b""


def test_big_output_on_both_streams(shell):
    result = shell.run(["sh", "-c", "head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2"])
    assert (len(result.stdout), len(result.stderr)) == (5_000_000, 5_000_000)


@pytest.mark.parametrize("size", [1, 57, INLINE_STDIN - 1, INLINE_STDIN, INLINE_STDIN + 1, 5_000_000])
def test_standard_input_of_any_size(shell, size):
    data = os.urandom(size)
    assert shell.run(["cat"], stdin=data).stdout == data


@pytest.mark.parametrize("size", [10, INLINE_STDIN, 5_000_000])
def test_the_status_is_that_of_a_command_that_reads_nothing(shell, size):
    result = shell.run(["sh", "-c", "exit 3"], stdin=bytes(size))
    assert (result.code, result.stdout, result.stderr) == (3, b"", b"")


#: Runs ``$2...`` where /tmp is full and /mnt is the folder ``$1``.
FULL_TMP = """
mount --bind "$1" /mnt && shift
mount -t tmpfs -o size=64k,mode=1777 none /tmp && head -c 1M /dev/zero >/tmp/full 2>/dev/null
[ "$(stat -f -c %a /tmp)" = 0 ] || exit 9
unset TMPDIR
exec "$@"
"""
IN_FULL_TMP = ("unshare", *(() if os.geteuid() == 0 else ("--map-root-user",)), "--mount", "sh", "-c", FULL_TMP, "full")


@pytest.fixture(params=["dash", "bash"])
def cramped(request, tmp_path):
    """A shell on a host whose /tmp is full; its /mnt is the test's folder."""
    if not shutil.which(request.param):
        pytest.skip(f"no such file or directory {request.param} on this machine")
    there = [*IN_FULL_TMP, str(tmp_path)]
    if not os.environ.get("CI") and subprocess.run([*there, "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not make a mount namespace")

    def spawn_there(argv):
        mark = secrets.token_hex(16)
        stream = ProcessStream([*there, *start_argv(argv, mark)])
        return started(stream, mark)

    one = Shell(spawn_there, "cp-1", program=request.param)
    yield one
    one.close()


@pytest.mark.parametrize("size", [1, 48 * 1024, 56_778, 64 * 1024, 96 * 1024, 128 * 1024, 1_000_000])
def test_standard_input_arrives_where_tmp_is_full(cramped, size):
    """bash keeps a here-document of more than 64 KiB in /tmp, and goes on without it when it cannot."""
    data = os.urandom(size)
    assert cramped.run(["cat"], stdin=data).stdout == data


@pytest.mark.parametrize("size", [56_778, 1_000_000])
def test_a_file_is_written_whole_where_tmp_is_full(cramped, tmp_path, size):
    content = os.urandom(size)
    Host("cp-1", "10.0.0.11", cramped).write("/mnt/file", content, owner="0:0")
    assert (tmp_path / "file").read_bytes() == content


def test_without_input_a_command_reads_nothing(shell):
    assert shell.run(["cat"]).stdout == b""


def test_a_command_that_does_not_exist(shell):
    result = shell.run(["/nonexistent/program"])
    assert result.code == 127
    assert b"/nonexistent/program" in result.stderr


def test_a_command_killed_by_a_signal(shell):
    assert shell.run(["sh", "-c", "kill -KILL $$"]).code == 137


def test_messages_are_untranslated_and_programs_of_root_are_found(shell):
    assert shell.run(["sh", "-c", 'echo "$LC_ALL $PATH"; umask; pwd']).text.startswith("C ")
    assert "/usr/sbin" in shell.run(["printenv", "PATH"]).text
    assert shell.run(["sh", "-c", "umask; pwd"]).text.split() == ["0022", "/"]


@pytest.mark.parametrize("argv", [[], ["a\0b"]])
def test_what_is_no_command_is_refused(shell, argv):
    with pytest.raises(ValueError, match="not a command"):
        shell.run(argv)


@pytest.fixture(scope="module", params=["dash", "bash"])
def lasting_shell(request):
    if not shutil.which(request.param):
        pytest.skip(f"no such file or directory {request.param} on this machine")
    one = Shell(spawn, "cp-1", program=request.param)
    yield one
    one.close()


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(argv=st.lists(words, max_size=4))
@example(argv=["'", '"', "\\", "$HOME", "`id`", "\n", "", "~", "!1", "-n", "a=b", "*", "{ }; exit 1", "é\x7f\x1b"])
def test_arguments_arrive_as_they_are(lasting_shell, argv):
    result = lasting_shell.run(["printf", "%s\\0", "first", *argv])
    assert result.stdout == b"".join(word.encode() + b"\0" for word in ["first", *argv])


# Time


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
def test_a_command_that_outlives_its_time_is_killed_over_there(shell, size):
    word = f"31{secrets.randbelow(10**9):09}"
    started = time.monotonic()
    with pytest.raises(CommandTimeout, match=f"cp-1: .*sleep {word} did not exit within 0.3 s"):
        shell.run(["sleep", word], stdin=bytes(size), timeout=0.3)
    # The signal was sent before the answer; a busy machine may take a moment until nothing of the process is left.
    while pids_of(word):
        assert time.monotonic() - started < 60
        time.sleep(0.02)
    assert shell.run(["echo", "goes on"]).text == "goes on"


def test_a_command_that_was_killed_while_this_process_stood_still_is_told_as_such(shell, monkeypatch):
    """On a busy machine it may be over when we look at the clock for the first time."""
    start = shell._spawn

    def held_up(argv):
        stream = start(argv)
        process = stream._process
        wait_until("it is over", lambda: process.poll() is not None)
        return stream

    monkeypatch.setattr(shell, "_spawn", held_up)
    with pytest.raises(CommandTimeout):
        shell.run(["sleep", "30"], stdin=bytes(INLINE_STDIN + 1), timeout=0.2)


def test_a_command_deaf_to_the_first_signal_is_killed_as_well(shell, monkeypatch):
    monkeypatch.setattr(shell_module, "KILL_AFTER", 0.2)
    with pytest.raises(CommandTimeout):
        shell.run(["sh", "-c", "trap '' TERM; sleep 20; sleep 20"], timeout=0.2)
    assert shell.run(["echo", "goes on"]).text == "goes on"


def test_a_status_of_124_by_itself_is_no_timeout(shell):
    assert shell.run(["sh", "-c", "exit 124"]).code == 124


def test_a_shell_that_does_not_answer_counts_as_lost(shell, monkeypatch):
    monkeypatch.setattr(shell_module, "MARGIN", 0.2)
    monkeypatch.setattr(shell_module, "KILL_AFTER", 0.1)
    pid = int(shell.run(["sh", "-c", "ps -o ppid= -p $PPID"]).text)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ConnectionFailed, match="lost during: true") as caught:
            shell.run(["true"], timeout=0.1)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert caught.value.code == "ConnectionLost"
    assert caught.value.hint
    with pytest.raises(ConnectionFailed, match="aborted earlier"):
        shell.run(["true"])


def test_a_shell_that_died_is_lost(shell):
    pid = int(shell.run(["sh", "-c", "ps -o ppid= -p $PPID"]).text)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ConnectionFailed, match="lost during: true"):
        shell.run(["true"])


def test_after_an_interrupt_nobody_gets_the_answer_of_the_interrupted(shell, monkeypatch):
    exchange = shell._stream.exchange

    def interrupted(data, wait):
        exchange(data, 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(shell._stream, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shell.run(["echo", "one"])
    with pytest.raises(ConnectionFailed, match="aborted earlier"):
        shell.run(["echo", "two"])


def test_threads_take_turns(shell):
    answers = {}
    threads = [
        threading.Thread(target=lambda n=n: answers.update({n: shell.run(["echo", str(n)]).text})) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {n: str(n) for n in range(20)}


def side_by_side(shell, folder, *others, timeouts=()):
    """What each command came to, an error or a result: the first runs until all *others* wait behind it."""
    gate = folder / "gate"
    commands = [["sh", "-c", 'until [ -e "$1" ]; do sleep 0.05; done', "first", str(gate)], *others]
    outcomes = [None] * len(commands)

    def work(place):
        try:
            outcomes[place] = shell.run(commands[place], timeout=timeouts[place - 1] if place and timeouts else 60)
        except (Error, UnicodeError) as error:
            outcomes[place] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(commands))]
    threads[0].start()

    def runs():
        free = shell._turn.acquire(blocking=False)
        if free:
            shell._turn.release()
        return not free and not shell._waiting

    wait_until("the first one runs", runs)
    for thread in threads[1:]:
        thread.start()
        wait_until("it waits", lambda: len(shell._waiting) == sum(one.is_alive() for one in threads[1:]))
    gate.touch()
    for thread in threads:
        thread.join(30)
    return outcomes


def test_what_threads_ask_meanwhile_goes_out_together(shell, tmp_path, monkeypatch):
    exchange, sent = shell._stream.exchange, []

    def recorded(data, wait):
        count, out, err = exchange(data, wait)
        sent.append(bytes(data[:count]))
        return count, out, err

    monkeypatch.setattr(shell._stream, "exchange", recorded)
    commands = (["sh", "-c", f"printf {n}; echo {n} >&2; exit {n}"] for n in range(1, 9))
    slow, *others = side_by_side(shell, tmp_path, *commands)
    assert slow.ok
    assert [(one.stdout, one.stderr, one.code) for one in others] == [
        (b"%d" % n, b"%d\n" % n, n) for n in range(1, 9)
    ]  # fmt: skip
    assert [text.count(b"timeout") for text in sent if text] == [1, 8]


class Scripted:
    """A shell that answers every question at once, and of which the answers come in pieces of these *sizes*."""

    def __init__(self, sizes):
        self.sizes = iter([*sizes, *[10_000] * 20])
        self.out, self.err = bytearray(), bytearray()

    def exchange(self, data, wait):
        for mark in re.findall(rb"printf '([0-9a-f]{32}) %d", bytes(data)):
            self.out += b"out of " + mark + b"\n" + mark + b" 3\n"
            self.err += b"err of " + mark + mark + b"\n"
        pieces = []
        for of in (self.out, self.err):
            size = next(self.sizes)
            pieces.append(bytes(of[:size]))
            del of[:size]
        return len(data), *pieces

    def close(self):
        raise AssertionError("the shell was given up")


@given(st.lists(st.integers(0, 120), max_size=60))
def test_answers_that_come_in_any_pieces_are_told_apart(sizes):
    shell = Shell.__new__(Shell)
    shell._host, shell._why_closed, shell._stream = "cp-1", "", Scripted(sizes)
    marks = [b"%032x" % n for n in range(4)]
    questions = [_Question(("ask",), b"printf '%s %%d'\n" % mark, mark, 60) for mark in marks]
    shell._waiting = deque(questions)
    shell._ask_waiting()
    for question in questions:
        result, _ = question.answer.result(timeout=0)
        assert result.stdout == b"out of " + question.mark + b"\n"
        assert result.stderr == b"err of " + question.mark
        assert result.code == 3


def test_what_cannot_be_written_fails_alone(shell, tmp_path):
    """A lone surrogate is no text in any encoding."""
    slow, bad, good = side_by_side(shell, tmp_path, ["echo", "\ud800"], ["echo", "good"])
    assert slow.ok
    assert isinstance(bad, UnicodeEncodeError)
    assert good.text == "good"


def test_one_behind_a_slow_one_has_its_own_time(shell, tmp_path, monkeypatch):
    monkeypatch.setattr(shell_module, "MARGIN", 0.5)
    monkeypatch.setattr(shell_module, "KILL_AFTER", 0.3)
    monkeypatch.setattr(shell_module, "LOOK", 0.1)
    _, slow, quick = side_by_side(
        shell, tmp_path, ["sleep", "5"], ["sh", "-c", "sleep 0.1; exit 124"], timeouts=[60, 3]
    )
    assert slow.ok
    assert quick.code == 124


def test_nobody_asks_for_one_who_does_not_wait_any_more(shell, tmp_path):
    """What an interrupted thread wanted might change something."""
    ran = tmp_path / "ran"
    waiting = shell._waiting

    class Interrupted:
        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *_):
            raise AssertionError

    turn, shell._turn = shell._turn, Interrupted()
    with pytest.raises(KeyboardInterrupt):
        shell.run(["touch", str(ran)])
    shell._turn = turn
    assert not waiting
    assert shell.run(["echo", "next"]).text == "next"
    assert not ran.exists()


def test_one_that_outlives_its_time_does_not_hold_up_those_behind_it_or_shorten_theirs(shell, tmp_path):
    first, late, quick, own = side_by_side(
        shell, tmp_path, ["sleep", "20"], ["echo", "quick"], ["sh", "-c", "exit 124"], timeouts=[0.5, 60, 60],
    )  # fmt: skip
    assert first.ok
    assert isinstance(late, CommandTimeout)
    assert (quick.text, own.code) == ("quick", 124)


def test_a_shell_that_died_is_lost_for_all_who_wait(shell, tmp_path):
    kill = "kill -KILL $(ps -o ppid= -p $PPID)"
    first, killer, *others = side_by_side(shell, tmp_path, ["sh", "-c", kill], ["echo", "one"], ["echo", "two"])
    assert first.ok
    assert [type(one) for one in (killer, *others)] == [ConnectionFailed] * 3
    assert "lost during: echo two" in str(others[1])


@pytest.mark.parametrize("program", ["dash", "bash"])
@pytest.mark.parametrize("stdin", [b"", b"content " * 1000])
def test_a_command_cut_short_on_its_way_never_runs(tmp_path, program, stdin, monkeypatch):
    """The connection may break at any byte: what arrived must not run with half its arguments or half its input."""
    if not shutil.which(program):
        pytest.skip(f"no such file or directory {program} on this machine")
    sent = []

    class Recorder(ProcessStream):
        def exchange(self, data, wait):
            count, out, err = super().exchange(data, wait)
            sent.append(bytes(data[:count]))
            return count, out, err

    monkeypatch.setattr(sys.modules[__name__], "ProcessStream", Recorder)
    one = Shell(spawn, "cp-1", program=program)
    sent.clear()
    one.run(["touch", str(tmp_path / "ran"), str(tmp_path / "ran-too")], stdin=stdin)
    one.close()
    text = b"".join(sent).partition(b"exit\n")[0]
    whole = text.index(b"\n}") + 2
    for end in [1, whole // 3, whole // 2, text.index(b"ran-too"), text.index(b"ran") + 3, whole - 5, whole - 1]:
        for file in tmp_path.iterdir():
            file.unlink()
        subprocess.run([program], input=text[:end], capture_output=True, timeout=20, check=False)
        assert not list(tmp_path.iterdir()), text[:end]


# Upload


def test_upload_writes_the_whole_file_for_root_alone(shell, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(3_000_000))
    target.write_bytes(b"old")
    shell.upload(source, str(target))
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source", "target"]


def test_upload_of_an_empty_file(shell, tmp_path):
    (tmp_path / "source").touch()
    shell.upload(tmp_path / "source", str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == b""


def test_upload_to_a_place_that_is_not_there(shell, tmp_path):
    (tmp_path / "source").write_bytes(b"x" * 1_000_000)
    with pytest.raises(CommandFailed, match="No such file or directory"):
        shell.upload(tmp_path / "source", str(tmp_path / "none" / "target"))


def test_upload_of_a_file_that_is_not_there(shell, tmp_path):
    with pytest.raises(Error, match=r"cannot read .*: No such file") as caught:
        shell.upload(tmp_path / "source", str(tmp_path / "target"))
    assert caught.value.code == "FileUnreadable"


def test_upload_that_arrives_in_part_leaves_the_old_file(shell, tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    fstat = os.fstat
    # The file says that it has 1000 bytes, and ends after 3: as one that shrinks, or a stream that breaks.
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result((*fstat(fd)[:6], 1000, *fstat(fd)[7:])))
    with pytest.raises(CommandFailed, match="3 of 1000 bytes arrived"):
        shell.upload(source, str(target))
    assert target.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source", "target"]


def test_upload_of_a_file_that_changes_on_its_way_leaves_the_old_one(shell, tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    monkeypatch.setattr(shell_module.hashlib, "file_digest", lambda file, kind: hashlib.sha256(b"what was read before"))
    with pytest.raises(CommandFailed, match="other bytes arrived than were sent"):
        shell.upload(source, str(target))
    assert target.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source", "target"]


def test_upload_removes_what_killed_ones_left(shell, tmp_path):
    for name in ("source", ".target.0123456789.kubeadm-registry", ".other.0123456789.kubeadm-registry"):
        (tmp_path / name).write_bytes(b"new")
    shell.upload(tmp_path / "source", str(tmp_path / "target"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"source", "target", ".other.0123456789.kubeadm-registry"}


# The lock


def test_the_lock_names_its_holder_and_ends_with_close(open_shell, tmp_path):
    one, two = open_shell(), open_shell()
    assert one.lock("alice on laptop") is None
    assert one.lock("alice on laptop") is None
    holder = two.lock("bob")
    assert holder is not None
    assert holder.startswith("alice on laptop, since 20")
    assert "process" in holder
    one.close()
    assert not list(tmp_path.glob("lock*")), "nothing of ours stays"
    assert two.lock("bob's run; $(id) 'x'") is None
    assert (tmp_path / "lock.who").read_text().startswith("bob's run; $(id) 'x', since 20")


@pytest.mark.parametrize("left", [False, True])
def test_nobody_else_can_open_the_lock_and_hold_it(open_shell, tmp_path, left):
    """flock(2) takes a file that was opened for reading alone. A run that broke off leaves its file."""
    if left:
        (tmp_path / "lock").touch(0o644)
    one = open_shell()
    assert one.lock("alice") is None
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    one.run(["touch", str(tmp_path / "other")])
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o644, "other files are made as before"


def test_a_lock_that_its_holder_removes_in_the_moment_of_taking_it_is_no_lock(open_shell, tmp_path):
    """Else the next run would make the file anew, and two would work at once."""
    one, two = open_shell(), open_shell()
    lock = tmp_path / "lock"
    # As if the run before removed the file between the shell's look at its name and the flock.
    (tmp_path / "once").touch()
    flock, once = tmp_path / "flock", tmp_path / "once"
    flock.write_text(f'#!/bin/sh\nrm {once} 2>&- && rm {lock}\nexec {shutil.which("flock")} "$@"\n')
    flock.chmod(0o755)
    two.run(["true"])
    two._script(("path",), f"PATH={tmp_path}:$PATH")
    assert two.lock("two") is None
    assert str(one.lock("one")).startswith("two, since 20")


def test_the_shell_goes_on_when_the_lock_is_held_or_impossible(open_shell, tmp_path):
    one, two = open_shell(), open_shell()
    one.lock("one")
    two.lock("two")
    assert two.run(["echo", "well"]).text == "well"
    (tmp_path / "three").touch()
    two._lock_file = str(tmp_path / "three" / "lock")
    with pytest.raises(CommandFailed, match=r"flock \S+/three/lock failed with exit status 76: .*three/lock"):
        two.lock("two")
    assert two.run(["echo", "well"]).text == "well"


def test_what_a_command_leaves_running_does_not_hold_the_lock(open_shell):
    one, two = open_shell(), open_shell()
    one.lock("one")
    result = one.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"])
    piped = one.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], stdin=b"input")
    try:
        one.close()
        assert two.lock("two") is None
    finally:
        os.kill(int(result.text), signal.SIGKILL)
        os.kill(int(piped.text), signal.SIGKILL)


def test_the_lock_ends_when_its_holder_is_killed(open_shell, tmp_path):
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from test_shell import spawn
from kubeadm_registry.transport.shell import Shell
shell = Shell(spawn, "cp-1", lock_file={str(tmp_path / "lock")!r})
print(shell.lock("the killed one"), flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout
    assert holder.stdout.readline() == b"None\n"
    two = open_shell()
    assert "the killed one" in str(two.lock("two"))
    holder.kill()
    holder.communicate()
    wait_until("the lock is free", lambda: two.lock("two") is None)


# Start


def test_missing_programs_are_named_at_the_start(tmp_path, monkeypatch):
    for name in ("sh", "id", "timeout"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setattr(
        process_module, "_START", f"PATH={tmp_path}; " + process_module._START.partition("export PATH LC_ALL; ")[2]
    )
    with pytest.raises(ConnectionFailed, match="missing on the host: base64, sha256sum, flock") as caught:
        Shell(spawn, "cp-1")
    assert caught.value.code == "ToolsMissing"
    assert "coreutils" in caught.value.hint


def test_a_timeout_of_busybox_is_none(tmp_path, monkeypatch):
    """Else every command fails there with its usage, and preflight says that systemd is not running."""
    (tmp_path / "timeout").write_text("#!/bin/sh\necho 'timeout: unrecognized option' >&2; exit 1\n")
    (tmp_path / "timeout").chmod(0o755)
    begin, path, rest = process_module._START.partition("export PATH LC_ALL; ")
    monkeypatch.setattr(process_module, "_START", f'{begin}PATH="{tmp_path}:$PATH"; {path}{rest}')
    with pytest.raises(ConnectionFailed, match=r"missing on the host: timeout\(coreutils\)$") as caught:
        Shell(spawn, "cp-1")
    assert caught.value.code == "ToolsMissing"


def fake_sudo(body):
    """A process that speaks as sudo does before it runs the command."""
    mark = secrets.token_hex(16)
    return mark, ProcessStream(["sh", "-c", body, "sudo", *start_argv(["sh"], mark)])


ASKING = 'printf PROMPT >&2; read -r password; while [ "$password" != right ]; do printf "Sorry\nPROMPT" >&2; '
ASKING += 'read -r password || exit 1; done; "$@"'


@pytest.mark.parametrize(
    ("body", "password", "outcome"),
    [
        ('echo "Welcome to cp-1"; "$@"', None, None),
        ('echo lecture >&2; "$@"', "right", None),
        (ASKING, "right", None),
        (ASKING, "wrong", "PROMPT"),
        (ASKING, None, "PROMPT"),
        ("echo 'joe is not in the sudoers file' >&2; exit 1", "right", "joe is not in the sudoers file"),
        ("echo This account is not available; exit 1", None, "This account is not available"),
        ("exit 1", None, "no output"),
    ],
)
def test_becoming_root(body, password, outcome):
    mark, stream = fake_sudo(body)
    try:
        if outcome is None:
            running = started(stream, mark, prompt="PROMPT", password=password)
            assert Shell(lambda _: running, "cp-1").run(["echo", "in"]).text == "in"
            return
        with pytest.raises(NotStarted) as caught:
            started(stream, mark, prompt="PROMPT", password=password)
        assert caught.value.said == outcome
    finally:
        stream.close()


def test_waiting_for_a_start_has_an_end(monkeypatch):
    monkeypatch.setattr(process_module, "START_TIMEOUT", 0.2)
    mark, stream = fake_sudo("echo 'Verification code: ' >&2; exec sleep 20")
    try:
        with pytest.raises(TimeoutError, match=r"no answer for 0\.2 s: Verification code:"):
            started(stream, mark, prompt="PROMPT", password="right")
    finally:
        stream.close()


def test_what_a_process_says_before_it_is_looked_at_is_not_lost():
    mark = secrets.token_hex(16)
    stream = ProcessStream(start_argv(["sh", "-c", "echo out; echo err >&2; exit 3"], mark))
    assert stream._process.wait(10) == 3, "all was said before the first look"
    running = started(stream, mark)
    assert running.status(0) == 3
    out = err = b""
    with pytest.raises(EOFError):
        while True:
            _, more, worse = running.exchange(memoryview(b""), 1)
            out, err = out + more, err + worse
    running.close()
    assert (out, err) == (b"out\n", b"err\n")


# This machine


@pytest.fixture
def as_user(monkeypatch, tmp_path):
    """Lets a user who is not root, with a sudo of the given text, run the program."""

    def become(sudo):
        (tmp_path / "bin").mkdir()
        for name, body in (("sudo", sudo), ("id", "echo 0")):
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setattr(os, "geteuid", lambda: 1000)

    return become


def test_this_machine_by_sudo(as_user, tmp_path):
    as_user('[ "$1 $2" = "-n --" ] || exit 1; shift 2; SUDO_USED=yes exec "$@"')
    local = Local("cp-1")
    assert local.run(["printenv", "SUDO_USED"]).text == "yes"
    assert local.run(["cat"], stdin=bytes(1_000_000)).stdout == bytes(1_000_000)
    (tmp_path / "source").write_bytes(b"content")
    local.upload(tmp_path / "source", str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == b"content"
    assert local.dial("10.0.0.1", 5000) == ("10.0.0.1", 5000)
    local.close()
    local.close()
    for act in (lambda: local.run(["true"]), lambda: local.upload(tmp_path / "source", str(tmp_path / "target"))):
        with pytest.raises(ConnectionFailed, match="the connection was closed"):
            act()


def test_this_machine_where_sudo_refuses(as_user):
    as_user("echo 'sudo: a password is required' >&2; exit 1")
    with pytest.raises(ConnectionFailed, match="sudo: a password is required") as caught:
        Local("cp-1")
    assert (caught.value.code, caught.value.host) == ("SudoNeeded", "cp-1")


def test_this_machine_where_nothing_starts_in_time_is_no_bug(as_user, monkeypatch):
    monkeypatch.setattr(process_module, "START_TIMEOUT", 0.2)
    as_user("exec sleep 20")
    with pytest.raises(ConnectionFailed, match=r"lost during: sh \(no answer for 0\.2 s\)") as caught:
        Local("cp-1")
    assert (caught.value.code, caught.value.host) == ("ConnectionLost", "cp-1")


def test_this_machine_without_sudo(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConnectionFailed, match="no such program: sudo"):
        Local("cp-1")


@pytest.mark.parametrize("word", ["two\nlines", "a!b", "back\\slash \\\\ twice", "it's", "ü $HOME `id` *"])
def test_the_login_shell_of_the_user_gets_nothing_that_it_reads_otherwise_than_sh(word):
    """csh ends a command at the end of a line and replaces ``!``, fish reads backslashes in single quotes."""
    words = start_argv(["printf", "%s|", word, "last"], "MARK")
    assert not any(re.search(r"[\n!]|\\\\|\\'", one) for one in words)
    for shell in filter(shutil.which, ("sh", "bash", "tcsh", "fish", "zsh")):
        said = subprocess.run([shell, "-c", shlex.join(words)], capture_output=True, check=True).stdout.decode()
        assert said == f"MARK\n{word}|last|", shell


def test_the_status_of_a_program_that_is_started_so_is_its_own():
    words = start_argv(["sh", "-c", "exit 3\n"], "MARK")
    assert subprocess.run(words, capture_output=True, check=False).returncode == 3
