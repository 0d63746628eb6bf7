"""The operator has nodes of the registry replaced: one that its object lists no more, and one that died."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.operator.clients import KIND
from kubeadm_registry.operator.replacement import HOST_KEY, SPARE
from kubeadm_registry.upkeep.nodes import CLIENT
from tests.kubernetes.clients import pulling, pushed, say
from tests.kubernetes.cluster import Kubernetes, images_of
from tests.lab.changing import Changing, holds_vip, removed
from tests.lab.clients import pushing
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.programs import KUBERNETES

#: Ten minutes, on hosts that are used up afterwards.
pytestmark = pytest.mark.long
NAMESPACE = "--namespace=kubeadm-registry"
OBJECT = ("registrycluster", "registry")
#: Seconds in which a node is replaced, with little to copy and every processor busy.
PATIENCE = 900


@pytest.fixture(scope="module")
def operated(kubernetes: Kubernetes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    """Three control planes, and an operator that may replace what runs on them."""
    registry = kubernetes.registry
    present = {node["metadata"]["name"] for node in kubernetes.get("nodes")["items"]}
    for host in registry.servers.values():
        if host.name not in present:
            kubernetes.join(host)
    kubernetes.kubectl("taint", "nodes", "--all", "node-role.kubernetes.io/control-plane-", check=False)
    kubernetes.wait_ready()
    config = kubernetes.admin_file(tmp_path_factory.mktemp("operator"))
    said = registry.cli("operator", "install", "--replace-nodes", "--kubeconfig", config).stdout
    line = said.partition("may become a node: ")[2].splitlines()[0]
    for host in registry.lab.hosts.values():
        if host.name not in registry.servers:
            host.sh("sh", "-c", f"mkdir -p /root/.ssh; echo {shlex.quote(line)} >> /root/.ssh/authorized_keys")
    kubernetes.kubectl("apply", "--filename=-", stdin=registry.file.read_text())
    wait_until("the operator to see all nodes", lambda: verdict(kubernetes)[0] == "True", seconds=240, every=5)
    yield kubernetes
    registry.cli("operator", "uninstall", "--kubeconfig", config, "--yes")
    kubernetes.kubectl("annotate", *OBJECT, "kubeadm-registry.dev/allow-data-loss=registry")
    kubernetes.kubectl("delete", "registrycluster,registryretentionplan", "--all")


def status(kubernetes: Kubernetes) -> dict[str, Any]:
    """The status of the RegistryCluster; empty while the API does not answer."""
    found = kubernetes.kubectl("get", *OBJECT, "--output=json", timeout=20, check=False)
    return dict(json.loads(found).get("status") or {}) if found else {}


def verdict(kubernetes: Kubernetes, kind: str = "NodesInPlace") -> tuple[str, str, str]:
    """Status, reason and message of the condition *kind*."""
    for one in status(kubernetes).get("conditions", ()):
        if one["type"] == kind:
            return one["status"], one["reason"], one["message"]
    return "", "", ""


def until(kubernetes: Kubernetes, what: str, seen: Callable[[dict[str, Any]], bool], *, seconds: float) -> None:
    """Wait until the report of the replacement is as wanted; shows each new verdict and step on the way."""
    shown: list[Any] = [None]

    def ready() -> bool:
        report = status(kubernetes).get("replacement") or {}
        now = (*verdict(kubernetes)[1:], report.get("step"), report.get("result"))
        if now != shown[0]:
            shown[0] = now
            say(kubernetes, ": ".join(str(word) for word in now if word))
        return seen(report)

    wait_until(what, ready, seconds=seconds, every=2)


def host_key(host: Host) -> str:
    """As ``spec.nodes[].hostKey`` has it."""
    return host.sh("cut", "-d", " ", "-f1,2", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.strip()


def becomes(registry: Changing, *names: str) -> None:
    """The cluster file lists what the object does."""
    registry.names = names
    registry.write_file({"kubernetes.version": KUBERNETES})


def in_place(kubernetes: Kubernetes) -> None:
    """All is as if the registry had been made of these nodes, and each of Kubernetes pulls from it."""
    registry = kubernetes.registry
    wait_until("all nodes to be in place", lambda: verdict(kubernetes)[0] == "True", seconds=120, every=2)
    registry.wait_copied()
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"
    assert registry.cli("status").returncode == 0
    events = kubernetes.get("events", "--namespace=default")["items"]
    said = [one["reason"] for one in events if one["involvedObject"]["kind"] == "RegistryCluster"]
    assert {"Begun", "Replaced"} <= set(said), said


def test_a_new_worker_pulls_once_its_node_has_the_label(operated: Kubernetes) -> None:
    """Nothing but kubeadm's own command is run on it, and until then not even kube-proxy can be pulled there."""
    worker = operated.registry.lab.hosts["h6"]
    operated.prepare(worker)
    operated.join_worker(worker)
    operated.start("on-h6", pushed(operated.registry, "on-h6"), worker)
    operated.kubectl("label", "node", worker.name, f"{CLIENT}=")
    wait_until(
        "its host key to be missed", lambda: verdict(operated, KIND)[1] == "HostKeyMissing", seconds=120, every=2
    )
    assert images_of(worker) == []
    operated.kubectl("annotate", "node", worker.name, f"{HOST_KEY}={host_key(worker)}")
    begin = time.monotonic()
    operated.wait_running("on-h6", seconds=300)
    say(operated, f"the pod of a new worker runs {time.monotonic() - begin:.0f} s after its host key is known")
    wait_until("the operator to say so", lambda: verdict(operated, KIND)[0] == "True", seconds=60, every=2)
    operated.wait_ready()


