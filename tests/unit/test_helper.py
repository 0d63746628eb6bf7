"""The operator's helper on a node: who may ask, what init keeps current, what goes when it is removed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pwd
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from kubeadm_registry import paths
from kubeadm_registry.access import questions
from kubeadm_registry.bundle import TOOL
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import helper
from kubeadm_registry.engine.changes import STARTED
from kubeadm_registry.engine.phase import Workflow
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error, PhaseFailed
from kubeadm_registry.helper import __main__ as program
from kubeadm_registry.phases.helper import FORBID, HELPER, allow
from kubeadm_registry.phases.workflows import INIT, RESET
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fakes import UNITS
from tests.unit.test_workflow import Recorder

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOperator"
FILES = {
    helper.KEYS, helper.DOOR, helper.NODE, f"{UNITS}/{helper.SOCKET}", f"{UNITS}/{helper.TEMPLATE}",
    f"{UNITS}/{helper.SPACE}",
}  # fmt: skip


@pytest.fixture
def installed(installed: FakeCluster) -> FakeCluster:
    """After init and `operator install`."""
    assert not [path for server in installed.servers.values() for path in server.tree if "helper" in path]
    run(allow(PUBLIC), installed.cluster, Recorder())
    return installed


def test_the_key_may_ask_for_one_command_only(installed: FakeCluster) -> None:
    for server in installed.servers.values():
        [line] = [one for one in server.content(helper.KEYS).decode().splitlines() if not one.startswith("#")]
        options, _, key = line.partition(" ")
        assert options == f'restrict,command="{helper.DOOR}"'
        assert key.startswith(PUBLIC)
        assert server.unit(helper.SOCKET).active == "active"
        assert server.unit(helper.SOCKET).enabled


def test_only_root_may_write_what_decides_who_asks(installed: FakeCluster) -> None:
    for server in installed.servers.values():
        for path in (helper.ETC, f"{helper.ETC}/.ssh", *FILES):
            one = server.tree[path]
            assert one.owner == "root:root", path
            assert not one.mode & 0o022, path


def test_a_second_time_changes_nothing_and_another_key_replaces_the_first(installed: FakeCluster) -> None:
    assert run(allow(PUBLIC), installed.cluster, Recorder()) == []
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []
    run(allow(PUBLIC + "2"), installed.cluster, Recorder())
    keys = installed.servers["cp-1"].content(helper.KEYS).decode()
    assert f"{PUBLIC}2 " in keys
    assert f"{PUBLIC} " not in keys


def test_another_key_ends_the_sessions_of_the_first(installed: FakeCluster) -> None:
    server = installed.servers["cp-2"]
    server.logged_in.add(helper.USER)
    server.logged_in_with = server.content(helper.KEYS)
    assert run(allow(PUBLIC), installed.cluster, Recorder()) == [], "they are the present key's"
    run(allow(PUBLIC + "2"), installed.cluster, Recorder())
    assert helper.USER not in server.logged_in


def test_sessions_that_began_before_a_file_was_written_are_told_from_later_ones(tmp_path: Path) -> None:
    """With this very process, which began some seconds ago."""
    file, name = tmp_path / "keys", pwd.getpwuid(os.getuid()).pw_name

    def found() -> list[str]:
        argv = ["sh", "-c", helper._SESSIONS, "sessions", name, "", str(file)]
        return subprocess.run(argv, capture_output=True, check=True, text=True).stdout.split()

    file.write_text("key")
    os.utime(file, (0, 0))
    assert f"/proc/{os.getpid()}" not in found()
    os.utime(file, (time.time(), time.time()))
    assert f"/proc/{os.getpid()}" in found()
    file.unlink()
    assert found() == [], "nobody came by a file that is not there"


def test_init_has_another_build_of_the_tool_answer(installed: FakeCluster) -> None:
    before, after = installed.another_build(TOOL)
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    for server in installed.servers.values():
        for path in (helper.DOOR, f"{UNITS}/{helper.TEMPLATE}"):
            assert after.prefix in server.content(path).decode()
            assert before.prefix not in server.content(path).decode()


def test_init_has_another_socket_unit_listen(installed: FakeCluster) -> None:
    """As when a release changes it: systemd goes on with the earlier file until the socket is restarted."""
    for server in installed.servers.values():
        path = f"{UNITS}/{helper.SOCKET}"
        text = server.content(path).decode().replace("MaxConnections=", "MaxConnections=1")
        server.put(path, text)
        server.unit(helper.SOCKET).loaded = text.encode()
        server.put(f"{STARTED}/{helper.SOCKET}", f"{hashlib.sha256(text.encode()).hexdigest()}  {path}\n")
    starts = {name: server.unit(helper.SOCKET).starts for name, server in installed.servers.items()}
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    for name, server in installed.servers.items():
        assert server.unit(helper.SOCKET).starts == starts[name] + 1
        assert b"MaxConnections=1\n" not in server.unit(helper.SOCKET).loaded  # type: ignore[operator]
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []


def check_removed(fake: FakeCluster) -> None:
    """Nothing of the helper is on any node."""
    for server in fake.servers.values():
        assert not [path for path in server.tree if "helper" in path or helper.SPACE in path]
        assert helper.USER not in server.users


@pytest.mark.parametrize("workflow", [FORBID, RESET], ids=["uninstall", "reset"])
def test_nothing_of_it_stays(installed: FakeCluster, workflow: Workflow) -> None:
    skip = ("containerd", "data") if workflow is RESET else ()
    installed.servers["cp-2"].logged_in.add(helper.USER)
    run(workflow, installed.cluster, Recorder(), skip=skip)
    check_removed(installed)
    assert run(workflow, installed.cluster, Recorder(), skip=skip) == []


def test_a_node_that_was_made_anew_gets_the_key_of_the_others(installed: FakeCluster) -> None:
    run(FORBID, replace_hosts(installed, "cp-3"), Recorder())
    assert helper.KEYS not in installed.servers["cp-3"].tree
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    keys = [server.content(helper.KEYS) for server in installed.servers.values()]
    assert keys == [helper.key_line(PUBLIC)] * 3
    assert installed.servers["cp-3"].unit(helper.SOCKET).active == "active"


def test_a_node_that_was_away_when_it_was_removed_does_not_bring_it_back(installed: FakeCluster) -> None:
    run(FORBID, replace_hosts(installed, "cp-1", "cp-2"), Recorder())
    assert helper.KEYS in installed.servers["cp-3"].tree
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    check_removed(installed)
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []


def test_a_node_that_was_away_when_the_key_was_replaced_gets_the_new_one(installed: FakeCluster) -> None:
    """It is the first in the file, and a session with the key that it has is ended."""
    run(allow(PUBLIC + "2"), replace_hosts(installed, "cp-2", "cp-3"), Recorder())
    server = installed.servers["cp-1"]
    assert server.content(helper.KEYS) == helper.key_line(PUBLIC)
    server.logged_in.add(helper.USER)
    server.logged_in_with = server.content(helper.KEYS)
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    assert {one.content(helper.KEYS) for one in installed.servers.values()} == {helper.key_line(PUBLIC + "2")}
    assert helper.USER not in server.logged_in


def test_keys_of_which_none_has_a_majority_are_all_removed(installed: FakeCluster) -> None:
    run(allow(PUBLIC + "2"), replace_hosts(installed, "cp-2"), Recorder())
    run(FORBID, replace_hosts(installed, "cp-3"), Recorder())
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    assert not [path for server in installed.servers.values() for path in server.tree if "helper" in path]


def test_a_node_that_was_made_anew_has_nothing_removed_while_another_is_away(installed: FakeCluster) -> None:
    """One of two nodes that answer has the key: the third decides, when it is back."""
    run(FORBID, replace_hosts(installed, "cp-3"), Recorder())
    before = installed.servers["cp-1"].snapshot()
    run((HELPER,), replace_hosts(installed, "cp-1", "cp-3"), Recorder())
    assert installed.servers["cp-1"].snapshot() == before
    assert helper.KEYS not in installed.servers["cp-3"].tree
    run((HELPER,), installed.cluster, Recorder())
    assert {server.content(helper.KEYS) for server in installed.servers.values()} == {helper.key_line(PUBLIC)}


def test_what_most_have_not_is_removed_where_the_others_cannot_decide(installed: FakeCluster) -> None:
    run(FORBID, replace_hosts(installed, "cp-1", "cp-2"), Recorder())
    run((HELPER,), replace_hosts(installed, "cp-2", "cp-3"), Recorder())
    assert helper.KEYS in installed.servers["cp-3"].tree, "cp-1 may have the key still, as far as this run knows"
    run((HELPER,), installed.cluster, Recorder())
    check_removed(installed)


def test_a_part_of_the_nodes_has_another_build_of_the_tool_answer(installed: FakeCluster) -> None:
    run(FORBID, replace_hosts(installed, "cp-3"), Recorder())
    after = installed.another_build(TOOL)[1]
    run((HELPER,), replace_hosts(installed, "cp-1", "cp-3"), Recorder())
    assert after.prefix in installed.servers["cp-1"].content(helper.DOOR).decode()


def test_a_removal_by_init_that_is_killed_anywhere_is_completed_by_the_next(installed: FakeCluster) -> None:
    run(FORBID, replace_hosts(installed, "cp-1", "cp-2"), Recorder())
    server = installed.servers["cp-3"]
    number = 0
    while True:
        run(allow(PUBLIC), replace_hosts(installed, "cp-3"), Recorder())
        cluster = installed.cluster
        server.cut_at = len(server.acts) + number
        try:
            run((HELPER,), cluster, Recorder())
        except PhaseFailed:
            run((HELPER,), installed.cluster, Recorder())
            assert not [path for path in server.tree if "helper" in path], number
            assert helper.USER not in server.users, number
            number += 1
        else:
            break
    assert number > 5


def replace_hosts(fake: FakeCluster, *names: str) -> Cluster:
    """The cluster as a run sees it that reaches only these."""
    return replace(fake.cluster, hosts=tuple(host for host in fake.cluster.hosts if host.name in names))


def test_where_it_never_was_nothing_is_removed(three: FakeCluster) -> None:
    run(INIT, three.cluster, Recorder(), skip=ELSEWHERE)
    assert run(FORBID, three.cluster, Recorder()) == []


def test_an_older_bundle_without_the_tool_leaves_no_door(installed: FakeCluster) -> None:
    installed.programs = {name: one for name, one in installed.programs.items() if name != TOOL}
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE, ignore=["RetentionProgram"])
    assert not [path for server in installed.servers.values() for path in server.tree if "helper" in path]


def test_settings_of_a_newer_release_than_the_node_has_are_told_with_the_way_out(installed: FakeCluster) -> None:
    """`init` by a newer tool and without its bundle: keys of its cluster file are no mistake of the user's."""
    written = json.loads(installed.servers["cp-1"].content(helper.NODE))
    written["cluster"]["spec"]["ofANewerRelease"] = 1
    with pytest.raises(Error, match="ofANewerRelease: unknown key") as caught:
        helper.read_settings(json.dumps(written).encode(), "cp-1")
    assert (caught.value.code, caught.value.host) == ("HelperUnknown", "cp-1")
    assert "run `upgrade` with its own bundle" in caught.value.hint


