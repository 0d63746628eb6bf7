"""Heartbeats to and from the other agents, by one UDP socket for each peer.

The sockets are connected, so the kernel drops what comes from elsewhere, and says when a peer's host answers that
nobody listens: then the agent there has died, and the host has not. Where an agent says nothing, its host is asked by
TCP, which its kernel answers also when it has no processor to spare for any process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import socket
import struct
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Callable, Optional

from kubeadm_registry.agent import clients
from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Config, Peer
from kubeadm_registry.agent.heartbeat import LARGEST, Inbox, Outbox, Packet, Refused, decode, decode_any, encode
from kubeadm_registry.agent.model import PeerView, Report
from kubeadm_registry.agent.presence import overdue

IP_FREEBIND, IPV6_FREEBIND, IP_BIND_ADDRESS_NO_PORT = 15, 78, 24
MOST = 64  # datagrams at a time: a flood of them must not keep the agent from anything else
KNOCK_EVERY = 0.1  # seconds from one question to a host to the next, and for its answer
KNOCK_SELDOM = 1.0  # the same, once it has been silent for so long that nothing waits for the answer
LONG_SILENT = 10.0  # seconds
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a connection that is closed is reset, and needs no goodbye
#: What the kernel says of a host that does not answer. Other errors are this host's own, and say nothing of another.
DEAF = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT)
BREATH = 0.05  # seconds from one extra heartbeat to the next: replayed ones must not make this agent send without end


class Link:
    """Heartbeats to and from one peer, made with *key*; those that it makes with one of *others* are believed too."""

    def __init__(self, config: Config, peer: Peer, outbox: Outbox, key: bytes, others: Sequence[bytes] = ()) -> None:
        self.peer = peer
        self.inbox = Inbox(config.name, peer.name, config.timings.echo_window)
        self.clients = clients.Known(config.name, peer.name)
        """Who is connected with the VIP there."""
        self.away: Optional[float] = None
        self.lives: Optional[float] = None
        """When its host was last asked with an answer, and (deaf) without one in time."""
        self.deaf: Optional[float] = None
        self.asked = 0.0  # when its host was last asked
        self.asking: Optional[asyncio.Task[None]] = None
        self.refused = 0
        self.refusal = ""
        self.received = 0
        self.answered = 0.0  # when this agent last answered out of turn
        self.socket: Optional[socket.socket] = None
        self._config = config
        self._outbox = outbox
        self.use(key, others)

    def use(self, key: bytes, others: Sequence[bytes]) -> None:
        """From now on make heartbeats with *key*, and believe those of *others* too; what was heard counts on."""
        self._key = key
        self._keys = (key, *others)

    def open(self) -> None:
        """Open the socket. Raises OSError, for example while the host has no address yet."""
        family = socket.AF_INET6 if ":" in self.peer.address else socket.AF_INET
        new = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # One address for the sockets of all peers; with SO_REUSEADDR anybody on this host could get what comes.
            new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            level, option = (
                (socket.IPPROTO_IPV6, IPV6_FREEBIND) if family == socket.AF_INET6 else (socket.IPPROTO_IP, IP_FREEBIND)
            )
            new.setsockopt(level, option, 1)
            port = self._config.ports.heartbeat
            new.bind((self._config.address, port))
            new.connect((self.peer.address, port))
        except OSError:
            new.close()
            raise
        self.socket = new

    def close(self) -> None:
        """Close the socket."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def send(self, counter: int, report: Report) -> None:
        """Send one heartbeat; what cannot be sent is as good as lost on the way."""
        packet = Packet(
            sender=self._config.name,
            receiver=self.peer.name,
            instance=self._outbox.instance,
            counter=counter,
            answers=self.inbox.answers,
            wall=int(time.time() * 1000),
            report=report,
        )
        self._deliver(encode(self._key, packet))

    def tell(self, counter: int, vip: str, packed: bytes) -> None:
        """Send some of the clients of *vip*; those with the same *counter* belong together."""
        told = clients.Told(self._config.name, self.peer.name, self._outbox.instance, counter, vip, packed)
        self._deliver(clients.encode(self._key, told))

    def _deliver(self, datagram: bytes) -> None:
        for _ in range(2):  # the first attempt may only fetch the news that an earlier datagram was refused
            try:
                if self.socket is None:
                    self.open()
                if self.socket is not None:
                    self.socket.send(datagram)
                return
            except ConnectionRefusedError:
                self.away = clock()
            except OSError:
                return

    def receive(self) -> tuple[bool, bool]:
        """Read what has come: whether there was news, and whether an answer is needed before there can be news."""
        news = answer = False
        for _ in range(MOST):
            if self.socket is None:
                break
            try:
                datagram = self.socket.recv(LARGEST + 1)
            except ConnectionRefusedError:
                self.away = clock()
                continue
            except OSError:
                break
            self.received += 1
            try:
                if datagram.startswith(clients.MAGIC):
                    self.clients.take(clients.decode(self._keys, datagram), self.inbox.instance, clock())
                elif self.inbox.take(self._decode(datagram), self._outbox, clock(), time.time()):
                    news = True
                    said = self.inbox.said
                    self.away = clock() if said is not None and said.bye else None
                else:
                    answer = True
            except Refused as refusal:
                self.refused += 1
                self.refusal = str(refusal)
        return news, answer

    def _decode(self, datagram: bytes) -> Packet:
        """The heartbeat in *datagram*. Raises Refused."""
        return decode_any(self._keys, datagram)

    @property
    def view(self) -> PeerView:
        """What the rules may know of this peer."""
        return replace(self.inbox.view(self.away), lives=self.lives, deaf=self.deaf)

    async def knock(self) -> None:
        """Ask the kernel of the peer's host for a connection to its HAProxy, which it opens or refuses by itself."""
        loop, begin = asyncio.get_running_loop(), clock()
        family = socket.AF_INET6 if ":" in self.peer.address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((self._config.address, 0))
                address = (self.peer.address, self._config.ports.internal)
                try:
                    await asyncio.wait_for(loop.sock_connect(sock, address), KNOCK_EVERY)
                except asyncio.TimeoutError:
                    if not answered(sock):  # where this agent was not run, an answer may have waited for it
                        self.deaf = begin
                        return
        except ConnectionRefusedError:
            pass
        except OSError as error:
            if error.errno in DEAF:
                self.deaf = begin
            return
        self.lives = begin


