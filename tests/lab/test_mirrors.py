"""Many workers at once: those that fail are named, the others are done, and what was done is not done again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeadm_registry.secrets import PATH, Secrets
from tests.lab.command import wait_until
from tests.lab.fresh import fresh_lab, require_machine
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.listing import differences, listings
from tests.lab.registry import ROOT
from tests.lab.settings import Place, Settings

#: One server, which only has to have the secrets, and workers.
WORKERS = 6
CONFIG = "/etc/containerd/config.toml"
CERTS = "/etc/containerd/certs.d"
#: The sessions of the large list, spread over the workers' addresses by more sshd on each.
MANY = 100


class Site:
    """A server of a registry, workers, and the command line."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab, self.directory = lab, directory
        self.server, *rest = lab.hosts.values()
        self.workers = {host.name: host for host in rest}
        secrets = Secrets.make("registry", ["h1"])
        self.server.sh("mkdir", "-p", "/etc/kubeadm-registry")
        self.server.sh("sh", "-c", 'umask 077; cat > "$1"', "-", PATH, stdin=secrets.to_json().decode())
        place = lab.place
        ssh = {"user": "root", "identityFile": str(place.key), "knownHostsFile": str(place.known_hosts)}
        document = {
            "apiVersion": "kubeadm-registry.dev/v1alpha1",
            "kind": "RegistryCluster",
            "metadata": {"name": "registry"},
            "spec": {
                "nodes": [{"name": "h1", "address": self.server.address}],
                "vip": {"address": lab.address(200)},
                "ssh": ssh,
            },
        }
        (directory / "cluster.yaml").write_text(yaml.safe_dump(document))
        self.all = [f"{host.name} {host.address}" for host in rest]

    def run(self, what: str, lines: Sequence[str], *options: str) -> tuple[int, list[dict[str, Any]], float]:
        """``mirrors WHAT`` for the nodes of *lines*: exit code, JSON lines, seconds of the whole command."""
        (self.directory / "nodes").write_text("\n".join(lines) + "\n")
        argv = [sys.executable, "-m", "kubeadm_registry", "mirrors", what, "--nodes", "nodes", "-o", "json", *options]
        begin = time.monotonic()
        done = subprocess.run(
            self.lab.argv("env", f"PYTHONPATH={ROOT}", *argv), cwd=self.directory, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=300, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], time.monotonic() - begin


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab of its own, larger than that of the session."""
    require_machine()
    settings = Settings(hosts=1 + WORKERS, without_python=(), disk="2G")
    with fresh_lab(Place.default().beside("many"), settings) as lab:
        for host in lab.hosts.values():
            # The lab's own configuration reads hosts files already, and nobody would have to restart.
            host.sh("sh", "-c", 'echo "version = 2" > "$1"', "-", CONFIG)
            host.sh("systemctl", "restart", "containerd")
        yield Site(lab, tmp_path_factory.mktemp("many"))


@contextmanager
def silent(lab: Lab) -> Iterator[str]:
    """``ADDRESS port=PORT`` of somebody in the lab's network who takes connections and never says a word."""
    taken: list[socket.socket] = []
    with lab.network():
        listener = socket.create_server((lab.address(1), 0), backlog=50)

    def accept() -> None:
        while True:
            try:
                taken.append(listener.accept()[0])
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"{lab.address(1)} port={listener.getsockname()[1]}"
    finally:
        listener.close()
        for connection in taken:
            connection.close()


def invocation(host: Host) -> str:
    return host.sh("systemctl", "show", "-P", "InvocationID", "containerd").stdout.strip()


def fill(host: Host) -> None:
    """Leave not a byte on the host's disk, neither in files nor for new ones."""
    script = "fallocate -l 100G /var/fill 2>/dev/null; dd if=/dev/zero of=/var/rest bs=4k 2>/dev/null; " \
             "i=0; while echo x > /var/f-$i 2>/dev/null; do i=$((i+1)); done; df -k /var | tail -n 1"  # fmt: skip
    host.sh("sh", "-c", script, timeout=120)


