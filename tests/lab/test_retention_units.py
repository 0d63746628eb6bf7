"""The retention executor's place on real nodes: user, files, sandbox, and the tool's tree as its program."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.components import retention
from kubeadm_registry.retention.policy import SMALLEST
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.registry import ROOT, Registry

pytest_plugins = ["tests.lab.registry"]

ORDER = "0123456789abcdef" * 4
UNIT = retention.unit(ORDER)


def ended(host: Host, unit: str) -> None:
    def gone() -> bool:
        return host.sh("systemctl", "show", "-P", "ActiveState", unit).stdout.strip() in ("inactive", "failed")

    wait_until(f"the end of {unit}", gone, seconds=60)


def program(host: Host) -> str:
    """The start script in the tool's tree, as the unit names it."""
    text = host.sh("cat", f"{paths.UNITS}/{retention.TEMPLATE}").stdout
    (line,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    return line.removeprefix("ExecStart=").split()[0]


def test_users_files_and_units(registry: Registry) -> None:
    for host in registry.servers.values():
        shown = host.sh("stat", "-c", "%a %U:%G %n", retention.ETC, retention.CONFIG, program(host)).stdout
        assert shown.splitlines() == [
            f"750 root:{retention.USER} {retention.ETC}",
            f"640 root:{retention.USER} {retention.CONFIG}",
            f"755 root:root {program(host)}",
        ]
        told = json.loads(host.sh("cat", retention.CONFIG).stdout)
        assert told["registry"]["url"] == f"https://{host.address}:5000"
        assert host.sh("systemctl", "is-enabled", retention.TIMER, check=False).stdout.strip() == "disabled"
        assert host.sh("systemctl", "is-active", retention.TIMER, check=False).stdout.strip() == "inactive"


def test_an_order_runs_on_the_node_and_leaves_a_result(registry: Registry) -> None:
    """One that is not there: each node refuses it, and says why."""
    holder = lease_holder(registry)
    for host in registry.servers.values():
        began = time.monotonic()
        host.sh("systemctl", "start", UNIT, check=False, timeout=120)
        sys.stdout.write(f"\n  {host.name}: an executor that does nothing took {time.monotonic() - began:.1f} s\n")
        result = f"{paths.RETENTION_STATE}/{ORDER}.json"
        assert host.sh("stat", "-c", "%a %U:%G", paths.RETENTION_STATE, result).stdout.splitlines() == [
            f"700 {retention.USER}:{retention.USER}",
            f"600 {retention.USER}:{retention.USER}",
        ]
        told = json.loads(host.sh("cat", result).stdout)
        assert told["order"] == ORDER
        assert told["code"] == ("OrderDamaged" if host is holder else "NoExecutor")
        host.sh("systemctl", "reset-failed", UNIT)


#: What the executor must be able to do in its sandbox, and what not; in the place of the executor.
PROBE = """
import json, pathlib, socket, ssl, sys, urllib.request, urllib.error
from kubeadm_registry.components import executor_files as settings
found = settings.load(pathlib.Path("/etc/kubeadm-registry/retention/config.json"))
said = {"state": json.loads(pathlib.Path(found.agent_state).read_text())["name"]}
context = ssl.create_default_context(cafile=found.ca)
try:
    with urllib.request.urlopen(f"{found.registry}/healthz", context=context, timeout=10) as answer:
        said["registry"] = answer.status
except urllib.error.HTTPError as error:
    said["registry"] = error.code
def attempt(name, work):
    try:
        work()
        said[name] = "may"
    except OSError as error:
        said[name] = type(error).__name__
attempt("secrets", lambda: open("/etc/kubeadm-registry/secrets.json"))
attempt("etc", lambda: open("/etc/kubeadm-registry/retention/new", "w"))
attempt("program", lambda: open(settings.__file__, "a"))
attempt("frontend", lambda: socket.create_connection(("127.0.0.1", 5001), timeout=3))
attempt("storage", lambda: socket.create_connection(("127.0.0.39", 3900), timeout=3))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("own", lambda: open("/var/lib/kubeadm-registry-retention/own", "w"))
said["slice"] = pathlib.Path("/proc/self/cgroup").read_text()
print(json.dumps(said), flush=True)
"""
DROP_IN = """
[Service]
ExecStart=
ExecStart={start} -c 'import sys; sys.path.insert(0, "{tree}/app"); exec(open("/etc/probe.py").read())'
"""


def in_the_sandbox(host: Host, code: str) -> None:
    """Let the unit run *code* with the tool's Python, in the place of the executor."""
    tree = program(host).rpartition("/bin/")[0]
    (loader,) = host.sh("sh", "-c", 'echo "$1"/lib/ld-linux-*', "-", tree).stdout.split()
    host.sh("sh", "-c", "cat > /etc/probe.py", stdin=code)
    folder = f"{paths.UNITS}/{retention.TEMPLATE}.d"
    text = DROP_IN.format(start=f"{loader} {tree}/bin/python3 -I -S", tree=tree)
    host.sh("sh", "-c", 'mkdir -p "$1" && cat > "$1/probe.conf" && systemctl daemon-reload', "-", folder, stdin=text)


def without_probe(host: Host) -> None:
    folder = f"{paths.UNITS}/{retention.TEMPLATE}.d"
    host.sh("sh", "-c", 'systemctl stop "$2"; rm -rf "$1" /etc/probe.py; systemctl daemon-reload', "-", folder,
            retention.INSTANCES)  # fmt: skip


def told(host: Host) -> str:
    """What the probe found; empty while the journal does not have it."""
    said = host.sh("journalctl", "--no-pager", "-q", "-o", "cat", "-u", UNIT).stdout
    return next((line for line in said.splitlines() if line.startswith('{"state"')), "")


def test_what_it_may_and_what_not(registry: Registry) -> None:
    host = lease_holder(registry)  # elsewhere the kernel lets it reach nothing at all
    in_the_sandbox(host, PROBE)
    try:
        host.sh("systemctl", "start", UNIT, timeout=120)
        wait_until("what it wrote to be in the journal", lambda: bool(told(host)), seconds=30)
        found: dict[str, Any] = json.loads(told(host))
    finally:
        without_probe(host)
    refused, denied = "ConnectionRefusedError", "PermissionError"
    assert paths.SLICE in found.pop("slice")
    assert found == {
        "state": host.name, "registry": 200, "secrets": denied, "etc": "OSError", "program": denied,
        "frontend": refused, "storage": refused, "raw": denied, "own": "may",
    }  # fmt: skip


def test_init_does_not_touch_what_runs(registry: Registry) -> None:
    """Files of another build, as after an upgrade: the unit is written anew while an instance of it runs."""
    host = registry.servers["h3"]
    in_the_sandbox(host, "import time\nprint('runs', flush=True)\ntime.sleep(600)\n")
    try:
        host.sh("systemctl", "start", "--no-block", UNIT)
        pid = ("systemctl", "show", "-P", "MainPID", UNIT)
        wait_until("the executor", lambda: host.sh(*pid).stdout.strip() != "0", seconds=60)
        before = host.sh(*pid).stdout
        host.sh("sed", "-i", "s/^Nice=.*/Nice=11/", f"{paths.UNITS}/{retention.TEMPLATE}")
        said = registry.cli("init").stdout
        assert f"write {paths.UNITS}/{retention.TEMPLATE}" in said, said
        assert host.sh(*pid).stdout == before
        assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"
    finally:
        without_probe(host)
    ended(host, UNIT)


#: Calls ``access.executor`` as a command or the operator does: cluster file, seconds or "stop", and an order.
CALL = """
import json, pathlib, sys
from kubeadm_registry import config
from kubeadm_registry.access import executor, session
from kubeadm_registry.errors import Error
path, verb, order = sys.argv[1:]
def note(text, **_): pass
with session.cluster(config.load(pathlib.Path(path)), session.Prompts(), note) as cluster:
    told, nodes = [], executor.on_hosts(cluster)
    try:
        if verb == "stop":
            said = {"stopped": executor.stop(nodes, order)}
        else:
            found = executor.run(nodes, order.encode(), deadline=float(verb), progress=told.append)
            said = {"node": found.node, "status": found.status, "result": dict(found.result)}
    except Error as error:
        said = {"code": error.code, "host": error.host, "message": error.message}
print(json.dumps({**said, "told": told}))
"""


def call(registry: Registry, verb: str, order: str) -> dict[str, Any]:
    argv = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", CALL, str(registry.file), verb, order)
    said: dict[str, Any] = json.loads(registry.lab.run(*argv, timeout=120).stdout.splitlines()[-1])
    return said


def lease_holder(registry: Registry) -> Host:
    """The node whose agent says that it holds the lease."""
    held: list[Host] = []

    def found() -> bool:
        servers = registry.servers.values()
        held[:] = [host for host in servers if registry.state(host)["writer"]["role"] == "writer"]
        return len(held) == 1

    wait_until("one holder of the lease", found, seconds=60)
    return held[0]


def digits(order: str) -> str:
    return hashlib.sha256(order.encode()).hexdigest()


def test_an_order_is_started_where_the_lease_is(registry: Registry) -> None:
    """One that is none: the executor says so, and that is the result."""
    said = call(registry, "60", "no order")
    assert (said["node"], said["status"]) == (lease_holder(registry).name, 1)
    assert (said["result"]["order"], said["result"]["code"]) == (digits("no order"), "OrderDamaged")


def test_one_order_at_a_time_and_each_can_be_ended(registry: Registry) -> None:
    holder = lease_holder(registry)
    for host in registry.servers.values():
        in_the_sandbox(host, "import time\nprint('begins', flush=True)\ntime.sleep(600)\n")
    try:

        def begins() -> bool:
            """Whether it has said so; an order that runs is waited for again."""
            said = call(registry, "5", "one")
            assert (said["code"], said["host"]) == ("Timeout", holder.name)
            return bool(said["told"][-1:] == ["begins"])

        wait_until("what the executor says", begins, seconds=60)
        busy = call(registry, "5", "another")
        assert (busy["code"], busy["host"]) == ("ExecutorBusy", holder.name)
        assert call(registry, "stop", digits("one"))["stopped"] == [holder.name]
        assert call(registry, "stop", digits("one"))["stopped"] == []
    finally:
        for host in registry.servers.values():
            without_probe(host)
    assert call(registry, "60", "one")["result"]["code"] == "OrderDamaged", "what was ended can be started again"


def test_the_timer(registry: Registry, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"{SMALLEST}  sets: []\n  approval: Automatic\n")
    kubelet = registry.servers["h2"]
    kubelet.sh("sh", "-c", "mkdir -p /var/lib/kubelet; touch /var/lib/kubelet/config.yaml")
    refused = registry.cli("retention", "timer", "enable", "--policy", policy, check=False)
    kubelet.sh("rm", "-r", "/var/lib/kubelet")
    assert refused.returncode == 3
    assert "/var/lib/kubelet/config.yaml exists: this node is part of a Kubernetes cluster" in refused.stdout

    registry.cli("retention", "timer", "enable", "--policy", policy)
    try:
        nodes = registry.json("retention", "timer", "status")[-1]["nodes"]
        assert [one["enabled"] for one in nodes] == [True] * 3
        assert len({one["policy"] for one in nodes}) == 1
        assert all(one["next"] for one in nodes), nodes
        assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"
        holder = lease_holder(registry)
        for host in registry.servers.values():
            host.sh("systemctl", "start", retention.DAILY, timeout=120)
            log = host.sh("journalctl", "--no-pager", "-q", "-o", "cat", "-u", retention.DAILY).stdout
            assert ("does not hold the lease, so another node does this" in log) is (host is not holder), log
        kubelet.sh("sh", "-c", "mkdir -p /etc/kubernetes; touch /etc/kubernetes/kubelet.conf")
        before = kubelet.sh("systemctl", "show", "-P", "ExecMainStartTimestamp", retention.DAILY).stdout
        kubelet.sh("systemctl", "start", retention.DAILY, timeout=120)
        assert kubelet.sh("systemctl", "show", "-P", "ConditionResult", retention.DAILY).stdout == "no\n"
        assert kubelet.sh("systemctl", "show", "-P", "ExecMainStartTimestamp", retention.DAILY).stdout == before
    finally:
        kubelet.sh("rm", "-rf", "/etc/kubernetes")
        registry.cli("retention", "timer", "disable")
    for host in registry.servers.values():
        assert host.sh("test", "-e", retention.POLICY, check=False).returncode == 1
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"
