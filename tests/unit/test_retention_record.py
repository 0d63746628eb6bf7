"""The plan as a record: what is written is read again, by later releases as well, and two plans together."""

from __future__ import annotations

import json
import tracemalloc
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.formats import Damaged
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.retention import Plan, Use, record
from tests.unit.retention_registry import NOW, Registry, digest, keep

SAMPLE = Path(__file__).parents[1] / "golden" / "formats" / "retention-plan.json"


def registry() -> Registry:
    """Old builds with a signature, one in use, a new one."""
    found = Registry()
    for number in range(8):
        found.image("team/app", f"build-{number}", days=40 - number)
    found.image("team/app", name="signature", subject=digest("team/app:build-1"), days=39)
    found.image("team/app", "build-9", days=1.5)
    return found


USE = Use("team/app:build-3", users=("Deployment shop/web", "ReplicaSet shop/web-5d6c"), count=2)
POLICY = keep("{newest: 1}", repositories="['team/*']")


def plan() -> Plan:
    return registry().plan(POLICY, USE)


def test_the_sample_is_what_is_written(request: pytest.FixtureRequest) -> None:
    written = json.dumps(plan().to_dict(), indent=1) + "\n"
    if request.config.getoption("--update-golden") and not SAMPLE.exists():
        SAMPLE.write_text(written)
    assert SAMPLE.read_text() == written, "a later release must read the sample; write a new one beside it"


def test_the_sample_is_read() -> None:
    found = Plan.parse(SAMPLE.read_bytes())
    assert found == plan()
    assert found.to_dict() == json.loads(SAMPLE.read_bytes())
    assert [one.code for one in found.needs_approval] == ["ShareOfRepository", "ShareOfAll"]


def test_the_digest_is_that_of_the_sorted_deletions() -> None:
    made = plan()
    listed = sorted([one.repository, one.tag, one.digest] for one in made.deletions)
    assert made.digest == oci.digest_of(json.dumps(listed, separators=(",", ":")).encode())
    assert replace(made, made=0, kept=(), policy="other").digest == made.digest


def test_written_in_pieces_it_is_the_same() -> None:
    for one in (plan(), replace(plan(), deletions=(), kept=(), needs_approval=())):
        assert b"".join(one.pieces()) == json.dumps(one.to_dict()).encode()
        assert Plan.parse(b"".join(one.pieces())) == one


def test_pieces_and_digest_of_many_deletions_take_little_memory() -> None:
    (first, *_), count = plan().deletions, 4 * record._BATCH + 1
    made = replace(plan(), deletions=tuple(replace(first, tag=f"v{number:05}") for number in range(count)))
    tracemalloc.start()
    try:
        size = sum(map(len, made.pieces()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 300 * count
    assert peak < size / 2, "as much as the text of all of it"
    listed = [[one.repository, one.tag, one.digest] for one in made.deletions]
    assert made.digest == oci.digest_of(json.dumps(listed, separators=(",", ":")).encode())


def inside(document: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@pytest.mark.parametrize("path", [(), ("format",), ("deletions", 0), ("deletions", 6), ("kept", 1)])
def test_what_a_later_release_adds_is_written_back(path: tuple[str | int, ...]) -> None:
    document = json.loads(SAMPLE.read_bytes())
    inside(document, path)["later"] = {"x": [1]}
    found = Plan.parse(json.dumps(document).encode())
    assert found.to_dict() == document
    assert found.digest == document["digest"]


@pytest.mark.parametrize("path", [(), ("deletions", 0), ("kept", 0), ("needsApproval", 0)])
def test_a_key_that_is_missing_is_damage(path: tuple[str | int, ...]) -> None:
    document = json.loads(SAMPLE.read_bytes())
    for key in set(inside(document, path)) - {"format", "freed"} if not path else inside(document, path):
        less = deepcopy(document)
        del inside(less, path)[key]
        with pytest.raises(Damaged):
            Plan.parse(json.dumps(less).encode())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": digest("other")}, "its digest is not that of its deletions"),
        ({"deletions": []}, "its digest is not that of its deletions"),
        ({"deletions": None}, "wrong value"),
        ({"deletions": [1]}, "wrong value"),
        ({"kept": {}}, "wrong value"),
        ({"made": "yesterday"}, "wrong value"),
        ({"made": 1}, "wrong value"),
    ],
)
def test_what_is_not_a_plan_is_damage(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Damaged, match=words):
        Plan.parse(json.dumps(json.loads(SAMPLE.read_bytes()) | change).encode())


@pytest.mark.parametrize(
    ("key", "value"),
    [("age", "9"), ("freed", True), ("size", 1.5), ("partOf", "x"), ("partOf", [1]), ("tag", 1), ("repository", None)],
)
def test_a_value_of_another_type_is_damage(key: str, value: object) -> None:
    document = json.loads(SAMPLE.read_bytes())
    document["deletions"][0][key] = value
    document["digest"] = oci.digest_of(
        oci.canonical([[one["repository"], one["tag"], one["digest"]] for one in document["deletions"]])
    )
    with pytest.raises(Damaged):
        Plan.parse(json.dumps(document).encode())


def test_both_is_what_two_plans_delete() -> None:
    approved = plan()
    later = registry()
    later.image("team/app", "build-10", days=1.5)
    later.also("team/app", "build-0", of=digest("team/app:build-7"), days=2)
    second = later.plan(POLICY, Use("team/app:build-2"))
    found = approved.both(second)
    assert {one.tag for one in found.deletions} == {"", "build-1", "build-4", "build-5", "build-6"}, (
        "build-0 is another image now, build-7 has a tag more, build-2 is used, build-3 was"
    )
    assert found.made == second.made
    assert approved.both(approved) == approved


def test_both_never_breaks_what_it_leaves() -> None:
    """The second plan deletes an index that the first did not know; its parts stay with it."""
    found = Registry()
    parts = [found.image("team/app", name=f"part {number}") for number in range(2)]
    first = found.plan(keep("{tags: [new]}", untagged="{after: 1d}"))
    assert len(first.deletions) == 2
    outer = found.index("team/app", children=[found.index("team/app", "old", children=parts)])
    second = found.plan(keep("{tags: [new]}", untagged="{after: 1d}"))
    assert {one.digest for one in second.deletions} > {*parts, outer}
    assert first.both(second).deletions == ()
    assert len(second.both(first).deletions) == 2


def test_both_follows_parts_of_parts() -> None:
    """The second plan deletes an index around what the first one deletes: it stays, and all in it."""
    found = Registry()
    inner = found.index("team/app", "old", children=[found.image("team/app", name="part")])
    first = found.plan(keep("{tags: [new]}", untagged="{after: 1d}"))
    assert len(first.deletions) == 2
    found.index("team/app", children=[inner])
    second = found.plan(keep("{tags: [new]}", untagged="{after: 1d}"))
    assert len(second.deletions) == 3
    assert first.both(second).deletions == ()


def test_times_are_written_in_utc() -> None:
    assert plan().to_dict()["made"] == "2027-01-15T08:00:00Z"
    assert plan().made == NOW
