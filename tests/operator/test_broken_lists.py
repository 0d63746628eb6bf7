"""A list of a real API server that does not arrive whole: always a problem, never a shorter list."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from kubeadm_registry.upkeep.clusters import ClusterReport, read
from tests.lab.command import run
from tests.lab.programs import program
from tests.operator.apiserver import ApiServer, running
from tests.operator.between import Alter, Forward, Reply, between
from tests.operator.workloads import CASES, expected, fill, pod, triples

PODS = "/api/v1/pods?"


def first(alter: Alter) -> Alter:
    """Only the first time; afterwards everything passes as it is."""
    left = [alter]
    return lambda path, forward: left.pop()(path, forward) if left and applies(path) else forward(path)


def always(alter: Alter) -> Alter:
    """Each time."""
    return lambda path, forward: alter(path, forward) if applies(path) else forward(path)


def applies(path: str) -> bool:
    """Whether it asks for a page of pods that is not the first."""
    return path.startswith(PODS) and "continue=" in path


def seen_by(
    cluster: ApiServer, alter: Alter, *, patience: float = 2, **options: Any
) -> tuple[ClusterReport, list[str]]:
    """What is read through *alter*. Where that passes, *patience* is for a machine that has other work."""
    with between(cluster, alter, patience=patience) as (api, asked):
        return read(api, page=3, **options), asked


def changed(change: Callable[[Any], object]) -> Alter:
    return lambda path, forward: forward(path).altered(change)


def status(code: int, **headers: str) -> Alter:
    return lambda path, forward: Reply(code, b"{}", headers)


BROKEN: Mapping[str, tuple[Alter, str]] = {
    "cut": (lambda path, forward: _cut(forward(path)), "no answer from .* the response is incomplete"),
    "reset": (lambda path, forward: Reply(0, b"", reset=True), "no answer from .* within [1-9] s: connection reset"),
    "busy": (status(429), "no answer from .*: 429 Too Many Requests"),
    "busy for longer than one waits": (status(429, **{"Retry-After": "3600"}), "within [01] s: 429 Too Many Requests"),
    "unwell": (status(503), "no answer from .*: 503 Service Unavailable"),
    "moved": (status(302, Location="/api/v1/services"), "302 Found"),
    "empty": (lambda path, forward: Reply(200, b""), "the response is not a list of them: Input data was truncated"),
    "a page of HTML": (lambda path, forward: Reply(200, b"<html>"), "the response is not a list of them: JSON is malf"),
    "half a body": (
        lambda path, forward: Reply(200, forward(path).body[:-100]), "the response is not a list of them: Input data",
    ),
    "not text": (
        lambda path, forward: Reply(200, forward(path).body.replace(b'"name":"c0"', b'"name":"\xff\xfe"')),
        "the response is not a list of them: ",
    ),
    "another kind": (
        lambda path, forward: forward("/api/v1/services?limit=3"), "the response is 'ServiceList' of 'v1'",
    ),
    "another version": (changed(lambda page: page.update(apiVersion="v2")), "the response is 'PodList' of 'v2'"),
    "a status": (
        lambda path, forward: Reply(200, b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure"}'),
        "Object missing required field `items`",
    ),
    "no items": (changed(lambda page: page.pop("items")), "Object missing required field `items`"),
    "items are null": (changed(lambda page: page.update(items=None)), "Expected `array`, got `null`"),
    "no revision": (changed(lambda page: page["metadata"].pop("resourceVersion")), "which is not a list at a revision"),
    "another revision": (
        changed(lambda page: page["metadata"].update(resourceVersion="9")), "a page is 'PodList' at revision '9', and",
    ),
    "an object is missing": (changed(lambda page: page["items"].pop()), r"it has \d+ objects, and \d+ were announced"),
    "an object twice": (
        changed(lambda page: page["items"].append(page["items"][0])), r"it has \d+ objects, and \d+ were announced",
    ),
    "no end in sight": (changed(lambda page: page["metadata"].pop("continue", 0)), r"objects, and \d+ were announced"),
    "a pod without spec": (changed(lambda page: page["items"][0].pop("spec")), "missing required field `spec`"),
    "an image that is no text": (
        changed(lambda page: page["items"][0]["spec"]["containers"][0].update(image=1)), "Expected `str | null`, got",
    ),
}  # fmt: skip


def _cut(reply: Reply) -> Reply:
    return Reply(reply.status, reply.body, sent=len(reply.body) // 2)


@pytest.mark.parametrize("name", BROKEN)
def test_a_list_that_is_not_whole_is_a_problem_and_never_shorter(cluster: ApiServer, name: str) -> None:
    alter, why = BROKEN[name]
    report, _ = seen_by(cluster, always(alter))
    [problem] = report.problems
    assert problem.code == "UsesIncomplete"
    assert problem.message.startswith("cannot list Pods: ")
    assert re.search(why, problem.message), problem.message
    assert triples(report) == {triple for triple in expected(*CASES) if not triple[2].startswith("Pod ")}


@pytest.mark.parametrize("alter", [BROKEN["cut"][0], BROKEN["reset"][0], status(500), status(504), status(429)])
def test_what_passes_is_asked_again(cluster: ApiServer, alter: Alter) -> None:
    report, _ = seen_by(cluster, first(alter), patience=30)
    assert report.problems == ()
    assert triples(report) == expected(*CASES)


def test_a_busy_server_has_the_pause_that_it_asks_for(cluster: ApiServer) -> None:
    begin = time.monotonic()
    report, _ = seen_by(cluster, first(status(429, **{"Retry-After": "1"})), patience=30)
    assert report.problems == ()
    assert time.monotonic() - begin > 1


def test_a_server_that_is_away_is_named_once(cluster: ApiServer) -> None:
    def alter(path: str, forward: Forward) -> Reply:
        return forward(path) if "namespaces" in path or path == "/version" else Reply(0, b"", reset=True)

    report, asked = seen_by(cluster, alter)
    [problem] = report.problems
    assert problem.message.startswith("cannot list CronJobs: no answer from http://127.0.0.1:")
    assert {urlsplit(path).path for path in asked} >= {"/apis/batch/v1/cronjobs"}
    assert not any("pods" in path for path in asked)


def test_the_whole_has_a_deadline(cluster: ApiServer) -> None:
    def slow(path: str, forward: Forward) -> Reply:
        time.sleep(0.5)
        return forward(path)

    report, _ = seen_by(cluster, slow, seconds=4)
    [problem] = report.problems
    assert "the time for the whole reading is over" in problem.message or "timed out" in problem.message


# ---- a list whose revision is gone ----------------------------------------------------------------------------------


def at_revision(path: str, revision: int) -> str:
    """The same question with a token of *revision*: k8s.io/apiserver/pkg/storage/continue.go."""
    [token] = parse_qs(urlsplit(path).query)["continue"]
    value = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    other = base64.urlsafe_b64encode(json.dumps({**value, "rv": revision}, separators=(",", ":")).encode()).decode()
    return path.replace(quote(token), quote(other.rstrip("=")))


@pytest.fixture(scope="module")
def compacted(programs: None) -> Iterator[ApiServer]:
    """The same without its history in etcd, which goes every five minutes by default.

    Pods are not in the watch cache of this one: since 1.34 that has lists of the past as well, for a while.
    """
    with running("--watch-cache-sizes=pods#0") as server:
        fill(server)
        listed = server.kubectl("get", "--raw=/api/v1/namespaces/shop/pods")
        revision = json.loads(listed.stdout)["metadata"]["resourceVersion"]
        run(program("etcdctl"), f"--endpoints={server.etcd}", "compact", revision)
        yield server


def expired(path: str, forward: Forward) -> Reply:
    """What the API server answers when the token is too old."""
    reply = forward(at_revision(path, 1))
    assert reply.status == 410, reply
    assert json.loads(reply.body)["metadata"]["continue"], "it offers another token"
    return reply


def test_a_list_that_expired_is_begun_again(compacted: ApiServer) -> None:
    report, asked = seen_by(compacted, first(expired), patience=30)
    assert report.problems == ()
    assert triples(report) == expected(*CASES)
    pods = [path for path in asked if path.startswith(PODS)]
    assert [applies(path) for path in pods[:4]] == [False, True, False, True]


def test_one_that_expires_again_and_again_is_a_problem(compacted: ApiServer) -> None:
    report, asked = seen_by(compacted, always(expired))
    [problem] = report.problems
    assert problem.message.startswith("cannot list Pods: it expired 3 times: 410 Gone: The provided continue parameter")
    assert len([path for path in asked if path.startswith(PODS)]) == 6, "the offered token is never taken"


@contextmanager
def another(server: ApiServer) -> Iterator[None]:
    """A pod that was not there before, in the part of the list that was read."""
    assert server.send("create", [pod("aaa", "new:1")]).taken
    try:
        yield
    finally:
        assert server.ask("delete", "pod", "aaa", "--namespace=shop", "--force", "--grace-period=0").taken


def test_a_list_that_goes_on_at_another_revision_is_a_problem(compacted: ApiServer) -> None:
    """The token of a 410, taken by somebody between: the answer is good by itself, and the new pod is missing."""

    def inconsistent(path: str, forward: Forward) -> Reply:
        with another(compacted):
            token = json.loads(expired(path, forward).body)["metadata"]["continue"]
            reply = forward(f"{PODS}limit=3&continue={quote(token)}")
        assert reply.status == 200
        assert "aaa" not in {one["metadata"]["name"] for one in json.loads(reply.body)["items"]}
        return reply

    report, _ = seen_by(compacted, first(inconsistent))
    [problem] = report.problems
    assert problem.message.startswith("cannot list Pods: a page is 'PodList' at revision ")
