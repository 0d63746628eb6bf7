"""Who vouches for a bundle: a signature of its index, whose digests stand for all the rest, made with an SSH key.

The form is SSHSIG, https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.sshsig, and ``ssh-keygen`` makes
and checks it: so agents, security keys and certificates work as they do for SSH. Why so: docs/decisions/0006.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kubeadm_registry.bundle import archive, files, temporary
from kubeadm_registry.bundle.bundle import Bundle
from kubeadm_registry.bundle.layout import Layout
from kubeadm_registry.errors import BundleError, CommandTimeout, ConfigError
from kubeadm_registry.oci import descriptors as oci

#: What a signature is for: one made for another purpose, as of a mail or a commit, is none of a bundle.
NAMESPACE = "bundle.kubeadm-registry.dev"
#: The file in a bundle that holds the signature, the last one in an archive.
FILE = f"{oci.INDEX_FILE}.sig"
MAX_SIGNATURE = 64 * 1024
#: The longest file of allowed signers.
MAX_KEYS = 16 * 1024 * 1024
#: Seconds for a person to give a passphrase or to touch a key; a check asks nobody.
_PATIENCE, _CHECK = 300, 30
#: The name in a file of allowed signers for those who are known by their key alone.
_ANYBODY = "bundle"
#: A public key in a line of either kind of file: OpenSSH begins all of them with the length of their name.
_A_KEY = re.compile(r"\b(ssh|ecdsa|sk)-[a-z0-9@.-]+[ \t]+AAAA")
_PUBLIC_KEY = re.compile(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+[ \t]+[A-Za-z0-9+/]+=*([ \t].*)?")


def sign(index: bytes, key: Path, *, namespace: str = NAMESPACE) -> bytes:
    """The signature of *index* by the key in the file *key*; with a public key in it, the agent has the private one.

    *namespace* is what the signature is for. A passphrase, a PIN or a touch is asked for by ssh-keygen itself. Raises
    ConfigError.
    """
    require(key)
    done = _ssh_keygen("sign", "-n", namespace, "-f", str(key), content=index, timeout=_PATIENCE)
    if done.returncode:
        raise ConfigError(
            f"cannot sign with {key}: {_words(done)}", code="KeyUnusable",
            hint="pass a private SSH key, or a public key whose private key is in the agent",
        )  # fmt: skip
    return done.stdout


def require(key: Path) -> None:
    """Look whether there is a key to sign with, before long work that ends with it. Raises ConfigError."""
    if not key.is_file():
        raise ConfigError(f"no such key: {key}", code="KeyUnreadable", hint="check the path")


def sign_file(path: Path, key: Path) -> str:
    """Sign the bundle *path*, in place of a signature that it has; returns the digest of its index.

    Nothing else in the file is touched. Raises ConfigError, BundleError.
    """
    with Layout.open(path) as layout:
        index = layout.index_bytes
        layout.version.require_writer(layout.where)
    signature = sign(index, key)
    try:
        if path.is_dir():
            with temporary.file(path, FILE) as file:
                file.write(signature)
                temporary.put(file, path / FILE, mode=0o644)
        else:
            with path.open("r+b") as whole:
                archive.put_last(whole, FILE, signature)
    except OSError as error:
        raise BundleError(
            f"cannot write to {path}: {error.strerror}",
            code="BundleUnreadable",
            hint="check its permissions and its disk",
        ) from error
    return oci.digest_of(index)


@contextmanager
def opened(path: Path, trusted: Path | None, note: Callable[[str], None]) -> Iterator[Bundle]:
    """The bundle *path*, which one in *trusted* must have signed, and *note* is told who; None: nobody asks for that.

    Raises BundleError and ConfigError, as ``Bundle.open`` and ``check`` do.
    """
    with Bundle.open(path) as bundle:
        if trusted is not None:
            note(f"{path} is signed by {check(bundle.layout, trusted)}")
        yield bundle


def check(layout: Layout, trusted: Path) -> str:
    """Who signed the bundle *layout*, of those in *trusted*: a public key, or a file of allowed signers.

    Raises BundleError (BundleUnsigned, BundleSignatureInvalid), and ConfigError when there is nothing to check with.
    """
    keys = trusted_keys(trusted)
    if FILE not in layout.store.sizes:
        raise BundleError(
            f"{layout.where} has no signature", code="BundleUnsigned",
            hint="get a signed copy, or sign it with `bundle sign FILE --key KEY`",
        )  # fmt: skip
    try:
        return signer(layout.index_bytes, layout.file(FILE, MAX_SIGNATURE), keys, NAMESPACE)
    except SignatureInvalid as error:
        raise _invalid(f"{layout.where}: {error}") from error
    except Untrusted as error:
        raise _invalid(f"{layout.where} is signed by {error}, which is not in {trusted}") from error


class SignatureInvalid(ValueError):
    """The signature is not one of this content; the text says why."""


class Untrusted(ValueError):
    """The signature is good, and its maker, the text, is not among those who are trusted."""


def trusted_keys(path: Path) -> str:
    """The text of *path*, a public key or a file of allowed signers.

    Raises ConfigError (KeyUnreadable, KeyUnusable).
    """
    try:
        text = files.text(path, MAX_KEYS)
    except OSError as error:
        raise ConfigError(
            f"cannot read the key {path}: {error.strerror}", code="KeyUnreadable",
            hint="check the path and its permissions",
        ) from error  # fmt: skip
    # What is no list of keys, unlike an empty one, is a mistake: "signed by another key" would accuse a good signature.
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if lines and not any(map(_A_KEY.search, lines)):
        private = "PRIVATE KEY-----" in text
        raise ConfigError(
            f"{path} {'is a private key' if private else 'has no public SSH key'}", code="KeyUnusable",
            hint=f"pass the public key{f', {path}.pub' if private else ' or an allowed-signers file'}",
        )  # fmt: skip
    return text


def signer(content: bytes, made: bytes, keys: str, namespace: str) -> str:
    """Who of *keys*, as ``trusted_keys`` returns them, made the signature *made* of *content* for *namespace*.

    Raises SignatureInvalid, Untrusted, and ConfigError when there is nothing to check with.
    """
    with tempfile.TemporaryDirectory(prefix="kubeadm-registry-") as directory:
        signature, signers = Path(directory, "signature"), Path(directory, "signers")
        signature.write_bytes(made)
        signers.write_text("".join(f"{line}\n" for line in _allowed(keys, namespace)), encoding="utf-8")
        given = ("-s", str(signature))
        done = _ssh_keygen("check-novalidate", "-n", namespace, *given, content=content)
        if done.returncode:
            raise SignatureInvalid(f"the signature does not match: {_words(done)}")
        made_by = done.stdout.decode(errors="replace").partition(" with ")[2].strip()
        found = _ssh_keygen("find-principals", "-f", str(signers), *given, content=b"")
        for name in found.stdout.decode(errors="replace").splitlines():
            # What is found may be a pattern; any name that fits it will do.
            who = re.sub(r"[*?]", "x", name.split(",")[0])
            arguments = ("-n", namespace, "-f", str(signers), "-I", who, *given)
            if not _ssh_keygen("verify", *arguments, content=content).returncode:
                return made_by if name == _ANYBODY else f"{name} with {made_by}"
    raise Untrusted(made_by)


def _invalid(message: str) -> BundleError:
    return BundleError(
        message, code="BundleSignatureInvalid",
        hint="do not use this bundle until you know why: it was signed with another key, or modified",
    )  # fmt: skip


def _allowed(keys: str, namespace: str) -> Iterator[str]:
    """The lines of *keys* as those of an allowed_signers file: a bare public key may sign for *namespace*."""
    for line in keys.splitlines():
        if _PUBLIC_KEY.fullmatch(line.strip()):
            yield f'{_ANYBODY} namespaces="{namespace}" {" ".join(line.split()[:2])}'
        else:
            yield line


def _ssh_keygen(
    action: str, *arguments: str, content: bytes, timeout: float = _CHECK
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ("ssh-keygen", "-Y", action, *arguments), input=content, capture_output=True, timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise ConfigError(
            "ssh-keygen not found, which creates and verifies signatures", code="SshKeygenMissing",
            hint="install the OpenSSH client (Debian: openssh-client, RHEL: openssh)",
        ) from error  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CommandTimeout(
            f"ssh-keygen took more than {timeout:.0f} s", hint="check whether it waits for a passphrase or a touch"
        ) from error


def _words(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last line that ssh-keygen said."""
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"status {done.returncode}"
