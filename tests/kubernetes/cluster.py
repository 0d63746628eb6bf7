"""kubeadm, kubelet and kubectl on the registry's servers, as their documentation says."""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubeadm_registry.config.kubeadm import CA_HASH, CERTIFICATE_KEY, TOKEN
from tests.lab.command import LabError, wait_until
from tests.lab.host import Host
from tests.lab.programs import KUBERNETES, program
from tests.lab.registry import Registry

FILES = Path(__file__).parent / "files"
CRI = "unix:///run/containerd/containerd.sock"
#: Since 1.35 kubeadm calls control groups of version 1 an error, also where the kubelet is told to take them.
IGNORED = "--ignore-preflight-errors=SystemVerification"
CONFIGURATION = "/root/kubeadm.yaml"
PLUGINS = ("bridge", "host-local", "loopback")
#: What a machine of the lab's kind needs of Kubernetes; what a server has needs none of it.
MACHINE = """\
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
conntrack: {maxPerCore: 0, min: 0}   # nf_conntrack_max cannot be written in a host of the lab
"""
#: All that kubeadm and the kubelet keep, but not their programs, nor the network's configuration, which is ours.
DIRECTORIES = ("/etc/kubernetes", "/var/lib/kubelet", "/var/lib/etcd", "/var/lib/cni", "/root/.kube")