@pytest.mark.long
def test_who_fails_is_named_and_the_others_are_done_once(site: Site) -> None:
    lab, workers = site.lab, site.workers
    before = listings(workers.values())
    full, without, *good = list(workers.values())
    fresh = {host.name: invocation(host) for host in good}
    fill(full)
    without.sh("systemctl", "disable", "--now", "containerd")
    without.sh("mv", "/usr/bin/containerd", "/usr/bin/containerd.away")
    with silent(lab) as address:
        refused = f"refused {good[0].address6} user=daemon"
        unreachable = f"unreachable {lab.address(250)}"
        listed = [f"silent {address}", refused, unreachable, *site.all]
        code, events, seconds = site.run("apply", listed)
    full.sh("sh", "-c", "rm -f /var/fill /var/rest /var/f-*")
    without.sh("mv", "/usr/bin/containerd.away", "/usr/bin/containerd")
    without.sh("systemctl", "enable", "--now", "containerd")
    result = events[-1]
    assert code == 5, events
    owed = {name: why["code"] for name, why in result["owed"].items()}
    assert owed == {
        "silent": "HostUnreachable", "refused": "AuthenticationFailed", "unreachable": "HostUnreachable",
        full.name: "CommandFailed", without.name: "PreflightFailed",
    }  # fmt: skip
    assert "no response from an SSH server" in result["owed"]["silent"]["reason"]
    assert "No space left" in result["owed"][full.name]["reason"]
    assert "containerd.service is not running" in result["owed"][without.name]["reason"]
    assert (result["nodes"], result["done"]) == (len(listed), len(good))
    assert f"{len(good)} of {len(listed)} nodes pull from the registry" in result["summary"]
    last = max(event["seconds"] for event in events if "seconds" in event)
    print(f"\n  {len(good)} good and 5 bad nodes: {seconds:.1f} s (result after {last:.1f} s)")
    assert all(invocation(host) != fresh[host.name] for host in good), "each had to be restarted"
    for host in good:
        assert lab.address(200) in host.sh("cat", f"{CERTS}/registry.k8s.io/hosts.toml").stdout
        assert "config_path" in host.sh("cat", CONFIG).stdout

    running = {host.name: invocation(host) for host in good}
    after = listings(good)
    code, events, _ = site.run("apply", site.all)
    assert code == 0, events[-1]
    touched = {event["host"] for event in events if event["event"] == "change"}
    assert touched == {full.name, without.name}, "a second run touches only those that were not done"
    assert {host.name: invocation(host) for host in good} == running
    assert not differences(after, listings(good))

    code, events, seconds = site.run("apply", site.all)
    assert (code, events[-1]["changed"]) == (0, 0)
    print(f"  {WORKERS} nodes, nothing to do: {seconds:.1f} s")
    code, events, seconds = site.run("remove", site.all)
    assert code == 0, events[-1]
    print(f"  {WORKERS} nodes taken back: {seconds:.1f} s")
    left = differences(before, listings(workers.values()))
    assert not left, "\n".join(left)
    code, events, seconds = site.run("apply", site.all)
    assert (code, events[-1]["done"]) == (0, WORKERS)
    print(f"  {WORKERS} nodes, all new: {seconds:.1f} s")
    site.run("remove", site.all)


def test_a_large_configuration_where_sh_is_bash_and_tmp_is_full(site: Site) -> None:
    """As on RHEL: bash keeps a large here-document in /tmp, and a command then ran with empty standard input."""
    host = next(iter(site.workers.values()))
    original = "version = 2\n" + "# a comment of somebody who explains every key\n" * 1200
    assert 48 * 1024 < len(original) < 64 * 1024
    kept = host.sh("cat", CONFIG).stdout
    host.sh("sh", "-c", 'cat > "$1"', "-", CONFIG, stdin=original)
    host.sh("systemctl", "restart", "containerd")
    before = listings([host])
    host.sh("ln", "-sf", "bash", "/usr/bin/sh")
    host.sh("mount", "-t", "tmpfs", "-o", "size=64k,mode=1777", "none", "/tmp")
    host.sh("sh", "-c", "head -c 1M /dev/zero > /tmp/full || :")
    try:
        line = f"{host.name} {host.address}"
        code, events, _ = site.run("apply", [line])
        assert code == 0, events[-1]
        written = host.sh("cat", CONFIG).stdout
        assert written.count("# a comment") == 1200
        assert "config_path" in written
        assert host.sh("cat", f"/etc/kubeadm-registry/backup/containerd/files{CONFIG}").stdout == original
        code, events, _ = site.run("remove", [line])
        assert code == 0, events[-1]
    finally:
        host.sh("umount", "/tmp")
        host.sh("ln", "-sf", "dash", "/usr/bin/sh")
    assert host.sh("cat", CONFIG).stdout == original
    assert not differences(before, listings([host]))
    host.sh("sh", "-c", 'cat > "$1"', "-", CONFIG, stdin=kept)
    host.sh("systemctl", "reset-failed", "containerd")  # the fourth or fifth start within systemd's ten seconds
    host.sh("systemctl", "restart", "containerd")


@pytest.mark.long
def test_a_hundred_sessions(site: Site) -> None:
    """More sshd on each worker make a list of a hundred; a dry run, since each host has one lock and one disk."""
    known = site.lab.place.known_hosts.read_text()
    hosts = list(site.workers.values())
    listed, more = [], []
    for number in range(MANY):
        host, port = hosts[number % WORKERS], 3000 + number // WORKERS
        host.sh("systemd-run", "--quiet", f"--unit=sshd-{port}", "/usr/sbin/sshd", "-D", "-p", str(port))
        listed.append(f"n-{number} {host.address} port={port}")
        keys = [line.split(" ", 1) for line in known.splitlines()]
        more += [f"[{host.address}]:{port} {key}" for names, key in keys if host.address in names.split(",")]
    site.lab.place.known_hosts.write_text(known + "\n".join(more) + "\n")
    wait_until("all sshd", lambda: _all_listen(site, listed), seconds=30)
    try:
        code, events, seconds = site.run("apply", listed, "--dry-run")
        assert code == 0, events[-1]
        assert events[-1]["done"] == MANY
        print(f"\n  {MANY} sessions connected and compared: {seconds:.1f} s (load {os.getloadavg()[0]:.1f})")
        with silent(site.lab) as address:
            code, events, seconds = site.run("apply", [f"silent {address}", *listed[1:]], "--dry-run")
        assert (code, events[-1]["done"]) == (5, MANY - 1)
        print(f"  {MANY - 1} of them and one that says nothing: {seconds:.1f} s")
    finally:
        site.lab.place.known_hosts.write_text(known)


def _all_listen(site: Site, listed: Sequence[str]) -> bool:
    for line in listed:
        _, address, port = line.split()
        try:
            with site.lab.network():
                socket.create_connection((address, int(port.partition("=")[2])), timeout=1).close()
        except OSError:
            return False
    return True
