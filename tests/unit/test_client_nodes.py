"""Nodes that only pull: the list, what is done on each, and that one that fails keeps nobody else from being done."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kubeadm_registry import config, members, rotation, secrets
from kubeadm_registry.access import client_nodes, session
from kubeadm_registry.access.client_nodes import RestartLimiter
from kubeadm_registry.cli.main import cli
from kubeadm_registry.components import garage
from kubeadm_registry.config import Node, RegistryCluster, Ssh
from kubeadm_registry.config.client_list import ClientNode
from kubeadm_registry.engine.report import JsonLines
from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.members import Members
from kubeadm_registry.result import Result as Answer
from kubeadm_registry.secrets import basic
from kubeadm_registry.transport.host import Transport
from tests.unit.containerd_host import Rooted
from tests.unit.fake_cluster import FakeCluster, fixed_secrets

pytestmark = pytest.mark.slow

CERTS = "/etc/containerd/certs.d"
OURS = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n'


# ---- turns -----------------------------------------------------------------------------------------------------------


def test_turns_are_bounded() -> None:
    turns, inside, most, lock = RestartLimiter(2), [0], [0], threading.Lock()
    all_are_here = threading.Barrier(2, timeout=20)

    def work() -> None:
        with turns:
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            all_are_here.wait()
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [2]


def test_after_some_that_failed_nobody_gets_a_turn() -> None:
    turns = RestartLimiter(1)
    for _ in range(client_nodes.MOST_FAILURES):
        with pytest.raises(ValueError, match="broken"), turns:
            raise ValueError("broken")
    for _ in range(2):
        with pytest.raises(Error, match="not restarted") as caught, turns:
            pytest.fail("it was given a turn")
        assert caught.value.code == "TooManyFailed"


# ---- the command -----------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """A registry of three servers, and clients whose files are below a temporary directory."""

    folder: Path
    registry: FakeCluster
    clients: dict[str, Rooted] = field(default_factory=dict)
    unreachable: dict[str, Error | KeyboardInterrupt] = field(default_factory=dict)
    reached: list[str] = field(default_factory=list)

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments, prog_name="kubeadm-registry")

    def add(self, count: int, original: str = "version = 2\n") -> None:
        for number in range(1, count + 1):
            self.clients[f"w-{number}"] = Rooted(self.folder / f"w-{number}")
            self.clients[f"w-{number}"].put("/etc/containerd/config.toml", original)
        self.list(*self.clients)

    def list(self, *names: str) -> None:
        (self.folder / "nodes").write_text("".join(f"{name} 10.0.1.{name[2:]}\n" for name in names))

    def run(self, what: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
        """The exit code and the JSON lines."""
        done = self("mirrors", what, "--nodes", "nodes", "-o", "json", *options)
        assert "Traceback" not in done.output, done.output
        return done.exit_code, [json.loads(line) for line in done.stdout.splitlines()]

    def trees(self) -> dict[str, dict[str, tuple[int, bytes | None]]]:
        return {name: client.tree() for name, client in self.clients.items()}


@pytest.fixture
def site(tmp_path: Path, three: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(tmp_path, three)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cluster.yaml").write_text(config.SMALLEST)
    for server in three.servers.values():
        server.put(secrets.PATH, fixed_secrets(tuple(three.servers)).to_json())

    def reach(_: RegistryCluster, node: Node | ClientNode, prompts: session.Prompts) -> Transport:
        site.reached.append(node.name)
        if node.name in site.unreachable:
            raise site.unreachable[node.name]
        if (client := site.clients.get(node.name)) is not None:
            return client
        three.servers[node.name].closed = False
        return three.servers[node.name]

    monkeypatch.setattr(session, "reach", reach)
    return site


def test_a_node_that_does_not_reach_the_registry_is_named(site: Site) -> None:
    """Its containerd pulls from there alone from now on: it may be behind a router that nobody thought of."""
    site.add(2)
    (site.clients["w-2"].stub / "blocked").write_text("10.0.0.10\n")
    for _ in range(2):
        code, lines = site.run("apply")
        assert code == 0
        [said] = [line for line in lines if "cannot connect to 10.0.0.10 on TCP port 5000" in line.get("message", "")]
        assert said["host"] == "w-2"


def test_this_very_machine_needs_no_ssh_but_who_is_behind_a_port_of_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(session, "Local", lambda name: f"here: {name}")
    monkeypatch.setattr(session, "connect", lambda target: f"ssh: {target.address} {target.port}")
    cluster_file = config.parse(config.SMALLEST, "x")

    def reach(client: ClientNode) -> object:
        return session.reach(cluster_file, client, session.Prompts())

    assert reach(ClientNode("w-1", "127.0.0.1")) == "here: w-1"
    assert reach(ClientNode("w-1", "127.0.0.1", Ssh(port=2222))) == "ssh: 127.0.0.1 2222"
    assert reach(ClientNode("w-1", "localhost")) == "ssh: localhost None", "a name may be one of ssh_config alone"
    assert reach(ClientNode("w-1", "192.0.2.1")) == "ssh: 192.0.2.1 None"


class Refusing:
    """A transport that answers a command with a failure from some moment on."""

    def __init__(self, client: Rooted, fails: Callable[[Sequence[str]], bool]) -> None:
        self._run, self._fails = client.run, fails

    def __call__(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Answer:
        if self._fails(argv):
            return Answer(tuple(argv), 1, b"", b"No space left on device")
        return self._run(argv, stdin=stdin, timeout=timeout)


def test_nodes_pull_from_the_registry_and_are_as_before_after_remove(site: Site) -> None:
    site.add(5)
    before = site.trees()
    code, events = site.run("apply")
    assert code == 0
    result = events[-1]
    assert result["summary"] == "5 of 5 nodes pull from the registry, 5 changed"
    assert (result["nodes"], result["done"], result["owed"]) == (5, 5, {})
    for name, client in site.clients.items():
        assert b"10.0.0.10:5000/v2/registry.k8s.io" in client.path(f"{CERTS}/registry.k8s.io/hosts.toml").read_bytes()
        assert "config_path" in client.path("/etc/containerd/config.toml").read_text()
        assert client.restarts == 1, name
    assert len([event for event in events if event["event"] == "phase"]) == 1, "one heading, not one for each node"

    after = site.trees()
    code, events = site.run("apply")
    assert (code, events[-1]["summary"]) == (0, "5 of 5 nodes pull from the registry, nothing to do")
    assert site.trees() == after
    assert {client.restarts for client in site.clients.values()} == {1}

    site.reached.clear()
    code, events = site.run("remove")
    assert (code, events[-1]["summary"]) == (0, "containerd restored on 5 of 5 nodes, 5 changed")
    assert site.trees() == before
    assert not site.clients["w-1"].path("/run/kubeadm-registry").exists()
    assert sorted(site.reached) == sorted(site.clients), "the servers may be gone for good"
    assert site.run("remove")[1][-1]["summary"] == "containerd restored on 5 of 5 nodes, nothing to do"


def test_a_worker_joins_as_by_mirrors_apply(site: Site) -> None:
    site.add(2)
    done = site("join", "--worker", "w-1 192.0.2.1", "-o", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["summary"] == "1 of 1 node pull from the registry, 1 changed"
    other = site.trees()["w-2"]
    assert site.run("apply")[1][-1]["summary"] == "2 of 2 nodes pull from the registry, 1 changed"
    assert (site.clients["w-1"].restarts, site.trees()["w-2"] == other) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("w-1 192.0.2.1", "--bundle", "x"), "UsageInvalid"),
        (("w-1 a b",), "NodesInvalid"),
        (("10.0.0.10",), "NodesInvalid"),
    ],
)
def test_what_is_no_worker_does_not_join_as_one(site: Site, arguments: tuple[str, ...], code: str) -> None:
    done = site("join", "--worker", *arguments, "-o", "json")
    assert (done.exit_code, json.loads(done.stdout.splitlines()[-1])["code"]) == (2, code)
    assert site.reached == []


def test_a_dry_run_shows_and_touches_nothing(site: Site) -> None:
    site.add(2)
    before = site.trees()
    code, events = site.run("apply", "--dry-run")
    assert code == 0
    assert events[-1]["summary"] == "2 of 2 nodes would pull from the registry, 2 would be changed"
    changes = [event for event in events if event["event"] == "change"]
    assert {(event["host"], event["dryRun"]) for event in changes} == {("w-1", True), ("w-2", True)}
    assert "+" in changes[0]["diff"] or "copied" in changes[0]["diff"]
    assert site.trees() == before
    assert site.clients["w-1"].restarts == 0


def test_those_that_fail_are_named_and_the_others_are_done(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add(6)
    site.unreachable["w-1"] = ConnectionFailed(
        "no response from an SSH server", hint="try: ssh", code="HostUnreachable"
    )
    site.unreachable["w-2"] = ConnectionFailed("does not let user root in", code="AuthenticationFailed")
    for name in ("containerd", "ctr"):
        site.clients["w-3"].path(f"/usr/bin/{name}").unlink()
    site.clients["w-3"].unit(LoadState="not-found", ExecStart="")
    full = site.clients["w-4"]
    monkeypatch.setattr(full, "run", Refusing(full, lambda argv: argv[:2] == ("sh", "-c") and "write" in argv[3:4]))
    monkeypatch.setattr(site.clients["w-5"], "lock", lambda who: "somebody else, since noon")
    code, events = site.run("apply")
    assert code == 5
    result = events[-1]
    assert result["done"] == 1
    assert result["summary"].startswith("1 of 6 nodes pull from the registry, 1 changed; failed: ")
    assert {name: why["code"] for name, why in result["owed"].items()} == {
        "w-1": "HostUnreachable", "w-2": "AuthenticationFailed", "w-3": "PreflightFailed", "w-4": "CommandFailed",
        "w-5": "HostBusy",
    }  # fmt: skip
    reasons = {name: why["reason"] for name, why in result["owed"].items()}
    assert "containerd is not installed" in reasons["w-3"]
    assert "No space left on device" in reasons["w-4"]
    assert "somebody else, since noon" in reasons["w-5"]
    notes = {event["host"]: event["message"] for event in events if event["event"] == "note"}
    assert set(result["owed"]) <= set(notes)


@pytest.mark.parametrize("away", [False, True], ids=["told", "out of reach"])
def test_a_ca_that_is_replaced_meanwhile_is_not_taken_back_unseen(
    site: Site, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """`certs renew --ca` has given a client both, before it got the one of before from here."""
    site.add(2)
    before = fixed_secrets(tuple(site.registry.servers))
    both = replace(rotation.advance(before, "registry"), revision=1)

    def renew(_: str) -> None:
        for server in site.registry.servers.values():
            server.put(secrets.PATH, both.to_json())
            server.closed = away

    monkeypatch.setattr(site.clients["w-1"], "lock", renew)
    code, events = site.run("apply")
    told = [event["message"] for event in events if event["event"] == "note"]
    if away:
        assert (code, events[-1]["done"]) == (0, 2)
        assert len(told) == 1 and "another run has replaced the CA or the pull password in the meantime" in told[0]
        return
    assert (code, events[-1]["code"], events[-1]["hint"]) == (1, "SecretsChanged", "run the command again")
    code, events = site.run("apply")
    assert (code, events[-1]["summary"]) == (0, "2 of 2 nodes pull from the registry, 2 changed")


def test_what_nobody_thought_of_ends_no_run(site: Site) -> None:
    """An error that is none of ours is told of the node that it happened on; the others are done."""
    site.add(3)
    site.unreachable["w-2"] = UnicodeError("encoding with 'idna' codec failed")  # type: ignore[assignment]
    code, events = site.run("apply")
    assert (code, events[-1]["done"]) == (5, 2)
    assert list(events[-1]["owed"]) == ["w-2"]
    why = events[-1]["owed"]["w-2"]
    assert (why["code"], "UnicodeError" in why["reason"], "--debug" in why["hint"]) == ("Bug", True, True)


def test_what_an_interrupted_run_still_waits_for_is_told(site: Site) -> None:
    """Up to 32 nodes have begun, and each may restart its containerd, which takes minutes in all."""
    site.add(2)
    site.unreachable["w-1"] = KeyboardInterrupt()
    code, events = site.run("apply")
    assert (code, events[-1]["code"]) == (130, "Interrupted")
    told = [event["message"] for event in events if event["event"] == "note"]
    assert told == ["interrupted: the nodes that have begun are completed first"]


def test_a_reader_that_goes_away_ends_the_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no mistake of a node, and the others are not changed unseen."""

    def unread(*_: object, **__: object) -> None:
        raise BrokenPipeError

    site.add(2)
    monkeypatch.setattr(JsonLines, "action", unread)
    code, events = site.run("apply")
    assert (code, [one for one in events if one["event"] in ("note", "result", "error")]) == (1, [])


