"""Certificates and credentials are exchanged without a moment in which one side does not know the other's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509

from kubeadm_registry import config, members, paths, pki, rotation, secrets
from kubeadm_registry.access import session
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent, garage, haproxy, programs, zot
from kubeadm_registry.engine.changes import STARTED
from kubeadm_registry.engine.phase import Check, Phase
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error, PreflightFailed
from kubeadm_registry.phases import certificates, credentials
from kubeadm_registry.phases.exchange import Stages, exchange
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.secrets import LOGINS, Secrets, Vault
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster, authority, fixed_secrets
from tests.unit.installed import fresh
from tests.unit.test_workflow import Recorder

pytestmark = pytest.mark.slow

NAMES = ("cp-1", "cp-2", "cp-3")
FIXED = fixed_secrets(NAMES)
#: containerd is another test's.
SKIP = ("containerd",)
#: The name of a node, and before which of its acts the connection to it breaks.
Cut = tuple[str, int]


def leaf(fake: FakeCluster, name: str) -> str:
    return fake.servers[name].content(paths.NODE_PEM).decode()


def leaves(fake: FakeCluster) -> dict[str, str]:
    return {name: pki.fingerprint(leaf(fake, name)) for name in NAMES}


def stored(fake: FakeCluster) -> list[Secrets]:
    return [Secrets.from_json(server.content(secrets.PATH)) for server in fake.servers.values()]


def issued(fake: FakeCluster) -> list[str]:
    """The nodes that got a certificate, once for each."""
    wanted = f"write {paths.NODE_PEM},"
    return [name for name, server in fake.servers.items() for act in server.acts if act.startswith(wanted)]


def begun(fake: FakeCluster, cut: Cut | None) -> Cluster:
    """The cluster of a new run, which loses a node before that act of it."""
    cluster = fake.cluster
    if cut is not None:
        fake.servers[cut[0]].cut_at = cut[1]
    return cluster


def renew(fake: FakeCluster, *names: str, dry_run: bool = False, cut: Cut | None = None) -> list[str]:
    """As the command does; what was changed, by host and phase."""
    actions = certificates.renew(begun(fake, cut), Recorder(), names or NAMES, dry_run=dry_run)
    return [f"{action.host} {action.phase}" for action in actions]


# ---- the secrets --------------------------------------------------------------------------------------------------


def test_a_ca_is_replaced_in_stages_and_both_are_trusted_while_certificates_of_both_are_served() -> None:
    seen = [FIXED]
    while not seen[1:] or rotation.stage(seen[-1]):
        seen.append(rotation.advance(seen[-1], "registry"))
    assert [rotation.stage(one) for one in seen] == ["", "trust", "issue", "remove", ""]
    old, new = FIXED.ca_certificate, seen[-1].ca_certificate
    assert [one.ca_certificate for one in seen] == [old, old, new, new, new]
    assert [one.trust for one in seen] == [old, old + new, new + old, new, new]
    assert pki.cluster_of(new) == "registry"
    leaf = pki.issue(pki.Pair(seen[-1].ca_certificate, seen[-1].ca_key), "cp-1", ("cp-1",)).certificate
    assert pki.renewal_reason(new, leaf, ("cp-1",)) is None
    assert not seen[-1].overlap
    assert replace(seen[-1], ca_certificate=old, ca_key=FIXED.ca_key) == FIXED


def test_a_request_goes_on_until_all_have_a_new_certificate_and_then_there_is_another() -> None:
    current = {name: f"{name} of old" for name in NAMES}
    asked = rotation.request(FIXED, current, NAMES)
    assert asked.renewal == current
    current["cp-1"] = "cp-1 anew"
    assert rotation.request(asked, current, NAMES) == asked, "cp-1 gets no second one"
    current |= {"cp-2": "cp-2 anew", "cp-3": "cp-3 anew"}
    assert rotation.request(asked, current, NAMES).renewal == current
    one = rotation.request(FIXED, current, ["cp-2"])
    assert one.renewal == {"cp-2": "cp-2 anew"}
    assert rotation.request(one, current, NAMES).renewal == current, "the open request gets the other nodes too"


def test_of_several_revisions_the_newest_counts_and_others_may_only_add() -> None:
    later = replace(rotation.rotate(FIXED, ["push"]), revision=3)
    older = {**FIXED.found.values, "overlap": {"former_pull_password": "gone"}, "revision": 2, "later": "kept"}
    vault = Vault("x", NAMES, {"a": replace(FIXED.found, values=older), "b": later.found, "c": FIXED.found})
    assert replace(vault.secrets, kept=FIXED.kept) == later
    assert vault.secrets.kept.values == {"later": "kept"}
    other = replace(later, push_password="another")
    with pytest.raises(Error, match="different values of push_password") as caught:
        Vault("x", NAMES, {"a": later.found, "b": other.found})
    assert caught.value.code == "SecretsConflict"


def test_a_secret_of_a_newer_release_that_it_was_exchanging_is_that_of_the_newest_revision() -> None:
    def file(revision: int, **others: object) -> bytes:
        stamp = {"version": 3, "minReader": 1, "minWriter": 1}
        return json.dumps({**FIXED.found.values, "format": stamp, "revision": revision, **others}).encode()

    now = file(2, metrics_key="the next key", by_node={"cp-1": "next", "cp-2": "next"})
    before = file(1, metrics_key="the key before", by_node={"cp-1": "before", "cp-3": "added"}, later="kept")
    for places in (("cp-1", "cp-2"), ("cp-2", "cp-1")):
        files = {place: {secrets.PATH: one} for place, one in zip(places, (now, before), strict=True)}
        assert Vault.read("x", NAMES, files).secrets.kept.values == {
            "metrics_key": "the next key", "later": "kept",
            "by_node": {"cp-1": "next", "cp-2": "next", "cp-3": "added"},
        }  # fmt: skip


def test_a_file_without_an_exchange_says_nothing_of_one_and_damage_is_told() -> None:
    document = json.loads(FIXED.to_json())
    assert not {"revision", "overlap", "renewal"} & set(document)
    for key, value in (("revision", "1"), ("overlap", []), ("renewal", {"cp-1": 1})):
        with pytest.raises(ValueError, match=f"its key {key} is not"):
            Secrets.from_json(json.dumps({**document, key: value}).encode())


def test_what_is_exchanged_is_never_shown() -> None:
    both = rotation.advance(rotation.rotate(FIXED, LOGINS), "registry")
    text = json.dumps(both.found.values)
    said = both.redact(text.replace("\\n", "\n"))
    hidden = [*(value for name, value in both.overlap.items() if "certificate" not in name), both.push_password]
    assert not [one for one in hidden if any(line in said for line in one.splitlines() if "-----" not in line)]
    assert "BEGIN CERTIFICATE" in said


def rekey(one: Secrets, *, left: bool) -> Secrets:
    """The secrets after the agents' key was replaced."""
    for _ in range(4):
        one = rotation.advance(Secrets.from_json(one.to_json()), "registry", "heartbeat", left=left)
    return one


