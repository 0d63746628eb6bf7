"""When images were pulled: from the proxies' lines to the plan, and what makes the record begin anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from kubeadm_registry.access import executor, questions
from kubeadm_registry.access.executor import ByHelper, OnHost
from kubeadm_registry.agent import pulls as recorder
from kubeadm_registry.agent.formats import Newer
from kubeadm_registry.agent.pulls import (
    CLIENTS,
    DAY,
    DROPPED,
    MOST,
    OF_CLIENT,
    SELDOM,
    SILENT,
    STALE,
    Hearing,
    Position,
    Record,
    Recorder,
    miss_in,
    pull_in,
    take,
)
from kubeadm_registry.agent.timings import Timings
from kubeadm_registry.components import pulls as component
from kubeadm_registry.errors import Error
from kubeadm_registry.executor.__main__ import _pulls as recorded
from kubeadm_registry.formats import Damaged
from kubeadm_registry.result import Result
from kubeadm_registry.retention.inventory import Repository, Seen, Tag
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.pulls import Miss, Pulls, merged
from tests.unit.fakes import FakeTransport

FORMATS = Path(__file__).parents[1] / "golden" / "formats"
UNITS = ("kubeadm-registry-none@1.service", "kubeadm-registry-none@2.service")
TODAY = 20_000
NOW = TODAY * DAY + 3600
DIGEST = f"sha256:{'a' * 64}"


# ---- a line of a proxy -----------------------------------------------------------------------------------------------


def said(
    path: str, *, who: str = "anonymous", method: str = "GET", status: int = 200, own: str = "",
    client: str = "10.0.0.77",
) -> str:  # fmt: skip
    """As the proxies' log-format has it."""
    return (
        f'{{"client":"{client}","who":"{who}","method":"{method}","path":"{path}","status":{status},"up":95,"down":877,'
        f'"server":"reads/local","retries":"0","ms_req":0,"ms_queue":0,"ms_conn":0,"ms_resp":4,"ms_total":4,"end":"--",'
        f'"blob":"","own":"{own}"}}'
    )


@pytest.mark.parametrize(
    ("line", "pulled"),
    [
        (said("/v2/team/app/manifests/v1"), ("team/app", "v1")),
        (said("\\/v2\\/team\\/app\\/manifests\\/v1"), ("team/app", "v1")),
        (said(f"/v2/team/app/manifests/{DIGEST}", who="pull", method="HEAD"), ("team/app", DIGEST)),
        (said("/v2/app/manifests/v1", status=304), ("app", "v1")),
        (said("/v2/app/manifests/v1", who="push"), ("app", "v1")),
        (said("/v2/app/manifests/v1", own="1"), ("app", "v1")),
        (said("/v2/app/manifests/v1", who="push", own="1"), None),
        (said("/v2/app/manifests/v1", who="push").replace(',"own":""', ""), ("app", "v1")),
        (said("/v2/app/manifests/v1", who="retention"), None),
        (said("/v2/app/manifests/v1", status=404), None),
        (said("/v2/app/manifests/v1", method="PUT"), None),
        (said("/v2/app/blobs/sha256:1"), None),
        (said("/v2/app/tags/list"), None),
        (said("/v2/kubeadm-registry/canary/manifests/v1"), None),
        (said("/healthz"), None),
        (said('/v2/app/manifests/v1\\",\\"status\\":404,\\"x\\":\\"'), None),
        ("proxy reads has no server available!", None),
        ("", None),
    ],
)
def test_what_a_client_got_is_a_pull_and_what_this_project_reads_is_none(
    line: str, pulled: tuple[str, str] | None
) -> None:
    assert pull_in(line) == pulled


@pytest.mark.parametrize(
    ("line", "missed"),
    [
        (said("/v2/team/app/manifests/v1", status=404), ("10.0.0.77", "team/app:v1")),
        (said("\\/v2\\/team\\/app\\/manifests\\/v1", status=404), ("10.0.0.77", "team/app:v1")),
        (said("/v2/app/manifests/v1", status=404, who="pull", method="HEAD", client="fd00::7"), ("fd00::7", "app:v1")),
        (said("/v2/app/manifests/v1"), None),
        (said("/v2/app/manifests/v1", status=503), None),
        (said("/v2/app/manifests/v1", status=404, who="push"), None),
        (said("/v2/app/manifests/v1", status=404, who="retention"), None),
        (said("/v2/app/manifests/v1", status=404, method="PUT"), None),
        (said(f"/v2/app/manifests/{DIGEST}", status=404), None),
        (said(f"/v2/app/manifests/sha256-{'a' * 64}.sig", status=404), None),
        (said(f"/v2/app/manifests/{'v' * 129}", status=404), None),
        (said("/v2/app/blobs/sha256:1", status=404), None),
        (said("/v2/kubeadm-registry/canary/manifests/v1", status=404), None),
        (said('/v2/app/manifests/v1\\",\\"status\\":404,\\"x\\":\\"'), None),
        ("", None),
    ],
)
def test_a_tag_that_a_node_asked_for_in_vain_is_a_miss(line: str, missed: tuple[str, str] | None) -> None:
    assert miss_in(line) == missed
    assert pull_in(line) is None or missed is None


