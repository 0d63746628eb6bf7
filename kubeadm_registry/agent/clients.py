"""Who is connected with the VIP: the node that has it tells the others, so that they can end what it leaves behind.

A list is ``KC1``, an HMAC-SHA256 of that and the rest under the key of the heartbeats, and a JSON object. It comes by
the sockets of the heartbeats; an agent of a release that does not know it counts a refused datagram. A long list goes
in several datagrams with the same counter. A key that a reader does not know is passed over.

Only a list of that life of an agent counts whose heartbeats are believed, and only one that is newer than the last:
heartbeats are what shows that nobody plays back old ones.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kubeadm_registry.agent.heartbeat import DIGEST, LARGEST, Refused

MAGIC = b"KC1"
MOST = 1024
"""Clients of one address that are told; a node with more of them tells of so many."""
EVERY = 0.25  # seconds from one list to the next
RECENT = 10.0  # seconds for which a list of a node that says nothing more is good: all take the VIP sooner than that
PORT = struct.Struct("!H")
ROOM = 640
"""Bytes of addresses and ports in one datagram: with what is around them it is a third longer, and fits."""

Client = tuple[str, int]  # the address and the port that it connects from


@dataclass(frozen=True)
class Told:
    """One datagram: some of the clients of the address *vip*; those with the same counter belong together.

    They stay *packed* as they came: nobody reads them but who gets the VIP, and there may be a thousand each time.
    """

    sender: str
    receiver: str
    instance: str
    counter: int
    vip: str
    packed: bytes


def packed(clients: Iterable[Client]) -> bytes:
    """*clients* as they are sent: address and port of each, in network order."""
    return b"".join(ipaddress.ip_address(address).packed + PORT.pack(port) for address, port in clients)


def unpacked(vip: str, data: bytes) -> Iterator[Client]:
    """The clients of the address *vip* in *data*; their addresses are of the same family."""
    size = len(ipaddress.ip_address(vip).packed)
    for at in range(0, len(data), size + PORT.size):
        yield str(ipaddress.ip_address(data[at : at + size])), PORT.unpack_from(data, at + size)[0]


def encode(key: bytes, told: Told) -> bytes:
    """The datagram for *told*."""
    body = json.dumps(
        {
            "from": told.sender, "to": told.receiver, "instance": told.instance, "counter": told.counter,
            "vip": told.vip, "clients": base64.b64encode(told.packed).decode(),
        },
        separators=(",", ":"),
    ).encode()  # fmt: skip
    return MAGIC + hmac.digest(key, MAGIC + body, "sha256") + body


def decode(keys: Sequence[bytes], datagram: bytes) -> Told:
    """What is in *datagram*. Raises Refused if none of the *keys* made it, or it is no such list."""
    head, body = datagram[len(MAGIC) : len(MAGIC) + DIGEST], datagram[len(MAGIC) + DIGEST :]
    if len(datagram) > LARGEST or not datagram.startswith(MAGIC):
        raise Refused("not a list of clients")
    if not any(hmac.compare_digest(hmac.digest(key, MAGIC + body, "sha256"), head) for key in keys):
        raise Refused("made with another key")
    try:
        said = json.loads(body)
        vip, data = ipaddress.ip_address(said["vip"]), base64.b64decode(said["clients"], validate=True)
        if len(data) % (len(vip.packed) + PORT.size):
            raise ValueError("a part of a client")
        return Told(str(said["from"]), str(said["to"]), str(said["instance"]), int(said["counter"]), str(vip), data)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, AttributeError) as error:
        raise Refused(f"not to be understood: {error!r}") from error


def split(vip: str, clients: Iterable[Client]) -> list[bytes]:
    """The *clients* of *vip*, packed, in pieces that fit into a datagram each; one that is empty if there are none."""
    data, size = packed(clients), len(ipaddress.ip_address(vip).packed) + PORT.size
    each = ROOM // size * size
    return [data[at : at + each] for at in range(0, max(1, len(data)), each)]


class Known:
    """The clients of one peer, as it told last."""

    def __init__(self, own: str, peer: str) -> None:
        self._own = own
        self._peer = peer
        self._instance = ""
        self._counter = 0
        self._at = 0.0
        self._clients: dict[str, set[bytes]] = {}
        self._before: dict[str, set[bytes]] = {}

    def take(self, told: Told, instance: str, now: float) -> None:
        """Take it up, if it is of the life *instance* of the peer's agent, and not older than the last one.

        Raises Refused.
        """
        if (told.sender, told.receiver) != (self._peer, self._own):
            raise Refused(f"from {told.sender} for {told.receiver}")
        if not instance or told.instance != instance:
            raise Refused("of another life of that agent")
        newer = instance != self._instance or told.counter > self._counter
        if not newer and told.counter < self._counter:
            raise Refused("seen before")
        if newer:
            self._before = self._clients if instance == self._instance else {}
            self._clients = {}
            self._instance, self._counter, self._at = instance, told.counter, now
        self._clients.setdefault(told.vip, set()).add(told.packed)

    def recent(self, now: float) -> Mapping[str, frozenset[Client]]:
        """By address the clients of the last two lists, since one may not have come whole; none if they are old."""
        if now - self._at > RECENT:
            return {}
        found: dict[str, frozenset[Client]] = {}
        for vip in {*self._clients, *self._before}:
            pieces = self._clients.get(vip, set()) | self._before.get(vip, set())
            found[vip] = frozenset(client for data in pieces for client in unpacked(vip, data))
        return found