def test_keys_that_nodes_which_have_left_may_have_are_kept_and_nothing_is_being_exchanged() -> None:
    once = rekey(FIXED, left=True)
    twice = rekey(once, left=True)
    assert twice.left_heartbeat_keys == (once.heartbeat_key, FIXED.heartbeat_key)
    assert twice.accepted("heartbeat_key") == (twice.heartbeat_key,)
    assert (rotation.stage(twice, "heartbeat"), twice.exchanging) == ("", False)
    assert json.loads(twice.to_json())["format"] == {"version": 2, "minReader": 1, "minWriter": 1}
    assert twice.redact(f"x {once.heartbeat_key} x") == "x <left_heartbeat_key> x"
    assert rotation.rotate(twice, ["push"]).exchanging
    assert rekey(twice, left=False).overlap == {}


def test_a_stored_exchange_is_read_by_every_later_release(root: Path) -> None:
    """The file of a cluster whose CA and a password are being replaced; it is never written anew."""
    content = (root / "tests/golden/formats/secrets-exchange.json").read_bytes()
    read = Secrets.from_json(content)
    assert (read.revision, rotation.stage(read), rotation.overlapping(read)) == (4, "trust", ("push",))
    assert read.passwords("push") == ("the-next-push-password", "the-push-password")
    assert len(x509.load_pem_x509_certificates(read.trust.encode())) == 2
    assert set(read.renewal) == set(NAMES)
    written, document = json.loads(read.to_json()), json.loads(content)
    assert written.pop("format") == {**document.pop("format"), "minWriter": 2}, "before 0.2 everybody might write it"
    assert written == document
    assert rotation.advance(read, "registry").ca_key == read.overlap["next_ca_key"]


