"""What freeing space asks a node for, a step at a time: commands do it as its root, the operator asks its helper.

So it does for a new certificate, and for a client node, which the helper alone configures (``helper/clients.py``).

=========  =====================================  ==================================================================
step       with                                   answer
=========  =====================================  ==================================================================
log        back: seconds                          on which blobs pushes relied, by the proxies' logs (``PushLog``)
look       nothing                                whether pushes are open (``Pushes``); the run of the registry, and
                                                  whether the node serves reads
close      run, seconds, again                    nothing; pushes are closed for *seconds*, and the registry restarts
                                                  by itself after *again* seconds (0: it does not)
open       run                                    nothing; what *run* has closed is open
mark       run                                    what no manifest needs: blobs, bytes; seconds of one list
sweep      run, relied, back, ahead               what of it was deleted: blobs, bytes; how much was kept
end        nothing                                nothing; no deletion goes on
restart    run                                    nothing; the registry was started anew, and serves reads
blobs      grace                                  blobs that are older: repository, digest, bytes
whole      members                                nothing; an error unless all that is stored is fully replicated, and
                                                  the registry consists of *members* (omitted: whoever they are)
stored     nothing                                bytes that are stored, each once
abandon    nothing                                how many unfinished uploads were dropped
fsync      nothing                                etcd's latency of fsync there, in seconds; null: there is none
renew      nothing                                whether the node's certificate was renewed, since it ends soon; the
                                                  proxies and the agent present it then
point      name, address, hostKey                 changes: how many it took until containerd of that client node pulls
                                                  from the registry; notes
=========  =====================================  ==================================================================

Values are those of JSON. Who asks names a *run*; what it closed is opened, swept and restarted for that run only, so
one that was asleep and wakes up does nothing to a later one. What goes is found on the node itself: who asks can only
say what must stay.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from kubeadm_registry import paths
from kubeadm_registry.access import questions
from kubeadm_registry.agent import document
from kubeadm_registry.agent.clock import clock
from kubeadm_registry.cluster import Cluster, members_at, require_listed, require_members
from kubeadm_registry.components import distribution, pushes, s3
from kubeadm_registry.components.certificates import leaf, presented
from kubeadm_registry.components.pushes import Pushes
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.engine.changes import wait
from kubeadm_registry.errors import CommandTimeout, ConfigError, ConnectionFailed, Error
from kubeadm_registry.formats import Damaged, Format
from kubeadm_registry.images import push_log
from kubeadm_registry.images.pool import PATIENCE, Connect, each
from kubeadm_registry.images.push_log import PushLog
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.transport.host import Host

Values = Mapping[str, Any]
NOTED = Format("what freeing space noted")
#: Before pushes open by themselves: seconds that all frontends have to start again.
RESTARTS = 90.0
#: Seconds for which pushes may be closed, and a log may be read back, whoever asks.
LONGEST, FURTHEST = 6 * 3600.0, 3650 * 86400.0
#: Seconds after which an upload is over that did not end: no client takes it up again.
UNFINISHED = 7 * 86400
REOPEN = f"{paths.PREFIX}-reopen"
RUN = f"{paths.ETC}/collection"
"""For which run pushes were closed last on a node."""
_RUN = re.compile(r"[0-9a-f]{16}")
#: The bytes of a blob; that a repository has a blob; that it has a manifest.
_DATA = r"^docker/registry/v2/blobs/sha256/../(?P<blob>[0-9a-f]{64})/data$"
_LAYER = r"^docker/registry/v2/repositories/.+/_layers/sha256/(?P<layer>[0-9a-f]{64})/link$"
_MANIFEST = r"^docker/registry/v2/repositories/(?P<of>.+)/_manifests/revisions/sha256/(?P<manifest>[0-9a-f]{64})/link$"
_KEY = re.compile(f"{_DATA}|{_LAYER}|{_MANIFEST}")
#: A blob of a frontend that keeps each in its repository.
_OWN = re.compile(r"^(.+)/blobs/sha256/([0-9a-f]{64})$")
#: Whatever a manifest of any kind may need.
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")
#: Starts the frontend ``$3`` again after ``$2`` seconds, in place of what the timer ``$1`` was to do before.
_ARM = """
systemctl stop -- "$1.timer" 2>/dev/null
systemd-run --quiet --collect --unit="$1" --on-active="$2" --timer-property=AccuracySec=1s systemctl restart -- "$3"
"""
#: Ends the unit ``$1``, which may be unknown.
_STOP = 'systemctl stop -- "$1" 2>/dev/null; ! systemctl is-active --quiet -- "$1"'


class Notes(Protocol):
    """Where what was marked waits until it is swept."""

    def read(self) -> bytes | None:
        """What was written last; None before."""

    def write(self, content: bytes) -> None:
        """Keep *content* in place of what was there."""


@dataclass
class InMemory:
    """Notes of this process."""

    content: bytes | None = None

    def read(self) -> bytes | None:
        """See Notes."""
        return self.content

    def write(self, content: bytes) -> None:
        """See Notes."""
        self.content = content


@dataclass(frozen=True, slots=True)
class Place:
    """A *host* of *cluster* on which steps are done; *connect* leads to the registry, *notes* are kept between them."""

    cluster: Cluster
    host: Host
    connect: Connect
    notes: Notes = field(default_factory=InMemory)

    @property
    def unit(self) -> str:
        """The unit of the registry."""
        return frontend(self.cluster.spec).SERVICE.unit

    @property
    def region(self) -> str:
        """The region of the storage."""
        return backend(self.cluster.spec).REGION


class Member(Protocol):
    """A node as somebody who frees space reaches it."""

    @property
    def name(self) -> str:
        """Of the node in the cluster file."""

    def do(self, step: str, **values: object) -> Values:
        """Do *step* there, and return the answer. Raises Error."""


@dataclass(frozen=True, slots=True)
class AsRoot:
    """A node whose root we are."""

    place: Place

    @property
    def name(self) -> str:
        """See Member."""
        return self.place.host.name

    def do(self, step: str, **values: object) -> Values:
        """See Member."""
        return STEPS[step](self.place, values)


def as_root(cluster: Cluster, connect: Connect) -> list[Member]:
    """The nodes of *cluster*, whose root we are; *connect* leads to the registry.

    Raises Error (MembersDiffer): a proxy that is not asked would take pushes that rely on what goes.
    """
    require_members(cluster)
    return [AsRoot(Place(cluster, host, connect)) for host in cluster.hosts]


#: Seconds after which no step is waited for, and for which a node may be out of reach meanwhile.
_DEADLINE, _AWAY = LONGEST + 3600, 60.0
#: Seconds for an answer, of which the helper waits forty at most.
_ANSWER = 90.0


@dataclass(frozen=True, slots=True)
class ByHelper:
    """The node *name* whose helper takes questions: *ask* sends one and returns the answer, within so many seconds."""

    name: str
    ask: Callable[[bytes, float], bytes]

    def do(self, step: str, **values: object) -> Values:
        """See Member."""
        begun = heard = clock()
        said = self._ask("space", step=step, values=values)
        while not said["done"]:
            if clock() - begun > _DEADLINE:
                raise CommandTimeout(f"the step {step} still runs after {_DEADLINE:.0f} s", host=self.name)
            try:
                said = self._ask("spaced", step=step, ticket=said["ticket"])
                heard = clock()
            except ConnectionFailed:
                if clock() - heard > _AWAY:
                    raise
                time.sleep(1.0)
        found: Values = said["result"]
        return found

    def _ask(self, verb: str, **values: object) -> Values:
        return questions.read(self.ask(questions.question(verb, **values), _ANSWER), self.name, _KEYS)


_KEYS = ("done", "result", "ticket")


# ---- what is asked, and what it means ----------------------------------------------------------------------------


def log_of(member: Member, back: float) -> PushLog:
    """The blobs on which pushes by *member* relied in the last *back* seconds."""
    said = member.do("log", back=back)
    begins = datetime.fromisoformat(said["begins"]) if said["begins"] is not None else None
    return PushLog(frozenset((one, other) for one, other in said["blobs"]), begins, bool(said["suppressed"]))


@dataclass(frozen=True, slots=True)
class Seen:
    """A node: its *pushes*, the run of its registry, and what stands against its serving reads, None if nothing."""

    pushes: Pushes
    frontend: str
    trouble: str | None


def seen(member: Member) -> Seen:
    """How *member* is."""
    said = member.do("look")
    return Seen(Pushes(said["left"], said["writes"], said["old"]), said["frontend"], said["trouble"])


# ---- what is done on the node ------------------------------------------------------------------------------------


def _log(place: Place, values: Values) -> Values:
    found = push_log.ask(place.host, _number(values, "back", FURTHEST))
    return {
        "blobs": [list(one) for one in sorted(found.blobs)],
        "begins": None if found.begins is None else found.begins.isoformat(),
        "suppressed": found.suppressed,
    }


def _look(place: Place, _: Values) -> Values:
    found = pushes.look(place.host)
    return {
        "left": dict(found.left), "writes": found.writes, "old": found.old,
        "frontend": _invocation(place), "trouble": _trouble(place.host),
    }  # fmt: skip


def _invocation(place: Place) -> str:
    shown = place.host.query("systemctl", "show", "--property=InvocationID", "--value", "--", place.unit)
    return shown.text.strip()


def _trouble(host: Host, since: float = 0.0) -> str | None:
    """None if the agent of *host* says, later than *since*, that this node serves reads well; else what it says."""
    content = host.read(paths.AGENT_STATE)
    state = document.read(content.decode(errors="replace")) if content is not None else None
    if state is None or state["time"] <= since:
        return "the node agent has not reported yet"
    if state["level"] or state["frontend"]["health"] != "ok":
        return f"level {state['level']}, the registry is {state['frontend']['health']}"
    return None


def _close(place: Place, values: Values) -> Values:
    seconds, again = _number(values, "seconds", LONGEST), _number(values, "again", LONGEST)
    place.host.write(RUN, _run(values).encode(), mode=0o600)
    if again:
        place.host.run("sh", "-c", _ARM, "arm", REOPEN, f"{again:.0f}", place.unit)
    pushes.close(place.host, seconds)
    return {}


def _require(place: Place, values: Values) -> str:
    """The run, for which pushes were closed here. Raises Error (CollectionBusy) if another has closed them since."""
    run = _run(values)
    if place.host.read(RUN) != run.encode():
        raise Error(
            "another run has since closed pushes there to free space", host=place.host.name, code="CollectionBusy",
            hint="wait until that has ended, then run it again",
        )  # fmt: skip
    return run


def _open(place: Place, values: Values) -> Values:
    if place.host.read(RUN) == _run(values).encode():  # what another run has closed since, that one opens
        pushes.reopen(place.host)
        if not frontend(place.cluster.spec).FREES_BLOBS:
            place.host.query("systemctl", "stop", "--", f"{REOPEN}.timer")
    return {}


def _mark(place: Place, values: Values) -> Values:
    run, listing = _run(values), _Listing(place)
    found = distribution.mark(place.cluster, place.host, seconds=3600)
    sizes = {f"sha256:{match['blob']}": one.size for one, match in listing.objects(_DATA)}
    unneeded = {digest: sizes[digest] for digest in sorted(found.unneeded) if digest in sizes}
    place.notes.write(NOTED.render({"run": run, "found": unneeded, "manifests": sorted(found.manifests)}))
    return {"blobs": len(unneeded), "bytes": sum(unneeded.values()), "seconds": listing.seconds}


def _marked(place: Place, run: str) -> tuple[dict[str, int], set[tuple[str, str]]]:
    """What ``mark`` found for *run*: the bytes of what nothing needs by digest, and the manifests that it read.

    Raises Error (CollectionBusy), NewerFormat.
    """
    with suppress(Damaged, KeyError, TypeError, ValueError):
        notes = NOTED.parse(place.notes.read() or b"{}").values
        if notes["run"] == run:
            return dict(notes["found"]), {(one, other) for one, other in notes["manifests"]}
    raise Error(
        "the list of what to delete is no longer on the node", host=place.host.name, code="CollectionBusy",
        hint="run it again",
    )  # fmt: skip


def _sweep(place: Place, values: Values) -> Values:
    """Pushes are closed at all nodes by now, here for *ahead* seconds longer than where they open first."""
    run = _require(place, values)
    relied, back = _texts(values, "relied"), _number(values, "back", FURTHEST)
    ahead = _number(values, "ahead", LONGEST)
    found, manifests = _marked(place, run)
    stays = found.keys() & (relied | _relied(place, back, manifests))
    going = {distribution.key("", digest): digest for digest in found if digest not in stays}
    left = pushes.look(place.host).closed_for - ahead - RESTARTS
    if left < 10:
        raise Error(
            "pushes would reopen before everything is deleted", host=place.host.name, code="CollectionLate",
            hint="run it again",
        )  # fmt: skip
    gone = [going[key] for key in _deleted(place, going, left)]
    return {"blobs": len(gone), "bytes": sum(found[digest] for digest in gone), "kept": len(stays)}


def _deleted(place: Place, going: Mapping[str, str], left: float) -> frozenset[str]:
    if not going:
        return frozenset()
    return s3.delete(place.cluster, place.host, place.region, going, seconds=left - 5, unit=distribution.COLLECTION)


def _relied(place: Place, back: float, marked: set[tuple[str, str]]) -> set[str]:
    """The blobs that were written within *back* seconds, and what the manifests need that were not *marked*."""
    stays: set[str] = set()
    unmarked: list[tuple[str, str]] = []
    for _, found in _Listing(place).objects(_KEY.pattern, newer=back, always=_MANIFEST):
        digest = f"sha256:{found['blob'] or found['layer'] or found['manifest']}"
        if not found["manifest"]:
            stays.add(digest)
        elif (found["of"], digest) not in marked:
            unmarked.append((found["of"], digest))
            stays.add(digest)
    for _, content in each(place.connect, _manifest, unmarked):
        stays.update(map(bytes.decode, _DIGEST.findall(content or b"")))
    return stays


def _manifest(registry: Api, where: tuple[str, str]) -> bytes | None:
    return retry(lambda: registry.manifest(*where), PATIENCE)


class _Listing:
    """Lists of the bucket, and how many *seconds* the last one took."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.seconds = 0.0

    def objects(
        self, keys: str, *, newer: float | None = None, always: str | None = None
    ) -> Iterator[tuple[s3.Stored, re.Match[str]]]:
        place, begin = self._place, clock()
        for one in s3.objects(place.cluster, place.host, place.region, keys, newer=newer, always=always):
            if found := _KEY.match(one.key):
                yield one, found
        self.seconds = clock() - begin