@pytest.mark.parametrize("what", ["apply", "remove"])
@pytest.mark.parametrize("line", ["w-1 10.0.0.10", "10.0.0.10 user=root", "w-1 Registry.example.com"])
def test_the_virtual_ip_is_no_node(site: Site, what: str, line: str) -> None:
    text = config.SMALLEST.replace("{address: 10.0.0.10}", "{address: 10.0.0.10, name: registry.example.com}")
    (site.folder / "cluster.yaml").write_text(text)
    (site.folder / "nodes").write_text(f"{line}\n")
    code, events = site.run(what)
    assert (code, events[-1]["code"], site.reached) == (2, "NodesInvalid", [])
    assert "is the virtual IP" in events[-1]["message"]


def test_the_next_run_touches_only_those_that_were_not_done(site: Site) -> None:
    site.add(3)
    site.unreachable["w-2"] = ConnectionFailed("away", code="HostUnreachable")
    assert site.run("apply")[0] == 5
    site.unreachable.clear()
    done = {name: tree for name, tree in site.trees().items() if name != "w-2"}
    code, events = site.run("apply")
    assert code == 0
    assert {event["host"] for event in events if event["event"] == "change"} == {"w-2"}
    assert {name: tree for name, tree in site.trees().items() if name != "w-2"} == done
    assert {client.restarts for client in site.clients.values()} == {1}


