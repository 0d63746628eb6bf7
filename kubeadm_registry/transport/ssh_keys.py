"""Keys to log in with: from files, encrypted or not, and from ssh-agent."""

from __future__ import annotations

import base64
import binascii
import copy
import io
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from kubeadm_registry.transport.ssh_config import Settings
from kubeadm_registry.transport.ssh_trust import fingerprint

Ask = Callable[[Path], str | None]

#: Decrypted keys, so that a passphrase is asked once for all hosts. In memory only, until the process ends.
_decrypted: dict[Path, paramiko.PKey] = {}
_asking = threading.Lock()

#: Seconds for an agent to list its keys.
LIST_TIMEOUT = 10.0
#: Seconds for an agent to sign: a security key may wait for a touch.
SIGN_TIMEOUT = 60.0
#: Seconds for which an agent that did not answer is not asked again.
HANGING = 60.0
_hanging: dict[Path, float] = {}
_listing = threading.Lock()


class KeyUnusable(Exception):
    """A key cannot be used; says why."""


class _Encrypted(Exception):
    """A key file needs a passphrase, or another one."""


#: A key's name for messages, and the key itself, or why it cannot be used.
Offer = tuple[str, paramiko.PKey | KeyUnusable]


def candidates(settings: Settings, named: Path | None, ask: Ask | None) -> Iterator[Offer]:
    """The keys to try, in order.

    First *named*, the one that the caller wants; then those of the agent, those of ssh_config, and of these the
    encrypted ones last, so that *ask* is called only when nothing else opened the door. The agent is not asked where
    *named* is enough.
    """
    encrypted: list[Path] = []

    def offers(key: paramiko.PKey | KeyUnusable, path: Path | None, what: str = "") -> Iterator[Offer]:
        """What to try with *key*, of the file *path*: with each certificate that is of it, then without."""
        beside = path.with_name(path.name + "-cert.pub") if path else None
        for certificate in dict.fromkeys(filter(None, (beside, *settings.certificate_files))):
            if isinstance(key, paramiko.PKey) and certificate.exists():
                if (certified := _certified(key, certificate)) is not None:
                    yield str(certificate), certified
                elif certificate == beside:
                    yield str(certificate), KeyUnusable("not a certificate of this key")
        yield what or str(path), key

    def from_file(path: Path) -> Iterator[Offer]:
        try:
            yield from offers(load(path), path)
        except _Encrypted:
            encrypted.append(path)
        except KeyUnusable as error:
            yield str(path), error

    if named is not None:
        yield from from_file(named)
    try:
        held = {key.asbytes(): key for key in agent_keys(settings.agent)}
    except KeyUnusable as error:
        yield f"agent {settings.agent}", error
        held = {}
    by_agent = {path: held.pop(blob) for path in settings.identity_files if (blob := _public_blob(path)) in held}
    if named in encrypted and named not in by_agent:
        yield from offers(decrypt(named, ask), named)
    for path, key in by_agent.items():
        yield from offers(key, path, f"{path} by the agent")
    if not settings.identities_only:
        for blob, key in held.items():
            yield from offers(key, None, f"agent key {fingerprint(blob)}")
    for path in settings.identity_files:
        if path != named and path not in by_agent and os.access(path, os.F_OK):
            yield from from_file(path)
    for path in encrypted:
        if path != named:
            yield from offers(decrypt(path, ask), path)


def _certified(key: paramiko.PKey, certificate: Path) -> paramiko.PKey | None:
    """*key* with the *certificate*; None if that is not one of it."""
    certified = paramiko.AgentKey(key.agent, key.blob) if isinstance(key, paramiko.AgentKey) else copy.copy(key)
    try:
        certified.load_certificate(str(certificate))
        mine = certified.public_blob is not None and _is_certified(certified.public_blob.key_blob, key)
    except (OSError, ValueError, paramiko.SSHException):
        return None
    return certified if mine else None


def _is_certified(certificate: bytes, key: paramiko.PKey) -> bool:
    """Whether *certificate* is one of *key*: after its kind and a nonce it has the key (PROTOCOL.certkeys)."""
    shown, own = paramiko.Message(certificate), paramiko.Message(key.asbytes())
    shown.get_binary()
    shown.get_binary()
    own.get_binary()
    return shown.get_remainder().startswith(own.get_remainder())