def _end(place: Place, _: Values) -> Values:
    place.host.run("sh", "-c", _STOP, "stop", distribution.COLLECTION)
    return {}


def _restart(place: Place, values: Values) -> Values:
    _require(place, values)
    host = place.host
    host.run("systemctl", "restart", "--", place.unit, timeout=60)
    since = float(host.query("date", "+%s.%N").text)
    wait(host, partial(_trouble, since=since), what="the node serves reads", timeout=60)
    return {}


def _blobs(place: Place, values: Values) -> Values:
    grace, found = _number(values, "grace", FURTHEST), []
    for one in s3.objects(place.cluster, place.host, place.region, _OWN.pattern):
        if one.age >= grace and (match := _OWN.match(one.key)):
            found.append([match[1], f"sha256:{match[2]}", one.size])
    return {"blobs": found}


def _stored(place: Place, _: Values) -> Values:
    return {"stored": backend(place.cluster.spec).stored(place.cluster, place.host)}


def _whole(place: Place, values: Values) -> Values:
    if "members" in values:
        require_listed(members_at(place.host), _texts(values, "members"))
    storage = backend(place.cluster.spec)
    try:
        wait(place.host, storage.gate(place.cluster), what="the storage is fully replicated", timeout=20)
    except CommandTimeout as error:
        raise Error(
            error.message, host=error.host, code="StorageNotWhole",
            hint="wait until `kubeadm-registry status` exits with 0, then run it again",
        ) from error  # fmt: skip
    return {}


