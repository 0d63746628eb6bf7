"""One host of the lab: its power, its cable, and the ways into it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.cgroups import Cgroups
from tests.lab.command import LabError, run, wait_until
from tests.lab.disk import Disk
from tests.lab.mounts import Mounts
from tests.lab.network import BRIDGE, Network
from tests.lab.settings import NAMESERVER, Place, Settings

FILES = Path(__file__).parent / "files"
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
_KEEP_DOWN = """
mkdir -p "$1"
# A restart by itself asks for no condition again.
printf '[Unit]\\nConditionPathExists=/gone\\n[Service]\\nRestart=no\\n' > "$1/down.conf"
systemctl daemon-reload
"""


class Host:
    """A host, on or off. Everything raises LabError if it cannot be done."""

    def __init__(
        self, name: str, place: Place, settings: Settings, network: Network, mounts: Mounts, layers: str
    ) -> None:
        self.name = name
        number = settings.number(name)
        self.address6 = settings.address6(number)
        self.address = settings.address(number) or str(self.address6)
        """The IPv4 address, in a lab without IPv4 the IPv6 one."""
        self.python = name not in settings.without_python
        self.port = f"vb-{name}-{place.tag}"
        """The bridge's port with the host's cable in it."""
        self._place = place
        self._settings = settings
        self._network = network
        self._mounts = mounts
        self._layers = layers
        self.connected = True
        """Whether the cable is in and the port passes: what this lab did to them, not what the host thinks."""
        self._directory = place.hosts / name
        self._root = self._directory / "root"
        self._disk = Disk(place.disks / f"{name}.img", self._directory, mounts)
        self._cgroups = Cgroups(f"{place.name}-{name}")

    @property
    def var(self) -> Path:
        """The host's /var as this machine sees it."""
        return self._mounts.path(self._directory / "var")

    @property
    def root(self) -> Path:
        """The host's files as this machine sees them, but for /var and what the host itself mounts."""
        return self._mounts.path(self._root)

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address} {self.state}>"

    # Ways in

    def ssh_argv(self, *argv: str) -> list[str]:
        """The command of this machine that runs *argv* on the host over sshd, as the lab's user; without it a shell."""
        remote = [shlex.join(argv)] if argv else []
        return self._network.argv("ssh", "-F", self._place.ssh_config, self.name, *remote)

    def ssh(
        self, *argv: str, check: bool = True, timeout: float = 60, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* on the host over sshd, as the lab's user."""
        shown = f"{self.name}, over ssh: {shlex.join(argv)}"
        return run(*self.ssh_argv(*argv), check=check, timeout=timeout, stdin=stdin, shown=shown)

    def sh_argv(self, *argv: str) -> list[str]:
        """The command of this machine that runs *argv* in the host as root, without sshd; a shell without *argv*."""
        variables = [
            f"{name}={value}" for name, value in {**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}.items()
        ]
        return ["nsenter", "--all", f"--target={self.leader}", "--", "env", "-i", *variables, *(argv or ("bash", "-l"))]

    def sh(
        self, *argv: str, check: bool = True, timeout: float = 60, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* in the host as root, without sshd: also when its network is cut or its processes are paused.

        What it leaves running is not paused with the host: start such things by ``systemd-run``.
        """
        shown = f"{self.name}: {shlex.join(argv)}"
        return run(*self.sh_argv(*argv), check=check, timeout=timeout, stdin=stdin, shown=shown)

    def network_argv(self, *argv: str | Path) -> list[str]:
        """The command that runs *argv* of this machine in the host's network, also where the host lacks the program."""
        return ["nsenter", "--net", f"--target={self.leader}", "--", *map(str, argv)]

    def put(self, source: Path, target: str, *, mode: str = "644") -> None:
        """Copy a file of this machine to the path *target* on the host."""
        script = 'cat > "$1" && chmod "$2" "$1"'
        with source.open("rb") as content:
            subprocess.run(self.sh_argv("sh", "-c", script, "-", target, mode), stdin=content, check=True, timeout=300)

    @property
    def leader(self) -> int:
        """The host's PID 1 as this machine numbers it."""
        leader = self._cgroups.leader()
        if leader is None:
            raise LabError(f"{self.name} is off")
        return leader

    # Power

    @property
    def state(self) -> str:
        """``on``, ``paused`` or ``off``."""
        if self._cgroups.frozen:
            return "paused"
        return "off" if self._cgroups.leader() is None else "on"

    def power_cut(self) -> None:
        """Take the power away: what was not synced is lost, and peers hear nothing more, no FIN and no RST."""
        if self.state == "off":
            raise LabError(f"{self.name} is off already")
        self._cgroups.freeze()
        self._network.remove_port(self.port)  # before the kill, whose FINs would otherwise go out
        self._disk.crash()
        self._cgroups.kill()
        self._disk.unmount()

    def lose_disk(self) -> None:
        """From now on its disk answers with errors only; what runs goes on. ``power_cut`` and ``power_on`` mend it."""
        self._disk.crash()

    def power_on(self, *, timeout: float = 60) -> None:
        """Boot from the same disk with the cable in, and wait *timeout* seconds at most until sshd lets us in."""
        self.start()
        self.wait_ready(timeout)

    def reboot(self, *, timeout: float = 150) -> None:
        """Let the host reboot in good order, and wait until sshd lets us in again."""
        before = self._cgroups.leader()
        self.sh("systemctl", "--no-block", "reboot")
        wait_until(
            f"reboot of {self.name}", lambda: self._cgroups.leader() not in (before, None), seconds=timeout, every=0.2
        )
        self.wait_ready(timeout)

    def reinstall(self) -> None:
        """Replace the host by a new one of the same name and address: an empty disk, new host keys, booted."""
        if self.state != "off":
            self.power_cut()
        self.install()
        self.write_identity()
        self.power_on()

    def pause(self) -> None:
        """Stop all processes, as on a host that hangs: its kernel still answers pings and accepts connections."""
        if self.state != "on":
            raise LabError(f"{self.name} is {self.state}")
        self._cgroups.freeze()

    def resume(self) -> None:
        """Let a paused host go on."""
        self._cgroups.thaw()

    def kill(self, unit: str, signal: signal.Signals = signal.SIGKILL) -> None:
        """Send *signal* to all processes of a systemd unit of the host."""
        self.sh("systemctl", "kill", "--kill-whom=all", f"--signal={signal.name}", unit)

    def keep_down(self, unit: str) -> None:
        """Let nothing start the systemd unit *unit* again once it has ended. (A mask in /run hides no file in /etc.)"""
        self.sh("sh", "-ec", _KEEP_DOWN, "keep-down", f"/run/systemd/system/{unit}.d")

    def let_up(self, unit: str) -> None:
        """Start *unit*, which was kept down."""
        self.sh("rm", "-r", f"/run/systemd/system/{unit}.d")
        self.sh("systemctl", "daemon-reload")
        self.sh("systemctl", "start", unit)

    @contextmanager
    def little_memory(self, spare: int) -> Iterator[None]:
        """A host with *spare* bytes of memory more than its processes use now, for the length of a ``with``."""
        self._cgroups.limit_memory(self._cgroups.memory_used() + spare)
        try:
            yield
        finally:
            self._cgroups.limit_memory(None)

    # Cable

    def cut(self, *, silent: bool = False) -> None:
        """Pull the cable out, which the host sees; *silent*: the switch's port dies, and the host keeps its carrier.

        A host that boots has its cable in again; a silent port stays silent.
        """
        self.connected = False
        if silent:
            self._network.silence(self.port, silent=True)
        else:
            self._network.plug(self.port, plugged=False)

    def heal(self) -> None:
        """Put the cable in and let the port pass everything."""
        self.connected = True
        self._network.silence(self.port, silent=False)
        if self.state != "off":
            self._network.plug(self.port, plugged=True)

    # For the lab itself

    def install(self) -> None:
        """Make the host's disk and put on it what differs from host to host."""
        self._disk.make(self._settings.disk)
        self._mount()
        run("cp", "-a", self.root / "var", self.var)  # /var is bound from ext4: overlay does not go on overlay
        etc = self.root / "etc"
        settings = self._settings
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (etc / "resolv.conf").write_text(f"nameserver {NAMESERVER}\n")
        (etc / "hosts").write_text(_hosts_file(settings))
        (etc / "lab-host.conf").write_text(self._network_file())
        login = "prohibit-password" if settings.user == "root" else "no"
        (etc / "ssh/sshd_config.d/lab.conf").write_text(
            f"Port {settings.ssh_port}\nPermitRootLogin {login}\nPasswordAuthentication no\nUseDNS no\n"
        )
        for kind in ("ed25519", "ecdsa"):
            key = etc / f"ssh/ssh_host_{kind}_key"
            run("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", f"root@{self.name}", "-f", key)
        self._let_in()
        run("sync", "--file-system", self.var)  # else a power cut soon after would take the host keys

    def write_identity(self) -> None:
        """Let this machine know the host by its keys, and no longer by those it had."""
        names = [self.name, self.address, *([self.address6] if self.address6 else [])]
        port = self._settings.ssh_port
        known = ",".join(name if port == 22 else f"[{name}]:{port}" for name in dict.fromkeys(names))
        file = self._place.known_hosts
        lines = file.read_text().splitlines() if file.exists() else []
        kept = [line for line in lines if not line.startswith(f"{known} ")]
        for path in sorted((self.root / "etc/ssh").glob("ssh_host_*_key.pub")):
            kept.append(f"{known} {' '.join(path.read_text().split()[:2])}")
        new = file.with_suffix(".new")
        new.write_text("\n".join(kept) + "\n")
        new.rename(file)

    def start(self) -> None:
        """Power the host on without waiting for it."""
        if self.state != "off":
            raise LabError(f"{self.name} is {self.state}")
        self._mount()
        self._cgroups.make()
        cgroups, machine = self._cgroups.name, f"{self.name}-{self._place.tag}"
        nspawn = [
            "systemd-nspawn",
            "--quiet",
            "--register=no",
            "--keep-unit",
            f"--directory={self._root}",
            f"--machine={machine}",
            f"--hostname={self.name}",
            "--boot",
            f"--bind={self._directory}/var:/var",
            f"--network-bridge={BRIDGE}",
            "--capability=all",
            "--system-call-filter=@known",
            "--console=read-only",  # nobody reads a passive console, and PID 1 blocks once it is full
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--settings=no",
        ]
        keeper: list[str | Path] = [
            FILES / "in-cgroup",
            f"{cgroups}/keeper",
            FILES / "supervise",
            f"{cgroups}/host",
            *nspawn,
        ]
        with (self._place.consoles / self.name).open("ab") as console:
            subprocess.run(
                ["setsid", "--fork", *self._mounts.argv(*self._network.argv(*keeper))],
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                check=True,
            )

    def wait_ready(self, timeout: float = 60) -> None:
        """Wait until sshd lets us in, *timeout* seconds at most."""
        try:
            wait_until(f"sshd of {self.name}", self._sshd_speaks, seconds=timeout)
            wait_until(
                f"log-in on {self.name}",
                lambda: self.ssh("true", check=False).returncode == 0,
                seconds=timeout,
                every=0.2,
            )
        except LabError as error:
            console = self._place.consoles / self.name
            end = "\n".join(console.read_text(errors="replace").splitlines()[-15:]) if console.exists() else ""
            raise LabError(f"{error}; the end of its console ({console}):\n{end}") from error

    def _mount(self) -> None:
        self._disk.mount()
        upper, work = self._directory / "upper", self._directory / "work"
        for directory in (upper, work, self._root):
            self._mounts.path(directory).mkdir(exist_ok=True)
        if str(self._root) not in self._mounts.points():
            options = f"lowerdir={self._layers},upperdir={upper},workdir={work}"
            self._mounts.run("mount", "-t", "overlay", "overlay", "-o", options, self._root)

    def _let_in(self) -> None:
        """Make the lab's user, and let the lab's key in as that user."""
        user, home = self._settings.user, "root"
        if user != "root":
            home = f"home/{user}"
            run("chroot", self.root, "useradd", "--create-home", "--shell", "/bin/bash", user)
            sudoers = self.root / "etc/sudoers.d/lab"
            sudoers.write_text(f"{user} ALL=(ALL) NOPASSWD: ALL\n")
            sudoers.chmod(0o440)
        directory = self.root / home / ".ssh"
        directory.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self._place.key.with_suffix(".pub"), directory / "authorized_keys")
        run("chroot", self.root, "chown", "-R", f"{user}:", f"/{home}/.ssh")

    def _network_file(self) -> str:
        settings = self._settings
        number = settings.number(self.name)
        gateway, gateway6 = (settings.address(1), settings.address6(1)) if settings.gateway else (None, None)
        values = {
            "INTERFACE": settings.interface,
            "ADDRESS": settings.with_prefix(settings.address(number)),
            "ADDRESS6": settings.with_prefix(settings.address6(number)),
            "GATEWAY": gateway or "",
            "GATEWAY6": gateway6 or "",
        }
        return "".join(f"{name}={value}\n" for name, value in values.items())

    def _sshd_speaks(self) -> bool:
        try:
            with self._network.entered():
                connection = socket.create_connection((self.address, self._settings.ssh_port), timeout=1)
            with connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


def _hosts_file(settings: Settings) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    for name in settings.names:
        number = settings.number(name)
        lines += [f"{address} {name}" for address in (settings.address(number), settings.address6(number)) if address]
    return "\n".join(lines) + "\n"
