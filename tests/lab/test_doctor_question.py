"""The question of ``doctor`` to a node, in a real kernel without hosts: the wire, firewall rules, ports, disks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kubeadm_registry import config, paths
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.doctor import facts
from kubeadm_registry.doctor.facts import Facts
from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import Host
from tests.lab import rooms
from tests.lab.namespaces import Namespace, network
from tests.lab.test_guard import ADVERT

THREE = config.parse(config.SMALLEST, "x")
VIP, ROUTER = THREE.spec.vip.address, str(THREE.spec.vip.router_id)
OTHER = "10.0.0.99"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft", path="/usr/sbin:/sbin"), reason="needs root and nft"
)


class Inside:
    """A Transport into a network namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        done = subprocess.run(
            self._namespace.argv(*argv), input=stdin, capture_output=True, timeout=timeout, check=False
        )
        return Result(tuple(argv), done.returncode, done.stdout, done.stderr)

    def upload(self, source: Path, path: str) -> None:
        raise AssertionError("doctor only reads")

    def lock(self, who: str) -> str | None:
        raise AssertionError("doctor only reads")

    def dial(self, address: str, port: int) -> tuple[str, int]:
        return address, port

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Namespace]]:
    """A node of the cluster, and a neighbor that is none."""
    with network({"node": "10.0.0.11/24", "neighbor": f"{OTHER}/24"}) as made:
        yield made


def ask(hosts: dict[str, Namespace], cluster: RegistryCluster = THREE) -> Facts:
    return facts.ask(cluster, cluster.spec.nodes[0], Host("cp-1", "10.0.0.11", Inside(hosts["node"])))


def hardware(host: Namespace) -> str:
    return host.run("cat", "/sys/class/net/eth0/address").stdout.strip()


def cache(host: Namespace) -> str:
    return host.run("ip", "neigh").stdout


def test_nobody_answers_for_an_address_that_nobody_has(hosts: dict[str, Namespace]) -> None:
    found = ask(hosts)
    assert found.answers == {VIP: []}
    assert found.vrrp == {}
    assert found.hardware == {hardware(hosts["node"])}


def test_who_has_the_address_is_found_and_nobodys_cache_is_changed(hosts: dict[str, Namespace]) -> None:
    neighbor = hosts["neighbor"]
    for host in hosts.values():
        host.run("ip", "neigh", "flush", "all")
    neighbor.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    try:
        assert ask(hosts).answers == {VIP: [hardware(neighbor)]}
    finally:
        neighbor.run("ip", "address", "del", f"{VIP}/32", "dev", "eth0")
    assert [cache(host) for host in hosts.values()] == ["", ""]


DROP_VRRP = """
table inet kubeadm-registry {
  chain input {
    type filter hook input priority 0; policy accept;
    meta l4proto 112 drop
  }
}
"""


@pytest.mark.parametrize(("router", "seen"), [(ROUTER, True), ("7", False)])
def test_advertisements_are_seen_before_the_firewall(hosts: dict[str, Namespace], router: str, seen: bool) -> None:
    node, neighbor = hosts["node"], hosts["neighbor"]
    node.run("nft", "-f", "-", input=DROP_VRRP)
    sends = neighbor.start(sys.executable, "-I", "-c", ADVERT, OTHER, "10.0.0.11", "255", router, "200")
    try:
        found = ask(hosts)
    finally:
        sends.kill()
        sends.wait()
        node.run("nft", "delete", "table", "inet", "kubeadm-registry")
    assert found.vrrp == ({OTHER: hardware(neighbor)} if seen else {})
    assert found.firewall == [], "the rules of the registry itself are nobody's mistake"


def test_advertisements_to_all_are_seen(hosts: dict[str, Namespace]) -> None:
    """A keepalived that does not know its peers sends to a group, which the node is not in."""
    sends = hosts["neighbor"].start(sys.executable, "-I", "-c", rooms._ADVERTISE, ROUTER, OTHER)
    try:
        assert ask(hosts).vrrp == {OTHER: hardware(hosts["neighbor"])}
    finally:
        sends.kill()
        sends.wait()


