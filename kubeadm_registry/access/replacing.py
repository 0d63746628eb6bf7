"""A node that puts another node in the place of one: what it is asked for, and how far it is.

Its helper answers (``helper/replacing.py``), a unit of its own does the work (``helper/replace.py``). Values are those
of JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kubeadm_registry import members
from kubeadm_registry.access import questions
from kubeadm_registry.access.executor import ByHelper
from kubeadm_registry.config import Node
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged, Found
from kubeadm_registry.members import Members
from kubeadm_registry.transport.host import side_by_side

#: Seconds for an answer.
_ANSWER = 60.0
_KEYS = ("allowed", "members", "work")


@dataclass(frozen=True, slots=True)
class Work:
    """The replacement of *old* by *new* that a node does, or did last.

    *steps* are the phases that it began, by path, *step* says what the last one does; *began* and *ended* are seconds
    since 1970, 0 if it has not ended. *error* is what it failed with, None if it did not. *runs*: it is being done now.
    """

    old: str
    new: str
    began: float
    steps: tuple[str, ...] = ()
    step: str = ""
    ended: float = 0.0
    error: Mapping[str, Any] | None = None
    runs: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Work:
        """What ``values`` made. Raises KeyError, TypeError, ValueError."""
        error = values.get("error")
        return cls(
            str(values["old"]), str(values["new"]), float(values["began"]), tuple(map(str, values.get("steps", ()))),
            str(values.get("step", "")), float(values.get("ended", 0)),
            None if error is None else {key: str(error[key]) for key in ("message", "code", "hint")},
            bool(values.get("runs")),
        )  # fmt: skip

    @property
    def broken(self) -> bool:
        """Whether it ended without a result, as when it was killed."""
        return not self.runs and not self.ended

    def values(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "steps": list(self.steps)}


@dataclass(frozen=True, slots=True)
class Standing:
    """A node: whether it is *allowed* to replace others, its list of members (None: it has none), and its *work*.

    *clock* is the node's when it answered, seconds since 1970; None: its helper is of a release that does not tell.
    """

    allowed: bool
    members: Members | None
    work: Work | None
    clock: float | None = None

    def by_clock(self, now: float) -> Standing:
        """The same with times by another clock, which said *now* when the node answered."""
        if self.work is None or self.clock is None:
            return self
        off = now - self.clock
        ended = self.work.ended + off if self.work.ended else 0.0
        return replace(self, work=replace(self.work, began=self.work.began + off, ended=ended), clock=now)

    def values(self) -> dict[str, Any]:
        """The answer of a helper."""
        return {
            "allowed": self.allowed,
            "members": None if self.members is None else self.members.values(),
            "work": None if self.work is None else self.work.values(),
            "clock": self.clock,
        }


def look(node: ByHelper) -> Standing:
    """How *node* is. Raises Error; QuestionInvalid if its helper is of a release that does not know the question."""
    return _read(node, questions.question("replacing"))


def listed(nodes: Sequence[ByHelper]) -> Members | None:
    """The newest list of members that the *nodes* have; None if none has one.

    A helper of release 0.1 does not tell, and the members of its registry never change. Raises Error as ``look``, and
    MembersConflict.
    """

    def ask(node: ByHelper) -> Members | None:
        try:
            return look(node).members
        except Error as error:
            if error.code != "QuestionInvalid":
                raise
            return None

    found = zip(nodes, side_by_side(ask, nodes), strict=True)
    return members.newest({node.name: one for node, one in found if one is not None})


def begin(node: ByHelper, old: str, new: Node) -> Standing:
    """Have *node* put *new* in the place of *old*; how it is then. Raises Error as its helper says it.

    It may be asked again at any time: what was begun goes on, on whichever node.
    """
    described = new.model_dump(by_alias=True, exclude_none=True, mode="json")
    return _read(node, questions.question("replace", old=old, new=described))


def _read(node: ByHelper, question: bytes) -> Standing:
    said = questions.read(node.ask(question, _ANSWER), node.name, _KEYS, maybe=("clock",))
    try:
        listed, work = said["members"], said["work"]
        return Standing(
            said["allowed"] is True,
            None if listed is None else members.of(Found(listed)),
            None if work is None else Work.of(work),
            None if (clock := said["clock"]) is None else float(clock),
        )  # fmt: skip
    except (Damaged, AttributeError, KeyError, TypeError, ValueError) as error:
        raise Error(
            f"invalid response from the helper: {error!r}", host=node.name, code="HelperUnknown",
            hint="run `kubeadm-registry operator install` and `init` with the same release",
        ) from error  # fmt: skip
