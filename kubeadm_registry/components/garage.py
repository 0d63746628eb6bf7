"""Garage: keeps every block on three servers, and needs two of them to read and to write."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.cluster import Cluster, arriving, stayer
from kubeadm_registry.components import blocks as block_files
from kubeadm_registry.components import garage_api, s3
from kubeadm_registry.components.existing import Existing
from kubeadm_registry.components.garage_api import Api
from kubeadm_registry.components.garage_layout import Cleared, ClusterLayout, CopiesMade, QuickCopies
from kubeadm_registry.components.units import Port, Service, serve
from kubeadm_registry.engine.changes import (
    NO_RESTART,
    Condition,
    Directory,
    File,
    Steps,
    Wait,
    secret_of,
    unit_state,
    wait,
)
from kubeadm_registry.engine.render import render
from kubeadm_registry.errors import Error, NotYetKnown
from kubeadm_registry.secrets import Secrets
from kubeadm_registry.transport.host import Host

NAME = garage_api.NAME
ETC = garage_api.ETC
CONFIG = garage_api.CONFIG
UNIT = paths.unit(NAME)
USER = paths.user(NAME)
RPC_SECRET = f"{ETC}/rpc_secret"
ADMIN_TOKEN = f"{ETC}/admin_token"
SERVICE = Service(
    NAME,
    units=(UNIT,),
    user=USER,
    program=NAME,
    restarted_by=(CONFIG, RPC_SECRET, ADMIN_TOKEN),
    ports=(Port(paths.RPC_PORT), Port(paths.S3_PORT, local=True), Port(paths.ADMIN_PORT, local=True)),
    inspect=garage_api.INSPECT,
)
REGION = "garage"
BLOCK = 1 << 20
DATA: tuple[str, ...] = ("meta", "data")
NODE_KEY = "meta/node_key"
"""Below Garage's directory: the private key by which the other servers know this one."""
KEY_NAME = "registry"
#: Seconds. A node that came back is connected twice for a moment, and one of the two connections is closed.
STABLE = 5.0
CONNECTED = 3.0


def copies(servers: int) -> int:
    """How many servers keep each block, of so many *servers*."""
    return min(3, servers)


def clear(cluster: Cluster, host: Host) -> Steps:
    """Remove what *host* stored as a member before, unless it is one in the storage already."""
    yield Cleared(cluster, UNIT, [f"{cluster.spec.data_directory}/{NAME}/{directory}" for directory in DATA])


def install(cluster: Cluster, host: Host) -> Steps:
    """Install Garage with its node key and configuration, and start it."""
    data = f"{cluster.spec.data_directory}/garage"
    node, secrets = cluster.node(host), cluster.secrets
    members = [(secrets.node_id(member.name), member.address) for member in cluster.spec.nodes]
    key = node_key(secrets, node.name)
    config = File(
        CONFIG,
        render(
            "garage/garage.toml.j2",
            node=node,
            members=members,
            no_restart=NO_RESTART,
            data=data,
            etc=ETC,
            replication_factor=copies(len(members)),
            block=f"{BLOCK >> 20}MiB",
            rpc_port=paths.RPC_PORT,
            s3=endpoint(paths.S3_ADDRESS, paths.S3_PORT),
            admin=endpoint(paths.LOOPBACK, paths.ADMIN_PORT),
        ),
        owner=f"root:{USER}",
        mode=0o640,
    )
    # Garage refuses secrets that its group may read, so they belong to its user alone.
    rpc_secret = secret_of(USER, RPC_SECRET, secrets.rpc_secret.encode())
    admin_token = secret_of(USER, ADMIN_TOKEN, secrets.admin_token.encode())
    yield Directory(ETC, mode=0o750, owner=f"root:{USER}")
    for directory in (data, f"{data}/meta", f"{data}/data"):
        yield Directory(directory, mode=0o700, owner=f"{USER}:{USER}", recursive=True)
    yield secret_of(USER, f"{data}/{NODE_KEY}", key)
    yield File(f"{data}/{NODE_KEY}.pub", _bytes(secrets.node_id(node.name)), owner=f"{USER}:{USER}", mode=0o400)
    yield from (rpc_secret, admin_token, config)
    yield from serve(
        SERVICE,
        (config, rpc_secret, admin_token),
        # Where a node comes with another address, nothing of the storage is left that a restart could harm.
        gate=None if host in arriving(cluster) else gate(cluster),
        user=USER,
        program=cluster.program(NAME).executable,
        config=CONFIG,
        data=data,
    )
    yield Wait("the storage responds", partial(_answers, cluster), timeout=30)
    yield StorageConnected(cluster)


