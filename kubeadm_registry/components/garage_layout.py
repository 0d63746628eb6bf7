"""Garage's layout: which node keeps what, and how data moves when the members change.

A layout has versions. A new one is computed from the roles of the nodes, and while data moves both are in use: a write
goes to the nodes of both, a read to the nodes of the one before, until those have handed over. Only then does the one
before end. Source: garage_rpc/layout/history.rs of Garage 2.3, and
https://garagehq.deuxfleurs.fr/documentation/operations/layout/
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kubeadm_registry.agent.document import Left
from kubeadm_registry.agent.workers import BEGINS, QUICK, Work, work_in
from kubeadm_registry.cluster import Cluster, arriving, stayers
from kubeadm_registry.components import blocks as block_files
from kubeadm_registry.components.garage_api import Api
from kubeadm_registry.engine.changes import runs
from kubeadm_registry.errors import CommandFailed, CommandTimeout, Error, NotYetKnown
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.host import Host, side_by_side

#: Nominal: all servers are equal, so only the ratio counts, and Garage does not stop at it.
_CAPACITY = 1_000_000_000_000
POLL = 1.0  # seconds from one look to the next
ASK_AGAIN = 30.0  # seconds from one question about files to the next
STALLED = 900.0  # seconds without any progress after which the wait ends


#: All files in the directories ``$@`` but the node's key; never in another file system, or where a link leads.
_FILES = 'find "$directory" -mindepth 1 -xdev ! -type d ! -name node_key ! -name node_key.pub'
_LOOK = f'set -e; for directory; do [ ! -d "$directory" ] || {_FILES} -print -quit; done'
_REMOVE = f'set -e; for directory; do [ ! -d "$directory" ] || {_FILES} -delete; done'


@dataclass(frozen=True, slots=True)
class Cleared:
    """A node that comes has nothing in its *directories* of a time when it was a member before.

    The others forget that an object was deleted after a day, when all nodes with a role know of it (table/gc.rs). What
    a node without a role has of that object would be new to them, and the object would be there again. Once it has a
    role, in any layout that is still in use, what it has counts.
    """

    cluster: Cluster
    unit: str
    directories: Sequence[str]
    title = "remove what it stored before it left"

    def diff(self, host: Host) -> str | None:
        """That something is there and does not count. Raises NotYetKnown if a node that stays does not answer."""
        found = host.query("sh", "-c", _LOOK, "look", *self.directories, timeout=600)
        if not found.ok:
            raise CommandFailed(found, host=host.name)
        if not found.text or self._counts(host):
            return None
        return f"{', '.join(self.directories)}: emptied, because {host.name} has no role in the storage"

    def apply(self, host: Host) -> None:
        """Stop the storage, and remove it."""
        if runs(host, self.unit):
            host.run("systemctl", "stop", "--", self.unit, timeout=120)
        host.run("sh", "-c", _REMOVE, "remove", *self.directories, timeout=3600)

    def _counts(self, host: Host) -> bool:
        """Whether *host* has a role, as any node knows that stays, or one of them knows of no layout at all."""
        identity = self.cluster.secrets.node_id(host.name)
        members = stayers(self.cluster)
        if not members:
            raise NotYetKnown("no node that stays can be asked about the storage's layouts")
        for one in members:
            api = Api(self.cluster, one)
            # Those of the layouts before are asked for first: a role that passes on meanwhile is seen in one of them.
            roles = {*(api.ask("GetClusterLayoutHistory").get("updateTrackers") or {})}
            layout = api.ask("GetClusterLayout")
            if not layout["version"] or identity in roles | {role["id"] for role in layout["roles"]}:
                return True
        return False


@dataclass(frozen=True, slots=True)
class ClusterLayout:
    """The roles of all servers, staged together and applied once: the same version applied twice would diverge."""

    cluster: Cluster
    copies: int
    title = "apply the storage layout"

    def _roles(self) -> list[dict[str, object]]:
        # A zone of its own for each server, else Garage would put two copies where it likes.
        return [
            {
                "id": self.cluster.secrets.node_id(node.name),
                "zone": node.name,
                "capacity": _CAPACITY,
                "tags": [node.name],
            }
            for node in self.cluster.spec.nodes
        ]

    def diff(self, host: Host) -> str | None:
        """Which servers have no role yet, or one that they must lose. Raises Error if the members do not change."""
        layout = Api(self.cluster, host).ask("GetClusterLayout")
        wanted = {str(role["id"]): str(role["zone"]) for role in self._roles()}
        present = {role["id"]: role["zone"] for role in layout["roles"]}
        if present == wanted:
            return None
        if layout["version"] == 0:
            return f"storage layout: {', '.join(sorted(wanted.values()))}, each block on {self.copies} of them"
        if self.cluster.change is not None:
            new = ", ".join(sorted(name for identity, name in wanted.items() if identity not in present))
            gone = ", ".join(sorted(name for identity, name in present.items() if identity not in wanted))
            words = " and ".join([f"{new} added"] * bool(new) + [f"{gone} removed"] * bool(gone))
            return f"storage layout: {words or 'roles changed'}, version {layout['version'] + 1}"
        raise Error(
            f"the storage consists of {', '.join(sorted(present.values()))}, the file lists "
            f"{', '.join(sorted(wanted.values()))}",
            hint="run `join`, `leave` or `replace` to add, remove or replace a node, or use the cluster file that "
            "lists the members",
            host=host.name, code="LayoutDiffers",
        )  # fmt: skip

    def apply(self, host: Host) -> None:
        """Stage every role, then apply the next version."""
        api = Api(self.cluster, host)
        layout = api.ask("GetClusterLayout")
        if layout["stagedRoleChanges"]:
            api.do("RevertClusterLayout")  # of a run that was killed, perhaps with other nodes
        wanted = {role["id"] for role in self._roles()}
        gone = [{"id": role["id"], "remove": True} for role in layout["roles"] if role["id"] not in wanted]
        api.do("UpdateClusterLayout", {"roles": [*self._roles(), *gone], "parameters": None})
        api.do("ApplyClusterLayout", {"version": layout["version"] + 1})


@dataclass(frozen=True, slots=True)
class QuickCopies:
    """The servers that are new in the storage fetch their copies quickly. Later their agents see to that."""

    cluster: Cluster
    title = "let the storage copy quickly"

    def _set(self, host: Host) -> dict[str, str]:
        answer = Api(self.cluster, host).ask("GetWorkerVariable", {"node": "self", "body": {"variable": None}})
        [found] = answer["success"].values()
        return {name: str(value) for name, value in found.items()}

    def diff(self, host: Host) -> str | None:
        """Which of them copies at Garage's own pace."""
        slow = [one.name for one in arriving(self.cluster) if not self._set(one).items() >= QUICK.items()]
        return f"storage of {', '.join(slow)}: {QUICK['resync-worker-count']} workers" if slow else None

    def apply(self, host: Host) -> None:
        """Set the variables, which Garage keeps."""
        for one in arriving(self.cluster):
            for variable, value in QUICK.items():
                wanted = {"node": "self", "body": {"variable": variable, "value": value}}
                Api(self.cluster, one).do("SetWorkerVariable", wanted)


