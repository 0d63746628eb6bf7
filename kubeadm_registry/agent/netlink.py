"""Kernel sockets of the agent: ending TCP connections, knowing whether this host has an address, counting nft rules.

Layouts are those of linux/netlink.h, inet_diag.h, rtnetlink.h and netfilter/nf_tables.h. ``ss -K``, ``ip route get``
and ``nft list table`` do the same.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 0, 4, 12
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY, RTM_GETROUTE = 20, 21, 26
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, DUMP = 1, 4, 0x300
BYTECODE = 1  # INET_DIAG_REQ_BYTECODE
SOURCE, DESTINATION = 7, 8  # INET_DIAG_BC_S_COND, _D_COND
IPV4_ADDRESSES, IPV6_ADDRESSES = 0x10, 0x100  # RTMGRP_*_IFADDR
RTA_DST, RTN_LOCAL = 1, 2
GETRULE, GETGEN = 0x0A07, 0x0A10  # NFNL_SUBSYS_NFTABLES, and NFT_MSG_GETRULE or NFT_MSG_GETGEN
RULE_TABLE, GENERATION = 1, 1  # NFTA_RULE_TABLE, NFTA_GEN_ID
INET, IPV4, IPV6 = 1, 2, 10  # NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6
NFGENMSG = struct.Struct("!BBH")  # family, version, resource; attributes follow
TIMER_RETRANSMIT = 1
INFO = 2  # INET_DIAG_INFO: struct tcp_info
ATTRIBUTES = 72  # they begin behind struct inet_diag_msg
LAST_RECEIVED = 52  # tcpi_last_data_recv in struct tcp_info, milliseconds
# established, SYN sent and received, both FIN_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING: never a listening socket
STATES = sum(1 << state for state in (1, 2, 3, 4, 5, 8, 9, 11))

HEADER = struct.Struct("=IHHII")
MESSAGE = struct.Struct("=BBBB")  # family, state, timer, retransmits; then the 48 bytes of the connection's identity
IDENTITY = slice(4, 52)


class Unsupported(Exception):
    """The kernel cannot end connections (no CONFIG_INET_DIAG_DESTROY), or the agent may not (no CAP_NET_ADMIN)."""


@dataclass(frozen=True)
class End:
    """One end of a connection; what is not given may be anything."""

    address: str = ""
    port: int = 0

    @property
    def condition(self) -> bytes:
        """As struct inet_diag_hostcond."""
        if not self.address:
            return struct.pack("=BBxxi", 0, 0, self.port or -1)
        packed = ipaddress.ip_address(self.address).packed
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        return struct.pack("=BBxxi", family, len(packed) * 8, self.port or -1) + packed


@dataclass(frozen=True)
class Connection:
    """One TCP connection as the kernel names it."""

    family: int
    state: int
    timer: int
    retransmits: int
    identity: bytes
    quiet: float = 0.0
    """Seconds since data came last; since it was opened, if none did."""

    @property
    def ports(self) -> tuple[int, int]:
        """Of this host and of the other one."""
        return struct.unpack_from("!HH", self.identity)

    @property
    def other(self) -> tuple[str, int]:
        """Address and port of the other end; a socket for IPv6 may carry IPv4."""
        packed = self.identity[20:24] if self.family == socket.AF_INET else self.identity[20:36]
        address = ipaddress.ip_address(packed)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return str(mapped or address), self.ports[1]

    @property
    def stuck(self) -> bool:
        """Whether what it sent was not acknowledged in time, at least once."""
        return self.timer == TIMER_RETRANSMIT and self.retransmits > 0


def program(source: End, destination: End) -> bytes:
    """The filter for both ends: each step jumps to the next, or behind the end if it does not hold."""
    steps = [(code, end.condition) for code, end in ((SOURCE, source), (DESTINATION, destination)) if end != End()]
    left = sum(4 + len(condition) for _, condition in steps)
    text = b""
    for code, condition in steps:
        size = 4 + len(condition)
        text += struct.pack("=BBH", code, size, left + 4) + condition
        left -= size
    return text


def _quiet(payload: bytes) -> float:
    """Seconds since the connection described in *payload* received data; endless if the kernel does not tell."""
    at = ATTRIBUTES
    while at + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, at)
        if kind == INFO and length >= 4 + LAST_RECEIVED + 4:
            return float(struct.unpack_from("=I", payload, at + 4 + LAST_RECEIVED)[0]) / 1000
        at += max(4, (length + 3) & ~3)
    return math.inf


class Connections:
    """Finds and ends TCP connections of this network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        self._socket.settimeout(0.5)
        self._sequence = 0

    def close(self) -> None:
        """Close the netlink socket."""
        self._socket.close()

    def find(self, source: End = End(), destination: End = End()) -> Iterator[Connection]:
        """Connections with both ends, of both families (a socket for IPv6 may carry IPv4)."""
        text = program(source, destination)
        attribute = struct.pack("=HH", 4 + len(text), BYTECODE) + text if text else b""
        for family in (socket.AF_INET, socket.AF_INET6):
            body = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 1 << (INFO - 1), STATES) + attribute
            self._send(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, body)
            for kind, payload in self._receive():
                if kind != SOCK_DIAG_BY_FAMILY:
                    continue
                family_, state, timer, retransmits = MESSAGE.unpack_from(payload)
                yield Connection(family_, state, timer, retransmits, payload[IDENTITY], _quiet(payload))

    def end(self, connection: Connection) -> bool:
        """End *connection* as if the other side had reset it. False if it had gone already. Raises Unsupported."""
        state = 1 << connection.state
        body = struct.pack("=BBBxI", connection.family, socket.IPPROTO_TCP, 0, state) + connection.identity
        self._send(SOCK_DESTROY, REQUEST | ACK, body)
        try:
            for _ in self._receive():
                pass
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
                raise Unsupported(os.strerror(error.errno)) from error
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return False
            raise
        return True

    def end_all(
        self,
        source: End = End(),
        destination: End = End(),
        *,
        ports: frozenset[int] = frozenset(),
        stuck: bool = False,
        quiet: float = 0.0,
    ) -> int:
        """End all connections with both ends; with *ports* only if one end has such a port, with *stuck* only those,
        and only those to which no data came for *quiet* seconds.

        Returns how many were ended. Raises Unsupported, OSError.
        """
        found = [
            one
            for one in self.find(source, destination)
            if (not ports or not ports.isdisjoint(one.ports)) and (not stuck or one.stuck) and one.quiet >= quiet
        ]
        return sum(self.end(one) for one in found)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, flags, self._sequence, 0) + body)

    def _receive(self) -> Iterator[tuple[int, bytes]]:
        return _messages(self._socket, self._sequence)