def test_while_secrets_are_exchanged_an_older_release_may_only_read_them() -> None:
    def asked(one: Secrets) -> dict[str, int]:
        found: dict[str, int] = json.loads(one.to_json())["format"]
        return found

    both = Secrets.from_json(rotation.rotate(FIXED, ["push"]).to_json())
    assert asked(both) == {"version": 2, "minReader": 1, "minWriter": 2}
    done = Secrets.from_json(rotation.finish(both, ["push"]).to_json())
    assert asked(done) == {"version": 2, "minReader": 1, "minWriter": 1}, "and all of it again when that is over"
    one = FIXED
    for _ in range(3):
        one = rotation.advance(Secrets.from_json(one.to_json()), "registry")
        assert asked(one)["minWriter"] == 2, rotation.stage(one)
    assert asked(rotation.advance(one, "registry"))["minWriter"] == 1
    newer = json.loads(both.to_json())
    newer["format"]["version"] = 3
    kept = rotation.finish(Secrets.from_json(json.dumps(newer).encode()), ["push"])
    assert asked(kept) == {"version": 3, "minReader": 1, "minWriter": 2}, "what a newer release asks stays asked"


def test_a_file_is_written_anew_when_only_what_it_asks_of_others_differs() -> None:
    for one in (FIXED, rotation.rotate(FIXED, ["push"])):
        document = json.loads(one.to_json())
        assert one.same_as(one.to_json())
        document["format"]["minWriter"] = 3 - document["format"]["minWriter"]
        assert not one.same_as(json.dumps(document).encode())


@pytest.mark.parametrize("key", ["revision", "overlap", "renewal"])
def test_one_key_less_of_an_exchange_has_a_default_and_one_more_is_kept(root: Path, key: str) -> None:
    document = json.loads((root / "tests/golden/formats/secrets-exchange.json").read_bytes())
    more = Secrets.from_json(json.dumps({**document, "of_a_newer_release": {"deep": [1]}}).encode())
    assert json.loads(more.to_json())["of_a_newer_release"] == {"deep": [1]}
    del document[key]
    less = Secrets.from_json(json.dumps(document).encode())
    assert not getattr(less, key)
    assert key not in json.loads(less.to_json())


# ---- new certificates ---------------------------------------------------------------------------------------------


def test_all_nodes_get_new_certificates_one_after_the_other_and_no_proxy_restarts(installed: FakeCluster) -> None:
    before = leaves(installed)
    done = renew(installed)
    assert sorted(done[:3]) == [f"{name} store" for name in NAMES]
    assert done[3:] == [f"{name} leaves" for name in NAMES for _ in ("issue", "load")]
    assert not set(before.values()) & set(leaves(installed).values())
    assert issued(installed) == list(NAMES)
    assert not [act for act in installed.acts() if "reload" in act or "start" in act]
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []
    renew(installed)
    assert issued(installed) == sorted(NAMES * 2), "whoever asks again gets them again"


def test_one_node_alone_gets_a_new_certificate(installed: FakeCluster) -> None:
    before = leaves(installed)
    renew(installed, "cp-2")
    assert [name for name in NAMES if leaves(installed)[name] != before[name]] == ["cp-2"]


def test_a_dry_run_shows_the_certificates_and_changes_nothing(installed: FakeCluster) -> None:
    before = installed.snapshot()
    assert sorted(renew(installed, dry_run=True)) == [
        f"{name} {what}" for name in NAMES for what in ("leaves", "store")
    ]
    assert installed.snapshot() == before


def test_init_completes_what_a_killed_renewal_has_left(installed: FakeCluster) -> None:
    with pytest.raises(Error):
        renew(installed, cut=("cp-2", 1))  # after it has stored the request
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    assert issued(installed) == list(NAMES)
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []


Work = Callable[..., object]