def test_the_line_is_as_the_proxies_write_it(root: Path) -> None:
    """The keys of the log-format are those that are looked for, in that order."""
    text = (root / "kubeadm_registry/templates/haproxy/haproxy.cfg.j2").read_text()
    [form] = [line for line in text.splitlines() if line.strip().startswith("log-format")]
    written = [part.partition('":')[0] for part in form.split(',"')]
    looked = [part.partition('":')[0] for part in said("/x").split(',"')]
    assert written[1:] == looked[1:]
    assert '"own":"%[var(txn.own)]"' in form
    assert "set-var(txn.own) str(1) if { req.hdr(user-agent) -m str kubeadm-registry }" in text


# ---- the record ------------------------------------------------------------------------------------------------------


def entry(number: int, message: object, moment: int = NOW, **more: object) -> str:
    values = {"__CURSOR": f"c{number}", "__REALTIME_TIMESTAMP": str(moment * 1_000_000), "MESSAGE": message}
    return json.dumps(values | more)


def lines(*names: str, first: int = 1) -> list[str]:
    return [entry(number, said(f"/v2/{name}/manifests/v1")) for number, name in enumerate(names, first)]


def test_lines_are_read_from_where_the_last_look_ended() -> None:
    record, position = Record(NOW - DAY), Position()
    take(record, position, lines("a", "b"), UNITS, NOW)
    assert (record.since, position.cursor, position.read) == (NOW - DAY, "c2", NOW)
    record.changed = False
    take(record, position, lines("b", first=2), UNITS, NOW + 60)
    assert (record.since, record.changed, position.cursor) == (NOW - DAY, False, "c2")
    take(record, position, lines("b", "c", first=2), UNITS, NOW + 120)
    assert record.entries == {name: {"v1": TODAY} for name in "abc"}
    assert (record.since, record.changed, position.cursor) == (NOW - DAY, True, "c3")


@pytest.mark.parametrize(
    "found",
    [[], lines("c", "d", first=3), [entry(3, "Suppressed 7 messages from other", MESSAGE_ID=DROPPED)]],
    ids=["nothing is left", "others are left", "only something else"],
)
def test_a_line_that_is_not_there_any_more_begins_the_record_anew(found: list[str]) -> None:
    record, position = Record(NOW - DAY, {"a": {"v1": TODAY}}), Position("c2")
    take(record, position, found, UNITS, NOW)
    assert (record.since, record.changed) == (NOW, True)
    assert record.entries["a"] == {"v1": TODAY}, "what is known stays"


@pytest.mark.parametrize(("unit", "since"), [(UNITS[1], NOW), ("other.service", NOW - DAY)])
def test_lines_that_journald_dropped_begin_it_anew(unit: str, since: int) -> None:
    record, position = Record(NOW - DAY), Position("c1")
    dropped = entry(2, f"Suppressed 31 messages from {unit}", MESSAGE_ID=DROPPED)
    take(record, position, [*lines("a"), dropped], UNITS, NOW)
    assert record.since == since


def test_a_proxy_cannot_say_that_lines_were_dropped_and_bytes_are_no_pull() -> None:
    record, position = Record(NOW - DAY), Position()
    take(record, position, [entry(1, f"Suppressed 1 messages from {UNITS[0]}"), entry(2, [1, 2]), entry(3, None)],
         UNITS, NOW)  # fmt: skip
    assert (record.since, record.entries, position.cursor) == (NOW - DAY, {}, "c3")


def test_whole_days_are_forgotten_and_then_all_is_known_from_the_next_on() -> None:
    entries = {"a": {f"v{day}": day for day in range(10)}, "b": {"v": 0, "w": 5}}
    record = Record(0, entries)
    record.limit(12)
    assert record.since == 0 and record.entries == entries
    record.limit(7)
    assert record.entries == {"a": {f"v{day}": day for day in range(4, 10)}, "b": {"w": 5}}
    assert record.since == 4 * DAY
    record.limit(5)
    assert record.since == 6 * DAY, "two of one day go together"
    assert record.entries == {"a": {f"v{day}": day for day in range(6, 10)}}


