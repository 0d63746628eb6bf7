"""Freeing what no manifest needs any more, with Distribution: pushes are closed at every proxy meanwhile, reads go on.

Its own ``garbage-collect`` does not see what other processes upload, so no push may go on anywhere while it deletes,
and it reads every manifest first. Here it only tells what no manifest needs, while pushes go on. Then pushes are
closed, what they may rely on since is taken out, and the rest is deleted. The frontends remember which blobs are there,
so each is started again before pushes are opened. All of it ends by itself when the run dies: the deletion by its time
limit, then each node starts its frontend again, then the time comes at which the proxies take pushes.

What is done on a node is a step of ``access/collecting.py``: a command does it as root, the operator asks the helper.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from secrets import token_hex

from kubeadm_registry.access.collecting import FURTHEST, LONGEST, RESTARTS, Member, Seen, log_of, seen
from kubeadm_registry.agent.clock import clock
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.engine.changes import Steps, Wait, wait
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.images.push_log import PushLog
from kubeadm_registry.transport.host import Host, side_by_side

#: Seconds that pushes in flight have to end.
DRAIN = 60.0
#: Seconds between the restarts of two frontends, if they restart by themselves.
APART = 15.0
#: Seconds that pushes may be closed at most, beside what the collection itself is expected to take.
MARGIN = RESTARTS + DRAIN + 120.0
#: Seconds in which a blob is deleted, on a slow storage.
EACH = 0.1
#: Seconds by which the clocks of two nodes may differ, and more.
CLOCKS = 60.0


@dataclass
class Collection:
    """One run, by the *members* of *cluster*, in the order of its hosts. *grace*: seconds for which stays what pushes
    relied on."""

    cluster: Cluster
    members: Sequence[Member]
    grace: float
    run: str = field(default_factory=lambda: token_hex(8))
    """By which the nodes tell this run from others."""
    blobs: int = 0
    """How many blobs no manifest needed when it was looked for them, and their *bytes*."""
    bytes: int = 0
    seconds: float = 0.0
    """For which pushes are closed at most."""
    pending: bool = False
    """Whether a run that died has left pushes closed somewhere: what it deleted, the frontends may not know yet."""
    kept: int = 0
    deleted: int = 0
    """How many of them were deleted, and their bytes (*freed*)."""
    freed: int = 0
    begun: bool = False
    """Whether something may have been deleted, which the frontends do not know."""
    closed: float = 0.0
    """When pushes were closed, and since when they are open again, by this machine's clock; 0: never."""
    opened: float = 0.0
    armed: set[str] = field(default_factory=set)
    """The nodes whose pushes this run has closed."""
    _looked: float = 0.0
    _frontends: dict[str, str] = field(default_factory=dict)
    """The runs of the frontends by node, of which it is not known whether they know what has gone."""

    def member(self, host: Host) -> Member:
        """The member for *host*."""
        return next(one for one in self.members if one.name == host.name)

    @property
    def leader(self) -> Member:
        """The member on which blobs are listed and deleted."""
        return self.member(self.cluster.leader)

    # ---- before ---------------------------------------------------------------------------------------------------

    def look(self) -> list[PushLog]:
        """Find what no manifest needs. Pushes go on.

        Returns what the nodes' logs say of the last *grace* seconds. Raises Error (LogUnreadable, CollectionFailed,
        StorageUnreadable, PushesUnknown).
        """
        begin = clock()
        logs = side_by_side(lambda one: log_of(one, self.grace), self.members)
        reading = clock() - begin
        self._looked = clock()
        marked = self.leader.do("mark", run=self.run)
        self.blobs, self.bytes = marked["blobs"], marked["bytes"]
        self._take_over(MARGIN + 3 * (reading + marked["seconds"]) + EACH * self.blobs)
        return logs

    def look_for_pending(self) -> bool:
        """Whether a run that died has left pushes closed somewhere. Raises Error (PushesUnknown)."""
        self._take_over(MARGIN)
        return self.pending

    def _take_over(self, seconds: float) -> None:
        """Close for *seconds*, and where pushes are closed already for no less: what a run that died has begun to
        delete may go on until then."""
        left = [one or 0.0 for found in self._note_frontends().values() for one in found.pushes.left.values()]
        self.pending = any(left)
        self.seconds = min(max(seconds, *left), LONGEST)

    def _note_frontends(self) -> dict[str, Seen]:
        """What the nodes say; what is deleted from here on, their frontends do not know."""
        found = {one.name: there for one, there in zip(self.members, side_by_side(seen, self.members), strict=True)}
        self._frontends = {name: one.frontend for name, one in found.items()}
        return found

    # ---- the phases, as workflows.py lists them ---------------------------------------------------------------------

    @property
    def close(self) -> Phase:
        """All proxies refuse pushes."""
        return Phase("close", "Close pushes at every proxy", self._close)

    @property
    def drain(self) -> Phase:
        """Uploads in progress are completed."""
        return Phase("drain", "Wait for pushes in flight", self._drain)

    @property
    def sweep(self) -> Phase:
        """Delete the blobs that no manifest needs and no push relies on."""
        return Phase("sweep", "Delete what no manifest needs", self._sweep, on=leader)

    @property
    def end(self) -> Phase:
        """Stop a deletion that an interrupted run has left."""
        return Phase("end", "Stop the deletion of the interrupted run", self._end, on=leader)

    @property
    def restart(self) -> Phase:
        """Restart the frontends, which cache deleted blobs."""
        return Phase("restart", "Restart the registry on each node", self._restart, one_at_a_time=True)

    @property
    def reopen(self) -> Phase:
        """All proxies accept pushes."""
        return Phase("open", "Open pushes", self._open)

    def _close(self, _: Cluster, host: Host) -> Steps:
        yield _Closed(self, [one.name for one in self.members].index(host.name))

    def _drain(self, _: Cluster, __: Host) -> Steps:
        yield Wait("no push is in flight", lambda host: seen(self.member(host)).pushes.busy, timeout=DRAIN)

    def _sweep(self, _: Cluster, __: Host) -> Steps:
        yield _Once(
            "delete blobs",
            f"{self.blobs} blobs, {self.bytes / 1e6:.1f} MB, deleted, except for what pushes relied on recently",
            self._delete,
        )

    def _end(self, _: Cluster, __: Host) -> Steps:
        yield _Once("end the deletion", "no blob is deleted", self._end_deletion)

    def _restart(self, _: Cluster, __: Host) -> Steps:
        yield _Restarted(self)

    def _open(self, _: Cluster, __: Host) -> Steps:
        yield _Open(self)

    # ---- what they do ---------------------------------------------------------------------------------------------

    def _delete(self, host: Host) -> None:
        back = min(max(self.grace, clock() - self._looked + CLOCKS), FURTHEST)
        logs = side_by_side(lambda one: log_of(one, back), self.members)
        relied = sorted({digest for log in logs for _, digest in log.blobs})
        left = {name: one.pushes.closed_for for name, one in self._note_frontends().items()}
        ahead = max(0.0, left[host.name] - min(left.values()))
        if not self.blobs:
            return
        self.begun = True
        swept = self.member(host).do("sweep", run=self.run, relied=relied, back=back, ahead=ahead)
        self.deleted, self.freed, self.kept = swept["blobs"], swept["bytes"], swept["kept"]
        self.begun = self.deleted > 0

    def _end_deletion(self, host: Host) -> None:
        self.member(host).do("end")
        self._note_frontends()

    def restarted(self, member: Member) -> bool:
        """Whether the frontend of *member* knows of no blob that this run, or one that died, has deleted."""
        if not (self.begun or self.pending):
            return True
        return seen(member).frontend not in ("", self._frontends[member.name])


