"""The kernel's timer on what could act under the lease, kept going by datagrams that never leave the host.

An agent may stand still at any moment, between its last look at the clock and what it does next. So the lease ends in
the kernel: a rule of nftables lets packets pass while an element with a timeout is in a set, which is looked at for
each packet (``templates/guard/guard.nft.j2``). The packets are those of a frontend that could write to its storage,
and those of the retention executor's user to this node's HAProxy.

The agent talks to these rules by datagrams to the storage's own loopback address. A rule acts while ``send`` runs,
without a lock that a large ruleset of somebody else's could hold, and marks the datagram (DSCP). It then comes back to
the agent's own socket, and the mark is the kernel's receipt: unmarked, there is no such rule.

A *renewal* counts only after a *ticket* that is not older than ``ticket`` seconds. The agent sends the ticket before it
looks at the clock and decides, so a renewal that it decided on long ago does nothing.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Callable, Optional

from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import LEAST_MARK, Fence

TICKET, RENEW, DISARM = b"t", b"r", b"d"
LENGTH = 9  # the word and a counter
#: The DSCP by which a rule says that it has acted. A renewal is marked with the timeout, in tenths of a second.
TAKEN = {TICKET: 1, DISARM: 2}
IP_RECVTOS = 13
RECENT = 1.0  # seconds: without a receipt for so long there is no timer; rules that were flushed are back sooner


class Timer:
    """The timer of this node. *timeout* is how long a renewal may last, in seconds."""

    def __init__(self, fence: Fence, timeout: float, failed: Callable[[str, str], None]) -> None:
        self.renewed: Optional[float] = None
        """When the newest renewal was sent that the kernel has taken."""
        self._fence = fence
        self._mark = round(timeout * 10)
        self._failed = failed
        self._socket: Optional[socket.socket] = None
        self._counter = 0
        self._sent: dict[tuple[bytes, int], float] = {}
        self._taken: dict[bytes, float] = {}  # when the newest one of each word was sent that the kernel has taken
        self._missing = False

    def there(self, now: float) -> bool:
        """Whether the kernel has such a timer: the newest receipts say so."""
        newest = self._taken.get(TICKET)
        return newest is not None and now - newest < RECENT

    def ticket(self) -> None:
        """What is decided from now on may be a renewal, for ``ticket`` seconds."""
        self._say(TICKET)

    def renew(self) -> None:
        """Let pass what may pass under the lease for another ``timer`` seconds, and not longer from now on."""
        self._say(RENEW)

    def disarm(self) -> None:
        """What could act is gone: the next frontend reaches the storage without a timer, no executor the proxy."""
        self.renewed = None
        self._say(DISARM)

    async def disarmed(self, deadline: float) -> bool:
        """Disarm; whether the kernel has taken it within *deadline* seconds, or has no timer."""
        began = clock()
        while clock() < began + deadline:
            self.disarm()
            if self._missing or self._taken.get(DISARM, began - 1.0) >= began:
                return True
            await asyncio.sleep(0.01)
        return False

    def _say(self, word: bytes) -> None:
        try:
            if self._socket is None:
                self._socket = self._open()
            self._counter += 1
            self._sent[word, self._counter] = clock()
            self._socket.send(word + self._counter.to_bytes(LENGTH - 1, "big"))
        except OSError as error:
            self._failed("timer", f"cannot reach the kernel's timer at {self._fence.address}: {error}")
            self.close()
        self.receive()

    def _open(self) -> socket.socket:
        where = (self._fence.address, self._fence.port)
        new = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            new.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
            new.bind(where)
            new.connect(where)
        except OSError:
            new.close()
            raise
        return new

    def receive(self) -> None:
        """Read the receipts that have come."""
        while self._socket is not None:
            try:
                datagram, extra, _, _ = self._socket.recvmsg(LENGTH, socket.CMSG_SPACE(4))
            except OSError:
                break
            sent = self._sent.pop((datagram[:1], int.from_bytes(datagram[1:], "big")), None)
            if sent is not None:
                marks = [
                    data[0] >> 2 for level, kind, data in extra if (level, kind) == (socket.IPPROTO_IP, socket.IP_TOS)
                ]
                self._receipt(datagram[:1], sent, marks[0] if marks else 0)
        now = clock()
        self._sent = {key: sent for key, sent in self._sent.items() if now - sent < RECENT}

    def _receipt(self, word: bytes, sent: float, mark: int) -> None:
        if word == RENEW:
            if LEAST_MARK <= mark <= self._mark:
                self.renewed = sent
            elif mark > self._mark:  # of a release whose timer is longer than this one's lease allows
                self._missing = True
            return
        self._missing = mark != TAKEN[word]
        if not self._missing:
            self._taken[word] = sent

    def close(self) -> None:
        """Close the socket; nothing is disarmed by that."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
