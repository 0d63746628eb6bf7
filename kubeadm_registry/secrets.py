"""The secrets that the nodes share: the CA, the credentials of each role, the keys of the storage.

All of it is one JSON file, ``/etc/kubeadm-registry/secrets.json``, mode 0600, equal on every server, written whole. So
a run that dies leaves either all of it or nothing on a server, and any machine with SSH access can run the next one.
A *generation* marks secrets that were made together. Two generations in one cluster are two clusters: refused, for
mixing them would lock each half out of the other's storage.

The files of one generation are merged key by key. A secret that none of them has, since an older release made them, is
made and stored everywhere; the generation stays. A new generation is made only while no server has data, since Garage
knows its nodes by the keys in this file: with others nothing of the data can be read.

A secret that is exchanged makes a new *revision*. What a file of an earlier revision says of secrets no longer counts,
so a run that died between two servers is completed by the next one.
"""

from __future__ import annotations

import base64
import json
import secrets as random
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kubeadm_registry import paths, pki
from kubeadm_registry.errors import Error, NotYetKnown
from kubeadm_registry.formats import KEY, Damaged, Format, Found, NewerFormat, joined, split
from kubeadm_registry.transport.host import Host

PATH = f"{paths.ETC}/secrets.json"
#: Version 2 added what is being exchanged. While something is, a release that does not know it may only read: its
#: `init` would have the nodes accept one secret of two (``_stamp``).
FORMAT = Format(PATH, version=2)
_EXCHANGES = 2
#: Values that anybody may see; all others are masked in whatever is shown.
_PUBLIC = frozenset({"generation", "made", "ca_certificate", "s3_key_id"})
#: What may be there beside the secrets, and of which only the newest revision counts, also where it says nothing.
_CHANGING = ("revision", "overlap", "renewal")
#: Before the name of a secret in ``overlap``: the value that follows, and that of before, which are both accepted; and
#: the one of before that is accepted no longer, until all know that.
NEXT, FORMER, RETIRED = "next_", "former_", "retired_"
#: In ``overlap`` too: the agents' keys of before, one a line, the last one first. A node that has left may have one of
#: them, and believes only what is made with it. No member is believed by one, so nothing is being exchanged.
LEFT = "left_heartbeat_key"
#: Who may log in at the proxies; the password is the secret of that name.
LOGINS = ("push", "pull", paths.RETENTION_NAME)
#: Shorter texts in keys that this release does not know are words, not secrets.
_UNKNOWN_SECRET = 8

_RESTORE = (
    "restore the file from another node of this cluster, or from a backup; it is identical on every node (owner "
    "root, mode 600)"
)

