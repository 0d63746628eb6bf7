"""From bare hosts to a registry: what stands in the way, runs that die on the way, a second run that does nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kubeadm_registry import paths, secrets
from kubeadm_registry.secrets import basic
from tests.lab import images
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.killing import complete
from tests.lab.listing import differences, listings
from tests.lab.registry import SERVERS, Registry, renew

pytest_plugins = ["tests.lab.registry"]

OPT = paths.OPT


def report(text: str) -> None:
    """Show a figure; pytest keeps it with the test, and shows it at once with -s."""
    sys.stdout.write(f"\n  {text}\n")


@pytest.fixture
def untouched(hosts_for_registry: Registry) -> Registry:
    """Servers with nothing of ours, for tests that leave them so."""
    registry = hosts_for_registry
    if registry.installed or any(
        host.state != "on" or host.sh("test", "-e", OPT, check=False).returncode == 0
        for host in registry.servers.values()
    ):
        renew(registry, SERVERS)
    registry.write_file()
    return registry


@pytest.fixture(autouse=True)
def same_file(hosts_for_registry: Registry) -> Iterator[None]:
    """The cluster file is the ordinary one again after each test."""
    yield
    hosts_for_registry.write_file()


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a run said: its result."""
    return result.stdout.splitlines()[-1]


def failure(registry: Registry, *arguments: str | Path, code: int) -> tuple[dict[str, str], list[dict[str, object]]]:
    """The error with which ``kubeadm-registry`` ends, having the exit code *code*, and all that it said before."""
    result = registry.cli(*arguments, "-o", "json", check=False)
    assert result.returncode == code, result.stdout + result.stderr
    *before, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert last["event"] == "error"
    return last, before


# What stands in the way


def test_a_dry_run_on_bare_hosts_touches_nothing(untouched: Registry) -> None:
    before = listings(untouched.servers.values())
    said = untouched.cli("init", "--dry-run", "--bundle", untouched.bundle).stdout
    assert re.search(r"would make \d+ changes on 3 nodes", said.splitlines()[-1])
    assert "would write /etc/kubeadm-registry/garage/garage.toml" in said
    left = differences(before, listings(untouched.servers.values()))
    assert not left, "\n".join(left)


def test_a_wrong_file_is_refused_before_anybody_is_contacted(untouched: Registry) -> None:
    """Nobody is even there: the addresses are those of a network that does not exist."""
    wrong = {"vip.adress": "192.0.2.1", "nodes": [{"name": "X", "address": "192.0.2.300"}]}
    file = untouched.write_file(wrong, name="wrong.yaml")
    error, _ = failure(untouched, "init", "-f", file, code=2)
    assert error["code"] == "ConfigInvalid"
    for path in ("spec.vip.adress", "spec.nodes[0].name", "spec.nodes[0].address"):
        assert path in error["message"]
    error, _ = failure(untouched, "init", "--bundle", "nowhere.tar", code=2)
    assert "nowhere.tar" in error["message"]


def test_a_server_that_is_not_there(untouched: Registry) -> None:
    file = untouched.specification()["spec"]["nodes"]
    file[2]["address"] = untouched.lab.address(99)
    untouched.write_file({"nodes": file})
    error, _ = failure(untouched, "preflight", "--bundle", untouched.bundle, code=4)
    assert error["code"] == "HostUnreachable"
    assert error["host"] == "h3"
    assert untouched.lab.address(99) in error["message"]


def test_unknown_host_keys_are_refused_with_the_command_that_accepts_them(untouched: Registry, tmp_path: Path) -> None:
    known = tmp_path / "known hosts"
    untouched.write_file({"ssh.knownHostsFile": str(known)})
    error, before = failure(untouched, "init", "--dry-run", "--bundle", untouched.bundle, code=4)
    assert error["code"] == "HostKeyUnknown"
    said = [error["hint"], *(str(event["message"]) for event in before if event["event"] == "note")]
    commands = [re.search(r"accept the key: (.+?)\)?$", text) for text in said]
    assert all(commands), said
    assert len(commands) == len(SERVERS)
    for command in commands:
        assert command
        untouched.lab.run("sh", "-c", command[1])
    untouched.cli("init", "--dry-run", "--bundle", untouched.bundle)
    host = untouched.servers["h2"]
    shown = re.search(r"presented the \S+ key (SHA256:\S+)", said[1])
    assert shown
    assert shown[1].rstrip(",;") in host.sh("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub").stdout


