"""What the servers keep to themselves: the CA, the credentials of each role, the storage's keys.

All of it is one JSON file, ``/etc/kubeadm-registry/secrets.json``, mode 0600, equal on every server, written whole. So
a run that dies leaves either all of it or nothing on a server, and any machine with SSH access can run the next one.
A *generation* marks secrets that were made together. Two generations in one cluster are two clusters: refused, for
mixing them would lock each half out of the other's storage.
"""

from __future__ import annotations

import base64
import json
import secrets as random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kubeadm_registry import paths, pki
from kubeadm_registry.errors import Error, NotYetKnown
from kubeadm_registry.host import Host

PATH = f"{paths.ETC}/secrets.json"
#: Values that anybody may see; all others are masked in whatever is shown.
_PUBLIC = frozenset({"generation", "made", "ca_certificate", "s3_key_id"})
#: Longer lines of a value are masked by themselves too; PEM's own "-----BEGIN PRIVATE KEY-----" is shorter.
_KEY_LINE = 30


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """The secrets of one cluster. Every value is text."""

    generation: str
    made: str
    ca_certificate: str
    ca_key: str
    rpc_secret: str
    """Garage's: 32 random bytes in hex."""
    admin_token: str
    s3_key_id: str
    """``GK`` and 24 hex digits, the form that Garage insists on for keys made elsewhere."""
    s3_secret_key: str
    push_password: str
    pull_password: str
    upload_secret: str
    """Signs Distribution's upload state; the same on every server, else an upload cannot go on elsewhere."""
    heartbeat_key: str
    node_keys: Mapping[str, str]
    """Garage's node keys, ed25519 seed and public key in hex, by node name."""

    def node_id(self, name: str) -> str:
        """Garage's id of the node *name*: its public key, 64 hex digits."""
        return self.node_keys[name][64:]

    def password(self, role: str) -> str:
        """The password of ``push`` or ``pull``, which is the user's name as well."""
        return {"push": self.push_password, "pull": self.pull_password}[role]

    def to_json(self) -> bytes:
        """The content of the file."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Secrets:
        """Read the content of the file. Raises ValueError if it is not one."""
        document = json.loads(content)
        if not isinstance(document, dict) or set(document) != {field.name for field in fields(cls)}:
            raise ValueError("its keys are not those that this version writes")
        return cls(**document)

    @classmethod
    def make(cls, cluster: str, names: Sequence[str]) -> Secrets:
        """New random secrets for the nodes *names* of the cluster called *cluster*."""
        ca = pki.make_ca(cluster)
        return cls(
            generation=random.token_hex(8),
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            ca_certificate=ca.certificate,
            ca_key=ca.key,
            rpc_secret=random.token_hex(32),
            admin_token=random.token_hex(32),
            s3_key_id=f"GK{random.token_hex(12)}",
            s3_secret_key=random.token_hex(32),
            push_password=random.token_urlsafe(24),
            pull_password=random.token_urlsafe(24),
            upload_secret=random.token_hex(32),
            heartbeat_key=random.token_hex(32),
            node_keys={name: _node_key() for name in names},
        )

    @classmethod
    def placeholders(cls, names: Sequence[str]) -> Secrets:
        """Values that say what will stand there, for a dry-run before the first run."""
        values = {field.name: f"<made by init: {field.name}>" for field in fields(cls) if field.name != "node_keys"}
        keys = {name: f"<made by init: node key of {name}>".ljust(64) + f"<id of {name}>" for name in names}
        return cls(**values, node_keys=keys)

    def redact(self, text: str) -> str:
        """*text* with every secret value in it replaced by its name."""
        for field in fields(self):
            if field.name in _PUBLIC or field.name == "node_keys":
                continue
            value = str(getattr(self, field.name))
            # In a diff each line of a key has a mark before it.
            for part in (value, *(line for line in value.splitlines() if len(line) > _KEY_LINE)):
                text = text.replace(part, f"<{field.name}>")
        for role, password in (("push", self.push_password), ("pull", self.pull_password)):
            text = text.replace(basic(role, password), f"<login of {role}>")
        for name, key in self.node_keys.items():
            text = text.replace(key, f"<node key of {name}>").replace(key[:64], f"<node key of {name}>")
        return text


def basic(user: str, password: str) -> str:
    """A login as HTTP's Basic scheme has it (RFC 7617)."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _node_key() -> str:
    key = Ed25519PrivateKey.generate()
    return (key.private_bytes_raw() + key.public_key().public_bytes_raw()).hex()


