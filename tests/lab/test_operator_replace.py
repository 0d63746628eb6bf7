"""The operator has a node replaced that died, by questions to the helpers of real nodes, while others push and pull.

The API server is a file here; everything else is as in a cluster. What ends the operator, or the node's own work, in
the middle is made up for by the next one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeadm_registry import paths, pki
from kubeadm_registry.components import replacing
from kubeadm_registry.operator.conditions import rfc3339
from kubeadm_registry.operator.replacement import HOST_KEY, SPARE
from tests.lab import images
from tests.lab.changing import KNOWN, PATIENCE, Changing, changing, check_all, holds_vip, push_all, removed
from tests.lab.clients import pushing
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.pulling import CERTS
from tests.lab.reading import reading
from tests.lab.registry import ROOT
from tests.lab.settings import FRONTENDS
from tests.lab.test_helper import Operator

#: Run by `make day-two`.
pytestmark = pytest.mark.long
IMAGE = images.image((3_000_000,), seed=7)
MIRRORED = "registry.k8s.io/tests/worker:v1"
PLANE = "node-role.kubernetes.io/control-plane"

#: Lets the operator's key ask, and the nodes log in to each other: cluster file, public and private key.
WORK = """
import json, pathlib, sys
from kubeadm_registry import config, pki
from kubeadm_registry.access import session
from kubeadm_registry.components import helper, replacing
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.phases.helper import FORBID, allow
path, public, private = sys.argv[1:]
class Quiet:
    def __getattr__(self, name):
        return lambda *_, **__: None
with session.cluster(config.load(pathlib.Path(path)), session.Prompts(), Quiet().note) as cluster:
    actions = run(allow(public, private) if public else FORBID, cluster, Quiet())
    hosts = "".join(helper.known_host(host, cluster.node(host).address, 22) for host in cluster.hosts)
    line = replacing.line(cluster, pki.ssh_key(private)[1]) if private else ""
print(json.dumps({"actions": len(actions), "hosts": hosts, "line": line}))
"""
#: Rounds of the operator until all nodes are in place: the object as a file, and the directory of the Secret.
OPERATE = """
import json, pathlib, sys, time
from kubeadm_registry import config
from kubeadm_registry.operator import replacing, way
file, folder = map(pathlib.Path, sys.argv[1:])
class Objects:
    def get(self, path):
        nodes = json.loads(file.read_text())["nodes"]
        return {"items": list(nodes.values())} if "?" in path else nodes.get(path.rpartition("/")[2])
    def merge(self, path, patch):
        whole = json.loads(file.read_text())
        whole["cluster"]["spec"]["nodes"] = patch["spec"]["nodes"]
        file.write_text(json.dumps(whole))
while True:
    mine = json.loads(file.read_text())["cluster"]
    before = mine["status"].get("replacement") or {}
    one = replacing.Round(
        mine, config.from_object(mine), way.read(folder), Objects(), lambda: None, time.time(), before
    )
    done = one.turn()
    whole = json.loads(file.read_text())
    whole["cluster"]["status"]["replacement"] = done.report
    file.write_text(json.dumps(whole))
    for step in done.steps:
        print(json.dumps({"event": step.reason, "text": step.message}), flush=True)
    print(json.dumps({"reason": done.verdict.reason, "text": done.verdict.message}), flush=True)
    if done.verdict.reason == "AllInPlace" and (done.report or {}).get("result") == "Done":
        break
    time.sleep(2)