def cuts(begin: Callable[[], tuple[FakeCluster, Work]]) -> Iterator[tuple[str, FakeCluster, Work]]:
    """Clusters on which the work died before each of its changes, and the work."""
    whole, work = begin()
    work()
    for name, server in whole.servers.items():
        for number, act in enumerate(server.acts):
            fake, work = begin()
            with pytest.raises(Error):
                work(cut=(name, number))
            yield f"{name} before {act}", fake, work


def test_a_renewal_that_dies_at_any_change_is_completed_and_renews_nothing_twice() -> None:
    def begin() -> tuple[FakeCluster, Work]:
        fake = fresh(config.SMALLEST)
        return fake, partial(renew, fake)

    wrong: dict[str, object] = {}
    for where, fake, work in cuts(begin):
        work()
        done = issued(fake)
        if done != list(NAMES) or run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE):
            wrong[where] = done
    assert not wrong


# ---- another CA ---------------------------------------------------------------------------------------------------


class Workers:
    """Hosts that only pull: what each trusts. *lacks*: one that cannot be reached."""

    def __init__(self, lacks: str = "") -> None:
        self.trust = {"w1": authority().certificate, "w2": authority().certificate}
        self.lacks = lacks

    def __call__(self, cluster: Cluster) -> None:
        for name in self.trust:
            if name != self.lacks:
                self.trust[name] = cluster.secrets.trust
        if self.lacks:
            raise Error(f"{self.lacks} lacks the CA", code="TrustPending")


def replaced(
    fake: FakeCluster, workers: Workers | None = None, *, cut: Cut | None = None, **options: bool
) -> list[str]:
    """As the command does."""
    cluster = begun(fake, cut)
    actions = certificates.replace_authority(cluster, Recorder(), workers or Workers(), **options)
    return [f"{action.host} {action.phase}" for action in actions]