#: The secrets that can be made one by one, and how.
_MADE: Mapping[str, Callable[[], str]] = {
    "rpc_secret": lambda: random.token_hex(32),
    "admin_token": lambda: random.token_hex(32),
    "s3_key_id": lambda: f"GK{random.token_hex(12)}",
    "s3_secret_key": lambda: random.token_hex(32),
    "push_password": lambda: random.token_urlsafe(24),
    "pull_password": lambda: random.token_urlsafe(24),
    "upload_secret": lambda: random.token_hex(32),
    "heartbeat_key": lambda: random.token_hex(32),
    "retention_key": lambda: random.token_hex(32),
    "retention_password": lambda: random.token_urlsafe(24),
}
#: What says which cluster it is, and what clients trust: these are made once, with the cluster.
_IDENTITY = ("generation", "ca_certificate", "ca_key")


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """The secrets of one cluster. Fields that are not text are explained below them."""

    generation: str
    made: str
    ca_certificate: str
    ca_key: str
    rpc_secret: str
    """Garage's: 32 random bytes in hex."""
    admin_token: str
    s3_key_id: str
    """``GK`` and 24 hex digits: Garage requires this form of keys that it did not generate."""
    s3_secret_key: str
    push_password: str
    pull_password: str
    upload_secret: str
    """Signs Distribution's upload state; the same on every node, so that an upload can continue on another one."""
    heartbeat_key: str
    retention_key: str
    """Signs the ledger of retention."""
    retention_password: str
    """The password of the user ``retention``, which only the executor uses."""
    node_keys: Mapping[str, str]
    """Garage's node keys, ed25519 seed and public key in hex, by node name."""
    revision: int = 0
    """Incremented each time that a secret is exchanged."""
    overlap: Mapping[str, str] = field(default_factory=dict)
    """What is also accepted while secrets are exchanged: the next or the previous CA, previous passwords."""
    renewal: Mapping[str, str] = field(default_factory=dict)
    """By node, the fingerprint of a certificate that must be replaced even if it is valid for long."""
    kept: Found = field(default_factory=lambda: Found({}, FORMAT.stamp()))
    """Values that a newer release has added to the file, and what it requires of releases that write it."""

    @property
    def trust(self) -> str:
        """The CAs that clients and nodes trust (PEM): the one that signs, then the next or the previous one."""
        return "".join(self.accepted("ca_certificate"))

    def accepted(self, name: str) -> tuple[str, ...]:
        """The accepted values of the secret *name*: the one in use, then the next or the previous one."""
        others = (self.overlap.get(f"{kind}{name}") for kind in (NEXT, FORMER))
        return (getattr(self, name), *(one for one in others if one))

    @property
    def left_heartbeat_keys(self) -> tuple[str, ...]:
        """Former keys of the agents, which only nodes that left may still use."""
        return tuple(self.overlap.get(LEFT, "").split())

    @property
    def exchanging(self) -> bool:
        """Whether a secret is being exchanged; a release that knows one value of it must not write then."""
        return _exchanging(self.overlap)

    def passwords(self, role: str) -> tuple[str, ...]:
        """The accepted passwords of *role*, the previous one last."""
        return self.accepted(f"{role}_password")

    def node_id(self, name: str) -> str:
        """Garage's id of the node *name*: its public key, 64 hex digits. Raises NotYetKnown."""
        return self.node_key(name)[64:]

    def node_key(self, name: str) -> str:
        """Garage's key of the node *name*. Raises NotYetKnown before it is generated."""
        if name not in self.node_keys:
            raise NotYetKnown(f"the storage key of {name} is made by the phase secrets", hint="run init")
        return self.node_keys[name]

    def password(self, role: str) -> str:
        """The password of *role*: ``push``, ``pull`` or ``retention``, which is also the user name."""
        return self.passwords(role)[0]

    @property
    def found(self) -> Found:
        """The secrets as a record, with the values of a newer release."""
        known = {name: getattr(self, name) for name in _KNOWN}
        known |= {name: dict(known[name]) for name in ("node_keys", "overlap", "renewal")}
        known = {name: one for name, one in known.items() if one or name not in _CHANGING}
        return Found({**self.kept.values, **known}, self.kept.stamp)

    def to_json(self) -> bytes:
        """The content of the file. Raises NewerFormat if this release may not write it."""
        return render(self.found)

    def same_as(self, content: bytes) -> bool:
        """Whether a file with this *content* has the same secrets; it may lack a version, as in release 0.1."""
        try:
            there = FORMAT.parse(content)
        except Damaged:
            return False
        return there.values == self.found.values and FORMAT.stamp(there) == _stamp(self.found)

    @classmethod
    def from_json(cls, content: bytes) -> Secrets:
        """Read the content of a file that has all secrets. Raises ValueError, NewerFormat."""
        found = _parse(content)
        if missing := _missing(found.values):
            raise ValueError(f"it has no {', '.join(missing)}")
        return cls.of(found)

    @classmethod
    def of(cls, found: Found) -> Secrets:
        """The secrets in a complete record."""
        known, others = split(found.values, _KNOWN)
        return cls(**{"made": "", "node_keys": {}, **known}, kept=Found(others, found.stamp))

    @classmethod
    def make(cls, cluster: str, names: Sequence[str]) -> Secrets:
        """New random secrets for the nodes *names* of the cluster called *cluster*."""
        ca = pki.make_ca(cluster)
        identity = {"generation": random.token_hex(8), "ca_certificate": ca.certificate, "ca_key": ca.key}
        made = {"made": datetime.now(UTC).isoformat(timespec="seconds")}
        others = {name: make() for name, make in _MADE.items()}
        return cls.of(Found({**identity, **made, **others, "node_keys": {name: _node_key() for name in names}}))

    def redact(self, text: str) -> str:
        """*text* with every secret value in it replaced by its name."""
        others = {*_PUBLIC, *_CHANGING, "node_keys"}
        secret = [(name, str(getattr(self, name))) for name in _KNOWN if name not in others]
        secret += [(name, value) for name, value in self.overlap.items() if not name.endswith("_ca_certificate")]
        for name, value in (*secret, *_texts(self.kept.values)):
            # In a diff every line of a key begins with a mark, so lines are replaced one by one.
            for part in (value, *pki.secret_lines(value)):
                text = text.replace(part, f"<{name}>")
        for role in LOGINS:
            for password in self.passwords(role):
                text = text.replace(basic(role, password), f"<login of {role}>")
        for name, key in self.node_keys.items():
            text = text.replace(key, f"<node key of {name}>").replace(key[:64], f"<node key of {name}>")
        return text


