"""One node without hosts: the real agent, HAProxy and kernel, before a frontend that notes what arrives, and when."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import config, paths, pki
from kubeadm_registry.components import agent, distribution, garage, haproxy, zipapp
from kubeadm_registry.engine.changes import File
from kubeadm_registry.phases import network as phase
from tests.lab.command import wait_until
from tests.lab.namespaces import Namespace, network
from tests.lab.test_guard import USERS
from tests.unit.fake_cluster import FakeCluster
from tests.unit.real_haproxy import program

ALONE = re.sub(r"(?m)^.*cp-[23].*\n", "", config.SMALLEST) + "  frontend: {type: distribution}\n"
#: Writes method and path of what arrives to the file ``$1``.
FRONTEND = textwrap.dedent("""
    import http.server, sys
    class Own(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with open(sys.argv[1], "a") as file:
                file.write(f"{self.command} {self.path}\\n")
            self.send_response(201 if self.command == "PUT" else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()
        do_GET = do_PUT = answer
        def log_message(self, *_):
            pass
    http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Own).serve_forever()
""").replace("PORT", str(paths.FRONTEND_PORT))
#: Retention's user, with a connection that is open already when it is told to write.
EXECUTOR = textwrap.dedent("""
    import base64, encodings.idna, http.client, json, os, ssl, sys  # all now: root alone may read them
    order = json.loads(sys.stdin.readline())
    tls = ssl.create_default_context(cadata=order["ca"])
    os.setuid(order["user"])
    line = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=30, context=tls)
    login = base64.b64encode(f"retention:{order['password']}".encode()).decode()
    head = {"Authorization": f"Basic {login}", "X-Registry-Term": str(order["term"])}
    line.request("GET", "/v2/a/manifests/x", headers=head)
    line.getresponse().read()
    print("ready", flush=True)
    sys.stdin.readline()
    line.request("PUT", "/v2/a/manifests/late", "{}", head)
    print("sent", flush=True)
    sys.stdin.read()