@pytest.fixture(autouse=True)
def _without_containerd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes know no containerd; tests/lab has one."""
    without = {
        stage: tuple(phase for phase in phases if phase.name not in SKIP)
        for stage, phases in certificates.STAGES.items()
    }
    monkeypatch.setattr(certificates, "STAGES", without)
    monkeypatch.setattr(credentials, "LOGINS", tuple(one for one in credentials.LOGINS if one.name not in SKIP))


def coherent(fake: FakeCluster, workers: Workers) -> str | None:
    """Whether every node and worker trusts what every node serves, at this moment."""
    served = {name: x509.load_pem_x509_certificate(leaf(fake, name).encode()) for name in NAMES}
    trust = {name: server.content(paths.CA).decode() for name, server in fake.servers.items()}
    for who, text in {**trust, **workers.trust}.items():
        for name, one in served.items():
            if not pki.is_of(text, one):
                return f"{who} does not trust what {name} serves"
    return None


def test_the_ca_is_replaced_and_nobody_mistrusts_anybody_at_any_stage(installed: FakeCluster) -> None:
    old = authority().certificate

    class Watching(Workers):
        def __call__(self, cluster: Cluster) -> None:
            seen.append((rotation.stage(cluster.secrets), coherent(installed, self)))
            super().__call__(cluster)

    seen: list[tuple[str, str | None]] = []
    workers = Watching()
    replaced(installed, workers)
    assert seen == [("trust", None), ("issue", None), ("remove", None)]
    (new,) = {one.ca_certificate for one in stored(installed)}
    assert new != old and not any(one.overlap for one in stored(installed))
    assert coherent(installed, workers) is None
    assert {server.content(paths.CA).decode() for server in installed.servers.values()} == {new}
    assert issued(installed) == list(NAMES)
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []


def test_it_stops_where_both_are_trusted_if_asked_to_and_goes_on_later(installed: FakeCluster) -> None:
    replaced(installed, trust_only=True)
    assert {rotation.stage(one) for one in stored(installed)} == {"trust"}
    before = leaves(installed)
    assert replaced(installed, trust_only=True) == []
    assert leaves(installed) == before
    (both,) = {one.trust for one in stored(installed)}
    replaced(installed)
    (new,) = {one.ca_certificate for one in stored(installed)}
    assert both == authority().certificate + new


@pytest.mark.parametrize("first", ["trust", "issue", "remove"])
def test_the_present_ca_stays_while_a_known_host_lacks_the_next(installed: FakeCluster, first: str) -> None:
    if first != "trust":
        replaced(installed, trust_only=True)
    if first in ("issue", "remove"):
        now = stored(installed)[0]
        for server in installed.servers.values():
            after = rotation.advance(now, "registry")
            after = rotation.advance(after, "registry") if first == "remove" else after
            server.put(secrets.PATH, replace(after, revision=now.revision + 1).to_json(), 0o600)
    with pytest.raises(Error, match="w2 lacks the CA"):
        replaced(installed, Workers(lacks="w2"))
    assert {rotation.stage(one) for one in stored(installed)} == {first}
    replaced(installed)
    assert {rotation.stage(one) for one in stored(installed)} == {""}


def test_what_a_check_finds_in_a_later_stage_is_not_said_of_a_run_that_changed_nothing(installed: FakeCluster) -> None:
    def found(_: Cluster, __: Host) -> Iterator[str]:
        yield "it does not answer any more"

    checked = Phase("checked", "", checks=(Check("Broken", found),))
    first: Stages = {**certificates.STAGES, "trust": (checked, *certificates.STAGES["trust"])}
    with pytest.raises(PreflightFailed, match="nothing was changed"):
        exchange("ca", first, installed.cluster, Recorder(), lambda _: None)
    later: Stages = {**certificates.STAGES, "issue": (checked, *certificates.STAGES["issue"])}
    with pytest.raises(Error, match=r"^preflight found \d problems?$") as caught:
        exchange("ca", later, installed.cluster, Recorder(), lambda _: None)
    assert (caught.value.code, caught.value.exit_code) == ("PreflightFailed", 1)


def test_a_node_that_lacks_a_secret_of_a_later_release_is_no_obstacle(installed: FakeCluster) -> None:
    """As where an upgrade died after the first node had stored the secrets that it adds."""
    server = installed.servers["cp-2"]
    found = secrets.identity_in(server.content(secrets.PATH))
    values = {name: value for name, value in found.values.items() if not name.startswith("retention_")}
    server.put(secrets.PATH, secrets.render(replace(found, values=values)), 0o600)
    replaced(installed)
    (new,) = {one.ca_certificate for one in stored(installed)}
    assert new != authority().certificate


def test_a_dry_run_shows_the_first_stage_says_so_and_changes_nothing(
    installed: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = installed.snapshot()
    workers = Workers()
    notes: list[str] = []
    monkeypatch.setattr(Recorder, "note", lambda _, message, **__: notes.append(message))
    shown = replaced(installed, workers, dry_run=True)
    assert {line.split()[1] for line in shown} == {"store", "trust"}
    assert installed.snapshot() == before
    assert [note for note in notes if "does not show the stages after it" in note]
    notes.clear()
    assert sorted(replaced(installed, workers, dry_run=True, trust_only=True)) == sorted(shown)
    assert not [note for note in notes if "stage" in note], "no stage comes after it"


def test_a_dry_run_after_trust_only_shows_what_comes_next(
    installed: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(installed, trust_only=True)
    assert replaced(installed, trust_only=True, dry_run=True) == []
    before, workers = installed.snapshot(), Workers()
    notes: list[str] = []
    monkeypatch.setattr(Recorder, "note", lambda _, message, **__: notes.append(message))
    assert {"cp-1 store", "cp-2 leaves"} <= set(replaced(installed, workers, dry_run=True))
    assert [note for note in notes if "this is the stage `issue`" in note]
    assert installed.snapshot() == before


def test_a_new_ca_that_dies_at_any_change_is_completed_and_made_once() -> None:
    alive: list[Workers] = []

    def begin() -> tuple[FakeCluster, Work]:
        fake = fresh(config.SMALLEST)
        alive.append(Workers())
        return fake, partial(replaced, fake, alive[-1])

    wrong: dict[str, object] = {}
    for where, fake, work in cuts(begin):
        broken = coherent(fake, alive[-1])
        made = {one.overlap.get("next_ca_certificate") for one in stored(fake)} - {None}
        work()
        after = stored(fake)
        (new,) = {one.ca_certificate for one in after}
        flaws = {
            broken: True,
            coherent(fake, alive[-1]): True,
            "issued twice": issued(fake) != list(NAMES),
            "not done": any(one.overlap for one in after),
            "made twice": bool(made - {new}),
            "not replaced": new == authority().certificate or set(alive[-1].trust.values()) != {new},
        }
        found = [flaw for flaw, holds in flaws.items() if flaw and holds]
        if found or run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE):
            wrong[where] = found
    assert not wrong


# ---- passwords ----------------------------------------------------------------------------------------------------


def accepted(fake: FakeCluster, role: str) -> dict[str, set[str]]:
    """The digests of the logins of *role* that each node's proxies know."""
    maps = {name: server.content(haproxy.AUTH_MAP).decode() for name, server in fake.servers.items()}
    return {
        name: {line.split()[0] for line in text.splitlines() if line.endswith(f" {role}")}
        for name, text in maps.items()
    }


