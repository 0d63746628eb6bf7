"""The lab: hosts on one switch, cut off from the world."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.lab import cgroups, machine
from tests.lab.command import LabError, locked, mounts, run
from tests.lab.disk import Disk
from tests.lab.host import Host
from tests.lab.mounts import Mounts
from tests.lab.network import Network
from tests.lab.settings import Place, Settings
from tests.lab.system import System, system


class Lab:
    """A lab that is up.

    A lab started by this process is locked until ``down`` or this process's end, so that nobody else takes it down.
    """

    def __init__(self, place: Place, settings: Settings, layers: System) -> None:
        self.place = place
        self.settings = settings
        self._network = Network(place.name)
        self._mounts = Mounts(place)
        self._lock = contextlib.ExitStack()
        self.hosts = {
            name: Host(
                name,
                place,
                settings,
                self._network,
                self._mounts,
                layers.layers(python=name not in settings.without_python),
            )
            for name in settings.names
        }

    @classmethod
    def up(cls, settings: Settings | None = None, *, place: Place | None = None, started_by: str = "hand") -> Lab:
        """Start a lab and wait until sshd of every host lets us in; nothing is left of it if that fails.

        Raises LabError if this machine cannot have one, or if one is up in that place.
        """
        place, settings = place or Place.default(), settings or Settings()
        if problems := machine.problems():
            raise LabError("; ".join(problems))
        lock = contextlib.ExitStack()
        lock.enter_context(locked(place.lock, wait=False))
        with contextlib.ExitStack() as undo:
            undo.push(lock)
            if place.state.exists():
                raise LabError(f"a lab is up in {place.directory}; python -m tests.lab down ends it")
            base = system(settings.suite)
            lab = cls(place, settings, base)
            undo.callback(sweep, place)
            state = {"started_by": started_by, "system": str(base.path), "settings": asdict(settings)}
            place.state.write_text(json.dumps(state, indent=2))
            lab._start()
            undo.pop_all()
        lab._lock = lock
        return lab

    @classmethod
    def open(cls, place: Place | None = None) -> Lab:
        """The lab that is up in *place*; raises LabError if none is."""
        place = place or Place.default()
        if not place.state.exists():
            raise LabError(f"no lab is up in {place.directory}; python -m tests.lab up starts one")
        state: dict[str, Any] = json.loads(place.state.read_text())
        values = state["settings"]
        values["without_python"] = tuple(values["without_python"])
        return cls(place, Settings(**values), System(Path(state["system"])))

    def down(self) -> None:
        """End the lab: no process, mount, disk, control group or namespace of it stays."""
        with self._lock:
            sweep(self.place)

    def forsake(self) -> None:
        """Leave the lab as it is, as a process does that is killed."""
        self._lock.close()

    @property
    def namespace(self) -> Path:
        """The lab's network namespace, in which the bridge has the first address of each network."""
        return self._network.path

    def address(self, number: int) -> str:
        """An address of the lab's network, IPv4 where it has that; 100 and above are free."""
        return self.settings.address(number) or str(self.settings.address6(number))

    def address6(self, number: int) -> str | None:
        """An IPv6 address of the lab's network; None in a lab without."""
        return self.settings.address6(number)

    def network(self) -> contextlib.AbstractContextManager[None]:
        """Put the calling thread into the lab's network for the length of a ``with``.

        Sockets made there stay there, and so do threads and processes started there. Other threads are not moved.
        """
        return self._network.entered()

    def argv(self, *argv: str | Path) -> list[str]:
        """The command that runs *argv* of this machine in the lab's network."""
        return self._network.argv(*argv)

    def run(
        self, *argv: str | Path, check: bool = True, timeout: float = 60, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine in the lab's network."""
        return run(*self.argv(*argv), check=check, timeout=timeout, stdin=stdin)

    def popen(self, *argv: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command of this machine in the lab's network; *options* are those of ``subprocess.Popen``."""
        return subprocess.Popen(self.argv(*argv), **options)

    def cut_link(self, source: str, target: str, *, one_way: bool = False) -> None:
        """Lose all frames between two hosts, or only those from *source* to *target*; the rest passes."""
        first, second = self.hosts[source].port, self.hosts[target].port
        self._network.cut(first, second)
        if not one_way:
            self._network.cut(second, first)

    def heal_links(self) -> None:
        """Lose nothing between hosts any more."""
        self._network.heal_cuts()

    def restore(self) -> None:
        """Undo all faults: links, cables, pauses, power."""
        self.heal_links()
        for host in self.hosts.values():
            host.resume()
            host.heal()
        off = [host for host in self.hosts.values() if host.state == "off"]
        for host in off:
            host.start()
        for host in off:
            host.wait_ready()

    def _start(self) -> None:
        place = self.place
        for directory in (place.hosts, place.consoles):
            directory.mkdir()
        if os.environ.get("KUBEADM_REGISTRY_LAB_DISKS") == "memory":
            place.memory.mkdir(mode=0o700)
            place.disks.symlink_to(place.memory)
        else:
            place.disks.mkdir()
        machine.save_sysctls(place.name)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", place.name, "-f", place.key)
        place.ssh_config.write_text(self._ssh_config())
        # First: a machine's first network namespace makes /run/netns a mount of its own. Where the root is not shared,
        # the lab's mount namespace has that only if it is the younger one.
        self._network.up(self.settings)
        self._mounts.up()
        hosts = list(self.hosts.values())
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(Host.install, hosts))
        for host in hosts:
            host.write_identity()
            host.start()
        for host in hosts:
            host.wait_ready()

    def _ssh_config(self) -> str:
        settings, place = self.settings, self.place
        lines = []
        for host in self.hosts.values():
            lines += [f"Host {host.name}", f"    HostName {host.address}"]
        lines += [
            "Host *",
            f"    User {settings.user}",
            f"    Port {settings.ssh_port}",
            f"    IdentityFile {place.key}",
            "    IdentitiesOnly yes",
            f"    UserKnownHostsFile {place.known_hosts}",
            "    GlobalKnownHostsFile /dev/null",
            "    StrictHostKeyChecking yes",
            "    BatchMode yes",
            "    ConnectTimeout 5",
            "    LogLevel ERROR",
        ]
        return "\n".join(lines) + "\n"


def started_by(place: Place) -> str | None:
    """Who started the lab that is up in *place*: ``hand`` or ``tests``; None if none is up."""
    try:
        return str(json.loads(place.state.read_text())["started_by"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):  # killed while writing it
        return "tests"


def sweep(place: Place) -> None:
    """Remove all of a lab, whole or half made, also one whose process was killed.

    Goes on where something fails, so that as little as possible stays, and raises LabError with all that failed.
    """
    failed: list[str] = []

    @contextlib.contextmanager
    def attempt() -> Iterator[None]:
        try:
            yield
        except (LabError, OSError) as error:
            failed.append(str(error))

    groups = cgroups.of_lab(place.name)
    space = Mounts(place)
    disks = [Disk(place.disks / f"{path.name}.img", path, space) for path in sorted(place.hosts.glob("h*"))]
    for disk in disks:
        with attempt():
            disk.crash()  # nothing on it is wanted any more
    for group in groups:
        with attempt():
            group.kill()  # the mounts end with the last of them
    with attempt():
        Network(place.name).down()
    for point in reversed(mounts()):
        with attempt():
            if Path(point).is_relative_to(place.directory):  # of a lab that had them in the machine's own namespace
                run("umount", "--lazy", point)
    for disk in disks:
        with attempt():
            disk.unmount()
    for group in groups:
        with attempt():
            group.remove()
    with attempt():
        machine.restore_sysctls(place.name)
    for directory in Path("/run/systemd/nspawn/propagate").glob(f"h*-{place.tag}"):
        with attempt():
            directory.rmdir()
    if failed:
        raise LabError(f"the lab in {place.directory} is not all gone: " + "; ".join(failed))
    _remove_files(place)


def _remove_files(place: Place) -> None:
    """Everything but the lock."""
    if place.memory.exists():
        shutil.rmtree(place.memory)
    for path in place.directory.iterdir():
        if path == place.lock:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