def test_the_nodes_host_keys_are_told_as_known_hosts_has_them(installed: FakeCluster) -> None:
    server, host = installed.servers["cp-1"], installed.cluster.hosts[0]
    server.answer("sh", "-c", helper._HOST_KEYS, with_="ssh-ed25519 AAAA root@cp-1\necdsa-sha2-nistp256 BBBB\n")
    assert (
        helper.known_host(host, "10.0.0.11", 22) == "10.0.0.11 ssh-ed25519 AAAA\n10.0.0.11 ecdsa-sha2-nistp256 BBBB\n"
    )
    assert helper.known_host(host, "fd00::1", 2222).startswith("[fd00::1]:2222 ssh-ed25519 AAAA\n")


def test_a_key_is_as_sshd_takes_it() -> None:
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    text = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    assert re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/=]+", text)
    assert helper.key_line(text).endswith(f"{text} kubeadm-registry operator\n".encode())


def test_a_question_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MOST", 100)
    sink = io.BytesIO()
    assert program.main(io.BytesIO(b"x" * 101), sink) == 0
    assert json.loads(sink.getvalue())["error"]["code"] == "QuestionInvalid"


def test_the_socket_lies_where_both_sides_look() -> None:
    assert not paths.HELPER_SOCKET.startswith(f"{paths.RUN}/")
