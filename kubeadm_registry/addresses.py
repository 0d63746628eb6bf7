"""The one place that knows how an address looks in a URL, a certificate, a path or a listen line.

IPv6 literals take brackets in URLs (RFC 3986, section 3.2.2) and in "host:port" notation, none in certificates and
``ip`` commands, and colons are unwelcome in names. Nobody else in this project puts a colon behind an address.
"""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv4Address, IPv6Address


def ip(address: str) -> IPv4Address | IPv6Address | None:
    """The address as an object, or None if *address* is a name."""
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None


def normal(host: str) -> str:
    """The one way to write the address *host*, so that two of them compare; a name as it is."""
    found = ip(host)
    return host if found is None else str(found)


#: Names in DNS, /etc/hosts and ssh_config: RFC 1123 with underscores, 63 characters at most between two dots.
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")


def is_host_name(text: str) -> bool:
    """Whether *text* may be the name of a host. One that ends in a number is a mistyped address."""
    return _HOST_NAME.fullmatch(text) is not None and not text.rpartition(".")[2].isdecimal()


def is_ipv6(address: str) -> bool:
    """Whether *address* is an IPv6 literal."""
    return isinstance(ip(address), IPv6Address)


def endpoint(address: str, port: int) -> str:
    """``10.0.0.10:5000``, ``[fd00::10]:5000`` or ``name:5000``: for listen lines, image names and peers."""
    return f"[{address}]:{port}" if is_ipv6(address) else f"{address}:{port}"


def url(address: str, port: int, path: str = "", *, scheme: str = "https") -> str:
    """``https://[fd00::10]:5000/v2/``."""
    return f"{scheme}://{endpoint(address, port)}{path}"


def prefix(address: str) -> str:
    """The address as a single host: ``/32`` or ``/128``."""
    return f"{address}/{128 if is_ipv6(address) else 32}"


def family(address: str) -> str:
    """``ip`` or ``ip6``, as nft calls the families; ``ip -4`` and ``ip -6`` follow from it."""
    return "ip6" if is_ipv6(address) else "ip"
