"""Connections of a node that had the VIP and died end as that node would have ended them: by a FIN.

A client that only waits for data sends nothing, so nobody tells it that the other side is gone. Its TCP keepalive does,
half a minute later, by the RST of the node that has the VIP by then; containerd gives up its pull at that. After a FIN
in the middle of a layer it goes on with the rest by Range, and at once.

Three packets for each connection, which are those of RFC 9293 and RFC 5961 (section 4):

    here -> client   SYN, ACK    by any number; a client with such a connection answers where it stands
    client -> here   ACK         (challenge ACK), with the numbers that it has sent, and waits for
    here -> client   FIN, ACK    with these numbers: in order, so it is the end of the stream

The kernel here knows no such connection, and would answer the client by RST before the FIN is there. Rules in
``guard.nft`` hold that back for whom the agent has sent something in the last seconds, and mark what comes from there,
which is how the sockets here get these packets and no others. A SYN of such a client takes its connection out of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Callable, Optional

from kubeadm_registry.agent.clients import Client
from kubeadm_registry.agent.clock import clock

MARK = 0x2083
"""Of packets of these connections (``guard.nft``). kube-proxy, Calico and Cilium use other bits."""
MARK_BITS = 0xFFFF
"""Where it is; those above may have been set on the way to the socket, as Calico does for what its policy lets in."""
ASK_EVERY = 0.5  # seconds; a client answers no oftener (tcp_invalid_ratelimit)
TICK = 0.1
LASTS = 5.0  # seconds for all of it
AT_A_TIME = 256  # packets: the agent has other things to do
AT_ONCE = 64  # clients that are asked before their answers are read: some hundreds fit into a socket's buffer
FIN, SYN, RST, ACK = 1, 2, 4, 16
SEGMENT = struct.Struct("!HHIIBBHHH")
SO_ATTACH_FILTER = 26
#: struct sock_filter of linux/filter.h: load the packet's mark (SKF_AD_OFF + SKF_AD_MARK); if it is MARK take it, else
#: none of it.
FILTER = b"".join(
    struct.pack("=HBBI", *one)
    for one in (
        (0x20, 0, 0, 0xFFFFF000 + 20), (0x54, 0, 0, MARK_BITS), (0x15, 0, 1, MARK), (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    )
)  # fmt: skip


def segment(source: Client, target: Client, sequence: int, acknowledged: int, flags: int) -> bytes:
    """A TCP segment without options and data, with its checksum (RFC 9293, section 3.1)."""
    numbers = (source[1], target[1], sequence & 0xFFFFFFFF, acknowledged & 0xFFFFFFFF, 5 << 4, flags, 65535, 0, 0)
    head = SEGMENT.pack(*numbers)
    ends = ipaddress.ip_address(source[0]).packed + ipaddress.ip_address(target[0]).packed
    total = sum(struct.unpack(f"!{len(ends) // 2}H10H", ends + head)) + socket.IPPROTO_TCP + len(head)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head[:16] + struct.pack("!H", ~total & 0xFFFF) + head[18:]


@dataclass(frozen=True)
class Seen:
    """What a client's packet says of its connection: the numbers that it sends next, and that it waits for."""

    port: int
    flags: int
    sends: int
    awaits: int


def seen(packet: bytes, *, with_header: bool) -> Optional[Seen]:
    """What the TCP segment in *packet* says; None if that is none. *with_header*: IPv4's comes before it."""
    start = (packet[0] & 15) * 4 if with_header and packet else 0
    if len(packet) < start + SEGMENT.size:
        return None
    port, _, sequence, acknowledged, offset, flags, *_ = SEGMENT.unpack_from(packet, start)
    length = len(packet) - start - (offset >> 4) * 4
    return Seen(port, flags, (sequence + max(0, length) + bool(flags & FIN)) & 0xFFFFFFFF, acknowledged)


class Ending:
    """The end of connections between *vip* and its *clients*. *done* is called once, with how many have ended.

    Raises OSError, where the agent may not send such packets.
    """

    def __init__(self, vip: str, port: int, clients: Collection[Client], done: Callable[[int, int], None]) -> None:
        self._here = (vip, port)
        self._left: dict[Client, Optional[int]] = dict.fromkeys(clients)
        """Who is still connected, and the number that a client waits for which was sent the end."""
        self._all = len(self._left)
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._begin = clock()
        self._asked = -ASK_EVERY
        self._four = ":" not in vip
        self._socket = self._open()
        self._loop.add_reader(self._socket.fileno(), self._receive)
        self._timer: Optional[asyncio.TimerHandle] = None
        self._tick()

    def _open(self) -> socket.socket:
        family = socket.AF_INET if self._four else socket.AF_INET6
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        new = socket.socket(family, kind, socket.IPPROTO_TCP)
        try:
            text = ctypes.create_string_buffer(FILTER, len(FILTER))
            program = struct.pack("HL", len(FILTER) // 8, ctypes.addressof(text))  # struct sock_fprog
            new.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            new.bind((self._here[0], 0))
        except OSError:
            new.close()
            raise
        return new

    def _tick(self) -> None:
        now = clock()
        if not self._left or now - self._begin >= LASTS:
            self.close()
            self._done(self._all - len(self._left), self._all)
            return
        if now - self._asked >= ASK_EVERY:
            self._asked = now
            for number, client in enumerate(list(self._left), 1):
                sequence, acknowledged = struct.unpack("=II", os.urandom(8))
                self._send(client, sequence, acknowledged, SYN | ACK)
                if not number % AT_ONCE:
                    self._receive()
        self._timer = self._loop.call_later(TICK, self._tick)

    def _send(self, client: Client, sequence: int, acknowledged: int, flags: int) -> None:
        with contextlib.suppress(OSError):  # as good as lost on the way
            self._socket.sendto(segment(self._here, client, sequence, acknowledged, flags), (client[0], 0))

    def _receive(self) -> None:
        for _ in range(AT_A_TIME):
            try:
                packet, sender = self._socket.recvfrom(2048)
            except OSError:
                return
            said = seen(packet, with_header=self._four)
            if said is not None:
                self._answer((str(sender[0]).partition("%")[0], said.port), said)

    def _answer(self, client: Client, said: Seen) -> None:
        if said.flags & SYN:
            return
        if said.flags & (FIN | RST):  # it has ended its side as well: nothing more is to come
            if said.flags & FIN:
                self._send(client, said.awaits, said.sends, RST | ACK)
            self._left.pop(client, None)
            return
        if client not in self._left:
            return
        end = self._left[client]
        if end is not None and said.awaits == (end + 1) & 0xFFFFFFFF:  # it has the FIN
            del self._left[client]
            return
        self._left[client] = said.awaits
        self._send(client, said.awaits, said.sends, FIN | ACK)

    def close(self) -> None:
        """End it without another word."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
