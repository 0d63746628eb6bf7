"""Before the virtual IP moves clients end what they do: who is waited for, for how long, and what is undone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry.components import drain
from kubeadm_registry.errors import CommandFailed
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fakes import FakeTransport

ASKED = ("ss", "-Htn", "state", "established", "( src 10.0.0.10:5000 )")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "LONG", 0.5)
    monkeypatch.setattr(drain, "SHORT", 0.3)


def connected(server: FakeTransport, *answers: tuple[str, ...]) -> None:
    """Who is connected at each look; the last answer stays."""

    def say() -> Iterator[str]:
        for clients in answers:
            yield "".join(f"0      0          10.0.0.10:5000    {client}\n" for client in clients)

    said = list(say())
    server.answer(*ASKED, with_=lambda *_: said.pop(0) if len(said) > 1 else said[0])


def acts(server: FakeTransport) -> list[str]:
    return server.acts


def test_requests_end_first_while_others_begin_and_then_while_new_ones_wait(three: FakeCluster) -> None:
    cluster = three.cluster
    server = three.servers["cp-1"]
    old, new = "10.0.0.50:40000", "10.0.0.51:40001"
    connected(server, (old,), (old, new), (new,), (new,), ())
    with drain.drained(cluster, cluster.leader):
        assert acts(server) == ["renew the proxies' workers", "hold new connections", "renew the proxies' workers"]
    assert acts(server)[3:] == ["take new connections"]
    asked = [command for command in server.log if command.argv[:1] == ("ss",)]
    assert len(asked) == 5, "the first look, then until the old one has gone, then until nobody is there"


def test_what_takes_too_long_is_not_waited_for(three: FakeCluster) -> None:
    cluster = three.cluster
    server = three.servers["cp-1"]
    connected(server, ("10.0.0.50:40000",))
    with drain.drained(cluster, cluster.leader):
        pass
    assert acts(server)[-1] == "take new connections"


def test_new_connections_are_taken_again_also_after_a_failure(three: FakeCluster) -> None:
    cluster = three.cluster
    server = three.servers["cp-1"]
    with pytest.raises(CommandFailed), drain.drained(cluster, cluster.leader):
        server.answer("systemctl", "stop", with_=1)
        cluster.leader.run("systemctl", "stop", "--", "x.service")
    assert acts(server)[-1] == "take new connections"


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="there is no shellcheck (Debian: apt-get install shellcheck)"
)
@pytest.mark.parametrize("script", [drain._RENEW, drain._HOLD, drain._RELEASE])
def test_scripts_are_good_shell(script: str) -> None:
    result = subprocess.run(["shellcheck", "-s", "sh", "-"], input=script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_workers_of_those_that_run_begin_anew() -> None:
    """Without -P, which systemd before 246 does not have."""
    stubs = """
systemctl() { [ "$1 $2 $3" = "show --property=MainPID --value" ] || return 1; [ "$5" = b ] && echo 0 || echo 42; }
kill() { echo "$@"; }
"""
    argv = ["sh", "-c", stubs + drain._RENEW, "renew", "a", "b"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "-USR2 42\n"


def test_the_rule_names_each_address_by_its_family(tmp_path: Path) -> None:
    """As the script gives it to nft: the commands that it calls are replaced by ones that print."""
    for name, does in {"systemctl": "exit 5", "systemd-run": "exit 0", "nft": "exec cat"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    argv = ("sh", "-c", drain._HOLD, "hold", drain.TABLE, "30", "5000", "10.0.0.10", "fd00::10")
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    rules = subprocess.run(argv, capture_output=True, text=True, check=True, env=path).stdout
    assert "ip daddr 10.0.0.10 tcp dport 5000 tcp flags & (fin | syn | rst | ack) == syn drop" in rules
    assert "ip6 daddr fd00::10 tcp dport 5000" in rules
    if shutil.which("nft"):
        checked = subprocess.run(["nft", "-c", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
        assert "syntax error" not in checked.stderr, checked.stderr