def fresh(name: str) -> str:
    """A new value of the secret *name*."""
    return _MADE[name]()


_KNOWN = tuple(one.name for one in fields(Secrets) if one.name != "kept")


def render(found: Found) -> bytes:
    """The content of the file with the record *found*. Raises NewerFormat if this release may not write it."""
    document = {**FORMAT.seal(found.values, found), KEY: _stamp(found)}
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _stamp(found: Found) -> dict[str, Any]:
    """What the key ``format`` says of *found*. The end of an exchange ends what it asked, a newer release apart."""
    stamp = FORMAT.stamp(found)
    asked = stamp["minWriter"] if stamp["version"] > FORMAT.version else FORMAT.min_writer
    return {**stamp, "minWriter": max(asked, _EXCHANGES) if _exchanging(found.values.get("overlap", {})) else asked}


def _exchanging(overlap: Mapping[str, str]) -> bool:
    return bool(overlap.keys() - {LEFT})


def identity_in(content: bytes) -> Found:
    """The record in a file, which has the cluster's identity; other secrets may be missing: ``init`` makes them.

    Raises Damaged, NewerFormat.
    """
    found = _parse(content)
    if missing := [name for name in _IDENTITY if name not in found.values]:
        raise Damaged(f"it has no {', '.join(missing)}")
    return found


def revision_in(content: bytes) -> tuple[str, int]:
    """Generation and revision of a file's *content*; empty and -1 if it is damaged, of which others tell."""
    try:
        values = _parse(content).values
    except ValueError:
        return "", -1
    return str(values.get("generation", "")), int(values.get("revision", 0))


def basic(user: str, password: str) -> str:
    """Credentials in the form of HTTP Basic authentication (RFC 7617)."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _node_key() -> str:
    key = Ed25519PrivateKey.generate()
    return (key.private_bytes_raw() + key.public_key().public_bytes_raw()).hex()


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every longer text in the keys of a newer release, with the name of its key: any may be a secret."""
    stack = list(values.items())
    while stack:
        name, value = stack.pop()
        if isinstance(value, Mapping):
            stack += [(name, one) for one in value.values()]
        elif isinstance(value, list):
            stack += [(name, one) for one in value]
        elif isinstance(value, str) and len(value) >= _UNKNOWN_SECRET:
            yield name, value


def _parse(content: bytes) -> Found:
    """One server's file; keys may be missing. Raises Damaged, NewerFormat."""
    found = FORMAT.parse(content)
    for name in (*_IDENTITY, "made", *_MADE):
        value = found.values.get(name, "-")
        if not (isinstance(value, str) and value):
            raise Damaged(f"its key {name} is not text")
    keys = found.values.get("node_keys", {})
    if not isinstance(keys, dict) or not all(isinstance(value, str) for value in keys.values()):
        raise Damaged("its key node_keys is not an object of texts")
    for name in ("overlap", "renewal"):
        value = found.values.get(name, {})
        if not isinstance(value, dict) or not all(isinstance(one, str) and one for one in value.values()):
            raise Damaged(f"its key {name} is not an object of texts")
    if type(found.values.get("revision", 0)) is not int:
        raise Damaged("its key revision is not a whole number")
    if "generation" not in found.values:
        raise Damaged("the generation is missing")
    return found


def _missing(values: Mapping[str, Any]) -> list[str]:
    """The secrets that *values* lack, without the nodes' keys."""
    return [name for name in (*_IDENTITY, *_MADE) if name not in values]


