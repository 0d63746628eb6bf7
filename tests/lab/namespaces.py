"""Network namespaces joined by a bridge: what only the kernel's network stack decides, without hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.lab.command import run


class Namespace:
    """One host of the network, which has nothing but a network stack of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def argv(self, *command: str) -> list[str]:
        """The command that runs *command* there."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run *command* there to its end."""
        return subprocess.run(self.argv(*command), check=check, capture_output=True, text=True, timeout=30, **options)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start *command* there."""
        return subprocess.Popen(self.argv(*command), text=True, **options)

    def python(self, code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Python there, on *code*."""
        return self.run(sys.executable, "-I", "-c", code, *arguments, **options)


@contextmanager
def network(addresses: Mapping[str, str]) -> Iterator[dict[str, Namespace]]:
    """A namespace for each name of *addresses*, with that address (and its prefix length) on ``eth0``.

    Needs root. All are in one layer 2, which this machine is not in.
    """
    mark = f"kr{os.getpid()}"
    bridge = Namespace(f"{mark}-bridge")
    made = {name: Namespace(f"{mark}-{name}") for name in addresses}
    try:
        run("ip", "netns", "add", bridge.name)
        bridge.run("ip", "link", "add", "br0", "type", "bridge")
        bridge.run("ip", "link", "set", "br0", "up")
        for number, (name, host) in enumerate(made.items()):
            run("ip", "netns", "add", host.name)
            peer = ("peer", "name", "eth0", "netns", host.name)
            bridge.run("ip", "link", "add", f"port{number}", "master", "br0", "type", "veth", *peer)
            bridge.run("ip", "link", "set", f"port{number}", "up")
            nodad = ("nodad",) if ":" in addresses[name] else ()
            host.run("ip", "address", "add", addresses[name], "dev", "eth0", *nodad)
            for device in ("lo", "eth0"):
                host.run("ip", "link", "set", device, "up")
        yield made
    finally:
        for host in (*made.values(), bridge):
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)
