"""What a phase may know: the hosts and their nodes, the programs, the secrets."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from kubeadm_registry import config
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.cluster import every_node, leader, read_vault
from kubeadm_registry.components.services import data_directories
from kubeadm_registry.errors import ConnectionFailed, Error, NotYetKnown
from kubeadm_registry.secrets import PATH
from tests.unit.fake_cluster import FakeBundle, FakeCluster, fixed_secrets


def test_a_host_is_a_node_and_the_others_are_its_peers(three: FakeCluster) -> None:
    cluster = three.cluster
    second = cluster.hosts[1]
    assert cluster.node(second).address == second.address == "10.0.0.12"
    assert [node.name for node in cluster.peers(second)] == ["cp-1", "cp-3"]


def test_the_leader_is_the_first_of_the_file(three: FakeCluster) -> None:
    cluster = three.cluster
    assert [host.name for host in every_node(cluster)] == ["cp-1", "cp-2", "cp-3"]
    assert leader(cluster) == (cluster.leader,)
    assert cluster.leader.name == "cp-1"


@pytest.mark.parametrize(
    ("bundle", "words"),
    [
        (cast(Bundle, FakeBundle()), "the bundle has no program seaweedfs"),
        (None, "no bundle with programs was given, and the nodes have no program seaweedfs"),
    ],
)
def test_a_program_that_is_missing_is_told_with_how_to_get_it(
    three: FakeCluster, bundle: Bundle | None, words: str
) -> None:
    with pytest.raises(Error) as caught:
        replace(three.cluster, bundle=bundle).program("seaweedfs")
    assert (caught.value.message, caught.value.code) == (words, "ProgramMissing")
    assert "bundle create --with seaweedfs" in caught.value.hint


def test_in_a_dry_run_every_host_refuses_to_be_changed(three: FakeCluster) -> None:
    three.fixed = None
    cluster = three.cluster.for_dry_run()
    assert all(host.read_only for host in (*cluster.hosts, cluster.leader))
    assert cluster.secrets.rpc_secret == "<made by init: rpc_secret>"
    with pytest.raises(NotYetKnown):
        _ = three.cluster.secrets


def test_secrets_are_read_from_every_host(three: FakeCluster) -> None:
    held = fixed_secrets(("cp-1", "cp-2", "cp-3"))
    three.servers["cp-3"].put(PATH, held.to_json(), 0o600)
    hosts = three.cluster.hosts
    assert read_vault(three.config, hosts, data_directories(three.config.spec)).secrets == held
    for server in three.servers.values():
        assert server.log, "each one was asked"


def test_a_host_that_cannot_be_asked_is_never_taken_for_one_without_secrets(three: FakeCluster) -> None:
    hosts = three.cluster.hosts
    three.servers["cp-2"].close()
    with pytest.raises(ConnectionFailed) as caught:
        read_vault(three.config, hosts, data_directories(three.config.spec))
    assert caught.value.host == "cp-2"


def test_an_empty_file_of_secrets_is_damaged_and_not_absent(three: FakeCluster) -> None:
    """New secrets would lock everybody out of the storage."""
    three.servers["cp-2"].put(PATH, b"", 0o600)
    with pytest.raises(Error) as caught:
        _ = three.cluster
    assert (caught.value.host, caught.value.code) == ("cp-2", "SecretsDamaged")


def test_one_server_is_a_cluster_too() -> None:
    lines = [line for line in config.SMALLEST.splitlines(True) if "cp-2" not in line and "cp-3" not in line]
    cluster = FakeCluster.of("".join(lines)).cluster
    assert cluster.peers(cluster.leader) == ()
    assert not cluster.spec.highly_available
