"""Heartbeats as the agent's links send and receive them, over the simulated network instead of sockets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kubeadm_registry.agent.heartbeat import Inbox, Outbox, Packet, Refused, decode, encode
from kubeadm_registry.agent.model import PeerView, Report, Settings
from kubeadm_registry.agent.presence import overdue

if TYPE_CHECKING:
    from tests.simulation.host import Host

KEY = b"the key that all of them share, and no one else"
BREATH = 0.05  # seconds


def carried(packet: Packet) -> Packet:
    """The heartbeat that the receiver of *packet* reads, by way of a datagram."""
    return decode(KEY, encode(KEY, packet))


class Link:
    """Heartbeats to and from one peer."""

    def __init__(self, host: Host, peer: str, outbox: Outbox, window: float) -> None:
        self.host = host
        self.peer = peer
        self.outbox = outbox
        self.inbox = Inbox(host.name, peer, window)
        self.away: float | None = None
        self.answered = 0.0

    def send(self, counter: int, report: Report) -> None:
        """Send one heartbeat, unless it would be lost for certain: most of the work is to encode it."""
        world = self.host.world
        if world.network.is_cut(self.host.name, self.peer):
            return
        packet = Packet(
            sender=self.host.name,
            receiver=self.peer,
            instance=self.outbox.instance,
            counter=counter,
            answers=self.inbox.answers,
            wall=int(self.host.wall() * 1000),
            report=report,
        )
        arrive = world.hosts[self.peer].heartbeat
        world.network.send(self.host.name, self.peer, arrive, self.host.name, carried(packet))

    def receive(self, packet: Packet, now: float) -> tuple[bool, bool]:
        """Whether it was news, and whether an answer is needed before there can be news."""
        try:
            if not self.inbox.take(packet, self.outbox, now, self.host.wall()):
                return False, True
        except Refused:
            return False, False
        said = self.inbox.said
        self.away = now if said is not None and said.bye else None
        return True, False

    @property
    def view(self) -> PeerView:
        """What the rules may know of this peer."""
        now = self.host.seconds()
        view = self.inbox.view(self.away)
        if not overdue(view.believed, now):
            return view
        return replace(view, lives=now) if self._kernel_answers() else replace(view, deaf=now)

    def _kernel_answers(self) -> bool:
        """Whether the peer's host opens or refuses a connection, whatever its processes do."""
        network, peer = self.host.world.network, self.host.world.hosts[self.peer]
        ways = ((self.host.name, self.peer), (self.peer, self.host.name))
        return peer.on and not peer.paused and not any(network.is_cut(*way) for way in ways)


class Links:
    """Heartbeats to and from all peers."""

    def __init__(self, host: Host, settings: Settings, instance: str) -> None:
        self.host = host
        self.outbox = Outbox(instance)
        self.interval = settings.timings.heartbeat_interval
        self.next = 0.0
        self.report = Report()
        window = settings.timings.echo_window
        self.links = {peer: Link(host, peer, self.outbox, window) for peer in settings.peers}
        self.former = {name: Link(host, name, self.outbox, window) for name in host.roster.former}

    def listens(self, source: str) -> bool:
        """Whether there is a socket for heartbeats from there."""
        return source in self.links or source in self.former

    def say(self, report: Report) -> None:
        """From now on say this; what is new is said at once."""
        if report != self.report:
            self.report = report
            self.send()

    def tick(self, now: float) -> None:
        """Send what is due."""
        if now >= self.next:
            self.next = self.next + self.interval if now - self.next < self.interval else now + self.interval
            self.send()

    def send(self) -> None:
        """One heartbeat to each peer."""
        counter = self.outbox.next(self.host.seconds())
        for link in self.links.values():
            link.send(counter, self.report)

    def receive(self, source: str, packet: Packet) -> bool:
        """Whether the peer said something new."""
        if source in self.former:
            self._dismiss(self.former[source], packet)
            return False
        link = self.links[source]
        before, now = link.inbox.said, self.host.seconds()
        news, answer = link.receive(packet, now)
        if answer and now - link.answered >= BREATH:
            link.answered = now
            link.send(self.outbox.next(now), self.report)
        return news and link.inbox.said != before

    def _dismiss(self, link: Link, packet: Packet) -> None:
        """A node that has left has spoken: it is told so."""
        now = self.host.seconds()
        link.receive(packet, now)
        if now - link.answered >= BREATH:
            link.answered = now
            link.send(self.outbox.next(now), replace(self.report, removed=True))