def asks(number: int, client: str, name: str, moment: int = NOW) -> str:
    return entry(number, said(f"/v2/{name}/manifests/v1", status=404, client=client), moment)


def test_a_client_that_asks_for_anything_makes_its_own_misses_be_forgotten_and_nobody_elses() -> None:
    record, position = Record(NOW - DAY), Position()
    flood = [asks(number, "10.0.0.66", f"crawled/{number}") for number in range(2, 3 * OF_CLIENT)]
    take(record, position, [asks(1, "10.0.0.77", "team/app"), *flood], UNITS, NOW)
    assert record.missed["10.0.0.77"] == {"team/app:v1": NOW}
    assert list(record.missed["10.0.0.66"]) == [
        f"crawled/{number}:v1" for number in range(2 * OF_CLIENT, 3 * OF_CLIENT)
    ]
    assert record.entries == {}


def test_as_many_clients_are_known_as_there_is_room_for_and_who_asks_again_is_kept() -> None:
    record = Record(0)
    for number in range(3 * CLIENTS):
        record.miss(f"10.1.{number // 256}.{number % 256}", "crawled:v1", number)
        record.miss("10.0.0.77", "app:v1", 5)
    assert len(record.missed) == CLIENTS
    assert record.missed["10.0.0.77"] == {"app:v1": 5}


def ours(record: Record) -> Mapping[str, Mapping[str, int]]:
    """The misses of others than the crawler."""
    return {client: names for client, names in record.missed.items() if "crawled:v1" not in names}


def test_a_host_that_takes_many_addresses_of_its_network_is_one_client() -> None:
    """Its address is that which it had last."""
    record = Record(0)
    record.miss("2001:db8:0:7::7", "app:v1", 5)
    for number in range(3 * CLIENTS):
        record.miss(f"2001:db8:0:8::{number:x}", f"crawled/{number % 10}:v1", SELDOM * number)
    assert list(record.missed) == ["2001:db8:0:7::7", f"2001:db8:0:8::{3 * CLIENTS - 1:x}"]
    assert len(record.missed[f"2001:db8:0:8::{3 * CLIENTS - 1:x}"]) == 10
    record.miss("::ffff:10.0.0.77", "app:v2", 6)
    record.miss("10.0.0.77", "app:v3", 7)
    assert record.missed["10.0.0.77"] == {"app:v2": 6, "app:v3": 7}
    assert sum(map(len, record.sites.values())) == 3


@pytest.mark.parametrize("crawler", ["2001:db8:9:{:x}::1", "10.9.9.{}"], ids=["a network of 48 bits", "one of 24"])
def test_who_has_many_addresses_makes_the_misses_of_its_own_site_be_forgotten(crawler: str) -> None:
    many = 1000 if ":" in crawler else 256
    record = Record(0)
    others = [f"10.0.{number}.77" for number in range(CLIENTS - 250)]
    for number, client in enumerate(others):
        record.miss(client, "app:v1", number)
    for number in range(many):
        record.miss(crawler.format(number), "crawled:v1", number)
    assert list(ours(record)) == others
    assert len(record.missed) == CLIENTS
    assert crawler.format(many - 1) in record.missed
    # One that comes after the flood has room as well, and what is forgotten is so everywhere.
    record.miss("10.0.0.78", "app:v1", 5)
    assert list(ours(record)) == [*others, "10.0.0.78"]
    assert {one for site in record.sites.values() for one in site.values()} == record.missed.keys()


def test_sites_of_one_client_each_are_forgotten_the_oldest_first() -> None:
    record = Record(0)
    for number in range(CLIENTS + 10):
        record.miss(f"2001:db8:{number:x}::1", "app:v1", number)
    assert list(record.missed) == [f"2001:db8:{number:x}::1" for number in range(10, CLIENTS + 10)]
    assert len(record.sites) == CLIENTS


def test_two_addresses_of_a_host_in_the_record_of_an_earlier_release_become_one() -> None:
    record = Record(0, {}, {"fd00::1": {"app:v1": 1}, "10.0.0.1": {"app:v1": 1}, "fd00::2": {"app:v2": 2}})
    assert record.missed == {"10.0.0.1": {"app:v1": 1}, "fd00::2": {"app:v1": 1, "app:v2": 2}}
    record.miss("fd00::3", "app:v3", 3)
    assert record.missed["fd00::3"] == {"app:v1": 1, "app:v2": 2, "app:v3": 3}


