"""Prometheus and promtool, of Debian's package."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.programs import cached, program


def _there(name: str) -> Path:
    """Skip where it is not there; in CI that is a failure."""
    if not cached(name):
        why = f"{name} is not in the cache; make test-monitoring fetches it"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return program(name)


@pytest.fixture(scope="session")
def promtool() -> Path:
    """What checks and tests rules."""
    return _there("promtool")


@pytest.fixture(scope="session")
def prometheus() -> Path:
    """The server."""
    return _there("prometheus")