def problems(registry: Registry) -> dict[tuple[str, str], str]:
    """What ``init`` finds before it changes anything: (host, check) -> sentence. It must end with exit code 3."""
    error, before = failure(registry, "init", "--bundle", registry.bundle, code=3)
    assert error["code"] == "PreflightFailed"
    for host in registry.servers.values():
        assert host.sh("test", "-e", OPT, check=False).returncode == 1, f"{host.name} was changed"
    found = [event for event in before if event["event"] == "check" and not event["ok"]]
    return {(str(event["host"]), str(event["check"])): str(event["message"]) for event in found}


def test_a_taken_port_is_named_with_its_owner(untouched: Registry) -> None:
    host = untouched.servers["h1"]
    host.sh("systemd-run", "--quiet", "--unit=squatter", "python3", "-m", "http.server", "5000")
    try:
        wait_until("the squatter", lambda: host.sh("ss", "-Hltn", "sport = :5000").stdout, seconds=30)
        found = problems(untouched)
        pid = host.sh("systemctl", "show", "-P", "MainPID", "squatter").stdout.strip()
    finally:
        host.sh("systemctl", "stop", "squatter")
    assert list(found) == [("h1", "Ports")]
    assert f"port 5000/tcp is in use by python3 (pid {pid})" in found["h1", "Ports"]


def test_a_vip_that_somebody_has(untouched: Registry) -> None:
    client, vip = untouched.client, untouched.vip
    client.sh("ip", "address", "add", f"{vip}/24", "dev", "eth0")
    try:
        found = problems(untouched)
    finally:
        client.sh("ip", "address", "del", f"{vip}/24", "dev", "eth0")
    assert list(found) == [("h1", "VipUnused")]
    assert vip in found["h1", "VipUnused"]


def test_a_vip_of_another_subnet(untouched: Registry) -> None:
    untouched.write_file({"vip.address": "10.89.0.100"})
    found = problems(untouched)
    assert set(found) == {(name, "VipInSubnet") for name in SERVERS}
    assert "10.89.0.100 is not in the subnet 10.88.0.12/24 of eth0" in found["h2", "VipInSubnet"]


#: As firewalld does (reject) and as many do by hand (drop).
FIREWALL = """
table inet room {
  chain input {
    type filter hook input priority 0;
    iifname lo accept
    tcp dport 3901 reject with icmpx type admin-prohibited
    tcp dport 5443 drop
  }
}
"""


def test_a_firewall_between_the_nodes(untouched: Registry) -> None:
    host = untouched.servers["h2"]
    host.sh("nft", "-f", "-", stdin=FIREWALL)
    try:
        found = problems(untouched)
    finally:
        host.sh("nft", "delete", "table", "inet", "room")
    assert set(found) == {("h1", "Firewall"), ("h3", "Firewall")}
    assert "3901, 5443" in found["h1", "Firewall"]


def test_all_problems_are_told_at_once_and_can_be_ignored_by_name(untouched: Registry) -> None:
    untouched.write_file({"vip.address": "10.89.0.100"})
    host = untouched.servers["h2"]
    host.sh("mv", "/etc/os-release", "/etc/os-release.away")
    host.sh("sh", "-c", "printf 'ID=plan9\\nVERSION_ID=4\\n' > /etc/os-release")
    try:
        found = problems(untouched)
        assert {check for _, check in found} == {"VipInSubnet", "OperatingSystem"}
        ignored = ("init", "--dry-run", "--bundle", untouched.bundle, "--ignore-preflight-errors")
        untouched.cli(*ignored, "VipInSubnet,OperatingSystem")
        assert untouched.cli(*ignored, "VipInSubnet", check=False).returncode == 3
    finally:
        host.sh("mv", "/etc/os-release.away", "/etc/os-release")


