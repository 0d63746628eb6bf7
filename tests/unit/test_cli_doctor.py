"""``doctor`` and ``support-bundle`` from the command line: output, exit codes, and the file."""

from __future__ import annotations

import json
import tarfile

import pytest

from kubeadm_registry import paths, secrets
from kubeadm_registry.access import session
from kubeadm_registry.components.services import every_service
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.doctor import facts
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.support import collection, contents
from kubeadm_registry.transport.host import Transport
from kubeadm_registry.transport.ssh import UNREACHABLE
from tests.unit.command_line import Terminal
from tests.unit.fake_cluster import FakeCluster, fixed_secrets

pytest_plugins = ["tests.unit.command_line"]


@pytest.fixture
def bare(servers: FakeCluster) -> FakeCluster:
    """Nodes on which nothing is installed, and which answer what doctor and the archive ask."""
    for server in servers.servers.values():
        server.answer("sh", "-c", facts._ASK, "doctor", with_="=== clock\n1\n")
        for item in collection.items(every_service()):
            script = f"{{ {item.script}\n}} 2>&1 | tail -c {collection.MOST}"
            server.answer("sh", "-c", script, "support", with_="push:the-push-password\n")
    return servers


def cut(monkeypatch: pytest.MonkeyPatch, servers: FakeCluster, *names: str) -> None:
    def reach(_: RegistryCluster, node: Node, prompts: session.Prompts) -> Transport:
        if node.name in names:
            raise ConnectionFailed("no route to host", host=node.name, code=UNREACHABLE, hint="check it")
        servers.servers[node.name].closed = False
        return servers.servers[node.name]

    monkeypatch.setattr(session, "reach", reach)


def test_before_the_first_init(run: Terminal, bare: FakeCluster) -> None:
    result = run("doctor")
    assert result.exit_code == 1
    assert result.stdout.startswith("error [NotInstalled] the registry is not installed on any node\n")
    assert "  fix:       workstation$ kubeadm-registry preflight\n" in result.stdout
    assert result.stdout.endswith("1 error; the registry does not serve\n")
    assert bare.acts() == []


def test_json_is_one_object(run: Terminal, bare: FakeCluster) -> None:
    result = run("doctor", "-o", "json")
    found = json.loads(result.stdout)
    assert (found["state"], [one["code"] for one in found["findings"]]) == ("down", ["NotInstalled"])


def test_what_fixes_a_registry_of_another_file_names_the_file(run: Terminal, bare: FakeCluster) -> None:
    """As it stands it would work on the registry of ./cluster.yaml."""
    (run.folder / "cluster.yaml").rename(run.folder / "site b.yaml")
    assert "  fix:       workstation$ kubeadm-registry preflight -f 'site b.yaml'\n" in (
        run("doctor", "-f", "site b.yaml").stdout
    )
    (found,) = json.loads(run("doctor", "-f", "site b.yaml", "-o", "json").stdout)["findings"]
    assert [one["command"] for one in found["fix"]] == [
        "kubeadm-registry preflight -f 'site b.yaml'", "kubeadm-registry init -f 'site b.yaml'",
    ]  # fmt: skip


def test_no_node_answers(run: Terminal, bare: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, bare, "cp-1", "cp-2", "cp-3")
    result = run("doctor", "-o", "json")
    assert result.exit_code == 4
    assert {one["code"] for one in json.loads(result.stdout)["findings"]} == {"NodeDown", "NoQuorum"}


def test_the_archive_is_written_without_the_node_that_does_not_answer(
    run: Terminal, bare: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for server in bare.servers.values():
        server.put(secrets.PATH, fixed_secrets(("cp-1", "cp-2", "cp-3")).to_json(), 0o600)
    cut(monkeypatch, bare, "cp-2")
    result = run("support-bundle", "-o", "out.tar.gz", "-o", "json", "--since", "2h")
    assert result.exit_code == 5, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["unreachable"] == {"cp-2": "no route to host (check it)"}
    target = run.folder / "out.tar.gz"
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as tar:
        names = {name.removeprefix("out/") for name in tar.getnames()}
        content = b"".join(file.read() for one in tar if (file := tar.extractfile(one)) is not None)
    wanted = {name for name in contents(every_service()) if "NAME" not in name}
    wanted |= {f"nodes/{node}/{item.name}" for node in ("cp-1", "cp-3") for item in collection.items(every_service())}
    assert names == wanted
    assert b"the-push-password" not in content
    assert b"<secret push_password>" in content


def test_an_archive_without_anything_of_a_node_that_answers_says_so(run: Terminal, bare: FakeCluster) -> None:
    """All nodes have lost the secrets, so nothing could be masked."""
    for server in bare.servers.values():
        server.put(f"{paths.ETC}/garage/garage.toml", "x")
    result = run("support-bundle", "-o", "out.tar.gz")
    assert result.exit_code == 5, result.output
    assert "cp-3 warning: nothing of it is in the archive: no node has the secrets" in " ".join(result.output.split())


def test_a_wrong_time_is_refused_before_anything_is_contacted(
    run: Terminal, bare: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "reach", lambda *_: pytest.fail("it was contacted"))
    result = run("support-bundle", "--since", "yesterday")
    assert result.exit_code == 2
    assert "not a valid duration" in result.output


@pytest.mark.parametrize("name", ["none/out.tar.gz", "cluster.yaml", "/dev/null"])
def test_where_it_cannot_be_written_is_told_before_anything_is_contacted(
    run: Terminal, bare: FakeCluster, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(session, "reach", lambda *_: pytest.fail("it was contacted"))
    result = run("support-bundle", "-o", name)
    assert result.exit_code == 2
    assert f"[OutputInvalid] cannot write {name}: " in result.output


def test_help_says_what_is_in_it(run: Terminal) -> None:
    text = run("support-bundle", "--help").stdout
    for name in contents(every_service()):
        assert name in text
