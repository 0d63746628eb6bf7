"""A plan, as a value and as a record that several releases read and write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from kubeadm_registry.formats import Damaged, Format, Found, kept, split
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.printable import shown
from kubeadm_registry.retention.reasons import Reason

FORMAT = Format("the retention plan")
#: Repository, tag and digest of a deletion.
Key = tuple[str, str, str]
#: So many deletions at a time are hashed: the text of 100,000 would take as much memory as the plan.
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Deletion:
    """A tag to delete, or with an empty *tag* a manifest that has none, in *repository*.

    *digest* is what the tag means. *cause*: ``NotKept`` by the rule *rule*, ``PartOfDeleted`` or ``Untagged``; *why* is
    the same in words. *age* in seconds; *size*, bytes of the whole image; *freed*, bytes that no remaining manifest
    needs, each counted once in a plan. *part_of* are the manifests of this repository that need this one: it must not
    go before them, nor without them.
    """

    repository: str
    tag: str
    digest: str
    cause: str
    rule: str
    why: str
    age: int
    size: int
    freed: int
    part_of: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> Key:
        """What is deleted, and nothing else."""
        return self.repository, self.tag, self.digest


@dataclass(frozen=True, slots=True)
class Kept:
    """An image that stays, with its *tags*, or a manifest that has none and is not part of an image.

    *cause*: ``InUse`` (*why* says by whom), ``Own``, ``TooNew``, ``NoRule``, ``Rule`` (the part of it that keeps),
    ``Untagged``, ``Related`` (to what else is kept). *age* in seconds, *size* in bytes.
    """

    repository: str
    digest: str
    tags: tuple[str, ...]
    cause: str
    rule: str
    why: str
    age: int
    size: int
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no plan, for all of these *reasons*: nothing may be deleted."""

    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to delete by *policy*, as of *made* (seconds since 1970), and what stays; both sorted.

    *needs_approval* says why this plan must be approved even where the policy does not ask for approvals. *found* is
    the record that this was read from.
    """

    policy: str
    made: int
    deletions: tuple[Deletion, ...]
    kept: tuple[Kept, ...]
    needs_approval: tuple[Reason, ...] = ()
    found: Found | None = field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """The digest of what is deleted, ``sha256:...``, by which an approval names the plan.

        It is that of the JSON list of [repository, tag, digest], sorted, without blanks.
        """
        hashed = hashlib.sha256(b"[")
        for at in range(0, len(self.deletions), _BATCH):
            listed = oci.canonical([one.key for one in self.deletions[at : at + _BATCH]])
            hashed.update((b"," if at else b"") + listed[1:-1])
        hashed.update(b"]")
        return f"sha256:{hashed.hexdigest()}"

    @property
    def freed(self) -> int:
        """Bytes that the deletions free together."""
        return sum(one.freed for one in self.deletions)

    @property
    def images(self) -> tuple[int, int]:
        """How many images go, and how many stay, without those of kubeadm-registry itself."""
        stay = [one for one in self.kept if one.cause != "Own"]
        return len({(one.repository, one.digest) for one in self.deletions}), len(stay)

    @property
    def keys(self) -> frozenset[Key]:
        """What is deleted, and nothing else."""
        return frozenset(one.key for one in self.deletions)

    def both(self, later: Plan) -> Plan:
        """What this plan, which was approved, and the *later* one, made when it runs, both delete."""
        return later.within(self.keys)

    def within(self, approved: Collection[Key]) -> Plan:
        """What of this plan goes if only the deletions *approved* may.

        An image goes only if all that this plan deletes of it may, and never without what it is part of: every image
        that remains is complete. ``freed`` may be too high.
        """
        refused = {(one.repository, one.digest) for one in self.deletions if one.key not in approved}
        parts: dict[tuple[str, str], set[str]] = {}
        for one in self.deletions:
            for whole in one.part_of:
                parts.setdefault((one.repository, whole), set()).add(one.digest)
        waiting = list(refused)
        while waiting:
            repository, digest = waiting.pop()
            more = {(repository, part) for part in parts.get((repository, digest), ())} - refused
            refused |= more
            waiting += more
        deletions = tuple(one for one in self.deletions if (one.repository, one.digest) not in refused)
        return replace(self, deletions=deletions)

    def to_dict(self) -> dict[str, Any]:
        """The record, by the rules of ``kubeadm_registry.formats``. Raises NewerFormat.

        Times are in RFC 3339, ages in seconds, sizes in bytes. What was read and is not known here is written back.
        """
        return {key: list(value) if isinstance(value, Iterator) else value for key, value in self._document().items()}

    def pieces(self) -> Iterator[bytes]:
        """The same record as JSON text, an entry at a time: a plan may have 100,000. Raises NewerFormat."""
        before = "{"
        for key, value in self._document().items():
            yield f"{before}{json.dumps(key)}: ".encode()
            if isinstance(value, Iterator):
                yield from _listed(value)
            else:
                yield json.dumps(value).encode()
            before = ", "
        yield b"}"

    def _document(self) -> dict[str, Any]:
        """The record, in which what may be long is still to be written: iterators in the place of lists."""
        values = {
            "policy": self.policy,
            "made": datetime.fromtimestamp(self.made, UTC).strftime(_TIME),
            "digest": self.digest,
            "freed": self.freed,
            "deletions": (_written(one, _DELETION) for one in self.deletions),
            "kept": (_written(one, _KEPT) for one in self.kept),
            "needsApproval": (_written(one, _REASON) for one in self.needs_approval),
        }
        return FORMAT.seal(kept(values, self.found), self.found)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The plan in the JSON text *content*. Raises Damaged (also if its digest is not that of its deletions),
        NewerFormat."""
        found = FORMAT.parse(content)
        values = found.values
        try:
            made = datetime.strptime(values["made"], _TIME).replace(tzinfo=UTC)
            plan = cls(
                str(values["policy"]),
                int(made.timestamp()),
                _read(Deletion, values["deletions"], _DELETION),
                _read(Kept, values["kept"], _KEPT),
                _read(Reason, values["needsApproval"], _REASON),
                found,
            )
            said = values["digest"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error}") from error
        if plan.digest != said:
            raise Damaged("its digest is not that of its deletions")
        return plan


