"""Every stored record as release 0.1 wrote it, and each with one key more and one key less.

A record has a Kind here. What comes back from a release that reads and writes it must hold every key that the release
does not know; a key that is missing has a default, or is named in an error with a code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import ANY

import pytest

from kubeadm_registry import secrets
from kubeadm_registry.bundle.lineage import Lineage
from kubeadm_registry.components import programs
from kubeadm_registry.containerd import backup
from kubeadm_registry.containerd.record import ORIGINALS, WRITTEN, Originals, Record
from kubeadm_registry.errors import Error
from kubeadm_registry.images import seeded
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.secrets import Vault
from kubeadm_registry.transport.host import Host
from tests.unit.fakes import FakeTransport

SAMPLES = Path(__file__).parents[1] / "golden" / "formats" / "0.1"
NAMES = ("cp-1", "cp-2", "cp-3")
Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Kind:
    """A record: its *sample*, and what this release writes after it has read it.

    *objects* are the paths of those objects in what is written that may get more keys. *needed* are the keys in them
    without which the record is refused, with *code*.
    """

    sample: str
    write_back: Callable[[bytes], bytes]
    objects: tuple[Keys, ...] = ((),)
    needed: frozenset[Keys] = frozenset()
    code: str = ""
    #: What 0.1 wrote, in the shape that this release writes.
    today: Callable[[Any], Any] = lambda document: document
    #: What is missing is not made again: it is only work that is done twice.
    disposable: bool = False

    def content(self) -> bytes:
        return (SAMPLES / self.sample).read_bytes()

    def document(self) -> Any:
        """What this release makes of the sample."""
        return json.loads(self.write_back(self.content()))


def secrets_back(content: bytes) -> bytes:
    return Vault.read("x", NAMES, {"cp-1": {secrets.PATH: content}}).ensure().to_json()


def programs_back(content: bytes) -> bytes:
    server = FakeTransport()
    server.put(programs.RECORD, content)
    programs.Recorded(programs.read_record(content)).apply(server.host())
    return server.content(programs.RECORD)


class Containerd:
    """A host on which containerd's record *kind* is read and written."""

    def __init__(self, path: str, read: Callable[[Host], Originals | Record]) -> None:
        self.path, self.read = path, read

    def __call__(self, content: bytes) -> bytes:
        server = FakeTransport()
        server.put(self.path, content)
        server.answer("mkdir")
        backup.store(server.host(), self.read(server.host()))
        return server.content(self.path)


def with_digests(document: Any) -> Any:
    for entry in document["files"].values():
        entry["sha256"] = None
    return document


CONFIG = "/etc/containerd/config.toml"


def journal_back(content: bytes) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "seed.json"
        path.write_bytes(content)
        with Journal(path) as journal:
            journal.note("a blob", "/uploads/1")
            journal.note("a blob", "")
        return path.read_bytes()


def seeded_back(content: bytes) -> bytes:
    """The format is one of the annotations here, which are text."""
    document = json.loads(content)
    if "format" in document:
        format = {"dev.kubeadm-registry.format": json.dumps(document.pop("format"))}
        document["annotations"] = document.get("annotations", {}) | format
    record = seeded.Record.parse(json.dumps(document).encode(), "the record")
    line = Lineage(record.index, record.index, "", record.sequence, {})
    written = json.loads(seeded.render(line, record))
    written["format"] = json.loads(written["annotations"].pop("dev.kubeadm-registry.format"))
    return json.dumps(written).encode()


