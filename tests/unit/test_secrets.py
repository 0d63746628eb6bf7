"""The secrets: made once, equal everywhere, never mixed, never shown."""

from __future__ import annotations

import ast
import io
import json
import re
import threading
import traceback
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeadm_registry import config, secrets
from kubeadm_registry.cluster import Cluster, leader, read_vault
from kubeadm_registry.components.services import data_directories
from kubeadm_registry.engine.changes import File
from kubeadm_registry.engine.console import Console
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.engine.report import JsonLines
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import CommandFailed, Error, NotYetKnown, PhaseFailed, PreflightFailed
from kubeadm_registry.formats import NewerFormat
from kubeadm_registry.phases.base import BASE
from kubeadm_registry.phases.identity import STORE
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.result import Result
from kubeadm_registry.secrets import Secrets, Vault, basic
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster, authority, fixed_secrets
from tests.unit.fakes import Failed
from tests.unit.test_workflow import Odd, Recorder, raising

NAMES = ("cp-1", "cp-2", "cp-3")
FIXED = fixed_secrets(NAMES)


def read(content: bytes) -> dict[str, object]:
    document = json.loads(content)
    assert isinstance(document, dict)
    return document


def document(*without: str, **more: object) -> bytes:
    """The file of a cluster without those keys, and with those in it."""
    whole = {**read(FIXED.to_json()), **more}
    return json.dumps({key: value for key, value in whole.items() if key not in without}).encode()


def stamped(version: int, reader: int, writer: int, **more: object) -> bytes:
    """The file as a newer release writes it."""
    return document(format={"version": version, "minReader": reader, "minWriter": writer}, **more)


def store(fake: FakeCluster, ignore: tuple[str, ...] = ()) -> list[str]:
    actions = run((BASE, STORE), fake.cluster, Recorder(), ignore=ignore)
    return [action.host for action in actions if action.phase == "store"]


def refused(fake: FakeCluster) -> set[tuple[str, str]]:
    """What preflight says: host and words."""
    with pytest.raises(PreflightFailed) as caught:
        store(fake)
    assert {problem.check for problem in caught.value.problems} == {"Secrets"}
    return {(problem.host, problem.text) for problem in caught.value.problems}


def held(fake: FakeCluster) -> list[Secrets]:
    return [Secrets.from_json(server.content(secrets.PATH)) for server in fake.servers.values()]


@pytest.fixture
def real() -> FakeCluster:
    """Three servers whose secrets are made as in earnest."""
    return FakeCluster.of(config.SMALLEST, fixed=False)


# ---- made once, equal everywhere --------------------------------------------------------------------------------


def test_secrets_are_made_once_for_all_servers(real: FakeCluster) -> None:
    assert sorted(store(real)) == list(NAMES)
    first, *others = held(real)
    assert others == [first, first]
    for server in real.servers.values():
        state = server.files()[secrets.PATH]
        assert (state.mode, state.owner) == (0o600, "root:root")
    assert store(real) == []


def test_a_run_that_began_before_there_were_any_does_not_undo_those_of_another_one(real: FakeCluster) -> None:
    """Both looked at bare nodes; one waited for a slow node, and had the locks when the other one was done."""
    late = real.cluster
    run(INIT, real.cluster, Recorder(), skip=ELSEWHERE)
    made = real.servers["cp-1"].content(secrets.PATH)
    with pytest.raises(PreflightFailed) as caught:
        run(INIT, late, Recorder(), skip=ELSEWHERE)
    told = f"another run has changed {secrets.PATH} in the meantime; run the command again"
    assert {problem.text for problem in caught.value.problems} == {told}
    assert {server.content(secrets.PATH) for server in real.servers.values()} == {made}


def test_two_clusters_share_no_secret() -> None:
    one, other = (Secrets.make("x", NAMES) for _ in range(2))
    public = {"made", "kept", "revision", "overlap", "renewal"}
    same = [field.name for field in fields(Secrets) if getattr(one, field.name) == getattr(other, field.name)]
    assert set(same) <= public
    assert not set(one.node_keys.values()) & set(other.node_keys.values())


