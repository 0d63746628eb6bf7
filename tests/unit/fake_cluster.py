"""A whole cluster in memory: fake hosts, one fake Garage behind them, programs that are there, fixed secrets."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from kubeadm_registry import __version__, config, paths, pki, status
from kubeadm_registry.addresses import endpoint, prefix
from kubeadm_registry.agent import hardstate, served
from kubeadm_registry.agent.model import HardState
from kubeadm_registry.bundle import TOOL, Bundle, Program, version_command
from kubeadm_registry.bundle.programs import Source
from kubeadm_registry.bundle.tool import MODULE
from kubeadm_registry.cluster import Cluster, read_members, read_vault
from kubeadm_registry.components import (
    agent,
    drain,
    garage,
    handover,
    health,
    helper,
    keepalived,
    network,
    programs,
    running,
)
from kubeadm_registry.components.services import data_directories, services
from kubeadm_registry.engine import changes
from kubeadm_registry.phases import programs as programs_phase
from kubeadm_registry.secrets import Secrets, Vault
from kubeadm_registry.transport import host_python
from kubeadm_registry.transport.host import FileState, Host
from tests.unit.fakes import Command, FakeTransport

PYTHON = "/usr/bin/python3"
#: Phases that reach outside what this fake knows: other tests run them.
ELSEWHERE = ("preflight", "containerd", "verify")


def program(name: str) -> Program:
    """A program as a bundle would bring it; its layer's content is its own name."""
    layer = name.encode()
    return Program(
        name=name,
        version="1.0",
        architecture="amd64",
        prefix=f"{paths.PROGRAMS}/{name}/1.0-amd64-00000000",
        entry_point=f"bin/{name}",
        source=Source("file", name, "a test"),
        digest="sha256:" + hashlib.sha256(layer).hexdigest(),
        size=len(layer),
        unpacked=1_000_000,
    )


def host_key(name: str) -> str:
    """The host key of the server *name*."""
    return f"ssh-ed25519 {base64.b64encode(name.encode()).decode()}"


class FakeBundle:
    """Gives out the layers of ``program``."""

    def extract(self, wanted: Program, target: Path) -> None:
        target.write_bytes(wanted.name.encode())


@cache
def authority() -> pki.Pair:
    return pki.make_ca("registry")


def fixed_secrets(names: tuple[str, ...]) -> Secrets:
    """Secrets that say what they are; only the authority is real, since it must sign."""
    return Secrets(
        generation="0123456789abcdef",
        made="2030-01-02T03:04:05+00:00",
        ca_certificate=authority().certificate,
        ca_key=authority().key,
        rpc_secret="the-rpc-secret",
        admin_token="the-admin-token",
        s3_key_id="GK000000000000000000000000",
        s3_secret_key="the-s3-secret-key",
        push_password="the-push-password",
        pull_password="the-pull-password",
        upload_secret="the-upload-secret",
        heartbeat_key="the-heartbeat-key",
        retention_key="the-retention-key",
        retention_password="the-retention-password",
        node_keys={name: f"{2 * i:02x}" * 32 + f"{2 * i + 1:02x}" * 32 for i, name in enumerate(names)},
    )