@dataclass
class _Once:
    """Something that each run does once."""

    title: str
    difference: str
    work: Callable[[Host], None]
    _done: bool = False

    def diff(self, _: Host) -> str | None:
        return None if self._done else self.difference

    def apply(self, host: Host) -> None:
        self.work(host)
        self._done = True


@dataclass(frozen=True, slots=True)
class _Closed:
    """The proxies of a node refuse pushes, and its frontend will restart shortly before they accept them again."""

    run: Collection
    place: int
    title = "close pushes"

    def diff(self, host: Host) -> str | None:
        run = self.run
        if host.name in run.armed and seen(run.member(host)).pushes.closed_for >= run.seconds - 30:
            return None
        return f"pushes are closed, for {run.seconds:.0f} s at most"

    def apply(self, host: Host) -> None:
        run = self.run
        again = run.seconds - RESTARTS + APART * (self.place + 0.5)
        run.closed = run.closed or time.monotonic()
        run.member(host).do("close", run=run.run, seconds=run.seconds, again=again)
        run.armed.add(host.name)


@dataclass(frozen=True, slots=True)
class _Restarted:
    """The frontend of a node has restarted, so that it caches no deleted blob, and the node serves reads again."""

    run: Collection
    title = "restart the registry"

    def diff(self, host: Host) -> str | None:
        return (
            None if self.run.restarted(self.run.member(host)) else "the registry restarts, to forget what was deleted"
        )

    def apply(self, host: Host) -> None:
        # One that nobody waits for any more, as after an interrupt, must not go on while pushes do.
        self.run.leader.do("end")
        side_by_side(self._serves, self.run.cluster.hosts)
        self.run.member(host).do("restart", run=self.run.run)

    def _serves(self, host: Host) -> None:
        wait(host, self._trouble, what="the node serves reads", timeout=60, interval=0.5)

    def _trouble(self, host: Host) -> str | None:
        return seen(self.run.member(host)).trouble


@dataclass(frozen=True, slots=True)
class _Open:
    """The proxies of a node accept pushes."""

    run: Collection
    title = "open pushes"

    def diff(self, host: Host) -> str | None:
        return None if seen(self.run.member(host)).pushes.open else "pushes are open"

    def apply(self, host: Host) -> None:
        member = self.run.member(host)
        if not self.run.restarted(member):
            raise AssertionError("pushes would open before the registry has forgotten what was deleted")
        member.do("open", run=self.run.run)
        self.run.opened = time.monotonic()
