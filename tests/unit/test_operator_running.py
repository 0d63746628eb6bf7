"""What the operator needs before it begins; the whole of it runs in tests/operator."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.operator import running
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.rounds import CLUSTERS, PLANS, POLICIES
from kubeadm_registry.operator.settings import Settings


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