""").replace("PORT", str(paths.REGISTRY_PORT))

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft", path="/usr/sbin:/sbin"), reason="needs root and nft"
)


@dataclass
class Node:
    """The only node of a cluster, in a network namespace."""

    namespace: Namespace
    folder: Path
    agent: subprocess.Popen[str]
    proxy: subprocess.Popen[str]

    @property
    def writer(self) -> dict[str, Any]:
        """What its agent says of the lease."""
        file = self.folder / "run/agent/state.json"
        return dict(json.loads(file.read_text())["writer"]) if file.exists() else {}

    @property
    def arrived(self) -> list[str]:
        """What has come to the frontend by PUT."""
        file = self.folder / "arrived"
        return [one for one in file.read_text().splitlines() if one.startswith("PUT")] if file.exists() else []


@contextmanager
def node(folder: Path) -> Iterator[Node]:
    """The node, once it holds the lease."""
    fake = FakeCluster.of(ALONE)
    cluster, host, secrets = fake.cluster, fake.cluster.leader, fake.cluster.secrets
    etc, run = folder / "etc", folder / "run"
    for one in (etc / "haproxy", run / "haproxy", run / "agent"):
        one.mkdir(parents=True)
    (run / "agent").chmod(0o777)
    steps = (*haproxy.identity(cluster, host), *haproxy.install(cluster, host, single_writer=False))
    for step in (*steps, *phase.install(cluster, host)):
        if isinstance(step, File) and step.path.startswith(paths.ETC):
            text = step.content.decode()
            if step.path == paths.GUARD:
                text = re.sub(rf"{paths.PREFIX}-\w+", lambda found: str(USERS.get(found[0], found[0])), text)
            text = text.replace(paths.ETC, str(etc)).replace(paths.RUN, str(run))
            Path(step.path.replace(paths.ETC, str(etc))).write_text(text)
    authority = pki.Pair(secrets.ca_certificate, secrets.ca_key)
    pair = pki.issue(authority, host.name, (host.name, paths.LOOPBACK, host.address))
    pem = etc / "haproxy/node.pem"
    pem.write_text(pair.certificate + pair.key)
    (etc / "key").write_text("k" * 32)
    settings = agent.settings(cluster, host, distribution, garage)
    settings |= {
        "storage": None, "canary": None, "guard": None, "heartbeat_key_file": str(etc / "key"),
        "garage_admin_token_file": "", "tls": {"cert": str(pem), "key": str(pem), "ca": str(etc / "ca.crt")},
        "proxy": {"sockets": [str(run / "haproxy/1.sock")], "epoch_map": str(etc / "haproxy/state.map")},
        "paths": {name: str(run / "agent" / name) for name in ("fit", "alone", "mark", "hardstate")}
        | {"state": str(run / "agent/state.json")},
    }  # fmt: skip
    (etc / "agent.json").write_text(json.dumps(settings))
    (etc / "agent.pyz").write_bytes(zipapp.build())
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    uid = USERS[paths.user("agent")]
    rights = ("--clear-groups", "--inh-caps=+net_admin,+kill", "--ambient-caps=+net_admin,+kill")
    with ExitStack() as stack:
        own = stack.enter_context(network({"node": f"{host.address}/24"}))["node"]
        for address in (paths.S3_ADDRESS, *cluster.spec.vip.addresses):
            own.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        own.run("nft", "-f", str(etc / "guard.nft"))

        def start(*argv: str, **variables: str) -> subprocess.Popen[str]:
            started = own.start(*argv, env={**os.environ, **variables})
            stack.callback(started.wait)
            stack.callback(started.kill)
            return started

        start(sys.executable, "-c", FRONTEND, str(folder / "arrived"))
        proxy = start(program(), "-db", "-f", str(etc / "haproxy/haproxy.cfg"), INSTANCE="1")
        socket = run / "haproxy/1.sock"
        wait_until("HAProxy", socket.exists, seconds=30, every=0.05)
        socket.chmod(0o666)
        command = (sys.executable, "-I", "-B", str(etc / "agent.pyz"), "--config", str(etc / "agent.json"))
        made = Node(own, folder, start("setpriv", f"--reuid={uid}", f"--regid={uid}", *rights, *command), proxy)

        def writes() -> bool:
            assert made.agent.poll() is None, "the agent has ended"
            return made.writer.get("role") == "writer"

        wait_until("the lease", writes, seconds=90, every=0.05)
        yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that the agent's user may enter: pytest closes those it makes to others whenever a run begins."""
    with tempfile.TemporaryDirectory(prefix="kubeadm-registry-late-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.parametrize("rule", ["as it is", "without it"])
def test_what_lay_in_the_sockets_of_a_proxy_that_stood_still_does_not_arrive(folder: Path, rule: str) -> None:
    """The agent stands still as well, so the gate is open and the term is the old one. Without the rule it arrives."""
    secrets = FakeCluster.of(ALONE).cluster.secrets
    with node(folder) as one:
        if rule != "as it is":
            one.namespace.run("nft", "flush", "chain", "inet", paths.FENCE_TABLE, "frontend")
        order = {"ca": secrets.ca_certificate, "password": secrets.retention_password, "term": one.writer["term"],
                 "user": USERS[paths.user(paths.RETENTION_NAME)]}  # fmt: skip
        with one.namespace.start(sys.executable, "-I", "-c", EXECUTOR, stdin=-1, stdout=-1) as executor:
            assert executor.stdin is not None
            assert executor.stdout is not None
            executor.stdin.write(json.dumps(order) + "\n")
            executor.stdin.flush()
            assert executor.stdout.readline() == "ready\n"
            for process in (one.proxy, one.agent):
                os.kill(process.pid, signal.SIGSTOP)
            executor.stdin.write("write\n")
            executor.stdin.flush()
            assert executor.stdout.readline() == "sent\n"
            executor.kill()
        time.sleep(3.0)  # the kernel's timer has ended
        os.kill(one.proxy.pid, signal.SIGCONT)
        if rule == "as it is":
            time.sleep(1.0)  # long enough for HAProxy, which has nothing else to do
        else:
            wait_until("HAProxy to pass it on", lambda: one.arrived, seconds=60)
        late = one.arrived
        before = one.writer["term"]
        os.kill(one.agent.pid, signal.SIGCONT)
        wait_until("a new term", lambda: one.writer["role"] == "writer" and one.writer["term"] > before, seconds=60)
        time.sleep(1.0)  # under which the kernel would pass on what it held back
        assert (late, one.arrived) == (([], []) if rule == "as it is" else (["PUT /v2/a/manifests/late"],) * 2)
