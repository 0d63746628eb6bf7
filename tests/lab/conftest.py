"""The session's lab as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.fresh import fresh_lab, require_machine
from tests.lab.lab import Lab
from tests.lab.settings import Place, Settings


@pytest.fixture(scope="session")
def lab_settings() -> Settings:
    """How the session's lab is to be; a conftest further in may say otherwise."""
    return Settings()


@pytest.fixture(scope="session")
def lab(lab_settings: Settings) -> Iterator[Lab]:
    """Four hosts, up and clean; they are shared by all tests of the session, so leave them as you found them.

    Ends at the session's end, however that comes, unless KUBEADM_REGISTRY_LAB_KEEP is set. Skips where the machine
    cannot have a lab; in CI that is a failure.
    """
    require_machine()
    with fresh_lab(Place.default(), lab_settings) as lab:
        yield lab


@pytest.fixture
def healthy_lab(lab: Lab) -> Iterator[Lab]:
    """The lab, for a test that makes faults: all of them are undone after it."""
    yield lab
    lab.restore()
