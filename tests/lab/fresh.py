"""Labs for tests: each fresh, in a place of its own, and gone when the tests that share it end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import machine, programs
from tests.lab.command import LabError, locked, say, unwinding
from tests.lab.lab import Lab, started_by, sweep
from tests.lab.settings import Place, Settings


def require_machine() -> None:
    """Skip where this machine cannot have a lab; in CI that is a failure."""
    if problems := machine.problems():
        reason = "no lab on this machine: " + "; ".join(problems)
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def require_frontend(frontend: str) -> None:
    """Skip where *frontend* is zot and there is none."""
    if frontend == "zot" and programs.zot() is None:
        pytest.skip("KUBEADM_REGISTRY_ZOT names no zot, which this project does not build")


@contextmanager
def fresh_lab(place: Place, settings: Settings) -> Iterator[Lab]:
    """A lab in *place* for the length of a ``with``, however that ends, unless KUBEADM_REGISTRY_LAB_KEEP is set.

    Sweeps away what a dead run of the tests left, never what a person or a living run uses.
    """
    if started_by(place) == "hand":
        raise LabError(
            f"somebody's lab is up in {place.directory}: end it by python -m tests.lab down, "
            "or let KUBEADM_REGISTRY_LAB name another directory for the tests"
        )
    with locked(place.lock, wait=False):
        sweep(place)
    with unwinding():
        lab = Lab.up(settings, place=place, started_by="tests")
        try:
            yield lab
        finally:
            if os.environ.get("KUBEADM_REGISTRY_LAB_KEEP"):
                say(f"kept: KUBEADM_REGISTRY_LAB={place.directory} python -m tests.lab down ends it")
            else:
                lab.down()