def form(cluster: Cluster, host: Host) -> Steps:
    """Create the storage cluster: layout, key, bucket, permission. Done on one host, once."""
    yield StorageConnected(cluster)
    yield Wait("all storage nodes are connected", partial(_all_connected, cluster), timeout=60)
    yield ClusterLayout(cluster, copies(len(cluster.spec.nodes)))
    # A node that was installed again receives the layout a moment after it was connected.
    yield Wait("every storage node has the layout", partial(storage_problem_anywhere, cluster), timeout=60)
    yield Key(cluster)
    yield Bucket(cluster)
    yield FormerKey(cluster)


def move(cluster: Cluster, host: Host) -> Steps:
    """Give the members of the new list their places in the storage; done on one *host* that is in both lists."""
    yield StorageConnected(cluster)
    yield ClusterLayout(cluster, copies(len(cluster.spec.nodes)))


def copied(cluster: Cluster, host: Host) -> Steps:
    """Wait until every member of the new list has its copies; done on one *host*."""
    yield QuickCopies(cluster)
    yield CopiesMade(cluster, BLOCK)


def joined(cluster: Cluster, host: Host) -> Steps:
    """Wait until the storage is fully replicated as this host sees it."""
    yield Wait("the storage is fully replicated as this node sees it", partial(storage_problem, cluster), timeout=60)
    yield Wait("this storage node knows the storage keys", partial(_lacks_keys, cluster), timeout=60)


def existing(host: Host) -> Existing | None:
    """What Garage was set up with on *host*; None without its configuration. Raises Error if that cannot be told."""
    content = host.read(CONFIG)
    if content is None:
        return None
    try:
        document = tomllib.loads(content.decode())
        metadata = document["metadata_dir"]
        peers = [peer.partition("@")[::2] for peer in document["bootstrap_peers"]]
        members = {identity: place.rpartition(":")[0].strip("[]") for identity, place in peers}
        return Existing(NAME, metadata.removesuffix(f"/{NAME}/meta"), document["replication_factor"], members)
    except (ValueError, KeyError, AttributeError) as error:
        raise Error(
            f"{CONFIG} was changed since init wrote it: {type(error).__name__} {error}", host=host.name,
            code="ExistingUnknown", hint="restore the file from another node, with this node's own addresses",
        ) from error  # fmt: skip


def formed(host: Host, data_directory: str) -> bool:
    """Whether the storage in *data_directory* may have a layout; before that it stores nothing, and all may be changed.

    Garage writes the file when it is told of a layout first (LayoutManager::save_cluster_layout of Garage 2.3).
    """
    return host.query("test", "-s", f"{data_directory}/{NAME}/meta/cluster_layout").ok


def is_ours(cluster: Cluster, host: Host) -> bool:
    """Whether Garage's directory on *host* has the node key that the secrets have for it."""
    vault = cluster.vault
    key = node_key(vault.preview(), host.name) if vault.made and host.name not in vault.missing else None
    return key is not None and host.read(f"{cluster.spec.data_directory}/{NAME}/{NODE_KEY}") == key


def stored(cluster: Cluster, host: Host) -> int:
    """Bytes of the objects in the bucket as *host* knows it. The blocks of deleted ones go some ten minutes later."""
    return int(_bucket(cluster, host)["bytes"])


#: Bytes below the directory ``$1``; nothing where it is not there, or has so many files that it takes long to tell.
_SIZE = 'timeout 100 du -s -B1 --one-file-system -- "$1" 2>/dev/null | cut -f 1'


def places(cluster: Cluster, host: Host) -> frozenset[str]:
    """The names of the nodes that have a role as *host* knows it; none without a layout. Raises NotYetKnown."""
    # The zone of each node is its name (ClusterLayout).
    return frozenset(str(role["zone"]) for role in Api(cluster, host).ask("GetClusterLayout")["roles"])


