"""Work that a child of the program does, so that it can end well what it has in hand when the program is killed.

A registry forgets all of an upload that is cut off in the middle of a request (docs/decisions/0008), and nothing can be
done in a process that gets SIGKILL. Its child can: it ends those requests, notes where they go on, and begins no other.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from kubeadm_registry.errors import Error

#: Seconds that the child has to end what it has in hand.
GRACE = 30.0


def run_in_child() -> threading.Event:
    """Return in a child of this process, which is to do the work; the process itself ends with the child's exit code.

    The event is set when the process was killed, and the child is ended after GRACE seconds, or interrupted: nothing
    more is to begin. Raises SystemExit in the process, or Error if the child was killed, and KeyboardInterrupt in the
    child when the process gets SIGINT. A process that has threads cannot be split: it does the work itself.
    """
    if threading.active_count() > 1:
        return threading.Event()
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = os.pipe()  # the process holds one end until it ends, however it ends
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until both know what to do with it
    child = os.fork()
    if child:
        os.close(ours)
        _on_interrupt(lambda number, _frame: os.kill(child, number))  # Ctrl-C: the child is in no terminal's group
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _end_as(child)
    os.close(theirs)
    os.setsid()  # what ends a whole process group, as a shell does with a job, is not to reach it
    stop = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.default_int_handler(number, frame)

    _on_interrupt(interrupt)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    threading.Thread(target=_watch, args=(ours, stop), name="parent", daemon=True).start()
    return stop


def _end_as(child: int) -> NoReturn:
    """Wait until *child* has ended, and end as it did."""
    _, status = os.waitpid(child, 0)
    _on_interrupt(signal.default_int_handler)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        raise Error(
            f"the worker process was killed by {signal.Signals(-code).name}", code="Killed",
            hint="probably out of memory (check dmesg); run the command again to resume",
        )  # fmt: skip
    sys.exit(code)


def _on_interrupt(handler: Callable[[int, FrameType | None], object]) -> None:
    """What to do with SIGINT, unless it is ignored, as in what a script has in its background."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _watch(end: int, stop: threading.Event) -> None:
    """Set *stop* when the pipe's other end is closed, and end this process when it does not end by itself."""
    os.read(end, 1)
    stop.set()
    time.sleep(GRACE)
    os._exit(1)
