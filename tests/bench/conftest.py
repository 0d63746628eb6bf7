"""What the benchmarks need of the machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.registry import skip_without

KINDS = ("distribution", "zot")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of registry that can be run here, by itself, on loopback."""
    name: str = request.param
    skip_without(name)
    return name


@pytest.fixture(scope="package", autouse=True)
def compiled() -> Iterator[None]:
    """What is measured is an installed program, whose sources Python has compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory for much: pytest would keep it for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)