def test_who_goes_on_asking_has_the_record_written_seldom() -> None:
    record = Record(0, changed=False)
    record.miss("10.0.0.77", "app:v1", NOW)
    assert record.changed
    record.changed = False
    record.miss("10.0.0.77", "app:v1", NOW + SELDOM - 1)
    assert (record.changed, record.missed) == (False, {"10.0.0.77": {"app:v1": NOW}})
    record.miss("10.0.0.77", "app:v1", NOW + SELDOM)
    assert (record.changed, record.missed) == (True, {"10.0.0.77": {"app:v1": NOW + SELDOM}})


class Journal:
    """What is logged; a reader from a cursor on, as journalctl is."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.asked: list[tuple[str, int]] = []

    def log(self, *names: str) -> None:
        self.entries += [
            entry(len(self.entries) + number, said(f"/v2/{name}/manifests/v1"), int(time.time()))
            for number, name in enumerate(names, 1)
        ]

    def __call__(self, cursor: str, since: int) -> Iterable[str]:
        self.asked.append((cursor, since))
        at = next((index for index, one in enumerate(self.entries) if json.loads(one)["__CURSOR"] == cursor), 0)
        return self.entries[at:]


def opened(folder: Path, journal: Journal, boot: str = "boot-1", *, running: bool = True) -> Recorder:
    return Recorder(folder, UNITS, journal, boot, lambda: running)


def test_a_process_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    journal = Journal()
    first = opened(tmp_path, journal)
    since = first.record.since
    assert abs(since - time.time()) < 5
    journal.log("a")
    first.look()
    journal.log("b")
    second = opened(tmp_path, journal)
    second.look()
    assert set(second.record.entries) == {"a", "b"}
    assert second.record.since == since
    said_ = json.loads((tmp_path / "pulls.json").read_text())
    assert set(said_["pulls"]) == {"a", "b"} and said_["since"] == since


def test_what_was_missed_is_known_to_the_next_process_and_to_the_executor(tmp_path: Path) -> None:
    journal = Journal()
    first = opened(tmp_path, journal)
    journal.entries += [asks(1, "10.0.0.77", "team/app"), asks(2, "10.0.0.78", "team/app", NOW + 7)]
    first.look()
    assert opened(tmp_path, journal).record.missed == first.record.missed != {}
    record, position = (tmp_path / "pulls.json", tmp_path / "position.json")
    assert {path.stat().st_mode & 0o777 for path in (record, position)} == {0o640}
    found = Pulls.parse(record.read_bytes(), position.read_bytes(), time.time())
    assert found.missed == {("team/app", "v1"): Miss(NOW + 7, "10.0.0.78")}
    assert Pulls.read(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(("closed", "kept"), [(True, True), (False, False)])
def test_a_node_that_went_down_in_order_goes_on_and_another_begins_anew(
    tmp_path: Path, closed: bool, kept: bool
) -> None:
    journal = Journal()
    first = opened(tmp_path, journal)
    journal.log("a")
    first.look(closed=closed)
    path = tmp_path / "pulls.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "since": 1000}))
    second = opened(tmp_path, journal, "boot-2")
    second.look()
    assert (second.record.since == 1000) is kept
    assert set(second.record.entries) == {"a"}
    # What is said of this boot counts for the next one.
    assert (second.position.boot, second.position.closed) == ("boot-2", False)
    assert opened(tmp_path, journal, "boot-3").record.since > 1000


@pytest.mark.parametrize("again", [False, True], ids=["the same process", "another one"])
@pytest.mark.parametrize("by", [-5 * 365 * DAY, -601, 601, 5 * 365 * DAY])
def test_a_clock_that_is_set_begins_it_anew(tmp_path: Path, by: int, again: bool) -> None:
    right, journal = time.time(), Journal()
    clock = mock.Mock(return_value=right - by)
    with mock.patch.object(time, "time", clock):
        one = opened(tmp_path, journal)
        journal.log("a")
        one.look()
        assert one.record.since == int(right - by)
        clock.return_value = right
        one = opened(tmp_path, journal) if again else one
        one.look()
        assert one.record.since == int(right), "not before it ran with this clock"
        clock.return_value += 599
        one.look()
    assert (one.record.since, set(one.record.entries)) == (int(right), {"a"})


def test_the_clock_of_a_boot_is_compared_with_no_other(tmp_path: Path) -> None:
    journal = Journal()
    first = opened(tmp_path, journal)
    journal.log("a")
    first.look(closed=True)
    since = first.record.since
    with mock.patch.object(time, "time", return_value=time.time() + 30 * DAY):
        second = opened(tmp_path, journal, "boot-2")
        second.look()
    assert second.record.since == since, "it was off for so long"


def test_a_journal_that_a_reboot_emptied_begins_it_anew(tmp_path: Path) -> None:
    journal = Journal()
    first = opened(tmp_path, journal)
    journal.log("a", "b")
    first.look(closed=True)
    path = tmp_path / "pulls.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "since": 1000}))
    second = opened(tmp_path, Journal(), "boot-2")
    assert second.record.since == 1000
    second.look()
    assert second.record.since > 1000


@pytest.mark.parametrize("name", ["pulls.json", "position.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"pulls": 5, "since": 1}', b"\xff",
                                     b'{"pulls": {}, "since": 1, "missed": [1]}'])  # fmt: skip
def test_damaged_files_begin_it_anew(tmp_path: Path, name: str, content: bytes) -> None:
    journal = Journal()
    opened(tmp_path, journal).look()
    path = tmp_path / "pulls.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "since": 1000}))
    (tmp_path / name).write_bytes(content)
    assert opened(tmp_path, journal).record.since > 1000


@pytest.mark.parametrize("name", ["pulls.json", "position.json"])
@pytest.mark.parametrize("key", ["minReader", "minWriter"])
def test_a_newer_record_is_left_as_it_is(tmp_path: Path, name: str, key: str) -> None:
    opened(tmp_path, Journal())
    path = tmp_path / name
    document = json.loads(path.read_text())
    document["format"][key] = 2
    path.write_text(json.dumps(document))
    before = {one.name: one.read_text() for one in tmp_path.iterdir()}
    with pytest.raises(Newer):
        opened(tmp_path, Journal())
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == before


def test_what_a_newer_release_has_added_stays(tmp_path: Path) -> None:
    journal = Journal()
    opened(tmp_path, journal).look()
    for name in ("pulls.json", "position.json"):
        document = json.loads((tmp_path / name).read_text())
        document["format"]["version"] = 2
        (tmp_path / name).write_text(json.dumps({**document, "of_a_newer_release": name}))
    journal.log("a")
    opened(tmp_path, journal).look()
    for name in ("pulls.json", "position.json"):
        document = json.loads((tmp_path / name).read_text())
        assert (document["of_a_newer_release"], document["format"]["version"]) == (name, 2)
    assert "a" in json.loads((tmp_path / "pulls.json").read_text())["pulls"]


@pytest.mark.parametrize(
    ("name", "key", "anew"),
    [("pulls.json", "since", True), ("pulls.json", "pulls", True), ("pulls.json", "missed", False),
     ("position.json", "cursor", True), ("position.json", "read", True), ("position.json", "boot", True),
     ("position.json", "closed", False)],
)  # fmt: skip
def test_one_key_less_has_a_default_or_begins_it_anew(tmp_path: Path, name: str, key: str, anew: bool) -> None:
    journal = Journal()
    journal.log("a")
    opened(tmp_path, journal).look()
    record = tmp_path / "pulls.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "since": 1000}))
    document = json.loads((tmp_path / name).read_text())
    del document[key]
    (tmp_path / name).write_text(json.dumps(document))
    assert (opened(tmp_path, journal).record.since != 1000) is anew
    assert key in json.loads((tmp_path / name).read_text()) or not anew


def test_the_record_is_written_only_when_something_is_new(tmp_path: Path) -> None:
    journal = Journal()
    one = opened(tmp_path, journal)
    journal.log("a")
    one.look()
    before = (tmp_path / "pulls.json").stat().st_ino
    journal.log("a", "a")
    one.look()
    assert (tmp_path / "pulls.json").stat().st_ino == before
    journal.log("b")
    one.look()
    assert (tmp_path / "pulls.json").stat().st_ino != before


JOURNALCTL = """#!/bin/sh
echo "$@" >> {folder}/argv
cat {folder}/journal
"""


def test_the_program_reads_until_it_is_ended_and_once_more_then(tmp_path: Path) -> None:
    tools, state = tmp_path / "tools", tmp_path / "state"
    tools.mkdir()
    state.mkdir()
    (tools / "journalctl").write_text(JOURNALCTL.format(folder=tmp_path))
    (tools / "journalctl").chmod(0o755)
    (tmp_path / "journal").write_text(entry(1, said("/v2/a/manifests/v1")) + "\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "kubeadm_registry.agent", "--pulls", str(state), *UNITS],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
    )
    try:
        end = time.monotonic() + 20
        while not (state / "pulls.json").exists() or "a" not in json.loads((state / "pulls.json").read_text())["pulls"]:
            assert time.monotonic() < end, "nothing was recorded"
            time.sleep(0.02)
        with (tmp_path / "journal").open("a") as file:
            file.write(entry(2, said("/v2/b/manifests/v1")) + "\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert set(json.loads((state / "pulls.json").read_text())["pulls"]) == {"a", "b"}
    position = json.loads((state / "position.json").read_text())
    assert (position["cursor"], position["closed"]) == ("c2", True)
    first, second = (tmp_path / "argv").read_text().splitlines()
    assert "--since=@" in first and "--cursor=c1" in second
    assert first.endswith(f"_SYSTEMD_UNIT={UNITS[0]} _SYSTEMD_UNIT={UNITS[1]} + MESSAGE_ID={DROPPED}")


def test_a_stop_in_the_middle_of_a_look_loses_nothing(root: Path, tmp_path: Path) -> None:
    """systemd signals those that the unit's KillMode names: systemd.kill(5)."""
    unit = (root / "kubeadm_registry/templates/pulls/unit.j2").read_text()
    tools, state = tmp_path / "tools", tmp_path / "state"
    tools.mkdir()
    state.mkdir()
    (tools / "journalctl").write_text(f"#!/bin/sh\necho >> {tmp_path}/begun\nsleep 1\nexec cat {tmp_path}/journal\n")
    (tools / "journalctl").chmod(0o755)
    (tmp_path / "journal").write_text(entry(1, said("/v2/a/manifests/v1")) + "\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "kubeadm_registry.agent", "--pulls", str(state), *UNITS],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}, start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 20
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < end, "the journal was not read"
            time.sleep(0.02)
        (os.kill if "\nKillMode=mixed\n" in unit else os.killpg)(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert "a" in json.loads((state / "pulls.json").read_text())["pulls"]
    assert json.loads((state / "position.json").read_text())["closed"] is True


# ---- lines that were never stored ------------------------------------------------------------------------------------


class Life:
    """A recorder whose monotonic clock is set by hand; the proxies log the agents' probes, and whatever else."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.journal = folder, Journal()
        self.now, self.running = 1000.0, True
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.recorder = self.start()
        self.log()
        self.look()
        self.known()

    def start(self, boot: str = "boot-1") -> Recorder:
        self.recorder = Recorder(self.folder, UNITS, self.journal, boot, lambda: self.running)
        return self.recorder

    def log(self, message: str = said("/healthz"), boot: str = "boot1") -> None:
        number, moment = len(self.journal.entries) + 1, str(round(self.now * 1_000_000))
        self.journal.entries.append(
            entry(number, message, int(time.time()), __MONOTONIC_TIMESTAMP=moment, _BOOT_ID=boot)
        )

    def known(self) -> None:
        """Let the record be old."""
        self.recorder.record.since, self.recorder.record.changed = 1000, True
        self.recorder.look()

    def look(self, *, closed: bool = False) -> bool:
        """Whether the record began anew by this look."""
        self.recorder.record.since = 1000
        self.recorder.look(closed=closed)
        return self.recorder.record.since != 1000


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    return Life(tmp_path, monkeypatch)


def test_proxies_of_which_the_journal_stores_no_request_begin_it_anew_as_long_as_they_run(
    life: Life, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with MaxLevelStore=notice, of which journald says nothing; what is of a higher level is stored still."""
    found = []
    for _ in range(5):
        life.now += 60
        life.log("backend reads has no server available!")
        found.append(life.look())
    assert found == [False, False, True, True, True]
    words = capsys.readouterr().err
    assert words.count("MaxLevelStore=") == words.count("recording pulls from now on") == 1
    life.log()
    assert life.look(), "what was said before that line is lost"
    life.now += 60
    life.log()
    assert not life.look()
    life.now += SILENT
    assert life.look()
    assert capsys.readouterr().err.count("MaxLevelStore=") == 1, "it is told once for each silence"


def test_proxies_that_do_not_run_log_nothing(life: Life) -> None:
    life.running = False
    for _ in range(10):
        life.now += 60
        assert not life.look()
    life.running = True
    life.now += 59
    life.log()
    assert not life.look()


def test_a_process_that_comes_later_sees_that_lines_are_missing(life: Life) -> None:
    life.now += SILENT - 1
    life.start()
    assert not life.look()
    life.now += 1
    life.start()
    assert life.look()


def test_lines_that_came_while_no_process_read_them_are_a_gap_or_none(life: Life) -> None:
    for _ in range(9):
        life.now += SILENT / 2
        life.log()
    life.start()
    assert not life.look()
    life.now += SILENT
    life.log()
    life.now += 1
    life.log()
    life.start()
    assert life.look(), "the hole is between two lines"


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_a_node_that_was_down_in_order_was_not_silent(life: Life, boot: str) -> None:
    life.look(closed=True)
    life.now += 10 * SILENT
    life.start(boot)
    life.log(boot=boot.replace("-", ""))
    assert not life.look()
    life.now += 60
    life.log(boot=boot.replace("-", ""))
    assert not life.look()


def test_another_boot_has_another_clock(life: Life) -> None:
    life.look(closed=True)
    life.now = 5.0
    life.start("boot-2")
    life.look()
    life.now += SILENT
    assert life.look()


def test_the_proxies_log_the_probes_of_the_agents(root: Path) -> None:
    """Which is what tells a proxy that nobody asks from one whose lines are lost."""
    text = (root / "kubeadm_registry/templates/haproxy/haproxy.cfg.j2").read_text()
    public = text[text.index("\nfrontend public\n") : text.index("\nbackend reads\n")]
    assert 'string "ok" if { path /healthz }' in public
    assert not any(word in public for word in ("\n  no log\n", "set-log-level", "dontlog-normal", "monitor-uri"))
    assert public.split("log-format '")[1].startswith(recorder.REQUEST)
    assert 30 * Timings().door_interval < SILENT
    assert 2 * recorder.EVERY < SILENT < STALE


def test_an_entry_without_times_is_none() -> None:
    hearing = Hearing("b-1", 10.0)
    hearing.line({"MESSAGE": said("/healthz")})
    assert not hearing.ends(10.0 + SILENT - 1, lambda: True)
    assert hearing.ends(10.0 + SILENT, lambda: True)


# ---- asked of the nodes ----------------------------------------------------------------------------------------------


def node(name: str, answer: object) -> OnHost:
    fake = FakeTransport(name)
    fake.answer("runuser", "-u", component.USER, "--", "sh", "-c", executor._PULLS, "pulls", with_=answer)  # type: ignore[arg-type]
    return OnHost(fake.host())


def shown(since: int = 1000, read: int = NOW, now: float = NOW + 5, **repositories: dict[str, int]) -> str:
    record = {"since": since, "pulls": repositories}
    position = {"cursor": "c", "read": read, "boot": "b", "closed": False}
    return f"{now}\n{json.dumps(record)}\n{json.dumps(position)}\n"


def test_a_node_says_what_it_recorded() -> None:
    assert node("cp-1", shown(app={"v1": TODAY})).pulls() == Pulls(1000, {("app", "v1"): (TODAY + 1) * DAY - 1})


@pytest.mark.parametrize(
    "answer",
    [
        Result(("sh",), 1, b"", b"cat: pulls.json: No such file or directory"),
        "",
        f"{NOW}\n",
        f"{NOW}\n{{}}\n{{}}\n",
        shown(read=NOW - STALE - 10),
        shown(now=NOW - STALE - 10),
        f'{NOW}\n{{"since": 1, "pulls": {{"a": 5}}}}\n{{"read": {NOW}}}\n',
        f'{NOW}\n{{"format": {{"version": 2, "minReader": 2, "minWriter": 2}}}}\n{{"read": {NOW}}}\n',
    ],
    ids=["no file", "nothing", "empty", "no keys", "not read lately", "a clock that went back", "no days", "newer"],
)
def test_what_cannot_be_relied_on_is_not_known(answer: object) -> None:
    with pytest.raises(Error) as caught:
        node("cp-1", answer).pulls()
    assert caught.value.code == "PullsUnknown"
    told: list[str] = []
    assert executor.pulls([node("cp-1", answer), node("cp-2", shown())], 2, told.append) == Pulls(None, {})
    assert len(told) == 1 and told[0].startswith("cp-1: ")


def test_what_all_nodes_know_is_known_from_the_latest_on() -> None:
    one, two = shown(1000, app={"v1": TODAY, "v2": 5}), shown(3000, app={"v1": 7}, db={"x": 9})
    found = executor.pulls([node("cp-1", one), node("cp-2", two)], 2)
    assert found == Pulls(3000, {
        ("app", "v1"): (TODAY + 1) * DAY - 1, ("app", "v2"): 6 * DAY - 1, ("db", "x"): 10 * DAY - 1,
    })  # fmt: skip


def test_a_node_that_is_away_may_know_of_pulls_that_nobody_else_knows() -> None:
    told: list[str] = []
    assert executor.pulls([node("cp-1", shown())], 3, told.append).since is None
    assert told == ["1 of 3 nodes can be asked"]
    assert merged([]).since is None
    assert merged([Pulls(1, {}), None]).since is None


def test_what_one_node_was_asked_for_counts_whatever_the_others_can_say() -> None:
    place, other = ("app", "v1"), ("app", "v2")
    one = Pulls(1000, {place: 5}, {place: Miss(10, "10.0.0.77")})
    two = Pulls(3000, {}, {place: Miss(20, "10.0.0.78"), other: Miss(1, "10.0.0.79")})
    assert merged([one, two]) == Pulls(3000, {place: 5}, two.missed)
    assert merged([two, one]).missed == two.missed
    assert merged([one, None]) == Pulls(None, {place: 5}, one.missed)


def test_the_operator_asks_the_helper() -> None:
    here = node("cp-1", shown(app={"v1": TODAY}))

    def ask(content: bytes, _: float) -> bytes:
        values = questions.QUESTION.parse(content).values
        return questions.answer(executor.answers(here, values["verb"], values.get("order")))

    assert ByHelper("cp-1", ask).pulls() == here.pulls()

    def older(*_: object) -> bytes:
        return questions.failure(Error("the helper cannot 'pulls'", code="QuestionInvalid", hint="run init"))

    assert executor.pulls([ByHelper("cp-1", older)], 1) == Pulls(None, {})
    for said_ in ({"since": "x", "last": 5, "missed": []}, {"since": 1, "last": []}):
        assert executor.pulls([ByHelper("cp-1", lambda *_, said_=said_: questions.answer(said_))], 1).since is None


def test_the_timer_reads_what_its_own_node_recorded_and_knows_that_there_may_be_more(tmp_path: Path) -> None:
    assert recorded(tmp_path) is None
    journal = Journal()
    journal.entries.append(asks(1, "10.0.0.77", "app"))
    opened(tmp_path, journal).look()
    assert recorded(tmp_path) == Pulls(None, {}, {("app", "v1"): Miss(NOW, "10.0.0.77")})
    (tmp_path / "pulls.json").write_text("{")
    assert recorded(tmp_path) is None


def test_the_frozen_samples_are_read() -> None:
    record, position = ((FORMATS / name).read_bytes() for name in ("pulls.json", "pulls-position.json"))
    found = Pulls.parse(record, position, 1900000060)
    assert found == Pulls(
        1890000000, {("team/app", "v1"): 21990 * DAY + DAY - 1, ("team/app", DIGEST): 21990 * DAY + DAY - 1}
    )
    more = Pulls.parse((FORMATS / "pulls-missed.json").read_bytes(), position, 1900000060)
    assert (more.since, more.last) == (found.since, found.last)
    assert more.missed == {("team/app", "v1"): Miss(1900000007, "fd00::7")}
    for key in ("since", "pulls", "missed"):
        with pytest.raises(Damaged):
            Pulls.parse(json.dumps({**json.loads(record), key: None}), position, 1900000060)
    newer: Any = {**json.loads(record), "of_a_newer_release": 1}
    assert Pulls.parse(json.dumps(newer), position, 1900000060) == found


# ---- in the ledger ---------------------------------------------------------------------------------------------------

OLD, NEW, OTHER = (f"sha256:{one * 64}" for one in "123")


def ledger() -> Ledger:
    repository = Repository(
        {"v1": Tag(NEW, NOW), "v2": Tag(OTHER, 0)}, {OLD: Seen(0, None, NOW), NEW: Seen(NOW), OTHER: Seen(0, 77)}
    )
    return Ledger(written=NOW, repositories={"app": repository})


def last(found: Ledger) -> list[int | None]:
    return [found.repositories["app"].manifests[one].last_pulled for one in (OLD, NEW, OTHER)]


def test_a_pull_counts_for_what_the_tag_means_and_for_what_it_may_have_meant() -> None:
    end = (TODAY + 1) * DAY - 1
    found = ledger().pulled(Pulls(1000, {("app", "v1"): end, ("gone", "v1"): end, ("app", "v9"): 5}))
    assert last(found) == [end, end, 77]
    assert found.pulls_since == 1000
    earlier = end - 5 * DAY
    assert last(ledger().pulled(Pulls(1000, {("app", "v2"): earlier}))) == [earlier, None, earlier]
    assert last(ledger().pulled(Pulls(1000, {("app", OTHER): end}))) == [None, None, end]
    later = replace(ledger(), repositories=found.repositories).pulled(Pulls(1000, {("app", "v1"): 99}))
    assert last(later) == [end, end, 77], "a later pull is not forgotten"


def test_where_pulls_are_not_known_nothing_is_said_of_them() -> None:
    before = ledger().pulled(Pulls(1000, {}))
    assert before.pulls_since == 1000
    assert before.pulled(None).pulls_since is None
    assert Ledger.parse(before.to_json()).pulls_since == 1000


def test_the_record_holds_every_tag_of_a_large_registry() -> None:
    assert MOST >= 100_000
    assert recorder.EVERY * 5 <= STALE
