"""``python -m kubeadm_registry.helper.door``: pass standard input on to the helper, and its answer back.

sshd starts it for the operator's key as a user who may connect to the helper's socket and nothing else. What the owner
of the key asked sshd for, and the arguments, are ignored.
"""

from __future__ import annotations

import shutil
import socket
import sys

from kubeadm_registry.paths import HELPER_SOCKET

#: systemd closes what is one connection too many, without a word to whoever comes by it.
_NOTHING = (
    "it has closed the connection, as it does while as many questions as its socket unit allows (MaxConnections) are "
    "being answered; else see `journalctl -u 'kubeadm-registry-helper*'` on that node"
)


def main() -> int:
    """Pass one question on; the exit status, 1 if nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX) as helper:
            helper.connect(HELPER_SOCKET)
            with helper.makefile("rwb") as stream:
                shutil.copyfileobj(sys.stdin.buffer, stream)
                stream.flush()
                helper.shutdown(socket.SHUT_WR)
                first = stream.read(1)
                if not first:
                    raise ConnectionResetError(_NOTHING)
                sys.stdout.buffer.write(first)
                shutil.copyfileobj(stream, sys.stdout.buffer)
                sys.stdout.flush()
    except (BrokenPipeError, ConnectionResetError):
        sys.stderr.write(f"the helper does not answer: {_NOTHING}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"the helper does not answer: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