"""
#: A round of the operator for client nodes: cluster file, directory of the Secret, the Node. Twice.
CLIENTS = """
import json, pathlib, sys
from kubeadm_registry import config
from kubeadm_registry.operator import way
from kubeadm_registry.operator.clients import AGAIN, Clients
cluster, folder, node = config.load(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
class Objects:
    def get(self, _):
        return {"items": [node]}
the_way, clients = way.read(folder), Clients()
said = [
    [verdict.reason, verdict.message]
    for again in (1, 2)
    for _, verdict in clients.turn(
        Objects(), cluster, the_way.ca, the_way.members(cluster), lambda: None, again * AGAIN
    )
]
print(json.dumps({"said": said, "reason": clients.verdict().reason}))
"""


@pytest.fixture(scope="module", params=FRONTENDS)
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    with changing("members", request.param, tmp_path_factory.mktemp("replace"), hosts=5) as registry:
        push_all(registry)
        yield registry


class Site(Operator):
    """The operator's Secret, its key for the nodes and theirs, and its object in a file."""

    def __init__(self, registry: Changing, folder: Path) -> None:
        super().__init__(registry, folder)
        self.file = folder / "object.json"
        self.private, _ = pki.ssh_key()

    def install(self) -> str:
        """As `operator install --replace-nodes`; the line for machines that are to be nodes."""
        said = self.python(WORK, self.public, self.private)
        (self.folder / "helper-hosts").write_text(said["hosts"])
        assert self.python(WORK, self.public, self.private)["actions"] == 0
        return str(said["line"])

    def describe(self, gone: Host, since: float, spare: Host) -> None:
        """What the API server has: *gone* is NotReady *since* then, *spare* has joined."""
        key, nodes = host_key(spare), {}
        for host in (*self.registry.servers.values(), spare):
            ready = {"type": "Ready", "status": "Unknown" if host is gone else "True",
                     "lastTransitionTime": rfc3339(since)}  # fmt: skip
            more: dict[str, Any] = {"labels": {PLANE: ""}, "annotations": {}}
            if host is spare:
                more = {"labels": {PLANE: "", SPARE: ""}, "annotations": {HOST_KEY: key}}
            nodes[host.name] = {
                "metadata": {"name": host.name, "creationTimestamp": rfc3339(since), **more},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": at} for at in (host.address, host.address6)],
                    "conditions": [ready],
                },
            }
        mine = yaml.safe_load(self.registry.file.read_text())
        mine["metadata"] = {"name": "registry", "resourceVersion": "1", "generation": 1, "uid": "u"}
        mine["spec"]["replacement"] = {"mode": "Automatic", "after": "1m"}
        away = {"type": "Available", "status": "False", "lastTransitionTime": rfc3339(since)}
        mine["status"] = {"nodes": [{"name": gone.name, "health": [away]}]}
        self.file.write_text(json.dumps({"cluster": mine, "nodes": nodes}))

    def operate(self) -> subprocess.Popen[str]:
        """Start an operator."""
        argv = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", OPERATE, self.file, self.folder)
        return subprocess.Popen(self.registry.lab.argv(*argv), stdout=subprocess.PIPE, text=True)

    def status(self) -> dict[str, Any]:
        return json.loads(self.file.read_text())["cluster"]["status"].get("replacement") or {}


