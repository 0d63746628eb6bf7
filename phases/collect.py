"""Freeing what no manifest needs any more, with Distribution: pushes are closed at every proxy meanwhile, reads go on.

Its own ``garbage-collect`` does not see what other processes upload, so no push may go on anywhere while it deletes,
and it reads every manifest first. Here it only tells what no manifest needs, while pushes go on. Then pushes are
closed, what they may rely on since is taken out, and the rest is deleted. The frontends remember which blobs are there,
so each is started again before pushes are opened. All of it ends by itself when the run dies: the deletion by its time
limit, then each node starts its frontend again, then the time comes at which the proxies take pushes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kubeadm_registry import paths
from kubeadm_registry.agent import document
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.components import distribution, pushes, s3
from kubeadm_registry.components.services import backend
from kubeadm_registry.engine.changes import Steps, Wait, wait
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.errors import CommandTimeout, Error
from kubeadm_registry.images import named
from kubeadm_registry.images.pool import PATIENCE, WORKERS, Connect, each
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.transport.host import Host, side_by_side

#: Seconds that pushes in flight have to end.
DRAIN = 60.0
#: Before pushes open by themselves: seconds that all frontends have to start again, and between two of them.
RESTARTS, APART = 90.0, 15.0
#: Seconds that pushes may be closed at most, beside what the collection itself is expected to take.
MARGIN = RESTARTS + DRAIN + 120.0
#: Seconds in which a blob is deleted, on a slow storage.
EACH = 0.1
#: Seconds by which the clocks of two nodes may differ, and more.
CLOCKS = 60.0
REOPEN = f"{paths.PREFIX}-reopen"
#: The bytes of a blob; that a repository has a blob; that it has a manifest.
_DATA = r"^docker/registry/v2/blobs/sha256/../(?P<blob>[0-9a-f]{64})/data$"
_LAYER = r"^docker/registry/v2/repositories/.+/_layers/sha256/(?P<layer>[0-9a-f]{64})/link$"
_MANIFEST = r"^docker/registry/v2/repositories/(?P<of>.+)/_manifests/revisions/sha256/(?P<manifest>[0-9a-f]{64})/link$"
_KEY = re.compile(f"{_DATA}|{_LAYER}|{_MANIFEST}")
#: Whatever a manifest of any kind may need.
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")
#: Starts the frontend ``$3`` again after ``$2`` seconds, in place of what the timer ``$1`` was to do before.
_ARM = """
systemctl stop -- "$1.timer" 2>/dev/null
systemd-run --quiet --collect --unit="$1" --on-active="$2" --timer-property=AccuracySec=1s systemctl restart -- "$3"
"""
#: Ends the unit ``$1``, which may be unknown.
_STOP = 'systemctl stop -- "$1" 2>/dev/null; ! systemctl is-active --quiet -- "$1"'


@dataclass
class Collection:
    """One run. *grace*: seconds for which stays what pushes relied on; *connect* leads to the registry."""

    cluster: Cluster
    connect: Connect
    grace: float
    found: frozenset[str] = frozenset()
    """The blobs that no manifest needed when it was looked for them, of *sizes* bytes."""
    marked: frozenset[tuple[str, str]] = frozenset()
    """Repository and digest of the manifests that were read for it."""
    sizes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """For which pushes are closed at most."""
    pending: bool = False
    """Whether a run that died has left pushes closed somewhere: what it deleted, the frontends may not know yet."""
    kept: int = 0
    deleted: frozenset[str] = frozenset()
    begun: bool = False
    """Whether something may have been deleted, which the frontends do not know."""
    closed: float = 0.0
    """When pushes were closed, and since when they are open again, by this machine's clock; 0: never."""
    opened: float = 0.0
    _looked: float = 0.0
    _frontends: dict[str, str] = field(default_factory=dict)
    """The runs of the frontends by node, of which it is not known whether they know what has gone."""
    armed: set[str] = field(default_factory=set)
    """The nodes whose pushes this run has closed."""

    # ---- before ---------------------------------------------------------------------------------------------------

    def look(self) -> list[named.Named]:
        """Find what no manifest needs. Pushes go on.

        Returns what the nodes' logs say of the last *grace* seconds. Raises Error (LogUnreadable, CollectionFailed,
        StorageUnreadable, PushesUnknown).
        """
        begin = _now()
        logs = side_by_side(lambda host: named.ask(host, self.grace), self.cluster.hosts)
        reading = _now() - begin
        self.pending = any(not one.open for one in side_by_side(pushes.look, self.cluster.hosts))
        self._looked = _now()
        result = distribution.mark(self.cluster, self.cluster.leader, seconds=3600)
        self.found, self.marked = result.unneeded, result.manifests
        begin = _now()
        self.sizes = {f"sha256:{found['blob']}": one.size for one, found in self._objects(_DATA)}
        self.seconds = MARGIN + 3 * (reading + _now() - begin) + EACH * len(self.found)
        self._note_frontends()
        return logs

    def _note_frontends(self) -> None:
        self._frontends = {one.name: _invocation(one) for one in self.cluster.hosts}

    def _objects(
        self, keys: str, *, newer: float | None = None, always: str | None = None
    ) -> Iterator[tuple[s3.Stored, re.Match[str]]]:
        leader = self.cluster.leader
        for one in s3.objects(self.cluster, leader, self._region, keys, newer=newer, always=always):
            if found := _KEY.match(one.key):
                yield one, found

    @property
    def _region(self) -> str:
        return backend(self.cluster.spec).REGION

    # ---- the phases, as workflows.py lists them ---------------------------------------------------------------------

    @property
    def close(self) -> Phase:
        """No proxy takes a push any more."""
        return Phase("close", "Close pushes at every proxy", lambda _, host: self._close(host))

    @property
    def drain(self) -> Phase:
        """What is being uploaded comes to its end."""
        return Phase("drain", "Wait for pushes in flight", lambda _, host: self._drain())

    @property
    def sweep(self) -> Phase:
        """What no manifest needs goes, and no push relies on."""
        return Phase("sweep", "Delete what no manifest needs", lambda _, host: self._sweep(), on=leader)

    @property
    def restart(self) -> Phase:
        """No frontend remembers what has gone."""
        return Phase(
            "restart", "Restart the registry on each node", lambda _, host: self._restart(), one_at_a_time=True
        )

    @property
    def reopen(self) -> Phase:
        """The proxies take pushes."""
        return Phase("open", "Open pushes", lambda _, host: self._open())

    def _close(self, host: Host) -> Steps:
        yield _Closed(self, self.cluster.hosts.index(next(one for one in self.cluster.hosts if one.name == host.name)))

    def _drain(self) -> Steps:
        yield Wait("no push is in flight", lambda host: pushes.look(host).busy, timeout=DRAIN)

    def _sweep(self) -> Steps:
        bytes_ = sum(self.sizes.get(one, 0) for one in self.found)
        yield _Once(
            "delete blobs",
            f"{len(self.found)} blobs, {bytes_ / 1e6:.1f} MB, deleted, but for what pushes relied on lately",
            self._delete,
        )

    def _restart(self) -> Steps:
        yield _Restarted(self)

    def _open(self) -> Steps:
        yield _Open(self)

    # ---- what they do ---------------------------------------------------------------------------------------------

    def _delete(self, host: Host) -> None:
        stays = self._relied()
        self.kept = len(self.found & stays)
        going = {distribution.key("", digest): digest for digest in self.found - stays if digest in self.sizes}
        if not going and not self.pending:
            return
        left = min(one.closed_for for one in side_by_side(pushes.look, self.cluster.hosts)) - RESTARTS
        if left < 10:
            raise Error(
                "pushes open before all could be deleted", host=host.name, code="CollectionLate", hint="run it again"
            )
        self._note_frontends()
        self.begun = True
        if going:
            gone = s3.delete(self.cluster, host, self._region, going, seconds=left - 5, unit=distribution.COLLECTION)
            self.deleted = frozenset(going[key] for key in gone)

    def _relied(self) -> frozenset[str]:
        """The blobs on which a push relied within the grace, and what the manifests need that were not marked.

        Pushes are closed by now. Raises Error, RegistryError.
        """
        back = max(self.grace, _now() - self._looked + CLOCKS)
        stays: set[str] = set()
        unmarked: list[tuple[str, str]] = []
        for _, found in self._objects(_KEY.pattern, newer=back, always=_MANIFEST):
            digest = f"sha256:{found['blob'] or found['layer'] or found['manifest']}"
            if not found["manifest"]:
                stays.add(digest)
            elif (found["of"], digest) not in self.marked:
                unmarked.append((found["of"], digest))
                stays.add(digest)
        for log in side_by_side(lambda host: named.ask(host, back), self.cluster.hosts):
            stays.update(digest for _, digest in log.blobs)
        for _, content in each(self.connect, _manifest, unmarked, WORKERS):
            stays.update(map(bytes.decode, _DIGEST.findall(content or b"")))
        return frozenset(stays)

    def restarted(self, host: Host) -> bool:
        """Whether the frontend of *host* knows of no blob that this run, or one that died, has deleted."""
        return not (self.begun or self.pending) or _invocation(host) not in ("", self._frontends[host.name])


