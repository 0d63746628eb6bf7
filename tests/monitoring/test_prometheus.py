"""A real Prometheus reads three real agents by the example, and evaluates the rules. The agents have no services."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import yaml

from kubeadm_registry import pki
from kubeadm_registry.components import zipapp
from tests.lab.command import wait_until
from tests.monitoring.wrapped import MONITORING, RULES
from tests.unit.test_agent_daemon import NAMES, free_port, raw

AUTHORITY = pki.make_ca("registry")


def pem(path: Path, pair: pki.Pair) -> str:
    path.write_text(pair.certificate + pair.key)
    return str(path)


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent."""

    name: str
    endpoint: str
    process: subprocess.Popen[bytes]


@contextmanager
def agents(folder: Path) -> Iterator[list[Agent]]:
    """Three of them, on loopback addresses, with certificates as ``init`` issues them."""
    (folder / "agent.pyz").write_bytes(zipapp.build())
    (folder / "ca.crt").write_text(AUTHORITY.certificate)
    ports = {"public": free_port(socket.SOCK_STREAM), "metrics": free_port(socket.SOCK_STREAM)}
    ports["heartbeat"], frontend = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
    with ExitStack() as stack:
        started = []
        for number, name in enumerate(NAMES):
            config = raw(folder, number, ports, frontend)
            own = pem(folder / f"{name}.pem", pki.issue(AUTHORITY, name, [name, config["address"]]))
            config["tls"] = {"cert": own, "key": own, "ca": str(folder / "ca.crt")}
            file = folder / f"{name}.json"
            file.write_text(json.dumps(config))
            argv = [sys.executable, "-I", "-B", str(folder / "agent.pyz"), "--config", str(file)]
            process = subprocess.Popen(argv, env={"PATH": os.environ["PATH"]}, stderr=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(process.kill)
            started.append(Agent(name, f"{config['address']}:{ports['metrics']}", process))
        yield started


@dataclass(frozen=True, slots=True)
class Server:
    """A running Prometheus."""

    address: str

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """The series that are the answer now, without their own names."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                found = json.load(answer)["data"]["result"]
        except OSError:
            return []
        return [({k: v for k, v in one["metric"].items() if k != "__name__"}, float(one["value"][1])) for one in found]

    def errors(self) -> dict[str, str]:
        """What the last scrape of each job failed with, by the job's name."""
        with urllib.request.urlopen(f"http://{self.address}/api/v1/targets", timeout=10) as answer:
            found = json.load(answer)["data"]["activeTargets"]
        return {one["labels"]["job"]: one["lastError"] for one in found}

    def nodes(self, query: str) -> list[str]:
        """The nodes of these series."""
        return sorted(labels["node"] for labels, _ in self.ask(query))

    def pending(self) -> set[str]:
        """The alerts that fire, or will if it stays so."""
        return {labels["alertname"] for labels, _ in self.ask("ALERTS")}


@contextmanager
def server(prometheus: Path, folder: Path, started: list[Agent]) -> Iterator[Server]:
    """With the example and the rules, at each second, and the addresses of *started*."""
    files = folder / "kubeadm-registry"
    files.mkdir()
    (files / "ca.crt").write_text(AUTHORITY.certificate)
    pem(files / "metrics.pem", pki.issue(AUTHORITY, "metrics", [], unit=pki.METRICS_UNIT))
    (files / RULES.name).write_bytes(RULES.read_bytes())
    config: dict[str, Any] = yaml.safe_load((MONITORING / "scrape-config.yaml").read_text())
    [job] = config["scrape_configs"]
    for target, agent in zip(job["static_configs"], started, strict=True):
        assert target["labels"] == {"node": agent.name}
        target["targets"] = [agent.endpoint]
    job["scrape_interval"] = "1s"
    config["global"] = {"evaluation_interval": "1s"}
    with running(prometheus, folder, config) as found:
        yield found


@contextmanager
def running(prometheus: Path, folder: Path, config: dict[str, Any]) -> Iterator[Server]:
    """By this *config*."""
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port(socket.SOCK_STREAM)}"
    argv = [
        str(prometheus),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(argv, stderr=log, stdout=log) as process:
        try:
            yield Server(address)
        finally:
            process.kill()


def test_prometheus_reads_the_agents_and_finds_a_lost_one(prometheus: Path, tmp_path: Path) -> None:
    with agents(tmp_path) as started, server(prometheus, tmp_path, started) as found:
        wait_until("all agents to be read", lambda: found.nodes("up == 1") == list(NAMES), seconds=60)
        wait_until(
            "each to hear the others",
            lambda: found.nodes("max by (node) (kubeadm_registry_agent_peer_level) < 3") == list(NAMES),
            seconds=60,
        )
        # There is no service behind them, so no node is healthy.
        wait_until(
            "the rules to be evaluated",
            lambda: [value for _, value in found.ask("job:kubeadm_registry_can_lose_a_node:bool")] == [0],
            seconds=60,
        )
        assert [value for _, value in found.ask("job:kubeadm_registry_nodes:max")] == [3]
        due = {"RegistryCannotLoseANode", "RegistryNoVIPHolder", "RegistryNodeUnhealthy"}
        others = {"RegistryNodeDown", "RegistryAgentSilent", "RegistryNoMajority", "RegistryNoWriter"}
        wait_until("the alerts for that alone", lambda: found.pending() & (due | others) == due, seconds=60)
        assert len(found.ask("kubeadm_registry_agent_ca_expires_seconds - time() > 9 * 365 * 86400")) == 3
        wait_until(
            "the free space to be read",
            lambda: found.nodes("kubeadm_registry_agent_data_free_bytes > 0") == list(NAMES),
            seconds=60,
        )

        started[2].process.kill()
        wait_until("cp-3 to be down", lambda: found.nodes("job_node:kubeadm_registry_down") == ["cp-3"], seconds=60)
        wait_until("its alert", lambda: "RegistryNodeDown" in found.pending(), seconds=60)
        # This rule comes after that of nodes that are down: until then what it found before is there.
        unread = "job_node:kubeadm_registry_unscraped"
        wait_until("no node to be up and unread", lambda: not found.nodes(unread), seconds=60)


@contextmanager
def port_of(folder: Path, name: str, served: pki.Pair) -> Iterator[int]:
    """Who asks for a certificate of ours there, as an agent does, gets a page."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.crt"))
    tls.load_cert_chain(pem(folder / f"{name}.pem", served))
    tls.verify_mode = ssl.CERT_REQUIRED
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as found:
        found.socket = tls.wrap_socket(found.socket, server_side=True)
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found.server_port
        found.shutdown()


def test_the_page_of_a_silent_agent_knows_whose_certificate_is_meant(prometheus: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text(AUTHORITY.certificate)
    past, other = timedelta(days=-1), pki.make_ca("registry")

    def node(authority: pki.Pair = AUTHORITY, lifetime: timedelta = -past) -> pki.Pair:
        return pki.issue(authority, "cp-1", ["127.0.0.1"], lifetime=lifetime)

    def metrics(authority: pki.Pair = AUTHORITY, lifetime: timedelta = -past) -> pki.Pair:
        return pki.issue(authority, "metrics", [], unit=pki.METRICS_UNIT, lifetime=lifetime)

    cases = {
        "certificate has expired": (node(lifetime=past), metrics(), "`kubeadm-registry init`"),
        "tls: expired certificate": (node(), metrics(lifetime=past), "`kubeadm-registry credentials --role metrics`"),
        "certificate signed by unknown authority": (node(other), metrics(), "`kubeadm-registry ca`"),
        "tls: unknown certificate authority": (node(), metrics(other), "`kubeadm-registry credentials --role metrics`"),
    }
    page = (MONITORING.parents[1] / "docs/alerts/RegistryAgentSilent.md").read_text().splitlines()
    jobs = []
    with ExitStack() as stack:
        for number, (words, (served, shown, remedy)) in enumerate(cases.items()):
            port = stack.enter_context(port_of(tmp_path, f"node-{number}", served))
            own = pem(tmp_path / f"metrics-{number}.pem", shown)
            files = {"ca_file": str(tmp_path / "ca.crt"), "cert_file": own, "key_file": own}
            jobs.append({"job_name": words, "scheme": "https", "scrape_interval": "1s", "scrape_timeout": "1s",
                         "tls_config": files, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]})  # fmt: skip
            assert [remedy in line for line in page if f"`{words}`" in line] == [True], words
        found = stack.enter_context(running(prometheus, tmp_path, {"scrape_configs": jobs}))
        wait_until("it to run", lambda: found.ask("vector(1)"), seconds=60)
        wait_until("each to fail", lambda: all(found.errors().values()), seconds=60)
        assert {words: error for words, error in found.errors().items() if words not in error} == {}