def host_key(host: Host) -> str:
    """That of its sshd, as the annotation has it."""
    return host.sh("cut", "-d", " ", "-f1,2", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.strip()


def until(operator: subprocess.Popen[str], reason: str, seconds: float = 300) -> list[str]:
    """What *operator* says until it says *reason*, or ends."""
    end = time.monotonic() + seconds
    said: list[str] = []
    assert operator.stdout is not None
    for line in operator.stdout:
        one = json.loads(line)
        word = one.get("event") or one["reason"]
        if not said or said[-1] != word:
            said.append(word)
            sys.stdout.write(f"  {word}: {one['text']}\n")
        if word == reason:
            return said
        assert time.monotonic() < end, said
    return said


def test_a_new_worker_pulls_from_the_registry(registry: Changing, tmp_path: Path) -> None:
    """Which has an sshd and a containerd, and nothing of the registry; nodes come to it as soon as it lets them in."""
    site, worker, keys = Site(registry, tmp_path), registry.client, "/root/.ssh/authorized_keys"
    line, before = site.install(), worker.sh("cat", keys).stdout
    node = {
        "metadata": {"name": worker.name, "annotations": {HOST_KEY: host_key(worker)}},
        "status": {"addresses": [{"type": "InternalIP", "address": worker.address}]},
    }
    with registry.lab.network():
        images.push(registry, IMAGE, MIRRORED.removesuffix(":v1"), "v1")
    pull = ("ctr", "images", "pull", "--local", "--hosts-dir", CERTS, MIRRORED)
    try:
        assert worker.sh(*pull, check=False).returncode != 0
        refused = site.python(CLIENTS, str(site.folder), json.dumps(node))
        assert [reason for reason, _ in refused["said"]] == [refused["reason"]] == ["AuthenticationFailed"], refused
        worker.sh("sh", "-c", 'echo "$1" >> "$2"', "add", line, keys)
        done = site.python(CLIENTS, str(site.folder), json.dumps(node))
        sys.stdout.write(f"\n  {done}\n")
        assert done == {"said": [["Configured", "containerd pulls through the virtual IP"]], "reason": "Configured"}
        worker.sh(*pull)
        other = {
            **node,
            "metadata": {"name": worker.name, "annotations": {HOST_KEY: host_key(registry.lab.hosts["h1"])}},
        }
        assert site.python(CLIENTS, str(site.folder), json.dumps(other))["reason"] == "HostKeyChanged"
    finally:
        worker.sh("sh", "-c", 'cat > "$1"', "restore", keys, stdin=before)
        listed = tmp_path / "clients.txt"
        settings = registry.lab.settings
        listed.write_text(f"{worker.name} {worker.address} user={settings.user} port={settings.ssh_port}\n")
        registry.cli("mirrors", "remove", "--nodes", listed)
    assert site.work("") > 0


def test_a_node_that_died_is_replaced_by_itself(registry: Changing, tmp_path: Path) -> None:
    site = Site(registry, tmp_path)
    old, spare = registry.lab.hosts["h2"], registry.lab.hosts["h5"]
    line = site.install()
    spare.sh("sh", "-c", 'mkdir -p /root/.ssh; echo "$1" >> /root/.ssh/authorized_keys', "add", line)
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"
    old.power_cut()
    site.describe(old, time.time(), spare)
    with (
        reading(registry, KNOWN, period=0.1, deadline=PATIENCE) as reads,
        pushing(registry, tmp_path / "pushing", every=1.0) as pushes,
    ):
        with site.operate() as first:
            said = until(first, "Begun")
            assert {"GoneForAWhile", "NodeGone", "Replacing"} <= set(said)
            first.kill()  # the operator ends in the middle
        by = registry.lab.hosts[site.status()["node"]]
        with site.operate() as second:
            until(second, "StepMove")
            by.sh("systemctl", "kill", "--signal=KILL", replacing.UNIT)  # and then the work itself
            said = until(second, "AllInPlace")
            second.wait(timeout=60)
    sys.stdout.write(f"  reads: {reads}\n  pushes: {pushes}\n")
    report = site.status()
    assert (report["old"], report["new"], report["cause"], report["result"]) == ("h2", "h5", "NodeGone", "Done")
    assert not pushes.failed, pushes.failed
    # containerd tries again what was reset, at once; and no read after that waits for long.
    assert all(request.closed for request in reads.failed), reads.failed
    assert len(reads.failed) <= 5, reads.failed
    assert reads.gap < 5, reads
    registry.become("h1", "h5", "h3")
    check_all(registry)
    assert not pushes.lost(registry)
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"
    assert registry.cli("status").returncode == 0
    for host in registry.servers.values():
        lines = host.sh("grep", "-c", "kubeadm-registry replacing", "/root/.ssh/authorized_keys").stdout
        assert lines.strip() == "1"
        assert registry.listed(host).before == ()
        assert host.sh("stat", "-c", "%a %U", replacing.KEY).stdout.strip() == "600 root"
    kept_out(registry, old)
    assert site.work("") > 0
    for host in registry.servers.values():
        assert "replacing" not in host.sh("cat", "/root/.ssh/authorized_keys").stdout
        assert host.sh("test", "-e", replacing.ETC, check=False).returncode == 1


def kept_out(registry: Changing, old: Host) -> None:
    """The node that was replaced comes back, and can neither serve nor log in to the others."""
    with reading(registry, KNOWN, period=0.1, deadline=PATIENCE) as reads:
        old.power_on()
        wait_until("its agent to learn that it has left", lambda: removed(old), seconds=60)
        wait_until("it not to hold the VIP", lambda: not holds_vip(registry, old), seconds=10)
    assert not reads.failed
    options = ("BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    login = ("ssh", "-i", replacing.KEY, *(word for one in options for word in ("-o", one)),
             f"root@{registry.lab.hosts['h1'].address}", "true")  # fmt: skip
    assert "Permission denied" in old.sh(*login, check=False).stderr
    others = registry.lab.hosts["h3"].sh(*login, check=False)
    assert others.returncode == 0, others.stderr
    assert old.sh("cat", f"{paths.RUN}/agent/fit", check=False).stdout.strip() != "1"
