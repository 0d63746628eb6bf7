"""Replicas of the operator as processes on this host, and what the API server's audit log says they did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kubeadm_registry.custom_resources.deployment import ALLOCATOR
from kubeadm_registry.custom_resources.names import NAMESPACE
from kubeadm_registry.custom_resources.roles import LEASE
from tests.operator.apiserver import ApiServer, free_port
from tests.operator.site import Site

ROOT = Path(__file__).parents[2]
DIALLED = Path(__file__).with_name("dialled.py")
#: Seconds of a lease: short, but longer than this machine needs for a request while it has other work.
DURATION = 10.0
WRITES = {"create", "update", "patch", "delete", "deletecollection"}
POLICY = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}
OBJECTS: tuple[Mapping[str, Any], ...] = (
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
    {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LEASE, "namespace": NAMESPACE}},
)


def audited(folder: Path) -> tuple[str, ...]:
    """Flags by which an API server writes each request to ``folder/audit.log``."""
    (folder / "audit.yaml").write_text(yaml.safe_dump(POLICY))
    return (f"--audit-policy-file={folder / 'audit.yaml'}", f"--audit-log-path={folder / 'audit.log'}",
            "--audit-log-mode=blocking")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was answered: who sent it, when it came (RFC 3339 with microseconds), and what for."""

    agent: str
    when: str
    verb: str
    uri: str
    status: int

    @property
    def wrote(self) -> bool:
        """Whether something changed by it."""
        return self.verb in WRITES and self.status < 300


def requests(folder: Path) -> list[Request]:
    """All in the log of *folder*."""
    found = []
    for line in (folder / "audit.log").read_text().splitlines():
        event = json.loads(line)
        if event["stage"] == "ResponseComplete":
            found.append(Request(event.get("userAgent", ""), event["requestReceivedTimestamp"], event["verb"],
                                 event["requestURI"], event["responseStatus"]["code"]))  # fmt: skip
    return found


def agent(name: str) -> str:
    """What the log calls the replica *name*."""
    return f"kubeadm-registry-operator/{name}"


class Replica:
    """A running replica."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, port: int) -> None:
        self.name = name
        self.process = process
        self.port = port
        self._log = log

    @property
    def log(self) -> str:
        """What it said so far."""
        return self._log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether it is there, stopped or not."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        self.process.send_signal(number)


@contextmanager
def replica(
    server: ApiServer, folder: Path, name: str, *, kubeconfig: Path | None = None, site: Site | None = None,
    source: Path = ROOT, **more: str,
) -> Iterator[Replica]:  # fmt: skip
    """A replica until the block ends, which logs in by *kubeconfig* or as the operator; *more* are settings.

    With a *site* it has the Secret and reaches the nodes. *source* is the checkout of another release.
    """
    port = free_port()
    files = folder / "files" if site is None else site.secret
    command = ["-m", "kubeadm_registry.operator"] if site is None else ["-P", str(DIALLED), site.dialled]
    settings = {"NAME": name, "LEASE_SECONDS": str(DURATION), "PORT": str(port), "FILES": str(files),
                "HEALTH_SECONDS": "1", **more}  # fmt: skip
    environment = {f"KUBEADM_REGISTRY_OPERATOR_{key}": value for key, value in settings.items()}
    log = folder / f"{name}.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", sys.executable, *command],
            env={**os.environ, **ALLOCATOR, **environment, "PYTHONPATH": str(source),
                 "KUBECONFIG": str(kubeconfig or server.kubeconfig("operator"))},
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield Replica(name, process, log, port)
        except BaseException:
            sys.stderr.write(log.read_text(errors="replace")[-4000:])
            raise
        finally:
            process.kill()
            process.wait()


def lease(server: ApiServer) -> dict[str, str]:
    """What the lease says; nothing where there is none."""
    found: dict[str, str] = server.get("lease", LEASE, f"--namespace={NAMESPACE}").get("spec", {})
    return found


def holder(server: ApiServer) -> str:
    """Who has the lease."""
    return lease(server).get("holderIdentity", "")
