"""Changes that add a system user of a service, and remove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import Host

_NO_SHELL = "/usr/sbin/nologin"
#: A line for each of the users ``$@``: the status of ``id``, and the groups.
_USERS = 'for user; do groups=$(id -Gn -- "$user" 2>/dev/null); echo "$? $groups"; done'


@dataclass(frozen=True, slots=True)
class User:
    """A system user with a group of the same name and without a password; *groups* are joined as well.

    Only one with a *shell* can log in, by a key below its *home*, which somebody else makes.
    """

    name: str
    groups: Sequence[str] = ()
    home: str = "/nonexistent"
    shell: str = _NO_SHELL

    @property
    def title(self) -> str:
        """What apply does."""
        return f"add user {self.name}"

    def diff(self, host: Host) -> str | None:
        """What is missing, or None."""
        result = host.query(*_asking_for(self.name))
        if not result.ok:
            return f"user {self.name}: new system user"
        missing = sorted(set(self.groups) - set(result.text.split()))
        return f"user {self.name}: joins {', '.join(missing)}" if missing else None

    def apply(self, host: Host) -> None:
        """Add user and group, and the memberships."""
        if not host.query("id", "--", self.name).ok:
            # No password fits "*". With useradd's own "!" the account is locked, and sshd may refuse keys as well.
            password = ("--password", "*") if self.shell != _NO_SHELL else ()
            # A group without its user is left by a run that died in NoUser, and by whoever removed the user alone.
            own = ("--gid", self.name) if _group(host, self.name) else ("--user-group",)
            host.run(
                "useradd", "--system", *own, "--no-create-home", "--home-dir", self.home,
                "--shell", self.shell, *password, "--comment", "kubeadm-registry", "--", self.name,
            )  # fmt: skip
        for group in self.groups:
            host.run("usermod", "--append", "--groups", group, "--", self.name)


def _asking_for(name: str) -> tuple[str, ...]:
    return ("id", "-Gn", "--", name)


def users_ahead(host: Host, names: Sequence[str]) -> list[Result]:
    """The commands that ``User`` will run for *names*, with their results, read by one; empty if not all are."""
    lines = host.query("sh", "-c", _USERS, "users", *names).stdout.splitlines()
    read = [line.partition(b" ")[::2] for line in lines if line[:1].isdigit()]
    if len(read) != len(names):
        return []
    return [Result(_asking_for(name), int(code), groups) for name, (code, groups) in zip(names, read, strict=True)]


def _user(host: Host, name: str) -> bool:
    return host.query("getent", "passwd", name).ok


def _group(host: Host, name: str) -> bool:
    return host.query("getent", "group", name).ok


@dataclass(frozen=True, slots=True)
class NoUser:
    """No user and group of this name."""

    name: str

    @property
    def title(self) -> str:
        """What apply does."""
        return f"remove user {self.name}"

    def diff(self, host: Host) -> str | None:
        """That it is there, or its group alone; or None."""
        if _user(host, self.name):
            return f"user {self.name}: removed"
        return f"group {self.name}: removed" if _group(host, self.name) else None

    def apply(self, host: Host) -> None:
        """Remove the user; its group goes with it."""
        if _user(host, self.name):
            host.run("userdel", "--", self.name)
        if _group(host, self.name):
            host.run("groupdel", "--", self.name)
