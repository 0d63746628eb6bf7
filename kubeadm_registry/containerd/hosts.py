"""hosts.toml: the files by which containerd finds the registry in place of an upstream one. Pure text.

The rules come from containerd's core/remotes/docker/config/hosts.go (remotes/docker/config in 1.x):

- A host that is not the registry of the image's name is told that name in the query, ``?ns=docker.io``.
- For a registry ``host:port`` the directories ``host_port_``, ``host:port`` and ``_default`` are tried, in this order,
  and only the first that exists is used. Other files beside the directories are never looked at, so our CA lies there.
- ``[host]`` tables are tried in the order of the file, then ``server``; without ``server`` the upstream itself.
- 1.x refuses a file without any ``[host]`` table, and after any error in the file goes to the upstream.
- Keys of the root must stand before the first table.
- The parser of 1.x ends a header at the first closing bracket, also within quotes, and so refuses every IPv6 address in
  ``[host."..."]``; it reads the same as keys of one ``[host]`` table. 2.x looks for hosts in headers only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kubeadm_registry import addresses, paths
from kubeadm_registry.config.values import EVERY_REGISTRY
from kubeadm_registry.containerd import edit
from kubeadm_registry.containerd.settings import Version
from kubeadm_registry.oci.references import repository_prefix

#: Lies beside the directories of the registries; every table of ours names it, which is how we know them again.
CA_NAME = "kubeadm-registry-ca.crt"

#: What containerd looks into for a registry that has no directory of its own.
DEFAULT = "_default"

_MARK = "# Written by kubeadm-registry; sha256 of what follows: "
_ADVICE = "# A file that was edited stays as it is: remove it and run kubeadm-registry init again to get ours back.\n"
_ROOT_KEYS = ("server", "override_path", "ca", "capabilities", "dial_timeout", "header")


@dataclass(frozen=True, slots=True)
class Mirror:
    """One registry as images name it (*registry*), and the URLs at which containerd finds it, best first."""

    registry: str
    urls: tuple[str, ...]
    override_path: bool


def mirrors(vip: Sequence[str], name: str, port: int, upstreams: Sequence[str]) -> tuple[Mirror, ...]:
    """A mirror for each upstream, and one for each way to name the registry itself, without prefix.

    *vip* are the addresses of the VIP, the preferred one first; *name* is its name or empty.
    """
    found = [
        Mirror(
            DEFAULT if upstream == EVERY_REGISTRY else upstream,
            tuple(addresses.url(at, port, f"/v2/{below(upstream)}") for at in vip),
            override_path=True,
        )
        for upstream in dict.fromkeys(upstreams)
    ]
    own = tuple(addresses.url(at, port) for at in vip)
    found += [
        Mirror(addresses.endpoint(at, port), own, override_path=False) for at in (*vip, *([name] if name else []))
    ]
    return tuple(found)


def below(upstream: str) -> str:
    """The path of *upstream*; of all others the proxy makes it, of the name that containerd puts into ``ns=``."""
    return paths.ANY_UPSTREAM if upstream == EVERY_REGISTRY else repository_prefix(upstream)


def directories(registry: str) -> tuple[str, ...]:
    """The names of directories that containerd tries for *registry*, without ``_default``; ours is the first."""
    host, colon, port = registry.rpartition(":")
    return (f"{host}_{port}_", registry) if colon and host and port.isdigit() else (registry,)


def render(mirror: Mirror, *, ca: str, containerd: Version, authorization: str = "") -> str:
    """The hosts.toml of one registry. *ca* is the path of the CA certificate on the host.

    *authorization* is what the header of that name shall be, where the registry does not let anybody pull.
    """
    keys = ["override_path = true"] if mirror.override_path else []
    keys += [f"ca = {edit.literal(ca)}", 'capabilities = ["pull", "resolve"]']
    if containerd.has_dial_timeout:
        keys.append('dial_timeout = "3s"')
    if authorization:
        keys.append(f"header = {{Authorization = {edit.literal(authorization)}}}")
    lines = [f"server = {edit.literal(mirror.urls[0])}", *keys, ""]
    if containerd.major < 2 and any("]" in url for url in mirror.urls):
        lines += ["[host]", *(f"  {edit.literal(url)}.{key}" for url in mirror.urls for key in keys)]
    else:
        for url in mirror.urls:
            lines += [f"[host.{edit.literal(url)}]", *(f"  {key}" for key in keys), ""]
        lines.pop()
    body = _ADVICE + "\n".join(lines) + "\n"
    # The first line says whose file it is; its digest shows whether it was edited.
    return f"{_MARK}{hashlib.sha256(body.encode()).hexdigest()}\n{body}"


def is_ours(content: bytes) -> bool:
    """Whether we wrote the file, edited since or not: it has our first line or our advice, or names our CA."""
    if content.startswith(_MARK.encode()) or _ADVICE.encode() in content:
        return True
    try:
        values = edit.parse(content.decode())
    except (UnicodeDecodeError, edit.Unparsable):
        return False
    hosts = values.get("host")
    tables = hosts.values() if isinstance(hosts, dict) else ()
    return _names_ca(values) or any(isinstance(table, dict) and _names_ca(table) for table in tables)


def is_unmodified(content: bytes) -> bool:
    """Whether the file is as we wrote it."""
    head, _, body = content.partition(b"\n")
    return head == _MARK.encode() + hashlib.sha256(body).hexdigest().encode()


def without_ours(content: bytes) -> bytes | None:
    """An edited file without what is ours in it; None if nothing else is left. A file that is not TOML stays as it is.

    Ours are the two comments, the ``[host]`` tables and the root keys that name our CA, and ``server`` as long as it
    is one of our URLs: with all root keys, which say how to reach it, and would otherwise say so of the upstream. In
    a file that we wrote the host that is also the server is ours, whatever CA somebody gave it since.
    """
    try:
        text = content.decode()
        values = edit.parse(text)
    except (UnicodeDecodeError, edit.Unparsable):
        return content
    hosts = values.get("host")
    tables = hosts if isinstance(hosts, dict) else {}
    ours = {url for url, table in tables.items() if isinstance(table, dict) and _names_ca(table)}
    server = str(values.get("server"))
    if server in tables and (content.startswith(_MARK.encode()) or _ADVICE.encode() in content):
        ours.add(server)
    root = set(_ROOT_KEYS) - {"server"} if _names_ca(values) else set()
    found = edit.statements(text)

    def should_remove(path: edit.Path) -> bool:
        match path:
            case ("host",):
                return all(item.path[1] in ours for item in found if item.table == ("host",) and item.key)
            case ("host", url, *_):
                return url in ours
            case (key, *_):
                return server in ours or key in root
        return False

    lines: list[str | None] = list(edit.lines_of(text))
    for statement in found:
        if should_remove(statement.path):
            lines[statement.start : statement.end] = [None] * (statement.end - statement.start)
    kept = "".join(line for line in lines if line is not None and not line.startswith((_MARK, _ADVICE.rstrip())))
    return re.sub(r"\A\s*\n|\n+(?=\n\Z)", "", kept).encode() if kept.strip() else None


def _names_ca(table: dict[str, Any]) -> bool:
    authority = table.get("ca")
    paths = authority if isinstance(authority, list) else [authority]
    return any(isinstance(path, str) and path.rpartition("/")[2] == CA_NAME for path in paths)
