"""Options and fixtures of the unit tests: hermetic, fast, no root, no network."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from kubeadm_registry import config, pki
from kubeadm_registry.cli import seed as cli_seed
from kubeadm_registry.components import garage
from tests.unit.fake_cluster import FakeCluster, authority
from tests.unit.fakes import FakeTransport
from tests.unit.installed import fresh

# Modules with fixtures: those who need them name them in pytest_plugins, and import other names from them before that.
pytest.register_assert_rewrite("tests.unit.backup_site", "tests.unit.command_line", "tests.unit.image_site")

# How long an example takes, or to make one, says how busy the machine is.
settings.register_profile("kubeadm-registry", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kubeadm-registry")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="Write tests/golden anew from what is rendered; then read the diff.",
    )


@pytest.fixture(autouse=True)
def _in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command of a unit test splits the process of the tests."""
    monkeypatch.setattr(cli_seed, "run_in_child", threading.Event)


@pytest.fixture(autouse=True)
def _soon_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must be well for seconds before a restart is so at once: the servers are not real."""
    monkeypatch.setattr(garage, "STABLE", 0.0)
    monkeypatch.setattr(garage, "CONNECTED", 0.0)


@pytest.fixture
def server() -> FakeTransport:
    """A bare host."""
    return FakeTransport()


@pytest.fixture
def three() -> FakeCluster:
    """Three bare servers with the smallest cluster file; the programs are on them."""
    return FakeCluster.of(config.SMALLEST)


@pytest.fixture
def installed() -> FakeCluster:
    """The same after init."""
    return fresh()


@pytest.fixture(scope="session")
def pair() -> pki.Pair:
    """The certificate and key of a node and of the virtual IP, by the authority that the fake clusters share."""
    return pki.issue(authority(), "cp-1", ("10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).parents[2]
