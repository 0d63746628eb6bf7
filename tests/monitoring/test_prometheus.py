"""A real Prometheus reads three real agents by the example, and evaluates the rules. The agents have no services."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