@dataclass
class FakeGarage:
    """Garage's admin API as far as we call it, one state for all hosts."""

    hosts: dict[str, FakeTransport]
    roles: list[dict[str, Any]] = field(default_factory=list)
    staged: list[dict[str, Any]] = field(default_factory=list)
    version: int = 0
    keys: dict[str, str] = field(default_factory=dict)
    buckets: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Seconds since which uploads in parts are not complete.
    uploads: list[float] = field(default_factory=list)
    #: How often the layout was changed: each time moves data.
    moved: int = 0
    variables: dict[str, str] = field(default_factory=dict)
    #: Looks at the workers until all copies are made, the blocks that are left at each, and whose word is missing.
    copies: list[int] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)
    #: The hosts of all nodes that ever had a role, by their identities.
    known: dict[str, str] = field(default_factory=dict)
    #: Whether what only the dead had may be given up.
    given_up: bool = False
    #: Blocks that the storages fail to get, as no node has them; and those of them that a node has nevertheless.
    failed: int = 0
    somewhere: int = 0

    def serve(self, host: FakeTransport, executable: str) -> None:
        call = (executable, "-c", garage.CONFIG, "json-api")
        for name in dir(self):
            if name[0].isupper():
                endpoint_of: Callable[[Any], Any] = getattr(self, name)
                acts = (
                    f"garage {name}"
                    if name.startswith(
                        (
                            "Update",
                            "Apply",
                            "Revert",
                            "Import",
                            "Create",
                            "Allow",
                            "Cleanup",
                            "Delete",
                            "Set",
                            "ClusterLayoutSkip",
                            "Launch",
                        )
                    )
                    else ""
                )
                host.answer(*call, name, with_=self._answer(host, endpoint_of), act=acts)

    def _answer(
        self, host: FakeTransport, work: Callable[[Any], Any]
    ) -> Callable[[tuple[str, ...], bytes], bytes | int]:
        def answer(argv: tuple[str, ...], stdin: bytes) -> bytes | int:
            if host.unit(garage.UNIT).active != "active":
                return 1
            assert bool(stdin) == (argv[-1] == "-"), argv
            return json.dumps(work(json.loads(stdin) if stdin else None)).encode()

        return answer

    def _up(self) -> int:
        return sum(host.unit(garage.UNIT).active == "active" for host in self.hosts.values())

    def GetClusterHealth(self, _: Any) -> Any:
        up = self._up()
        listed = len(self.roles) if self.version else 0
        storage = min(up, listed)
        whole = self.version > 0 and storage == listed
        return {
            "status": "healthy" if whole else "degraded",
            "connectedNodes": up,
            "storageNodes": listed,
            "storageNodesUp": storage,
            "partitions": 256 if self.version else 0,
            "partitionsAllOk": 256 if whole else 0,
            "partitionsQuorum": 256 if self.version > 0 and 2 * up > len(self.hosts) else 0,
        }

    def GetClusterLayout(self, _: Any) -> Any:
        return {"version": self.version, "roles": self.roles, "stagedRoleChanges": self.staged}

    def UpdateClusterLayout(self, payload: Any) -> Any:
        self.staged = [*self.staged, *payload["roles"]]
        self.known |= {role["id"]: role["zone"] for role in payload["roles"] if "zone" in role}
        return {}

    def RevertClusterLayout(self, _: Any) -> Any:
        self.staged = []
        return {}

    def ApplyClusterLayout(self, payload: Any) -> Any:
        assert payload["version"] == self.version + 1
        assert self.staged
        roles = {role["id"]: role for role in (*self.roles, *self.staged)}
        self.roles = [role for role in roles.values() if not role.get("remove")]
        self.staged, self.version = [], payload["version"]
        self.moved += 1
        return {}

    def GetClusterLayoutHistory(self, _: Any) -> Any:
        versions = [{"version": self.version, "status": "Current"}]
        if self.dead:
            versions.append({"version": self.version - 1, "status": "Draining"})
        trackers = {identity: {"ack": self.version - 1} for identity in self.dead}
        return {"currentVersion": self.version, "versions": versions, "updateTrackers": trackers or None}

    def GetClusterStatus(self, _: Any) -> Any:
        up = {name for name, host in self.hosts.items() if host.unit(garage.UNIT).active == "active"}
        return {"nodes": [{"id": identity, "isUp": name in up} for identity, name in self.known.items()]}

    def ClusterLayoutSkipDeadNodes(self, payload: Any) -> Any:
        assert payload == {"version": self.version, "allowMissingData": self.given_up}
        up = {one["id"] for one in self.GetClusterStatus(None)["nodes"] if one["isUp"]}
        self.dead = set() if self.given_up else self.dead & up
        return {}

    def LaunchRepairOperation(self, payload: Any) -> Any:
        assert payload == {"node": "self", "body": {"repairType": "tables"}}
        return {"success": {"self": None}}

    def ListWorkers(self, payload: Any) -> Any:
        assert payload["node"] == "self"
        left = self.copies.pop(0) if self.copies else 0
        worker = {"name": "Block resync worker #1", "state": "busy" if left else "idle", "queueLength": left}
        return {"success": {"self": [{**worker, "persistentErrors": self.failed}]}}

    def ListBlockErrors(self, payload: Any) -> Any:
        assert payload == {"node": "self", "body": None}
        return {"success": {"self": [{"blockHash": f"{number:064x}"} for number in range(self.failed)]}}

    def GetWorkerVariable(self, _: Any) -> Any:
        return {"success": {"here": dict(self.variables)}}

    def SetWorkerVariable(self, payload: Any) -> Any:
        self.variables[payload["body"]["variable"]] = payload["body"]["value"]
        return {}

    def ListKeys(self, _: Any) -> Any:
        return [{"id": key} for key in self.keys]

    def ImportKey(self, payload: Any) -> Any:
        assert payload["accessKeyId"] not in self.keys
        self.keys[payload["accessKeyId"]] = payload["secretAccessKey"]
        return {}

    def ListBuckets(self, _: Any) -> Any:
        return [{"id": key, "globalAliases": bucket["globalAliases"]} for key, bucket in self.buckets.items()]

    def GetBucketInfo(self, payload: Any) -> Any:
        if "id" in payload:
            return self.buckets[payload["id"]]
        [(key, found)] = [
            (key, one) for key, one in self.buckets.items() if payload["globalAlias"] in one["globalAliases"]
        ]
        return {"id": key, "bytes": 0, **found}

    def CleanupIncompleteUploads(self, payload: Any) -> Any:
        assert payload["bucketId"] in self.buckets
        return {"uploadsDeleted": len([age for age in self.uploads if age > payload["olderThanSecs"]])}

    def CreateBucket(self, payload: Any) -> Any:
        bucket = {"id": f"b{len(self.buckets)}", "globalAliases": [payload["globalAlias"]], "keys": []}
        return self.buckets.setdefault(str(bucket["id"]), bucket)

    def AllowBucketKey(self, payload: Any) -> Any:
        assert payload["accessKeyId"] in self.keys
        allowed = {"accessKeyId": payload["accessKeyId"], "permissions": payload["permissions"]}
        bucket = self.buckets[payload["bucketId"]]
        bucket["keys"] = [*(key for key in bucket["keys"] if key["accessKeyId"] != payload["accessKeyId"]), allowed]
        return {}

    def DeleteKey(self, payload: Any) -> Any:
        del self.keys[payload["id"]]
        for bucket in self.buckets.values():
            bucket["keys"] = [key for key in bucket["keys"] if key["accessKeyId"] != payload["id"]]
        return None


