"""Whether the key that a server shows is the one we expect: known_hosts as in sshd(8).

Honoured: plain and hashed names, wildcards and ``!``, ``[host]:port``, ``@revoked``, several files; and
RevokedHostKeys of ssh_config. An entry of
``@cert-authority`` is not used, since paramiko verifies no host certificates: such a host needs a line with its key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from kubeadm_registry import whoami
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport.ssh_config import Settings

#: In place of a known_hosts file.
PINNED = Path("hostKey")
#: What a key revocation list begins with (PROTOCOL.krl).
_KRL = b"SSHKRL\n\0"


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One line of a known_hosts file that speaks of the host."""

    file: Path
    line: int
    marker: str
    type: str
    blob: bytes


def known_keys(settings: Settings) -> list[KnownKey]:
    """Every line about the host: under its HostKeyAlias or HostName, else under its name in ssh_config.

    Where one key is pinned, that one.
    """
    if settings.host_key is not None:
        kind, text = settings.host_key.split()
        return [KnownKey(PINNED, 0, "", kind, base64.b64decode(text))]
    lines = [line for file in settings.known_hosts for line in _lines(file)]
    for name in _names(settings):
        if found := [key for patterns, key in lines if _matches(patterns, name)]:
            return found
    return []


def preferred_types(known: Iterable[KnownKey], offered: Sequence[str]) -> list[str]:
    """Host key algorithms in the order to ask for them: first those whose key we know."""
    types = {key.type for key in known if not key.marker}
    if "ssh-rsa" in types:
        types |= {"rsa-sha2-256", "rsa-sha2-512"}
    return sorted(offered, key=lambda name: name not in types)


def check(settings: Settings, known: Sequence[KnownKey], key_type: str, blob: bytes, *, host: str, hops: bool) -> None:
    """Raise ConnectionFailed unless *blob* is a key that *known* trusts.

    *host* is the name for messages; *hops* says that the server is reached over another one.
    """
    shown = f"{key_type.removeprefix('ssh-')} key {fingerprint(blob)}"
    name = _names(settings)[0]
    revoked = [f"{key.file} line {key.line}" for key in known if key.marker == "@revoked" and key.blob == blob]
    if revoked or (settings.revoked is not None and _is_revoked(settings.revoked, key_type, blob, host=host)):
        raise ConnectionFailed(
            f"host key verification failed: {settings.where} presented the {shown}, which is revoked in "
            f"{revoked[0] if revoked else settings.revoked}",
            host=host,
            hint="another host may be impersonating it. Generate a new host key, or check why the key was revoked",
            code="HostKeyRevoked",
        )
    trusted = [key for key in known if not key.marker]
    if any(key.blob == blob for key in trusted):
        return
    if settings.host_key is not None:
        raise ConnectionFailed(
            f"host key verification failed: {settings.where} presented the {shown}, and its hostKey in spec.nodes is "
            f"another, {fingerprint(trusted[0].blob)}",
            host=host,
            hint="another host may be impersonating it. If it was reinstalled, compare the fingerprint on its console "
            f"({_on_console(key_type)}), then correct hostKey",
            code="HostKeyChanged",
        )
    if trusted:
        places = ", ".join(f"{key.file} line {key.line}" for key in trusted)
        removals = [f"ssh-keygen -f {shlex.quote(str(file))} -R {shlex.quote(name)}" for file in _files(trusted)]
        raise ConnectionFailed(
            f"host key verification failed: {settings.where} presented the {shown}, but {places} has a different key",
            host=host,
            hint="another host may be impersonating it. If it was reinstalled, compare the fingerprint on its "
            f"console ({_on_console(key_type)}), then remove the old key: {' && '.join(removals)}",
            code="HostKeyChanged",
        )
    target = settings.known_hosts[0] if settings.known_hosts else whoami.expand("~/.ssh/known_hosts")
    if hops or settings.host_key_alias or settings.proxy_command:
        accept = f"echo {shlex.quote(f'{name} {key_type} {base64.b64encode(blob).decode()}')}"
    else:
        short = key_type.removeprefix("ssh-").removeprefix("ecdsa-sha2-")
        short = "ecdsa" if short.startswith("nistp") else short
        accept = f"ssh-keyscan -p {settings.port} -t {short} {settings.hostname}"
    more = ""
    if target == Path(os.devnull):
        target = whoami.expand("~/.ssh/known_hosts")
        more = "; and set spec.ssh.knownHostsFile to that file, since UserKnownHostsFile of ssh_config is /dev/null"
    authority = any(key.marker == "@cert-authority" for key in known)
    raise ConnectionFailed(
        f"unknown host key: {settings.where} presented the {shown}"
        + ("; known_hosts has only a certificate authority for it, which is not supported" if authority else ""),
        host=host,
        hint=f"compare the fingerprint on the console of the host ({_on_console(key_type)}), then accept the key: "
        f"{accept} >> {shlex.quote(str(target))}{more}",
        code="HostKeyUnknown",
    )


def _is_revoked(file: Path, key_type: str, blob: bytes, *, host: str) -> bool:
    """Whether *file* revokes the key. Raises ConnectionFailed if it cannot be read: then no key counts, as with ssh."""
    text = base64.b64encode(blob)
    try:
        content = file.read_bytes()
        if not content.startswith(_KRL):
            return any(text in line.split() for line in content.splitlines() if not line.startswith(b"#"))
        argv = ("ssh-keygen", "-Q", "-f", file, "/dev/stdin")
        done = subprocess.run(argv, input=key_type.encode() + b" " + text, check=False, capture_output=True)
        if done.returncode in (0, 1):
            return done.returncode == 1
        why = done.stderr.decode(errors="replace").strip()
    except OSError as error:
        why = error.strerror or str(error)
    raise ConnectionFailed(
        f"cannot read {file}, which RevokedHostKeys in ssh_config names: {why}",
        host=host,
        hint="correct the file, or RevokedHostKeys",
        code="SshConfigInvalid",
    )


def fingerprint(blob: bytes) -> str:
    """The fingerprint of a public key as OpenSSH prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _on_console(key_type: str) -> str:
    kind = "ed25519" if "ed25519" in key_type else "rsa" if "rsa" in key_type else "ecdsa"
    return f"ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub"


def _names(settings: Settings) -> list[str]:
    if settings.host_key_alias:
        return [settings.host_key_alias]
    hosts = dict.fromkeys((settings.hostname.lower(), settings.alias.lower()))
    return [host if settings.port == 22 else f"[{host}]:{settings.port}" for host in hosts]


def _files(keys: Iterable[KnownKey]) -> list[Path]:
    return list(dict.fromkeys(key.file for key in keys))


def _lines(file: Path) -> Iterator[tuple[str, KnownKey]]:
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if len(words) < 3:
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except ValueError:
            # Also what is not ASCII. Like OpenSSH: one odd line says nothing of the others.
            continue
        yield words[0], KnownKey(file, number, marker, words[1], blob)


def _matches(patterns: str, name: str) -> bool:
    """Whether the first field of a line speaks of *name*."""
    if patterns.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in patterns.split("|")[2:4])
        except ValueError:
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
    found = False
    for pattern in patterns.lower().split(","):
        # Brackets are literal here, and a set of characters to fnmatch.
        wanted = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatchcase(name, wanted):
            if pattern.startswith("!"):
                return False
            found = True
    return found