def _with_placeholders(found: Found, names: Sequence[str]) -> Found:
    """*found* with words in place of what is missing."""
    words = {name: f"<made by init: {name}>" for name in _KNOWN if name not in {"node_keys", *_CHANGING}}
    keys = {name: f"<made by init: node key of {name}>".ljust(64) + f"<id of {name}>" for name in names}
    return Found({**words, **found.values, "node_keys": {**keys, **found.values.get("node_keys", {})}}, found.stamp)


def _merge(into: dict[str, Any], holders: dict[str, str], values: Mapping[str, Any], place: str, prefix: str) -> None:
    """Take over the *values* that *place* holds. Raises Error (SecretsConflict) if another place holds another one."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        holder = holders.setdefault(path, place)
        if key not in into:
            into[key] = {} if isinstance(value, dict) else value
        if isinstance(value, dict) and isinstance(into[key], dict):
            _merge(into[key], holders, value, place, f"{path}.")
        elif into[key] != value:
            raise Error(
                f"{holder} and {place} hold different values of {path} in {PATH}, of the same generation",
                hint="find out which node has the file in use; keep a copy of the other node's file, then "
                "replace it with the first",
                code="SecretsConflict",
            )


def _without_exchanged(values: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier revision says and a *newer* one says nothing of; what a newer release keeps is exchanged too."""
    known = {name: value for name, value in values.items() if name in _KNOWN}
    exchanged = {*_CHANGING, *(name for name in (*_IDENTITY, *_MADE) if name in newer)}
    left = {name: value for name, value in known.items() if name not in exchanged}
    return left | _added({name: value for name, value in values.items() if name not in known}, newer)


