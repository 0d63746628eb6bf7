"""Every command of the RUNBOOK on each server, run there as it stands in the file; section 8 is in test_rescue.py."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry import paths
from kubeadm_registry.components.runbook import PATH
from kubeadm_registry.formats import KEY as FORMAT_KEY
from kubeadm_registry.oci import canary
from tests.lab import images
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

#: Programs that the lab's hosts lack: this machine's own runs in the host's network, with the host's files.
BORROWED = ("curl",)


class Book:
    """The RUNBOOK of one server: its set-in lines by section, and which of them were run."""

    def __init__(self, host: Host, scratch: Path) -> None:
        self.host = host
        self.text = host.sh("cat", PATH).stdout
        self.sections: dict[int, list[str]] = {}
        self.scratch = scratch
        self.ran: set[str] = set()
        section = 0
        for line in self.text.splitlines():
            if found := re.match(r"(\d+)\. ", line):
                section = int(found[1])
            if line.startswith("    ") and not line.startswith("    - "):
                self.sections.setdefault(section, []).append(line.strip())

    def lines(self, section: int, part: str = "") -> list[str]:
        """The commands of *section* that have *part* in them."""
        found = [line for line in self.sections[section] if part in line]
        assert found, f"section {section} has no {part!r}"
        return found

    def run(self, *lines: str, check: bool = True, timeout: float = 120, folder: str = "/run") -> str:
        """Run *lines* in one shell in *folder* of the host; what it printed."""
        self.ran |= set(lines)
        script = "\n".join(lines)
        if any(re.search(rf"\b{name} ", script) for name in BORROWED):
            root = self.host.root
            script = script.replace("/etc/kubeadm-registry", f"{root}/etc/kubeadm-registry")
            argv = self.host.network_argv("sh", "-e", "-c", script)
            done = subprocess.run(argv, cwd=self.scratch, capture_output=True, text=True, timeout=timeout, check=False)
            assert not check or done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
            return done.stdout
        return self.host.sh("sh", "-e", "-c", f"cd {folder}\n{script}", check=check, timeout=timeout).stdout


@pytest.fixture
def books(registry: Registry, tmp_path: Path) -> Iterator[dict[str, Book]]:
    """The RUNBOOK of each server."""
    yield {name: Book(host, tmp_path) for name, host in registry.servers.items()}
    registry.wait_whole(120)


def reads(registry: Registry, address: str = "") -> bool:
    """Whether the known object can be read at *address* (the VIP)."""
    try:
        with registry.lab.network(), images.client(registry, address=address, timeout=5) as at:
            return at.blob(canary.REPOSITORY, canary.LAYER.digest) == canary.LAYER.content
    except Exception:  # whatever is wrong, it is asked again
        return False


def test_it_tells_and_hides(registry: Registry, books: dict[str, Book]) -> None:
    assert registry.servers["h1"].sh("stat", "-c", "%a %U:%G", PATH).stdout.strip() == "644 root:root"
    secrets = json.loads(registry.servers["h1"].sh("cat", f"{paths.ETC}/secrets.json").stdout)
    public = (FORMAT_KEY, "generation", "made", "ca_certificate", "node_keys", "s3_key_id")
    for name, book in books.items():
        assert f", node {name}\n" in book.text
        for host in registry.servers.values():
            assert host.address in book.text
        assert [key for key, value in secrets.items() if key not in public and value in book.text] == []
        assert [key for key in secrets["node_keys"].values() if key[:64] in book.text] == []


def test_who_holds_it_is_it_well_and_a_blob_by_hand(registry: Registry, books: dict[str, Book]) -> None:
    holders = [name for name, book in books.items() if book.run(*book.lines(2))]
    assert holders == registry.holders()
    for book in books.values():
        for line in book.lines(3):
            said = book.run(line)
            if "healthz" in line:
                assert said.strip() == "ok"
            elif "manifests" in line:
                assert json.loads(said) == json.loads(canary.MANIFEST.content)
        health = json.loads(book.run(*book.lines(3, "GetClusterHealth")))
        assert health["storageNodesUp"] == 3
        wanted = canary.LAYER.digest.removeprefix("sha256:")
        *way, check = book.lines(6)
        one, two = way[: way.index(next(line for line in way if "--check" in line)) + 1], way[3:]
        assert "blob: OK" in book.run(*one)
        assert wanted in book.run(*two, check)
        assert [line for section in (2, 3, 6) for line in book.lines(section) if line not in book.ran] == []
        assert set(book.sections) == {2, 3, 4, 5, 6, 7, 8}, "no command is anywhere else"


def test_stop_and_start(registry: Registry, books: dict[str, Book]) -> None:
    holder = registry.holder()
    book = books[holder.name]
    book.run(*book.lines(4, "stop"))
    wait_until("another holder", lambda: registry.holders() not in ([], [holder.name]), seconds=30)
    wait_until("reads at the virtual IP", lambda: reads(registry), seconds=30)
    running = holder.sh(
        "systemctl", "list-units", "--plain", "--no-legend", "--state=running", f"{paths.PREFIX}*"
    ).stdout
    assert running == ""
    book.run(*book.lines(4, "start"))
    registry.wait_whole(120)
    assert [line for line in book.lines(4) if line not in book.ran] == []


def test_the_virtual_ip_by_hand(registry: Registry, books: dict[str, Book]) -> None:
    image = images.image((100_000,), seed=time.time_ns())
    chosen = registry.others(registry.holder())[0]
    stop = books["h1"].lines(5, "systemctl stop")
    for book in books.values():
        book.run(*stop)
    wait_until("nobody has it", lambda: registry.holders() == [], seconds=30)
    book = books[chosen.name]
    book.run(*book.lines(5, "address add"), *book.lines(5, "arping"), *book.lines(5, "ping -6"))
    assert registry.holders() == [chosen.name]
    wait_until("reads at the virtual IP", lambda: reads(registry), seconds=30)
    wait_until("its agent knows", lambda: bool(registry.state(chosen).get("vip", {}).get("held")), seconds=30)
    images.push(registry, image, "runbook/by-hand")
    assert not images.missing(registry, image, "runbook/by-hand")
    book.run(*book.lines(5, "address del"))
    for other in books.values():
        other.run(*other.lines(5, "systemctl start"))
    registry.wait_whole(120)
    assert [line for line in book.lines(5) if line not in book.ran] == []


def test_two_servers_are_lost(registry: Registry, books: dict[str, Book]) -> None:
    """The one that is left reads its copy once it was told to, and not before."""
    left, *lost = registry.servers.values()
    for host in lost:
        host.power_cut()
    book = books[left.name]
    assert not reads(registry, left.address)
    book.run(*book.lines(7)[:2])
    begin = time.monotonic()
    wait_until("reads from one copy", lambda: reads(registry, left.address), seconds=60, every=0.5)
    print(f"\n  {registry.frontend}: one copy is read {time.monotonic() - begin:.1f} s after")
    wait_until("reads at the virtual IP", lambda: reads(registry), seconds=60, every=0.5)
    for host in lost:
        host.power_on()
    book.run(*book.lines(7)[2:])
    registry.wait_whole(120)
    assert [line for line in book.lines(7) if line not in book.ran] == []
    assert registry.json("init", "--dry-run")[-1]["summary"] == "nothing to do", "the file is as it was"
