"""The tool as people carry it to a server that has nothing but SSH: a bundle, a key and the cluster file."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.host import Host
from tests.lab.registry import Registry

FOLDER = "/root/carried"
#: Unpacks the tool; a key that others may read is refused by ssh.
_UNPACK = (
    "cd -- $1; tar -xOf bundle.tar unpack.sh | sh -s bundle.tar tool; chmod 600 key; ssh-keygen -y -f key > key.pub"
)


@dataclass(frozen=True, slots=True)
class Carried:
    """The tool on *host*."""

    registry: Registry
    host: Host

    def run(self, *arguments: str, check: bool = True, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        """Run it with the cluster file and host keys as they are now. Raises LabError if *check* and it fails."""
        return self.host.sh(*self._command(*arguments), check=check, timeout=timeout)

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it, with its output as text in pipes."""
        argv = self.host.sh_argv(*self._command(*arguments))
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def _command(self, *arguments: str) -> tuple[str, ...]:
        ssh = {"ssh.identityFile": "key", "ssh.knownHostsFile": "known_hosts"}
        self.host.put(self.registry.write_file(ssh, name="carried.yaml"), f"{FOLDER}/cluster.yaml")
        self.host.put(self.registry.lab.place.known_hosts, f"{FOLDER}/known_hosts")
        script = 'cd -- "$1"; shift; exec tool/bin/kubeadm-registry "$@"'
        return ("sh", "-ec", script, "carried", FOLDER, *arguments)

    def put(self, source: Path) -> str:
        """Carry a file there as well; its name for ``run``."""
        self.host.put(source, f"{FOLDER}/{source.name}", mode="600")
        return source.name


@contextmanager
def carried(registry: Registry, host: Host, bundle: Path) -> Iterator[Carried]:
    """Have the tool out of *bundle* on *host* for the length of a ``with``; the bundle lies beside it."""
    place = registry.lab.place
    host.sh("mkdir", "-m", "700", FOLDER)
    try:
        for name, source in {"bundle.tar": bundle, "key": place.key}.items():
            host.put(source, f"{FOLDER}/{name}")
        host.sh("sh", "-ec", _UNPACK, "unpack", FOLDER, timeout=120)
        yield Carried(registry, host)
    finally:
        host.sh("rm", "-rf", FOLDER)
