"""What the agent keeps for people: moves of the virtual IP and the lease, and how the data disk fills."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from kubeadm_registry.agent import kept, moves, rules, trend
from kubeadm_registry.agent.document import Entry, Move
from kubeadm_registry.agent.formats import Format
from kubeadm_registry.agent.kept import KeptList
from kubeadm_registry.agent.model import (
    Decisions,
    Health,
    LeaseMemory,
    Level,
    Memory,
    PeerView,
    Report,
    Role,
    ServiceMemory,
    Settings,
)
from tests.unit.test_agent_rules import ANY, well

FORMATS = Path(__file__).parents[1] / "golden" / "formats"
DAY = 86400.0


# ---- a list on disk --------------------------------------------------------------------------------------------------


def listed(path: Path, most: int = 3) -> tuple[KeptList, list[str]]:
    told: list[str] = []
    return KeptList(path, Format("the list"), "items", most, lambda _, text: told.append(text)), told


def added(path: Path, *entries: Entry, most: int = 3) -> list[str]:
    """Add *entries* to the list at *path*; what it complained of."""

    async def run() -> list[str]:
        one, told = listed(path, most)
        one.read()
        for entry in entries:
            one.add(entry)
        await one.settle(5)
        return told

    return asyncio.run(run())


def read(path: Path) -> list[Entry]:
    one, told = listed(path)
    one.read()
    assert told == []
    return one.entries


def test_the_newest_entries_outlive_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    assert read(path) == []
    assert added(path, {"n": 1}, {"n": 2}) == []
    assert added(path, {"n": 3}, {"n": 4}) == []
    assert read(path) == [{"n": 2}, {"n": 3}, {"n": 4}]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["list.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"items": 5}', b"\xff\xfe", b"null"])
def test_a_damaged_file_is_begun_anew_with_a_word(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(content)
    [text] = added(path, {"n": 1})
    assert text.endswith("a new one is started")
    assert read(path) == [{"n": 1}]


def test_what_is_no_entry_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('{"items": [1, {"n": 1}, null, {"n": 2}]}')
    assert read(path) == [{"n": 1}, {"n": 2}]


def test_a_newer_release_keeps_its_file_and_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    stamp = {"version": 2, "minReader": 1, "minWriter": 1}
    path.write_text(json.dumps({"format": stamp, "items": [{"n": 1, "more": 5}], "other": True}))
    added(path, {"n": 2})
    assert json.loads(path.read_text()) == {
        "format": stamp, "items": [{"n": 1, "more": 5}, {"n": 2}], "other": True,
    }  # fmt: skip
    for lowest in ("minWriter", "minReader"):
        text = json.dumps({"format": {**stamp, lowest: 2}, "items": [{"n": 1}]})
        path.write_text(text)
        added(path, {"n": 2})
        assert path.read_text() == text


def test_what_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "not yet" / "list.json"

    async def run() -> list[str]:
        one, told = listed(path)
        one.add({"n": 1})
        await one.settle(5)
        path.parent.mkdir()
        await one.settle(5)
        return told

    text, *_ = asyncio.run(run())
    assert text.startswith(f"cannot write {path}: ")
    assert read(path) == [{"n": 1}]


# ---- moves -----------------------------------------------------------------------------------------------------------

SINGLE = Settings(name="a", peers=("b", "c"), single_writer=True)
QUIET = Report(level=Level.FIT, fit=True, good=True)
HOLDER = replace(QUIET, vip=True)
WRITER = replace(HOLDER, role=Role.WRITER)


class Course:
    """An agent's decisions in their order, each with what its peers were last heard to say."""

    def __init__(self, before: list[Entry] | None = None, settings: Settings = SINGLE) -> None:
        self.moves = moves.Moves(settings, before or [])
        self.noted: list[Move] = []
        self.peers = {"b": PeerView(0.0, None, QUIET, 0.0), "c": PeerView(0.0, None, QUIET, 0.0)}

    def at(
        self, now: float, own: Report = QUIET, *, conditions: tuple[str, ...] = (), memory: Memory | None = None,
        silent: tuple[str, ...] = (), **said: Report,
    ) -> list[Move]:  # fmt: skip
        for name, report in said.items():
            self.peers[name] = PeerView(now, None, report, now)
        for name in self.peers.keys() - said.keys() - {*silent}:
            self.peers[name] = replace(self.peers[name], heard=now)
        decided = Decisions(None, None, False, 0, own.fit, own, {}, conditions=conditions)
        new = self.moves.see(memory or Memory(started=0.0), decided, self.peers, now, 1000.0 + now)
        self.noted += new
        return new


