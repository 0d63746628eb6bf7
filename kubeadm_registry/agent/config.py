"""The agent's configuration: one JSON file, closed to unknown keys; secrets are named by path only."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Optional

from kubeadm_registry.agent.model import Members, Settings
from kubeadm_registry.agent.timings import Timings

LEAST_MARK, MOST_MARK = 3, 63
"""The kernel's timer says its timeout by a DSCP, in tenths of a second; 1 and 2 say something else."""


class ConfigError(Exception):
    """The file is wrong. ``problems`` holds one sentence for each mistake, beginning with the path to the value."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Peer:
    """Another registry node."""

    name: str
    address: str
    garage_node_id: str = ""  # 64 hexadecimal digits; empty: never told to connect


@dataclass(frozen=True)
class Frontend:
    """The registry process on loopback."""

    type: str  # its name; only for people, ``writer`` decides
    unit: str  # systemd unit
    address: str = "127.0.0.1"
    port: int = 5001
    reads_from: str = "127.0.0.9"  # source address of the proxy's read connections: only these are ever reset
    runtime_config: str = ""  # the file that the process watches; only with writer "single"
    writer_config: str = ""
    standby_config: str = ""


@dataclass(frozen=True)
class Storage:
    """Garage on this node. Left out for a storage without an admin port: then only the canary sees it."""

    unit: str
    admin_address: str = "127.0.0.1"
    admin_port: int = 3903
    health_path: str = "/health"


@dataclass(frozen=True)
class Guard:
    """The nft rules for who may connect to frontend and storage on loopback. Left out: nobody looks at them."""

    tables: tuple[str, ...]  # of the family inet
    file: str  # what nft loads to have it


@dataclass(frozen=True)
class Fence:
    """Where the rules of the kernel's timer listen: the storage's own loopback address, and a UDP port."""

    address: str = "127.0.0.39"
    port: int = 3904


@dataclass(frozen=True)
class Executor:
    """What carries out retention: it acts on the node only that holds the lease. Left out: there is none."""

    unit: str = "kubeadm-registry-retention@.service"  # a template: processes of all its instances are meant
    writes_from: str = "127.0.0.10"  # source address of the proxy's connections for it: these end with the lease


@dataclass(frozen=True)
class Proxy:
    """The HAProxy processes: one runtime socket each, in the order of their units."""

    sockets: tuple[str, ...] = (
        "/run/kubeadm-registry/haproxy/1.sock",
        "/run/kubeadm-registry/haproxy/2.sock",
    )
    epoch_map: str = "/etc/kubeadm-registry/haproxy/state.map"
    pushes_map: str = "/etc/kubeadm-registry/haproxy/pushes.map"


@dataclass(frozen=True)
class Canary:
    """The known object: a manifest and its layer of at least 64 KiB, both read by digest and hashed."""

    repository: str
    manifest: str  # sha256:...
    blob: str
    media_type: str = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Tls:
    """The node's certificate (OU=registry-node) for the metrics port, and the CA that clients must come from."""

    cert: str
    key: str
    ca: str


@dataclass(frozen=True)
class Ports:
    """Ports on the nodes' addresses."""

    public: int = 5000
    internal: int = 5443
    rpc: int = 3901
    heartbeat: int = 5444
    metrics: int = 5445


@dataclass(frozen=True)
class Paths:
    """What the agent writes, and ``move``, which it reads: on tmpfs but for ``hardstate``."""

    fit: str = "/run/kubeadm-registry/agent/fit"
    alone: str = "/run/kubeadm-registry/agent/alone"
    behind: str = "/run/kubeadm-registry/agent/behind"
    state: str = "/run/kubeadm-registry/agent/state.json"
    move: str = "/run/kubeadm-registry/agent/move"  # where root asks for a planned move of the VIP
    mark: str = "/run/kubeadm-registry/agent/writer"  # there while a frontend process may have been the writer
    hardstate: str = "/var/lib/kubeadm-registry/agent/hardstate"  # on disk: what this node has promised