class FormerLink(Link):
    """Heartbeats of a node that has left, and answers to it. Its key may have been replaced since it was switched off,
    and it would believe no answer that is made with another one."""

    def _decode(self, datagram: bytes) -> Packet:
        """The heartbeat in *datagram*; what is sent from now on is made with the key of that. Raises Refused."""
        for key in self._keys:
            try:
                packet = decode(key, datagram)
            except Refused as error:
                refused = error
            else:
                self._key = key
                return packet
        raise refused


def answered(sock: socket.socket) -> bool:
    """Whether the kernel of the other host has opened or refused the connection of *sock*."""
    try:
        sock.getpeername()
    except OSError:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    return True


class Links:
    """Heartbeats to and from all peers. *changed* is called when a peer says something new; for keys see ``Link``.

    Those of *left* are for nodes that have left alone: nothing that a member says with one is believed.
    """

    def __init__(
        self,
        config: Config,
        key: bytes,
        changed: Callable[[], None],
        others: Sequence[bytes] = (),
        left: Sequence[bytes] = (),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = changed
        self._outbox = Outbox(secrets.token_hex(8))
        self._interval = config.timings.heartbeat_interval
        self._next = 0.0
        self._told = 0
        self._report = Report()
        self._watched: dict[str, int] = {}
        self.links = {peer.name: Link(config, peer, self._outbox, key, others) for peer in config.peers}
        self._former = [FormerLink(config, peer, self._outbox, key, (*others, *left)) for peer in config.former]

    @property
    def instance(self) -> str:
        """The name of this life of the agent."""
        return self._outbox.instance

    def use(self, key: bytes, others: Sequence[bytes], left: Sequence[bytes] = ()) -> None:
        """From now on use other keys; see ``Links``."""
        for link in self.links.values():
            link.use(key, others)
        for former in self._former:
            former.use(key, (*others, *left))

    def say(self, report: Report) -> None:
        """From now on say this in every heartbeat; what is new is said at once."""
        if report != self._report:
            self._report = report
            self.send()

    def tick(self, now: float) -> None:
        """Send what is due."""
        if now >= self._next:
            self._next = self._next + self._interval if now - self._next < self._interval else now + self._interval
            self.send()
        for link in self.links.values():
            self._knock(link, now)
        for link in self._former:
            self._listen(link)

    def _knock(self, link: Link, now: float) -> None:
        believed = link.inbox.believed
        if believed is None or not overdue(believed, now):
            return
        if now - link.asked >= (KNOCK_EVERY if now - believed < LONG_SILENT else KNOCK_SELDOM):
            link.asked, link.asking = now, self._loop.create_task(link.knock())

    def send(self) -> None:
        """One heartbeat to each peer."""
        counter = self._outbox.next(clock())
        for link in self.links.values():
            link.send(counter, self._report)
            self._watch(link)

    def tell(self, there: Mapping[str, Sequence[clients.Client]]) -> None:
        """Tell each peer who is connected with which address here."""
        self._told += 1
        for vip, connected in there.items():
            for packed in clients.split(vip, connected):
                for link in self.links.values():
                    link.tell(self._told, vip, packed)

    def connected(self, now: float) -> Mapping[str, Collection[clients.Client]]:
        """By address the clients that peers had a moment ago."""
        found: dict[str, set[clients.Client]] = {}
        for link in self.links.values():
            for vip, there in link.clients.recent(now).items():
                found.setdefault(vip, set()).update(there)
        return found

    def _listen(self, link: Link) -> None:
        """Have a socket for a node that has left: it speaks first."""
        if link.socket is None:
            with contextlib.suppress(OSError):
                link.open()
            self._watch(link, self._dismiss)

    def _dismiss(self, link: Link) -> None:
        """A node that has left has spoken: tell it that it is no member. If it was switched off, it cannot know."""
        link.receive()
        now = clock()
        if now - link.answered >= BREATH:
            link.answered = now
            link.send(self._outbox.next(now), replace(self._report, removed=True))

    def _watch(self, link: Link, heard: Optional[Callable[[Link], None]] = None) -> None:
        number = link.socket.fileno() if link.socket is not None else -1
        if number >= 0 and self._watched.get(link.peer.name) != number:
            self._watched[link.peer.name] = number
            self._loop.add_reader(number, heard or self._receive, link)

    def _receive(self, link: Link) -> None:
        before = link.inbox.said
        news, answer = link.receive()
        now = clock()
        if answer and not news and now - link.answered >= BREATH:
            link.answered = now
            link.send(self._outbox.next(now), self._report)
        if news and link.inbox.said != before:
            self._changed()

    def close(self) -> None:
        """Close all sockets."""
        for link in (*self.links.values(), *self._former):
            if link.asking is not None:
                link.asking.cancel()
            if link.socket is not None:
                self._loop.remove_reader(link.socket.fileno())
            link.close()
