"""The list of nodes that only pull: what a line may be, and what is said of one that is something else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeadm_registry.config import Ssh, client_list
from kubeadm_registry.config.client_list import ClientNode, load, parse
from kubeadm_registry.errors import ConfigError


def test_a_list_of_nodes() -> None:
    text = """
    # rack 1
    w-1   10.0.0.21
    w-2   10.0.0.22  user=admin port=2222   # has another sshd
    10.0.0.23
    fd00::24
    w-5   jump.example  identityFile=~/.ssh/other knownHostsFile=/srv/known
    w-6   fd00:0:0::26\tidentityFile=/keys/a#b
    w_7   Rack7_host.example  user=a=b# # a comment
    """
    assert parse(text, "nodes") == (
        ClientNode("w-1", "10.0.0.21"),
        ClientNode("w-2", "10.0.0.22", Ssh(user="admin", port=2222)),
        ClientNode("10.0.0.23", "10.0.0.23"),
        ClientNode("fd00::24", "fd00::24"),
        ClientNode("w-5", "jump.example", Ssh(identity_file="~/.ssh/other", known_hosts_file="/srv/known")),
        ClientNode("w-6", "fd00::26", Ssh(identity_file="/keys/a#b")),
        ClientNode("w_7", "Rack7_host.example", Ssh(user="a=b#")),
    )


SHAPE = "nodes:1: must be NAME ADDRESS"
WRONG = {
    "w-1 10.0.0.1 extra": SHAPE,
    "user=admin": SHAPE,
    "w-1 user=admin 10.0.0.1": SHAPE,
    "w-1,10.0.0.21,admin": "nodes:1: w-1,10.0.0.21,admin: is not a valid IP address or host name",
    '{"name": "w-1", "address": "10.0.0.21"}': SHAPE,
    "- w-1": "nodes:1: -: is not a valid IP address or host name",
    "[clients]": "nodes:1: [clients]: sections are not supported",
    "w-1 ansible_host=10.0.0.21": "nodes:1: ansible_host: unknown setting; known settings: identityFile, knownHosts",
    "10.0.0.0/24": "nodes:1: 10.0.0.0/24: must be a single node",
    "10.0.0.21-30": "nodes:1: 10.0.0.21-30: must be a single node",
    "w-[1:9].example": "nodes:1: w-[1:9].example: must be a single node",
    "w-{1..9}": "nodes:1: w-{1..9}: must be a single node",
    "10.0.0.21 w-1": "nodes:1: write the name first: w-1 10.0.0.21",
    "10.0.0.21 10.0.0.22": "nodes:1: write the name first",
    "root@10.0.0.21": "nodes:1: root@10.0.0.21: set the user with user=: 10.0.0.21 user=root",
    "w-1 ann@corp@w-1.example": "set the user with user=: w-1.example user=ann@corp",
    "10.0.0.21:22": "nodes:1: 10.0.0.21:22: set the port with port=: 10.0.0.21 port=22",
    "[fd00::1]:22": "nodes:1: [fd00::1]:22: set the port with port=: fd00::1 port=22",
    "[fd00::1]": "nodes:1: [fd00::1]: write an IPv6 address without brackets",
    "10.0.0.256": "nodes:1: 10.0.0.256: is not a valid IP address or host name",
    "10.0.0": "nodes:1: 10.0.0: is not a valid IP address",
    "w-2 10.0.0..1": "nodes:1: 10.0.0..1: is not a valid IP address",
    "fd00::1::2": "nodes:1: fd00::1::2: ",
    "-oProxyCommand=x": SHAPE,
    "w-1 -x": "nodes:1: -x: is not a valid IP address",
    f"w-1 {'a' * 64}.example": "is not a valid IP address or host name",
    f"w-1 {'a.' * 127}aa": "is not a valid IP address or host name",
    "w-1 10.0.0.1\0": "nodes:1: contains an unprintable character: 'w-1 10.0.0.1\\x00'",
    "w-1 10.0.0.1 user=a\x1b[31m": "nodes:1: contains an unprintable character",
    "w-1 10.0.0.1 user=a\u202eb": "nodes:1: contains an unprintable character",
    "NAME STATUS": "nodes:1: is a table heading",
    "w-1 Ready": "nodes:1: Ready is a column of `kubectl get nodes`",
    "w-1   Ready    <none>   5d   v1.36.3": SHAPE,
    "w-1 10.0.0.1 port=ssh": "nodes:1: port: must be a number from 1 to 65535 (it is ssh)",
    "w-1 10.0.0.1 port=65536": "nodes:1: port: must be a number",
    "w-1 10.0.0.1 port=0": "nodes:1: port: must be a number",
    "w-1 10.0.0.1 port=": "nodes:1: port: must be a number from 1 to 65535",
    "w-1 10.0.0.1 port=22 port=23": "nodes:1: port is set twice",
    "w-1 10.0.0.1 user=": "nodes:1: user: ",
    "w-1 10.0.0.1 prot=22": "nodes:1: prot: unknown setting; known settings: ",
    "w-1 10.0.0.1 identity_file=/k": "nodes:1: identity_file: unknown setting",
    "w-1 10.0.0.1 identityFile=~nosuch/k": "nodes:1: identityFile: starts with the home directory of a user",
    "w-1 10.0.0.1\nw-1 10.0.0.2": "nodes:2: w-1 is already in line 1",
    "w-1 10.0.0.1\nw-2 10.0.0.1": "nodes:2: 10.0.0.1 is already in line 1",
    "w-1 w.example\nw-2 W.example": "nodes:2: W.example is already in line 1",
    "w-1 fd00::1\n\nw-2 fd00:0::1": "nodes:3: fd00::1 is already in line 1",
    "w-1 10.0.0.1\u2028w-2 10.0.0.2": SHAPE,
    "# nobody\n": "nodes lists no nodes",
}


@pytest.mark.parametrize(("text", "said"), WRONG.items(), ids=[str(n) for n in range(len(WRONG))])
def test_a_wrong_list(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "nodes")
    assert said in caught.value.message
    assert (caught.value.code, caught.value.exit_code) == ("NodesInvalid", 2)
    assert "one node per line" in caught.value.hint


def test_every_wrong_line_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("a b c\nw-1 10.0.0.1 port=0 prot=1\nw-2 10.0.0.2\nw-3 a..b\n", "nodes")
    assert [problem.path for problem in caught.value.problems] == ["nodes:1", "nodes:2", "nodes:2", "nodes:4"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60) | st.text(alphabet="w1.:-[]@/=# \t\nfport", max_size=60))
def test_any_text_is_a_list_or_a_wrong_one(text: str) -> None:
    try:
        found = parse(text, "nodes")
    except ConfigError:
        return
    # What was taken can be taken again, and no name has a blank or something that hides.
    again = "\n".join(f"{client.name} {client.address}" for client in found)
    assert [(one.name, one.address) for one in parse(again, "nodes")] == [(one.name, one.address) for one in found]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("w-1 10.0.0.1\nw-2 10.0.0.2\n".encode("utf-16-le"), "lists no nodes|contains an unprintable character"),
        ("w-1 10.0.0.1\n".encode("utf-16"), "nodes:1: is not UTF-8 text"),
        (b"w-1 10.0.0.1\nw-\xe4 10.0.0.2\n", "nodes:2: is not UTF-8 text"),
    ],
)
def test_a_file_in_another_encoding(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "nodes").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "nodes")


def test_a_file_of_windows(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_bytes(b"\xef\xbb\xbfw-1 10.0.0.1\r\n# two\r\nw-2 10.0.0.2\r\n")
    assert [client.name for client in load(tmp_path / "nodes")] == ["w-1", "w-2"]


def test_files_that_are_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_list, "MOST_BYTES", 1 << 20)
    for path, said in (
        (tmp_path / "none", "No such file"), (tmp_path, "Is a directory"), (Path("/dev/zero"), "larger than 1 MiB"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said) as caught:
            load(path)
        assert caught.value.code == "NodesUnreadable"
        assert caught.value.hint


def test_what_kubectl_prints_by_the_command_of_the_page(root: Path, tmp_path: Path) -> None:
    """In a dual-stack network it prints both addresses of a node."""
    page = (root / "docs/containerd.md").read_text(encoding="utf-8").splitlines()
    [line] = [one for one in page if one.startswith("    kubectl get nodes -o jsonpath=")]
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\nprintf 'w-1.lan 10.0.0.21 fd00::21\\nw-2 10.0.0.22\\n'\n", encoding="utf-8")
    kubectl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", line], cwd=tmp_path, env={"PATH": path}, check=True, timeout=60)
    assert [one.address for one in load(tmp_path / "nodes")] == ["10.0.0.21", "10.0.0.22"]