def test_secrets_have_the_form_that_programs_want() -> None:
    made = Secrets.make("x", NAMES)
    assert len(bytes.fromhex(made.rpc_secret)) == 32
    assert made.s3_key_id.startswith("GK") and len(bytes.fromhex(made.s3_key_id[2:])) == 12
    assert len(bytes.fromhex(made.s3_secret_key)) == 32
    for name in NAMES:
        assert len(bytes.fromhex(made.node_keys[name])) == 64
        assert made.node_id(name) == made.node_keys[name][64:]
    for password in (made.push_password, made.pull_password, made.retention_password):
        assert len(password) >= 32 and ":" not in password


def test_a_server_without_them_gets_those_of_the_others(real: FakeCluster) -> None:
    store(real)
    (before, *_) = held(real)
    del real.servers["cp-2"].tree[secrets.PATH]
    assert store(real) == ["cp-2"]
    assert held(real) == [before] * 3


def test_a_wrong_mode_is_mended(real: FakeCluster) -> None:
    store(real)
    content = real.servers["cp-3"].content(secrets.PATH)
    real.servers["cp-3"].put(secrets.PATH, content, 0o644)
    recorder = Recorder()
    (action,) = run((BASE, STORE), real.cluster, recorder)
    assert action.diff == f"{secrets.PATH}: mode 644 -> 600, owner root:root -> root:root"
    assert real.servers["cp-3"].files()[secrets.PATH].mode == 0o600


def test_a_new_server_gets_a_node_key_and_all_else_stays(real: FakeCluster) -> None:
    store(real)
    (before, *_) = held(real)
    known = {name: key for name, key in before.node_keys.items() if name == "cp-1"}
    for server in real.servers.values():
        server.put(secrets.PATH, replace(before, node_keys=known).to_json(), 0o600)
    store(real)
    (after, *others) = held(real)
    assert others == [after, after]
    assert set(after.node_keys) == set(NAMES)
    assert after.node_keys["cp-1"] == before.node_keys["cp-1"]
    assert replace(after, node_keys=known) == replace(before, node_keys=known)


def test_files_of_one_generation_are_merged(real: FakeCluster) -> None:
    """As after two runs that added a server each and died after the first server, and one of a newer release."""
    parts: dict[str, dict[str, object]] = {
        "cp-1": {"node_keys": {"cp-1": FIXED.node_keys["cp-1"]}},
        "cp-2": {"node_keys": {name: FIXED.node_keys[name] for name in ("cp-1", "cp-2")}, "later": {"a": 1}},
        "cp-3": {"node_keys": {name: FIXED.node_keys[name] for name in ("cp-1", "cp-3")}, "later": {"b": 2}},
    }
    for name, part in parts.items():
        real.servers[name].put(secrets.PATH, document(**part), 0o600)
    store(real)
    for server in real.servers.values():
        assert read(server.content(secrets.PATH)) == {**read(FIXED.to_json()), "later": {"a": 1, "b": 2}}
    assert store(real) == []


@pytest.mark.parametrize("key", [*secrets._MADE, "node_keys"])
def test_values_that_conflict_within_a_generation_stop_the_run(real: FakeCluster, key: str) -> None:
    other = {"cp-2": "ab" * 64} if key == "node_keys" else "another value"
    for server in real.servers.values():
        server.put(secrets.PATH, FIXED.to_json(), 0o600)
    real.servers["cp-3"].put(secrets.PATH, document(**{key: other}), 0o600)
    with pytest.raises(Error) as caught:
        read_vault(real.config, real.cluster_hosts(), data_directories(real.config.spec))
    assert caught.value.code == "SecretsConflict"
    path = "node_keys.cp-2" if key == "node_keys" else key
    assert caught.value.message == (
        f"cp-1 and cp-3 hold different values of {path} in {secrets.PATH}, of the same generation"
    )
    assert not shown_in(f"{caught.value} {caught.value.hint}", FIXED)


@pytest.mark.parametrize("key", [*secrets._MADE, "node_keys"])
def test_a_secret_that_one_server_lacks_is_that_of_the_others(real: FakeCluster, key: str) -> None:
    for server in real.servers.values():
        server.put(secrets.PATH, FIXED.to_json(), 0o600)
    real.servers["cp-2"].put(secrets.PATH, document(key), 0o600)
    assert store(real) == ["cp-2"]
    assert held(real) == [FIXED] * 3


