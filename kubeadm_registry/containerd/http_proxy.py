"""Keeps the registry out of the HTTP proxy that containerd's unit may be set to use. Pure text.

containerd takes its proxy from the environment, by the rules of golang.org/x/net/http/httpproxy: the upper-case name
before the lower-case one, ``NO_PROXY`` a list of ``*``, addresses, networks, and names that cover their sub-domains.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Mapping, Sequence

from kubeadm_registry import addresses

#: Sorts after what people call their own drop-ins (``http-proxy.conf``): later lines win.
DROP_IN_NAME = "zz-kubeadm-registry-no-proxy.conf"
#: A file rather than a line, since systemd lets every EnvironmentFile= win over every Environment=.
ENVIRONMENT = "/etc/kubeadm-registry/containerd-no-proxy.env"

DROP_IN = f"""\
# Written by kubeadm-registry: pulls from the registry do not go through the HTTP proxy of this unit.
[Service]
EnvironmentFile=-{ENVIRONMENT}
"""

_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")


def parse_environment_file(text: str) -> dict[str, str]:
    """The variables of a systemd EnvironmentFile: one a line, comments with # or ;, values quoted or not."""
    found: dict[str, str] = {}
    for line in text.replace("\\\n", "").splitlines():
        name, equals, value = line.strip().partition("=")
        if not equals or name.startswith(("#", ";")):
            continue
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name.strip()] = value
    return found


#: How systemctl quotes a value with a character that means something to a shell, such as ``*``: ``show-environment`` by
#: ``$'...'``, which shlex does not know, ``show`` by ``"..."``.
_QUOTED = re.compile(r"""\$'((?:[^'\\]|\\.)*)'|"(?:[^"\\]|\\.)*\"""")


def parse_show(value: str) -> dict[str, str]:
    """The variables that ``systemctl show --property=Environment`` prints, or ``show-environment``, quoted as in bash.

    Source: shell_maybe_quote in systemd's escape.c.
    """

    def plain(found: re.Match[str]) -> str:
        return found[0] if found[1] is None else shlex.quote(re.sub(r"\\(.)", r"\1", found[1]))

    try:
        words = shlex.split(_QUOTED.sub(plain, value))
    except ValueError:
        words = value.split()
    return {name: value for name, equals, value in (word.partition("=") for word in words) if equals}


def uses_proxy(environment: Mapping[str, str]) -> bool:
    """Whether containerd would send requests to a proxy."""
    return any(environment.get(name) for name in _PROXIES)


def is_covered(no_proxy: str, host: str) -> bool:
    """Whether *host* (an address or a name) is left out of the proxy already."""
    address = addresses.ip(host)
    for entry in (item.strip().lower() for item in no_proxy.split(",")):
        if entry == "*":
            return True
        if address is not None:
            try:
                if address in ipaddress.ip_network(entry, strict=False):
                    return True
            except ValueError:
                continue
        elif entry and (host.lower() == entry or host.lower().endswith("." + entry.removeprefix("*").lstrip("."))):
            return True
    return False


def environment_file(environment: Mapping[str, str], hosts: Sequence[str]) -> str | None:
    """The content of ENVIRONMENT: the user's own list, then *hosts*. None if no request to *hosts* meets a proxy."""
    if not uses_proxy(environment):
        return None
    name = "NO_PROXY" if environment.get("NO_PROXY") else "no_proxy"
    own = environment.get(name, "")
    missing = [host for host in dict.fromkeys(hosts) if not is_covered(own, host)]
    if not missing:
        return None
    value = ",".join([*([own.rstrip(",")] if own else []), *missing])
    # The lower-case name is what the hooks and helpers that containerd starts may read.
    names = ["NO_PROXY", *(["no_proxy"] if "no_proxy" in environment else [])]
    return "".join(f"{name}={value}\n" for name in names)