# The first run


class Watch:
    """Looks at the command lines of all processes of a host, again and again, for the length of a ``with``."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.seen: set[str] = set()
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        # One shell on the host looks by itself: a process of ours lives for some milliseconds only.
        argv = self._host.sh_argv(
            "sh", "-c", "while cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; do echo; done"
        )
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, errors="replace") as process:
            assert process.stdout is not None
            for line in process.stdout:
                self.seen.add(line)
                self.looks += 1
                if self._stop.is_set():
                    break
            process.kill()


def words_of(vault: secrets.Secrets) -> dict[str, str]:
    """Each secret by its name, as it might stand somewhere."""
    words = {
        name: getattr(vault, name)
        for name in ("rpc_secret", "admin_token", "s3_secret_key", "push_password", "pull_password", "upload_secret",
                     "heartbeat_key", "retention_key", "retention_password")
    }  # fmt: skip
    words |= {f"login of {role}": basic(role, words[f"{role}_password"]) for role in ("push", "pull", "retention")}
    words |= {f"node key of {name}": key[:64] for name, key in vault.node_keys.items()}
    return words | {"key of the authority": vault.ca_key.splitlines()[1]}


#: Every file that others than its owner and group may read, with one of the words of standard input in it.
_READABLE = r"""
umask 077
cat > /root/words
find /etc /opt /run /var /tmp /root /home -xdev -type f -perm -o=r -size -20M -print0 |
  xargs -0 grep -laFf /root/words || :
