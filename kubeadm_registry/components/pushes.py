"""Pushes are closed at every proxy while bytes are freed, until a time that each proxy knows; reads go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.agent import pushes
from kubeadm_registry.components import haproxy
from kubeadm_registry.errors import Error
from kubeadm_registry.result import Result
from kubeadm_registry.transport import host_python
from kubeadm_registry.transport.host import Host


@dataclass(frozen=True, slots=True)
class Pushes:
    """What the proxies of a node say. *left*: seconds until pushes open there, by file and socket; None: no process."""

    left: Mapping[str, float | None]
    writes: int
    old: bool

    @property
    def closed_for(self) -> float:
        """Seconds for which all that run, and one that starts, take no push; 0 if one of them takes pushes."""
        return min((seconds for seconds in self.left.values() if seconds is not None), default=0.0)

    @property
    def open(self) -> bool:
        """Whether each of them takes pushes."""
        return not any(self.left.values())

    @property
    def busy(self) -> str | None:
        """What is still written; None if nothing is."""
        if self.old:
            return "a proxy process from before a reload still finishes requests"
        return f"{self.writes} writing requests are in flight" if self.writes else None


def look(host: Host) -> Pushes:
    """What the proxies of *host* say. Raises Error (PushesUnknown)."""
    return _ask(host.query, host, "show", 0)


def close(host: Host, seconds: float) -> None:
    """Close pushes at *host* for *seconds* from now on. Raises Error (PushesUnknown)."""
    _ask(host.run, host, "close", seconds)


def reopen(host: Host) -> None:
    """Open pushes at *host*. Raises Error (PushesUnknown)."""
    _ask(host.run, host, "open", 0)


def _ask(call: Callable[..., Result], host: Host, verb: str, seconds: float) -> Pushes:
    where = (haproxy.PUSHES_MAP, str(seconds), haproxy.USER, *paths.HAPROXY_SOCKETS)
    result = call(*host_python.command(pushes, verb, *where), timeout=60)
    try:
        shown: dict[str, Any] = json.loads(result.stdout)
        trouble = [str(one) for one in shown["trouble"]]
    except (ValueError, KeyError):
        trouble = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["its Python did not return JSON"]
    if trouble:
        raise Error(
            f"cannot {verb} pushes at its proxies: {'; '.join(trouble)}".replace("cannot show", "cannot look for"),
            host=host.name, code="PushesUnknown", hint="run init, which installs what is missing, then try again",
        )  # fmt: skip
    return Pushes(shown["left"], shown["writes"], shown["old"])
