"""The session's lab as a fixture."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab import machine
from tests.lab.command import LabError, locked, say, unwinding
from tests.lab.lab import Lab, started_by, sweep
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
    if problems := machine.problems():
        reason = "no lab on this machine: " + "; ".join(problems)
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with unwinding():
        lab = _fresh(lab_settings)
        try:
            yield lab
        finally:
            if os.environ.get("KUBEADM_REGISTRY_LAB_KEEP"):
                say(f"kept in {lab.place.directory}; python -m tests.lab down ends it")
            else:
                lab.down()


@pytest.fixture
def healthy_lab(lab: Lab) -> Iterator[Lab]:
    """The lab, for a test that makes faults: all of them are undone after it."""
    yield lab
    lab.restore()


def _fresh(settings: Settings) -> Lab:
    """Start a lab; sweeps away what a dead run of the tests left, never what a person or a living run uses."""
    place = Place.default()
    if started_by(place) == "hand":
        raise LabError(
            f"somebody's lab is up in {place.directory}: end it by python -m tests.lab down, "
            "or let KUBEADM_REGISTRY_LAB name another directory for the tests"
        )
    with locked(place.lock, wait=False):
        sweep(place)
    return Lab.up(settings, place=place, started_by="tests")
