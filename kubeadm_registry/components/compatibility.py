"""Which versions of a program may run side by side in one registry, and what an upgrade does with which node when.

Pure functions of versions. docs/upgrade.md has the table for users; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kubeadm_registry.bundle.programs import numbers

AGENT = "agent"
"""The node agent, which is no program of a bundle: whatever runs an upgrade installs its own."""
TOOL = "kubeadm-registry"
HERE = "this kubeadm-registry"

_UNFINISHED = re.compile(r"-(alpha|beta)")


@dataclass(frozen=True, slots=True)
class Rule:
    """Two versions may run side by side if their first *alike* numbers are the same; 0: any two may.

    *neighbours*: the last of these numbers may differ by one. *finished*: an alpha or beta goes with no other version.
    Versions that may run side by side read each other's data, so an upgrade between them can be undone. *why* completes
    "cannot run side by side: "; *remedy*: what to do.
    """

    alike: int
    why: str
    remedy: str
    neighbours: bool = False
    finished: bool = False

    @property
    def text(self) -> str:
        """Which versions these are, for people."""
        if not self.alike:
            return "any"
        numbers = ("", "the same major version", "the same major and minor version")[self.alike]
        return "the same or the neighbouring minor version" if self.neighbours else numbers

    def allows(self, one: str, other: str) -> bool:
        """Whether the versions *one* and *other* may run side by side."""
        if one == other or not self.alike:
            return True
        if self.finished and (_UNFINISHED.search(one) or _UNFINISHED.search(other)):
            return False
        first, second = (numbers(version)[: self.alike] for version in (one, other))
        if len(first) < self.alike or len(second) < self.alike:
            return False  # a version without numbers tells nothing
        if not self.neighbours:
            return first == second
        return first[:-1] == second[:-1] and abs(first[-1] - second[-1]) <= 1


_NEW_CLUSTER = (
    "create a new registry beside this one, under another virtual IP, and fill it with `seed` and `skopeo copy`"
)
_OURS = Rule(
    2,
    "their heartbeats and records are tested with those of the neighbouring release only",
    "upgrade by each release in between, with the tool and a bundle of each",
    neighbours=True,
)
RULES: Mapping[str, Rule] = {
    # "protocols and data structures remained the same": the first nonzero number stays (Garage's book, "Upgrading").
    # Not so before a release: 2.0.0-beta1 cannot read the objects of 2.0.0 (G2s3ob, model/s3/object_table.rs).
    "garage": Rule(
        1,
        "another major version of Garage, or a beta, has a different protocol or different data structures",
        f"follow Garage's migration guide, which stops all nodes at the same time, or {_NEW_CLUSTER}",
        finished=True,
    ),
    # In the bucket there are OCI layouts alone: extensions, deduplication and their databases are off.
    "zot": Rule(1, "another major version of zot may store images differently", _NEW_CLUSTER),
    # Each node may write, and uploads leave state of the process in the bucket.
    "distribution": Rule(2, "another series of Distribution may store uploads differently", _NEW_CLUSTER),
    # It keeps no data, and speaks HTTP/1.1 with the others.
    "haproxy": Rule(0, "", ""),
    # They exchange VRRP version 3, RFC 5798.
    "keepalived": Rule(
        1,
        "the VRRP checksums of another major version may differ",
        "create the bundle with a keepalived of the same major version",
    ),
    "python": Rule(0, "", ""),
    AGENT: _OURS,
    TOOL: _OURS,
}
_UNKNOWN = Rule(1, "nothing is known of another major version", _NEW_CLUSTER)


def is_older(version: str, other: str) -> bool:
    """Whether *version* is known to be older than *other*."""
    return () < numbers(version) < numbers(other)


@dataclass(frozen=True, slots=True)
class Move:
    """A program that gets another version: *before* is empty where it did not run."""

    program: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.program} {self.before or '(none)'} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Step:
    """What one node gets; nothing where only configuration may differ."""

    node: str
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The *steps*, one node after another, or why not: *refusals* in sentences, each with what to do."""

    steps: tuple[Step, ...]
    refusals: tuple[str, ...] = ()


