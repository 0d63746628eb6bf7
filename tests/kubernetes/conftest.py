"""The registry and Kubernetes on it as fixtures, once for each frontend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kubernetes import images
from tests.kubernetes.cluster import Kubernetes, empty
from tests.lab import machine
from tests.lab.changing import Changing
from tests.lab.fresh import fresh_lab
from tests.lab.programs import KUBERNETES
from tests.lab.registry import bundle, skip_without
from tests.lab.settings import FRONTENDS, Place, Settings


def sysctls() -> dict[str, str]:
    """What a kubelet sets for the whole machine, since these settings have no namespace."""
    found = {name: machine.SETTINGS / name for name in machine.SYSCTLS}
    return {name: file.read_text() for name, file in found.items() if file.exists()}


@contextmanager
def machine_as_it_was() -> Iterator[None]:
    """Afterwards this machine's settings must be what they are now."""
    before = sysctls()
    yield
    if not any((machine.NOTES / "labs").iterdir()):  # else a lab that is still up may keep them
        assert sysctls() == before


@pytest.fixture(scope="session", params=FRONTENDS)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    """Servers that are ready for ``preflight && init && seed`` and then ``kubeadm init``, with one bundle for both.

    Afterwards everything is gone, and this machine's settings are what they were.
    """
    frontend: str = request.param
    skip_without(frontend)
    bundle(frontend, layout=images.layout())  # takes a while: better before the hosts are up
    # Three servers, two that may take the place of one, and a worker.
    with machine_as_it_was(), fresh_lab(Place.default().beside(frontend), Settings(hosts=6)) as lab:
        registry = Changing(lab, frontend, tmp_path_factory.mktemp(frontend), layout=images.layout())
        registry.write_file({"kubernetes.version": KUBERNETES})
        kubernetes = Kubernetes(registry)
        kubernetes.on_each(kubernetes.prepare)
        yield kubernetes


@pytest.fixture(scope="session")
def seeded(prepared: Kubernetes) -> Kubernetes:
    """The registry is there and has what the bundle has; nothing of Kubernetes was ever started."""
    registry = prepared.registry
    with prepared.timed("preflight and init of the registry"):
        registry.install()
    with prepared.timed("seed"):
        registry.cli("seed", "--bundle", registry.bundle)
    return prepared


@pytest.fixture(scope="session")
def kubernetes(seeded: Kubernetes) -> Kubernetes:
    """Three control planes."""
    assert all(seeded.on_each(empty).values()), "an image that is there already proves nothing"
    seeded.init()
    for host in seeded.registry.others(seeded.first):
        seeded.join(host)
    seeded.kubectl("taint", "nodes", "--all", "node-role.kubernetes.io/control-plane-")
    with seeded.timed("until all is ready"):
        seeded.wait_ready()
    return seeded