@dataclass
class FakeCluster:
    """The servers of a cluster file, in memory. ``cluster`` is a new run: it connects and reads what is there."""

    config: config.RegistryCluster
    servers: dict[str, FakeTransport]
    garage: FakeGarage
    programs: dict[str, Program]
    bundle: FakeBundle | None = None
    #: Secrets that are "made" by the first run; None: as in earnest, new ones.
    fixed: Secrets | None = None
    #: How often the guard had been loaded when a server's firewall was flushed.
    flushed: dict[str, int] = field(default_factory=dict)
    #: How often the network's unit had made the routes when a server's interface was taken down.
    unrouted: dict[str, int] = field(default_factory=dict)
    #: The certificate that each run of each proxy has taken up: by server, unit, and number of its starts and reloads.
    served: dict[tuple[str, str, int], str | None] = field(default_factory=dict)
    #: The CAs that it trusts, in the same way.
    trusted: dict[tuple[str, str, int], str | None] = field(default_factory=dict)
    #: Who has the virtual IP, until keepalived ends there.
    holding: FakeTransport | None = None
    #: What the agents report of their nodes beside what the units say: problems that a test makes.
    ill: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str, *, fixed: bool = True, installed: bool = True, **parts: str) -> FakeCluster:
        """From a cluster file. *installed*: the programs are on the hosts; else a bundle brings them.

        *parts*: a ``backend`` or ``frontend`` that the file cannot name, for only a test has it.
        """
        parsed = config.parse(text, "cluster.yaml")
        kinds = {key: getattr(parsed.spec, key).model_copy(update={"type": name}) for key, name in parts.items()}
        parsed = parsed.model_copy(update={"spec": parsed.spec.model_copy(update=kinds)})
        names = tuple(node.name for node in parsed.spec.nodes)
        servers = {name: FakeTransport(name) for name in names}
        wanted = (parsed.spec.backend.type, parsed.spec.frontend.type, "haproxy", "keepalived", TOOL)
        fake = cls(
            parsed,
            servers,
            FakeGarage(servers),
            {name: program(name) for name in wanted},
            None if installed else FakeBundle(),
            fixed_secrets(names) if fixed else None,
        )
        for server in servers.values():
            fake._furnish(server)
            if installed:
                for one in fake.programs.values():
                    fake._unpack(server, one)
        return fake

    def with_file(self, text: str) -> FakeCluster:
        """The same servers with another cluster file; a server that is new in it is a bare one."""
        parsed = config.parse(text, "cluster.yaml")
        servers = {node.name: self.servers.get(node.name, FakeTransport(node.name)) for node in parsed.spec.nodes}
        self.garage.hosts = servers
        other = FakeCluster(parsed, servers, self.garage, self.programs, fixed=None)
        for server in servers.values():
            other._furnish(server)
        return other

    def copy(self) -> FakeCluster:
        """The same cluster on servers that are as these are now; whatever a test taught these, they do not know."""
        servers = {name: server.copy() for name, server in self.servers.items()}
        state = {one.name: getattr(self.garage, one.name) for one in fields(FakeGarage) if one.name != "hosts"}
        other = replace(
            self,
            servers=servers,
            garage=FakeGarage(servers, **deepcopy(state)),
            programs=dict(self.programs),
            flushed=dict(self.flushed),
            unrouted=dict(self.unrouted),
            served=dict(self.served),
            trusted=dict(self.trusted),
            holding=next((servers[name] for name, one in self.servers.items() if one is self.holding), None),
            ill=deepcopy(self.ill),
        )
        for server in servers.values():
            other._furnish(server)
        return other

    @property
    def cluster(self) -> Cluster:
        """What a run begins with."""
        hosts = self.cluster_hosts()
        names = [host.name for host in hosts]
        vault = read_vault(self.config, hosts, data_directories(self.config.spec))
        if self.fixed is not None and not vault.made:
            vault = Vault(self.config.metadata.name, names, {"": self.fixed.found})
        recorded = read_members(self.config, hosts)
        return Cluster(self.config, hosts, vault, self.programs, cast(Bundle | None, self.bundle), recorded=recorded)

    def cluster_hosts(self) -> tuple[Host, ...]:
        """The servers, connected anew."""
        for server in self.servers.values():
            server.closed, server.cut_at = False, None
        return tuple(self.servers[node.name].host(node.address) for node in self.config.spec.nodes)

    def snapshot(self) -> dict[str, object]:
        return {name: server.snapshot() for name, server in self.servers.items()}

    def acts(self) -> list[str]:
        return [f"{name}: {act}" for name, server in self.servers.items() for act in server.acts]

    def log(self) -> list[Command]:
        return [command for server in self.servers.values() for command in server.log]

    def _furnish(self, server: FakeTransport) -> None:
        node = self.config.spec.node(server.name)
        vip = self.config.spec.vip
        on = {name: one.executable for name, one in self.programs.items()}
        if "garage" in on:
            self.garage.serve(server, on["garage"])
        for one in self.programs.values():
            server.answer(one.executable, *version_command(one)[1:], with_="1.0")
            self._bring(server, one)
        server.answer(on["haproxy"], "-c", "-q", "-f", "{path}")
        server.answer(on["keepalived"], "--config-test", "--use-file", "{path}")
        if "zot" in on:
            server.answer(on["zot"], "verify", "{path}", with_=lambda _, content: 0 if json.loads(content) else 1)
        server.answer("sh", "-c", helper._HOST_KEYS, with_=f"ssh-rsa AAAA root@x\n{host_key(server.name)} root@x\n")
        # Nobody looks from outside: no program of ours is seen to run, so each is started once in every run.
        server.answer(
            "sh",
            "-c",
            programs_phase._RUNS,
            with_=lambda argv, _: "\n".join([*(path for path in argv[5:] if path in server.tree), "running:"]),
        )
        server.answer("sh", "-c", agent._PYTHON, "python", "3, 9", PYTHON, with_="True\n")
        server.answer(
            PYTHON, "-I", agent.ARCHIVE, "--check", "--config", "{path}",
            with_=lambda _, content: 0 if json.loads(content)["name"] == server.name else 1,
        )  # fmt: skip
        units = [unit for service in services(self.config.spec) for unit in service.units]
        server.answer(
            "sh", "-c", status._ASK, "status", paths.AGENT_STATE, paths.PREFIX, self.config.spec.data_directory, *units,
            with_=lambda *_: self._status(server, units),
        )  # fmt: skip
        server.answer("sh", "-c", health._ASK, "health", with_=lambda *_: self._health(server))
        server.answer("sh", "-c", health._STATE, "state", with_=lambda *_: self._agent(server))
        server.answer("sh", "-c", handover._ASK, "ask", with_=lambda argv, _: self._asked(server, argv), act="ask")
        server.answer("sh", "-c", running._ASK, "running", with_=lambda argv, _: self._running(server, argv[4::2]))
        server.answer("sh", "-c", host_python.RUN, "blocks", with_=lambda _, asked: self._blocks(server, asked))
        server.answer("ss", "-Htn", "state", "established")
        server.answer("sh", "-c", drain._RENEW, "renew", act="renew the proxies' workers")
        server.answer("sh", "-c", drain._HOLD, "hold", act="hold new connections")
        server.answer("sh", "-c", drain._RELEASE, "release", act="take new connections")
        links = [{"local": own, "prefixlen": 64 if ":" in own else 24} for own in node.addresses]
        shown = [{"ifname": "lo", "addr_info": []}, {"ifname": "eth0", "addr_info": links}]
        server.answer("ip", "-json", "address", "show", with_=json.dumps(shown))
        for address in vip.addresses:
            server.answer(
                "ip", "-oneline", "address", "show", "-tentative", "to", prefix(address),
                with_=lambda argv, _: f"2: eth0 inet {argv[-1]}" if self._holder() is server else "",
            )  # fmt: skip
        server.answer(
            *host_python.command(served),
            with_=lambda argv, _: json.dumps(self._certificates(server, argv[6])),
        )  # fmt: skip

        def remove_guard(*_: object) -> int:
            self.flush_firewall(server)
            return 0

        loaded = "".join(f"table inet {name}\n" for name in paths.TABLES)
        server.answer("nft", "list", "tables", "inet", with_=lambda *_: loaded if self._guarded(server) else "")
        for name in paths.TABLES:
            table = ("table", "inet", name)
            server.answer("nft", "list", *table, with_=lambda *_: 0 if self._guarded(server) else 1)
            server.answer("nft", "delete", *table, act=f"remove {name}", with_=remove_guard)
        server.answer(
            network.SCRIPT, "missing",
            with_=lambda *_: "" if self._routed(server) else "route to 10.0.0.12 in table 3901\n",
        )  # fmt: skip
        listening = f"LISTEN 0 4096 {endpoint(node.address, paths.REGISTRY_PORT)} *:*\n"
        server.answer(
            "ss", "-Hltn", "sport", "=", f":{paths.REGISTRY_PORT}",
            with_=lambda *_: listening if server.unit(paths.HAPROXY_UNITS[0]).active == "active" else "",
        )  # fmt: skip

        def started(unit: str) -> None:
            if unit == agent.UNIT:
                settings = json.loads(server.content(agent.CONFIG))
                server.put(paths.AGENT_STATE, json.dumps({"members": {"generation": settings["generation"]}}))
                promised = HardState(settings["generation"], epoch=0)
                server.put(settings["paths"]["hardstate"], hardstate.encode(promised))

        server.on_start = started

    def _agent(self, server: FakeTransport) -> str:
        """The clock and what the agent says: who has the virtual IP has the lease, unless it is asked to yield it."""
        if server.unit(agent.UNIT).active != "active":
            return "1000.5\n"
        asked = json.loads(server.content(paths.MOVE)) if paths.MOVE in server.tree else {}
        settings, yields = json.loads(server.content(agent.CONFIG)), bool(asked.get("yields"))
        holds = self._holder() is server and not (yields and settings["writer"] == "single")
        role = {"mode": settings["writer"], "role": "writer" if holds else "standby", "yields": yields}
        started = json.loads(server.content(paths.AGENT_STATE))
        return f"1000.5\n{json.dumps({**started, 'time': 1000.0, 'uptime': 60.0, 'writer': role})}"

    def _asked(self, server: FakeTransport, argv: Sequence[str]) -> int:
        _, _, _, _, path, target, seconds, form, yields = argv
        server.put(
            path, json.dumps({"format": json.loads(form), "to": target, "yields": json.loads(yields), "until": seconds})
        )
        return 0

    def _health(self, server: FakeTransport) -> str:
        """What the script says by which health is judged: all that is wrong is that services do not run, and ill."""
        if server.unit(agent.UNIT).active != "active":
            return "1000.5\n---\n"
        units = [unit for service in services(self.config.spec) for unit in service.units]
        failed = self.garage.failed
        conditions = [*self.ill.get(server.name, ()), *["StorageCopying"] * bool(failed), *(
            "FrontendDown" for unit in units if unit != keepalived.UNIT and server.unit(unit).active != "active"
        )]  # fmt: skip
        ill = [one for one in conditions if one != "StorageCopying"]
        others = [one for one in self.servers.values() if one is not server]
        listed = {node.name: node.address for node in self.config.spec.nodes}
        holds = self._holder() is server
        state = {
            "time": 1000.0, "version": __version__, "level": 2 if ill else 0, "fit": not ill,
            "conditions": conditions,
            "quorum": {"storage": self.garage._up()}, "storage_left": {"blocks": failed, "tables": 0},
            "storage_queues": {"blocks": 0, "errors": failed, "entries": 0, "merkle": 0},
            "vip": {"held": holds}, "writer": {"role": "writer" if holds else "standby"},
            "peers": {
                one.name: {
                    "address": listed.get(one.name, ""),
                    "presence": "fresh" if one.unit(agent.UNIT).active == "active" else "gone",
                }
                for one in others
            },
        }  # fmt: skip
        return f"1000.5\n---\n{json.dumps(state)}"

    def _blocks(self, server: FakeTransport, asked: bytes) -> str:
        """Which of the blocks the server does not have on its disk: the first one has some of those that fail."""
        lacking = list(json.loads(asked)["blocks"])
        if server is next(iter(self.servers.values())):
            lacking = lacking[self.garage.somewhere :]
        return "".join(f"{block}\n" for block in lacking) + "end\n"

    def _running(self, server: FakeTransport, units: Sequence[str]) -> str:
        """The programs that the units' files name."""
        lines = []
        for unit in units:
            path = changes.unit_path(unit)
            content = server.content(path).decode() if path in server.tree else ""
            found = re.search(r"^ExecStart=(\S+)", content, re.MULTILINE)
            lines.append(f"{unit} {found[1] if found else ''}\n")
        return "".join(lines)

    def _status(self, server: FakeTransport, units: Sequence[str]) -> str:
        """What the script says by which status asks."""
        shown = "\n".join(f"Id={name}\nActiveState={server.unit(name).active}\n" for name in units)
        state = {"time": 1000.0, "fit": True, "quorum": {"storage": len(self.servers)}, "clock_off": 0.0}
        told = json.dumps(state) if server.unit(agent.UNIT).active == "active" else ""
        return f"{shown}---\n1000.5\n{3 if self._guarded(server) else 0}\nrw\n{told}"

    def _certificates(self, server: FakeTransport, verb: str) -> dict[str, object]:
        """What the script says: a proxy has the certificate that was there when it started, or was loaded since."""
        pem, ca = (self._digest_of(server, path) for path in (paths.NODE_PEM, paths.CA))
        proxies: dict[str, str | None] = {}
        trusted: dict[str, list[str | None] | None] = {}
        for path, name in zip(paths.HAPROXY_SOCKETS, paths.HAPROXY_UNITS, strict=True):
            unit = server.unit(name)
            run, runs = (server.name, name, unit.starts + unit.reloads), unit.active == "active"
            knows = self.trusted.setdefault(run, ca)
            has = self.served.setdefault(run, pem)
            if verb == "load" and runs and has != pem:
                server._act(f"load the certificate into {name}")
                self.served[run] = has = pem
            proxies[path], trusted[path] = has if runs else None, [knows] if runs else None
        content = "" if pem is None else server.content(paths.NODE_PEM).decode().partition("-----BEGIN PRIVATE")[0]
        shaken = {has: content if has == pem else "" for has in proxies.values() if has}
        return {
            "file": pem, "ca": [] if ca is None else [ca], "proxies": proxies, "trusted": trusted,
            "handshakes": shaken, "agent": None, "trouble": [],
        }  # fmt: skip

    @staticmethod
    def _digest_of(server: FakeTransport, path: str) -> str | None:
        found = server.tree.get(path)
        return hashlib.sha256(found.content).hexdigest() if isinstance(found, FileState) else None

    def _holder(self) -> FakeTransport | None:
        running = [one for one in self.servers.values() if one.unit(keepalived.UNIT).active == "active"]
        if not any(one is self.holding for one in running):
            self.holding = running[0] if running else None
        return self.holding

    def _guarded(self, server: FakeTransport) -> bool:
        """Whether the unit has loaded the guard's rules since the firewall was flushed; they stay when it stops."""
        unit = server.unit(network.GUARD_UNIT)
        return unit.starts + unit.reloads > self.flushed.get(server.name, 0)

    def flush_firewall(self, server: FakeTransport) -> None:
        """Take all nft rules away."""
        unit = server.unit(network.GUARD_UNIT)
        self.flushed[server.name] = unit.starts + unit.reloads

    def _routed(self, server: FakeTransport) -> bool:
        """Whether the unit has made the routes since they were lost, if ever."""
        unit = server.unit(network.UNIT)
        return unit.starts + unit.reloads > self.unrouted.get(server.name, -1)

    def lose_routes(self, server: FakeTransport) -> None:
        """Take an interface down and up."""
        unit = server.unit(network.UNIT)
        self.unrouted[server.name] = unit.starts + unit.reloads

    def _bring(self, server: FakeTransport, one: Program) -> None:
        digest = one.digest.removeprefix("sha256:")
        archive = f"{paths.PROGRAMS}/.{digest}.tar.gz"

        def uploaded(*_: object) -> int:
            found = server.tree.get(archive)
            return 0 if isinstance(found, FileState) and hashlib.sha256(found.content).hexdigest() == digest else 1

        def unpack(argv: tuple[str, ...], _: bytes) -> int:
            if uploaded() != 0:
                return 1
            self._unpack(server, one)
            del server.tree[archive]
            return 0

        server.answer("sh", "-c", programs._UPLOADED, "uploaded", digest, archive, with_=uploaded)
        server.answer(
            "sh", "-c", programs._UNPACK, "unpack", archive, digest, one.prefix, digest,
            with_=unpack, act=f"unpack {archive} in {one.prefix}",
        )  # fmt: skip

    def another_build(self, name: str) -> tuple[Program, Program]:
        """From now on there is another build of the program *name*, unpacked on each server; the one before, and it."""
        before = self.programs[name]
        after = replace(before, prefix=before.prefix.replace("00000000", "11111111"))
        self.programs = {**self.programs, name: after}
        for server in self.servers.values():
            self._unpack(server, after)
            server.answer(after.executable, "--version", with_="1.0")
        return before, after

    def _unpack(self, server: FakeTransport, one: Program) -> None:
        server.put(f"{one.prefix}/.digest", one.digest.removeprefix("sha256:") + "\n")
        server.put(one.executable, b"\x7fELF", 0o755)
        if one.name == TOOL:
            server.put(f"{one.prefix}/{MODULE}", b"#!/bin/sh\n", 0o755)
