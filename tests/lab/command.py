"""Commands of this machine, waits with a deadline, locks and progress lines."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class LabError(Exception):
    """The lab cannot do what was asked; the message says what and why."""


def say(line: str) -> None:
    """Tell a person what takes a while."""
    sys.stderr.write(f"lab: {line}\n")
    sys.stderr.flush()


def run(
    *argv: str | Path,
    check: bool = True,
    timeout: float = 60,
    stdin: str = "",
    shown: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run *argv*, *timeout* seconds at most, and return its status and output as text.

    Raises LabError with the command's own words if it fails (unless *check* is false) or does not end;
    *shown* stands for the command there.
    """
    command = [str(word) for word in argv]
    line = shown or shlex.join(command)
    try:
        result = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is not installed on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"still running after {timeout:g} s: {line}") from error
    if check and result.returncode != 0:
        words = (result.stderr.strip() or result.stdout.strip())[-2000:]
        raise LabError(f"{line} ended with status {result.returncode}: {words}")
    return result


def build(
    *argv: str | Path,
    log: Path,
    environment: dict[str, str] | None = None,
    progress: Callable[[float], None] | None = None,
    every: float = 15,
) -> None:
    """Run a long command, adding its output to the file *log*; raises LabError with the log's end if it fails.

    *progress* is called meanwhile, *every* so many seconds, with the seconds since the start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(word) for word in argv]
    began = time.monotonic()
    with log.open("ab") as output:
        try:
            running = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except FileNotFoundError as error:
            raise LabError(f"{command[0]} is not installed on this machine") from error
        code = None
        try:
            while code is None:
                try:
                    code = running.wait(timeout=every)
                except subprocess.TimeoutExpired:
                    if progress is not None:
                        progress(time.monotonic() - began)
        finally:
            if code is None:
                running.kill()
                running.wait()
    if code != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise LabError(f"{shlex.join(command)} ended with status {code}; whole output in {log}, its end:\n{end}")


def wait_until(what: str, condition: Callable[[], object], *, seconds: float, every: float = 0.1) -> None:
    """Ask *condition* until it is true; raises LabError naming *what* after *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:g} s for {what}, in vain")
        time.sleep(every)


def wait_past(what: str, moment: float) -> None:
    """Wait until the time *moment* (seconds since 1970) is over; raises LabError naming *what* if it does not come."""
    wait_until(what, lambda: time.time() > moment, seconds=moment - time.time() + 30, every=1)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of the file *path*, which the kernel releases when the process ends, however it ends.

    With ``wait=False`` raises LabError naming the holder if another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            raise LabError(f"process {file.read().strip() or '(unknown)'} works with {path.parent}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGTERM end this process like SIGINT does: through every ``finally``."""

    def unwind(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def cache() -> Path:
    """Where base systems and programs are kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "kubeadm-registry"


def mounts(pid: int | str = "self") -> list[str]:
    """Where something is mounted as the process *pid* sees it, in the order of mounting.

    Also bind mounts, which ``os.path.ismount`` overlooks.
    """
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in lines]


def mounted(path: Path) -> bool:
    """Whether something is mounted at *path*."""
    return str(path) in mounts()


def missing(programs: Sequence[str]) -> list[str]:
    """Those of *programs* that this machine does not have; sbin is looked at also when PATH lacks it."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    places = [Path(place) for place in path.split(os.pathsep) if place]
    return [name for name in programs if not any(os.access(place / name, os.X_OK) for place in places)]