def digests(role: str, *passwords: str) -> set[str]:
    return {haproxy.login_digest(role, one) for one in passwords}


def exchanged(fake: FakeCluster, *roles: str, finish: bool = False, cut: Cut | None = None) -> list[str]:
    """As the command does; who else was told, by the password of push then."""
    told: list[str] = []
    work = credentials.finish if finish else credentials.rotate
    work(begun(fake, cut), Recorder(), lambda cluster: told.append(cluster.secrets.push_password), roles)
    return told


def test_the_former_password_is_accepted_until_that_is_ended(installed: FakeCluster) -> None:
    old = FIXED.push_password
    exchanged(installed, "push")
    new = installed.cluster.secrets.push_password
    assert new != old and accepted(installed, "push") == dict.fromkeys(NAMES, digests("push", old, new))
    assert accepted(installed, "pull") == dict.fromkeys(NAMES, digests("pull", FIXED.pull_password))
    for server in installed.servers.values():
        assert server.acts[-2:] == [f"reload {unit}" for unit in paths.HAPROXY_UNITS], "and no restart"
    assert exchanged(installed, "push") == [new], "no third one, and the others are told again"
    assert exchanged(installed, "push", finish=True) == [new], "others have it before the former one goes"
    assert accepted(installed, "push") == dict.fromkeys(NAMES, digests("push", new))
    assert not stored(installed)[0].overlap
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []


def test_of_two_exchanges_that_begin_together_the_later_one_takes_nothing_back(installed: FakeCluster) -> None:
    """Both have read the same revision, and one has the locks when the other one is done."""
    late = installed.cluster
    exchanged(installed, "push")
    before = stored(installed)
    with pytest.raises(PreflightFailed) as caught:
        credentials.rotate(late, Recorder(), lambda _: None, ["pull"])
    assert {problem.check for problem in caught.value.problems} == {"Secrets"}
    assert stored(installed) == before
    exchanged(installed, "pull")
    assert rotation.overlapping(stored(installed)[0]) == ("push", "pull")


def test_an_exchange_of_the_ca_and_one_of_a_password_leave_each_other_alone(installed: FakeCluster) -> None:
    exchanged(installed, "push", "retention")
    replaced(installed, trust_only=True)
    exchanged(installed, "push", finish=True)
    assert (rotation.stage(stored(installed)[0]), rotation.overlapping(stored(installed)[0])) == (
        "trust",
        ("retention",),
    )
    replaced(installed)
    assert rotation.overlapping(stored(installed)[0]) == ("retention",)


@pytest.mark.parametrize("finish", [False, True], ids=["rotate", "finish"])
def test_a_rotation_that_dies_at_any_change_is_completed_with_the_same_password(finish: bool) -> None:
    def begin() -> tuple[FakeCluster, Work]:
        fake = fresh(config.SMALLEST)
        if finish:
            exchanged(fake, "push")
            for server in fake.servers.values():
                server.acts.clear()
        return fake, partial(exchanged, fake, "push", finish=finish)

    wrong: dict[str, object] = {}
    for where, fake, work in cuts(begin):
        known = {one.push_password for one in stored(fake)} - {FIXED.push_password}
        work()
        new = fake.cluster.secrets.push_password
        wanted = digests("push", new) if finish else digests("push", new, FIXED.push_password)
        if accepted(fake, "push") != dict.fromkeys(NAMES, wanted) or known - {new}:
            wrong[where] = known
        if run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE):
            wrong[where] = "init finds something to do"
    assert not wrong


