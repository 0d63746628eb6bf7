"""Keeps or ends connections to an address that moves, by the sockets of the processes that have them.

Run on the node, as root, with this source alone:

    python3 -I -c SOURCE keep PORT ADDRESS...
    python3 -I -c SOURCE own PORT ADDRESS...
    python3 -I -c SOURCE idle PORT SECONDS SOCKET,SOCKET ADDRESS...

``keep``: before the address leaves this node. The kernel sends nothing from an address that the node does not have,
unless the socket is transparent (ip(7), IP_TRANSPARENT); HAProxy may not make its sockets so. Those that are accepted
from now on inherit it.

``own``: when the VIP comes to this node or leaves it, the node's own connections to the VIP lead nowhere. A containerd
whose connection is reset fails the pull; one that reads the end of it in the middle of a layer asks for the rest. So
each of these sockets is copied from its owner and shut down for reading.

``idle``: what clients keep open for their next request ends, as HAProxy would end it later: where no byte came or went
for SECONDS, and none of the HAProxy processes behind the runtime SOCKETs has a request in hand.

Prints a JSON object: *ended*, how many (of ``keep``: how many are kept), and *trouble*.

Source: pidfd_getfd(2), proc_pid_net(5), HAProxy's management guide, "show sess"; that containerd resumes was measured.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

PIDFD_GETFD = 438  # the same on all architectures
ESTABLISHED = "01"
NOBODY = "0"  # the inode of a socket that its process has closed
GONE = (errno.EBADF, errno.ESRCH, errno.ENOTCONN, errno.EINVAL)  # its process has closed it meanwhile, or the peer
#: linux/in.h and linux/in6.h.
TRANSPARENT = {socket.AF_INET: (socket.IPPROTO_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}
#: Of struct tcp_info (linux/tcp.h): milliseconds since the last data was sent, and was received.
TCP_INFO_SIZE, LAST_SENT, LAST_RECEIVED = 60, 44, 52
DEADLINE = 5.0  # seconds, for each answer of HAProxy
#: Whom the kernel lets look into other processes (Yama.rst of Linux): by 3 nobody, also not root, until the next boot.
YAMA, NOBODY_MAY = Path("/proc/sys/kernel/yama/ptrace_scope"), "3"
SOURCE = re.compile(r" src=(\S+):(\d+) ")


def packed(text: str) -> bytes:
    """The address *text* as /proc/net/tcp6 has it: each word of four bytes in the order of this processor."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    raw = socket.inet_pton(family, text)
    words = [raw[place : place + 4] for place in range(0, len(raw), 4)]
    return b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)


def inodes(addresses: set[str], port: int, column: int, *, every: bool = False) -> set[str]:
    """The established sockets that have one of *addresses* and *port* in the *column* of /proc/net/tcp or tcp6.

    With *every* also those in another state, such as those that listen.
    """
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                address, _, at = words[column].partition(":")
                # One of IPv4 in a socket of IPv6 ends with the address.
                ours = int(at, 16) == port and any(address.endswith(one) for one in addresses)
                if ours and (words[3] == ESTABLISHED or (every and words[9] != NOBODY)):
                    found.add(words[9])
    return found


def owned(wanted: set[str]) -> Iterator[tuple[int, int]]:
    """Process and descriptor of each of the *wanted* sockets."""
    names = {f"socket:[{inode}]" for inode in wanted}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for descriptor in (process / "fd").iterdir():
                if str(descriptor.readlink()) in names:
                    yield int(process.name), int(descriptor.name)
        except OSError:
            continue  # it has ended meanwhile


def copied(process: int, descriptor: int) -> socket.socket:
    """The socket *descriptor* of *process*, which keeps it. Raises OSError."""
    handle = os.pidfd_open(process)
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, handle, descriptor, 0)
        if copy < 0:
            raise refused(ctypes.get_errno())
        return socket.socket(fileno=copy)
    finally:
        os.close(handle)


def refused(code: int) -> OSError:
    """Why the kernel copies no socket, which said *code*."""
    why = os.strerror(code)
    with suppress(OSError):
        if code == errno.EPERM and YAMA.read_text(encoding="ascii").strip() == NOBODY_MAY:
            why += ", by kernel.yama.ptrace_scope = 3: set it to 2 where it is set at boot (/etc/sysctl.d), and reboot"
    return OSError(code, why)


def busy(paths: Iterable[str]) -> set[tuple[str, int]]:
    """Address and port of each client whose request a HAProxy has in hand. Raises OSError."""
    found: set[tuple[str, int]] = set()
    for path in paths:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(DEADLINE)
            try:
                wire.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                continue
            wire.sendall(b"show sess\n")
            answer = b""
            while piece := wire.recv(65536):
                answer += piece
        found.update((host.strip("[]"), int(port)) for host, port in SOURCE.findall(answer.decode(errors="replace")))
    return found


def silent(wire: socket.socket, seconds: float) -> bool:
    """Whether no data came or went on *wire* for *seconds*."""
    told = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    return all(struct.unpack_from("=I", told, place)[0] >= seconds * 1000 for place in (LAST_SENT, LAST_RECEIVED))


def end(verb: str, port: int, words: list[str]) -> int:
    """Do what *verb* says; how many connections were ended. Raises OSError."""
    seconds, paths, addresses = (float(words[0]), words[1].split(","), words[2:]) if verb == "idle" else (0, [], words)
    forms = {packed(address).hex().upper() for address in addresses}
    ended = 0
    column = 2 if verb == "own" else 1  # at which end the address is
    wanted = inodes(forms, port, column, every=verb == "keep")
    for process, descriptor in owned(wanted):
        try:
            with copied(process, descriptor) as wire:
                if str(os.fstat(wire.fileno()).st_ino) not in wanted:
                    continue  # another one has the number by now
                if verb == "keep":
                    wire.setsockopt(*TRANSPARENT[wire.family], 1)
                elif verb == "own":
                    wire.shutdown(socket.SHUT_RD)
                elif wire.getpeername()[:2] not in busy(paths) and silent(wire, seconds):
                    # The last look is the kernel's: a request that came meanwhile has a client who waits for it.
                    wire.shutdown(socket.SHUT_RDWR)
                else:
                    continue
        except OSError as error:
            if error.errno not in GONE:
                raise
        else:
            ended += 1
    return ended


def main(arguments: list[str]) -> int:
    """See above. The exit status is 0 also where something went wrong: it is told."""
    verb, port, *words = arguments
    shown: dict[str, object] = {"ended": 0, "trouble": []}
    try:
        if (
            verb == "keep"
        ):  # first those that listen: what they accept until they are looked at is there the second time
            end(verb, int(port), words)
        shown["ended"] = end(verb, int(port), words)
    except OSError as error:
        shown["trouble"] = [str(error)]
    print(json.dumps(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
