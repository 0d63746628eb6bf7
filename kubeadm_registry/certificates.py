"""Which certificates a host has, and which one its proxies serve: asked of them and seen in a handshake on the host."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from kubeadm_registry import paths, pki
from kubeadm_registry.agent import served
from kubeadm_registry.errors import Error
from kubeadm_registry.result import Result
from kubeadm_registry.transport import host_python
from kubeadm_registry.transport.host import Host


def ask(host: Host, verb: str, *, agent: bool = False) -> dict[str, Any]:
    """What ``agent.served`` says on *host*: ``show`` changes nothing, ``load`` does. *agent*: of the agent's as well,
    which takes seconds where that one hangs.

    Raises Error with the words of the host if it says nothing.
    """
    call: Callable[..., Result] = host.run if verb == "load" else host.query
    loopback = (paths.LOOPBACK, str(paths.REGISTRY_PORT))
    there = (host.address if agent else "", str(paths.AGENT_PORT))
    where = (paths.NODE_PEM, paths.CA, *loopback, *there, *paths.HAPROXY_SOCKETS)
    result = call(*host_python.command(served, verb, *where), timeout=60)
    try:
        shown: dict[str, Any] = json.loads(result.stdout)
    except ValueError as error:
        words = result.stderr.decode(errors="replace").strip().splitlines()
        raise Error(words[-1] if words else f"its Python did not return JSON: {error}") from error
    return shown


@dataclass(frozen=True, slots=True)
class Certificates:
    """The certificates of one host. *ends* is that of the one that is served, or of the file where no proxy runs."""

    ends: datetime | None = None
    authority_ends: datetime | None = None
    reason: str = ""
    """What is wrong with what is served, in one word (NotLoaded, OtherAuthority, NotSeen), and in *flaw* in words."""
    flaw: str = ""


def look(host: Host) -> Certificates:
    """The certificates of *host*. Raises Error if it does not answer, ValueError if a file is damaged or unreadable."""
    (_, stored), (ca, authority_ends) = _read(host, paths.NODE_PEM), _read(host, paths.CA)
    if stored is None:
        return Certificates(authority_ends=authority_ends)

    def unseen(trouble: str) -> Certificates:
        return Certificates(
            stored, authority_ends, "NotSeen", f"cannot be queried for the certificate it serves: {trouble}"
        )

    try:
        shown = ask(host, "show")
    except Error as error:
        return unseen(error.message)
    if shown["trouble"]:
        return unseen("; ".join(shown["trouble"]))
    seen = [x509.load_pem_x509_certificate(one.encode()) for one in shown["handshakes"].values()]
    ends = min((one.not_valid_after_utc for one in seen), default=stored)
    if ca and not all(pki.is_of(ca, one) for one in seen):
        flaw = "serves a certificate that the cluster CA did not issue"
        return Certificates(ends, authority_ends, "OtherAuthority", flaw)
    if stale := unloaded(shown):
        return Certificates(ends, authority_ends, "NotLoaded", stale)
    return Certificates(ends, authority_ends)


def _read(host: Host, path: str) -> tuple[str, datetime | None]:
    """A file's text and the end of the certificate in it; empty and None if there is no file."""
    try:
        content = host.read(path)
    except Error as error:
        if error.code != "FileUnreadable":
            raise
        raise ValueError(error.message) from error
    try:
        return ("", None) if content is None else (content.decode(), pki.expiry(content.decode()))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def unloaded(shown: Mapping[str, Any]) -> str | None:
    """That another certificate is served than the one in the file; None if not, or if no proxy runs."""
    stale = [path for path, has in shown["proxies"].items() if has not in (None, shown["file"])]
    if stale:
        return f"serves an older certificate than {paths.NODE_PEM} ({', '.join(stale)})"
    if set(shown["handshakes"]) - {shown["file"]}:
        return f"presents a different certificate on port {paths.REGISTRY_PORT} than {paths.NODE_PEM}"
    return None


def mistrusting(shown: Mapping[str, Any]) -> tuple[str, ...]:
    """The units of HAProxy that trust other CAs than those in the file. One that cannot be asked is not among them."""
    units = dict(zip(paths.HAPROXY_SOCKETS, paths.HAPROXY_UNITS, strict=True))
    stale = [path for path, has in shown["trusted"].items() if has not in (None, shown["ca"])]
    return tuple(units[path] for path in stale if shown["ca"])


def agent_lags(host: Host) -> str | None:
    """That the agent of *host* shows another certificate than that in the file; None if not, or if none runs.

    Raises Error.
    """
    shown = ask(host, "show", agent=True)
    if shown["agent"] is None or shown["file"] == served.fingerprint(ssl.PEM_cert_to_DER_cert(shown["agent"])):
        return None
    return f"the agent of {host.name} presents an older certificate than {paths.NODE_PEM}"