def _abandon(place: Place, _: Values) -> Values:
    return {"uploads": backend(place.cluster.spec).abandon(place.cluster, place.host, UNFINISHED)}


def _fsync(place: Place, _: Values) -> Values:
    return {"latency": s3.etcd_latency(place.host)}


def _renew(place: Place, _: Values) -> Values:
    """As `init` does it; the CA is in the node's own secrets."""
    changed = False
    for change in (*leaf(place.cluster, place.host), presented()):
        if change.diff(place.host) is not None:
            change.apply(place.host)
            changed = True
    return {"renewed": changed}


POINT = "point"
Step = Callable[[Place, Values], Values]
STEPS: Mapping[str, Step] = {
    "log": _log, "look": _look, "close": _close, "open": _open, "mark": _mark, "sweep": _sweep, "end": _end,
    "restart": _restart, "blobs": _blobs, "whole": _whole, "stored": _stored, "abandon": _abandon,
    "fsync": _fsync, "renew": _renew,
}  # fmt: skip


def _run(values: Values) -> str:
    run = values.get("run")
    if not isinstance(run, str) or _RUN.fullmatch(run) is None:
        raise invalid("run")
    return run


def _number(values: Values, key: str, most: float) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise invalid(key)
    return float(value)


def _texts(values: Values, key: str) -> frozenset[str]:
    found = values.get(key)
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise invalid(key)
    return frozenset(found)


def invalid(key: str) -> ConfigError:
    """That a question has no value for *key*, or a wrong one."""
    return ConfigError(
        f"{key} is missing or not valid", code="QuestionInvalid",
        hint="run `kubeadm-registry operator install` and `init` with the same release",
    )  # fmt: skip
