"""The lab's network: a bridge in a namespace of its own without an uplink, whose ports can be cut and silenced."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.lab.command import run
from tests.lab.settings import Settings

CLONE_NEWNET = 0x40000000
BRIDGE = "br0"

#: Frames from a port in ``silent`` or to it are lost, also those to the bridge's own address;
#: so are those from the first to the second port of a pair in ``cut``.
RULES = """
table bridge lab {
  set cut { type ifname . ifname; }
  set silent { type ifname; }
  chain input { type filter hook input priority 0; iifname @silent drop; }
  chain output { type filter hook output priority 0; oifname @silent drop; }
  chain forward {
    type filter hook forward priority 0;
    iifname @silent drop; oifname @silent drop; iifname . oifname @cut drop;
  }
}
"""

_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """The network namespace *name* with the bridge in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns") / name

    def up(self, settings: Settings) -> None:
        """Make the namespace and the bridge, with the first address of each network."""
        run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
        self.run("ip", "link", "set", BRIDGE, "up")
        for address in (settings.address(1), settings.address6(1)):
            if address:
                nodad = ["nodad"] if ":" in address else []
                self.run("ip", "address", "add", settings.with_prefix(address), "dev", BRIDGE, *nodad)
        self.run("nft", "-f", "-", stdin=RULES)

    def down(self) -> None:
        """End what runs in the namespace and remove it."""
        if not self.path.exists():
            return
        for pid in run("ip", "netns", "pids", self.name, check=False).stdout.split():
            if int(pid) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for line in self.run("ip", "-o", "link", "show", "type", "veth").splitlines():
            self.remove_port(line.split()[1].partition("@")[0].rstrip(":"))
        run("ip", "netns", "delete", self.name)

    def argv(self, *argv: str | Path) -> list[str]:
        """The command that runs *argv* in this network."""
        return ["nsenter", f"--net={self.path}", "--", *map(str, argv)]

    def run(self, *argv: str | Path, stdin: str = "") -> str:
        """Run *argv* in this network and return its output; raises LabError if it fails."""
        return run(*self.argv(*argv), stdin=stdin).stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let the calling thread, and what it starts meanwhile, be in this network; other threads stay where they are.

        A socket belongs to the network in which it was made, also after the thread has left it.
        """
        with Path("/proc/thread-self/ns/net").open("rb") as home, self.path.open("rb") as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def remove_port(self, port: str) -> None:
        """Take a port away with all packets in it. A dead host's port can otherwise outlive it by a minute."""
        run(*self.argv("ip", "link", "delete", port), check=False)

    def plug(self, port: str, *, plugged: bool) -> None:
        """Put the cable in or pull it out; the host sees its carrier come and go."""
        self.run("ip", "link", "set", port, "up" if plugged else "down")

    def silence(self, port: str, *, silent: bool) -> None:
        """Let the port pass nothing, or everything again; the host keeps its carrier."""
        self._element("silent", f'"{port}"', there=silent)

    def cut(self, source: str, target: str) -> None:
        """Lose what comes from one port for another."""
        self._element("cut", f'"{source}" . "{target}"', there=True)

    def heal_cuts(self) -> None:
        """Lose nothing between ports any more."""
        self.run("nft", "flush", "set", "bridge", "lab", "cut")

    def _element(self, name: str, element: str, *, there: bool) -> None:
        lines = [f"add element bridge lab {name} {{ {element} }}"]
        if not there:  # adding what is there is no error, deleting what is not there is one
            lines.append(f"delete element bridge lab {name} {{ {element} }}")
        self.run("nft", "-f", "-", stdin="\n".join(lines) + "\n")


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
