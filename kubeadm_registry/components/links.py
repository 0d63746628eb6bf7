"""How a host is linked: on which interface an address of it is, which ports of others it reaches, and with how large
packets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from kubeadm_registry.addresses import ip
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host


@dataclass(frozen=True, slots=True)
class Link:
    """An address of a host as its kernel has it."""

    interface: str
    prefix_length: int
    temporary: bool = False
    """Whether the kernel made it by itself and will replace it, within days (RFC 8981)."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The interface by which a host sends to an address, and its MTU in bytes."""

    interface: str
    mtu: int


def link(host: Host, address: str) -> Link:
    """Where *address* is on *host*. Raises Error if it is on no interface."""
    result = host.query("ip", "-json", "address", "show")
    for entry in json.loads(result.stdout or b"[]"):
        for item in entry.get("addr_info", ()):
            if ip(item.get("local", "")) == ip(address):
                return Link(entry["ifname"], item["prefixlen"], item.get("temporary", False))
    raise Error(
        f"no interface has the address {address}", host=host.name, code="AddressMissing",
        hint="set nodes[].address to an address of the node itself, not to one that a router translates",
    )  # fmt: skip


def is_direct(host: Host, address: str, interface: str) -> bool:
    """Whether *host* sends to *address* straight out of *interface*, through no router, or has the address itself."""
    result = host.query("ip", "-json", "route", "get", address)
    return result.ok and any(
        way.get("type") == "local" or (way.get("dev") == interface and not {"gateway", "via"} & way.keys())
        for way in json.loads(result.stdout or b"[]")
    )


#: Prints those of the pairs of address and port ``$@`` to which no connection gets. A port on which nobody listens yet
#: says so, and that is an answer; a firewall says that there is no way, or nothing.
BLOCKED = """
command -v bash >/dev/null || exit 0
answered=$(LC_ALL=C timeout 3 bash -c '
try() {
  said=$( (exec 3<>"/dev/tcp/$1/$2") 2>&1)
  case $?:$said in 0:*|*"Connection refused"*) echo "$1 $2" ;; esac
}
while [ $# -gt 1 ]; do try "$1" "$2" & shift 2; done
wait
' try "$@")
while [ $# -gt 1 ]; do
  case "
$answered
" in
  *"
$1 $2
"*) ;;
  *) echo "$1 $2" ;;
  esac
  shift 2
done
"""


def blocked(host: Host, pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the *pairs* of address and TCP port from which *host* gets no answer, not even a refusal."""
    said = host.query("sh", "-c", BLOCKED, "blocked", *(word for pair in pairs for word in pair)).text
    return {(address, port) for address, port in (line.split(" ") for line in said.splitlines())}


#: Prints ``ADDRESS MTU INTERFACE`` for each of ``$@`` that answers a small packet and none as large as the interface
#: may send, tried twice. Where a router says how much it passes the kernel heeds it; a switch says nothing. Without a
#: ping that can forbid fragments (busybox has none), and where nothing is answered at all, nothing is known.
TOO_LARGE = """
try() {
  interface=$(ip -o route get "$1" 2>/dev/null)
  case $interface in *" dev "*) interface=${interface##* dev }; interface=${interface%% *} ;; *) return 0 ;; esac
  mtu=$(ip -o link show dev "$interface" 2>/dev/null)
  case $mtu in *" mtu "*) mtu=${mtu#* mtu }; mtu=${mtu%% *} ;; *) return 0 ;; esac
  case $1 in *:*) headers=48 ;; *) headers=28 ;; esac
  sent() { said=$(LC_ALL=C ping -n -c 1 -W 1 -M "do" -s "$1" "$2" 2>&1); }
  sent 56 "$1" || return 0
  for _ in 1 2; do
    sent $((mtu - headers)) "$1" && return 0
    case $said in *[Tt]"oo long"*|*"Frag needed"*|*[Tt]"oo big"*) return 0 ;; esac
  done
  sent 56 "$1" && echo "$1 $mtu $interface"
}
command -v ping >/dev/null || exit 0
for address; do try "$address" & done
wait
"""


def too_large(host: Host, addresses: Iterable[str]) -> dict[str, Outgoing]:
    """Those of *addresses* that get no packet as large as *host* may send to them, with the way it takes."""
    said = host.query("sh", "-c", TOO_LARGE, "mtu", *addresses).text
    found = (line.split(" ") for line in said.splitlines())
    return {address: Outgoing(interface, int(mtu)) for address, mtu, interface in found}
