"""What a backup holds: the secrets, the cluster file, and lists of members, programs, images and pins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from kubeadm_registry import members, secrets
from kubeadm_registry.formats import Damaged, Format, Found
from kubeadm_registry.members import FIRST, Members
from kubeadm_registry.pki import Pair

SECRETS, CLUSTER, INVENTORY = "secrets.json", "cluster.yaml", "inventory.json"
#: Not in a backup of a registry whose nodes have no such list, or of a release that left it out.
MEMBERS = "members.json"
#: Version 1 is that of release 0.2.
FORMAT = Format(f"{INVENTORY} in the backup")


@dataclass(frozen=True, slots=True)
class Member:
    """A node as the storage has it: *identity* is Garage's id of it (``Secrets.node_id``)."""

    name: str
    address: str
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """A program on the nodes; *digest* is that of its layer in the bundle."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class Image:
    """A tag of the registry, and the digest of what it stood for."""

    repository: str
    tag: str
    digest: str


@dataclass(frozen=True, slots=True)
class Pin:
    """An image that retention keeps, for *reason*, from *since* *until* then (seconds since 1970; None: for ever)."""

    name: str
    reason: str
    since: int
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What is encrypted. *secrets* is the record of the file on the nodes, in which what a later release needs may be
    missing; *cluster_file* is the text of the file; *images* None: they were not listed; *recorded* is the list of
    members with those who had left, None: it is not there.
    """

    secrets: Found
    cluster_file: str
    members: tuple[Member, ...]
    programs: tuple[Version, ...]
    images: tuple[Image, ...] | None
    pins: tuple[Pin, ...] = ()
    recorded: Members | None = None

    @property
    def listed(self) -> Members:
        """The list of members, be it only from the addresses of the storage: then who had left is not known."""
        return self.recorded or Members(FIRST, {one.name: one.address for one in self.members})

    @property
    def ca(self) -> Pair:
        """The CA of the cluster."""
        return Pair(self.secrets.values["ca_certificate"], self.secrets.values["ca_key"])

    def files(self) -> dict[str, bytes]:
        """The same as files by name."""
        lists = {
            "members": [asdict(one) for one in self.members],
            "programs": [asdict(one) for one in self.programs],
            "images": None if self.images is None else [asdict(one) for one in self.images],
            "pins": [asdict(one) for one in self.pins],
        }
        return {
            SECRETS: secrets.render(self.secrets),
            CLUSTER: self.cluster_file.encode(),
            INVENTORY: FORMAT.render(lists),
            **({MEMBERS: self.recorded.render()} if self.recorded is not None else {}),
        }

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> Contents:
        """From files by name; what a newer release has added is passed over. Raises Damaged, NewerFormat."""
        for name in (SECRETS, CLUSTER, INVENTORY):
            if name not in files:
                raise Damaged(f"{name} is missing")
        try:
            found = secrets.identity_in(files[SECRETS])
        except ValueError as error:
            raise Damaged(f"{SECRETS}: {error}") from error
        try:
            recorded = members.parse(files[MEMBERS]) if MEMBERS in files else None
        except Damaged as error:
            raise Damaged(f"{MEMBERS}: {error}") from error
        try:
            cluster_file = files[CLUSTER].decode()
            lists = _LISTS.validate_python(FORMAT.parse(files[INVENTORY]).values)
        except UnicodeDecodeError as error:
            raise Damaged(f"{CLUSTER} is not text") from error
        except ValidationError as error:
            first = error.errors()[0]
            raise Damaged(f"{INVENTORY}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        return cls(found, cluster_file, lists.members, lists.programs, lists.images, lists.pins, recorded)


@dataclass(frozen=True, slots=True)
class _Lists:
    members: tuple[Member, ...] = ()
    programs: tuple[Version, ...] = ()
    images: tuple[Image, ...] | None = None
    pins: tuple[Pin, ...] = ()


_LISTS = TypeAdapter(_Lists)