SITE = textwrap.dedent("""
    table inet site {
      chain input {
        type filter hook input priority -20; policy accept;
        tcp dport { 3901, 5443 } drop
        meta l4proto 112 drop
        ip saddr 10.0.0.12 udp dport 5444 reject
        tcp dport 8080 counter accept
      }
    }
    table ip hard {
      chain in {
        type filter hook input priority 5; policy drop;
        accept
      }
    }
""")


def test_the_rules_of_others_that_drop_are_named_so_that_nft_deletes_them(hosts: dict[str, Namespace]) -> None:
    node = hosts["node"]
    node.run("nft", "-f", "-", input=SITE)
    try:
        rules = ask(hosts).firewall
        ports = next(rule for rule in rules if rule.concerns("tcp", [3901]))
        assert ports.concerns("tcp", [5443])
        assert not ports.concerns("tcp", [5000])
        vrrp = next(rule for rule in rules if rule.concerns("112") or rule.concerns("vrrp"))
        assert any(rule.concerns("udp", [5444]) for rule in rules)
        assert [rule.handle for rule in rules if "policy drop" in rule.text] == [""]
        for rule in (ports, vrrp):
            node.run(*f"nft delete rule {rule.table} {rule.chain} handle {rule.handle}".split())
        left = ask(hosts).firewall
        assert not any(rule.concerns("tcp", [3901]) or rule.concerns("112") for rule in left)
        assert any(rule.concerns("udp", [5444]) for rule in left)
    finally:
        node.run("nft", "flush", "ruleset")


def test_who_listens_on_a_port_of_the_registry_is_named(hosts: dict[str, Namespace]) -> None:
    server = hosts["node"].start(
        sys.executable, "-I", "-c",
        "import socket, sys; one = socket.create_server(('10.0.0.11', 5000)); print('ready', flush=True); "
        "two = socket.create_server(('10.0.0.11', 8080)); sys.stdin.read()",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        (found,) = ask(hosts).listeners
    finally:
        server.kill()
        server.wait()
    assert (found.port, found.local, found.pid) == (5000, "10.0.0.11:5000", str(server.pid))
    assert not found.ours


@contextmanager
def disk(directory: Path, options: str) -> Iterator[RegistryCluster]:
    """A cluster whose data directory is a file system of its own, in memory."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "disk", directory], check=True)
    try:
        spec = THREE.spec.model_copy(update={"data_directory": str(directory)})
        yield THREE.model_copy(update={"spec": spec})
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_disk_is_read(hosts: dict[str, Namespace], tmp_path: Path) -> None:
    with disk(tmp_path / "data", "size=1m,nr_inodes=20") as cluster:
        found = ask(hosts, cluster)
        assert found.space is not None
        assert found.space.size == found.space.free == 2**20
        assert found.mount.startswith(f"{tmp_path}/data disk tmpfs rw,")
        assert found.entries == []
        for number in range(19):
            (tmp_path / "data" / str(number)).touch()
        (tmp_path / "data" / "0").write_bytes(bytes(2**19))
        found = ask(hosts, cluster)
        assert found.inodes is not None
        assert found.inodes.free == 0
        assert found.space is not None
        assert found.space.free == 2**19
        assert len(found.entries) == 5
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "data"], check=True)
        assert ask(hosts, cluster).mount.rpartition(" ")[2].split(",")[0] == "ro"


def test_a_lock_is_read_and_whether_its_owner_lives(
    hosts: dict[str, Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "LOCK", str(tmp_path / "lock"))  # this machine may have one of its own
    for process, running in ((os.getpid(), True), (2**22 - 1, False)):
        (tmp_path / "lock.who").write_text(f"me@here pid 1, since 2030-01-01T00:00:00Z, process {process}\n")
        found = ask(hosts)
        assert found.lock == f"me@here pid 1, since 2030-01-01T00:00:00Z, process {process}"
        assert found.running is running
