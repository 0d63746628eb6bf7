"""The operator's key on real nodes: what sshd lets it do, what the helper answers, and that nothing of it stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths, secrets
from kubeadm_registry.components import helper, retention
from kubeadm_registry.custom_resources.installing import HelperKey
from kubeadm_registry.retention.order import Order
from tests.lab.host import Host
from tests.lab.registry import ROOT, Registry

pytest_plugins = ["tests.lab.registry"]
pytestmark = pytest.mark.long  # two minutes, of which one installs

#: Runs a workflow on all nodes: cluster file, and the public key that may ask, or "" to remove it.
WORK = """
import json, pathlib, sys
from kubeadm_registry import config
from kubeadm_registry.access import session
from kubeadm_registry.components import helper
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.phases.helper import FORBID, allow
path, public = sys.argv[1:]
class Quiet:
    def __getattr__(self, name):
        return lambda *_, **__: None
with session.cluster(config.load(pathlib.Path(path)), session.Prompts(), Quiet().note) as cluster:
    actions = run(allow(public) if public else FORBID, cluster, Quiet())
    hosts = "".join(helper.known_host(host, cluster.node(host).address, 22) for host in cluster.hosts)
print(json.dumps({"actions": len(actions), "hosts": hosts}))
"""
#: Asks every node as the operator does: cluster file, directory of the Secret, verb, order.
ASK = """
import json, pathlib, sys
from kubeadm_registry import config
from kubeadm_registry.access import executor
from kubeadm_registry.errors import Error
from kubeadm_registry.operator import way
path, folder, verb, order = sys.argv[1:]
nodes = way.read(pathlib.Path(folder)).nodes(config.load(pathlib.Path(path)))
try:
    if verb == "look":
        said = {node.name: executor.answers(node, "look", None) for node in nodes}
    else:
        found = executor.run(nodes, order.encode(), deadline=60)
        said = {"node": found.node, "status": found.status, "result": dict(found.result)}
except Error as error:
    said = {"code": error.code, "message": error.message}
print(json.dumps(said))
"""


class Operator:
    """Whoever has the operator's Secret, in a directory."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry, self.folder = registry, folder
        key = HelperKey.of("")
        self.public = key.public
        self.key = folder / "helper-key"
        self.key.write_text(key.private)
        self.key.chmod(0o600)
        (folder / "ca.crt").write_text(registry.ca.read_text())

    def python(self, program: str, *arguments: str) -> dict[str, Any]:
        argv = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", program, str(self.registry.file), *arguments)
        said: dict[str, Any] = json.loads(self.registry.lab.run(*argv, timeout=180).stdout.splitlines()[-1])
        return said

    def work(self, public: str) -> int:
        """Let *public* ask, or nobody; how many changes that took."""
        said = self.python(WORK, public)
        (self.folder / "helper-hosts").write_text(said["hosts"])
        return int(said["actions"])

    def ask(self, verb: str, order: str = "") -> dict[str, Any]:
        return self.python(ASK, str(self.folder), verb, order)

    def ssh(
        self, host: Host, *words: str, stdin: str = "", user: str = helper.USER, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """OpenSSH with the key, and no other."""
        argv = self.registry.lab.argv(
            "ssh", "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={self.folder / 'helper-hosts'}", "-o", "ConnectTimeout=10", *options,
            f"{user}@{host.address}", *words,
        )  # fmt: skip
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def operator(registry: Registry, tmp_path: Path) -> Iterator[Operator]:
    one = Operator(registry, tmp_path)
    assert one.work(one.public) > 0
    yield one
    one.work("")


def test_the_helper_says_who_holds_the_lease_and_takes_an_order(registry: Registry, operator: Operator) -> None:
    seen = operator.ask("look")
    assert seen.keys() == registry.servers.keys()
    roles = {name: one["agent"]["writer"]["role"] for name, one in seen.items()}
    assert sorted(roles.values()) == ["standby", "standby", "writer"]
    done = operator.ask("run", Order(1).to_json().decode())
    assert roles[done["node"]] == "writer"
    assert (done["status"], done["result"]["code"]) == (1, "OrderRefused"), "the executor found that it is too old"
    assert operator.work(operator.public) == 0
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"


def test_the_key_can_do_nothing_else(registry: Registry, operator: Operator) -> None:
    host = next(iter(registry.servers.values()))
    for words in (("id",), ("sh", "-c", "id"), ()):
        said = operator.ssh(host, *words, stdin="uname -a\n")
        answer = json.loads(said.stdout)
        assert answer["error"]["code"] == "QuestionInvalid", words
    for verb, order in (("reboot", ""), ("progress", "../../etc/shadow"), ("stop", "kubelet"), ("start", "rm -rf /")):
        said = operator.ssh(host, stdin=json.dumps({"verb": verb, "order": order}))
        assert "error" in json.loads(said.stdout), verb
    assert operator.ssh(host, "id", user="root").returncode == 255
    tunnel = operator.ssh(host, options=("-W", f"127.0.0.1:{paths.S3_PORT}"))
    assert "administratively prohibited" in tunnel.stderr, tunnel.stderr


def test_the_user_behind_the_key_can_only_ask(registry: Registry, operator: Operator) -> None:
    host = next(iter(registry.servers.values()))

    def may(*argv: str) -> bool:
        return host.sh("runuser", "-u", helper.USER, "--", *argv, check=False).returncode == 0

    assert may("test", "-r", helper.KEYS), "sshd reads it as that user"
    for path in (helper.KEYS, helper.ETC, f"{helper.ETC}/.ssh", helper.DOOR):
        assert not may("test", "-w", path)
    for path in (retention.CONFIG, retention.ORDERS, secrets.PATH):
        assert not may("test", "-r", path)
    assert host.sh("stat", "-c", "%a %U:%G", paths.HELPER_SOCKET).stdout.strip() == f"660 root:{helper.USER}"
    assert operator.ask("look")


def test_another_key_is_refused_and_nothing_stays(registry: Registry, operator: Operator, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    stranger = Operator(registry, other)
    (other / "helper-hosts").write_text((tmp_path / "helper-hosts").read_text())
    assert stranger.ask("look")["code"] == "AuthenticationFailed"
    assert operator.work("") > 0
    assert operator.ask("look")["code"] == "AuthenticationFailed"
    for host in registry.servers.values():
        left = f"ls -d {helper.ETC} {paths.HELPER_SOCKET} {paths.UNITS}/*helper* 2>/dev/null || :"
        assert host.sh("sh", "-c", left).stdout == ""
        assert host.sh("getent", "passwd", helper.USER, check=False).returncode == 2
    assert operator.work("") == 0
