"""What a lab looks like: its hosts, their addresses, and the paths where it lives."""

from __future__ import annotations

import hashlib
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.command import LabError

Family = Literal["4", "6", "dual"]
FRONTENDS = ("distribution", "zot")
"""Each has a lab of its own for the tests of the registry."""
BESIDE = (*FRONTENDS, "engine", "many", "again", "members", "recover", "readme")
"""The labs that tests boot beside the session's, by what the tests share."""

#: An address reserved for documentation (RFC 5737): nobody answers there, which is what a room without DNS offers.
#: Without any nameserver line no pod starts and CoreDNS ends at once.
NAMESERVER = "192.0.2.53"


@dataclass(frozen=True, slots=True)
class Settings:
    """How the hosts are to be; raises LabError if that cannot be."""

    hosts: int = 4
    """How many; they are called h1, h2 and so on."""
    without_python: tuple[str, ...] = ("h3",)
    suite: str = "trixie"
    user: str = "root"
    """Who logs in; anybody but root gets sudo without a password, and root's own log-in is closed."""
    ssh_port: int = 22
    interface: str = "eth0"
    family: Family = "dual"
    subnet: str = "10.88.0.0/24"
    subnet6: str = "fd88::/64"
    gateway: bool = False
    """A default route to the lab's bridge, which leads nowhere."""
    disk: str = "12G"
    """The size of each host's own disk; it takes the room of what is written."""

    def __post_init__(self) -> None:
        try:
            ipaddress.IPv4Network(self.subnet)
            ipaddress.IPv6Network(self.subnet6)
        except ValueError as error:
            raise LabError(f"not a network: {error}") from error
        if self.family not in ("4", "6", "dual"):
            raise LabError(f"family is 4, 6 or dual, not {self.family!r}")
        if not 1 <= self.hosts <= 80:
            raise LabError(f"a lab has 1 to 80 hosts, not {self.hosts}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"h{number}" for number in range(1, self.hosts + 1))

    def address(self, number: int) -> str | None:
        """The IPv4 address that ends in *number*; 1 is the bridge, 11 the first host. None in a lab with IPv6 only."""
        return None if self.family == "6" else str(ipaddress.IPv4Network(self.subnet)[number])

    def address6(self, number: int) -> str | None:
        """The IPv6 address that ends in the digits of *number*; None in a lab with IPv4 only."""
        return None if self.family == "4" else str(ipaddress.IPv6Network(self.subnet6)[int(str(number), 16)])

    def number(self, host: str) -> int:
        """The number in the addresses of *host*."""
        return 11 + self.names.index(host)

    def with_prefix(self, address: str | None) -> str:
        """*address* with the length of its network's prefix, as ``ip address add`` wants it; empty for None."""
        if address is None:
            return ""
        network = self.subnet6 if ":" in address else self.subnet
        return f"{address}/{network.partition('/')[2]}"


@dataclass(frozen=True, slots=True)
class Place:
    """A lab's directory; its last name is also the name of the network namespace and the prefix of the cgroups."""

    directory: Path

    @classmethod
    def default(cls) -> Place:
        """The directory from KUBEADM_REGISTRY_LAB."""
        return cls(Path(os.environ.get("KUBEADM_REGISTRY_LAB") or "/var/tmp/kubeadm-registry-lab").absolute())

    def beside(self, name: str) -> Place:
        """The place of another lab next to this one, for the tests that share *name*, one of BESIDE."""
        assert name in BESIDE, name  # else nobody would sweep it away
        return Place(self.directory.with_name(f"{self.directory.name}-{name[:4]}"))

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def tag(self) -> str:
        """Four digits that tell two labs' hosts of one name apart where this machine has one table for all."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:4]

    @property
    def state(self) -> Path:
        return self.directory / "state.json"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def hosts(self) -> Path:
        return self.directory / "hosts"

    @property
    def disks(self) -> Path:
        return self.directory / "disks"

    @property
    def memory(self) -> Path:
        """Where the disks are with KUBEADM_REGISTRY_LAB_DISKS=memory, for tests that measure no disk.

        A power cut loses what was not synced there as well, since it is the host's file system that loses it.
        """
        return Path(f"/dev/shm/{self.name}-disks")

    @property
    def consoles(self) -> Path:
        return self.directory / "consoles"

    @property
    def key(self) -> Path:
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"