@dataclass(frozen=True)
class Config:
    """The whole file."""

    name: str
    address: str
    peers: tuple[Peer, ...]
    vips: tuple[str, ...]
    frontend: Frontend
    writer: str  # "any" or "single"
    heartbeat_key_file: str
    tls: Tls
    generation: int = 1  # of the list of members; grows with each change of it
    members_before: tuple[str, ...] = ()  # names of the generation before, until all nodes have the new one
    former: tuple[Peer, ...] = ()  # nodes that have left: they are told so, and nothing else
    fence: Optional[Fence] = None  # needed with writer "single" or an executor
    executor: Optional[Executor] = None  # with it the lease runs also with writer "any"
    storage: Optional[Storage] = None
    guard: Optional[Guard] = None
    canary: Optional[Canary] = None
    garage_admin_token_file: str = ""
    metrics_anonymous: bool = False  # /metrics without a client certificate
    proxy: Proxy = field(default_factory=Proxy)
    ports: Ports = field(default_factory=Ports)
    paths: Paths = field(default_factory=Paths)
    timings: Timings = field(default_factory=Timings)

    @property
    def settings(self) -> Settings:
        """What the rules need of it."""
        return Settings(
            name=self.name,
            peers=tuple(peer.name for peer in self.peers),
            single_writer=self.writer == "single",
            timings=self.timings,
            members=self.members,
            before=self.members_before,
            executor=self.executor is not None,
        )

    @property
    def members(self) -> Members:
        """The list of members as heartbeats name it: votes count among nodes that have the same one."""
        nodes = sorted([(self.name, self.address), *((peer.name, peer.address) for peer in self.peers)])
        return Members(self.generation, hashlib.sha256(json.dumps(nodes).encode()).hexdigest()[:16])


