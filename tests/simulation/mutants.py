"""Rules that are broken on purpose: what the simulator must find, or it is worth nothing."""

from __future__ import annotations

import contextlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from kubeadm_registry.agent import lease, rules
from kubeadm_registry.agent.model import Settings
from tests.simulation.executor import Executor
from tests.simulation.hands import SimulatedHands
from tests.simulation.host import Host
from tests.simulation.kernel import Timer
from tests.simulation.schedule import BEGINNINGS, DISTRIBUTION, ZOT
from tests.simulation.world import new_world


@dataclass(frozen=True)
class Edit:
    """In the source of *function* of *owner*, a module or class, what is there once becomes something else."""

    owner: Any
    function: str
    changes: tuple[tuple[str, str], ...]

    def made(self) -> Any:
        """The function with the changes. Raises ValueError if a line is not there any more: the mutant needs a look."""
        original: Any = inspect.getattr_static(self.owner, self.function)
        if isinstance(original, property):
            original = original.fget
        source = textwrap.dedent(inspect.getsource(original))
        for old, new in self.changes:
            if source.count(old) != 1:
                raise ValueError(f"{self.function}: not exactly one {old!r}")
            source = source.replace(old, new)
        scope: dict[str, Any] = {}
        flags = annotations.compiler_flag
        code = compile(source, f"<a mutant of {self.function}>", "exec", flags=flags)
        exec(code, sys.modules[original.__module__].__dict__, scope)  # noqa: S102  what it is for
        return scope[self.function]


@dataclass(frozen=True)
class Mutant:
    """*finds* is the promise that breaks, in one of *seeds* schedules of *kind*."""

    text: str
    finds: str
    kind: str
    seeds: int
    edits: tuple[Edit, ...]
    frontend: str = ZOT

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """With the rule broken, but not while the worlds are made in which schedules begin: they are kept.

        Otherwise it would depend on what ran before in this process what a seed is.
        """
        for names, roster in BEGINNINGS:
            for cold in (False, True):
                new_world(names, roster, cold=cold, single_writer=self.frontend == ZOT)
        with contextlib.ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(patch.object(edit.owner, edit.function, edit.made()))
            yield


def edit(owner: Any, function: str, *words: str) -> Edit:
    """An edit; *words* are what is replaced and by what, in turns."""
    return Edit(owner, function, tuple(zip(words[::2], words[1::2], strict=True)))


def _mutant(text: str, finds: str, kind: str, seeds: int, *edits: Edit, frontend: str = ZOT) -> Mutant:
    return Mutant(text, finds, kind, seeds, edits, frontend)


STORE, GATE, TERMS, OLD = "one store", "one gate", "terms grow", "old term"
LEFT = "who left is not heard of"

