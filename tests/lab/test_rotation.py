"""Certificates and the CA are exchanged on three hosts while containerd pulls: no pull and no read fails."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509

from kubeadm_registry import paths, pki
from tests.lab import images
from tests.lab.changing import around_failures
from tests.lab.clients import pushing
from tests.lab.host import Host
from tests.lab.reading import Reading, reading
from tests.lab.registry import CLIENT, Login, Registry
from tests.lab.test_certificates import CONNECTIONS, KNOWN, connect, get, processes, served

pytest_plugins = ["tests.lab.registry"]
#: Run by `make day-two`.
pytestmark = pytest.mark.long

CERTS = "/etc/containerd/certs.d"
REPOSITORY = "registry.k8s.io/rotation/app"
#: Pulls ``$1`` from nothing until the file ``$2`` is there; a line for each pull: seconds, and what went wrong.
PULLS = """
while [ ! -e "$2" ]; do
  ctr images rm "$1" >/dev/null 2>&1
  ctr content prune references >/dev/null 2>&1
  begin=$(date +%s.%N)
  said=$(ctr images pull --local --hosts-dir "$3" "$1" 2>&1 >/dev/null) && said=
  echo "$begin $(date +%s.%N) $(echo "$said" | tr '\\n' ' ')"
done
"""


@dataclass
class Pulls:
    """What came of the pulls of several hosts."""

    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        slowest = max(self.seconds, default=0.0)
        return f"{len(self.failed)} of {len(self.seconds)} pulls failed, slowest {slowest:.2f} s"


@contextmanager
def pulling(hosts: list[Host]) -> Iterator[Pulls]:
    """Have containerd on *hosts* pull for the length of a ``with``; the result is complete afterwards."""
    result, stop = Pulls(), "/run/rotation-stop"
    running: list[tuple[Host, subprocess.Popen[str]]] = []
    for host in hosts:
        host.sh("rm", "-f", stop)
        argv = host.sh_argv("sh", "-c", PULLS, "pulls", f"{REPOSITORY}:v1", stop, CERTS)
        running.append((host, subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)))
    try:
        yield result
    finally:
        for host, _ in running:
            host.sh("touch", stop)
        for host, process in running:
            output, _ = process.communicate(timeout=60)
            for line in output.splitlines():
                begin, end, said = (*line.split(" ", 2), "")[:3]
                result.seconds.append(float(end) - float(begin))
                if said.strip():
                    result.failed.append(f"{host.name} at {begin}: {said}")


def reads_of(registry: Registry) -> AbstractContextManager[Reading]:
    """Reads at the virtual IP beside the pulls. One that is slow on a machine with much else to do has not failed."""
    return reading(registry, KNOWN, period=0.1, deadline=30.0)


@pytest.fixture
def client(registry: Registry) -> Iterator[Path]:
    """The list of client nodes, whose containerd pulls from the registry; an image is there."""
    images.push(registry, images.image((4_000_000, 200_000)), REPOSITORY, "v1")
    there, settings = registry.client, registry.lab.settings
    nodes = registry.directory / "clients.txt"
    nodes.write_text(f"{CLIENT} {there.address} user={settings.user} port={settings.ssh_port}\n")
    registry.cli("mirrors", "apply", "--nodes", nodes)
    yield nodes
    registry.cli("mirrors", "remove", "--nodes", nodes)


def agents(registry: Registry) -> dict[str, int]:
    """The exit code of ``certs check``, and what it finds wrong."""
    result = registry.cli("certs", "check", "-o", "json", check=False)
    found = json.loads(result.stdout)["certificates"]
    wrong = [f"{one['node']} {one['certificate']}: {one['problems']}" for one in found if one["problems"]]
    assert result.returncode == 0, wrong
    return {f"{one['node']} {one['certificate']}": one["serialNumber"] for one in found}


def test_certificates_are_renewed_and_no_pull_fails_and_no_connection_ends(registry: Registry, client: Path) -> None:
    before, running, invocations = agents(registry), processes(registry), registry.invocations()
    kept = [connect(registry, host.address) for host in registry.servers.values() for _ in range(CONNECTIONS)]
    assert {get(connection) for connection in kept} == {200}
    begin = time.monotonic()
    with pulling([registry.client, registry.others(registry.holder())[0]]) as pulls, reads_of(registry) as reads:
        registry.cli("certs", "renew")
    sys.stdout.write(f"\n  {registry.frontend}, leaves in {time.monotonic() - begin:.1f} s: {pulls}; {reads}\n")
    assert (pulls.failed, reads.failed) == ([], [])
    assert {get(connection) for connection in kept} == {200}
    assert processes(registry) == running and registry.invocations() == invocations
    after = agents(registry)
    for what, serial in after.items():
        assert (serial == before[what]) is what.endswith(" ca"), what
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"


def test_the_ca_is_replaced_and_no_pull_fails(registry: Registry, client: Path) -> None:
    old = registry.ca.read_text()
    pullers = [registry.client, registry.others(registry.holder())[0]]
    begin = time.monotonic()
    with pulling(pullers) as pulls, reads_of(registry) as reads:
        registry.cli("certs", "renew", "--ca", "--nodes", client, "--trust-only")
    sys.stdout.write(f"\n  {registry.frontend}, both trusted in {time.monotonic() - begin:.1f} s: {pulls}; {reads}\n")
    assert (pulls.failed, reads.failed) == ([], [])
    both = registry.cli("ca").stdout
    assert both.startswith(old) and len(x509.load_pem_x509_certificates(both.encode())) == 2
    refused = registry.json("certs", "renew", "--ca", "--nodes", gone(registry, client), check=False)[-1]
    assert refused["code"] == "TrustPending" and "gone could not be configured" in refused["message"]
    assert registry.cli("ca").stdout == both, "nothing went on"
    # Whoever is told of both trusts the registry before and after.
    registry.ca.write_text(both)
    begin = time.monotonic()
    with pulling(pullers) as pulls, reads_of(registry) as reads:
        registry.cli("certs", "renew", "--ca", "--nodes", client)
    sys.stdout.write(f"\n  {registry.frontend}, replaced in {time.monotonic() - begin:.1f} s: {pulls}; {reads}\n")
    assert (pulls.failed, reads.failed) == ([], [])
    new = registry.cli("ca").stdout
    registry.ca.write_text(new)
    assert both == old + new
    agents(registry)
    assert {get(connect(registry, host.address)) for host in registry.servers.values()} == {200}
    for host in (*registry.servers.values(), registry.client):
        assert host.sh("cat", f"{CERTS}/kubeadm-registry-ca.crt").stdout == new
    for name, host in registry.servers.items():
        leaf = x509.load_pem_x509_certificate(host.sh("cat", paths.NODE_PEM).stdout.encode())
        assert pki.is_of(new, leaf) and served(registry, host.address) == {leaf.serial_number}, name
    registry.wait_whole()
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"


def gone(registry: Registry, client: Path) -> Path:
    """A list with a node in it that does not answer."""
    path = registry.directory / "with-gone.txt"
    path.write_text(f"{client.read_text()}gone {registry.lab.address(250)}\n")
    return path


def test_passwords_and_keys_are_replaced_and_no_pull_fails(registry: Registry, client: Path, tmp_path: Path) -> None:
    old, holder = registry.login(), registry.holder().name
    begin = time.monotonic()
    with (
        pulling([registry.client, registry.others(registry.holder())[0]]) as pulls,
        reads_of(registry) as reads,
        pushing(registry, tmp_path) as pushes,
    ):
        registry.cli("credentials", "rotate", "--role", "push")
        registry.cli("credentials", "rotate", "--role", "heartbeat")
    sys.stdout.write(f"\n  {registry.frontend}, passwords and heartbeat in {time.monotonic() - begin:.1f} s: ")
    sys.stdout.write(f"{pulls}; {reads}; {pushes}\n")
    sys.stdout.writelines(around_failures(registry, reads, pushes))
    assert (pulls.failed, reads.failed, pushes.failed) == ([], [], [])
    assert not pushes.lost(registry)
    assert registry.holder().name == holder, "the virtual IP stayed where it was"
    registry.forget_logins()
    assert registry.login() != old
    assert status_of(registry, old) == status_of(registry, registry.login()) == 200
    registry.cli("credentials", "rotate", "--role", "push", "--finish")
    assert (status_of(registry, old), status_of(registry, registry.login())) == (401, 200)
    begin = time.monotonic()
    with pulling([registry.client]) as pulls, reads_of(registry) as reads:
        registry.cli("credentials", "rotate", "--role", "s3")
    sys.stdout.write(f"\n  {registry.frontend}, storage key in {time.monotonic() - begin:.1f} s: {pulls}; {reads}\n")
    assert (pulls.failed, reads.failed) == ([], [])
    registry.wait_whole()
    with pulling([registry.client]) as pulls, reads_of(registry) as reads:
        registry.cli("credentials", "rotate", "--role", "admin")
    sys.stdout.write(f"\n  {registry.frontend}, admin token: {pulls}; {reads}\n")
    assert (pulls.failed, reads.failed) == ([], [])
    assert registry.holder().name == holder
    images.push(registry, images.image((300_000,), seed=7), "rotation/later")
    registry.wait_whole()
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"


def status_of(registry: Registry, login: Login) -> int:
    """The status of the ping at the virtual IP with that login."""
    connection = connect(registry, registry.vip)
    connection.request("GET", "/v2/", headers={"Authorization": f"Basic {login.encoded}"})
    return connection.getresponse().status
