"""A file and an object: taken or refused by both, with the same meaning."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from kubeadm_registry import config
from kubeadm_registry.config.values import reserved
from kubeadm_registry.errors import ConfigError
from tests.operator import battery
from tests.operator.apiserver import Answer, ApiServer
from tests.operator.battery import (
    CLUSTER,
    CREATE,
    DIFFERENT,
    FROM_ONE,
    LARGEST,
    TEXTS,
    TEXTS_IPV6,
    UPDATE,
    Case,
    Object,
    changed,
    node,
    put,
)

API = "/apis/kubeadm-registry.dev/v1alpha1/registryclusters"


def taken_by_file(found: Object) -> bool:
    """Whether the loader takes *found* as a file; JSON is YAML."""
    try:
        config.parse(json.dumps(found), "cluster.yaml")
    except ConfigError:
        return False
    return True


def at_once(server: ApiServer, objects: Sequence[Object]) -> list[Answer]:
    """What a server-side dry run says of each; kubectl mostly waits for itself to start."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda one: server.send("create", json.dumps(one), "--dry-run=server"), objects))


def wrong(cases: Sequence[Case], answers: Sequence[Answer]) -> list[str]:
    """The cases that were not answered as they should be, with the answer."""
    return [
        f"{case.title}: {'TAKEN' if answer.taken else answer.text}"
        for case, answer in zip(cases, answers, strict=True)
        if answer.taken != case.taken or (not case.taken and case.says not in answer.text)
    ]


def test_a_file_and_an_object_are_refused_alike(empty: ApiServer) -> None:
    objects = [changed(base, case.change) for base, case in CREATE]
    cases = [case for _, case in CREATE]
    other = [case.title for one, case in zip(objects, cases, strict=True) if taken_by_file(one) != case.taken]
    assert other == []
    assert len(cases) > 200
    assert wrong(cases, at_once(empty, objects)) == []


def mutated(chance: random.Random, text: str) -> str:
    """*text* with one to three letters or pieces more, less, or other ones."""
    for _ in range(chance.randint(1, 3)):
        begin, end = sorted(chance.choices(range(len(text) + 1), k=2))
        piece = chance.choice(["", chance.choice(LETTERS), text[begin:end] * 2])
        text = text[:begin] + piece + text[min(end, begin + chance.randint(0, 2)) :]
    return text


LETTERS = "abzAZ019.:/-_[]%@*~ +fF\n\té\x7f\u2028\u00a0"


def test_random_texts_are_refused_alike(empty: ApiServer) -> None:
    """Where Python and RE2, or ipaddress and Go's netip, read one text in two ways, one of these finds it."""
    chance = random.Random(11)
    begins = [(base, path, text) for base, texts in ((CLUSTER, TEXTS), (battery.SIX, TEXTS_IPV6))
              for path, several in texts.items() for text in several]  # fmt: skip
    objects = []
    for _ in range(3000):
        base, path, text = chance.choice(begins)
        value = mutated(chance, text)
        objects.append(changed(base, put("spec.mirrors", [value]) if "mirrors" in path else put(path, value)))
    answers = list(empty.dry_run(API, objects))
    other = [
        (one, answer.text) for one, answer in zip(objects, answers, strict=True) if answer.taken != taken_by_file(one)
    ]
    assert other == []
    assert 300 < sum(answer.taken for answer in answers) < 2700, "neither is the rule"


def test_directories_are_refused_alike(empty: ApiServer) -> None:
    """Each that is reserved, what is in it and above it, its neighbours, and other spellings."""
    forms = ("{}", "{}/x", "{}x", "{}/.", "{}/..x", "/zz{}")
    paths = []
    for directory in (each for _, several in reserved() for each in several):
        above = directory.rpartition("/")[0]
        paths += [form.format(directory) for form in forms]
        paths += [above, f"{above}/zz", directory[:-1], directory.replace("/", "//"), directory.replace("/", "/./")]
    objects = [changed(CLUSTER, put(battery.DIR, path)) for path in paths]
    answers = list(empty.dry_run(API, objects))
    assert [
        (one["spec"]["dataDirectory"], answer.text)
        for one, answer in zip(objects, answers, strict=True)
        if answer.taken != taken_by_file(one)
    ] == []