def plan(current: Mapping[str, Mapping[str, str]], wanted: Mapping[str, str], order: Sequence[str]) -> Plan:
    """How the nodes get from the *current* versions (node -> program -> version) to the *wanted* ones.

    *order* names the nodes as they take their turns. Invariant: while the steps are made, any two versions of a program
    that run at the same time may do so by RULES; else there are refusals and no steps.
    """
    why_not = tuple(dict.fromkeys((*_other_tool(wanted), *refusals(current, wanted, order))))
    if why_not:
        return Plan((), why_not)
    return Plan(tuple(Step(node, tuple(_moves(current.get(node, {}), wanted))) for node in order))


def _moves(there: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[Move]:
    for program, after in sorted(wanted.items()):
        if there.get(program, "") != after:
            yield Move(program, there.get(program, ""), after)


def _other_tool(wanted: Mapping[str, str]) -> Iterator[str]:
    """That the tool in the bundle is of another release than the one that runs: their files belong together."""
    ours, bundled = wanted.get(AGENT, ""), wanted.get(TOOL, "")
    if ours and bundled and numbers(ours)[:2] != numbers(bundled)[:2]:
        verb = "init" if numbers(bundled) < (0, 2) else "upgrade"
        yield (
            f"the bundle was created by {TOOL} {bundled}, and {HERE} is {ours}; use the tool in the bundle: "
            f"`tar -xOf BUNDLE unpack.sh | sh -s BUNDLE tool`, then `tool/bin/{TOOL} {verb} --bundle BUNDLE`"
        )


def refusals(
    current: Mapping[str, Mapping[str, str]], wanted: Mapping[str, str], order: Sequence[str]
) -> Iterator[str]:
    """Why the *wanted* versions may not run beside the *current* ones of the nodes in *order*, with what to do."""
    for program, after in sorted(wanted.items()):
        rule = RULES.get(program, _UNKNOWN)
        running = {before: node for node in reversed(order) if (before := current.get(node, {}).get(program, ""))}
        for before, node in sorted(running.items()):
            if not rule.allows(before, after):
                why, remedy = _by_digest(before, after) or (rule.why, rule.remedy)
                yield f"{program} {before} (on {node}) and {program} {after} cannot run side by side: {why}; {remedy}"


def _by_digest(before: str, after: str) -> tuple[str, str] | None:
    """Why, and what to do, where one of two versions is not known, as in a bundle for another architecture."""
    for version, remedy in (
        (after, "create the bundle on a machine of the nodes' architecture, with a file that prints its version"),
        (before, f"create the bundle as before, with the very file that runs there, or {_NEW_CLUSTER}"),
    ):
        if not numbers(version):
            return f"{version} is a digest, and its version is not known", remedy
    return None


@dataclass(frozen=True, slots=True)
class Record:
    """A record that releases leave behind: its name, and the version of its format that it asks of readers."""

    name: str
    needs: int


#: The versions of the formats that an earlier release knows, by its major and minor version. Those not named are at 1.
KNOWN: Mapping[tuple[int, int], Mapping[str, int]] = {
    (0, 1): {
        "/opt/kubeadm-registry/programs.json": 2,
        "/etc/kubeadm-registry/backup/containerd/originals.json": 2,
        "the record of what was seeded into the registry": 2,
    },
}


def way_back(before: str, records: Sequence[Record]) -> tuple[str, ...]:
    """Why release *before* cannot take over again from this one, in sentences; empty: it can.

    *records* are those that this release writes. A release of which nothing is known here is a newer one, or this one.
    """
    major, minor = (*numbers(before), 0, 0)[:2]
    known = KNOWN.get((major, minor))
    if known is None:
        return ()
    return tuple(
        f"release {before} cannot read {one.name}: it needs version {one.needs} of its format"
        for one in records
        if one.needs > known.get(one.name, 1)
    )
