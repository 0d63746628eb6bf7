"""The copy of the cluster file on the nodes, and what a run says of settings that it changes."""

from __future__ import annotations

import dataclasses

import pytest

from kubeadm_registry import config
from kubeadm_registry.components.cluster_file import PATH, changes
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.phases.workflows import INIT
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.installed import fresh
from tests.unit.test_workflow import Recorder

CHANGED = (
    config.SMALLEST
    + """\
  proxy: {anonymousPull: false}
  ssh: {user: admin, identityFile: /dev/null, knownHostsFile: /dev/null}
  mirrors: [registry.k8s.io]
"""
)


@pytest.fixture
def installed() -> FakeCluster:
    return fresh()


def other(fake: FakeCluster, text: str) -> FakeCluster:
    """The same servers by another cluster file."""
    return dataclasses.replace(fake, config=config.parse(text, "cluster.yaml"))


def test_every_node_has_a_file_that_does_the_same(installed: FakeCluster) -> None:
    for server in installed.servers.values():
        assert config.parse(server.content(PATH), PATH) == installed.config
    assert changes(installed.cluster) == []


def test_settings_that_a_file_changes_are_told_until_they_are_applied(installed: FakeCluster) -> None:
    """Those of SSH are of the machine that runs it, and its files are not on the nodes."""
    changed = other(installed, CHANGED)
    assert changes(changed.cluster) == ["spec.mirrors", "spec.proxy.anonymousPull"]
    run(INIT, changed.cluster, Recorder(), skip=ELSEWHERE)
    assert changes(changed.cluster) == []
    assert changes(other(installed, config.SMALLEST).cluster) == ["spec.mirrors", "spec.proxy.anonymousPull"]
    for server in installed.servers.values():
        kept = config.parse(server.content(PATH), PATH)
        assert (kept.spec.ssh.user, kept.spec.ssh.identity_file, kept.spec.ssh.known_hosts_file) == (
            "admin", None, None
        )  # fmt: skip


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff: [", b"apiVersion: kubeadm-registry.dev/v2\nkind: RegistryCluster\n"]
)
def test_a_node_whose_file_cannot_be_read_tells_nothing(installed: FakeCluster, content: bytes | None) -> None:
    """None, as an earlier release leaves it; damaged; of a newer release."""
    first, *_ = installed.servers.values()
    if content is None:
        del first.tree[PATH]
    else:
        first.put(PATH, content)
    assert changes(installed.cluster) == []
    assert changes(other(installed, CHANGED).cluster) == ["spec.mirrors", "spec.proxy.anonymousPull"]