@pytest.mark.parametrize("role", ["push", "s3", "admin", "heartbeat"])
def test_while_an_upload_of_programs_is_not_complete_nothing_is_exchanged(installed: FakeCluster, role: str) -> None:
    cluster = installed.cluster
    after = {name: replace(one, prefix=f"{one.prefix}-new") for name, one in cluster.programs.items()}
    first = installed.servers["cp-1"]
    first.put(programs.RECORD, programs.record(after))
    for one in after.values():
        installed._unpack(first, one)
    before = installed.snapshot()
    cluster = replace(cluster, programs=session.installed(cluster.hosts))
    with pytest.raises(PreflightFailed) as caught:
        if role == "push":
            credentials.rotate(cluster, Recorder(), lambda _: None, [role])
        else:
            credentials.replace_key(cast(rotation.Kind, role), cluster, Recorder())
    assert {(one.check, one.host, one.mandatory) for one in caught.value.problems} == {
        ("ProgramsUploaded", "cp-2", True), ("ProgramsUploaded", "cp-3", True),
    }  # fmt: skip
    assert "it lacks garage, haproxy, keepalived, kubeadm-registry, zot in" in caught.value.problems[0].text
    assert installed.snapshot() == before


@pytest.mark.parametrize("role", ["push", "admin"])
def test_programs_that_were_uploaded_for_an_upgrade_are_not_started_by_an_exchange(
    installed: FakeCluster, role: str
) -> None:
    """`preflight` with a newer bundle uploads and records them, and `upgrade` looks first whether they may be mixed."""
    before = installed.programs["garage"]
    after = replace(before, version="2.0", prefix=before.prefix.replace("/1.0-", "/2.0-"))
    later = {**installed.programs, "garage": after}
    for server in installed.servers.values():
        server.put(programs.RECORD, programs.record(later))
        installed._unpack(server, after)
    there = installed.snapshot()
    cluster = replace(installed.cluster, programs=session.installed(installed.cluster.hosts))
    assert cluster.programs["garage"].version == "2.0"
    with pytest.raises(PreflightFailed) as caught:
        if role == "push":
            credentials.rotate(cluster, Recorder(), lambda _: None, [role])
        else:
            credentials.replace_key(cast(rotation.Kind, role), cluster, Recorder())
    assert {(one.check, one.host) for one in caught.value.problems} == {
        ("ProgramsInUse", "cp-1"), ("ProgramsInUse", "cp-2"), ("ProgramsInUse", "cp-3"),
    }  # fmt: skip
    assert "it runs garage 1.0 and not 2.0, which was uploaded: run `upgrade`" in caught.value.problems[0].text
    assert installed.snapshot() == there


# ---- keys ---------------------------------------------------------------------------------------------------------


def rekeyed(fake: FakeCluster, kind: rotation.Kind, cut: Cut | None = None) -> None:
    cluster = begun(fake, cut)
    for server in fake.servers.values():
        server.answer("sh", "-c", credentials._SETTLED, "settled")
    credentials.replace_key(kind, cluster, Recorder())


def keyed(fake: FakeCluster) -> str | None:
    """What of the storage keys does not fit together at this moment."""
    for name, server in fake.servers.items():
        used = json.loads(server.content(zot.STANDBY_CONFIG))["storage"]["storageDriver"]["accesskey"]
        (bucket,) = fake.garage.buckets.values()
        if used not in {key["accessKeyId"] for key in bucket["keys"]}:
            return f"{name} uses {used}, which the storage does not know"
    return None


def heard(fake: FakeCluster) -> str | None:
    """Whose heartbeats somebody does not believe at this moment."""
    keys = {name: server.content(agent.HEARTBEAT_KEY).split() for name, server in fake.servers.items()}
    for name, (own, *_) in keys.items():
        for other, accepted in keys.items():
            if own not in accepted:
                return f"{other} does not believe {name}"
    return None


def asked(fake: FakeCluster) -> str | None:
    """Where the storage has not started with the token that is in its file."""
    for name, server in fake.servers.items():
        path = f"{STARTED}/{garage.UNIT}"
        if hashlib.sha256(server.content(garage.ADMIN_TOKEN)).hexdigest().encode() not in server.content(path):
            return f"the storage of {name} has not taken its token up"
    return None


