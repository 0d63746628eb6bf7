"""The list of nodes that only pull: one a line, with its address and how to reach it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from kubeadm_registry.addresses import ip, is_host_name, normal
from kubeadm_registry.config import Spec, Ssh
from kubeadm_registry.config.explain import explain
from kubeadm_registry.errors import ConfigError, ConfigProblem

#: A longer file is no list of nodes, and may have no end.
MOST_BYTES = 16 << 20

LINE = "NAME ADDRESS [user=... port=...], or ADDRESS alone"
SHAPE = f"write one node per line: {LINE}"

#: From ``#`` on, but not within a word: a path may have one.
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*")
#: What stands in the second column of ``kubectl get nodes``.
_STATES = ("STATUS", "Ready", "NotReady", "Unknown")


@dataclass(frozen=True, slots=True)
class ClientNode:
    """A host as the list of nodes names it: *address* is an address, a name, or a Host of the user's ssh_config."""

    name: str
    address: str
    ssh: Ssh = field(default_factory=Ssh)


def load(path: Path) -> tuple[ClientNode, ...]:
    """Read the list of nodes *path*. Raises ConfigError with every problem at once."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="check the path given with --nodes", code="NodesUnreadable"
        ) from error
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"{path} is larger than {MOST_BYTES >> 20} MiB, too large for a list of nodes", hint=SHAPE,
            code="NodesUnreadable",
        )  # fmt: skip
    try:
        # With or without the mark that Windows puts before UTF-8.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: is not UTF-8 text", hint="save the file as UTF-8", code="NodesUnreadable"
        ) from error
    return parse(text, str(path))


def parse(text: str, file: str) -> tuple[ClientNode, ...]:
    """The clients that *text* lists; *file* stands in errors. Raises ConfigError.

    A line is ``NAME ADDRESS`` or ``ADDRESS``, then settings of SSH for this node alone, as in ``nodes[].ssh`` of the
    cluster file: ``user=admin port=2222 identityFile=... knownHostsFile=...``. ``#`` at the
    beginning of a line or after a blank begins a comment.
    """
    found: list[ClientNode] = []
    problems: list[ConfigProblem] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        words = _COMMENT.sub("", line).split()
        where = f"{file}:{number}"
        if not words:
            continue
        try:
            client = _client(words)
        except _Wrong as error:
            problems += [ConfigProblem(where, text) for text in error.args]
            continue
        port = f" port {client.ssh.port}" if client.ssh.port else ""
        for what in (client.name, f"{client.address}{port}"):
            if lines.setdefault(what.lower(), number) != number:
                problems.append(ConfigProblem(where, f"{what} is already in line {lines[what.lower()]}"))
        found.append(client)
    if problems:
        raise ConfigError(f"{file} is not valid", problems=problems, code="NodesInvalid", hint=SHAPE)
    if not found:
        raise ConfigError(f"{file} lists no nodes", code="NodesInvalid", hint=SHAPE)
    return tuple(found)


class _Wrong(Exception):
    """What is wrong with a line: one sentence each."""


def _client(words: Sequence[str]) -> ClientNode:
    """The client of a line's *words*. Raises _Wrong."""
    if not all(word.isprintable() for word in words):
        raise _Wrong(f"contains an unprintable character: {' '.join(words)!a}")
    plain = [word for word in words if "=" not in word]
    if list(words[: len(plain)]) != plain or not 1 <= len(plain) <= 2:
        raise _Wrong(f"must be {LINE}")
    name, address = plain[0], plain[-1]
    if name == "NAME":
        raise _Wrong("is a table heading; remove it")
    if address in _STATES:
        raise _Wrong(f"{address} is a column of `kubectl get nodes`, not the address of the node")
    if wrong := [text for text in dict.fromkeys((_wrong_host(name), _wrong_host(address))) if text]:
        raise _Wrong(*wrong)
    if ip(name) is not None and ip(name) != ip(address):
        raise _Wrong(f"write the name first: {address} {name}")
    return ClientNode(normal(name), normal(address), _settings(words[len(plain) :]))


def _wrong_host(text: str) -> str:
    """What is wrong with *text* as an address or the name of a host; empty if nothing is."""
    bare, colon, port = text.rpartition(":")
    user, at, host = text.rpartition("@")
    if ip(text) is not None:
        why = ""
    elif ip(text.strip("[]")) is not None:
        why = "write an IPv6 address without brackets"
    elif text.startswith("[") and text.endswith("]"):
        why = "sections are not supported"
    elif at:
        why = f"set the user with user=: {host} user={user}"
    elif colon and port.isdecimal():
        why = f"set the port with port=: {bare.strip('[]')} port={port}"
    elif re.search(r"[/*{\[]|^[\d.]+-[\d.]+$", text):
        why = "must be a single node; networks, ranges and patterns are not expanded"
    elif not is_host_name(text):
        why = "is not a valid IP address or host name"
    else:
        why = ""
    return f"{text}: {why}" if why else ""


def _settings(words: Sequence[str]) -> Ssh:
    """The settings *words*, each ``key=value``. Raises _Wrong."""
    pairs = [word.partition("=")[::2] for word in words]
    if wrong := list(_wrong_settings(pairs)):
        raise _Wrong(*wrong)
    try:
        return Ssh.model_validate({key: int(value) if key == "port" else value for key, value in pairs})
    except ValidationError as error:
        raise _Wrong(*map(str, explain(error, Ssh))) from error


def _wrong_settings(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    known = {field.alias or name for name, field in Ssh.model_fields.items()}
    keys = [key for key, _ in pairs]
    for key in dict.fromkeys(keys):
        if key not in known:
            yield f"{key}: unknown setting; known settings: {', '.join(sorted(known))}"
        elif keys.count(key) > 1:
            yield f"{key} is set twice"
    for key, value in pairs:
        if key == "port" and not (re.fullmatch("[0-9]{1,5}", value) and 1 <= int(value) <= 65535):
            yield f"port: must be a number from 1 to 65535 (it is {value})"


def refuse_registry(clients: Sequence[ClientNode], spec: Spec, file: str) -> None:
    """Raise ConfigError if one of *clients*, of the list *file*, is the virtual IP, which a server has."""
    vip = {*spec.vip.addresses, *([spec.vip.name] if spec.vip.name else [])}
    if wrong := [client for client in clients if vip & {client.name.lower(), client.address.lower()}]:
        raise ConfigError(
            f"{file}: {', '.join(client.name for client in wrong)} is the virtual IP, not a node",
            code="NodesInvalid", hint="remove it from the list",
        )  # fmt: skip


def refuse_servers(clients: Sequence[ClientNode], spec: Spec, file: str, hint: str) -> None:
    """Raise ConfigError, with *hint*, if any of *clients*, of the list *file*, is a node of the registry."""
    servers = {name for node in spec.nodes for name in (node.name, *node.addresses)}
    if wrong := [client.name for client in clients if servers & {client.name, client.address}]:
        raise ConfigError(
            f"{', '.join(wrong)} in {file}: not a client node but a registry node", code="NodesInvalid",
            hint=f"remove it from the list{hint}",
        )  # fmt: skip