def _now() -> float:
    """Seconds that go on while this machine sleeps, as they do at the nodes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _manifest(registry: Api, where: tuple[str, str]) -> bytes | None:
    return retry(lambda: registry.manifest(*where), PATIENCE)


def _invocation(host: Host) -> str:
    return host.query("systemctl", "show", "--property=InvocationID", "--value", "--", distribution.UNIT).text.strip()


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
    """The proxies of a node take no push, and its frontend will start again shortly before they take some."""

    run: Collection
    place: int
    title = "close pushes"

    def diff(self, host: Host) -> str | None:
        if host.name in self.run.armed and pushes.look(host).closed_for >= self.run.seconds - 30:
            return None
        return f"pushes are closed, for {self.run.seconds:.0f} s at most"

    def apply(self, host: Host) -> None:
        after = self.run.seconds - RESTARTS + APART * (self.place + 0.5)
        host.run("sh", "-c", _ARM, "arm", REOPEN, f"{after:.0f}", distribution.UNIT)
        self.run.closed = self.run.closed or time.monotonic()
        pushes.close(host, self.run.seconds)
        self.run.armed.add(host.name)


@dataclass(frozen=True, slots=True)
class _Restarted:
    """The frontend of a node has forgotten which blobs are there, and the node serves reads as before."""

    run: Collection
    title = "restart the registry"

    def diff(self, host: Host) -> str | None:
        return None if self.run.restarted(host) else f"{distribution.UNIT}: restarts, to forget what was deleted"

    def apply(self, host: Host) -> None:
        # One that nobody waits for any more, as after an interrupt, must not go on while pushes do.
        self.run.cluster.leader.run("sh", "-c", _STOP, "stop", distribution.COLLECTION)
        for other in self.run.cluster.hosts:
            wait(other, _serves, what="the node serves reads", timeout=60)
        host.run("systemctl", "restart", "--", distribution.UNIT, timeout=60)
        since = float(host.query("date", "+%s.%N").text)
        wait(host, lambda one: _serves(one, since), what="the node serves reads", timeout=60)


def _serves(host: Host, since: float = 0.0) -> str | None:
    """None if the agent of *host* says, later than *since*, that this node serves reads well; else what it says."""
    content = host.read(paths.AGENT_STATE)
    state = document.read(content.decode(errors="replace")) if content is not None else None
    if state is None or state["time"] <= since:
        return "the node agent has not reported yet"
    if state["level"] or state["frontend"]["health"] != "ok":
        return f"level {state['level']}, the registry is {state['frontend']['health']}"
    return None


@dataclass(frozen=True, slots=True)
class _Open:
    """The proxies of a node take pushes."""

    run: Collection
    title = "open pushes"

    def diff(self, host: Host) -> str | None:
        return None if pushes.look(host).open else "pushes are open"

    def apply(self, host: Host) -> None:
        if not self.run.restarted(host):
            raise AssertionError("pushes would open before the registry has forgotten what was deleted")
        pushes.reopen(host)
        host.query("systemctl", "stop", "--", f"{REOPEN}.timer")
        self.run.opened = time.monotonic()


def require_whole(cluster: Cluster) -> None:
    """Raises Error (StorageNotWhole) unless the storage is fully replicated as every node sees it."""
    try:
        wait(cluster.leader, backend(cluster.spec).gate(cluster), what="the storage is fully replicated", timeout=20)
    except CommandTimeout as error:
        raise Error(
            error.message, host=error.host, code="StorageNotWhole",
            hint="wait until `kubeadm-registry status` exits with 0, then run it again",
        ) from error  # fmt: skip
