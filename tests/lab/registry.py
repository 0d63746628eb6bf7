"""The product on the lab's hosts, as a user installs it: a bundle, a cluster file, and the command line."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import kubeadm_registry
from kubeadm_registry import paths
from kubeadm_registry.access import session
from kubeadm_registry.secrets import basic
from tests.lab import programs
from tests.lab.command import LabError, cache, locked, say, wait_until
from tests.lab.fresh import fresh_lab, require_frontend, require_machine
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.settings import FRONTENDS, Place, Settings

ROOT = Path(__file__).parents[2]
SERVERS = ("h1", "h2", "h3")
CLIENT = "h4"
VIP_NUMBER = 100
#: Seconds that a bundle of other sources is kept: a lab beside this one may use it.
_KEPT = 6 * 3600


@dataclass(frozen=True, slots=True)
class Login:
    """User and password of a role."""

    username: str
    password: str

    @property
    def pair(self) -> str:
        """``user:password``, as skopeo wants it."""
        return f"{self.username}:{self.password}"

    @property
    def encoded(self) -> str:
        """As HTTP's Basic scheme has it."""
        return basic(self.username, self.password)


class Registry:
    """A registry on the lab's first three hosts, driven by the command line in the lab's network."""

    def __init__(self, lab: Lab, frontend: str, directory: Path, *, layout: Path | None = None) -> None:
        """*layout* has images that the bundle holds beside the programs."""
        self.lab = lab
        self.frontend = frontend
        self.directory = directory
        """Where the command line runs: cluster.yaml is here, and what the tests write."""
        self.bundle = bundle(frontend, layout=layout)
        self.vip = lab.address(VIP_NUMBER)
        self.vip6 = lab.address6(VIP_NUMBER)
        self.installed = False
        self._logins: dict[str, Login] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self.write_file()

    @property
    def servers(self) -> dict[str, Host]:
        """The registry's hosts by name."""
        return {name: self.lab.hosts[name] for name in SERVERS}

    @property
    def client(self) -> Host:
        """The host that only pulls and pushes."""
        return self.lab.hosts[CLIENT]

    @property
    def file(self) -> Path:
        """The cluster file."""
        return self.directory / "cluster.yaml"

    def specification(self) -> dict[str, Any]:
        """The cluster file's content, for a test that wants another."""
        place, lab = self.lab.place, self.lab
        dual = lab.settings.family == "dual"
        return {
            "apiVersion": "kubeadm-registry.dev/v1alpha1",
            "kind": "RegistryCluster",
            "metadata": {"name": "registry"},
            "spec": {
                "nodes": [
                    {
                        "name": host.name,
                        "address": host.address,
                        **({"secondaryAddress": host.address6} if dual else {}),
                    }
                    for host in self.servers.values()
                ],
                "vip": {"address": self.vip, **({"secondaryAddress": self.vip6} if dual else {})},
                "frontend": {"type": self.frontend},
                "ssh": {
                    "user": lab.settings.user,
                    "port": lab.settings.ssh_port,
                    "identityFile": str(place.key),
                    "knownHostsFile": str(place.known_hosts),
                },
            },
        }

    def write_file(self, changes: Mapping[str, Any] | None = None, *, name: str = "cluster.yaml") -> Path:
        """Write the cluster file; *changes* replace parts of its ``spec``, by ``a.b`` paths. Returns where it is."""
        document = self.specification()
        for path, value in (changes or {}).items():
            *above, last = path.split(".")
            part = document["spec"]
            for key in above:
                part = part.setdefault(key, {})
            part[last] = value
        target = self.directory / name
        target.write_text(yaml.safe_dump(document, sort_keys=False))
        return target

    # The command line

    def argv(self, *arguments: str | Path) -> list[str]:
        """The command that runs ``kubeadm-registry`` in the lab's network."""
        command: list[str | Path] = [sys.executable, "-m", "kubeadm_registry", *map(str, arguments)]
        return self.lab.argv("env", f"PYTHONPATH={ROOT}", *command)

    def popen(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start ``kubeadm-registry`` with its output as text in pipes."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.argv(*arguments), cwd=self.directory, **{**pipes, **options})

    def cli(self, *arguments: str | Path, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run ``kubeadm-registry`` to its end. Raises LabError with all it said if it fails and *check* is true."""
        result = subprocess.run(
            self.argv(*arguments),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and result.returncode != 0:
            shown = f"kubeadm-registry {' '.join(map(str, arguments))}"
            raise LabError(f"{shown} ended with status {result.returncode}:\n{result.stdout}{result.stderr}")
        return result

    def json(self, *arguments: str | Path, check: bool = True, timeout: float = 300) -> list[dict[str, Any]]:
        """Run ``kubeadm-registry ... -o json``; the objects that it writes, one a line."""
        output = self.cli(*arguments, "-o", "json", check=check, timeout=timeout).stdout
        return [json.loads(line) for line in output.splitlines()]

    @contextmanager
    def without_direct_way(self) -> Iterator[None]:
        """This machine reaches the servers' SSH, and not the registry, for the length of a ``with``."""
        rules = (
            "add table inet nodirect",
            "add chain inet nodirect out { type filter hook output priority 0; }",
            f"add rule inet nodirect out tcp dport {paths.REGISTRY_PORT} reject",
        )
        self.lab.run("nft", "-f", "-", stdin="\n".join(rules) + "\n")
        try:
            yield
        finally:
            self.lab.run("nft", "delete", "table", "inet", "nodirect")

    def install(self) -> None:
        """``preflight``, then ``init``, from whatever is there."""
        self.cli("preflight", "--bundle", self.bundle)
        self.cli("init", "--bundle", self.bundle)
        self.installed = True

    def login(self, role: str = "push") -> Login:
        """User and password of *role*, asked for once: a test may take servers away meanwhile."""
        if role not in self._logins:
            self._logins[role] = Login(**self.json("credentials", "--role", role)[0])
        return self._logins[role]

    def forget_logins(self) -> None:
        """Passwords are others now."""
        self._logins.clear()

    @property
    def ca(self) -> Path:
        """The certificate of the cluster's authority, as a file."""
        path = self.directory / "ca.crt"
        if not path.exists():
            path.write_text(self.cli("ca").stdout)
        return path

    def tls(self) -> ssl.SSLContext:
        """What a client trusts that was given our authority and nothing else."""
        return ssl.create_default_context(cafile=str(self.ca))

    def forget(self) -> None:
        """The hosts are new: nothing that was known about the registry holds."""
        self.installed = False
        self._logins.clear()
        (self.directory / "ca.crt").unlink(missing_ok=True)

    # What the hosts say

    def holders(self, address: str | None = None) -> list[str]:
        """The names of the servers that are on and have the VIP, or its other *address*, at this moment.

        An address of IPv6 that the kernel is in doubt about is none.
        """
        argv = ("ip", "-o", "address", "show", "-tentative", "to", address or self.vip)
        return [host.name for host in self.servers.values() if host.state == "on" and host.sh(*argv).stdout]

    @property
    def cut_off(self) -> list[str]:
        """The names of servers whose cable or port is dead: what they do with the VIP concerns nobody."""
        return [host.name for host in self.servers.values() if not host.connected]

    def holder(self) -> Host:
        """The one server that has the VIP. Raises LabError if it is not one."""
        names = self.holders()
        if len(names) != 1:
            raise LabError(f"the VIP is on {', '.join(names) or 'no server'}")
        return self.servers[names[0]]

    def others(self, host: Host) -> list[Host]:
        """The servers but *host*."""
        return [other for other in self.servers.values() if other is not host]

    def state(self, host: Host) -> dict[str, Any]:
        """What the agent of *host* tells of itself; empty if there is nothing."""
        text = host.sh("cat", f"{paths.RUN}/agent/state.json", check=False).stdout
        try:
            state: dict[str, Any] = json.loads(text)
        except ValueError:
            return {}
        return state

    def garage(self, host: Host) -> dict[str, Any]:
        """Garage's own health as *host* sees it; empty if it does not answer."""
        try:
            health: dict[str, Any] = self.ask_garage(host, "GetClusterHealth", timeout=10)
        except LabError:
            return {}
        return health

    def ask_garage(self, host: Host, endpoint: str, payload: object = None, *, timeout: float = 30) -> Any:
        """What the Garage of *host* answers at *endpoint* of its admin API. Raises LabError."""
        script = 'g=$(readlink "/proc/$(systemctl show -P MainPID "$1")/exe"); exec "$g" -c "$2" json-api "$3" "$4"'
        words = (self.unit("garage"), f"{paths.ETC}/garage/garage.toml", endpoint, json.dumps(payload))
        return json.loads(host.sh("sh", "-c", script, "-", *words, timeout=timeout).stdout)

    def lay_out(self, zones: Mapping[str, str]) -> None:
        """Give the storage of each server the zone that *zones* says, keep all else, and wait until all have that.

        A server that lost its power may come back with an older layout than the others for some seconds.
        """
        layout = max(self._layouts().values(), key=lambda one: int(one["version"]))
        self._wait_layout(layout["version"])
        roles = [{**role, "zone": zones[role["tags"][0]]} for role in layout["roles"]]
        wanted = [
            {key: role[key] for key in ("id", "zone", "capacity", "tags")}
            for role, old in zip(roles, layout["roles"], strict=True)
            if role["zone"] != old["zone"]
        ]
        if wanted:
            first = self.servers[SERVERS[0]]
            self.ask_garage(first, "UpdateClusterLayout", {"roles": wanted, "parameters": None})
            self.ask_garage(first, "ApplyClusterLayout", {"version": layout["version"] + 1})
            self._wait_layout(layout["version"] + 1)
            self.wait_whole()

    def _layouts(self) -> dict[str, dict[str, Any]]:
        """The layout of the storage, as each server has it."""
        return {name: self.ask_garage(host, "GetClusterLayout") for name, host in self.servers.items()}

    def _wait_layout(self, version: int) -> None:
        """Wait until every server has the layout of *version*."""
        wait_until(
            f"layout {version} on every server",
            lambda: {layout["version"] for layout in self._layouts().values()} == {version},
            seconds=60,
        )

    def flaws(self) -> list[str]:
        """Why the registry is not whole: empty if every server is fit, hears all, and the storage is complete."""
        flaws = []
        for host in self.servers.values():
            if host.state != "on":
                flaws.append(f"{host.name} is {host.state}")
                continue
            state = self.state(host)
            age = time.time() - state.get("time", 0)
            if age > 3:
                flaws.append(f"{host.name}: the agent's state is {age:.0f} s old")
            elif not state["fit"] or state["level"]:
                flaws.append(f"{host.name}: level {state['level']}, fit {state['fit']}, {state['conditions']}")
            flaws += [
                f"{host.name}: sees {name} {peer['presence']}, level {peer['level']}"
                for name, peer in state.get("peers", {}).items()
                if peer["presence"] != "fresh" or peer["level"]
            ]
            health = self.garage(host)
            if health.get("connectedNodes") != len(SERVERS) or health.get("partitionsAllOk") != health["partitions"]:
                flaws.append(f"{host.name}: storage {health or 'does not answer'}")
        holders = self.holders()
        if len(holders) != 1:
            flaws.append(f"the VIP is on {holders or 'no server'}")
        if self.vip6 and (there := self.holders(self.vip6)) != holders:
            flaws.append(f"{self.vip} is on {holders}, {self.vip6} on {there or 'no server'}")
        return flaws

    def wait_whole(self, seconds: float = 120) -> None:
        """Wait until nothing is wrong. Raises LabError with what still is after *seconds*."""
        flaws: list[str] = []

        def whole() -> bool:
            flaws[:] = self.flaws()
            return not flaws

        try:
            wait_until("a whole registry", whole, seconds=seconds, every=0.3)
        except LabError as error:
            raise LabError(f"{error}: {'; '.join(flaws)}") from error

    def wait_copied(self, seconds: float = 120) -> None:
        """Wait until the registry is whole and no storage copies what it missed, after which any node may be lost.

        Raises LabError with what still is after *seconds*.
        """
        self.wait_whole(seconds)
        left: list[str] = []

        def copied() -> bool:
            states = {host.name: self.state(host) for host in self.servers.values()}
            left[:] = [
                f"{name} has {state.get('storage_left')} left"
                for name, state in states.items()
                if "StorageCopying" in state.get("conditions", ("StorageCopying",))
            ]
            return not left

        try:
            wait_until("every storage to have its copies", copied, seconds=seconds, every=0.5)
        except LabError as error:
            raise LabError(f"{error}: {'; '.join(left)}") from error

    def unit(self, name: str) -> str:
        """The unit of the service *name*; ``frontend`` is whichever there is."""
        return paths.unit(self.frontend if name == "frontend" else name)

    def invocations(self, hosts: Iterable[Host] | None = None) -> dict[str, str]:
        """For each unit of ours on each of *hosts* (or of the servers), the id of its present run."""
        script = (
            "for unit in $(systemctl list-units --all --plain --no-legend 'kubeadm-registry*' | cut -d' ' -f1); do "
            'echo "$unit=$(systemctl show -P InvocationID "$unit")"; done'
        )
        found = {}
        for host in self.servers.values() if hosts is None else hosts:
            for line in host.sh("sh", "-c", script).stdout.split():
                unit, _, identity = line.partition("=")
                found[f"{host.name} {unit}"] = identity
        return found

    def journals(self, since: float) -> str:
        """What agents and keepalived of all servers that are on wrote since the time *since*, in the order of time."""
        units = [f"--unit={self.unit(name)}" for name in ("agent", "keepalived")]
        argv = ("journalctl", "--no-pager", "--quiet", "--output=short-precise", f"--since=@{since:.3f}", *units)
        lines = []
        for host in self.servers.values():
            if host.state == "on":
                lines += host.sh(*argv, check=False).stdout.splitlines()
        return "\n".join(sorted(lines))


def bundle(frontend: str = "distribution", *, layout: Path | None = None) -> Path:
    """A bundle with all programs of a cluster with *frontend*: made once, and again when what it is made of changes.

    It holds the images of *layout* as well. Raises LabError if it cannot be made.
    """
    given = {"garage": programs.program("garage")}
    if frontend == "zot":
        binary = programs.zot()
        if binary is None:
            raise LabError("there is no zot: let KUBEADM_REGISTRY_ZOT name one")
        given["zot"] = binary
    key = hashlib.sha256()
    for path in (*_sources(kubeadm_registry), *given.values()):  # the tool in it is all of the package
        if path.is_file():
            key.update(hashlib.sha256(path.read_bytes()).digest())
    name = f"lab-{frontend}"
    if layout is not None:
        key.update((layout / "index.json").read_bytes())
        name = f"full-{frontend}"
    target = cache() / "bundles" / f"{name}-{key.hexdigest()[:16]}.tar"
    with locked(cache() / "bundles" / f"lock-{name}"):
        if target.exists():
            os.utime(target)
            return target
        for old in target.parent.glob(f"{name}-*.tar"):
            if time.time() - old.stat().st_mtime > _KEPT:
                old.unlink()
        say(f"making the bundle for {frontend}, about a minute, once; it is kept in {target}")
        options = [f"--program={program}={path}" for program, path in given.items()]
        if layout is not None:
            options.append(f"--images-from={layout}")
        new = target.with_name(f"new-{target.name}")
        names = ",".join((frontend, "garage", "haproxy", "keepalived", *session.OPTIONAL))
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "kubeadm_registry",
            "bundle",
            "create",
            "-o",
            new,
            "--with",
            names,
            *options,
        ]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
        if result.returncode != 0:
            raise LabError(f"the bundle could not be made:\n{result.stdout}{result.stderr}")
        new.rename(target)
    return target


def _sources(package: ModuleType) -> list[Path]:
    """The files of *package*, also in folders that are links, without what tools keep beside them."""
    folders = os.walk(Path(package.__file__ or "").parent, followlinks=True)
    return sorted(
        Path(folder) / name
        for folder, _, names in folders
        if not Path(folder).name.startswith((".", "__pycache__"))
        for name in names
    )


def repeat(default: int = 1) -> int:
    """How often a fault is repeated: KUBEADM_REGISTRY_REPEAT, else *default*."""
    return int(os.environ.get("KUBEADM_REGISTRY_REPEAT") or default)


def skip_without(frontend: str) -> None:
    """Skip where this machine cannot have a lab (in CI that is a failure) or has no *frontend*."""
    require_machine()
    require_frontend(frontend)


@contextmanager
def on_new_hosts(
    frontend: str, directory: Path, *, layout: Path | None = None, settings: Settings | None = None
) -> Iterator[Registry]:
    """Hosts, a bundle and a cluster file for the length of a ``with``; see Registry for *directory* and *layout*."""
    bundle(frontend, layout=layout)  # takes a while: better before the hosts are up
    # One of its own: the session's other tests find no registry on theirs.
    with fresh_lab(Place.default().beside(frontend), settings or Settings()) as lab:
        yield Registry(lab, frontend, directory, layout=layout)


@pytest.fixture(scope="session", params=FRONTENDS)
def hosts_for_registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Hosts, a bundle and a cluster file, once for each frontend; what is on the hosts is the tests' business."""
    frontend: str = request.param
    skip_without(frontend)
    with on_new_hosts(frontend, tmp_path_factory.mktemp(frontend)) as registry:
        yield registry


@pytest.fixture
def bare(hosts_for_registry: Registry) -> Registry:
    """Three new servers with nothing of ours."""
    renew(hosts_for_registry, SERVERS)
    return hosts_for_registry


@pytest.fixture
def registry(hosts_for_registry: Registry) -> Iterator[Registry]:
    """A registry that is whole, made if there is none; faults are undone after the test."""
    registry = hosts_for_registry
    if not registry.installed:
        renew(registry, SERVERS)
        registry.install()
    registry.wait_whole()
    yield registry
    registry.lab.restore()


def renew(registry: Registry, names: Sequence[str]) -> None:
    """Replace the hosts *names* by new ones with an empty disk."""
    registry.lab.heal_links()
    for name in names:
        registry.lab.hosts[name].reinstall()
    registry.forget()