def incoming(cluster: Cluster, host: Host) -> int:
    """Bytes that *host* is to take as a member of the new list, beside what it has. Raises NotYetKnown."""
    if cluster.change is None:
        return 0
    [asked] = stayer(cluster)
    here = {node.name for node in cluster.spec.nodes}
    present = places(cluster, asked)
    before, after = (copies(len(names)) / max(1, len(names)) for names in (present, here))
    try:
        total: float = stored(cluster, asked)
    except NotYetKnown:  # without a majority nobody knows
        total = _size(cluster, asked) / before if before else 0.0
    if host in arriving(cluster):
        # What it has is its part already, of a run that was ended, or makes room for it.
        return round(total * after) - (_size(cluster, host) if total else 0)
    return 0 if present == here else round(total * (after - before))


def _size(cluster: Cluster, host: Host) -> int:
    return int(host.query("sh", "-c", _SIZE, "size", block_files.directory(cluster), timeout=120).text or 0)


def abandon(cluster: Cluster, host: Host, seconds: int) -> int:
    """Drop uploads in parts that began more than *seconds* ago and did not end; how many there were."""
    payload = {"bucketId": _bucket(cluster, host)["id"], "olderThanSecs": seconds}
    return int(Api(cluster, host).do("CleanupIncompleteUploads", payload)["uploadsDeleted"])


def blocks(cluster: Cluster, host: Host, keys: Sequence[str]) -> Sequence[Mapping[str, int] | None]:
    """The blocks of each of the objects *keys*, as *host* knows them: one question each. Raises Error."""
    return block_files.blocks(cluster, host, keys, token=ADMIN_TOKEN)


def lacking(cluster: Cluster, host: Host, wanted: Mapping[str, int]) -> frozenset[str]:
    """Those of the blocks *wanted* that *host* does not have on its disk. Raises Error (StorageUnreadable)."""
    return block_files.lacking(host, block_files.directory(cluster), wanted)


def lost(cluster: Cluster) -> Mapping[str, int]:
    """How many blocks each node has failed to get that are on no node's disk. Raises Error (StorageUnreadable)."""
    return block_files.lost(cluster)


def _bucket(cluster: Cluster, host: Host) -> dict[str, Any]:
    found: dict[str, Any] = Api(cluster, host).ask("GetBucketInfo", {"globalAlias": s3.bucket(cluster.spec)})
    return found


def agent_storage() -> dict[str, object] | None:
    """Garage's unit; the agent knows its ports."""
    return {"unit": UNIT}


def agent_peer(cluster: Cluster, name: str) -> dict[str, object]:
    """By which id the agent tells Garage to connect to the server *name*."""
    return {"garage_node_id": cluster.secrets.node_id(name)}


def agent_token(cluster: Cluster) -> str:
    """The token of Garage's admin interface."""
    return cluster.secrets.admin_token


def node_key(secrets: Secrets, name: str) -> bytes:
    """The content of the file NODE_KEY of the server *name*. Raises NotYetKnown before it is made."""
    return _bytes(secrets.node_key(name))


def _bytes(key: str) -> bytes:
    try:
        return bytes.fromhex(key)
    except ValueError:
        return key.encode()  # a placeholder of a dry-run


def _answers(cluster: Cluster, host: Host) -> str | None:
    try:
        Api(cluster, host).ask("GetClusterHealth")
    except NotYetKnown as error:
        return error.message
    return None


def health(cluster: Cluster, host: Host) -> dict[str, Any]:
    """GetClusterHealth as *host* sees it. A silently dead peer counts as connected for over a minute."""
    answer: dict[str, Any] = Api(cluster, host).ask("GetClusterHealth")
    return answer


def storage_problem(cluster: Cluster, host: Host) -> str | None:
    """Return why the storage is degraded as *host* sees it, or None: every node that answers is connected."""
    try:
        state = health(cluster, host)
    except NotYetKnown as error:
        return error.message
    # One that comes to the registry is none of them yet.
    wanted = min(len(cluster.hosts), state["storageNodes"])
    # A partition that has a copy on an absent server cannot have all of them.
    complete = state["partitionsQuorum" if cluster.absent else "partitionsAllOk"]
    if state["storageNodesUp"] >= wanted and state["partitions"] and complete == state["partitions"]:
        return None
    return f"{state['storageNodesUp']} of {wanted} storage nodes are up, storage is {state['status']}"


