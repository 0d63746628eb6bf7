"""What ``init`` installs, handed to other tools as they are used: one task a user, directory, file and service.

The lists come from the phases themselves, so that everybody is asked for the same bytes, modes, owners and services.
Checks, Garage's layout, the virtual IP, containerd's configuration and the verification are left out: these tools have
nothing for them but commands that run each time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kubeadm_registry import config
from kubeadm_registry.access import session
from kubeadm_registry.access.session import Prompts
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.changes import Directory, File, Running
from kubeadm_registry.engine.phase import select
from kubeadm_registry.engine.users import User
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.printable import Level
from tests.lab.programs import program
from tests.lab.registry import Registry

PHASES = ("base", "network", "backend/install", "frontend", "proxy", "agent", "vip", "runbook")


@dataclass
class Work:
    """What is to be there on one host."""

    users: list[User] = field(default_factory=list)
    directories: list[Directory] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    services: list[Running] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many things."""
        return len(self.users) + len(self.directories) + len(self.files) + len(self.services)


def work(registry: Registry) -> dict[str, Work]:
    """What the installed *registry* has on each host, by the host's name."""

    def note(text: str, *, host: str = "", level: Level = "info") -> None:
        raise AssertionError(f"{host}: {text}")

    with registry.lab.network(), session.cluster(config.load(registry.file), Prompts(), note) as cluster:
        found = {host.name: Work() for host in cluster.hosts}
        for change, name in _changes(cluster):
            match change:
                case User():
                    found[name].users.append(change)
                case Directory(as_is=False):
                    found[name].directories.append(change)
                case File():
                    found[name].files.append(change)
                case Running():
                    found[name].services.append(change)
    return found


def _changes(cluster: Cluster) -> Iterator[tuple[object, str]]:
    for _, phase in select(INIT, only=PHASES):
        for host in phase.on(cluster):
            for change in phase.changes(cluster, host.as_read_only()):
                yield change, host.name


def _entries(work: Work, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """*work* as plain lists; the files' contents lie below *folder*."""
    folder.mkdir(parents=True, mode=0o700)
    files = []
    for number, file in enumerate(work.files):
        content = folder / f"{number:02}"
        content.write_bytes(file.content)
        files.append({"src": str(content), "dest": file.path, "mode": f"{file.mode:04o}", **_owner(file.owner)})
    return {
        "users": [{"name": user.name, "groups": list(user.groups)} for user in work.users],
        "directories": [{"path": it.path, "mode": f"{it.mode:04o}", **_owner(it.owner)} for it in work.directories],
        "files": files,
        "services": [{"name": service.unit} for service in work.services],
    }


def _owner(owner: str) -> dict[str, str]:
    user, _, group = owner.partition(":")
    return {"owner": user, "group": group}


# ---- Ansible ---------------------------------------------------------------------------------------------------------

PLAYBOOK: list[dict[str, Any]] = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "name": "Users",
                "ansible.builtin.user": {
                    "name": "{{ item.name }}", "groups": "{{ item.groups }}", "append": True, "system": True,
                    "create_home": False, "home": "/nonexistent", "shell": "/usr/sbin/nologin",
                    "comment": "kubeadm-registry",
                },
                "loop": "{{ users }}",
            },
            {
                "name": "Directories",
                "ansible.builtin.file": {
                    "path": "{{ item.path }}", "state": "directory", "mode": "{{ item.mode }}",
                    "owner": "{{ item.owner }}", "group": "{{ item.group }}",
                },
                "loop": "{{ directories }}",
            },
            {
                "name": "Files",
                "ansible.builtin.copy": {
                    "src": "{{ item.src }}", "dest": "{{ item.dest }}", "mode": "{{ item.mode }}",
                    "owner": "{{ item.owner }}", "group": "{{ item.group }}",
                },
                "loop": "{{ files }}",
                "loop_control": {"label": "{{ item.dest }}"},
            },
            {
                "name": "Services",
                "ansible.builtin.systemd_service": {"name": "{{ item.name }}", "enabled": True, "state": "started"},
                "loop": "{{ services }}",
            },
        ],
    }
]  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A *name* for people, and how it is run."""

    name: str
    argv: list[str]
    environment: dict[str, str]


def ansible(registry: Registry, todo: dict[str, Work], folder: Path) -> Iterator[Command]:
    """The playbook without and with pipelining; everything else as Ansible comes, but for the colours."""
    folder.mkdir()
    place, settings = registry.lab.place, registry.lab.settings
    hosts = {
        name: {
            "ansible_host": registry.servers[name].address, "ansible_user": settings.user,
            "ansible_port": settings.ssh_port, "ansible_ssh_private_key_file": str(place.key),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={place.known_hosts}",
            **_entries(one, folder / name),
        } for name, one in todo.items()
    }  # fmt: skip
    (folder / "inventory.yaml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    (folder / "playbook.yaml").write_text(yaml.safe_dump(PLAYBOOK, sort_keys=False))
    python = str(program("ansible-playbook").with_name("python"))
    argv = [python, "-m", "ansible.cli.playbook", "-i", str(folder / "inventory.yaml"), str(folder / "playbook.yaml")]
    common = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(folder / "home"), "ANSIBLE_PYTHON_INTERPRETER": "auto_silent"}
    for pipelining in ("False", "True"):
        name = f"Ansible, pipelining {'on' if pipelining == 'True' else 'off'}"
        yield Command(name, argv, {**common, "ANSIBLE_PIPELINING": pipelining})


# ---- pyinfra ---------------------------------------------------------------------------------------------------------

DEPLOY = """
from pyinfra import host
from pyinfra.operations import files, server, systemd

for user in host.data.users:
    server.user(
        name=f"user {user['name']}", user=user["name"], groups=user["groups"], append=True, system=True,
        create_home=False, ensure_home=False, home="/nonexistent", shell="/usr/sbin/nologin",
        comment="kubeadm-registry",
    )
for it in host.data.directories:
    files.directory(name=it["path"], path=it["path"], mode=it["mode"], user=it["owner"], group=it["group"])
for it in host.data.files:
    files.put(
        name=it["dest"], src=it["src"], dest=it["dest"], mode=it["mode"], user=it["owner"], group=it["group"],
    )
for it in host.data.services:
    systemd.service(name=it["name"], service=it["name"], running=True, enabled=True)
"""


def pyinfra(registry: Registry, todo: dict[str, Work], folder: Path) -> Command:
    """The same as operations of pyinfra."""
    folder.mkdir()
    place, settings = registry.lab.place, registry.lab.settings
    ssh = {
        "ssh_user": settings.user, "ssh_port": settings.ssh_port, "ssh_key": str(place.key),
        "ssh_known_hosts_file": str(place.known_hosts), "ssh_strict_host_key_checking": "yes",
    }  # fmt: skip
    hosts = [[registry.servers[name].address, {**ssh, **_entries(one, folder / name)}] for name, one in todo.items()]
    (folder / "hosts.json").write_text(json.dumps(hosts))
    (folder / "inventory.py").write_text(
        "import json, pathlib\n"
        f"hosts = [tuple(host) for host in json.loads(pathlib.Path({str(folder / 'hosts.json')!r}).read_text())]\n"
    )
    (folder / "deploy.py").write_text(DEPLOY)
    python = str(program("pyinfra").with_name("python"))
    argv = [python, "-m", "pyinfra", "-y", str(folder / "inventory.py"), str(folder / "deploy.py")]
    return Command("pyinfra", argv, {"HOME": str(folder), "LC_ALL": os.environ.get("LC_ALL", "C.UTF-8")})
