"""The file of a backup: an index that anybody can read and check, and the content, encrypted.

The index has the digest of the content as it is in the file, so what signs the index vouches for all of it. It is
always signed by the cluster's CA: the nodes have that key, and client nodes have the certificate to check it with when
all servers are lost. A signature by an SSH key can be added for those who sign their bundles.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from pydantic import TypeAdapter, ValidationError

from kubeadm_registry import __version__, pki
from kubeadm_registry.backup.age import Identities, Passphrase, PublicKeys
from kubeadm_registry.backup.contents import Contents
from kubeadm_registry.bundle import files, signing, temporary
from kubeadm_registry.disk import naming
from kubeadm_registry.errors import BackupError, ConfigError
from kubeadm_registry.formats import Damaged, Format, NewerFormat
from kubeadm_registry.oci import descriptors as oci

#: Version 1 is that of release 0.2.
FORMAT = Format("the backup")
#: What an SSH signature of a backup is for.
NAMESPACE = "backup.kubeadm-registry.dev"
INDEX = "index.json"
CA_SIGNATURE, SSH_SIGNATURE = f"{INDEX}.ca-sig", f"{INDEX}.sig"
CONTENT = "content.tar"
KEYS, PASSPHRASE, NONE = "public-keys", "passphrase", "none"
#: Bytes: the names and digests of a hundred thousand images are some 20 MB.
_LARGEST = 256 * 1024 * 1024
_COPY = "copy the backup again, or use another one"


@dataclass(frozen=True, slots=True)
class Index:
    """What a backup says of itself to anybody; it holds no secret.

    *made* is a time (RFC 3339). *encryption* is KEYS, PASSPHRASE or NONE, *recipients* the public keys. *content* is
    the name of the member with the content, *digest* that of it as it is there. *images* None: they were not listed.
    """

    cluster: str
    generation: str
    made: str
    release: str
    ca: str
    encryption: str
    content: str
    digest: str
    nodes: int
    images: int | None = None
    recipients: tuple[str, ...] = ()


_INDEX = TypeAdapter(Index)


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup as it was read from *path*: the CA in its index has signed it."""

    path: Path
    index: Index
    content: bytes
    ssh_signature: bytes | None
    _signed: bytes

    def signer(self, trusted: Path) -> str:
        """Who of those in *trusted*, a public SSH key or a file of allowed signers, signed it.

        Raises BackupError (BackupUnsigned, BackupSignatureInvalid), ConfigError.
        """
        keys = signing.trusted_keys(trusted)
        if self.ssh_signature is None:
            raise BackupError(
                f"{self.path} has no signature by an SSH key", code="BackupUnsigned",
                hint="make backups with --sign KEY, or check this one by the CA: --ca FILE",
            )  # fmt: skip
        try:
            return signing.signer(self._signed, self.ssh_signature, keys, NAMESPACE)
        except signing.SignatureInvalid as error:
            raise _forged(f"{self.path}: {error}") from error
        except signing.Untrusted as error:
            raise _forged(f"{self.path} is signed by {error}, which is not in {trusted}") from error

    def require_ca(self, trusted: Path) -> None:
        """Raise BackupError unless the CA that signed it is the one in the file *trusted* (PEM); ConfigError."""
        try:
            ones = x509.load_pem_x509_certificates(files.text(trusted, signing.MAX_KEYS).encode())
            wanted = {pki.fingerprint_of(one) for one in ones}  # while a CA is replaced, clients trust two
        except OSError as error:
            raise ConfigError(
                f"cannot read {trusted}: {error.strerror}", hint="check the path", code="KeyUnreadable"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"{trusted} is not a certificate (PEM)", code="KeyUnreadable",
                hint="pass the ca.crt of a client node, or what `kubeadm-registry ca` printed",
            ) from error  # fmt: skip
        if pki.fingerprint(self.index.ca) not in wanted:
            raise _forged(f"{self.path} is signed by another CA than the one in {trusted}")

    def opened(self, key: Passphrase | Identities | None) -> Contents:
        """What is in it. *key* None: it is not encrypted.

        Raises ConfigError (BackupKeyNeeded), BackupError (BackupLocked, BackupDamaged), NewerFormat.
        """
        self._require(key)
        content = self.content if key is None else key.decrypt(self.content)
        try:
            contents = Contents.of(unpack(content))
        except Damaged as error:
            raise _damaged(self.path, str(error)) from error
        if contents.ca.certificate != self.index.ca or not pki.belong_together(contents.ca):
            raise _damaged(self.path, "the CA in its secrets is not the one that signed it")
        return contents

    def _require(self, key: Passphrase | Identities | None) -> None:
        """Raise ConfigError if it takes another kind of *key*, NewerFormat if this release knows none of its kind."""
        kinds: dict[str, tuple[type, ...]] = {KEYS: (Identities,), PASSPHRASE: (Passphrase,), NONE: (type(None),)}
        if self.index.encryption not in kinds:
            raise NewerFormat(f"{self.path}: this release does not know the encryption {self.index.encryption}")
        if isinstance(key, kinds[self.index.encryption]):
            return
        hints = {
            KEYS: "pass the private key of a recipient with --identity FILE: " + ", ".join(self.index.recipients),
            PASSPHRASE: "pass the passphrase with --passphrase-file FILE",
            NONE: "omit --identity and --passphrase-file",
        }
        raise ConfigError(
            f"{self.path} is {describe(self.index)}", hint=hints[self.index.encryption], code="BackupKeyNeeded"
        )