MUTANTS: dict[str, Mutant] = {
    "no-timer": _mutant(
        "the kernel has no timer, as it was before there was one",
        STORE,
        "isolation",
        100,
        edit(Timer, "passes", "return not self.there or", "return True or"),
    ),
    "any-members": _mutant(
        "votes count whatever list of members they were given under, and the list of before does not count",
        STORE,
        "change",
        100,
        edit(lease, "allies", " and one.said.members == settings.members", ""),
        edit(Settings, "quorums", "if self.before else", "if False else"),
    ),
    "no-joint-majority": _mutant(
        "while members change, a majority of the new ones is enough",
        STORE,
        "change",
        100,
        edit(Settings, "quorums", "if self.before else", "if False else"),
    ),
    "generation-forgotten": _mutant(
        "a server that was given an older list of members votes under it",
        STORE,
        "restored",
        100,
        edit(lease, "said_vote", " or kept.generation != settings.members.generation", ""),
        edit(lease, "step", "outdated = outdated or seen.kept.generation > settings.members.generation", ""),
    ),
    "vote-passes-early": _mutant(
        "a vote passes on after half of the time",
        STORE,
        "isolation",
        100,
        edit(lease, "next_vote", "now - vote.heard >= lease", "now - vote.heard >= lease / 2"),
    ),
    "no-wait-after-start": _mutant(
        "an agent that has just started gives its vote at once",
        STORE,
        "isolation",
        300,
        edit(lease, "next_vote", "or now - started < lease", ""),
    ),
    "no-margin": _mutant(
        "a writer ends later than its votes, and does not mind that the timer has ended",
        GATE,
        "isolation",
        300,
        edit(lease, "step", "until - timings.lease_margin", "until + timings.lease_margin"),
        edit(lease, "timed", "now - seen.timer < settings.timings.timer", "True"),
    ),
    "no-ticket": _mutant(
        "a renewal needs no ticket",
        STORE,
        "frozen",
        300,
        edit(Timer, "renew", " or now >= self.ticket", ""),
    ),
    "renewed-too-late": _mutant(
        "the timer is renewed as long as there are votes",
        STORE,
        "frozen",
        300,
        edit(lease, "renews", ">= lasts", ">= 0.0"),
    ),
    "timer-too-long": _mutant(
        "the kernel's timer lasts longer than the agent believes",
        STORE,
        "frozen",
        300,
        edit(Timer, "renew", "now + self.lasts", "now + self.lasts + 1.0"),
    ),
    "disarmed-early": _mutant(
        "the timer is disarmed before zot is known to be gone",
        STORE,
        "frozen",
        300,
        edit(SimulatedHands, "_fence", "hit = ", "self.host.timer.disarm()\n    hit = "),
    ),
    "vote-not-on-disk": _mutant(
        "a vote is said before its term is on disk",
        TERMS,
        "reboots",
        300,
        edit(lease, "said_vote", "vote.term > kept.epoch or ", ""),
    ),
    "old-term": _mutant(
        "a candidate does not mind that a voter has let somebody write under a higher term",
        TERMS,
        "reboots",
        300,
        edit(lease, "step", "elif term < epoch:", "elif False:", "max([epoch, seen.wall_ms", "max([0, seen.wall_ms"),
    ),
    "no-fence": _mutant(
        "a writer does not wait until zot is gone",
        STORE,
        "anarchy",
        300,
        edit(lease, "step", "Role.STANDBY if seen.fenced else role", "Role.STANDBY"),
    ),
    "never-fenced": _mutant(
        "a writer that has closed stays closed",
        "one gate after healing",
        "anarchy",
        100,
        edit(lease, "step", "Role.STANDBY if seen.fenced else role", "role"),
    ),
    "half-is-enough": _mutant(
        "half of the servers, rounded down, are a majority",
        STORE,
        "isolation",
        100,
        edit(lease, "majority", "nodes // 2 + 1", "nodes // 2"),
    ),
    "counts-from-hearing": _mutant(
        "a vote counts from when it was heard, not from when it was asked for",
        STORE,
        "late",
        300,
        edit(lease, "votes_until", "view.echoed + lease", "(view.heard or 0.0) + lease"),
    ),
    "writes-without-timer": _mutant(
        "zot gets its writing configuration before the timer runs",
        STORE,
        "flushed",
        300,
        edit(lease, "timed", "return seen.timer_there and ", "return not seen.timer_there or "),
        edit(lease, "step", " or not seen.timer_there", ""),
    ),
    "executor-without-timer": _mutant(
        "the kernel's timer does not stand over the executor",
        OLD,
        "frozen",
        100,
        edit(Timer, "passes_executor", "return not self.there or", "return True or"),
        frontend=DISTRIBUTION,
    ),
    "executor-of-any-term": _mutant(
        "HAProxy does not compare the term of an executor",
        OLD,
        "chaos",
        300,
        edit(Executor, "can_change_store", " and one.epoch == process.term", ""),
        frontend=DISTRIBUTION,
    ),
    "executor-at-an-old-gate": _mutant(
        "an executor is not ended when the lease is given up, and HAProxy compares no term",
        OLD,
        "chaos",
        300,
        edit(Executor, "can_change_store", " and one.epoch == process.term", ""),
        edit(Host, "end_acting", "return self.executor.kill()", "return None"),
        frontend=DISTRIBUTION,
    ),
    "removed-stays": _mutant(
        "a node that hears that it has left may hold the VIP all the same",
        LEFT,
        "replaced",
        60,
        edit(rules, "fit", "memory.removed or ", ""),
    ),
}