_TIME = "%Y-%m-%dT%H:%M:%SZ"
#: The keys of each object with the fields that they are written from.
_DELETION = {
    "repository": "repository", "tag": "tag", "digest": "digest", "cause": "cause", "rule": "rule", "why": "why",
    "age": "age", "size": "size", "freed": "freed", "partOf": "part_of",
}  # fmt: skip
_KEPT = {
    "repository": "repository", "digest": "digest", "tags": "tags", "cause": "cause", "rule": "rule", "why": "why",
    "age": "age", "size": "size",
}  # fmt: skip
_LISTS = frozenset({"part_of", "tags"})
_NUMBERS = frozenset({"age", "size", "freed"})
_REASON = {"code": "code", "message": "message", "hint": "hint"}


def _listed(entries: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    before = "["
    for entry in entries:
        yield f"{before}{json.dumps(entry)}".encode()
        before = ", "
    yield b"[]" if before == "[" else b"]"


def _written(one: Deletion | Kept | Reason, keys: Mapping[str, str]) -> dict[str, Any]:
    values = {key: getattr(one, name) for key, name in keys.items()}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {**values, **getattr(one, "more", {})}


def _read(kind: Callable[..., Any], objects: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> tuple[Any, ...]:
    """Values of *kind* from *objects*; a key that is not known is kept. Raises KeyError, TypeError."""
    if not isinstance(objects, list):
        raise TypeError("a list is not one")
    found = []
    for one in objects:
        known, more = split(one, keys)
        values = {name: _typed(name, known[key]) for key, name in keys.items()}
        found.append(kind(**values, **({"more": more} if kind is not Reason else {})))
    return tuple(found)


def _typed(name: str, value: object) -> object:
    """The value of the field *name*. Raises TypeError if it has another type."""
    if name in _LISTS:
        good = isinstance(value, list) and all(isinstance(one, str) for one in value)
    elif name in _NUMBERS:
        good = type(value) is int
    else:
        good = isinstance(value, str)
    if not good:
        raise TypeError(f"{name} is {shown(value)}")
    return tuple(value) if isinstance(value, list) else value