def test_what_a_killed_run_left_unfinished_goes_with_the_next_run(site: Site) -> None:
    """Else an unfinished file would stay beside those that containerd reads, also after remove."""
    site.add(1)
    client = site.clients["w-1"]
    before = site.trees()
    assert site.run("apply")[0] == 0
    left = client.put(f"{CERTS}/quay.io/.hosts.toml.0123456789.kubeadm-registry", "[host")
    other = client.put("/etc/containerd/.config.toml.swp", "somebody's editor")
    site.run("remove", "--dry-run")
    assert left.exists()
    assert site.run("remove")[0] == 0
    assert not left.exists()
    other.unlink()
    assert site.trees() == before


def test_a_node_whose_containerd_reads_hosts_files_is_not_restarted(site: Site) -> None:
    site.add(2, OURS)
    assert site.run("apply")[0] == 0
    assert {client.restarts for client in site.clients.values()} == {0}
    assert site.run("remove")[0] == 0
    assert {client.restarts for client in site.clients.values()} == {0}


def test_containerds_that_do_not_come_back_are_not_made_more(site: Site) -> None:
    site.add(12)
    for client in site.clients.values():
        client.put("/stub/refuses", "")
    code, events = site.run("apply")
    assert code == 1, "nothing was done"
    told = [event["message"] for event in events if event["event"] == "note"]
    tried = len([text for text in told if "systemctl restart" in text])
    at_once = 12 // client_nodes.RESTARTED_PART
    assert client_nodes.MOST_FAILURES <= tried <= client_nodes.MOST_FAILURES + at_once - 1
    assert len([text for text in told if "not restarted" in text]) == 12 - tried
    assert sum(client.restarts for client in site.clients.values()) == tried


