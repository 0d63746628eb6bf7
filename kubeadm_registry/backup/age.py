"""Encryption by age (https://age-encryption.org/v1): to public keys, or with a passphrase.

pyrage is imported where it is used: nodes do without it, and so does every other command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization

from kubeadm_registry.bundle import files
from kubeadm_registry.errors import BackupError, ConfigError
from kubeadm_registry.printable import shown

if TYPE_CHECKING:
    from pyrage import ssh, x25519

    Recipient = x25519.Recipient | ssh.Recipient
    Identity = x25519.Identity | ssh.Identity

#: Bytes of a file with keys, or a passphrase.
_LARGEST = 64 * 1024
_AGE_PUBLIC, _AGE_PRIVATE = "age1", "AGE-SECRET-KEY-1"
_GIVEN = "--recipient"
_LOCKED = "ssh key must be decrypted first"
#: pyrage's complaint, and how often to ask again: it measures how fast this machine is each time, which looks slower
#: while other work goes on, and refuses what would take 16 times as long as on the machine that encrypted.
_TOO_SLOW, _TRIES = "Excessive work parameter", 5


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """Encrypts for the holders of private keys: *keys* are ``age1...``, ``ssh-ed25519 ...`` or ``ssh-rsa ...``."""

    keys: tuple[str, ...]

    @classmethod
    def of(cls, given: Sequence[str], paths: Sequence[Path]) -> PublicKeys:
        """The keys that are *given*, and those in the files *paths*: one a line, comments from ``#`` on.

        Raises ConfigError (RecipientInvalid, KeyUnreadable) for what is no such key.
        """
        # Of several lines age reads the first.
        keys = [(key, _GIVEN) for text in given for key in [line for _, line in _lines(text)] or [text]]
        for path in paths:
            found = [(line, f"{path}, line {number}") for number, line in _lines(_read(path))]
            if not found:
                raise ConfigError(f"{path} contains no public key", hint="check the path", code="RecipientInvalid")
            keys += found
        for key, where in keys:
            _recipient(key, where)
        return cls(tuple(dict.fromkeys(key for key, _ in keys)))

    def encrypt(self, content: bytes) -> bytes:
        """*content* as an age file."""
        import pyrage

        return pyrage.encrypt(content, [_recipient(key, "the backup") for key in self.keys])


@dataclass(frozen=True, slots=True)
class Passphrase:
    """Encrypts and decrypts with a passphrase, by scrypt: both take seconds."""

    text: str = field(repr=False)

    @classmethod
    def in_file(cls, path: Path) -> Passphrase:
        """The first line of *path*. Raises ConfigError (PassphraseInvalid, KeyUnreadable)."""
        text = _read(path).partition("\n")[0].rstrip("\r")
        if not text:
            raise ConfigError(
                f"the first line of {path} is empty", hint="write the passphrase into it", code="PassphraseInvalid"
            )
        return cls(text)

    def encrypt(self, content: bytes) -> bytes:
        """*content* as an age file."""
        from pyrage import passphrase

        return passphrase.encrypt(content, self.text)

    def decrypt(self, content: bytes) -> bytes:
        """The content of an age file. Raises BackupError (BackupLocked)."""
        import pyrage

        tries = _TRIES
        while True:
            try:
                return pyrage.passphrase.decrypt(content, self.text)
            except pyrage.DecryptError as error:
                tries -= 1
                if _TOO_SLOW not in str(error):
                    raise _locked(
                        f"the passphrase does not decrypt it: {error}", "pass the right passphrase"
                    ) from error
                if not tries:
                    raise _locked(
                        f"this machine is too slow, or too busy now, to decrypt it: {error}",
                        "run the command again when the machine is idle, or on a faster one",
                    ) from error


@dataclass(frozen=True, slots=True)
class Identities:
    """Decrypts with the private keys in the files *paths*: age identities, or SSH keys.

    *ask* is asked for the passphrase of an SSH key that has one; None: do without that key.
    """

    paths: tuple[Path, ...]
    ask: Callable[[Path], str | None] = lambda _: None

    def decrypt(self, content: bytes) -> bytes:
        """The content of an age file. Raises BackupError (BackupLocked), ConfigError (IdentityInvalid)."""
        import pyrage

        identities = [one for path in self.paths for one in self._read(path)]
        try:
            return pyrage.decrypt(content, identities)
        except pyrage.DecryptError as error:
            files_ = ", ".join(map(str, self.paths))
            raise _locked(f"{files_} does not decrypt it: {error}", "pass the private key of a recipient") from error

    def _read(self, path: Path) -> Iterator[Identity]:
        import pyrage

        text = _read(path)
        try:
            if "-----BEGIN " in text:
                yield self._ssh(path, text.encode())
                return
            found = [pyrage.x25519.Identity.from_str(line) for _, line in _lines(text)]
        except pyrage.IdentityError as error:
            raise _no_identity(path, str(error)) from error
        if not found:
            raise _no_identity(path, "it is empty")
        yield from found

    def _ssh(self, path: Path, content: bytes) -> ssh.Identity:
        import pyrage

        try:
            return pyrage.ssh.Identity.from_buffer(content)
        except pyrage.IdentityError as error:
            if str(error) != _LOCKED:
                raise
        passphrase = self.ask(path)
        if passphrase is None:
            raise _no_identity(path, "it has a passphrase, and there is no terminal to ask for it")
        try:
            key = serialization.load_ssh_private_key(content, passphrase.encode())
        except (ValueError, TypeError, InvalidTag) as error:  # TypeError: an empty one; InvalidTag: by AES-GCM
            raise _no_identity(path, "the passphrase is wrong") from error
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        return pyrage.ssh.Identity.from_buffer(key.private_bytes(*form))


def _recipient(key: str, where: str) -> Recipient:
    """The public key *key*. Raises ConfigError (RecipientInvalid)."""
    import pyrage

    try:
        if key.startswith(_AGE_PUBLIC):
            return pyrage.x25519.Recipient.from_str(key)
        return pyrage.ssh.Recipient.from_str(key)
    except (pyrage.RecipientError, UnicodeEncodeError) as error:
        private = key.startswith(_AGE_PRIVATE) or "PRIVATE KEY" in key
        # A file given by mistake may be that of the passphrase.
        what = "a private key" if private else shown(key) if where == _GIVEN else "this"
        raise ConfigError(
            f"{where}: {what} is not a public key that age can encrypt for", code="RecipientInvalid",
            hint="pass the public key: age1..., ssh-ed25519 AAAA... or ssh-rsa AAAA... (2048 to 4096 bits); ECDSA and "
            "security keys of SSH only sign",
        ) from error  # fmt: skip


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of *text* that say something, with their numbers."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _read(path: Path) -> str:
    try:
        return files.text(path, _LARGEST)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="check the path and its permissions", code="KeyUnreadable"
        ) from error


def _locked(message: str, hint: str) -> BackupError:
    return BackupError(message, hint=hint, code="BackupLocked")


def _no_identity(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} is not a private key that age can decrypt with: {why}", code="IdentityInvalid",
        hint="pass a file with AGE-SECRET-KEY-1... lines, or a private SSH key (ed25519 or rsa)",
    )  # fmt: skip