def test_a_holder_without_power_is_followed_by_the_one_that_measures_the_gap() -> None:
    course = Course()
    assert course.at(1.0, b=HOLDER) == []
    assert course.at(1.3, silent=("b",)) == []
    [move] = course.at(1.6, HOLDER, silent=("b",))
    assert move == {
        "time": 1001.6, "what": "vip", "here": True, "why": "no heartbeat of b for 0.6 s", "other": "b",
        "seconds": 0.6, "exact": True,
    }  # fmt: skip
    assert course.at(1.7, HOLDER) == []


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (replace(QUIET, bye=True, fit=False), "the agent of b stopped"),
        (replace(QUIET, fit=False, level=Level.PROCESS), "b may not hold the virtual IP any more (level 2)"),
        (QUIET, "b gave it up"),
        (HOLDER, "b says that it has it as well"),
    ],
)
def test_the_cause_is_what_the_holder_said_last(last: Report, why: str) -> None:
    course = Course()
    course.at(1.0, b=HOLDER)
    course.at(1.1, b=last)
    [move] = course.at(1.2, HOLDER)
    assert (move["why"], move["other"]) == (why, "b")
    assert move["seconds"] == (0.1 if last.vip else 0.2)


def test_the_first_holder_follows_nobody() -> None:
    course = Course()
    course.at(1.0)
    [move] = course.at(2.0, HOLDER)
    assert (move["why"], move["other"], move["seconds"]) == ("no other node was heard to have it", "", None)


def test_one_that_comes_back_to_the_same_node_names_it() -> None:
    course = Course()
    course.at(1.0)
    course.at(2.0, HOLDER)
    [gone] = course.at(3.0)
    [back] = course.at(3.5, HOLDER)
    assert (gone["here"], gone["why"]) == (False, "keepalived gave it up, or it was removed by hand")
    assert (back["why"], back["other"], back["seconds"]) == ("no other node took it", "a", 1.5)


@pytest.mark.parametrize(
    ("own", "conditions", "other", "why"),
    [
        (replace(QUIET, fit=False), ("FrontendDown", "ChainSlow"), QUIET,
         "this node may not hold it: FrontendDown, ChainSlow"),
        (replace(QUIET, fit=False), (), QUIET, "this node may not hold it: level 2"),
        (QUIET, ("NoMajority",), QUIET, "not more than half of the nodes are heard"),
        (QUIET, (), HOLDER, "keepalived gave it to b"),
        (QUIET, (), QUIET, "keepalived gave it up, or it was removed by hand"),
    ],
)  # fmt: skip
def test_who_loses_the_virtual_ip_says_why(own: Report, conditions: tuple[str, ...], other: Report, why: str) -> None:
    course = Course()
    course.at(1.0)
    course.at(2.0, HOLDER)
    [move] = course.at(3.0, own, conditions=conditions, b=other)
    assert (move["what"], move["here"], move["why"], move["seconds"]) == ("vip", False, why, None)
    assert move["other"] == ("b" if other.vip else "")


@pytest.mark.parametrize(
    ("own", "conditions", "health", "why"),
    [
        (HOLDER, ("ClockOff",), Health.OK, "the clock is off"),
        (HOLDER, ("Unguarded",), Health.OK, "the firewall rules of loopback are missing"),
        (HOLDER, ("NoMajority",), Health.OK, "not more than half of the nodes are heard"),
        (HOLDER, (), Health.DEAD, "the registry service is down or hangs"),
        (QUIET, (), Health.OK, "the virtual IP left"),
        (HOLDER, (), Health.OK, "its votes expired"),
    ],
)
def test_who_loses_the_lease_says_why(own: Report, conditions: tuple[str, ...], health: Health, why: str) -> None:
    course = Course()
    course.at(1.0)
    course.at(2.0, WRITER)
    memory = Memory(started=0.0, frontend=ServiceMemory(health))
    found = course.at(3.0, own, conditions=conditions, memory=memory)
    assert [one["why"] for one in found if one["what"] == "lease"] == [why]


def test_the_gap_of_the_lease_is_measured_by_its_own_holders() -> None:
    course = Course()
    course.at(1.0, b=WRITER)
    [vip] = course.at(1.5, HOLDER, silent=("b",))
    [lease] = course.at(4.0, WRITER, silent=("b",))
    assert (vip["what"], vip["seconds"], lease["what"], lease["seconds"]) == ("vip", 0.5, "lease", 3.0)


def test_an_agent_that_starts_goes_by_what_was_noted() -> None:
    first = Course()
    first.at(1.0)
    before: list[Entry] = [*first.at(2.0, HOLDER)]
    assert Course(before).at(9.0, HOLDER) == [], "it stayed, whatever the agent did"
    [gone] = Course(before).at(9.0)
    assert (gone["here"], gone["why"], gone["exact"]) == (False, moves.AGENT_WAS_OFF, False)
    [came] = Course([*before, gone]).at(9.0, HOLDER)
    assert (came["here"], came["why"], came["seconds"], came["exact"]) == (True, moves.AGENT_OFF, None, False)


