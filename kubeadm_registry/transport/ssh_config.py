"""How to reach a host by SSH: what the caller says, completed by the user's ssh_config.

OpenSSH itself reads ssh_config (``ssh -G``), so Include, Match, canonical names and the order of files mean here what
they mean on the command line. Without an ``ssh`` program, or where it does not run since the user's id has no entry in
passwd, only the caller's values and OpenSSH's defaults count.

Not taken from ssh_config: StrictHostKeyChecking (always strict), KnownHostsCommand, VerifyHostKeyDNS,
AddressFamily, BindInterface, ProxyUseFdpass, algorithm lists, forwardings.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kubeadm_registry import whoami
from kubeadm_registry.errors import ConnectionFailed

_JUMP = re.compile(r"(?:ssh://)?(?:(?P<user>.+)@)?(?P<host>\[[^\]]+\]|[^:/@]+)(?::(?P<port>\d+))?/?")

#: Seconds between two signs of life, at most: who is silent for ``shell.SILENT`` counts as gone.
LONGEST_KEEPALIVE = 15

_DEFAULT_KEYS = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519")


@dataclass(frozen=True, slots=True)
class SshTarget:
    """A host to log in to. None: as ssh_config says, else OpenSSH's default.

    *name* is for messages; *address* is an address, a name, or a Host of ssh_config. *config_file* replaces the user's
    and the system's ssh_config. *host_key*, as ``ssh-ed25519 AAAA...``, replaces known_hosts. *passphrase* is asked for
    the passphrase of an encrypted key file, once for all hosts, and may answer None; *sudo_password* is for a user who
    is not root. *connect_timeout* is in seconds (10 if ssh_config says nothing). *source* is the address to come from,
    unless ssh_config has a BindAddress or leads to another HostName. To a host on the way (ProxyJump) go *config_file*,
    *known_hosts_file*, *passphrase* and *connect_timeout* only, as with ssh.
    """

    name: str
    address: str
    user: str | None = None
    port: int | None = None
    identity_file: Path | None = None
    known_hosts_file: Path | None = None
    config_file: Path | None = None
    host_key: str | None = None
    sudo_password: str | None = field(default=None, repr=False)
    passphrase: Callable[[Path], str | None] | None = None
    connect_timeout: float | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """A target with every question answered."""

    #: As the caller or ProxyJump names the host, and the address or name to connect to.
    alias: str
    hostname: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    certificate_files: tuple[Path, ...]
    identities_only: bool
    #: Path of the agent's socket; None: no agent.
    agent: Path | None
    known_hosts: tuple[Path, ...]
    #: Keys that no host may have, one a line or as a KRL (ssh-keygen(1)); None: there is no such file.
    revoked: Path | None
    host_key_alias: str | None
    #: The one key that counts, whatever known_hosts has; None: those count.
    host_key: str | None
    proxy_command: str | None
    #: Hosts to jump over, first to last, as ``[user@]host[:port]``.
    jumps: tuple[str, ...]
    connect_timeout: float
    keepalive: int
    #: The address of this machine to come from; None: the kernel's choice.
    source: str | None = None

    @property
    def where(self) -> str:
        """Address and port for messages."""
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{host}:{self.port}"

    def ssh_command(self, *words: str) -> str:
        """The ssh command line by which a person does the same."""
        options = [] if self.port == 22 or self.alias != self.hostname else ["-p", str(self.port)]
        return " ".join(["ssh", *options, f"{self.user}@{self.alias}", *words])


def resolve(target: SshTarget, *, jump: bool = False) -> Settings:
    """Complete *target* by ssh_config. Raises ConnectionFailed when ssh_config cannot be read.

    *jump*: it is a host on the way, which the user may know from elsewhere, so ``known_hosts_file`` adds to the
    user's own files instead of replacing them.
    """
    said = _ask_ssh(target)

    def first(key: str, default: str = "") -> str:
        value = (said.get(key) or [default])[0]
        return "" if value == "none" else value

    hostname = first("hostname", target.address)
    port = target.port or int(first("port", "22"))
    # To an id without a name ssh_config says nothing, and no host knows it.
    login = target.user or first("user") or (whoami.name() if whoami.has_name() else "root")
    alias = first("hostkeyalias") or None
    tokens = {"h": hostname, "n": target.address, "p": str(port), "r": login, "k": alias or target.address}

    def path(text: str) -> Path:
        return whoami.expand(_expand(_with_environment(text, target), tokens))

    keys = [path(text) for text in said.get("identityfile", _DEFAULT_KEYS) if text != "none"]
    if target.identity_file is not None:
        explicit = whoami.expand(target.identity_file)
        keys = [explicit, *(key for key in keys if key != explicit)]
    agent = first("identityagent", "SSH_AUTH_SOCK")
    if agent == "SSH_AUTH_SOCK":
        agent = os.environ.get("SSH_AUTH_SOCK", "")
    elif agent.startswith("$") and not agent.startswith("${"):
        agent = os.environ.get(agent[1:], "")
    timeout = first("connecttimeout")
    return Settings(
        alias=target.address,
        hostname=hostname,
        port=port,
        user=login,
        identity_files=tuple(keys),
        certificate_files=tuple(path(text) for text in said.get("certificatefile", ()) if text != "none"),
        identities_only=first("identitiesonly") == "yes",
        agent=path(agent) if agent else None,
        known_hosts=tuple(path(text) for text in _known_hosts(target, first, jump=jump)),
        revoked=Path(revoked) if (revoked := first("revokedhostkeys")) else None,
        host_key_alias=alias,
        host_key=target.host_key,
        proxy_command=_expand(first("proxycommand"), tokens) or None,
        jumps=tuple(jump for jump in _expand(first("proxyjump"), tokens).split(",") if jump),
        connect_timeout=target.connect_timeout or float(timeout or 0) or 10.0,  # 0 is none, as "none" is
        keepalive=min(int(first("serveraliveinterval", "0")) or 5, LONGEST_KEEPALIVE),
        source=first("bindaddress") or (target.source if hostname == target.address else None),
    )


def jump_target(jump: str, target: SshTarget) -> SshTarget:
    """The host that *jump* (``[user@]host[:port]`` or ``ssh://...``) names, on the way to *target*."""
    match = _JUMP.fullmatch(jump)
    port = int(match["port"][:6]) if match and match["port"] else None
    if not match or (port is not None and not 1 <= port <= 65535):
        raise ConnectionFailed(
            f"not a valid ProxyJump: {jump!r}",
            host=target.name,
            hint="write it as [user@]host[:port], with an IPv6 address in brackets",
            code="SshConfigInvalid",
        )
    return SshTarget(
        name=target.name,
        address=match["host"].strip("[]"),
        user=match["user"],
        port=port,
        known_hosts_file=target.known_hosts_file,
        config_file=target.config_file,
        passphrase=target.passphrase,
        connect_timeout=target.connect_timeout,
    )


def _ask_ssh(target: SshTarget) -> dict[str, list[str]]:
    """What ``ssh -G`` says: keyword in small letters to its values."""
    argv = ["ssh", "-T", "-G"]
    if target.config_file is not None:
        argv += ["-F", str(whoami.expand(target.config_file))]
    if target.user is not None:
        argv += ["-l", target.user]
    if target.port is not None:
        argv += ["-p", str(target.port)]
    try:
        done = subprocess.run(
            [*argv, "--", target.address], check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=30
        )
    except FileNotFoundError as error:
        _need_no_config(target, "no ssh program found on this host", "install the OpenSSH client", error)
        return {}
    except subprocess.TimeoutExpired as error:
        raise ConnectionFailed("ssh -G did not exit within 30 s", host=target.name, code="SshConfigInvalid") from error
    if done.stderr.startswith(b"No user exists for uid"):
        _need_no_config(
            target,
            f"ssh requires an entry in /etc/passwd for user id {os.getuid()}",
            f"add one: echo 'me:x:{os.getuid()}:{os.getgid()}::{whoami.home()}:/bin/sh' >> /etc/passwd",
        )
        return {}
    if done.returncode:
        raise ConnectionFailed(
            f"ssh cannot read its configuration: {done.stderr.decode(errors='replace').strip()}",
            host=target.name,
            hint=f"try: ssh -G {target.address}",
            code="SshConfigInvalid",
        )
    said: dict[str, list[str]] = {}
    for line in done.stdout.decode(errors="surrogateescape").splitlines():
        key, _, value = line.partition(" ")
        said.setdefault(key, []).append(value)
    return said


def _need_no_config(target: SshTarget, why: str, hint: str, cause: Exception | None = None) -> None:
    """Raise ConnectionFailed if there is an ssh_config of the user or the caller, which nobody can read."""
    file = whoami.expand(target.config_file or "~/.ssh/config")
    if file != Path(os.devnull) and file.exists():
        raise ConnectionFailed(
            f"{file} exists, but {why} to read it", host=target.name, hint=hint, code="SshConfigInvalid"
        ) from cause


def _known_hosts(target: SshTarget, first: Callable[[str, str], str], *, jump: bool) -> list[str]:
    own = first("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")
    everyone = first("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2")
    # ssh -G prints a list without quotes: a name with blanks shows only by being there.
    files = [own] if own and whoami.expand(own).exists() else own.split()
    if target.known_hosts_file is not None:
        files = [str(target.known_hosts_file), *(files if jump else [])]
    return [*files, *everyone.split()]


def _with_environment(text: str, target: SshTarget) -> str:
    """Replace each ``${NAME}`` in a path of ssh_config. Raises ConnectionFailed if there is no such variable."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConnectionFailed(
                f"ssh_config names the environment variable {match[1]} ({text}), which is not set",
                host=target.name,
                hint=f"set {match[1]}, or correct ssh_config",
                code="SshConfigInvalid",
            )
        return os.environ[match[1]]

    return re.sub(r"\$\{([^}]*)\}", value, text)


def _expand(text: str, tokens: dict[str, str]) -> str:
    """Replace the tokens of ssh_config(5); those unknown here stay as they are."""
    local = socket.gethostname()
    known = {
        "%": "%",
        "d": str(whoami.home()),
        "i": str(os.getuid()),
        "l": local,
        "L": local.split(".")[0],
        "u": whoami.name(),
        **tokens,
    }
    return re.sub(r"%(.)", lambda match: known.get(match[1], match[0]), text)