def _added(values: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """The *values* that *newer* does not have, in the objects inside as well."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(newer.get(name), dict):
            found[name] = _added(value, newer[name])
        elif name not in newer:
            found[name] = value
    return found


class Vault:
    """The secrets as found on the servers, and the place where missing ones are made, once."""

    def __init__(
        self, cluster: str, names: Sequence[str], found: Mapping[str, Found | None], data: Collection[str] = ()
    ) -> None:
        """*found* says what each place has, *data* which hosts have data of a registry.

        Raises Error (SecretsConflict) on two generations or two values, Error (SecretsDamaged) if the identity of the
        cluster is nowhere.
        """
        self._cluster = cluster
        self._names = tuple(names)
        self._data = sorted(data)
        self._lock = threading.Lock()
        self._found: Found | None = None
        there = {place: one for place, one in found.items() if one is not None}
        generations: dict[str, list[str]] = {}
        for place, one in there.items():
            generations.setdefault(str(one.values["generation"]), []).append(place)
        if len(generations) > 1:
            held = "; ".join(f"{', '.join(places)}: {one}" for one, places in sorted(generations.items()))
            raise Error(
                f"the nodes have secrets of {len(generations)} different clusters ({held})",
                hint="list only nodes of one cluster in the cluster file",
                code="SecretsConflict",
            )
        values: dict[str, Any] = {}
        holders: dict[str, str] = {}
        stamp = Found({}).stamp
        self.seen: int = max((one.values.get("revision", 0) for one in there.values()), default=0)
        # Those of the newest revision first: of the others only what it does not have.
        for place, one in sorted(there.items(), key=lambda item: -int(item[1].values.get("revision", 0))):
            current = one.values.get("revision", 0) == self.seen
            said = one.values if current else _without_exchanged(one.values, values)
            _merge(values, holders, said, place, "")
            stamp = joined(stamp, one.stamp)
        if there:
            if lost := [name for name in _IDENTITY if name not in values]:
                raise Error(f"no node has {', '.join(lost)} in {PATH}", hint=_RESTORE, code="SecretsDamaged")
            if ("s3_key_id" in values) is not ("s3_secret_key" in values):
                raise Error(f"no node has both parts of the S3 key in {PATH}", hint=_RESTORE, code="SecretsDamaged")
            self._found = Found(values, stamp)

    @classmethod
    def read(
        cls, cluster: str, names: Sequence[str], hosts: Mapping[str, Mapping[str, bytes]], data: Collection[str] = ()
    ) -> Vault:
        """From the files of each host, by their paths. Raises Error if one is damaged, NewerFormat."""
        found: dict[str, Found | None] = {}
        for host, files in hosts.items():
            for path, content in files.items():
                try:
                    found[host if path == PATH else f"{host} ({path})"] = _parse(content)
                except NewerFormat as error:
                    raise NewerFormat(error.message, host=host) from error
                except Damaged as error:
                    raise Error(
                        f"{path} is damaged: {error}", host=host, hint=_RESTORE, code="SecretsDamaged"
                    ) from error
        return cls(cluster, names, found, data)

    @property
    def missing(self) -> list[str]:
        """What the servers lack: names of secrets, and of nodes whose keys are to be made."""
        if self._found is None:
            return [*_IDENTITY, *_MADE, *self._names]
        keys = self._found.values.get("node_keys", {})
        return [*_missing(self._found.values), *(name for name in self._names if name not in keys)]

    @property
    def known(self) -> bool:
        """Whether there are all secrets, for every node."""
        return not self.missing

    @property
    def made(self) -> bool:
        """Whether this cluster has secrets, be it that some are missing still."""
        return self._found is not None

    @property
    def secrets(self) -> Secrets:
        """The secrets. Raises NotYetKnown before all of them are made."""
        if self._found is None:
            raise NotYetKnown("the secrets are made by the phase secrets", hint="run init")
        if missing := _missing(self._found.values):
            raise NotYetKnown(f"this release needs more secrets: {', '.join(missing)}", hint="run init")
        return Secrets.of(self._found)

    @property
    def data_without_secrets(self) -> Sequence[str]:
        """The hosts that have data of a registry and no secrets: whether the data belong to these is not known."""
        return self._data

    def revised(self, secrets: Secrets) -> Vault:
        """What the servers are to have from now on: *secrets* as their next revision. Raises NewerFormat."""
        revised = replace(secrets, revision=self.secrets.revision + 1)
        FORMAT.seal({}, revised.kept)
        vault = Vault(self._cluster, self._names, {"the next revision": revised.found}, self._data)
        vault.seen = self.secrets.revision  # as far as the servers are
        return vault

    def preview(self) -> Secrets:
        """The secrets, with placeholders for what is not made yet."""
        return Secrets.of(_with_placeholders(self._found or Found({}), self._names))

    def check(self) -> None:
        """Raise Error (SecretsLost) if all would be made anew over data, NewerFormat if a file may not be written."""
        if self._found is not None:
            FORMAT.seal({}, self._found)
        elif self._data:
            raise Error(
                f"no node has {PATH}, but {', '.join(self._data)} has registry data, which cannot be read with "
                "new secrets",
                hint=f"restore {PATH} on one of the nodes from a backup (owner root, mode 600)",
                code="SecretsLost",
            )

    def ensure(self) -> Secrets:
        """The secrets; what is missing is made, once for all threads. Raises Error (SecretsLost), NewerFormat."""
        with self._lock:
            if self.missing:
                self.check()
            if self._found is None:
                self._found = Secrets.make(self._cluster, self._names).found
            if self.missing:
                new = {name: _MADE[name]() for name in _missing(self._found.values)}
                keys = {name: _node_key() for name in self._names}
                values = {**new, **self._found.values, "node_keys": {**keys, **self._found.values.get("node_keys", {})}}
                self._found = replace(self._found, values=values)
            return Secrets.of(self._found)


def kept_path(data_directory: str) -> str:
    """Where ``reset`` leaves the secrets when it leaves the data."""
    return f"{data_directory}/secrets.json"


def contents(host: Host, data_directory: str) -> dict[str, bytes]:
    """The secrets files of *host* by their paths: its own, and the one that a reset left with the data."""
    found = {path: host.read(path) for path in (PATH, kept_path(data_directory))}
    # An empty file is a damaged one, not a host without secrets: then new ones would lock all out of the storage.
    return {path: content for path, content in found.items() if content is not None}


#: Prints one name if there is anything in the directories ``$@``; lost+found is what a file system begins with.
_DATA = 'find "$@" -mindepth 1 ! -name lost+found -print -quit 2>/dev/null || :'


def has_data(host: Host, directories: Sequence[str]) -> bool:
    """Whether there is data of a registry on *host*, which belongs to the secrets that it was written with."""
    return bool(host.query("sh", "-c", _DATA, "data", *directories).text)