def load(path: Path) -> Config:
    """The configuration in the file *path*. Raises ConfigError with every problem, or OSError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError([f"{path}: not JSON: {error}"]) from error
    return parse(raw)


def parse(raw: object) -> Config:
    """The configuration in decoded JSON. Raises ConfigError with every problem."""
    problems: list[str] = []
    config = _value(Config, raw, "", problems)
    if not problems:
        problems += _mistakes(config)
    if problems:
        raise ConfigError(problems)
    return typing.cast("Config", config)


def _value(kind: Any, raw: object, path: str, problems: list[str]) -> Any:
    """*raw* as *kind*; what does not fit is added to *problems*."""
    origin = typing.get_origin(kind)
    if origin is typing.Union:  # Optional
        return None if raw is None else _value(typing.get_args(kind)[0], raw, path, problems)
    if origin is tuple:
        if not isinstance(raw, list):
            problems.append(f"{path}: a list is needed")
            return ()
        item = typing.get_args(kind)[0]
        return tuple(_value(item, one, f"{path}[{index}]", problems) for index, one in enumerate(raw))
    if is_dataclass(kind):
        return _object(kind, raw, path, problems)
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        problems.append(f"{path}: {names[kind]} is needed")
    return raw


def _object(kind: Any, raw: object, path: str, problems: list[str]) -> Any:
    if not isinstance(raw, dict):
        problems.append(f"{path or 'the file'}: an object is needed")
        return None
    hints = typing.get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}
    before = f"{path}." if path else ""
    for key in raw:
        if key not in known:
            problems.append(f"{before}{key}: unknown key; known are {', '.join(known)}")
    values = {}
    for name, one in known.items():
        if name in raw:
            values[name] = _value(hints[name], raw[name], before + name, problems)
        elif one.default is MISSING and one.default_factory is MISSING:
            problems.append(f"{before}{name}: missing")
    return None if problems else kind(**values)


def _mistakes(config: Config) -> list[str]:
    """What is well formed and yet cannot be right."""
    found = []
    if config.writer not in ("any", "single"):
        found.append('writer: "any" or "single" is needed')
    names = [config.name, *(peer.name for peer in config.peers)]
    if len(set(names)) != len(names) or "local" in names:
        found.append("peers: every node needs a name of its own, and none may be called local")
    taken = {config.address, *(peer.address for peer in config.peers)}
    if any(one.address in taken for one in config.former):
        found.append("former: a node that has left cannot have the address of a member")
    if not config.vips:
        found.append("vips: at least one address is needed")
    for key in ("runtime_config", "writer_config", "standby_config") if config.writer == "single" else ():
        if not getattr(config.frontend, key):
            found.append(f'frontend.{key}: missing, and writer is "single"')
    if config.writer == "single" and config.fence is None:
        found.append('fence: missing, and writer is "single"')
    if config.executor is not None and config.fence is None:
        found.append("fence: missing, and there is an executor")
    if config.generation < 1:
        found.append("generation: must be 1 or more")
    found += _wrong_addresses(config) + _wrong_ports(config)
    return found + _wrong_canary(config) + _wrong_timings(config.timings)


def _wrong_addresses(config: Config) -> list[str]:
    found = []
    addresses = [("address", config.address), ("frontend.address", config.frontend.address)]
    addresses += [("frontend.reads_from", config.frontend.reads_from)]
    addresses += [(f"peers[{index}].address", peer.address) for index, peer in enumerate(config.peers)]
    addresses += [(f"former[{index}].address", one.address) for index, one in enumerate(config.former)]
    addresses += [(f"vips[{index}]", vip) for index, vip in enumerate(config.vips)]
    if config.fence is not None:
        addresses.append(("fence.address", config.fence.address))
    if config.executor is not None:
        addresses.append(("executor.writes_from", config.executor.writes_from))
    if config.storage is not None:
        addresses.append(("storage.admin_address", config.storage.admin_address))
    for path, address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            found.append(f"{path}: {address!r} is not an IP address")
    for key, listed in (("peers", config.peers), ("former", config.former)):
        for index, peer in enumerate(listed):
            if (":" in peer.address) is not (":" in config.address):
                found.append(f"{key}[{index}].address: must be of the same family as address")
    others = (config.frontend.address, config.frontend.reads_from)
    if config.executor is not None and config.executor.writes_from in others:
        found.append("executor.writes_from: must differ from frontend.address and frontend.reads_from")
    if config.frontend.reads_from == config.frontend.address:
        found.append("frontend.reads_from: must differ from frontend.address, or writes would be reset with the reads")
    return found


def _wrong_ports(config: Config) -> list[str]:
    ports = [(f"ports.{one.name}", getattr(config.ports, one.name)) for one in fields(Ports)]
    ports.append(("frontend.port", config.frontend.port))
    if config.fence is not None:
        ports.append(("fence.port", config.fence.port))
    if config.storage is not None:
        ports.append(("storage.admin_port", config.storage.admin_port))
    return [f"{path}: must be a port, 1 to 65535" for path, port in ports if not 0 < port < 65536]


def _wrong_canary(config: Config) -> list[str]:
    found = []
    for key in ("manifest", "blob") if config.canary is not None else ():
        algorithm, _, digest = getattr(config.canary, key).partition(":")
        if algorithm != "sha256" or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            found.append(f"canary.{key}: a sha256 digest is needed")
    return found


def _wrong_timings(timings: Timings) -> list[str]:
    found = [
        f"timings.{one.name}: must be more than zero"
        for one in fields(Timings)
        if not 0 < getattr(timings, one.name) < math.inf  # JSON of Python's kind knows NaN and Infinity
    ]
    if timings.lease_margin >= timings.lease:
        found.append("timings.lease_margin: must be less than timings.lease")
    if timings.timer + timings.ticket + timings.timer_slack >= timings.lease:
        found.append("timings.timer: with ticket and timer_slack it must be less than timings.lease")
    if not LEAST_MARK <= round(timings.timer * 10) <= MOST_MARK:
        found.append(f"timings.timer: must be {LEAST_MARK / 10} to {MOST_MARK / 10}")
    return found
