"""What is read from the wire: answers to an ARP probe, and VRRP advertisements of one virtual router."""

from __future__ import annotations

import json
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.doctor import wire
from tests.unit.test_session import in_a_network

OWN, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("029900000001")
VIP = "10.0.0.10"


def frame(kind: int, body: bytes) -> bytes:
    return OWN + OTHER + struct.pack("!H", kind) + body


def arp(operation: int, address: str) -> bytes:
    sender = OTHER + socket.inet_aton(address)
    return frame(wire.ARP, struct.pack("!HHBBH", 1, wire.IPV4, 6, 4, operation) + sender + OWN + bytes(4))


def ipv4(protocol: int, router: int) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 32, 1, 0, 255, protocol, 0)
    return frame(
        wire.IPV4, head + socket.inet_aton("10.0.0.99") + socket.inet_aton("224.0.0.18") + bytes([0x31, router])
    )


def ipv6(router: int) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, "fe80::9") + socket.inet_pton(socket.AF_INET6, "ff02::12")
    return frame(wire.IPV6, struct.pack("!IHBB", 6 << 28, 12, wire.VRRP, 255) + addresses + bytes([0x31, router]))


@pytest.mark.parametrize(
    ("seen", "answers", "vrrp"),
    [
        (arp(2, VIP), ["02:99:00:00:00:01"], {}),
        (arp(1, VIP), [], {}),
        (arp(2, "10.0.0.77"), [], {}),
        (ipv4(wire.VRRP, 111), [], {"10.0.0.99": "02:99:00:00:00:01"}),
        (ipv4(wire.VRRP, 51), [], {}),
        (ipv4(6, 111), [], {}),
        (ipv6(111), [], {"fe80::9": "02:99:00:00:00:01"}),
    ],
    ids=["answer", "question", "another address", "advert", "another router", "TCP", "IPv6"],
)
def test_a_frame_is_read(seen: bytes, answers: list[str], vrrp: dict[str, str]) -> None:
    shown: dict[str, Any] = {"answers": {VIP: []}, "vrrp": {}}
    for _ in range(2):
        wire.read(seen, 111, shown)
    assert shown == {"answers": {VIP: answers}, "vrrp": vrrp}


def test_a_probe_names_no_sender() -> None:
    """RFC 5227, 2.1.1: nobody's cache is changed by it."""
    sent = wire.probe(OWN, VIP)
    assert sent[:6] == b"\xff" * 6
    assert sent[28:32] == bytes(4)
    assert sent[38:42] == socket.inet_aton(VIP)


def test_an_interface_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert wire.main(["no-such-interface", "111", "0.1", VIP]) == 0
    assert '"trouble": ""' not in capsys.readouterr().out


#: Sends each frame (hex) of ``$3...`` again and again, while ``$2`` listens at the other end.
SEND = """
ip link add one type veth peer name two
ip link set one up
ip link set two up
"$1" -I -c '
import socket, sys, time
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind(("two", 0))
while True:
    for frame in sys.argv[1:]:
        out.send(bytes.fromhex(frame))
    time.sleep(0.1)
' "$3" "$4" "$5" & sender=$!
"$1" -I "$2" one 111 2
kill "$sender"
"""


def test_what_is_in_another_vlan_is_not_on_this_wire() -> None:
    """A trunk's interface gets the frames of all its VLANs, those with a tag of priority alone (0) for itself."""

    def advert(sender: str, tag: bytes = b"") -> str:
        whole = ipv4(wire.VRRP, 111).replace(socket.inet_aton("10.0.0.99"), socket.inet_aton(sender))
        return (whole[:12] + tag + whole[12:]).ljust(60, b"\0").hex()

    frames = [advert("10.0.0.99"), advert("10.0.0.98", b"\x81\0\xe0\0"), advert("10.0.7.1", b"\x81\0\xe0\7")]
    shown = in_a_network("sh", "-c", SEND, "send", sys.executable, str(Path(wire.__file__)), *frames)
    assert json.loads(shown) == {"answers": {}, "vrrp": dict.fromkeys(["10.0.0.99", "10.0.0.98"], "02:99:00:00:00:01"),
                                 "trouble": ""}  # fmt: skip