def _messages(netlink: socket.socket, sequence: int) -> Iterator[tuple[int, bytes]]:
    """The answers to the request *sequence*, up to its end. Raises OSError with the kernel's code."""
    while True:
        data = netlink.recv(65536)
        at = 0
        while at + HEADER.size <= len(data):
            length, kind, flags, number, _ = HEADER.unpack_from(data, at)
            payload = data[at + HEADER.size : at + length]
            at += (length + 3) & ~3
            if number != sequence:
                continue
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                if code:
                    raise OSError(code, os.strerror(code))
                return
            yield kind, payload
            if not flags & 2:  # NLM_F_MULTI: more to come
                return


class Addresses:
    """Knows whether this host has an address, and hears of changes."""

    def __init__(self) -> None:
        self._ask = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._ask.settimeout(0.2)
        self.news = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
        )
        self.news.bind((0, IPV4_ADDRESSES | IPV6_ADDRESSES))
        self._sequence = 0

    def close(self) -> None:
        """Close both sockets."""
        self._ask.close()
        self.news.close()

    def drain(self) -> None:
        """Read what ``news`` holds: that something came is all that matters."""
        try:
            while self.news.recv(65536):
                pass
        except OSError:  # nothing left, or more than the buffer holds
            return

    def here(self, address: str) -> bool:
        """Whether *address* is an address of this host: whether the kernel would keep a packet to it.

        One question costs the same however many addresses the host has; a list of them would not.
        """
        packed = ipaddress.ip_address(address).packed
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        self._sequence += 1
        body = struct.pack("=BBBBBBBBI", family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
        body += struct.pack("=HH", 4 + len(packed), RTA_DST) + packed
        try:
            self._ask.send(HEADER.pack(HEADER.size + len(body), RTM_GETROUTE, REQUEST, self._sequence, 0) + body)
            answer: Optional[bytes] = next((payload for _, payload in _messages(self._ask, self._sequence)), None)
        except OSError:  # no route at all
            return False
        return answer is not None and answer[7] == RTN_LOCAL


class Ruleset:
    """The nft rules of this network namespace. All raise OSError, also where the kernel has no nf_tables."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.settimeout(0.2)
        self._sequence = 0

    def close(self) -> None:
        """Close the netlink socket."""
        self._socket.close()

    def generation(self) -> int:
        """The ruleset's number: another one after each change, whoever makes it."""
        for payload in self._ask(GETGEN, REQUEST, NFGENMSG.pack(0, 0, 0)):
            length, kind = struct.unpack_from("=HH", payload, NFGENMSG.size)
            if kind == GENERATION and length == 8:
                return int(struct.unpack_from("!I", payload, NFGENMSG.size + 4)[0])
        raise OSError(errno.EPROTO, "the kernel told no generation")

    def rules(self, table: str, family: int = INET) -> int:
        """How many rules *table* of the *family* has; 0 if there is none."""
        name = table.encode() + b"\0"
        attribute = struct.pack("=HH", 4 + len(name), RULE_TABLE) + name + b"\0" * (-len(name) % 4)
        return sum(1 for _ in self._ask(GETRULE, REQUEST | DUMP, NFGENMSG.pack(family, 0, 0) + attribute))

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        for _, payload in _messages(self._socket, self._sequence):
            yield payload
