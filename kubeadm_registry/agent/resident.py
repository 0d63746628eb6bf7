"""Keeps the agent in memory (mlockall(2)).

Where memory is short the kernel drops code and reads it from the disk again, page by page: an agent that waits for that
is late, seems dead to its peers, and systemd's watchdog ends it.
"""

from __future__ import annotations

#: MCL_CURRENT, MCL_FUTURE and MCL_ONFAULT of linux/mman.h: a page stays once it was used, and no other is brought in.
_FLAGS = 1 | 2 | 4


def stay() -> str:
    """Keep all that this process uses in memory from now on; why that cannot be, or nothing.

    It takes CAP_IPC_LOCK, and does not outlive exec(3).
    """
    try:
        import ctypes  # noqa: PLC0415  a small Python of a distribution may lack it
    except ImportError as error:
        return str(error)
    library = ctypes.CDLL(None, use_errno=True)
    return "" if library.mlockall(_FLAGS) == 0 else f"mlockall: error {ctypes.get_errno()}"
