"""What the probes of a process and the reads of the known object make of what they saw."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator

import pytest

from kubeadm_registry.agent import probes as module
from kubeadm_registry.agent.config import parse
from kubeadm_registry.agent.exchange import Kind, Outcome
from kubeadm_registry.agent.model import Verdict
from kubeadm_registry.agent.probes import Answered, Probes, Read
from kubeadm_registry.agent.processes import Processes
from tests.unit.test_agent_config import smallest

BODY = b'{"known": true}'
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(module, "clock", one)
    return one


class FakeProcesses(Processes):
    """Uses the CPU or waits for it as it is told."""

    used: float | None = 1.0
    waits = False

    def cpu(self) -> float | None:
        return self.used

    def waits_for_cpu(self) -> bool:
        return self.waits


def answer(started: float, seconds: float = 0.01, status: int = 200, body: bytes = BODY) -> Outcome:
    text = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    return Outcome(Kind.ANSWERED, text, started, started + seconds)


def ended(kind: Kind, started: float, seconds: float = 0.0) -> Outcome:
    return Outcome(kind, b"", started, started + seconds)


def test_a_late_answer_proves_life_and_not_fitness(clock: Clock) -> None:
    one = Answered()
    assert not one.take(answer(1000.0, 0.1), 0.3)
    assert not one.take(answer(1000.1, 0.9), 0.3)
    seen = one.answers
    assert (seen.answered, seen.good, seen.streak) == (pytest.approx(1001.0), pytest.approx(1000.1), 0)


def test_refusal_is_news_and_an_older_attempt_says_nothing_more(clock: Clock) -> None:
    one = Answered()
    one.take(answer(1000.0), 0.3)
    assert one.take(ended(Kind.REFUSED, 1000.2), 0.3)
    assert one.answers.refused
    assert not one.take(ended(Kind.TIMEOUT, 1000.1, 1.0), 0.3), "it began before"
    assert one.answers.refused
    assert one.take(answer(1000.3), 0.3)
    assert not one.answers.refused
    assert one.answers.streak == 1


def look(one: Answered, clock: Clock, times: int, step: float) -> None:
    for _ in range(times):
        clock.now += step
        one.watch(clock.now)


def test_idle_is_what_was_seen_to_be_idle(clock: Clock) -> None:
    processes = FakeProcesses()
    one = Answered(processes)
    one.take(answer(1000.0, 0.0), 0.3)
    look(one, clock, 10, 0.05)
    seen = one.answers
    assert seen.idle is not None
    assert seen.looked - seen.idle == pytest.approx(0.325, abs=0.03), "from 0.15 s on, to the newest look"
    processes.waits = True
    look(one, clock, 1, 0.05)
    assert one.answers.idle == clock.now, "it would run if it could"
    processes.waits, processes.used = False, 2.0
    look(one, clock, 1, 0.05)
    assert one.answers.idle == clock.now, "it has run"
    look(one, clock, 1, 0.5)
    assert one.answers.idle == clock.now, "nobody looked for half a second"
    processes.used = None
    look(one, clock, 1, 0.05)
    assert one.answers.idle is None, "no process was found"


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (answer(1000.1, status=404), Verdict.MISSING),
        (answer(1000.1, status=500), Verdict.WRONG),
        (answer(1000.1, body=b"other"), Verdict.WRONG),
        (ended(Kind.TIMEOUT, 1000.1, 0.4), Verdict.SLOW),
        (ended(Kind.REFUSED, 1000.1), None),
    ],
    ids=["404", "500", "other bytes", "too late", "refused"],
)
def test_a_read_that_went_wrong_says_how(clock: Clock, outcome: Outcome, fault: Verdict | None) -> None:
    one = Read(DIGEST)
    assert not one.take(answer(1000.0))
    assert one.take(outcome) is (fault is not None)
    assert (one.reading.fault, one.reading.streak) == (fault, 0)
    one.take(answer(1000.2))
    assert (one.reading.fault, one.reading.streak) == (None, 1)
    assert not one.take(answer(1000.15, status=500)), "an older read says nothing more"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Which requests were made; they are never answered."""
    made: list[bytes] = []

    class Silent:
        def __init__(self, _loop: object, _address: object, request: bytes, **_: object) -> None:
            made.append(request.split(b" ")[1])

    monkeypatch.setattr(module, "Exchange", Silent)
    yield made


def test_who_answers_late_is_asked_more_seldom(clock: Clock, asked: list[bytes]) -> None:
    """Nearly half of all requests that kept a busy frontend busy were the questions themselves."""
    canary = {"repository": "canary", "manifest": DIGEST, "blob": DIGEST}

    async def run() -> None:
        probes = Probes(parse(smallest() | {"canary": canary}), FakeProcesses(), None, lambda: None)
        probes._due = lambda *_: False if _[0] == "door" else Probes._due(probes, *_)  # type: ignore[method-assign]

        def second(*, answers: bool) -> dict[bytes, int]:
            asked.clear()
            for _ in range(20):
                clock.now += 0.05
                probes.tick(clock.now)
                if answers:
                    probes.frontend.take(answer(clock.now, 0.0), 0.3)
                    for one in (probes.manifest, probes.blob):
                        assert one is not None
                        one.take(answer(clock.now, 0.0))
            return {path.split(b"/")[-2]: asked.count(path) for path in set(asked)}

        second(answers=True)
        assert second(answers=True) == {b"v2": 10, b"manifests": 5, b"blobs": 2}
        for one in (probes.manifest, probes.blob):
            assert one is not None
            one.take(ended(Kind.TIMEOUT, clock.now, 0.4))
        second(answers=False)
        late = second(answers=False)
        assert late[b"v2"] == 2
        assert late[b"manifests"] <= 2
        assert late.get(b"blobs", 0) <= 1
        second(answers=True)
        assert second(answers=True)[b"v2"] == 10

    asyncio.run(run())