rm /root/words
"""


def test_bare_hosts_become_a_registry_and_no_secret_is_seen(untouched: Registry, tmp_path: Path) -> None:
    registry = untouched
    registry.cli("preflight", "--bundle", registry.bundle)
    with Watch(registry.servers["h2"]) as watch:
        said = registry.cli(
            "init", "--debug", "--diff", "--log-file", str(tmp_path / "log"), "--bundle", registry.bundle
        )
    registry.installed = True
    assert last_line(said).endswith("changes on 3 nodes")
    assert "[verify/pull]" in said.stdout
    registry.cli("verify")
    registry.wait_whole()

    host = registry.servers["h2"]
    words = words_of(secrets.Secrets.from_json(host.sh("cat", secrets.PATH).stdout.encode()))
    journal = host.sh("journalctl", "--no-pager", "--quiet", timeout=120).stdout
    log = (tmp_path / "log").read_text()
    places = {"the processes' command lines": "\n".join(watch.seen), "the output": said.stdout + said.stderr,
              "the journal": journal, "the log": log}  # fmt: skip
    ran = [json.loads(line) for line in log.splitlines()]
    assert {one["host"] for one in ran if one["event"] == "command"} == {*registry.servers}
    assert watch.looks > 20
    assert "kubeadm-registry" in places["the processes' command lines"]
    found = [f"{name} in {place}" for place, text in places.items() for name, word in words.items() if word in text]
    for server in registry.servers.values():
        stdin = "".join(f"{word}\n" for word in words.values())
        found += server.sh("sh", "-c", _READABLE, stdin=stdin, timeout=120).stdout.splitlines()
    assert not found


def test_a_second_run_does_nothing(registry: Registry) -> None:
    before = registry.invocations()
    assert len(before) >= 3 * 7
    assert last_line(registry.cli("init", "--dry-run")) == "nothing to do"
    assert last_line(registry.cli("init")) == "nothing to do"
    assert last_line(registry.cli("init", "--bundle", registry.bundle)) == "nothing to do"
    assert registry.invocations() == before


def test_json_lines(registry: Registry) -> None:
    *events, last = registry.json("init")
    assert {event["event"] for event in events} <= {"phase", "check", "note"}
    assert all(event["ok"] for event in events if event["event"] == "check")
    assert [event["phase"] for event in events if event["event"] == "phase"][-2:] == ["verify/push", "verify/pull"]
    seconds = last.pop("seconds")
    assert last.pop("time")
    assert last == {
        "event": "result",
        "ok": True,
        "summary": "nothing to do",
        "changed": 0,
        "dryRun": False,
        "owed": {},
    }
    assert seconds > 0
    host = registry.servers["h3"]
    host.sh("chmod", "640", secrets.PATH)
    *events, last = registry.json("init", "--dry-run")
    (change,) = (event for event in events if event["event"] == "change")
    assert change.pop("time")
    assert change == {
        "event": "change", "phase": "secrets/store", "host": "h3", "title": "store the secrets", "dryRun": True,
        "diff": f"{secrets.PATH}: mode 640 -> 600, owner root:root -> root:root",
    }  # fmt: skip
    assert (last["changed"], last["dryRun"]) == (1, True)
    assert host.sh("stat", "-c", "%a", secrets.PATH).stdout == "640\n"
    assert registry.json("init")[-1]["changed"] == 1
    assert host.sh("stat", "-c", "%a", secrets.PATH).stdout == "600\n"


# A server that is down


@pytest.mark.long
def test_without_one_server_a_run_goes_on_with_the_others_and_is_made_up_later(registry: Registry) -> None:
    away = registry.holder()
    away.power_cut()
    rest = registry.others(away)
    before = registry.invocations(rest)
    result = registry.cli("init", check=False)
    assert result.returncode == 5, result.stdout + result.stderr
    assert "continuing without it" in result.stdout
    assert "run init again when it is back" in result.stdout
    assert last_line(result) == "nothing to do"
    assert registry.invocations(rest) == before
    registry.write_file({"proxy.anonymousPull": False})
    result = registry.cli("init", "-o", "json", check=False)
    assert result.returncode == 5, result.stdout + result.stderr
    last = json.loads(last_line(result))
    assert last["changed"] > 0
    # Without anonymous pulls containerd needs a login, and so does a person with the RUNBOOK.
    assert last["owed"][away.name]["phases"] == ["proxy", "runbook", "containerd"]
    away.power_on()
    registry.wait_whole()
    said = registry.cli("init")
    assert last_line(said).endswith("on 1 node"), said.stdout
    registry.write_file()
    registry.cli("init")
    registry.wait_whole()


# The secrets


def test_secrets_that_one_server_lost_come_back_from_the_others(registry: Registry) -> None:
    before = registry.invocations()
    host, other = registry.servers["h1"], registry.servers["h2"]
    host.sh("rm", secrets.PATH)
    said = registry.cli("init").stdout
    assert said.splitlines()[-1] == "1 change on 1 node"
    assert host.sh("cat", secrets.PATH).stdout == other.sh("cat", secrets.PATH).stdout
    assert host.sh("stat", "-c", "%a %U:%G", secrets.PATH).stdout == "600 root:root\n"
    assert registry.invocations() == before


def test_secrets_of_two_clusters_are_never_mixed(registry: Registry) -> None:
    host = registry.servers["h3"]
    ours = host.sh("cat", secrets.PATH).stdout
    generation = json.loads(ours)["generation"]
    foreign = secrets.Secrets.make("another", SERVERS)
    write = ("sh", "-c", 'cat > "$1"', "-", secrets.PATH)
    host.sh(*write, stdin=foreign.to_json().decode())
    try:
        error, _ = failure(registry, "init", code=1)
        assert error["code"] == "SecretsConflict"
        assert f"h1, h2: {generation}" in error["message"]
        assert f"h3: {foreign.generation}" in error["message"]
        assert host.sh("cat", secrets.PATH).stdout == foreign.to_json().decode()
        assert registry.flaws() == []
    finally:
        host.sh(*write, stdin=ours)
    assert last_line(registry.cli("init")) == "nothing to do"


# Two runs, and runs that die


@contextmanager
def standing_still(registry: Registry) -> Iterator[subprocess.Popen[str]]:
    """A run that has begun its work, and holds its locks, without going on."""
    process = registry.popen("init", "--bundle", registry.bundle)
    try:
        say_until(process, r"^\[programs\]")
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def say_until(process: subprocess.Popen[str], line: str) -> bool:
    """Read what a run says until it says *line*; False if it ended before."""
    assert process.stdout is not None
    return any(re.search(line, said) for said in process.stdout)


def test_one_run_at_a_time_and_a_killed_one_leaves_no_lock(registry: Registry) -> None:
    with standing_still(registry) as first:
        error, _ = failure(registry, "init", code=1)
        assert error["code"] == "HostBusy"
        assert error["host"] == "h1"
        assert f"root@{os.uname().nodename} pid {first.pid}" in error["message"]
        # Looking is allowed meanwhile.
        assert last_line(registry.cli("init", "--dry-run")) == "nothing to do"
        first.kill()
        first.wait()
        begin = time.monotonic()
        assert last_line(patiently(registry, "init")) == "nothing to do"
        report(f"a run after a killed one was done {time.monotonic() - begin:.1f} s later")
    for host in registry.servers.values():
        assert host.sh("test", "-e", "/run/kubeadm-registry.lock.who", check=False).returncode == 1, host.name


def patiently(registry: Registry, *arguments: str | Path, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run ``kubeadm-registry``, again as long as the last command of a killed run still works on some host."""
    return complete(lambda: registry.cli(*arguments, check=False), seconds=seconds)


