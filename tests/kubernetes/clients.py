"""What people do beside a cluster's own work: they push an image, pull one over and over, show a figure."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kubeadm_registry import paths
from kubeadm_registry.registry.retries import retry
from tests.kubernetes import images
from tests.kubernetes.cluster import Kubernetes, pull
from tests.lab.host import Host
from tests.lab.images import push
from tests.lab.registry import Registry


def say(kubernetes: Kubernetes, text: str) -> None:
    """Show a figure."""
    sys.stdout.write(f"\n  {kubernetes.registry.frontend}: {text}\n")


def pushed(registry: Registry, mark: str) -> str:
    """Push an image of the tests' program that no host has seen; its name for a pod."""
    image = images.guest(mark)
    retry(lambda: push(registry, image, "tests/guest", mark), 30)  # as clients do, while a control plane starts
    return f"{registry.vip}:{paths.REGISTRY_PORT}/tests/guest:{mark}"


@dataclass
class Pulls:
    """What hosts pulled over and over: seconds of each pull, and what was said of those that failed."""

    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{len(self.seconds)} pulls by the others, {len(self.failed)} failed, slowest {max(self.seconds):.1f} s"


@contextmanager
def pulling(hosts: Sequence[Host], image: str) -> Iterator[Pulls]:
    """Pull *image* on *hosts*, remove it, pull it again after a moment, for the length of a ``with``."""
    pulls, stop = Pulls(), threading.Event()

    def work(host: Host) -> None:
        while not stop.wait(0.5):
            seconds, error = pull(host, image, check=False)
            pulls.seconds.append(seconds)
            if error:
                pulls.failed.append(f"{host.name}: {error}")
            host.sh("crictl", "rmi", image, check=False)

    threads = [threading.Thread(target=work, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    try:
        yield pulls
    finally:
        stop.set()
        for thread in threads:
            thread.join()