class Kubernetes:
    """Kubernetes on the servers of *registry*; every one of them is to be a control plane."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.begin = 0.0
        """When kubeadm init began, in seconds since 1970."""
        self.took: dict[str, float] = {}
        """What a step of the way to a cluster took, in seconds."""

    @property
    def servers(self) -> dict[str, Host]:
        """The registry's servers by name."""
        return self.registry.servers

    @property
    def first(self) -> Host:
        """The server where kubeadm init runs."""
        return next(iter(self.servers.values()))

    def on_each(self, work: Callable[[Host], Any]) -> dict[str, Any]:
        """Do *work* on all servers side by side; what each gave, by name."""
        with ThreadPoolExecutor(max_workers=len(self.servers)) as pool:
            return dict(zip(self.servers, pool.map(work, self.servers.values()), strict=True))

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long the ``with`` takes."""
        begin = time.monotonic()
        yield
        self.took[step] = time.monotonic() - begin

    # A server before kubeadm

    def prepare(self, host: Host) -> None:
        """Give *host* what kubeadm's documentation asks for: kubelet, a runtime, a network for pods."""
        for name in ("kubeadm", "kubelet", "kubectl", "crictl"):
            host.put(program(name), f"/usr/local/bin/{name}", mode="755")
        host.sh("mkdir", "-p", "/opt/cni/bin", "/etc/cni/net.d", "/etc/systemd/system/kubelet.service.d")
        for name in PLUGINS:
            host.put(program(name), f"/opt/cni/bin/{name}", mode="755")
        host.put(FILES / "containerd.toml", "/etc/containerd/config.toml")
        host.put(FILES / "kubelet.service", "/etc/systemd/system/kubelet.service")
        host.put(FILES / "10-kubeadm.conf", "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf")
        host.put(FILES / "lab-pods.service", "/etc/systemd/system/lab-pods.service")
        write(host, "/etc/crictl.yaml", f"runtime-endpoint: {CRI}\nimage-endpoint: {CRI}\n")
        write(host, "/etc/cni/net.d/10-lab.conflist", json.dumps(_pod_network(_number(host))))
        write(host, "/usr/local/sbin/lab-pods", self._routes(host), mode="755")
        host.sh("systemctl", "daemon-reload")
        host.sh("systemctl", "enable", "--quiet", "--now", "lab-pods", "kubelet")
        host.sh("systemctl", "restart", "containerd")

    def _routes(self, host: Host) -> str:
        """A script that leads what is for another host's pods to that host."""
        lines = ["#!/bin/sh -e", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"]
        for peer in self.registry.lab.hosts.values():
            if peer.name == host.name:
                continue
            networks = _pod_networks(_number(peer))
            for network, address in zip(networks, (peer.address, peer.address6), strict=True):
                lines.append(f"ip route replace {network} via {address}")
        return "\n".join(lines) + "\n"

    # kubeadm

    def configuration(self, host: Host, file: Path | None = None) -> str:
        """kubeadm's file for *host*: what our command line writes for a cluster file, and what this machine needs."""
        words = ("--file", file or self.registry.file, "--node", host.name)
        return self.registry.cli("config", "kubeadm", *words).stdout + MACHINE

    def init(self) -> None:
        """``kubeadm init`` on the first server."""
        host = self.first
        write(host, CONFIGURATION, self.configuration(host))
        self.begin = time.time()
        with self.timed("kubeadm init"):
            host.sh("kubeadm", "init", "--config", CONFIGURATION, "--upload-certs", IGNORED, timeout=480)

    def join(self, host: Host, file: Path | None = None) -> None:
        """``kubeadm join`` of *host* as a control plane; *file*: a cluster file that lists it, None: the registry's.

        The placeholders in our file are replaced by what the commands print that the file itself names.
        """
        upload = ("kubeadm", "init", "phase", "upload-certs", "--upload-certs", "--config", CONFIGURATION)
        key = self.first.sh(*upload).stdout.split()[-1]
        printed = self.first.sh("kubeadm", "token", "create", "--print-join-command").stdout
        found = re.search(r"--token (\S+) --discovery-token-ca-cert-hash (\S+)", printed)
        assert found, printed
        text = self.configuration(host, file)
        for placeholder, value in ((TOKEN, found[1]), (CA_HASH, found[2]), (CERTIFICATE_KEY, key)):
            text = text.replace(placeholder, value)
        write(host, CONFIGURATION, text, mode="600")
        with self.timed(f"kubeadm join of {host.name}"):
            host.sh("kubeadm", "join", "--config", CONFIGURATION, IGNORED, timeout=480)

    def join_worker(self, host: Host) -> None:
        """``kubeadm join`` of *host* as a worker, by the command that kubeadm prints for it."""
        printed = self.first.sh("kubeadm", "token", "create", "--print-join-command").stdout.split()
        host.sh(*printed, "--node-name", host.name, IGNORED, timeout=480)

    def pull_all(self, host: Host, repository: str = "") -> float:
        """``kubeadm config images pull`` on *host*, from *repository* if given; the seconds that it took."""
        options = [f"--kubernetes-version={KUBERNETES}", f"--cri-socket={CRI}"]
        options += [f"--image-repository={repository}"] if repository else []
        begin = time.monotonic()
        host.sh("kubeadm", "config", "images", "pull", *options, timeout=240)
        return time.monotonic() - begin

    def reset(self, host: Host) -> None:
        """Begin anew, as people do: kubeadm reset, its directories wiped, no image left, the firewall flushed."""
        host.sh("kubeadm", "reset", "--force", f"--cri-socket={CRI}", timeout=360)
        host.sh("systemctl", "stop", "kubelet", "containerd")
        host.sh("rm", "-rf", *DIRECTORIES)
        host.sh("find", "/var/lib/containerd", "-mindepth", "1", "-delete")
        host.sh("nft", "flush", "ruleset")
        host.sh("sh", "-c", "! command -v iptables || iptables -F")
        host.sh("systemctl", "start", "containerd", "kubelet")

    def admin_file(self, directory: Path) -> Path:
        """The administrator's kubeconfig, as a workstation has it."""
        file = directory / "admin.conf"
        file.write_text(self.first.sh("cat", "/etc/kubernetes/admin.conf").stdout)
        return file

    # kubectl

    def kubectl(
        self, *words: str, at: Host | None = None, stdin: str = "", timeout: float = 60, check: bool = True
    ) -> str:
        """What ``kubectl`` says on the server *at* (the first), which asks that server's own API."""
        host = at or self.first
        access = ("--kubeconfig=/etc/kubernetes/admin.conf", f"--server=https://{host.address}:6443")
        return host.sh("kubectl", *access, *words, stdin=stdin, timeout=timeout, check=check).stdout

    def get(self, *words: str, at: Host | None = None) -> dict[str, Any]:
        """The object that ``kubectl get`` finds."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *words, "--output=json", at=at))
        return found

    def deploy(self, name: str, image: str, *, replicas: int, seconds: float = 240) -> None:
        """A Deployment of *image*, as many pods on each server as on any other, and wait until all are ready."""
        labels = {"app": name}
        spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
        probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
        manifest = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "topologySpreadConstraints": [{**spread, "labelSelector": {"matchLabels": labels}}],
                        "containers": [{"name": "guest", "image": image, "readinessProbe": probe}],
                    },
                },
            },
        }
        self.kubectl("apply", "--filename=-", stdin=json.dumps(manifest))
        limit = f"--timeout={seconds:.0f}s"
        self.kubectl("rollout", "status", f"deployment/{name}", limit, timeout=seconds + 10)

    def wait_answering(self, host: Host, *, seconds: float = 240) -> None:
        """Wait until the API server of *host* says that it is ready."""

        def answers() -> bool:
            return self.kubectl("get", "--raw=/readyz", "--request-timeout=10s", at=host, check=False) == "ok"

        wait_until(f"the API of {host.name}", answers, seconds=seconds, every=0.5)

    def wait_ready(self, *, seconds: float = 240) -> None:
        """Wait until all nodes are ready, and CoreDNS with them."""
        limit = f"--timeout={seconds:.0f}s"
        self.kubectl("wait", "node", "--all", "--for=condition=Ready", limit, timeout=seconds + 10)
        self.kubectl("--namespace=kube-system", "rollout", "status", "deployment/coredns", limit, timeout=seconds + 10)

    def start(
        self, name: str, image: str, host: Host, *arguments: str, at: Host | None = None, once: bool = False
    ) -> None:
        """Ask for a pod *name* of *image* on *host*, *once* for one that stays dead; tries while the API has no leader.

        It asks for half a processor: one that asks for nothing hardly runs beside a busy control plane.
        """
        resources = {"requests": {"cpu": "500m"}}
        container = {"name": "guest", "image": image, "args": list(arguments), "resources": resources}
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": host.name},
                "restartPolicy": "Never" if once else "Always",
                "terminationGracePeriodSeconds": 1,
                "containers": [container],
            },
        }
        apply = ("apply", "--filename=-")
        said: list[str] = []

        def taken() -> bool:
            try:
                self.kubectl(*apply, at=at, stdin=json.dumps(manifest), timeout=30)
            except LabError as error:
                said[:] = [str(error)]
                return False
            return True

        try:
            wait_until(f"the API to take {name}", taken, seconds=180, every=0.5)
        except LabError as error:
            raise LabError(f"{error}: {''.join(said)}") from error

    def wait_running(self, name: str, *, at: Host | None = None, seconds: float = 180) -> None:
        """Wait until the pod *name* is ready. Raises LabError with what is known about it."""
        limit = f"--timeout={seconds:.0f}s"
        try:
            self.kubectl("wait", f"pod/{name}", "--for=condition=Ready", limit, at=at, timeout=seconds + 10)
        except LabError as error:
            described = self.kubectl("describe", "pod", name, at=at, check=False)
            raise LabError(f"{error}\n{described[-2000:]}") from error

    def delete(self, name: str, *, at: Host | None = None) -> None:
        """Take the pod *name* away, if it is there, and wait until it is gone."""
        self.kubectl("delete", "pod", name, "--ignore-not-found", "--now", at=at, timeout=240)

    @contextmanager
    def pod(
        self, name: str, image: str, host: Host, *arguments: str, at: Host | None = None, once: bool = False
    ) -> Iterator[None]:
        """A pod for the length of a ``with``."""
        self.start(name, image, host, *arguments, at=at, once=once)
        try:
            yield
        finally:
            self.delete(name, at=at)


def write(host: Host, path: str, text: str, *, mode: str = "644") -> None:
    """Write *text* to the file *path* of *host*."""
    host.sh("sh", "-c", 'cat > "$1" && chmod "$2" "$1"', "-", path, mode, stdin=text)


def images_of(host: Host) -> list[str]:
    """The names of all images that *host*'s containerd has for Kubernetes."""
    listed = host.sh("ctr", "--namespace=k8s.io", "images", "ls", "--quiet").stdout.split()
    return [name for name in listed if not name.startswith("sha256:") and "@" not in name]


def empty(host: Host) -> bool:
    """Whether *host*'s containerd has no image, and nothing of one."""
    return not images_of(host) and not host.sh("ctr", "--namespace=k8s.io", "content", "ls", "--quiet").stdout.split()


def pull(host: Host, name: str, *, check: bool = True) -> tuple[float, str]:
    """Pull *name* as the kubelet does; the seconds that it took, and what was said of a failure (empty: none)."""
    begin = time.monotonic()
    result = host.sh("crictl", "pull", name, timeout=180, check=check)
    return time.monotonic() - begin, result.stderr if result.returncode else ""


def _number(host: Host) -> int:
    """The number of *host* among the lab's, from 1."""
    return int(host.name.removeprefix("h"))


def _pod_networks(number: int) -> tuple[str, str]:
    """The networks of the pods of the host *number*, in those that our kubeadm file names."""
    return f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"


def _pod_network(number: int) -> dict[str, object]:
    """CNI's configuration for the host *number*."""
    ranges = [[{"subnet": network}] for network in _pod_networks(number)]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    }
    return {"cniVersion": "1.0.0", "name": "lab", "plugins": [bridge]}


def ways_out(host: Host, addresses: Sequence[str] = ("192.0.2.1", "2001:db8::1")) -> list[str]:
    """How *host* would reach the world: for each of *addresses* that it has a route to, that route."""
    found = []
    for address in addresses:
        family = f"-{ipaddress.ip_address(address).version}"
        found += host.sh("ip", family, "route", "get", address, check=False).stdout.splitlines()
    return found