def test_a_node_is_replaced_by_an_edit_of_the_object(operated: Kubernetes, tmp_path: Path) -> None:
    """The old node works, and gives away what it has: no pull and no push fails."""
    registry = operated.registry
    assert isinstance(registry, Changing)
    old, new = registry.lab.hosts["h3"], registry.lab.hosts["h4"]
    image = pushed(registry, "while-replaced")
    nodes = operated.get(*OBJECT)["spec"]["nodes"]
    nodes[2] = {"name": new.name, "address": new.address, "secondaryAddress": new.address6, "hostKey": host_key(new)}
    staying = [registry.lab.hosts[name] for name in ("h1", "h2")]
    begin = time.monotonic()
    with pulling(staying[:1], image) as pulls, pushing(registry, tmp_path, every=3.0) as pushes:
        patch = json.dumps({"spec": {"nodes": nodes}})
        operated.kubectl("patch", *OBJECT, "--type=merge", f"--patch={patch}")
        until(operated, "the node to be replaced", lambda report: report.get("result") == "Done", seconds=PATIENCE)
    say(operated, f"h4 for h3 after {time.monotonic() - begin:.0f} s; {pulls}; pushes: {pushes}")
    assert not pulls.failed
    assert not pushes.failed
    becomes(registry, "h1", "h2", "h4")
    in_place(operated)
    assert not pushes.lost(registry)
    # The old one is a node of Kubernetes still, and pulls as those do that are nothing else.
    registry.cli("join", "--worker", f"{old.name} {old.address}")
    operated.start("on-h3", pushed(registry, "on-h3"), old)
    operated.wait_running("on-h3", seconds=120)


def test_a_node_that_died_is_replaced_by_itself(operated: Kubernetes, tmp_path: Path) -> None:
    """By a control plane that has joined Kubernetes and has the label, while the operator's leader is killed too."""
    registry = operated.registry
    assert isinstance(registry, Changing)
    old, spare = registry.lab.hosts["h2"], registry.lab.hosts["h5"]
    operated.prepare(spare)
    registry.cli("join", "--worker", f"{spare.name} {spare.address}")
    names = registry.names
    registry.names = (*names, spare.name)
    file = registry.write_file({"kubernetes.version": KUBERNETES}, name="with-the-spare.yaml")
    registry.names = names
    operated.join(spare, file)
    operated.kubectl("label", "node", spare.name, f"{SPARE}=")
    operated.kubectl("annotate", "node", spare.name, f"{HOST_KEY}={host_key(spare)}")
    patch = json.dumps({"spec": {"replacement": {"mode": "Automatic", "after": "1m"}}})
    operated.kubectl("patch", *OBJECT, "--type=merge", f"--patch={patch}")
    image = pushed(registry, "while-one-is-dead")
    pods = {pod["metadata"]["name"] for pod in operated.get("pods", NAMESPACE)["items"]}
    begin = time.monotonic()
    old.power_cut()
    with pushing(registry, tmp_path, every=3.0) as pushes:
        until(operated, "the work to begin", lambda report: report.get("new") == spare.name, seconds=PATIENCE)
        for pod in pods:  # whoever leads
            operated.kubectl(NAMESPACE, "delete", "pod", pod, "--force", "--grace-period=0", check=False)
        until(operated, "the node to be replaced", lambda report: report.get("new") == spare.name
              and report.get("result") == "Done", seconds=PATIENCE)  # fmt: skip
    say(operated, f"h5 for the dead h2 after {time.monotonic() - begin:.0f} s; pushes: {pushes}")
    report = status(operated)["replacement"]
    assert (report["old"], report["new"], report["cause"]) == (old.name, spare.name, "NodeGone")
    assert {node["name"] for node in operated.get(*OBJECT)["spec"]["nodes"]} == {"h1", "h4", "h5"}
    becomes(registry, "h1", spare.name, "h4")
    in_place(operated)
    assert not pushes.lost(registry)
    operated.start("on-h5", image, spare)
    operated.wait_running("on-h5", seconds=120)
    old.power_on()
    wait_until("the agent of the old node to learn that it has left", lambda: removed(old), seconds=60)
    wait_until("it not to hold the virtual IP", lambda: not holds_vip(registry, old), seconds=10)