@pytest.mark.parametrize("key", [name for name in secrets._MADE if not name.startswith("s3_")])
def test_a_secret_that_nobody_has_is_made_and_the_generation_stays(real: FakeCluster, key: str) -> None:
    for server in real.servers.values():
        server.put(secrets.PATH, document(key), 0o600)
    vault = real.cluster.vault
    assert vault.made and not vault.known
    with pytest.raises(NotYetKnown, match=f"this release needs more secrets: {key}"):
        _ = vault.secrets
    assert getattr(vault.preview(), key) == f"<made by init: {key}>"
    recorder = Recorder()
    run((BASE, STORE), real.cluster, recorder)
    assert f"{secrets.PATH}: new in this cluster: {key}" in {action.diff for action in recorder.actions}
    first, *others = held(real)
    assert others == [first, first]
    assert len(getattr(first, key)) >= 32
    assert replace(first, **{key: getattr(FIXED, key)}) == FIXED
    assert store(real) == []


def test_both_parts_of_the_storage_key_are_made_together(real: FakeCluster) -> None:
    for server in real.servers.values():
        server.put(secrets.PATH, document("s3_key_id", "s3_secret_key"), 0o600)
    store(real)
    assert held(real)[0].s3_key_id.startswith("GK")
    for server in real.servers.values():
        server.put(secrets.PATH, document("s3_secret_key"), 0o600)
    with pytest.raises(Error, match="both parts of the S3 key") as caught:
        read_vault(real.config, real.cluster_hosts(), data_directories(real.config.spec))
    assert caught.value.code == "SecretsDamaged"


@pytest.mark.parametrize("key", ["ca_certificate", "ca_key"])
def test_what_clients_trust_is_never_made_anew(real: FakeCluster, key: str) -> None:
    for server in real.servers.values():
        server.put(secrets.PATH, document(key), 0o600)
    with pytest.raises(Error, match=f"no node has {key} in {secrets.PATH}") as caught:
        read_vault(real.config, real.cluster_hosts(), data_directories(real.config.spec))
    assert caught.value.code == "SecretsDamaged"
    assert "restore the file from another node of this cluster, or from a backup" in caught.value.hint


# ---- of another release -----------------------------------------------------------------------------------------


def test_an_older_release_keeps_what_a_newer_one_added(real: FakeCluster) -> None:
    newer = stamped(3, 1, 1, later={"deep": ["a-secret-of-tomorrow"]}, short="words")
    real.servers["cp-1"].put(secrets.PATH, newer, 0o600)
    assert sorted(store(real)) == ["cp-2", "cp-3"]
    for server in real.servers.values():
        assert read(server.content(secrets.PATH)) == read(newer)
    made = Secrets.from_json(newer)
    assert made.redact("a-secret-of-tomorrow: words") == "<later>: words"


def test_an_older_release_does_not_write_what_it_may_only_read(real: FakeCluster) -> None:
    newer = stamped(3, 1, 3)
    for server in real.servers.values():
        server.put(secrets.PATH, newer, 0o600)
    assert store(real) == [], "nothing is to be written"
    assert real.cluster.secrets.push_password == FIXED.push_password
    del real.servers["cp-3"].tree[secrets.PATH]
    words = f"a newer release wrote {secrets.PATH}: version 3 of its format is needed to write it, and this release has"
    assert refused(real) == {("cp-3", f"{words} version 2; use a newer kubeadm-registry")}
    with pytest.raises(PhaseFailed, match=words) as caught:
        store(real, ignore=("Secrets",))
    assert caught.value.hint == "use a newer kubeadm-registry"
    assert caught.value.cause.code == "NewerFormat"
    assert secrets.PATH not in real.servers["cp-3"].tree


def test_an_older_release_makes_no_secret_in_a_file_that_it_may_only_read(real: FakeCluster) -> None:
    for server in real.servers.values():
        server.put(secrets.PATH, stamped(3, 1, 3, node_keys={}), 0o600)
    with pytest.raises(NewerFormat, match="needed to write it"):
        real.cluster.vault.ensure()


def test_an_older_release_refuses_what_it_cannot_read(real: FakeCluster) -> None:
    real.servers["cp-2"].put(secrets.PATH, stamped(3, 3, 3), 0o600)
    with pytest.raises(NewerFormat, match=f"cp-2: a newer release wrote {secrets.PATH}") as caught:
        read_vault(real.config, real.cluster_hosts(), data_directories(real.config.spec))
    assert caught.value.hint == "use a newer kubeadm-registry"