def describe(index: Index) -> str:
    """How it is encrypted, in words."""
    if index.encryption == KEYS:
        return f"encrypted for {len(index.recipients)} public key{'s' if len(index.recipients) != 1 else ''}"
    return {PASSPHRASE: "encrypted with a passphrase", NONE: "not encrypted"}.get(index.encryption, index.encryption)


def writable(path: Path, sign: Path | None = None, inputs: Iterable[Path] = ()) -> Path:
    """The file to write for *path*, before long work that ends with it: none of the *inputs*.

    Raises ConfigError, also for the key *sign*.
    """
    if sign is not None:
        signing.require(sign)
    return temporary.target(path, [*filter(None, (sign,)), *inputs])


def write(path: Path, contents: Contents, lock: PublicKeys | Passphrase | None, sign: Path | None = None) -> Index:
    """Write *contents* to *path*, readable by its owner only, whole or not at all; a link is followed.

    *lock* None: unencrypted. *sign* is the file of an SSH key. Raises ConfigError (OutputInvalid, KeyUnusable),
    BackupError (BackupTooLarge), NewerFormat, OSError.
    """
    target = writable(path, sign)
    ca = contents.ca
    content = pack(contents.files())
    held = content if lock is None else lock.encrypt(content)
    index = Index(
        cluster=pki.cluster_of(ca.certificate) or "",
        generation=contents.secrets.values["generation"],
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        release=__version__,
        ca=ca.certificate,
        encryption=NONE if lock is None else PASSPHRASE if isinstance(lock, Passphrase) else KEYS,
        content=CONTENT if lock is None else f"{CONTENT}.age",
        digest=oci.digest_of(held),
        nodes=len(contents.members),
        images=None if contents.images is None else len(contents.images),
        recipients=lock.keys if isinstance(lock, PublicKeys) else (),
    )
    said = FORMAT.render(_INDEX.dump_python(index, mode="json"))
    members = {INDEX: said, CA_SIGNATURE: pki.sign(ca, said)}
    if sign is not None:
        members[SSH_SIGNATURE] = signing.sign(said, sign, namespace=NAMESPACE)
    whole = pack({**members, index.content: held})
    if len(whole) > _LARGEST:
        raise BackupError(
            f"the backup has {len(whole) // 2**20} MiB, more than the {_LARGEST // 2**20} MiB that can be restored",
            hint="make it with --no-images", code="BackupTooLarge",
        )  # fmt: skip
    with temporary.file(target.parent, target.name) as file:
        file.write(whole)
        temporary.put(file, target, mode=0o600)
    return index


def read(path: Path) -> Backup:
    """The backup in the file *path*: its digest is that of the index, which the CA in the index has signed.

    Whether that is the right CA is for ``Backup.require_ca`` and ``Backup.opened`` to say. Raises ConfigError
    (BackupMissing), BackupError (BackupDamaged, BackupSignatureInvalid), NewerFormat.
    """
    try:
        with files.regular(path) as file, naming(path):
            whole = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="check the path", code="BackupMissing"
        ) from error
    if whole.startswith(oci.LAYOUT_FILE.encode()):  # the first name in each archive of that kind that is written here
        raise ConfigError(
            f"{path} is a bundle, not a backup", code="BackupMissing",
            hint="pass the file that `backup` wrote; `restore` takes bundles with --bundle",
        )  # fmt: skip
    try:
        if len(whole) > _LARGEST:
            raise Damaged(f"it is larger than {_LARGEST // 2**20} MiB")
        members = unpack(whole)
        for name in (INDEX, CA_SIGNATURE):
            if name not in members:
                raise Damaged(f"it has no {name}")
        said = members[INDEX]
        try:
            index = _INDEX.validate_python(FORMAT.parse(said).values)
        except ValidationError as error:
            first = error.errors()[0]
            raise Damaged(f"{INDEX}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if oci.digest_of(members.get(index.content, b"")) != index.digest:
            raise Damaged(f"{index.content} does not match the digest in {INDEX}")
        signed = pki.has_signed(index.ca, said, members[CA_SIGNATURE])
    except Damaged as error:
        raise _damaged(path, str(error)) from error
    except ValueError as error:
        raise _damaged(path, f"{INDEX}: ca: {error}") from error
    if not signed:
        raise _forged(f"{path}: the signature of the CA does not match")
    return Backup(path, index, members[index.content], members.get(SSH_SIGNATURE), said)


def pack(members: Mapping[str, bytes]) -> bytes:
    """A tar archive of *members*, readable by their owner only when it is unpacked."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def unpack(content: bytes) -> dict[str, bytes]:
    """The regular files in the tar archive *content*, by name. Nothing is written. Raises Damaged."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for entry in archive:
                if entry.issparse() or entry.size > len(content):  # what is not there would fill the memory
                    raise Damaged(f"{entry.name} is not a plain file")
                file = archive.extractfile(entry) if entry.isreg() else None
                if file is not None:
                    found[entry.name] = file.read()
                    if len(found[entry.name]) != entry.size:
                        raise Damaged(f"{entry.name} is cut short")
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:
        raise Damaged(f"it is not a tar archive, or it is cut short: {error}") from error
    return found


def _damaged(path: Path, why: str) -> BackupError:
    return BackupError(f"{path} is damaged: {why}", hint=_COPY, code="BackupDamaged")


def _forged(message: str) -> BackupError:
    return BackupError(
        message, code="BackupSignatureInvalid",
        hint="do not use this backup until you know why: it was modified, or another party made it",
    )  # fmt: skip
