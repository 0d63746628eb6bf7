"""The records that releases share, each with its frozen samples, and what this release makes of one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, cast
from unittest import mock
from unittest.mock import ANY

from kubeadm_registry import config, members, pki, secrets
from kubeadm_registry.access import collecting, executor, questions
from kubeadm_registry.access.executor import ByHelper, OnHost
from kubeadm_registry.agent import document, formats, hardstate, kept, moves, moving, promised, pulls, trend
from kubeadm_registry.backup import Contents, Identities, contents, file
from kubeadm_registry.bundle.lineage import Lineage
from kubeadm_registry.components import executor_files, helper, programs, replacing, retention
from kubeadm_registry.containerd import backup
from kubeadm_registry.containerd.record import FORMATS, ORIGINALS, WRITTEN, Originals, Record
from kubeadm_registry.errors import Error
from kubeadm_registry.helper import jobs, space
from kubeadm_registry.helper import replace as unit
from kubeadm_registry.helper import replacing as helper_replacing
from kubeadm_registry.helper.__main__ import answered
from kubeadm_registry.images import brought, journal, seeded
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.retention import history, ledger, order, standing, trash
from kubeadm_registry.retention import record as plan
from kubeadm_registry.secrets import Vault
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fakes import FakeTransport

SAMPLES = Path(__file__).parents[1] / "golden" / "formats"
NAMES = ("cp-1", "cp-2", "cp-3")
MEMBERS = members.Members(1, {name: f"10.0.0.1{number}" for number, name in enumerate(NAMES, 1)})
TICKET, RUN = "0123456789abcdef", "0123456789abcdef"
UNREAD = b""
"""What becomes of a record that counts as none: what it is about begins anew."""
Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Kind:
    """A record of *format*: a *sample*, and *back*: what this release writes after it has read a content.

    *objects* are the paths of those objects in what is written that may get more keys. *needed* are the keys in them
    without which the record is refused, with *code*, or UNREAD.
    """

    format: formats.Format
    sample: str
    back: Callable[[bytes], bytes]
    objects: tuple[Keys, ...] = ((),)
    needed: frozenset[Keys] = frozenset()
    code: str = ""
    #: The record in the file of the sample.
    load: Callable[[bytes], bytes] = bytes
    #: What the sample has, in the shape that this release writes.
    today: Callable[[Any], Any] = lambda document: document
    #: What is missing is not made again: it is only work that is done twice, or is not there where there is none.
    disposable: bool = False
    #: Whoever writes one has all of it from elsewhere, so the keys of another release are not kept ...
    keeps: bool = True
    #: ... and no release is asked whether it may be written over: it is a message, or follows from the cluster file.
    asks: bool = True

    def content(self) -> bytes:
        """The frozen record."""
        return self.load((SAMPLES / self.sample).read_bytes())

    def document(self) -> Any:
        """What this release makes of the sample."""
        return json.loads(self.back(self.content()))


def top(*names: str) -> frozenset[Keys]:
    """These keys of the record itself."""
    return frozenset((name,) for name in names)


def below(path: Keys, *names: str) -> frozenset[Keys]:
    """These keys of the object at *path*."""
    return frozenset((*path, name) for name in names)


# ---- on the nodes ----------------------------------------------------------------------------------------------------


def _secrets(content: bytes) -> bytes:
    return Vault.read("x", NAMES, {"cp-1": {secrets.PATH: content}}).ensure().to_json()


def _programs(content: bytes) -> bytes:
    server = FakeTransport()
    server.put(programs.RECORD, content)
    programs.Recorded(programs.read_record(content)).apply(server.host())
    return server.content(programs.RECORD)


def _containerd(path: str, read: Callable[[Host], Originals | Record]) -> Callable[[bytes], bytes]:
    def back(content: bytes) -> bytes:
        server = FakeTransport()
        server.put(path, content)
        server.answer("mkdir")
        backup.store(server.host(), read(server.host()))
        return server.content(path)

    return back


def _with_former(found: Any) -> Any:
    for entry in found["files"].values():
        for edit in entry["edits"]:
            edit.setdefault("former", [])
    return found


def _with_digests(found: Any) -> Any:
    for entry in found["files"].values():
        entry["sha256"] = None
    return found


def _node(path: str, content: bytes) -> FakeTransport:
    """A node with the file *path* whose nodes replace each other."""
    server = FakeTransport()
    server.put(members.PATH, MEMBERS.render())
    server.put(replacing.KEY, "key", 0o600)
    server.answer("systemctl", "start", "--no-block", "--", replacing.UNIT)
    server.answer("systemctl", "show", "--property=ActiveState", "--value", "--", replacing.UNIT, with_="inactive")
    server.put(path, content, 0o600)
    return server


def _request(content: bytes) -> bytes:
    server = _node(replacing.REQUEST, content)
    old, new = unit.asked(server.host())
    helper_replacing.begin(server.host(), old, new.model_dump(by_alias=True, exclude_none=True, mode="json"))
    return server.content(replacing.REQUEST)


def _work(content: bytes) -> bytes:
    server = _node(replacing.WORK, content)
    last = helper_replacing.last(server.host())
    if last is None:
        return UNREAD
    unit._Progress(server.host(), last)
    return server.content(replacing.WORK)


def _users(content: bytes) -> bytes:
    server = _node(replacing.USERS, content)
    former, found = replacing._former(FakeCluster.of(config.SMALLEST).cluster, server.host())
    return replacing._note({"root", *former}, found).content


def _settings(content: bytes) -> bytes:
    name, given = helper.read_settings(content, "x")
    cluster = replace(FakeCluster.of(config.SMALLEST).cluster, config=given)
    return helper.settings(cluster, Host(name, "", FakeTransport()))


def _with_replacement(found: Any) -> Any:
    found["cluster"]["spec"]["replacement"] = {"mode": "Propose", "after": "30m"}
    return found


def _step(content: bytes) -> bytes:
    ticket, values = space.requested(_node(helper.request_path("mark"), content).host(), "mark")
    return helper.REQUEST.render({"ticket": ticket, "values": values})


def _stepped(content: bytes) -> bytes:
    found = jobs._result(_node(helper.result_path("mark"), content).host(), "mark", TICKET)
    return UNREAD if found is None else helper.RESULT.render(found)


def _notes(content: bytes) -> bytes:
    place = collecting.Place(cast(Any, None), FakeTransport().host(), cast(Any, None), collecting.InMemory(content))
    try:
        found, manifests = collecting._marked(place, RUN)
    except Error as error:
        if error.code == "CollectionBusy":
            return UNREAD
        raise
    return collecting.NOTED.render({"run": RUN, "found": found, "manifests": sorted(manifests)})


# ---- of the agent ----------------------------------------------------------------------------------------------------


def _signed(content: bytes) -> bytes:
    said = json.loads(content)
    return json.dumps({**said, "sha256": promised.checksum(said)}).encode()


def _plain(content: bytes) -> bytes:
    said = json.loads(content[: promised.RECORD])
    del said["sha256"]
    return json.dumps(said).encode()


def _promised(content: bytes) -> bytes:
    found = promised.decode(_signed(content))
    return UNREAD if found is None else _plain(hardstate.encode(hardstate._state(found), found))


def _listed(module: ModuleType) -> Callable[[bytes], bytes]:
    async def add(path: Path) -> None:
        one = kept.KeptList(path, module.FORMAT, module.KEY, 99, lambda *_: None)
        one.read()
        one.add(one.entries.pop() if one.entries else {})
        await one.settle(5)

    def back(content: bytes) -> bytes:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "list.json"
            path.write_bytes(content)
            asyncio.run(add(path))
            return path.read_bytes()

    return back


def _state(content: bytes) -> bytes:
    found = document.read(content.decode())
    return UNREAD if found is None else json.dumps(document.sealed(found)).encode()


def _move(content: bytes) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "move.json"
        path.write_bytes(content)
        found = moving.asked(path, 1230.0)
    values: dict[str, Any] = {"to": found.to, "until": 1260, **({"yields": True} if found.yields else {})}
    return UNREAD if found == moving.NOTHING else json.dumps(moving.FORMAT.seal(values)).encode()


def _pulled(name: str) -> Callable[[bytes], bytes]:
    def back(content: bytes) -> bytes:
        with (
            TemporaryDirectory() as folder,
            mock.patch.object(time, "time", return_value=1900000060.0),
            mock.patch.object(time, "clock_gettime", return_value=60.0),
        ):
            path = Path(folder)
            (path / pulls.RECORD_FILE).write_bytes((SAMPLES / "pulls.json").read_bytes())
            (path / pulls.POSITION_FILE).write_bytes((SAMPLES / "pulls-position.json").read_bytes())
            (path / name).write_bytes(content)
            recorder = pulls.Recorder(path, (), lambda *_: (), "3", lambda: True)
            recorder.record.changed = True
            recorder._write()
            return (path / name).read_bytes()

    return back


# ---- elsewhere -------------------------------------------------------------------------------------------------------


def _journal(content: bytes) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "seed.json"
        path.write_bytes(content)
        with Journal(path) as one:
            one.note("a blob", "/uploads/1")
            one.note("a blob", "")
        return path.read_bytes()


def _seeded(content: bytes) -> bytes:
    """The format is one of the annotations here, which are text."""
    found = json.loads(content)
    if "format" in found:
        format = {"dev.kubeadm-registry.format": json.dumps(found.pop("format"))}
        found["annotations"] = found.get("annotations", {}) | format
    record = seeded.Record.parse(json.dumps(found).encode(), "the record")
    line = Lineage(record.index, record.index, "", record.sequence, {})
    written = json.loads(seeded.render(line, record))
    written["format"] = json.loads(written["annotations"].pop("dev.kubeadm-registry.format"))
    return json.dumps(written).encode()


BACKUP, IDENTITY = SAMPLES / "0.2" / "backup.tar", SAMPLES / "0.2" / "backup.key"


def _opened() -> Contents:
    return file.read(BACKUP).opened(Identities((IDENTITY,)))


def _index(content: bytes) -> bytes:
    """It is signed again by the CA of the sample."""
    found = {**file.unpack(BACKUP.read_bytes()), file.INDEX: content}
    found[file.CA_SIGNATURE] = pki.sign(_opened().ca, content)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "backup.tar"
        path.write_bytes(file.pack(found))
        one = file.read(path)
        one.opened(Identities((IDENTITY,)))
    return file.FORMAT.render(file._INDEX.dump_python(one.index, mode="json"))


def _inventory(content: bytes) -> bytes:
    return Contents.of({**_opened().files(), contents.INVENTORY: content}).files()[contents.INVENTORY]


def _question(content: bytes) -> bytes:
    server = FakeTransport()
    server.answer("sh", "-c", executor._STATE, "state")
    server.answer("runuser", "-u", retention.USER, "--", "cat", executor_files.result_path("ab" * 32))
    said = json.loads(answered(content, OnHost(server.host())))
    if (code := said.get("error", {}).get("code")) == "NewerFormat":
        raise questions.error_of(said["error"], "cp-1")
    invalid = code in ("QuestionInvalid", "OrderInvalid")
    return UNREAD if invalid else questions.QUESTION.render(questions.QUESTION.parse(content).values)


def _answer(content: bytes) -> bytes:
    return questions.answer(asdict(ByHelper("cp-1", lambda *_: content).progress("ab" * 32)))


CONFIG = "/etc/containerd/config.toml"
UID = "4f6f3f39-7f1c-4dcb-9d1e-2f8d3a0c5f11"
_WHOLE = top("generation", "ca_certificate", "ca_key", "s3_key_id", "s3_secret_key")

KINDS = (
    Kind(
        FORMATS[0], "0.1/containerd-originals.json", _containerd(ORIGINALS, backup.originals),
        objects=((), ("files", CONFIG)), needed=below(("files", CONFIG), "mode", "owner"), code="BackupDamaged",
        today=_with_digests,
    ),
    Kind(
        FORMATS[1],
        "0.1/containerd-written.json",
        _containerd(WRITTEN, backup.record),
        objects=((), ("files", CONFIG), ("files", CONFIG, "edits", 0)),
        needed=below(("files", CONFIG), "sha256", "edits")
        | below(("files", CONFIG, "edits", 0), "file", "table", "key", "new"),
        code="BackupDamaged",
        today=_with_former,
    ),
    Kind(
        journal.FORMAT, "0.1/seed-journal.json", _journal, objects=((), ("uploads",)),
        today=lambda found: {"uploads": found}, disposable=True,
    ),
    Kind(
        seeded.FORMAT,
        "0.1/seeded.json",
        _seeded,
        objects=((), ("annotations",)),
        needed=top("annotations")
        | below(("annotations",), "dev.kubeadm-registry.bundle.index", "dev.kubeadm-registry.bundle.sequence"),
        code="SeedRecordDamaged",
    ),
    Kind(
        secrets.FORMAT,
        "0.1/secrets.json",
        _secrets,
        needed=_WHOLE,
        code="SecretsDamaged",
        today=lambda found: {**found, "retention_key": ANY, "retention_password": ANY},  # made where missing
    ),
    *(
        Kind(secrets.FORMAT, sample, _secrets, needed=_WHOLE, code="SecretsDamaged", disposable=True)
        for sample in ("secrets-exchange.json", "secrets-left.json")
    ),
    Kind(
        programs.FORMAT,
        "0.1/programs.json",
        _programs,
        objects=((), ("programs", "haproxy"), ("programs", "haproxy", "source"),
                 ("programs", "haproxy", "source", "packages", 0)),
        needed=below(("programs", "haproxy"), "version", "architecture", "prefix", "entry_point", "digest")
        | below(("programs", "haproxy", "source"), "kind", "origin", "checked")
        | below(("programs", "haproxy", "source", "packages", 0), "name", "version", "sha256"),
        code="ProgramsDamaged",
        today=lambda found: {"programs": found},
    ),
    Kind(
        members.FORMAT, "members.json", lambda content: members.parse(content).render(),
        needed=top("generation", "nodes"), code="Damaged",
    ),
    Kind(
        members.FORMAT, "members-earlier.json", lambda content: members.parse(content).render(),
        needed=top("generation", "nodes"), code="Damaged", disposable=True,
    ),
    Kind(promised.FORMAT, "0.1/hardstate", _promised, load=_plain),
    Kind(moves.FORMAT, "agent-moves.json", _listed(moves)),
    Kind(trend.FORMAT, "agent-space.json", _listed(trend)),
    Kind(pulls.RECORD, "pulls.json", _pulled("pulls.json"), today=lambda found: {**found, "missed": {}}),
    Kind(pulls.RECORD, "pulls-missed.json", _pulled("pulls.json")),
    Kind(
        pulls.POSITION, "pulls-position.json", _pulled("position.json"),
        today=lambda found: {**found, "booted": 1900000000},
    ),
    Kind(pulls.POSITION, "pulls-position-booted.json", _pulled("position.json")),
    *(
        Kind(document.FORMAT, sample, _state, needed=top("time"), disposable=True, keeps=False, asks=False)
        for sample in ("0.1/agent-state.json", "agent-state.json")
    ),
    Kind(moving.FORMAT, "move.json", _move, needed=top("to", "until"), keeps=False, asks=False),
    Kind(moving.FORMAT, "move-yields.json", _move, needed=top("to", "until", "yields"), keeps=False, asks=False),
    Kind(
        replacing.REQUESTED, "replacing-request.json", _request, needed=top("old", "new"), code="RequestDamaged",
        keeps=False,
    ),
    Kind(replacing.WORKED, "replacing-work.json", _work, needed=top("old", "new", "began")),
    Kind(replacing.NOTED, "replacing-users.json", _users),
    Kind(
        helper.SETTINGS, "helper-node.json", _settings, needed=top("node", "cluster"), code="HelperUnknown",
        today=_with_replacement, keeps=False, asks=False,
    ),
    Kind(
        helper.REQUEST, "helper-step-request.json", _step, needed=top("ticket", "values"), code="RequestDamaged",
        keeps=False, asks=False,
    ),
    Kind(helper.RESULT, "helper-step.json", _stepped, needed=top("ticket", "result"), keeps=False, asks=False),
    Kind(
        collecting.NOTED, "helper-notes.json", _notes, needed=top("run", "found", "manifests"), keeps=False,
        asks=False,
    ),
    *(
        Kind(
            executor_files.FORMAT, sample,
            lambda content: executor_files.Settings.parse(content).to_json(),
            objects=((), ("registry",)),
            needed=top("node", "registry", "retention_key", "agent_state")
            | below(("registry",), "url", "ca", "username", "password"),
            code="Damaged", disposable=True, keeps=False, asks=False,
        )
        for sample in ("retention-executor.json", "retention-executor-pause.json")
    ),
    Kind(
        executor_files.RESULT, "retention-result.json",
        lambda content: executor_files.RESULT.render(executor_files.read_result(content)),
        disposable=True, keeps=False, asks=False,
    ),
    Kind(questions.QUESTION, "helper-question.json", _question, needed=top("verb", "order"), keeps=False, asks=False),
    Kind(
        questions.ANSWER, "helper-answer.json", _answer,
        needed=top("state", "result", "status", "line", "said"), code="HelperUnknown", keeps=False, asks=False,
    ),
    Kind(
        order.FORMAT, "retention-order.json", lambda content: order.Order.parse(content).to_json(),
        needed=top("made", "policy", "plan", "approved", "grace", "window", "share", "sets", "delete", "restore",
                   "purge", "forget", "sweep"),
        code="Damaged", keeps=False, asks=False,
    ),
    *(
        Kind(
            order.FORMAT, sample, lambda content: order.Order.parse(content).to_json(),
            needed=top("made", "policy", "plan", "approved", "grace", "window", "share", "sets", "delete", "restore",
                       "purge", "forget", "sweep") | below(("caller",), "lease", "epoch"),
            objects=((), ("caller",)), code="Damaged", disposable=True, keeps=False, asks=False,
        )
        for sample in ("retention-order-of-an-operator.json", "retention-order-left.json")
    ),
    Kind(
        plan.FORMAT, "retention-plan.json",
        lambda content: json.dumps(plan.Plan.parse(content).to_dict()).encode(),
        objects=((), ("deletions", 0), ("kept", 1)),
        needed=top("policy", "made", "digest", "deletions", "kept", "needsApproval")
        | below(("deletions", 0), "repository", "tag", "digest", "cause", "rule", "why", "age", "size", "freed",
                "partOf")
        | below(("kept", 1), "repository", "digest", "tags", "cause", "rule", "why", "age", "size"),
        code="Damaged",
    ),
    *(
        Kind(
            ledger.FORMAT, sample, lambda content: ledger.Ledger.parse(content).to_json(),
            objects=((), ("clusters", UID)) if UID in (SAMPLES / sample).read_text() else ((),),
            needed=top("written", "repositories", "clusters")
            | (below(("clusters", UID), "name", "reported", "current", "uses")
               if UID in (SAMPLES / sample).read_text() else frozenset()),
            code="Damaged", disposable=True,
        )
        for sample in ("0.1/retention-ledger.json", "retention-ledger-asked.json", "retention-ledger-marker.json",
                       "retention-ledger-version.json", "retention-ledger-grace.json")
    ),
    Kind(
        trash.FORMAT, "retention-trash.json", lambda content: trash.Trash.parse(content).to_json(),
        objects=((), ("images", 0)), code="Damaged",
        needed=top("images")
        | below(("images", 0), "repository", "digest", "tags", "parts", "deleted", "plan", "rule", "why", "size",
                "complete"),
    ),
    Kind(
        standing.FORMAT, "retention-standing.json", lambda content: standing.Standing.parse(content).to_json(),
        objects=((), ("pins", 0)), code="Damaged",
        needed=top("pins", "approved", "paused", "why")
        | below(("pins", 0), "name", "reason", "since", "until"),
    ),
    Kind(
        standing.SPENT, "retention-spent.json", lambda content: standing.Spent.parse(content).to_json(),
        needed=top("approvals", "callers", "window", "asking", "shorter"), code="Damaged",
    ),
    *(
        Kind(
            history.FORMAT, sample, lambda content: history.History.parse(content).to_json(),
            objects=((), ("runs", 0)), code="Damaged", disposable=True,
            needed=top("runs")
            | below(("runs", 0), "order", "plan", "policy", "node", "began", "ended", "deleted", "restored", "purged",
                    "skipped", "error"),
        )
        for sample in ("retention-history.json", "retention-history-left.json")
    ),
    Kind(
        brought.FORMAT, "0.1/brought.json", lambda content: brought.Brought.parse(content).to_json(),
        needed=top("index", "images"), code="Damaged", keeps=False, asks=False,
    ),
    Kind(
        file.FORMAT, "0.2/backup.tar", _index, load=lambda content: file.unpack(content)[file.INDEX],
        needed=top("cluster", "generation", "made", "release", "ca", "encryption", "content", "digest", "nodes"),
        code="BackupDamaged", keeps=False, asks=False,
    ),
    Kind(
        contents.FORMAT, "0.2/backup.tar", _inventory, load=lambda _: _opened().files()[contents.INVENTORY],
        objects=((), ("members", 0)), needed=below(("members", 0), "name", "address"), code="Damaged", keeps=False,
        asks=False,
    ),
)  # fmt: skip