def test_what_any_server_asks_of_writers_is_asked_on_all(real: FakeCluster) -> None:
    real.servers["cp-1"].put(secrets.PATH, stamped(4, 1, 1), 0o600)
    real.servers["cp-2"].put(secrets.PATH, stamped(3, 1, 3), 0o600)
    found = refused(real)
    assert {host for host, words in found if "needed to write it" in words} == set(NAMES)


# ---- never made anew over data ----------------------------------------------------------------------------------

DATA = "/var/lib/kubeadm-registry/garage"


@pytest.mark.parametrize("path", ["meta/db.lmdb/data.mdb", "data/garage-marker"])
@pytest.mark.parametrize("dry_run", [False, True], ids=["run", "dry run"])
def test_no_new_generation_is_made_while_a_server_has_data(real: FakeCluster, path: str, dry_run: bool) -> None:
    real.servers["cp-2"].put(f"{DATA}/{path}", b"x")
    for server in real.servers.values():
        server.put(f"{DATA}/meta/lost+found", b"")
    assert {host for host, words in refused(real) if "restore" in words} == set(NAMES)
    with pytest.raises(PhaseFailed) as caught:
        run((BASE, STORE), real.cluster, Recorder(), ignore=["Secrets"], dry_run=dry_run)
    assert caught.value.cause.code == "SecretsLost"
    assert "but cp-2 has registry data" in caught.value.message
    assert f"restore {secrets.PATH} on one of the nodes" in caught.value.hint
    assert not [name for name, server in real.servers.items() if secrets.PATH in server.tree]
    with pytest.raises(Error, match="has registry data"):
        real.cluster.vault.ensure()


def test_data_is_no_obstacle_where_secrets_are(real: FakeCluster) -> None:
    for server in real.servers.values():
        server.put(f"{DATA}/meta/node_key", b"x")
    real.servers["cp-1"].put(secrets.PATH, FIXED.to_json(), 0o600)
    store(real)
    assert held(real) == [FIXED] * 3


def test_secrets_of_another_cluster_that_a_reset_kept_are_not_lost(real: FakeCluster) -> None:
    """One place is enough, but only if both say the same."""
    kept = "/var/lib/kubeadm-registry/secrets.json"
    store(real)
    real.servers["cp-3"].put(kept, FIXED.to_json(), 0o600)
    with pytest.raises(Error, match=r"cp-3 \(/var/lib/kubeadm-registry/secrets.json\)") as caught:
        read_vault(real.config, real.cluster_hosts(), data_directories(real.config.spec))
    assert caught.value.code == "SecretsConflict"


REMOVES = re.compile(r"\b(remov|delet|purg|eras|rm\b|unlink)[^.]*?(secrets?\b|this file)|--purge-data", re.IGNORECASE)
#: Says what a command does, or asks for it; nobody is told to give it.
TOLD = {
    "Also delete the images and secrets on the node that leaves.",
    "Also delete all images and secrets. Cannot be undone.",
    "Delete images and secrets (only with --purge-data)",
    "--purge-data",
    # What cannot be changed in place needs another registry, and whoever wants that has the images in bundles.
    "`reset --purge-data` with the old file, `init` with the new file, and `seed` again",
}


