"""Who is on the wire: who answers for an address, and who sends VRRP advertisements for a virtual router.

Run on a node with this source alone, as root, by Python 3.9 or newer:

    python3 -I -c SOURCE INTERFACE ROUTER SECONDS [IPV4...]

Prints a JSON object: *answers*, for each address the link-layer addresses that answered an ARP probe (RFC 5227, which
changes nobody's cache, since the probe names no sender); *vrrp*, each sender of advertisements of the virtual router
ROUTER with its link-layer address, read before any firewall; and *trouble*.
"""

from __future__ import annotations

import ctypes
import json
import select
import socket
import struct
import sys
import time
from typing import Any

ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
VRRP = 112
EVERY_PROTOCOL = 3  # ETH_P_ALL
SHORTEST, MOST = 42, 256  # bytes: an answer of ARP; what is looked at of a frame
SO_ATTACH_FILTER = 26
SOL_PACKET, ADD_MEMBERSHIP, MULTICAST = 263, 1, 0  # packet(7)
#: To which groups VRRP is sent by those that do not know their peers (RFC 5798, 5.1.1.2 and 5.1.2.2).
GROUPS = (bytes.fromhex("01005e000012"), bytes.fromhex("333300000012"))
#: The kernel passes on ARP and VRRP alone, whatever else the interface is busy with: a program of classic BPF, of
#: (code, jump if true, jump if false, value), linux/filter.h. What has a VLAN's tag is on another wire: the interface
#: of that VLAN gets it without.
FILTER = (
    (0x20, 0, 0, 0xFFFFF02C),  # load the tag (SKF_AD_VLAN_TAG), 0 if there is none
    (0x54, 0, 0, 0xFFF),  # of it the number of the VLAN
    (0x15, 0, 9, 0),
    (0x28, 0, 0, 12),  # load the type of the frame
    (0x15, 6, 0, ARP),
    (0x15, 0, 2, IPV4),
    (0x30, 0, 0, 23),  # load the protocol of IPv4
    (0x15, 3, 4, VRRP),
    (0x15, 0, 3, IPV6),
    (0x30, 0, 0, 20),  # load the next header of IPv6
    (0x15, 0, 1, VRRP),
    (0x06, 0, 0, MOST),  # take it
    (0x06, 0, 0, 0),  # drop it
)


def attach(wire: socket.socket) -> None:
    """Have the kernel filter what *wire* reads."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in FILTER))
    wire.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(FILTER), ctypes.addressof(code)))


def listen(wire: socket.socket, interface: str) -> None:
    """Have the interface take the frames for GROUPS, for as long as *wire* is open."""
    number = socket.if_nametoindex(interface)
    for group in GROUPS:
        wire.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, struct.pack("iHH8s", number, MULTICAST, len(group), group))


def hardware(raw: bytes) -> str:
    """A link-layer address as ``ip link`` writes it."""
    return ":".join(f"{byte:02x}" for byte in raw)


def probe(own: bytes, address: str) -> bytes:
    """An ARP probe for *address*, as an Ethernet frame (RFC 826, RFC 5227)."""
    ask = struct.pack("!HHBBH6s4s6s4s", 1, IPV4, 6, 4, 1, own, bytes(4), bytes(6), socket.inet_aton(address))
    return bytes([255] * 6) + own + struct.pack("!H", ARP) + ask


def read(frame: bytes, router: int, shown: dict[str, Any]) -> None:
    """Note in *shown* what an Ethernet frame says."""
    source, kind, body = frame[6:12], struct.unpack("!H", frame[12:14])[0], frame[14:]
    if kind == ARP and body[6:8] == b"\0\2":
        found = shown["answers"].get(socket.inet_ntoa(body[14:18]))
        if found is not None and hardware(body[8:14]) not in found:
            found.append(hardware(body[8:14]))
    elif kind == IPV4 and body[9] == VRRP:
        advert = body[4 * (body[0] & 15) :]
        if advert[1] == router:
            shown["vrrp"][socket.inet_ntoa(body[12:16])] = hardware(source)
    elif kind == IPV6 and body[6] == VRRP and body[41] == router:
        shown["vrrp"][socket.inet_ntop(socket.AF_INET6, body[8:24])] = hardware(source)


def main(arguments: list[str]) -> int:
    """See above. The exit status is 0 also where something went wrong: it is told."""
    interface, router, seconds, *addresses = arguments
    shown: dict[str, Any] = {"answers": {address: [] for address in addresses}, "vrrp": {}, "trouble": ""}
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
            attach(wire)
            wire.bind((interface, EVERY_PROTOCOL))
            listen(wire, interface)
            own = wire.getsockname()[4]
            end = time.monotonic() + float(seconds)
            asked = 0.0
            while (left := end - time.monotonic()) > 0:
                if time.monotonic() - asked > float(seconds) / 3:  # a probe may be lost
                    asked = time.monotonic()
                    for address in addresses:
                        wire.send(probe(own, address))
                if select.select([wire], [], [], min(left, 0.1))[0]:
                    frame, (_, _, direction, *_) = wire.recvfrom(MOST)
                    if direction != socket.PACKET_OUTGOING and len(frame) >= SHORTEST:
                        read(frame, int(router), shown)
    except (OSError, ValueError, IndexError) as error:
        shown["trouble"] = str(error)
    print(json.dumps(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