def load(path: Path) -> paramiko.PKey:
    """Read the private key *path* (OpenSSH or PEM; RSA, ECDSA, Ed25519). Raises KeyUnusable."""
    if (key := _decrypted.get(path)) is not None:
        return key
    return _load(path, None)


def decrypt(path: Path, ask: Ask | None) -> paramiko.PKey | KeyUnusable:
    """Read the encrypted private key *path* with the passphrase that *ask* gives, asking three times at most.

    Hosts that connect at the same time wait for one answer. Returns KeyUnusable when there is no right answer.
    """
    with _asking:
        if (key := _decrypted.get(path)) is not None:
            return key
        for _ in range(3):
            passphrase = ask(path) if ask else None
            if passphrase is None:
                return KeyUnusable("encrypted, no passphrase given")
            try:
                key = _load(path, passphrase.encode())
            except _Encrypted:
                continue
            except KeyUnusable as error:  # no passphrase helps
                return error
            _decrypted[path] = key
            return key
        return KeyUnusable("encrypted, wrong passphrase")


def agent_keys(path: Path | None) -> list[paramiko.AgentKey]:
    """The keys that the agent behind the socket *path* holds; none when there is no agent.

    Raises KeyUnusable when it does not answer; it is then not asked again for a while, since each host would wait.
    """
    if path is None:
        return []
    with _listing:
        if time.monotonic() < _hanging.get(path, 0):
            raise KeyUnusable("did not respond a moment ago")
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(LIST_TIMEOUT)
    agent = paramiko.agent.AgentSSH()
    try:
        connection.connect(str(path))
        # paramiko's own Agent knows SSH_AUTH_SOCK only, not IdentityAgent.
        agent._connect(connection)  # type: ignore[attr-defined]
        keys = list(agent.get_keys())
    except TimeoutError as error:
        connection.close()
        with _listing:
            _hanging[path] = time.monotonic() + HANGING
        raise KeyUnusable(f"did not respond within {LIST_TIMEOUT:g} s") from error
    except (OSError, paramiko.SSHException, struct.error):
        connection.close()
        return []
    connection.settimeout(SIGN_TIMEOUT)
    for key in keys:
        if "-cert-" in key.get_name():
            # Of an RSA certificate paramiko would offer the bare key, under the certificate's name.
            key.inner_key = None  # type: ignore[attr-defined]
    return keys


def _load(path: Path, passphrase: bytes | None) -> paramiko.PKey:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KeyUnusable(error.strerror or str(error)) from error
    read = (
        serialization.load_ssh_private_key
        if b"BEGIN OPENSSH PRIVATE KEY" in data
        else serialization.load_pem_private_key
    )
    kind: type[paramiko.PKey]
    try:
        private = read(data, passphrase)
        match private:
            case Ed25519PrivateKey():
                kind = paramiko.Ed25519Key
            case EllipticCurvePrivateKey():
                kind = paramiko.ECDSAKey
            case RSAPrivateKey():
                kind = paramiko.RSAKey
            case _:
                raise KeyUnusable("unsupported key type")
        text = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        key = kind.from_private_key(io.StringIO(text.decode()))
    except (TypeError, InvalidTag) as error:
        # cryptography's way to say that a passphrase is missing; and that one is wrong, if the key is kept by AES-GCM.
        raise _Encrypted from error
    except UnsupportedAlgorithm as error:
        raise KeyUnusable("key type supported only with ssh-agent") from error
    except ValueError as error:
        if passphrase is not None:
            raise _Encrypted from error
        raise KeyUnusable("not a private key") from error
    except paramiko.SSHException as error:
        raise KeyUnusable(str(error)) from error
    return key


def _public_blob(path: Path) -> bytes:
    """The public key beside the key file *path*, or in it, since IdentityFile may name a public one; empty: none."""
    for file in (path.with_name(path.name + ".pub"), path):
        try:
            return base64.b64decode(file.read_text().split()[1], validate=True)
        except (OSError, UnicodeDecodeError, IndexError, binascii.Error):
            continue
    return b""