class Vault:
    """The secrets as found on the servers, and the place where missing ones are made, once."""

    def __init__(self, cluster: str, names: Sequence[str], found: Mapping[str, Secrets | None]) -> None:
        """*found* tells for each host what it has. Raises Error (SecretsConflict) on two generations."""
        self._cluster = cluster
        self._names = tuple(names)
        self._lock = threading.Lock()
        generations: dict[str, list[str]] = {}
        for host, secrets in found.items():
            if secrets is not None:
                generations.setdefault(secrets.generation, []).append(host)
        if len(generations) > 1:
            held = "; ".join(f"{', '.join(hosts)}: {generation}" for generation, hosts in sorted(generations.items()))
            raise Error(
                f"the servers hold secrets of {len(generations)} different clusters ({held})",
                hint="decide which cluster lives on; on the servers of the other run `kubeadm-registry reset` "
                "with a cluster file that names only them",
                code="SecretsConflict",
            )
        # Within a generation the file with the most node keys is the newest: keys are added, never taken away.
        held_by = [secrets for secrets in found.values() if secrets is not None]
        self._secrets = max(held_by, key=lambda secrets: len(secrets.node_keys), default=None)

    @classmethod
    def read(cls, cluster: str, names: Sequence[str], hosts: Mapping[str, bytes | None]) -> Vault:
        """From the content of each host's file (None: it has none). Raises Error if one is damaged."""
        found: dict[str, Secrets | None] = {}
        for name, content in hosts.items():
            try:
                found[name] = None if content is None else Secrets.from_json(content)
            except ValueError as error:
                raise Error(
                    f"{PATH} is damaged: {error}", host=name, code="SecretsDamaged",
                    hint="if another server has a good one, remove this file and run init again",
                ) from error  # fmt: skip
        return cls(cluster, names, found)

    @property
    def known(self) -> bool:
        """Whether there are secrets for every node."""
        return self._secrets is not None and set(self._names) <= set(self._secrets.node_keys)

    @property
    def secrets(self) -> Secrets:
        """The secrets. Raises NotYetKnown before they are made."""
        if self._secrets is None:
            raise NotYetKnown("the secrets are made by the phase secrets", hint="run init")
        return self._secrets

    def preview(self) -> Secrets:
        """The secrets, or placeholders before they are made."""
        return self._secrets or Secrets.placeholders(self._names)

    def ensure(self) -> Secrets:
        """The secrets; what is missing is made, once for all threads."""
        with self._lock:
            if self._secrets is None:
                self._secrets = Secrets.make(self._cluster, self._names)
            missing = [name for name in self._names if name not in self._secrets.node_keys]
            if missing:
                keys = {**self._secrets.node_keys, **{name: _node_key() for name in missing}}
                self._secrets = replace(self._secrets, node_keys=keys)
            return self._secrets


def kept(data_directory: str) -> str:
    """Where ``reset`` leaves the secrets when it leaves the data."""
    return f"{data_directory}/secrets.json"


def content(host: Host, data_directory: str) -> bytes | None:
    """The secrets file of *host*, or the one that a reset left with the data; None if it has neither."""
    found = host.read(PATH)
    # An empty file is a damaged one, not a host without secrets: then new ones would lock all out of the storage.
    return host.read(kept(data_directory)) if found is None else found