def _has_layout(cluster: Cluster, host: Host) -> bool:
    """Whether the storage has a layout; without one nothing can be lost by a restart."""
    return bool(health(cluster, host)["storageNodes"])


def storage_problem_anywhere(cluster: Cluster, _: Host) -> str | None:
    """Return why storage is degraded on any node, or None: they notice a loss and a return at different times."""
    for host in cluster.hosts:
        if (flaw := storage_problem(cluster, host)) is not None:
            return f"{host.name}: {flaw}"
    return None


class Stable:
    """A condition that must hold for *seconds* without interruption."""

    def __init__(self, condition: Condition, seconds: float) -> None:
        self._condition = condition
        self._seconds = seconds
        self._since: float | None = None

    def __call__(self, host: Host) -> str | None:
        """None, or why not yet."""
        if (flaw := self._condition(host)) is not None:
            self._since = None
            return flaw
        self._since = time.monotonic() if self._since is None else self._since
        left = self._since + self._seconds - time.monotonic()
        return f"healthy; waiting another {left:.1f} s to confirm" if left > 0 else None


def gate(cluster: Cluster) -> Condition:
    """Says None once the storage has been healthy on all nodes for STABLE seconds: only then may one be restarted."""
    stable = Stable(partial(storage_problem_anywhere, cluster), STABLE)
    return lambda host: stable(host) if _has_layout(cluster, host) else None


@dataclass(frozen=True, slots=True)
class StorageConnected:
    """All running storage nodes are connected; without this it would take half a minute after a restart."""

    cluster: Cluster
    title = "reconnect the storage nodes"

    def _running(self) -> list[Host]:
        return [host for host in self.cluster.hosts if unit_state(host, UNIT).active]

    def _apart(self, running: Sequence[Host]) -> str | None:
        for host in running:
            try:
                connected = health(self.cluster, host)["connectedNodes"]
            except NotYetKnown as error:
                return error.message
            if connected < len(running):
                return f"{host.name} is connected to {connected} of {len(running)} storage nodes"
        return None

    def diff(self, host: Host) -> str | None:
        """Which node is not connected to all others; None also without a layout, when no data can be missing."""
        return self._apart(self._running()) if _has_layout(self.cluster, host) else None

    def apply(self, host: Host) -> None:
        """Connect each running node to the others, and wait."""
        secrets, running = self.cluster.secrets, self._running()
        for member in running:
            others = [self.cluster.node(other) for other in running if other.name != member.name]
            peers = [f"{secrets.node_id(peer.name)}@{endpoint(peer.address, paths.RPC_PORT)}" for peer in others]
            Api(self.cluster, member).do("ConnectClusterNodes", peers)
        # Where two servers connect to each other at once, one of the two connections is ended again.
        stable = Stable(lambda _: self._apart(running), CONNECTED)
        wait(host, stable, what="the storage nodes stay connected", timeout=60)


def _all_connected(cluster: Cluster, host: Host) -> str | None:
    try:
        connected = health(cluster, host)["connectedNodes"]
    except NotYetKnown as error:
        return error.message
    wanted = len(cluster.hosts)
    return None if connected >= wanted else f"{connected} of {wanted} storage nodes are connected"


@dataclass(frozen=True, slots=True)
class Key:
    """The S3 keys of the frontends, made before and imported: one, and another while it is replaced."""

    cluster: Cluster
    title = "import the storage key"

    def _missing(self, host: Host) -> list[tuple[str, str]]:
        """Those that Garage lacks, each with its secret."""
        secrets = self.cluster.secrets
        there = _keys(self.cluster, host)
        # Of a key of before only the id is kept: it is there already.
        following = secrets.overlap.get("next_s3_key_id"), secrets.overlap.get("next_s3_secret_key")
        wanted = [(secrets.s3_key_id, secrets.s3_secret_key), following]
        return [(one, secret) for one, secret in wanted if one and secret and one not in there]

    def diff(self, host: Host) -> str | None:
        """That one is missing. Importing is not idempotent, so it is asked for first."""
        missing = [one for one, _ in self._missing(host)]
        return f"storage key {', '.join(missing)}: new" if missing else None

    def apply(self, host: Host) -> None:
        """Import what is missing."""
        for one, secret in self._missing(host):
            payload = {"accessKeyId": one, "secretAccessKey": secret, "name": KEY_NAME}
            Api(self.cluster, host).do("ImportKey", payload)


