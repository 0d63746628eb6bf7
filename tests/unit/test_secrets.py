"""The secrets: made once, equal everywhere, never mixed, never shown."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeadm_registry import config, secrets
from kubeadm_registry.changes import File
from kubeadm_registry.cluster import Cluster, leader, read_vault
from kubeadm_registry.errors import CommandFailed, Error, NotYetKnown, PhaseFailed
from kubeadm_registry.host import Host, Result
from kubeadm_registry.phases.base import BASE
from kubeadm_registry.phases.identity import STORE
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.report import Console, JsonLines
from kubeadm_registry.secrets import Secrets, Vault, basic
from kubeadm_registry.workflow import Phase, run
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster, authority, fixed_secrets
from tests.unit.test_workflow import Odd, Recorder, raising

NAMES = ("cp-1", "cp-2", "cp-3")
FIXED = fixed_secrets(NAMES)


def store(fake: FakeCluster) -> list[str]:
    return [action.host for action in run((BASE, STORE), fake.cluster, Recorder()) if action.phase == "store"]


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


def test_two_clusters_share_no_secret() -> None:
    one, other = (Secrets.make("x", NAMES) for _ in range(2))
    public = {"made"}
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
    for password in (made.push_password, made.pull_password):
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


def test_the_file_with_the_most_node_keys_is_the_newest() -> None:
    """A run that added a server may have died after the first of them."""
    older = replace(FIXED, node_keys={"cp-1": FIXED.node_keys["cp-1"]})
    vault = Vault("x", NAMES, {"cp-1": older, "cp-2": FIXED, "cp-3": None})
    assert vault.known
    assert vault.secrets == FIXED


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
    assert all(one is made[0] for one in made)


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
        Vault("x", NAMES, {"cp-1": FIXED, "cp-2": other, "cp-3": FIXED})
    assert caught.value.code == "SecretsConflict"
    assert "(cp-1, cp-3: 0123456789abcdef; cp-2: fedcba9876543210)" in caught.value.message
    assert "reset" in caught.value.hint


BROKEN = {
    "empty": b"",
    "cut": FIXED.to_json()[:-40],
    "a list": b"[]",
    "a key too few": json.dumps({k: v for k, v in json.loads(FIXED.to_json()).items() if k != "made"}).encode(),
    "a key too many": json.dumps({**json.loads(FIXED.to_json()), "more": 1}).encode(),
    "not text": b"\xff\xfe",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_damaged_file_is_an_error_and_never_a_reason_for_new_secrets(real: FakeCluster, content: bytes) -> None:
    cluster = real.cluster
    real.servers["cp-2"].put(secrets.PATH, content, 0o600)
    with pytest.raises(Error, match=f"cp-2: {secrets.PATH} is damaged") as caught:
        read_vault(real.config, cluster.hosts)
    assert caught.value.code == "SecretsDamaged"


def test_what_a_reset_left_with_the_data_is_found(real: FakeCluster) -> None:
    hosts = real.cluster.hosts
    assert not read_vault(real.config, hosts).known
    real.servers["cp-3"].put("/var/lib/kubeadm-registry/secrets.json", FIXED.to_json(), 0o600)
    assert read_vault(real.config, hosts).secrets == FIXED


def test_the_file_is_read_as_it_was_written() -> None:
    assert Secrets.from_json(FIXED.to_json()) == FIXED


# ---- never shown ------------------------------------------------------------------------------------------------


def forms(of: Secrets) -> Iterator[str]:
    """Every form in which a secret could be seen."""
    for name in ("rpc_secret", "admin_token", "s3_secret_key", "push_password", "pull_password", "upload_secret",
                 "heartbeat_key"):  # fmt: skip
        yield getattr(of, name)
    yield from (line for line in of.ca_key.splitlines() if "PRIVATE KEY" not in line)
    yield from (basic("push", of.push_password), basic("pull", of.pull_password))
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
