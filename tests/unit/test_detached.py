"""A command whose work a child does: real processes, which are killed."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

#: Work in pieces, until it is told to stop; every line is there at once.
PIECES = """\
import sys, threading
from kubeadm_registry.images import detached
from kubeadm_registry.errors import Error
{before}
try:
    stop = detached.run_in_child()
except Error as error:
    sys.exit(f"{{error.code}}: {{error.message}}")
for number in range({pieces}):
    try:
        print("begin", number, flush=True)
        threading.Event().wait({seconds})
    except KeyboardInterrupt:
        sys.exit(130 if stop.is_set() else 131)
    print("end", number, flush=True)
    if stop.is_set():
        sys.exit(1)
sys.exit(7)
"""


def begun(pieces: int, seconds: float, before: str = "") -> subprocess.Popen[str]:
    """A process that has begun its first piece."""
    script = PIECES.format(pieces=pieces, seconds=seconds, before=before)
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", script], text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    # Byte by byte: what a reader had buffered of the lines behind it, ``communicate`` would not return.
    said = b""
    while (byte := os.read(process.stdout.fileno(), 1)) not in (b"", b"\n"):
        said += byte
    assert said == b"begin 0"
    return process


def child_of(process: subprocess.Popen[str]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def test_it_ends_with_the_childs_exit_code() -> None:
    process = begun(2, 0.01)
    said, wrong = process.communicate(timeout=30)
    assert (process.returncode, said, wrong) == (7, "end 0\nbegin 1\nend 1\n", "")


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_what_is_in_hand_ends_after_a_kill_and_nothing_more_begins(kill: Callable[[int, int], None]) -> None:
    process = begun(1000, 2)  # so long the kill may take to come and to be noticed
    kill(process.pid, signal.SIGKILL)
    said, wrong = process.communicate(timeout=30)  # until the child has closed its end of the pipe, too
    assert (process.returncode, said, wrong) == (-signal.SIGKILL, "end 0\n", "")


def test_a_child_that_hangs_is_ended() -> None:
    process = begun(1, 1000, before="detached.GRACE = 0.1")
    process.kill()
    assert process.communicate(timeout=30) == ("", "")


def test_an_interruption_reaches_the_child() -> None:
    process = begun(1, 1000)
    process.send_signal(signal.SIGINT)
    said, wrong = process.communicate(timeout=30)
    assert (process.returncode, said, wrong) == (130, "", "")


def test_a_background_job_ignores_an_interruption() -> None:
    process = begun(2, 2, before="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)")
    process.send_signal(signal.SIGINT)
    os.kill(child_of(process), signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (7, "end 0\nbegin 1\nend 1\n")


def test_a_child_that_was_killed_is_told() -> None:
    process = begun(1, 1000)
    os.kill(child_of(process), signal.SIGKILL)
    said, wrong = process.communicate(timeout=30)
    assert (process.returncode, said) == (1, "")
    assert wrong == "Killed: the worker process was killed by SIGKILL\n"


THREADS = """\
import os, threading
from kubeadm_registry.images.detached import run_in_child
before = os.getpid()
done = threading.Event()
threading.Thread(target=done.wait).start()
stop = run_in_child()
print(os.getpid() == before, stop.is_set())
done.set()
"""


def test_a_process_with_threads_does_the_work_itself() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "True False\n"


PASSWORD = """\
import getpass, sys
from kubeadm_registry.images.detached import run_in_child
run_in_child()
print(f"length {len(getpass.getpass('Password: '))}", flush=True)
"""


def test_a_password_is_asked_for_at_the_terminal_without_an_echo() -> None:
    """The child has no terminal of its own, but stdin still is one."""
    screen, terminal = pty.openpty()
    argv = [sys.executable, "-W", "ignore", "-c", PASSWORD]
    process = subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    shown = b""
    while b"Password: " not in shown:
        shown += os.read(screen, 1000)
    os.write(screen, b"secret\n")
    with contextlib.suppress(OSError):  # the end of a terminal
        while more := os.read(screen, 1000):
            shown += more
    os.close(screen)
    assert process.wait(timeout=30) == 0, shown
    assert b"length 6" in shown
    assert b"secret" not in shown