def test_if_nothing_can_be_done_the_first_reason_is_the_error(site: Site) -> None:
    site.add(2)
    site.unreachable |= dict.fromkeys(site.clients, ConnectionFailed("away", code="HostUnreachable"))
    code, events = site.run("apply")
    assert code == 4
    assert (events[-1]["event"], events[-1]["code"], events[-1]["host"]) == ("error", "HostUnreachable", "w-1")


def test_without_a_registry_there_is_nothing_to_point_at(site: Site) -> None:
    site.add(1)
    for server in site.registry.servers.values():
        del server.tree[secrets.PATH]
    code, events = site.run("apply")
    assert (code, events[-1]["code"]) == (1, "NotInstalled")
    assert "w-1" not in site.reached


def test_one_server_that_answers_is_enough(site: Site) -> None:
    site.add(1)
    site.unreachable |= dict.fromkeys(("cp-1", "cp-2"), ConnectionFailed("away", code="HostUnreachable"))
    assert site.run("apply")[0] == 0


def test_a_server_of_the_registry_is_not_taken_apart(site: Site) -> None:
    (site.folder / "nodes").write_text("w-1 10.0.1.1\nsome-name 10.0.0.12\n")
    code, events = site.run("remove")
    assert (code, events[-1]["code"]) == (2, "NodesInvalid")
    assert "some-name" in events[-1]["message"]
    assert site.reached == []


