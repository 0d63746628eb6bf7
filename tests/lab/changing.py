"""A registry whose members change, and images in it that everything is tried with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from kubeadm_registry import members, paths
from kubeadm_registry.oci import canary
from tests.lab import images
from tests.lab.clients import Pushing
from tests.lab.fresh import fresh_lab
from tests.lab.host import Host
from tests.lab.reading import Object, Reading
from tests.lab.registry import Registry, bundle, skip_without
from tests.lab.settings import Place, Settings

KNOWN = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)
REPOSITORY = "team/app"
PATIENCE = 20.0
#: As HAProxy and Distribution write of a request, and Garage of any.
_SUCCEEDED = re.compile(r'"status":[23]|status=[23]\d\d|"response completed"|INFO garage_api')
"""Seconds after which a request of containerd has failed: it tries again, and waits as long for an answer."""


class Changing(Registry):
    """A registry whose members change."""

    names: tuple[str, ...] = ("h1", "h2", "h3")

    @property
    def servers(self) -> dict[str, Host]:
        return {name: self.lab.hosts[name] for name in self.names}

    def become(self, *names: str) -> None:
        """From now on the cluster file lists these hosts."""
        self.names = names
        self.write_file()

    def flaws(self) -> list[str]:
        """Storages also know nodes that have left, or are connected to more than three."""
        found = [flaw for flaw in super().flaws() if ": storage {" not in flaw]
        for host in self.servers.values():
            health = self.garage(host)
            if health.get("storageNodesUp") != len(self.names) or health["partitionsAllOk"] != health["partitions"]:
                found.append(f"{host.name}: storage {health or 'does not answer'}")
        return found

    def listed(self, host: Host) -> members.Members:
        """The list of members that *host* has."""
        return members.parse(host.sh("cat", members.PATH).stdout.encode())


@contextmanager
def changing(place: str, frontend: str, directory: Path, *, hosts: int = 6) -> Iterator[Changing]:
    """Such a registry with *frontend* on the first of so many *hosts*, whole, for the length of a ``with``."""
    skip_without(frontend)
    bundle(frontend)
    with fresh_lab(Place.default().beside(place), Settings(hosts=hosts)) as lab:
        registry = Changing(lab, frontend, directory)
        registry.install()
        registry.wait_whole()
        yield registry


@cache
def all_images() -> tuple[images.Image, ...]:
    """What ``push_all`` pushes."""
    return tuple(images.image((3_000_000, 1_500_000), seed=number) for number in range(8))


def push_all(registry: Changing) -> None:
    """Push the images."""
    with registry.lab.network():
        for number, image in enumerate(all_images()):
            images.push(registry, image, REPOSITORY, f"v{number}")


def check_all(registry: Changing) -> None:
    """Every image is complete, at the VIP and at each member."""
    registry.wait_copied()
    for address in ("", *(host.address for host in registry.servers.values())):
        for image in all_images():
            lost = images.missing(registry, image, REPOSITORY, address=address)
            assert not lost, f"{address}: {lost}"


def removed(host: Host) -> bool:
    """Whether the agent of *host* knows that it has left."""
    state = json.loads(host.sh("cat", f"{paths.RUN}/agent/state.json", check=False).stdout or "{}")
    return "Removed" in state.get("conditions", ())


def holds_vip(registry: Changing, host: Host) -> bool:
    """Whether *host*, a member or not, has the VIP."""
    return bool(host.sh("ip", "-o", "address", "show", "to", registry.vip).stdout)


def around_failures(registry: Registry, reads: Reading, pushes: Pushing) -> Iterator[str]:
    """For each read and push that failed, what our units on all hosts that are on wrote within two seconds of its end,
    but for requests that succeeded."""
    ends = [one.begin + one.seconds for one in reads.failed] + [one.begin + one.seconds for one in pushes.failed]
    for end in ends:
        argv = (
            "journalctl", "--no-pager", "--quiet", "--output=short-precise", "--unit=kubeadm-registry*",
            f"--since=@{end - 2:.3f}", f"--until=@{end + 2:.3f}",
        )  # fmt: skip
        lines = []
        for host in registry.lab.hosts.values():
            if host.state == "on":
                lines += host.sh(*argv, check=False).stdout.splitlines()
        yield "".join(f"{line}\n" for line in sorted(lines) if not _SUCCEEDED.search(line))