@pytest.mark.parametrize(("kind", "flaw"), [("s3", keyed), ("heartbeat", heard)])
def test_a_key_is_replaced_and_both_sides_know_it_all_the_time_wherever_a_run_dies(
    kind: rotation.Kind, flaw: Callable[[FakeCluster], str | None]
) -> None:
    def begin() -> tuple[FakeCluster, Work]:
        fake = fresh(config.SMALLEST)
        assert flaw(fake) is None
        return fake, partial(rekeyed, fake, kind)

    def value(one: Secrets) -> str:
        return one.s3_key_id if kind == "s3" else one.heartbeat_key

    wrong: dict[str, object] = {}
    for where, fake, work in cuts(begin):
        broken = flaw(fake)
        made = {one.overlap.get(f"next_{rotation._PARTS[kind][0]}") for one in stored(fake)} - {None}
        work()
        new = value(fake.cluster.secrets)
        flaws = {
            broken: True,
            flaw(fake): True,
            "not replaced": new == value(FIXED),
            "made twice": bool(made - {new}),
            "not done": any(one.overlap for one in stored(fake)),
            "keys left": list(fake.garage.keys) != [fake.cluster.secrets.s3_key_id],
        }
        found = [one for one, holds in flaws.items() if one and holds]
        if found or run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE):
            wrong[where] = found
    assert not wrong


def test_the_storage_gets_another_admin_token_on_one_node_after_another_wherever_a_run_dies() -> None:
    """Its node's agent then has the same one."""

    def begin() -> tuple[FakeCluster, Work]:
        fake = fresh(config.SMALLEST)
        return fake, partial(rekeyed, fake, "admin")

    wrong: dict[str, object] = {}
    for where, fake, work in cuts(begin):
        made = {one.overlap.get("next_admin_token") for one in stored(fake)} - {None}
        work()
        new = fake.cluster.secrets.admin_token
        tokens = {server.content(path) for server in fake.servers.values()
                  for path in (garage.ADMIN_TOKEN, agent.ADMIN_TOKEN)}  # fmt: skip
        flaws = {
            asked(fake): True,
            "not replaced": new == FIXED.admin_token,
            "made twice": bool(made - {new}),
            "not done": any(one.overlap for one in stored(fake)),
            "not everywhere": tokens != {new.encode()},
        }
        found = [one for one, holds in flaws.items() if one and holds]
        if found or run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE):
            wrong[where] = found
    assert not wrong


def test_another_admin_token_moves_no_virtual_ip_and_restarts_the_storage_once(installed: FakeCluster) -> None:
    rekeyed(installed, "admin")
    acts = [act for act in installed.acts() if act.split()[1] in ("start", "restart", "stop")]
    assert acts == [f"{name}: restart {garage.UNIT}" for name in NAMES]
    assert not [act for act in installed.acts() if agent.UNIT in act and "restart" in act]


def test_an_agent_reloads_for_a_key_and_does_not_restart(installed: FakeCluster) -> None:
    rekeyed(installed, "heartbeat")
    acts = [act for act in installed.acts() if agent.UNIT in act]
    assert len(acts) == 9 and all(act.endswith(f"reload {agent.UNIT}") for act in acts)


def test_the_key_of_a_node_that_has_left_answers_it_until_none_is_kept_out(installed: FakeCluster) -> None:
    def lines() -> list[str]:
        (found,) = {server.content(agent.HEARTBEAT_KEY) for server in installed.servers.values()}
        return found.decode().split()

    known = installed.cluster.members
    for server in installed.servers.values():
        server.put(members.PATH, replace(known, former={"cp-9": "10.0.0.19"}).render())
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    for server in installed.servers.values():
        server.acts.clear()
    rekeyed(installed, "heartbeat")
    acts = [act for act in installed.acts() if agent.UNIT in act]
    assert len(acts) == 9 and all(act.endswith(f"reload {agent.UNIT}") for act in acts)
    new = installed.cluster.secrets.heartbeat_key
    assert lines() == [new, f"left:{FIXED.heartbeat_key}"]
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []
    for server in installed.servers.values():
        server.put(members.PATH, known.render())
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    assert lines() == [new]