def test_an_agent_that_leaves_notes_the_lease_and_leaves_the_virtual_ip_to_keepalived() -> None:
    course = Course()
    course.at(1.0)
    assert course.moves.end(5.0) == []
    course.at(2.0, WRITER)
    [move] = course.moves.end(5.0)
    assert (move["what"], move["here"], move["why"]) == ("lease", False, moves.AGENT_STOPS)
    assert course.moves.end(6.0) == []


def test_it_sees_what_the_rules_decide() -> None:
    memory, decided = rules.decide(Memory(started=0.0), well(5.0, holds_vip=True), 5.0, ANY)
    seen = moves.Moves(ANY, [])
    views = {name: PeerView(5.0, None, QUIET, 5.0) for name in ANY.peers}
    assert [one["what"] for one in seen.see(memory, decided, views, 5.0, 1.0)] == ["vip"]
    memory = replace(memory, lease=LeaseMemory(role=Role.WRITER))
    assert decided.report.vip


def test_what_another_release_noted_has_defaults() -> None:
    assert moves.told({}) == {
        "time": 0.0, "what": "", "here": False, "why": "", "other": "", "seconds": None, "exact": True,
    }  # fmt: skip
    noted = Course()
    noted.at(1.0, b=HOLDER)
    [move] = noted.at(2.0, HOLDER)
    assert moves.told({**move, "more": 1}) == move
    assert moves.told({"time": "x", "seconds": True})["seconds"] is None


def test_the_frozen_samples_are_read(tmp_path: Path) -> None:
    for name, form, key, told in (
        ("agent-moves.json", moves.FORMAT, moves.KEY, moves.told),
        ("agent-space.json", trend.FORMAT, trend.KEY, None),
    ):
        path = tmp_path / name
        path.write_bytes((FORMATS / name).read_bytes())
        complaints: list[str] = []
        one = KeptList(path, form, key, 9, lambda _, text, found=complaints: found.append(text))  # type: ignore[misc]
        one.read()
        assert complaints == []
        assert len(one.entries) == 2
        assert told is None or [told(entry) for entry in one.entries] == one.entries


# ---- the data disk ---------------------------------------------------------------------------------------------------


def samples(*frees: float, every: float = DAY, start: float = 1e9) -> list[Entry]:
    return [trend.sample(int(free), start + index * every) for index, free in enumerate(frees)]


def test_a_disk_that_fills_is_full_when_the_mean_rate_says_so() -> None:
    now = 1e9 + 2 * DAY
    found = trend.trend(samples(100e9, 90e9), int(80e9), now)
    assert found is not None
    assert found["since"] == 1e9
    assert found["rate"] == pytest.approx(10e9 / DAY, rel=1e-3)
    assert found["full"] == pytest.approx(now + 8 * DAY, rel=1e-6)


@pytest.mark.parametrize(("first", "last"), [(80e9, 100e9), (80e9, 80e9), (80e9, 80e9 - 1)])
def test_one_that_does_not_fill_is_full_never(first: float, last: float) -> None:
    found = trend.trend(samples(first), int(last), 1e9 + 3 * DAY)
    assert found is not None and found["full"] is None


def test_nothing_follows_from_less_than_a_day_or_from_the_future() -> None:
    assert trend.trend([], 5, 1e9) is None
    assert trend.trend(samples(100e9), int(50e9), 1e9 + DAY - 1) is None
    assert trend.trend(samples(100e9), int(50e9), 1e9 + DAY) is not None
    assert trend.trend(samples(100e9, start=2e9), int(50e9), 1e9) is None
    odd: list[Entry] = [{"time": "x", "free": 1}, {"free": 1}, {"time": True, "free": 2}, {"time": 5.0, "free": -3}]
    assert trend.trend(odd, 5, 1e9) is None


def test_a_sample_of_a_boot_with_an_old_clock_says_nothing() -> None:
    """An agent that starts with a clock that is behind takes one, and over all years since then the rate is nothing."""
    old = trend.sample(int(90e9), 1e9 - 900 * DAY)
    found = trend.trend([*samples(100e9, 90e9), old, *samples(85e9, start=1e9 + 1.5 * DAY)], int(80e9), 1e9 + 2 * DAY)
    assert found is not None
    assert found["since"] == 1e9
    assert found["full"] == pytest.approx(1e9 + 10 * DAY, rel=1e-6)
    assert trend.trend([old], int(80e9), 1e9) is None


def test_a_sample_is_due_each_hour_and_where_the_clock_went_back() -> None:
    one = samples(5)
    assert trend.due([], 1e9)
    assert not trend.due(one, 1e9 + trend.EVERY - 1)
    assert trend.due(one, 1e9 + trend.EVERY)
    assert trend.due(one, 1e9 - 1)


def test_a_week_is_kept() -> None:
    assert (trend.MOST - 1) * trend.EVERY == 7 * DAY
    assert 100 * max(trend.MOST, moves.MOST) < kept.LARGEST
