"""Who holds the lease, by what agents tell."""

from __future__ import annotations

from typing import Any

import pytest

from kubeadm_registry.agent.model import Role
from kubeadm_registry.upkeep.lease import HOLDER, held_term


def test_the_holder_has_the_agents_word() -> None:
    assert Role.WRITER.value == HOLDER


@pytest.mark.parametrize(
    ("state", "term"),
    [
        ({"writer": {"role": "writer", "term": 7}}, 7),
        ({"writer": {"role": "closing", "term": 7}}, 0),
        ({"writer": {"role": None, "term": 0}}, 0),
        ({"writer": {"role": "writer", "term": True}}, 0),
        ({"writer": {"role": "writer"}}, 0),
        ({"writer": []}, 0),
        ({}, 0),
        (None, 0),
    ],
)
def test_only_who_writes_holds_it(state: dict[str, Any] | None, term: int) -> None:
    assert held_term(state) == term