KINDS = (
    Kind(
        "containerd-originals.json",
        Containerd(ORIGINALS, backup.originals),
        objects=((), ("files", CONFIG)),
        needed=frozenset({("files", CONFIG, "mode"), ("files", CONFIG, "owner")}),
        code="BackupDamaged",
        today=with_digests,
    ),
    Kind(
        "containerd-written.json",
        Containerd(WRITTEN, backup.record),
        objects=((), ("files", CONFIG), ("files", CONFIG, "edits", 0)),
        needed=frozenset(
            [("files", CONFIG, key) for key in ("sha256", "edits")]
            + [("files", CONFIG, "edits", 0, key) for key in ("file", "table", "key", "new")]
        ),
        code="BackupDamaged",
    ),
    Kind(
        "seed-journal.json",
        journal_back,
        objects=((), ("uploads",)),
        today=lambda document: {"uploads": document},
        disposable=True,
    ),
    Kind(
        "seeded.json",
        seeded_back,
        objects=((), ("annotations",)),
        needed=frozenset(
            {
                ("annotations",),
                ("annotations", "dev.kubeadm-registry.bundle.index"),
                ("annotations", "dev.kubeadm-registry.bundle.sequence"),
            }
        ),
        code="SeedRecordDamaged",
    ),
    Kind(
        "secrets.json",
        secrets_back,
        needed=frozenset({("generation",), ("ca_certificate",), ("ca_key",), ("s3_key_id",), ("s3_secret_key",)}),
        code="SecretsDamaged",
        today=lambda document: {**document, "retention_key": ANY, "retention_password": ANY},  # made where missing
    ),
    Kind(
        "programs.json",
        programs_back,
        objects=((), ("programs", "haproxy"), ("programs", "haproxy", "source"),
                 ("programs", "haproxy", "source", "packages", 0)),
        needed=frozenset(
            [("programs", "haproxy", key) for key in ("version", "architecture", "prefix", "entry_point", "digest")]
            + [("programs", "haproxy", "source", key) for key in ("kind", "origin", "checked")]
            + [("programs", "haproxy", "source", "packages", 0, key) for key in ("name", "version", "sha256")]
        ),
        code="ProgramsDamaged",
        today=lambda document: {"programs": document},
    ),
)  # fmt: skip


def inside(document: Any, path: Keys) -> Any:
    for key in path:
        document = document[key]
    return document


def keys(kind: Kind) -> Iterator[Keys]:
    """The path of each key in the objects of a record."""
    for path in kind.objects:
        for key in inside(kind.document(), path):
            if key != "format":
                yield (*path, key)


@pytest.fixture(params=KINDS, ids=lambda kind: str(kind.sample))
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def test_what_release_0_1_wrote_is_read_and_nothing_of_it_is_lost(kind: Kind) -> None:
    document = kind.document()
    assert document.pop("format").keys() == {"version", "minReader", "minWriter"}
    assert document == kind.today(json.loads(kind.content()))


def test_one_key_more_is_kept_and_written_back(kind: Kind) -> None:
    for path in kind.objects:
        document = kind.document()
        inside(document, path)["of_a_newer_release"] = {"deep": [1, {"x": None}]}
        assert json.loads(kind.write_back(json.dumps(document).encode())) == document, path


def test_one_key_less_has_a_default_or_is_named(kind: Kind) -> None:
    refused = set()
    for path in keys(kind):
        document = deepcopy(kind.document())
        del inside(document, path[:-1])[path[-1]]
        try:
            written = json.loads(kind.write_back(json.dumps(document).encode()))
        except Error as error:
            assert error.code == kind.code, path
            assert str(path[-1]) in error.message or "both parts" in error.message, error.message
            assert error.hint
            refused.add(path)
        else:
            assert kind.disposable or path[-1] in inside(written, path[:-1]), path
    assert refused == kind.needed


@pytest.mark.parametrize("key", ["minReader", "minWriter"])
def test_what_asks_for_a_newer_release_is_not_written(kind: Kind, key: str) -> None:
    document = kind.document()
    document["format"][key] = 99
    with pytest.raises(Error, match="a newer release wrote") as caught:
        kind.write_back(json.dumps(document).encode())
    assert (caught.value.code, caught.value.hint) == ("NewerFormat", "use a newer kubeadm-registry")


def test_a_higher_version_alone_is_read_and_stays(kind: Kind) -> None:
    document = kind.document()
    document["format"] = {**document["format"], "version": 99, "more": "words"}
    assert json.loads(kind.write_back(json.dumps(document).encode())) == document


def test_every_sample_is_tried_here_or_elsewhere() -> None:
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    names = {path.name for path in SAMPLES.iterdir()}
    here = {kind.sample for kind in KINDS}
    assert here < names
    assert {name for name in names - here if f'0.1/{name}"' not in texts and f'"0.1" / "{name}"' not in texts} == set()
