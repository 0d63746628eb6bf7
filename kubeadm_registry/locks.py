"""A lock between runs on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from kubeadm_registry.disk import naming


@contextlib.contextmanager
def locked(file: Path, busy: Exception, *, deadline: float) -> Iterator[None]:
    """Hold the lock *file*, whose folder is there; raises *busy* if another run holds it for *deadline* seconds.

    It ends with the process, however that ends (flock(2)). Raises OSError, as on a network file system without locks.
    """
    end = time.monotonic() + deadline
    with file.open("ab") as handle:
        while True:
            try:
                with naming(file):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise busy from error
                time.sleep(0.1)
            else:
                break
        yield