def _keys(cluster: Cluster, host: Host) -> set[str]:
    """The ids of the S3 keys that *host* knows."""
    return {str(key["id"]) for key in Api(cluster, host).ask("ListKeys")}


def _wanted_keys(secrets: Secrets) -> list[str]:
    """The ids of the keys that must be there. One of before is there and granted, or the storage is a restored one."""
    return [one for one in (secrets.s3_key_id, secrets.overlap.get("next_s3_key_id")) if one]


def _lacks_keys(cluster: Cluster, host: Host) -> str | None:
    """Which accepted key *host* does not know yet: Garage looks for them in its own copy of the table."""
    try:
        lacking = {*_wanted_keys(cluster.secrets)} - _keys(cluster, host)
    except NotYetKnown as error:
        return error.message
    return f"it lacks storage key {', '.join(sorted(lacking))}" if lacking else None


@dataclass(frozen=True, slots=True)
class FormerKey:
    """The S3 key that was replaced is gone."""

    cluster: Cluster
    title = "delete the former storage key"

    @property
    def _key(self) -> str | None:
        return self.cluster.secrets.overlap.get("retired_s3_key_id")

    def diff(self, host: Host) -> str | None:
        """That it is there. A key that was deleted is not found, so it is asked for first."""
        return f"storage key {self._key}: deleted" if self._key and self._key in _keys(self.cluster, host) else None

    def apply(self, host: Host) -> None:
        """Delete it, with its permissions."""
        Api(self.cluster, host).do("DeleteKey", {"id": self._key})


@dataclass(frozen=True, slots=True)
class Bucket:
    """The bucket, which grants each key read and write access."""

    cluster: Cluster
    title = "create the storage bucket"

    def _id(self, host: Host) -> str | None:
        """The bucket's identity as *host* knows it."""
        listed = Api(self.cluster, host).ask("ListBuckets")
        return next((found["id"] for found in listed if s3.bucket(self.cluster.spec) in found["globalAliases"]), None)

    def _find(self) -> tuple[Host, dict[str, Any]] | None:
        """The bucket, and a host that knows it: one that was made anew may not yet, and would make a second one.

        The last host comes first, since the first one has all else to answer that is asked once.
        """
        for host in reversed(self.cluster.hosts):
            if (found := self._id(host)) is not None:
                return host, Api(self.cluster, host).ask("GetBucketInfo", {"id": found})
        return None

    def diff(self, host: Host) -> str | None:
        """That the bucket or the permission is missing."""
        name, found = s3.bucket(self.cluster.spec), self._find()
        if found is None:
            return f"bucket {name}: new"
        return f"bucket {name}: grant the key read and write access" if self._refused(found[1]) else None

    def _refused(self, found: dict[str, Any]) -> list[str]:
        """The accepted keys that may not read and write."""
        granted = {key["accessKeyId"] for key in found["keys"] if _may_write(key["permissions"])}
        return [one for one in _wanted_keys(self.cluster.secrets) if one not in granted]

    def apply(self, host: Host) -> None:
        """Make the bucket if there is none, and allow the key."""
        create = {"globalAlias": s3.bucket(self.cluster.spec)}
        there, found = self._find() or (host, Api(self.cluster, host).do("CreateBucket", create))
        permissions = {"read": True, "write": True, "owner": False}
        for key in self._refused(found):
            allow = {"bucketId": found["id"], "accessKeyId": key, "permissions": permissions}
            Api(self.cluster, there).do("AllowBucketKey", allow)


def _may_write(permissions: dict[str, Any]) -> bool:
    return bool(permissions["read"] and permissions["write"])