def test_who_was_a_server_once_pulls_like_any_other(site: Site) -> None:
    """`leave` and `reset` keep the data, and with it the list of members of that time."""
    site.add(2)
    before = site.trees()
    names = (*site.registry.servers, "w-1")
    for server in site.registry.servers.values():
        server.put(secrets.PATH, fixed_secrets(names).to_json())
    of_then = {name: f"10.0.0.{11 + number}" for number, name in enumerate(names)}
    data = site.registry.config.spec.data_directory
    kept = {
        "w-1": {members.kept_path(data): Members(4, of_then).render().decode()},
        "w-2": {members.kept_path(data): Members(1, {"a": "10.9.0.1"}).render().decode()},
    }
    for name, files in kept.items():
        for path, content in {**files, f"{data}/garage/meta/cluster_layout": "layout"}.items():
            site.clients[name].put(path, content)
    assert site.run("apply")[1][-1]["summary"] == "2 of 2 nodes pull from the registry, 2 changed"
    assert site.run("remove")[0] == 0
    for client in site.clients.values():
        shutil.rmtree(client.path(data))
    assert site.trees() == before


def test_a_server_may_be_listed_and_one_of_another_registry_is_left_alone(site: Site) -> None:
    site.add(2)
    known = fixed_secrets(tuple(site.registry.servers))
    for name, identity in (("w-1", known.node_id("cp-1")), ("w-2", "ab" * 32)):
        text = f"""
            metadata_dir = "/var/lib/kubeadm-registry/garage/meta"
            replication_factor = 3
            bootstrap_peers = ["{identity}@10.0.0.11:3901"]
        """
        site.clients[name].put(garage.CONFIG, text)
        site.clients[name].put(members.PATH, Members(3, {"cp-1": "10.0.0.11"}).render().decode())
    before = site.trees()["w-2"]
    code, events = site.run("apply")
    assert (code, list(events[-1]["owed"])) == (5, ["w-2"])
    assert "it is a node of another registry" in events[-1]["owed"]["w-2"]["reason"]
    assert site.trees()["w-2"] == before


def test_a_server_that_the_list_calls_otherwise_keeps_its_mirrors(site: Site) -> None:
    """By a host name with a dot, or an address of another network, as Kubernetes may have them."""
    site.add(2)
    assert site.run("apply")[0] == 0
    text = """
        metadata_dir = "/var/lib/kubeadm-registry/garage/meta"
        replication_factor = 3
        bootstrap_peers = []
    """
    site.clients["w-2"].put(garage.CONFIG, text)
    before = site.trees()["w-2"]
    code, events = site.run("remove")
    assert (code, list(events[-1]["owed"])) == (5, ["w-2"])
    assert events[-1]["owed"]["w-2"]["reason"].startswith("it is a registry node")
    assert site.trees()["w-2"] == before


def test_a_wrong_list_contacts_nobody(site: Site) -> None:
    (site.folder / "nodes").write_text("a b c d\n")
    code, events = site.run("apply")
    assert (code, events[-1]["code"], site.reached) == (2, "NodesInvalid", [])
    (site.folder / "nodes").unlink()
    assert site.run("apply")[1][-1]["code"] == "NodesUnreadable"


def test_the_pull_login_is_never_shown(site: Site) -> None:
    (site.folder / "cluster.yaml").write_text(config.SMALLEST + "  proxy: {anonymousPull: false}\n")
    site.add(1)
    login = basic("pull", "the-pull-password")
    for what in ("apply", "remove"):
        done = site("mirrors", what, "--nodes", "nodes", "-o", "json", "--dry-run")
        assert login not in done.output
        if what == "apply":
            assert "<login>" in done.output
        assert site.run("apply")[0] == 0
        assert login in site.clients["w-1"].path(f"{CERTS}/docker.io/hosts.toml").read_text()
        assert site.clients["w-1"].path(f"{CERTS}/docker.io/hosts.toml").stat().st_mode & 0o777 == 0o600
    # The login was changed since, and nobody here knows the old one.
    changed = fixed_secrets(tuple(site.registry.servers)).to_json().replace(b"the-pull-password", b"another")
    for server in site.registry.servers.values():
        server.put(secrets.PATH, changed)
    done = site("mirrors", "apply", "--nodes", "nodes", "-o", "json", "--diff")
    assert f"+++ {CERTS}/docker.io/hosts.toml" in done.output, "that it differs is shown"
    assert login not in done.output