def said(root: Path) -> Iterator[tuple[str, str]]:
    """Every text of the program but for docstrings, and every line of its templates, with where it stands."""
    for folder in ("kubeadm_registry", "phases", "operator"):
        for path in (root / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            inner = {id(part) for one in ast.walk(tree) if isinstance(one, ast.JoinedStr) for part in ast.walk(one)}
            docs = {id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    yield f"{path.name}:{node.lineno}", ast.unparse(node)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner | docs:
                    yield f"{path.name}:{node.lineno}", node.value
    for path in (root / "kubeadm_registry" / "templates").rglob("*.j2"):
        # A sentence goes on in the next line.
        yield path.name, " ".join(path.read_text().split())


@pytest.mark.parametrize(
    "text",
    ["delete the file with the secrets", "remove {{ secrets }} on each server", "rm /etc/kubeadm-registry/secrets.json",
     "reset the nodes with --purge-data first"],
)  # fmt: skip
def test_what_proposes_to_remove_secrets_is_found(text: str) -> None:
    assert REMOVES.search(text)


def test_no_text_proposes_to_remove_secrets(root: Path) -> None:
    assert [(place, text) for place, text in said(root) if REMOVES.search(text) and text not in TOLD] == []


def test_all_threads_get_the_same_new_secrets() -> None:
    vault, ready = Vault("x", NAMES, dict.fromkeys(NAMES)), threading.Barrier(4)
    made: list[Secrets] = []

    def ensure() -> None:
        ready.wait(10)
        made.append(vault.ensure())

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert all(one == made[0] for one in made)


def test_before_they_are_made_only_placeholders_are_there() -> None:
    vault = Vault("x", NAMES, dict.fromkeys(NAMES))
    assert not vault.known
    with pytest.raises(NotYetKnown, match="made by the phase secrets"):
        _ = vault.secrets
    preview = vault.preview()
    assert preview.push_password == "<made by init: push_password>"
    assert preview.node_id("cp-2") == "<id of cp-2>"
    assert not vault.known, "to look at them makes none"


# ---- never mixed ------------------------------------------------------------------------------------------------


def test_two_generations_are_refused_with_who_holds_which() -> None:
    other = replace(FIXED, generation="fedcba9876543210")
    with pytest.raises(Error) as caught:
        Vault("x", NAMES, {"cp-1": FIXED.found, "cp-2": other.found, "cp-3": FIXED.found})
    assert caught.value.code == "SecretsConflict"
    assert "(cp-1, cp-3: 0123456789abcdef; cp-2: fedcba9876543210)" in caught.value.message
    assert caught.value.hint == "list only nodes of one cluster in the cluster file"


BROKEN = {
    "empty": b"",
    "cut": FIXED.to_json()[:-40],
    "a list": b"[]",
    "no generation": document("generation"),
    "a number": document(push_password=1),
    "no text": document(ca_key=""),
    "keys that are a list": document(node_keys=[]),
    "a node key that is a number": document(node_keys={"cp-1": 1}),
    "format": document(format=2),
    "not text": b"\xff\xfe",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_damaged_file_is_an_error_and_never_a_reason_for_new_secrets(real: FakeCluster, content: bytes) -> None:
    cluster = real.cluster
    real.servers["cp-2"].put(secrets.PATH, content, 0o600)
    with pytest.raises(Error, match=f"cp-2: {secrets.PATH} is damaged") as caught:
        read_vault(real.config, cluster.hosts, data_directories(real.config.spec))
    assert caught.value.code == "SecretsDamaged"


def test_what_a_reset_left_with_the_data_is_found(real: FakeCluster) -> None:
    hosts = real.cluster.hosts
    assert not read_vault(real.config, hosts, data_directories(real.config.spec)).known
    real.servers["cp-3"].put("/var/lib/kubeadm-registry/secrets.json", FIXED.to_json(), 0o600)
    assert read_vault(real.config, hosts, data_directories(real.config.spec)).secrets == FIXED


def test_the_file_is_read_as_it_was_written() -> None:
    assert Secrets.from_json(FIXED.to_json()) == FIXED


# ---- never shown ------------------------------------------------------------------------------------------------


def forms(of: Secrets) -> Iterator[str]:
    """Every form in which a secret could be seen."""
    for name in ("rpc_secret", "admin_token", "s3_secret_key", "push_password", "pull_password", "upload_secret",
                 "heartbeat_key", "retention_key", "retention_password"):  # fmt: skip
        yield getattr(of, name)
    yield from of.ca_key.splitlines()[1:3]  # the last line is the public half
    yield from (basic(role, of.password(role)) for role in ("push", "pull", "retention"))
    for key in of.node_keys.values():
        yield key[:64]


def shown_in(text: str, of: Secrets) -> list[str]:
    return [form for form in forms(of) if form in text]


@pytest.mark.parametrize("frontend", ["zot", "distribution"])
@pytest.mark.parametrize("earlier", [False, True], ids=["bare servers", "servers of an earlier cluster"])
@pytest.mark.parametrize("dry_run", [False, True], ids=["run", "dry run"])
def test_no_report_and_no_argv_holds_a_secret(frontend: str, earlier: bool, dry_run: bool) -> None:
    text = f"{config.SMALLEST}  frontend: {{type: {frontend}}}\n"
    fake = FakeCluster.of(text)
    ca = authority()
    fake.fixed = made = replace(Secrets.make("x", NAMES), ca_certificate=ca.certificate, ca_key=ca.key)
    before = []
    if earlier:
        # Everything of another cluster lies there, in the same files, but for what says that it is one.
        run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
        before.append(made)
        fake.fixed = made = replace(Secrets.make("x", NAMES), ca_certificate=ca.certificate, ca_key=ca.key)
        for server in fake.servers.values():
            del server.tree[secrets.PATH]
        fake.garage.version, fake.garage.roles = 0, []
    out, lines = io.StringIO(), io.StringIO()
    for reporter in (Console(diffs=True, out=out), JsonLines(out=lines)):
        run(INIT, fake.cluster, reporter, skip=ELSEWHERE, dry_run=dry_run)
    shown = out.getvalue() + lines.getvalue().replace("\\n", "\n")
    argv = "\n".join(word for command in fake.log() for word in command.argv)
    assert len(shown) > 10_000
    for one in (made, *before):
        assert not shown_in(shown, one)
        assert not shown_in(argv, one)


@pytest.mark.parametrize("form", list(forms(FIXED)), ids=lambda _form: "")
def test_an_error_of_a_program_that_quotes_a_secret_is_masked(three: FakeCluster, form: str) -> None:
    words = f"line 3: cannot understand '{form}'"

    def fail(host: Host) -> None:
        raise CommandFailed(Result(("x",), 1, b"", words.encode()), host=host.name, hint=f"look at {form}")

    for change in (Odd(lambda _: "no", fail), Odd(raising(Error(words, hint=words)))):
        phase = Phase("bad", "Bad", lambda cluster, host, change=change: iter([change]), on=leader)  # type: ignore[misc]
        with pytest.raises(PhaseFailed) as caught:
            run((phase,), three.cluster, Recorder())
        error = caught.value
        assert form not in f"{error} {error.hint} {error.cause} {error.cause.hint}"
        assert "cannot understand '<" in error.message


def test_what_led_to_an_error_is_masked_too(three: FakeCluster) -> None:
    """As --debug shows it: a program that does not accept a new file, and quotes it."""

    def refuse(*_: object) -> str:
        raise Failed(f"cannot understand {FIXED.s3_secret_key}")

    def steps(_: Cluster, host: Host) -> Iterator[File]:
        yield File("/etc/it", b"new", secret=True, validate=("check", "{path}"))

    three.servers["cp-1"].answer("check", with_=refuse)
    with pytest.raises(PhaseFailed, match="cannot understand <s3_secret_key>") as caught:
        run((Phase("bad", "Bad", steps, on=leader),), three.cluster, Recorder())
    shown = "".join(traceback.format_exception(caught.value))
    assert FIXED.s3_secret_key not in shown


def test_a_change_that_does_not_converge_is_masked_too(three: FakeCluster) -> None:
    phase = Phase("bad", "Bad", lambda cluster, host: iter([Odd(lambda _: f"wants {FIXED.rpc_secret}")]), on=leader)
    recorder = Recorder()
    with pytest.raises(PhaseFailed) as caught:
        run((phase,), three.cluster, recorder)
    assert recorder.actions[0].diff == "wants <rpc_secret>"
    assert FIXED.rpc_secret not in str(caught.value)


def test_the_reason_of_a_dry_runs_later_is_masked_too(three: FakeCluster) -> None:
    change = Odd(raising(NotYetKnown(f"not yet: {FIXED.admin_token}")))
    recorder = Recorder()
    phase = Phase("wait", "Wait", lambda cluster, host: iter([change]), on=leader)
    run((phase,), three.cluster, recorder, dry_run=True)
    assert recorder.later == [("wait", "cp-1", "not yet: <admin_token>")]


def test_a_secret_file_is_never_shown_even_if_its_content_is_unknown(three: FakeCluster) -> None:
    """As that of an earlier cluster, which nobody can mask by its value."""

    def steps(_: Cluster, host: Host) -> Iterator[File]:
        yield File("/etc/secret", b"new", secret=True)

    three.servers["cp-1"].put("/etc/secret", "unknown and secret")
    recorder = Recorder()
    run((Phase("x", "X", steps, on=leader),), three.cluster, recorder)
    assert recorder.actions[0].diff == "/etc/secret: changed secret, 3 bytes"


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(list(forms(FIXED))))
def test_whatever_stands_around_it_a_secret_is_masked(before: str, after: str, form: str) -> None:
    assert form not in FIXED.redact(f"{before}{form}{after}")


def test_what_anybody_may_see_stays() -> None:
    text = f"{FIXED.generation} {FIXED.s3_key_id} {FIXED.node_id('cp-1')} {FIXED.ca_certificate}"
    assert FIXED.redact(text) == text
