"""What the operator needs before it begins, and what its Events say; the whole of it runs in tests/operator."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.operator import running
from kubeadm_registry.operator.conditions import Verdict
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.leadership import Times
from kubeadm_registry.operator.objects import Objects
from kubeadm_registry.operator.posting import post
from kubeadm_registry.operator.rounds import CLUSTERS, PLANS, POLICIES
from kubeadm_registry.operator.settings import Settings
from kubeadm_registry.upkeep.api import Answer


@pytest.mark.parametrize("missing", [CLUSTERS, POLICIES, PLANS])
def test_it_begins_only_where_all_definitions_are_served(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """kopf looks once which kinds there are: of another one nobody would hear what people change, such as approvals."""

    class Served:
        def __init__(self, *_: object) -> None:
            """There is no API server."""

        def list(self, plural: str) -> list[dict[str, Any]]:
            if plural == missing:
                raise ConnectionFailed(f"404 Not Found: {plural}", code="ClusterRefused")
            return []

    def begun(*_: object) -> None:
        raise Error("it has begun")

    monkeypatch.setattr(running, "Objects", Served)
    monkeypatch.setattr(running, "Rounds", begun)
    monkeypatch.setattr(Settings, "api", lambda *_, **__: None)
    leadership: Any = SimpleNamespace(as_caller=None)

    async def lead() -> None:
        await running._lead(Settings("here"), Figures(), leadership, asyncio.Event())

    with pytest.raises(Error, match=f"404 Not Found: {missing}"):
        asyncio.run(lead())


class Events:
    """An API server that takes what it takes of an Event: a new one, or another series of one that is there."""

    def __init__(self) -> None:
        self.there: dict[str, dict[str, Any]] = {}

    def create(self, path: str, event: dict[str, Any]) -> dict[str, Any] | None:
        name = f"{path}/{event['metadata']['name']}"
        return None if name in self.there else self.there.setdefault(name, event)

    def get(self, path: str) -> dict[str, Any] | None:
        return self.there.get(path)

    def merge(self, path: str, patch: dict[str, Any]) -> bool:
        assert patch.keys() == {"series"}, "all else is immutable"
        self.there[path].update(patch)
        return True


def test_an_event_says_what_happened_now_and_not_what_happened_before_for_the_same_reason() -> None:
    events = Events()
    about = {"apiVersion": "v", "kind": "RegistryCluster", "metadata": {"name": "registry", "uid": "5-6"}}
    for node in ("cp-1", "cp-2", "cp-1"):
        said = Verdict("Degraded", True, "Unreachable", f"{node}: no response")
        post(cast("Objects", events), "here", about, said)
    found = {one["note"]: one.get("series", {"count": 1})["count"] for one in events.there.values()}
    assert found == {"cp-1: no response": 2, "cp-2: no response": 1}


def test_an_edit_at_the_same_time_is_no_matter_of_rights() -> None:
    """The new machine is written into spec.nodes by the version that was seen, which a round of health may change."""
    api = SimpleNamespace(send=lambda *_, **__: Answer(409, b"{}"))
    objects = Objects(cast("Any", api), cast("Any", SimpleNamespace(check=lambda: None)), Times())
    with pytest.raises(ConnectionFailed) as caught:
        objects.merge("/apis/x", {"spec": {}})
    assert (caught.value.code, caught.value.hint) == ("ObjectChanged", "nothing to do; it is retried automatically")