@dataclass
class CopiesMade:
    """Every member has its copies by the present layout, and none before it is in use any more.

    When the layout before has ended, each node knows of all blocks that it lacks. A node that has then been seen
    without work once has them, also where pushes bring new work all the time.

    Where so many nodes are lost that the layout before has no majority any more, it never ends by itself. It is given
    up, and the tables are compared by the new one alone: then no node may have work for a while, but for the blocks
    that it has failed to get, since no node has them.

    What is left is told as progress, in bytes: each block as *block*, the most that it can have.

    Blocks may have been lost before. Where nothing else is left, those are not waited for that are on no node's disk.
    """

    cluster: Cluster
    block: int
    title = "wait until every node has its copies"
    _waited: bool = False
    _asked: tuple[float, Mapping[str, int]] | None = None
    """When the nodes were asked for the blocks that none has, and what they said."""

    def diff(self, host: Host) -> str | None:
        """What is left, or None."""
        if self._waited:
            return None
        draining, left = self._look(host)
        if self._lost:
            return _words(draining, left) or "the tables are compared"
        if not draining and self.cluster.members.settled:
            return None
        return _words(draining, left)

    @property
    def _lost(self) -> bool:
        """Whether what only lost nodes had is given up."""
        return self.cluster.change is not None and self.cluster.change.lost

    def _look(self, host: Host) -> tuple[list[int], dict[str, Left]]:
        """The layouts before that are still in use, and what each node has left. Raises NotYetKnown."""
        api = Api(self.cluster, host)
        history = api.ask("GetClusterLayoutHistory")
        draining = [one["version"] for one in history["versions"] if one["status"] == "Draining"]
        # Each is asked itself: Garage's answer for all waits for nodes that have left, too.
        own = {"node": "self", "body": {"busyOnly": False, "errorOnly": False}}
        hosts = self.cluster.hosts
        found = side_by_side(lambda one: Api(self.cluster, one).ask("ListWorkers", own), hosts)
        works: dict[str, Work] = {}
        for one, listed in zip(hosts, found, strict=True):
            work = work_in(json.dumps(listed).encode())
            if work is None:
                raise NotYetKnown(f"the storage of {one.name} does not answer")
            works[one.name] = work
        never = {name: work.failed for name, work in works.items()} if self._lost else self._never(draining, works)
        return draining, {
            name: {**work.left, "blocks": max(0, work.left["blocks"] - never[name])} for name, work in works.items()
        }

    def _never(self, draining: Sequence[int], works: Mapping[str, Work]) -> Mapping[str, int]:
        """How many blocks each node will never get, asked where blocks that it failed to get are all that is left."""
        failing = [work for work in works.values() if 0 < work.left["blocks"] <= work.failed]
        if draining or not failing or any(work.left["tables"] for work in works.values()):
            return dict.fromkeys(works, 0)
        now = time.monotonic()
        if self._asked is None or now - self._asked[0] >= ASK_AGAIN:
            try:
                told = block_files.lost(self.cluster)
            except Error:  # one that leaves does not tell: perhaps it has them
                told = dict.fromkeys(works, 0)
            self._asked = now, told
        return self._asked[1]

    def apply(self, host: Host) -> None:
        """Wait, for as long as there is progress. Raises Error (CopiesStalled)."""
        for one in self.cluster.hosts if self._lost else ():
            Api(self.cluster, one).do("LaunchRepairOperation", {"node": "self", "body": {"repairType": "tables"}})
        tell = _Told(self.cluster.progress, self.block)
        last: tuple[int, ...] = ()
        progress = time.monotonic()
        ended: float | None = None
        done: set[str] = set()
        while True:
            numbers: tuple[int, ...] = ()
            now = time.monotonic()
            try:
                draining, left = self._look(host)
                words = _words(draining, left) or "nothing is left"
                tell.left(sum(one["blocks"] for one in left.values()))
                numbers = (len(draining), *(sum(one[key] for one in left.values()) for key in ("tables", "blocks")))
                busy = self._lost and any(one["blocks"] or one["tables"] for one in left.values())
                ended = None if draining or busy else ended or now
                # A block that a table names waits for some seconds before it is fetched.
                if ended is not None and now - ended >= BEGINS:
                    done |= {name for name, one in left.items() if not one["blocks"] and not one["tables"]}
                if done >= left.keys():
                    self._waited = True
                    return
            except (NotYetKnown, CommandTimeout) as error:
                words = error.message
            # What is left grows at first, while the tables name what is to be copied.
            if numbers and (not last or numbers < last):
                progress = now
            last = numbers or last
            if now - progress > STALLED:
                raise Error(
                    f"the storage has made no progress for {STALLED / 60:.0f} minutes: {words}", host=host.name,
                    hint="see the storage's log on the nodes (journalctl -u kubeadm-registry-garage); if blocks are "
                    "left that no node can read, `images check` names their images: delete these with "
                    "`images delete` and push them again; then run the same command again, which resumes here",
                    code="CopiesStalled",
                )  # fmt: skip
            with suppress(NotYetKnown, CommandTimeout):  # a busy storage is asked again, as above
                self._skip_dead(host)
            time.sleep(POLL)

    def _skip_dead(self, host: Host) -> None:
        """Tell Garage not to wait for the word of nodes that are gone; their data is on the others, or lost.

        A host that leaves may answer and its storage be dead, as with a broken disk: it is gone as well. So is one that
        an earlier run was to bring and that died then: no list of members ever had it. Of a storage that runs the word
        comes by itself. Garage gives up those nodes only to which it has no connection, unless data may be missing
        (ClusterLayoutSkipDeadNodes, garage_api_admin/layout.rs).
        """
        change = self.cluster.change
        if change is None:
            return
        api = Api(self.cluster, host)
        history: dict[str, Any] = api.ask("GetClusterLayoutHistory")
        trackers, version = history.get("updateTrackers") or {}, history["currentVersion"]
        stay = {self.cluster.secrets.node_id(node.name) for node in self.cluster.spec.nodes}
        waits = {identity for identity, one in trackers.items() if identity not in stay and one["ack"] < version}
        if waits and not change.lost:
            waits -= {one["id"] for one in api.ask("GetClusterStatus")["nodes"] if one["isUp"]}
        if waits or (change.lost and any(one["status"] == "Draining" for one in history["versions"])):
            try:
                api.do("ClusterLayoutSkipDeadNodes", {"version": version, "allowMissingData": change.lost})
            except CommandFailed:
                return  # the version before has just ended


class _Told:
    """Tells how many bytes have come, by how many blocks are left: of the most that ever were."""

    def __init__(self, progress: Callable[[int, int], None], block: int) -> None:
        self._progress = progress
        self._block = block
        self._total = self._done = 0

    def left(self, blocks: int) -> None:
        """So many are left; nothing is told where that is no progress, as of those that pushes bring meanwhile."""
        if blocks > self._total:
            self._total, self._done = blocks, 0
        elif self._total - blocks > self._done:
            self._done = self._total - blocks
        else:
            return
        self._progress(self._done * self._block, self._total * self._block)


def _words(draining: Sequence[int], left: Mapping[str, Left]) -> str | None:
    """What is left, in words; None if nothing is."""
    blocks, tables = (sum(one[key] for one in left.values()) for key in ("blocks", "tables"))
    words = [f"{counted(blocks, 'block')} and {counted(tables, 'part')} of tables left"] * bool(blocks or tables)
    if draining:
        words.insert(0, f"layout {min(draining)} is still in use")
    return "; ".join(words) or None