def test_where_they_differ_the_file_is_the_stricter_one(empty: ApiServer) -> None:
    objects = [changed(CLUSTER, case.change) for case in DIFFERENT]
    assert wrong(DIFFERENT, at_once(empty, objects)) == []
    assert not any(map(taken_by_file, objects))


@pytest.mark.parametrize(("path", "meaning"), [("spec.ssh.port", 22), ("spec.mirrors", None), ("spec.ssh", None)])
def test_what_differs_means_the_same(empty: ApiServer, path: str, meaning: int | None) -> None:
    """22.0 comes back as 22, and what was null as if it had not been there."""
    given = changed(CLUSTER, put(path, 22.0 if meaning else None))
    assert empty.send("create", json.dumps(given)).taken
    plain = changed(CLUSTER, put(path, meaning)) if meaning else CLUSTER
    found = config.from_object(empty.get("registrycluster", CLUSTER["metadata"]["name"]))
    assert found == config.parse(json.dumps(plain), "cluster.yaml")


@pytest.mark.parametrize("words", ["name: no", "name: 1e3", "name: 12"])
def test_what_yaml_reads_in_two_ways_is_refused_by_one(empty: ApiServer, words: str) -> None:
    """kubectl reads YAML 1.1, where a plain no is false. Neither takes it for another name than the other."""
    text = config.SMALLEST.replace("name: cp-1", words)
    answer = empty.send("create", text, "--dry-run=server")
    assert not answer.taken
    assert re.search(r"spec\.nodes\[0\]\.name in body must be of type string", answer.text)


def test_changes(adopted: ApiServer) -> None:
    for case in UPDATE:
        one = changed(CLUSTER, case.change)
        assert taken_by_file(one) == (case.title != "three to two")
        answer = adopted.send("apply", json.dumps(one), "--dry-run=server")
        assert wrong([case], [answer]) == []


def test_changes_that_are_made(adopted: ApiServer) -> None:
    """Those that are taken are made, from one to the next and back, as a person would over the years."""
    for case in UPDATE:
        if case.taken:
            for one in (changed(CLUSTER, case.change), CLUSTER):
                answer = adopted.send("replace", json.dumps(one))
                assert answer.taken or "one at a time" in answer.text, f"{case.title}: {answer.text}"


def test_a_registry_of_one_node(empty: ApiServer) -> None:
    one = changed(CLUSTER, put(battery.N, [node(1)]))
    assert empty.send("apply", json.dumps(one)).taken
    answers = [empty.send("apply", json.dumps(changed(one, case.change)), "--dry-run=server") for case in FROM_ONE]
    assert wrong(FROM_ONE, answers) == []


def test_the_largest_object_may_change(empty: ApiServer) -> None:
    assert empty.send("create", json.dumps(LARGEST)).taken
    nodes = [*LARGEST["spec"]["nodes"][1:], {**LARGEST["spec"]["nodes"][0], "name": "n" * 63}]
    answer = empty.send("replace", json.dumps(changed(LARGEST, put(battery.N, nodes))))
    assert answer.taken, answer.text


@pytest.mark.parametrize(
    "writer",
    [
        ("patch", "regc", "registry", "--type=json", '-p=[{"op": "remove", "path": "/spec/nodes/2"}]'),
        ("patch", "regc", "registry", "--type=merge", '-p={"spec": {"dataDirectory": "/srv/x"}}'),
    ],
)
def test_every_writer_is_bound(adopted: ApiServer, writer: Sequence[str]) -> None:
    for user in ("admin", "operator"):
        answer = adopted.ask(*writer, user=user)
        assert not answer.taken
        assert "is invalid: " in answer.text
    other = changed(CLUSTER, put("spec.dataDirectory", "/srv/x"))
    answer = adopted.send("apply", json.dumps(other), "--server-side", "--force-conflicts", "--field-manager=other")
    assert "the images would stay in the old directory" in answer.text
