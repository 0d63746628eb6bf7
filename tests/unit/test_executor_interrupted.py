"""The executor in small, nasty registries, killed at any request: the next runs end as one that was not killed does.

test_retention_trash_properties.py has the same of values; here the executor itself does it, at a registry in memory,
which takes half a second: in one registry for each 500 worlds of KUBEADM_REGISTRY_RETENTION, and in 40 at least.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kubeadm_registry.executor.run import Executor
from kubeadm_registry.registry import Api
from kubeadm_registry.retention import Plan, Repository, Seen, Tag, policy
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.order import Order, undo
from kubeadm_registry.upkeep import planning, running, store
from tests.unit.fake_images import Repositories, answered, plain, within
from tests.unit.test_retention_properties import WORLDS

pytestmark = pytest.mark.slow

KEY = "the key of the ledger"
NOW, DAY = 1_800_000_000, 86400
TAGS = ("v1", "v2", "v3", "v4", "v5", "v6")
REPOSITORIES = ("app", "web")


class Killed(Exception):
    """The process is gone, so whatever it would do after that fails as well."""


@dataclass
class Drawn:
    """What a registry is made of: a draw for each repository."""

    images: int
    indexes: list[list[int]]
    referrers: list[int]
    tags: Mapping[str, int]
    kept: frozenset[str]


DRAWN = st.builds(
    Drawn, st.integers(1, 4), st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=2),
    st.lists(st.integers(0, 9), max_size=2), st.dictionaries(st.sampled_from(TAGS), st.integers(0, 9), min_size=1),
    st.frozensets(st.sampled_from(TAGS), max_size=3),
)  # fmt: skip


@dataclass
class World:
    """A registry as *drawn*, as zot has it or (not *untags*) Distribution, and who works there until it is killed."""

    drawn: tuple[Drawn, ...]
    untags: bool
    registry: Repositories = field(init=False)
    time: int = NOW
    asked: int = 0
    kill: Callable[[int], bool] = lambda _: False
    lost: bool = False
    """Whether the request at which it is killed is still carried out."""
    dead: bool = False

    def __post_init__(self) -> None:
        self._guard = threading.Lock()
        self.registry = Repositories(untags=self.untags, referrers=self.untags)
        self.registry.image("kubeadm-registry/canary", "v1")
        known = dict(self._repository(name, one) for name, one in zip(REPOSITORIES, self.drawn, strict=False))
        with within(self.registry)() as at:
            store.write(at, KEY, Ledger(NOW - DAY, known))
        rules = [
            {"name": name, "repositories": [name], "keep": {"tags": sorted(one.kept) or ["none"]}}
            for name, one in zip(REPOSITORIES, self.drawn, strict=False)
        ]
        spec = {"approval": "Automatic", "maximumShare": 100, "sets": [], "rules": rules, "untagged": {"after": "1h"}}
        head = {"apiVersion": "kubeadm-registry.dev/v1alpha1", "kind": "RegistryPolicy"}
        self.policy = policy.parse(json.dumps({**head, "spec": spec}), "policy.yaml")

    def _repository(self, name: str, drawn: Drawn) -> tuple[str, Repository]:
        made = [self.registry.image(name, layer=f"{name} {number}".encode()) for number in range(drawn.images)]
        for listed in drawn.indexes:
            parts = {f"part{place}": made[number % len(made)] for place, number in enumerate(listed)}
            made.append(self.registry.index(name, "", **parts))
        for number, subject in enumerate(drawn.referrers if self.untags else ()):
            about: dict[str, Any] = {"subject": plain(made[subject % len(made)])}
            made.append(self.registry.image(name, layer=f"{name} about {number}".encode(), **about))
        held = self.registry.store[name]
        held.tags = {tag: made[number % len(made)].digest for tag, number in drawn.tags.items()}
        since = NOW - 90 * DAY
        return name, Repository(
            {tag: Tag(digest, since) for tag, digest in held.tags.items()},
            {digest: Seen(since, untagged_since=since) for digest in held.manifests},
        )

    def connect(self) -> Api:
        return within(self.registry, self._meddle)()

    def _meddle(self, request: httpx.Request) -> httpx.Response | None:
        with self._guard:
            if self.dead:
                raise Killed
            self.asked += 1
            if self.kill(self.asked):
                self.dead = True
                if self.lost:
                    answered(self.registry, request)
                raise Killed
            return answered(self.registry, request)

    def run(self) -> bool:
        """Look, plan and carry it out; whether there was something to do."""
        look = planning.look(self.connect, KEY, self.policy, self.time, sets={})
        plan = look.plan(self.policy)
        assert isinstance(plan, Plan), plan
        with self.connect() as at:
            prepared = running.prepare(at, KEY, look, plan, self.policy)
        assert not prepared.waits
        self._carry_out(prepared.order)
        return bool(prepared.order)

    def undo(self) -> bool:
        """Restore all that is in the trash; whether there was any."""
        with self.connect() as at:
            images = list(store.read_trash(at, KEY))
        self._carry_out(undo(images, self.time, "asked for"))
        return bool(images)

    def _carry_out(self, order: Order) -> None:
        if order:
            with self.connect() as at:
                Executor(at, KEY, "cp-1", lambda: None, clock=lambda: float(self.time)).carry_out(order)

    def until_done(self, work: Callable[[], bool]) -> None:
        """Do *work* until there is nothing left to do."""
        for number in itertools.count():
            if not work():
                return
            assert number < 5, "it never ends"

    def killed(self, work: Callable[[], bool], share: float, *, lost: bool) -> None:
        """Do *work*, killed at that *share* of its requests, and again until there is nothing left to do."""
        counted = World(self.drawn, self.untags, time=self.time)
        counted.registry.store = copy.deepcopy(self.registry.store)
        getattr(counted, work.__name__)()
        last = 1 + int(share * counted.asked)
        self.asked, self.kill, self.lost = 0, lambda number: number == last, lost
        with suppress(Killed):
            work()
        self.dead, self.kill = False, lambda _: False
        self.until_done(work)

    @property
    def state(self) -> dict[str, Any]:
        with within(self.registry)() as at:
            ledger = store.read(at, KEY)
            waits = list(store.read_trash(at, KEY))
        held = {name: one for name, one in self.registry.store.items() if name in REPOSITORIES}
        return {
            "tags": {name: dict(one.tags) for name, one in held.items()},
            "manifests": {name: {*one.manifests} for name, one in held.items()},
            "trash": {one.key: (one.tags, one.complete) for one in waits},
            # One that several wholes share goes with the last of them, whichever that is.
            "parts": {(one.repository, part) for one in waits for part in one.parts},
            "ages": {name: _ages(ledger.repositories[name], held[name].tags) for name in held},
        }


def _ages(known: Repository, tags: Mapping[str, str]) -> dict[str, int]:
    return {
        tag: one.first_seen for tag, one in known.tags.items() if tags.get(tag) == one.digest and "trash-" not in tag
    }


def steps(world: World) -> Iterator[tuple[Callable[[], bool], int]]:
    """What is done with a registry, and on which day."""
    yield world.run, 0
    yield world.undo, 1
    yield world.run, 1
    yield world.run, 9


#: An index with its part, and an image alone, each under the tag v1.
INDEX = [Drawn(2, [[0]], [], {"v1": 0}, frozenset(["v1"])), Drawn(1, [], [], {"v1": 0}, frozenset())]

#: An index of an index and of what that one has as well.
NESTED = [Drawn(2, [[0], [5, 0, 0]], [], {"v4": 3}, frozenset())]

#: Untagged images, of which a run deletes one for good, and another only notes.
NOTED = [
    Drawn(4, [[0], [0, 0]], [], {"v1": 0}, frozenset()),
    Drawn(1, [[0]], [1, 0], {"v1": 0, "v2": 0, "v3": 0, "v4": 0, "v5": 0}, frozenset()),
]


#: A whole and its part that both go, each by a tag of its own or as what has none: the first of them was moved alone.
REFERRER = [Drawn(3, [], [0], {"v1": 3, "v2": 0}, frozenset())]
PARTS = [Drawn(4, [[6], [5]], [], {"v3": 9, "v5": 0, "v2": 8, "v1": 6, "v6": 9}, frozenset(["v6", "v4", "v3"]))]
TWO = [
    Drawn(3, [[0, 9, 0]], [2, 1], {"v2": 9, "v3": 4, "v4": 2, "v6": 4}, frozenset(["v1"])),
    Drawn(2, [], [], {"v5": 5, "v6": 4, "v1": 0, "v2": 5, "v4": 2}, frozenset(["v6"])),
]
#: What refers to a part of an index, and the index, all in the trash: the part stayed without either.
NEEDED = [
    Drawn(2, [], [5, 1], {"v1": 4}, frozenset(["v2", "v6"])),
    Drawn(1, [[8], [9, 7, 3]], [4, 8], {"v6": 2, "v3": 4, "v2": 9, "v1": 2, "v4": 0, "v5": 8}, frozenset()),
]


@example(drawn=NEEDED, untags=True, at=1, share=0.8084634623614798, lost=False)
@example(drawn=REFERRER, untags=True, at=0, share=0.7594794842555604, lost=False)
@example(drawn=PARTS, untags=True, at=0, share=0.6995358165223158, lost=False)
@example(drawn=TWO, untags=False, at=0, share=0.5, lost=True)
@example(drawn=NOTED, untags=True, at=3, share=0.6121449103335797, lost=False)
@example(drawn=NESTED, untags=True, at=3, share=0.5, lost=False)
# Killed between a tombstone and its deletion, while images are restored.
@example(drawn=INDEX, untags=False, at=1, share=0.390625, lost=False)
@settings(
    max_examples=max(40, WORLDS // 500),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    drawn=st.lists(DRAWN, min_size=1, max_size=2),
    untags=st.booleans(),
    at=st.integers(0, 3),
    share=st.floats(0, 1, exclude_max=True),
    lost=st.booleans(),
)
def test_a_run_that_is_killed_anywhere_is_completed_by_the_next_ones(
    drawn: list[Drawn], untags: bool, at: int, share: float, lost: bool
) -> None:
    good, broken = World(tuple(drawn), untags), World(tuple(drawn), untags)
    before = good.state
    for number, ((undisturbed, day), (disturbed, _)) in enumerate(zip(steps(good), steps(broken), strict=True)):
        good.time = broken.time = NOW + day * DAY
        good.until_done(undisturbed)
        if number == at:
            broken.killed(disturbed, share, lost=lost)
        else:
            broken.until_done(disturbed)
        assert broken.state == good.state
        if number == 1:
            assert {**good.state, "ages": 0} == {**before, "ages": 0}, "undo restores exactly"