#: What a run says when it is killed, in the order in which the first run says it, and seconds to wait then.
MOMENTS = (
    (r"install garage", 0.1),
    (r"h1 .*store the secrets", 0.0),
    (r"start kubeadm-registry-network", 0.0),
    (r"h1 .*start kubeadm-registry-garage", 0.0),
    (r"h3 .*start kubeadm-registry-garage", 0.2),
    (r"apply the storage layout", 0.0),
    (r"create the storage bucket", 0.0),
    (r"h2 .*start kubeadm-registry-(zot|distribution)", 0.0),
    (r"h1 .*start kubeadm-registry-haproxy@1", 0.0),
    (r"h2 .*start kubeadm-registry-keepalived", 0.0),
    (r"h2 .*restart containerd", 0.0),
    (r"push the canary image", 0.0),
)


@pytest.mark.long  # in memory it is killed at each act (tests/unit/test_workflow.py)
def test_a_run_killed_at_any_moment_is_made_up_for(untouched: Registry) -> None:
    """One installation, killed again and again; each run goes on where the one before died."""
    registry = untouched
    killed = []
    for line, delay in MOMENTS:
        process = start_patiently(registry)
        try:
            if say_until(process, line):
                threading.Event().wait(delay)
                process.kill()
                killed.append(line)
        finally:
            process.kill()
            process.communicate()
        if line not in killed:
            report(f"nobody said {line!r}")
    report(f"killed {len(killed)} times")
    assert len(killed) >= len(MOMENTS) - 1
    patiently(registry, "init", "--bundle", registry.bundle)
    registry.installed = True
    again = registry.cli("init", "--bundle", registry.bundle).stdout
    assert again.splitlines()[-1] == "nothing to do", again
    registry.wait_whole()
    image = images.image(seed=40)
    images.push(registry, image, "tests/after-all")
    for host in registry.servers.values():
        assert images.missing(registry, image, "tests/after-all", address=host.address) == []
        left = host.sh("find", paths.PROGRAMS, paths.ETC, "-name", ".new*").stdout
        assert left == "", host.name


def start_patiently(registry: Registry) -> subprocess.Popen[str]:
    """Start ``init`` once no host is locked any more by a killed run's last command."""

    def free() -> bool:
        return all(
            host.sh("flock", "-n", "/run/kubeadm-registry.lock", "true", check=False).returncode == 0
            for host in registry.servers.values()
        )

    wait_until("the locks of a killed run to be gone", free, seconds=60)
    return registry.popen("init", "--bundle", registry.bundle)
