"""The checks before anything is changed: each finds its problem, says the remedy, and passes on a healthy server."""

from __future__ import annotations

import ctypes
import gzip
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kubeadm_registry import config, paths
from kubeadm_registry.cluster import Cluster, MembersChange
from kubeadm_registry.components import agent, data, handover, keepalived, links
from kubeadm_registry.engine.changes import unit_path
from kubeadm_registry.engine.phase import leaves
from kubeadm_registry.engine.report import JsonLines
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error
from kubeadm_registry.phases import preflight
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fakes import Dir, Link
from tests.unit.healthy import DEBIAN, SSHD, free, healthy, neighbour
from tests.unit.here import Here, here, stub
from tests.unit.test_cli_images import DUAL_STACK
from tests.unit.test_workflow import ONE

VIP = "10.0.0.10"


@pytest.fixture
def good(three: FakeCluster) -> FakeCluster:
    return healthy(three)


def problems(fake: FakeCluster, host: str = "cp-2", cluster: Cluster | None = None) -> dict[str, list[str]]:
    """What every check finds on *host*, without those that find nothing."""
    cluster = cluster or fake.cluster
    on = next(one for one in cluster.hosts if one.name == host).as_read_only()
    checks = [check for check in preflight.CHECKS if on.name in {one.name for one in check.on(cluster)}]
    found = {check.name: list(check.probe(cluster, on)) for check in checks}
    return {name: texts for name, texts in found.items() if texts}


@pytest.mark.parametrize("host", ["cp-1", "cp-2", "cp-3"])
def test_a_healthy_bare_server_has_no_problem(good: FakeCluster, host: str) -> None:
    assert problems(good, host) == {}
    assert good.acts() == []


def groups(units: Mapping[int, str]) -> Callable[..., str]:
    """What the kernel says of the processes that are asked for: *units* has their control groups by process id."""
    return lambda argv, _: "".join(f"= {pid}\n{units.get(int(pid), '')}" for pid in argv[4:])


def test_the_control_groups_of_processes_are_read() -> None:
    """One that has ended has none."""
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    said = here().query("sh", "-c", preflight._CGROUPS, "groups", "4194305", str(os.getpid())).text
    assert said == f"= 4194305\n= {os.getpid()}\n{own}".rstrip("\n")


def test_a_healthy_server_with_the_registry_on_it_has_none_either(good: FakeCluster) -> None:
    run(INIT, good.cluster, JsonLines(io.StringIO()), skip=ELSEWHERE)
    ours = "".join(
        f'{kind} LISTEN 0 128 10.0.0.12:{port} 0.0.0.0:* users:(("haproxy",pid={port},fd=3))\n'
        for kind, port in (("tcp", 5000), ("tcp", 5001), ("tcp", 3901), ("udp", 5444))
    )
    for server in good.servers.values():
        server.answer("ss", "-Hltunp", with_=SSHD + ours)
        server.answer("sh", "-c", preflight._FREE, "free", with_=free("/", 0.5))
        unit = f"0::/{paths.SLICE}/kubeadm-registry-x.service\n"
        server.answer("sh", "-c", preflight._CGROUPS, "groups", with_=groups(dict.fromkeys(range(10000), unit)))
        server.answer("bash", with_=neighbour(VIP))
    for host in good.servers:
        assert problems(good, host) == {}, "its own ports, its own data and its own VIP are no problem"


@pytest.mark.parametrize(
    ("release", "problem"),
    [
        (DEBIAN, None),
        ('ID="rocky"\nVERSION_ID="9.4"\n', None),
        ('ID=ubuntu\nVERSION_ID="24.04"\n', None),
        ('ID=ubuntu\nVERSION_ID="24.10"\n', "ubuntu 24.10 is not supported; supported are "),
        ("ID=debian\n", "debian  is not supported; supported are "),
        ("ID=alpine\nVERSION_ID=3.20\n", "alpine 3.20 is not supported; supported are "),
    ],
)
def test_operating_system(good: FakeCluster, release: str, problem: str | None) -> None:
    good.servers["cp-2"].put("/etc/os-release", release)
    found = problems(good)
    if problem is None:
        assert found == {}
    else:
        assert list(found) == ["OperatingSystem"]
        assert found["OperatingSystem"][0].startswith(problem)
        assert "debian 12/13" in found["OperatingSystem"][0]


def test_no_release_file(good: FakeCluster) -> None:
    del good.servers["cp-2"].tree["/etc/os-release"]
    assert problems(good)["OperatingSystem"][0].startswith("unknown ")


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (Dir(0o750), "/opt has mode 750, so the services cannot enter it; run chmod o+x /opt"),
        (Dir(0o777), "/opt has mode 777, so every user could replace the programs; run chmod o-w /opt"),
        (Dir(0o1777), None),
        (Dir(0o711), None),
    ],
)
def test_a_directory_of_programs_that_services_cannot_use(good: FakeCluster, node: Dir, problem: str | None) -> None:
    """As an /opt of its own that a hardened machine made with a umask of 027: each unit fails with 203/EXEC."""
    good.servers["cp-2"].tree["/opt"] = node
    assert problems(good) == ({} if problem is None else {"ProgramDirectory": [problem]})


@pytest.mark.parametrize(("target", "hidden"), [("/home/opt", True), ("/srv/opt", False), ("/homes/opt", False)])
def test_programs_on_the_file_system_of_the_homes(good: FakeCluster, target: str, hidden: bool) -> None:
    """RHEL gives /home most of a disk, and a link leads there from /opt: each unit would fail with 203/EXEC."""
    good.servers["cp-2"].tree["/opt"] = Link(target)
    good.servers["cp-2"].tree[target] = Dir(0o755)
    found = problems(good).get("ProgramDirectory", [])
    assert [text.partition(" (")[0] for text in found] == (
        [f"/opt resolves to {target}, which is hidden from the services"] if hidden else []
    )


def test_rules_that_the_kernel_or_nft_refuses(good: FakeCluster) -> None:
    said = b"/dev/stdin:9:3-9: Error: Could not process rule: Operation not supported\nmore\n"
    good.servers["cp-2"].answer("nft", "--check", "--file", "-", with_=Result(("nft",), 1, b"", said))
    [text] = problems(good)["PacketFilter"]
    assert text.startswith(
        "the kernel or nft refuses the rules that the registry needs: /dev/stdin:9:3-9: Error: Could not process rule: "
        "Operation not supported; use the distribution's standard kernel"
    )
    good.servers["cp-2"].answer("nft", "--check", "--file", "-", with_=127)
    assert problems(good) == {}, "one that is missing is named once"


def test_the_rules_that_are_tried_name_no_user(good: FakeCluster) -> None:
    """They may not be there yet, and nft looks them up."""
    problems(good)
    [tried] = [one.stdin.decode() for one in good.servers["cp-2"].log if one.argv[:2] == ("nft", "--check")]
    assert set(re.findall(rf"{paths.PREFIX}[a-z-]*", tried)) == {*paths.TABLES, handover.PASS}
    assert "meta skuid { root, 6000" in tried.replace("!= ", "")
    assert "dup to 10.0.0.11 " in tried
    if not shutil.which("nft") or os.geteuid() != 0:
        pytest.skip("needs nft, and root")
    done = subprocess.run(
        ["unshare", "--net", "nft", "--check", "--file", "-"], input=tried, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_machine_that_is_not_supported(good: FakeCluster) -> None:
    good.servers["cp-2"].answer("uname", "-m", with_="riscv64\n")
    assert problems(good) == {"Architecture": ["architecture riscv64 is not supported; supported are x86_64, aarch64"]}


def test_a_bundle_for_another_machine(good: FakeCluster) -> None:
    good.servers["cp-2"].answer("uname", "-m", with_="aarch64\n")
    cluster = good.cluster
    programs = {**cluster.programs, "zot": replace(cluster.programs["zot"], architecture="arm64")}
    [text] = problems(good, cluster=replace(cluster, programs=programs))["Architecture"]
    assert text == (
        "the bundle's garage, haproxy, keepalived, kubeadm-registry are not built for arm64; "
        "create one with `kubeadm-registry bundle create --architecture arm64`"
    )


def test_no_systemd_and_missing_tools_are_two_problems(good: FakeCluster) -> None:
    server = good.servers["cp-2"]
    del server.tree["/run/systemd/system"]
    server.answer("sh", "-c", preflight._MISSING, with_="nft\ntar\n")
    assert problems(good) == {
        "Tools": [
            "systemd is not running; the services require it",
            "nft, tar not found; install the packages that provide them (iproute2, nftables, ...)",
        ]
    }


def test_the_script_that_looks_for_tools() -> None:
    result = here().query("sh", "-c", preflight._MISSING, "tools", "cat", "no-such-program", "sh", "nor this")
    assert result.stdout == b"no-such-program\nnor this\n"


def test_a_program_is_a_tool_if_a_host_without_it_would_answer_wrongly(good: FakeCluster) -> None:
    """Somebody's storage looks like an empty directory, and is taken for ours."""
    data = good.config.spec.data_directory
    server = good.servers["cp-2"]
    server.put(f"{data}/garage/somebody else's", "")
    server.answer("find", with_=127)
    assert "DataDirectory" not in problems(good)
    assert {"find", "grep", "sed"} <= set(preflight.TOOLS)


@pytest.mark.parametrize(
    ("line", "bad"),
    [("CONFIG_INET_DIAG_DESTROY=y", False), ("# CONFIG_INET_DIAG_DESTROY is not set", True), ("", False)],
)
def test_kernel(good: FakeCluster, line: str, bad: bool) -> None:
    """Where the kernel's configuration is not on the disk nothing is claimed."""
    good.servers["cp-2"].answer("sh", "-c", preflight._DIAG_DESTROY, with_=line + "\n")
    assert list(problems(good)) == (["Kernel"] if bad else [])


@pytest.mark.parametrize("place", ["boot/config-RELEASE", "lib/modules/RELEASE/config", "proc/config.gz", None])
def test_where_the_configuration_of_the_kernel_is(tmp_path: Path, place: str | None) -> None:
    """Flatcar and many kernels of one's own have none in /boot, those of an image of RHEL have it with the modules."""
    line = "# CONFIG_INET_DIAG_DESTROY is not set"
    if place is not None:
        file = tmp_path / place.replace("RELEASE", os.uname().release)
        file.parent.mkdir(parents=True)
        file.write_bytes(gzip.compress(line.encode()) if file.suffix == ".gz" else line.encode())
    said = here().query("sh", "-c", preflight._DIAG_DESTROY, "kernel", str(tmp_path)).text
    assert said == (line if place else "")


def test_every_port_that_somebody_else_has_is_named_with_who_has_it(good: FakeCluster) -> None:
    server = good.servers["cp-2"]
    lines = [
        'tcp LISTEN 0 128 *:5000 *:* users:(("registry",pid=77,fd=3),("registry",pid=78,fd=3))',
        'tcp LISTEN 0 128 [::1]:3900 [::]:* users:(("minio",pid=79,fd=3))',
        "udp UNCONN 0 0 0.0.0.0:5444 0.0.0.0:*",
        'udp UNCONN 0 0 0.0.0.0:5000 0.0.0.0:* users:(("other",pid=80,fd=3))',
        'tcp LISTEN 0 128 127.0.0.1:6443 0.0.0.0:* users:(("kube-apiserver",pid=81,fd=3))',
        "",
    ]
    server.answer("ss", "-Hltunp", with_="\n".join(lines))
    seen = dict.fromkeys(range(100), "0::/system.slice/other.service\n")
    server.answer("sh", "-c", preflight._CGROUPS, "groups", with_=groups(seen))
    assert problems(good) == {
        "Ports": [
            "port 5000/tcp is in use by registry (pid 77), registry (pid 78) at *:5000; stop it or change its port",
            "port 3900/tcp is in use by minio (pid 79) at [::1]:3900; stop it or change its port",
            "port 5444/udp is in use by another program at 0.0.0.0:5444; stop it or change its port",
        ]
    }


def test_processes_that_have_ended_meanwhile_have_no_port(good: FakeCluster) -> None:
    """Workers of our own HAProxy end between the two questions when the agent starts it anew."""
    server = good.servers["cp-2"]
    ended = '("haproxy",pid=77,fd=3),("haproxy",pid=78,fd=3)'
    server.answer("ss", "-Hltunp", with_=f"tcp LISTEN 0 128 *:5000 *:* users:({ended})")
    server.answer("sh", "-c", preflight._CGROUPS, "groups", with_=groups({}))
    assert problems(good) == {}


def test_a_slice_of_a_similar_name_is_not_ours(good: FakeCluster) -> None:
    server = good.servers["cp-2"]
    server.answer("ss", "-Hltunp", with_='tcp LISTEN 0 128 *:5000 *:* users:(("x",pid=77,fd=3))')
    unit = "0::/other-kubeadm-registry.slice/x.service\n"
    server.answer("sh", "-c", preflight._CGROUPS, "groups", with_=groups({77: unit}))
    assert list(problems(good)) == ["Ports"]


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ("32768\t60999\n\n", None),
        ("1024\t65535\n\n", "3900,3901,3903,5000,5001,5443,5444,5445"),
        ("1024\t65535\n8080,9000-9100\n", "8080,9000-9100,3900,3901,3903,5000,5001,5443,5444,5445"),
        ("1024\t65535\n3900-3904,5000-5445\n", None),
        ("1024\t65535\n3900,3901,3903-3904,5000-5444\n", "3900,3901,3903-3904,5000-5444,5445"),
        ("1024\t4000\n3900,3903\n", "3900,3903,3901"),
        ("", None),
    ],
)
def test_ports_that_an_outgoing_connection_may_take(good: FakeCluster, shown: str, value: str | None) -> None:
    good.servers["cp-2"].answer("cat", "--", *preflight._PORT_RANGE, with_=shown)
    found = problems(good)
    if value is None:
        assert found == {}
        return
    [text] = found.pop("PortRange")
    assert found == {}
    assert (
        f"run `sysctl -w net.ipv4.ip_local_reserved_ports={value}`, and put that into a file in /etc/sysctl.d" in text
    )
    assert text.startswith("an outgoing connection may take port ")
    assert f"net.ipv4.ip_local_port_range is {' '.join(shown.split()[:2])};" in text


def test_the_kernel_says_where_it_takes_ports_from() -> None:
    first, *_ = here().query("cat", "--", *preflight._PORT_RANGE).text.splitlines()
    assert len(first.split()) == 2


@pytest.mark.parametrize(
    ("shown", "bad"),
    [("128\n120\n", False), ("128\n121\n", True), ("128\n130\n", True), ("", False), ("8192\n121\n", False)],
)
def test_inotify_instances(good: FakeCluster, shown: str, bad: bool) -> None:
    good.servers["cp-2"].answer("sh", "-c", preflight._INOTIFY, "inotify", with_=shown)
    found = problems(good)
    if not bad:
        assert found == {}
        return
    assert found == {
        "Inotify": [
            f"root uses {shown.split()[1]} of 128 inotify instances, and keepalived cannot start without one; "
            "run `sysctl -w fs.inotify.max_user_instances=8192`, and put that into a file in /etc/sysctl.d"
        ]
    }


@pytest.mark.skipif(os.geteuid() != 0 and "CI" not in os.environ, reason="counts what root has")
def test_the_script_that_counts_inotify_instances() -> None:
    def count() -> int:
        return int(here().query("sh", "-c", preflight._INOTIFY, "inotify").text.split()[1])

    library = ctypes.CDLL(None)

    def rise() -> int:
        """By how much the count rises with five more."""
        before = count()
        handles = [library.inotify_init1(os.O_CLOEXEC) for _ in range(5)]
        try:
            return count() - before
        finally:
            for handle in handles:
                os.close(handle)

    assert any(rise() == 5 for _ in range(20)), "others may come and go"


@pytest.mark.parametrize(
    ("mounts", "hidden"),
    [
        ("proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n", None),
        ("proc /proc proc rw,relatime,hidepid=invisible 0 0\n", "invisible"),
        ("proc /proc proc rw,hidepid=2,gid=4 0 0\n", "2"),
        ("proc /proc proc rw,hidepid=off 0 0\n", None),
        ("proc /proc proc rw,hidepid=2 0 0\nproc /proc proc rw,relatime 0 0\n", None),
        ("proc /proc proc rw 0 0\nproc /srv/root/proc proc rw,hidepid=2 0 0\n", None),
        ("", None),
    ],
)
def test_processes_that_the_agent_would_not_see(
    good: FakeCluster, tmp_path: Path, mounts: str, hidden: str | None
) -> None:
    (tmp_path / "mounts").write_text(f"/dev/sda1 / ext4 rw 0 0\n{mounts}")
    shown = here().query("sh", "-c", preflight._PROC, "proc", str(tmp_path / "mounts")).stdout
    good.servers["cp-2"].answer("sh", "-c", preflight._PROC, "proc", with_=shown)
    found = problems(good)
    if hidden is None:
        assert found == {}
        return
    [text] = found.pop("Processes")
    assert found == {}
    assert text.startswith(f"/proc is mounted with hidepid={hidden}, so the agent cannot see the services' processes: ")
    assert "run `mount -o remount,hidepid=0 /proc`" in text


def test_too_little_room_for_layers(good: FakeCluster) -> None:
    directory = good.config.spec.data_directory
    good.servers["cp-2"].answer("sh", "-c", preflight._FREE, "free", directory, with_=free("/var", 3.25))
    assert problems(good) == {
        "DiskSpace": [
            "/var/lib/kubeadm-registry has 3.2 GiB free on /var, at least 10 are required; free or add disk "
            "space, or set spec.dataDirectory to another path"
        ]
    }


def test_too_little_room_for_programs(good: FakeCluster) -> None:
    """Another data directory would not help: the programs are always below /opt."""
    good.servers["cp-2"].answer("sh", "-c", preflight._FREE, "free", paths.OPT, with_=free("/", 0.5))
    assert problems(good) == {
        "DiskSpace": ["/opt/kubeadm-registry has 0.5 GiB free on /, at least 1 are required; free or add disk space"]
    }


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("tank a/b 5 1 2147483648 3% /var/lib 1", "2.0 GiB free on /var/lib 1,"),
        ("nas:/a share 5 - -7 - /srv", "-0.0 GiB free on /srv,"),
        (
            "df: /srv: Transport endpoint is not connected",
            "cannot read the free space of /var/lib/kubeadm-registry: df:",
        ),
        ("", "cannot read the free space of /var/lib/kubeadm-registry: df says nothing"),
    ],
)
def test_file_systems_of_odd_names(good: FakeCluster, line: str, text: str) -> None:
    """The pool of ZFS or the share of NFS that is mounted may have a blank in its name."""
    directory = good.config.spec.data_directory
    good.servers["cp-2"].answer("sh", "-c", preflight._FREE, "free", directory, with_=f"{line}\n")
    host = good.cluster.hosts[1].as_read_only()
    try:
        said = next(preflight.disk(good.cluster, host))
    except Error as error:
        said = error.advice
    assert text in said


def test_the_script_that_asks_for_room_takes_a_folder_that_is_not_there_yet() -> None:
    fields = here().query("sh", "-c", preflight._FREE, "free", "/no such/folder/anywhere").text.split()
    assert (int(fields[3]) >= 0, fields[5]) == (True, "/")


def set_clocks(fake: FakeCluster, *ahead: float, takes: float = 0) -> None:
    """Set each server's clock so many seconds ahead; an answer *takes* some seconds, half of them on the way there."""
    for server, seconds in zip(fake.servers.values(), ahead, strict=True):

        def date(*_: object, seconds: float = seconds) -> str:
            time.sleep(takes / 2)
            there = time.time() + seconds
            time.sleep(takes / 2)
            return f"{there:.9f}\n"

        server.answer("date", with_=date)


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        ((0, 30, 0), "the clock of cp-2 is 30.0 s ahead of that of cp-"),
        ((0, 0, -2), "the clock of cp-3 is 2.0 s behind that of cp-"),
        ((0.9, 0, 0), "the clock of cp-1 is 0.9 s ahead of that of cp-"),
        ((0, 0.4, 0), "the clock of cp-2 is 0.4 s ahead of that of cp-"),
        ((0, 0.2, 0.4), "the clock of cp-3 is 0.4 s ahead of that of cp-1"),
    ],
)
def test_a_clock_that_goes_otherwise_than_the_others(good: FakeCluster, ahead: tuple[float, ...], words: str) -> None:
    set_clocks(good, *ahead)
    [text] = problems(good, "cp-1")["Clock"]
    assert text.startswith(words)
    assert "and the limit is 0.3 s" in text
    assert "chrony" in text


def test_clocks_that_go_nearly_together(good: FakeCluster) -> None:
    set_clocks(good, 0.1, 0, -0.1)
    assert problems(good, "cp-1") == {}


def test_a_long_way_to_a_server_is_not_taken_for_a_wrong_clock(
    good: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between asking and the answer lies the time; where in between the server looked is not known."""
    monkeypatch.setattr(preflight, "CLOCK_TRIES", 1)
    set_clocks(good, 0, 0.35, 0, takes=0.2)
    assert problems(good, "cp-1") == {}
    set_clocks(good, 0, 5, 0, takes=0.2)  # more than a busy machine may add to the way
    assert list(problems(good, "cp-1")) == ["Clock"]


def test_a_server_that_answers_late_once_is_asked_again(good: FakeCluster) -> None:
    late = iter((0.5, 0.5, 0.0))

    def date(*_: object) -> str:
        there = time.time() + 0.4
        time.sleep(next(late, 0.0))
        return f"{there:.9f}\n"

    good.servers["cp-3"].answer("date", with_=date)
    [text] = problems(good, "cp-1")["Clock"]
    assert text.startswith("the clock of cp-3 is 0.4 s ahead")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("NTPSynchronized=yes\nrunning chronyd\n", None),
        ("NTPSynchronized=yes\n", None),
        ("container\nNTPSynchronized=no\n", None),
        ("NTPSynchronized=no\nLeap status     : Normal\nrunning chrony\n", None),
        ("NTPSynchronized=no\nLeap status     : Not synchronised\nrunning chrony\n",
         "chrony is running, but the clock is not synchronized; "),
        ("NTPSynchronized=no\nrunning systemd-timesyncd\n", "systemd-timesyncd is running, but the clock is not"),
        ("NTPSynchronized=no\n", "no time service is running"),
        ("", "no time service is running"),
    ],
)  # fmt: skip
def test_a_time_service_keeps_the_clock(good: FakeCluster, said: str, problem: str | None) -> None:
    good.servers["cp-2"].answer("sh", "-c", preflight._TIME, "time", with_=said)
    found = problems(good)
    if problem is None:
        assert found == {}
    else:
        assert list(found) == ["TimeSync"]
        assert found["TimeSync"][0].startswith(problem)


@pytest.mark.parametrize("container", [0, 1])
def test_the_script_that_asks_for_the_time_service(tmp_path: Path, container: int) -> None:
    stub(tmp_path, "systemd-detect-virt", f"exit {container}")
    stub(tmp_path, "timedatectl", "echo NTPSynchronized=no")
    stub(tmp_path, "chronyc", "printf 'Stratum         : 10\nLeap status     : Normal\n'")
    stub(tmp_path, "systemctl", '[ "$3" = chrony ]')
    said = here(tmp_path).query("sh", "-c", preflight._TIME, "time").text.splitlines()
    if container == 0:
        assert said == ["container"], "its clock is another system's"
    else:
        assert said == ["NTPSynchronized=no", "Leap status     : Normal", "running chrony"]


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (-0.9, ""),
        (170, ""),
        (-1100, "the clock of cp-1 is 1100.0 days behind that of this machine, and the limit is 1 day: the "
                "certificates that it signs are not valid yet on the nodes; set the clock that is wrong, here or "
                "on all nodes"),
        (3650, "the clock of cp-1 is 3650.0 days ahead of that of this machine, and the limit is 180 days: the "
               "certificates that it signs expire before they are renewed on the nodes; set the clock that is wrong, "
               "here or on all nodes"),
    ],
)  # fmt: skip
def test_all_clocks_wrong_together_are_one_problem_for_who_signs(good: FakeCluster, days: float, words: str) -> None:
    """As on a site without internet, whose nodes agree on some year."""
    set_clocks(good, *[days * 86400] * 3)
    assert problems(good, "cp-1") == ({"SigningClock": [words]} if words else {})
    assert problems(good) == {}


def test_a_data_directory_that_others_cannot_enter_or_all_can_change(good: FakeCluster) -> None:
    good.servers["cp-2"].tree["/var/lib/kubeadm-registry"] = Dir(0o700)
    good.servers["cp-3"].tree["/var/lib"] = Dir(0o777)
    assert problems(good) == {
        "DataDirectory": [
            "/var/lib/kubeadm-registry has mode 700, so the services cannot enter it; "
            "run chmod o+x /var/lib/kubeadm-registry"
        ]
    }
    [text] = problems(good, "cp-3")["DataDirectory"]
    assert text == "/var/lib has mode 777, so every user could replace the data; run chmod o-w /var/lib"
    good.servers["cp-3"].tree["/var/lib"] = Dir(0o1777)
    assert problems(good, "cp-3") == {}, "others cannot take away what is not theirs there"


def test_a_data_directory_that_is_a_file(good: FakeCluster) -> None:
    good.servers["cp-2"].put("/var/lib/kubeadm-registry", b"x", 0o755)
    assert "/var/lib/kubeadm-registry is a regular file, not a directory" in problems(good)["DataDirectory"][0]


def test_a_data_directory_that_leads_to_where_none_may_be(good: FakeCluster) -> None:
    good.servers["cp-2"].tree["/var/lib/kubeadm-registry"] = Link("../../opt/kubeadm-registry/data")
    good.servers["cp-3"].tree["/var/lib/kubeadm-registry"] = Link("/srv/registry")
    assert problems(good) == {
        "DataDirectory": [
            "/var/lib/kubeadm-registry resolves to /opt/kubeadm-registry/data; the data must not be in "
            "/opt/kubeadm-registry, which belongs to kubeadm-registry and is removed by reset"
        ]
    }
    assert problems(good, "cp-3") == {}


@pytest.mark.parametrize("name", ["garage", "zot"])
def test_a_data_directory_that_has_somebody_elses_storage_in_it(good: FakeCluster, name: str) -> None:
    """Its owner would be changed, and reset would delete it."""
    good.servers["cp-2"].put(f"/var/lib/kubeadm-registry/{name}/meta/node_key", b"of another one", owner="root:root")
    assert problems(good) == {
        "DataDirectory": [
            f"/var/lib/kubeadm-registry/{name} contains files that this registry did not create; move them away, or "
            "set spec.dataDirectory to another path"
        ]
    }


def test_a_node_that_is_listed_under_another_name_keeps_its_storage(installed: FakeCluster) -> None:
    """To move it away would take a copy of each image from a registry that runs."""
    cluster = installed.with_file(config.SMALLEST.replace("cp-2", "cp-9")).cluster
    found = list(data.suitable(cluster, Host("cp-9", "10.0.0.12", installed.servers["cp-2"])))
    assert found == [
        "/var/lib/kubeadm-registry/garage is that of the node cp-2, and a node cannot get another name; list it as "
        "cp-2, or, if cp-2 has left the registry, move that directory away"
    ]
    assert list(data.suitable(installed.cluster, installed.cluster.hosts[1])) == []


def test_the_script_that_looks_at_the_way_to_the_data(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "file").touch(mode=0o640)
    real, *steps = data._way(here(), f"{tmp_path}/link/new/er")
    assert real == f"{tmp_path}/disk/new/er"
    assert steps[0] == f"750|directory|{tmp_path}/disk"
    assert [step.split("|")[2] for step in steps] == [
        str(one) for one in (tmp_path / "disk", *(tmp_path / "disk").parents)
    ]
    assert data._way(here(), f"{tmp_path}/file")[1] == f"640|regular empty file|{tmp_path}/file"


def test_a_way_in_circles_is_told_as_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(Error, match=f"cannot resolve {tmp_path}/a: its links lead in a circle") as caught:
        data._way(here(), f"{tmp_path}/a")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        *((kind, None) for kind in ("ext2/ext3", "xfs", "btrfs", "zfs", "overlayfs", "UNKNOWN (0x1)", "")),
        *((kind, f"/var/lib/kubeadm-registry is on a network, shared or FUSE file system ({kind}), on which the "
                 "storage's database (LMDB) may lose data; mount a local disk there, or set spec.dataDirectory to "
                 "another path")
          for kind in ("nfs", "gfs/gfs2", "ocfs2", "fuseblk")),
        ("tmpfs", "/var/lib/kubeadm-registry is in memory (tmpfs), and empty after a reboot; mount a disk there, or "
                  "set spec.dataDirectory to another path"),
    ],
)  # fmt: skip
def test_a_data_directory_that_is_on_no_local_disk(good: FakeCluster, kind: str, problem: str | None) -> None:
    """Such as one export that is mounted on all nodes: each would take the files of the others for its own."""
    good.servers["cp-2"].answer("sh", "-c", data._KIND, "kind", "/var/lib/kubeadm-registry", with_=f"{kind}\n")
    assert problems(good) == ({} if problem is None else {"DataFileSystem": [problem]})


def test_the_script_that_asks_for_the_kind_of_a_file_system() -> None:
    assert here().query("sh", "-c", data._KIND, "kind", "/proc/no such/folder").text == "proc"


def test_a_data_disk_that_is_not_mounted(good: FakeCluster) -> None:
    """init would make a new storage below the mount point, and have the agent forget what it has promised."""
    good.servers["cp-2"].unmounted.add("/var/lib/kubeadm-registry")
    good.servers["cp-3"].unmounted.add("/srv")
    assert problems(good) == {
        "DataMounted": [
            "/var/lib/kubeadm-registry is in /etc/fstab and is not mounted, so /var/lib/kubeadm-registry is on another "
            "file system; run `mount /var/lib/kubeadm-registry`, or remove the entry if its disk is lost"
        ]
    }
    assert problems(good, "cp-3") == {}


def test_the_script_that_looks_for_what_is_not_mounted(tmp_path: Path) -> None:
    for name in ("disk", "other", "programs"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("disk/new")
    entries = ("/", f"{tmp_path}/disk", f"{tmp_path}/di", f"{tmp_path}/other", "none")
    stub(tmp_path / "programs", "findmnt", f"printf '%s\\n' {' '.join(entries)}")
    host = here(tmp_path / "programs")

    def said() -> str:
        return host.query("sh", "-c", data._UNMOUNTED, "unmounted", f"{tmp_path}/link/er").text

    assert said() == f"{tmp_path}/disk"
    stub(tmp_path / "programs", "mountpoint", f'[ "$3" = {tmp_path}/disk ]')
    assert said() == ""
    stub(tmp_path / "programs", "findmnt", "exit 1")
    assert said() == "", "no /etc/fstab"


def test_what_finds_a_file_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert data._empty(here(), str(tmp_path))
    assert data._empty(here(), str(tmp_path / "nowhere"))
    (tmp_path / "a" / "b" / "c").touch()
    assert not data._empty(here(), str(tmp_path))


def test_a_vip_outside_of_the_subnet(good: FakeCluster) -> None:
    text = config.SMALLEST.replace("address: 10.0.0.10}", "address: 10.0.1.10}")
    [found] = problems(healthy(FakeCluster.of(text)))["VipInSubnet"]
    assert found == (
        "the virtual IP 10.0.1.10 is not in the subnet 10.0.0.12/24 of eth0; set spec.vip.address to an unused "
        "address of that subnet"
    )


@pytest.mark.parametrize(("prefix", "good"), [(24, False), (16, True)])
def test_nobody_can_connect_to_a_broadcast_address(prefix: int, good: bool) -> None:
    fake = healthy(FakeCluster.of(config.SMALLEST.replace("address: 10.0.0.10}", "address: 10.0.0.255}")))
    shown = [{"ifname": "eth0", "addr_info": [{"local": "10.0.0.12", "prefixlen": prefix}]}]
    fake.servers["cp-2"].answer("ip", "-json", "address", "show", with_=json.dumps(shown))
    found = "the virtual IP 10.0.0.255 is the broadcast address of 10.0.0.0/24, to which no client can connect; "
    assert problems(fake) == (
        {} if good else {"VipInSubnet": [f"{found}set spec.vip.address to an unused address of that subnet"]}
    )


def test_of_a_second_virtual_ip_its_own_field_is_named() -> None:
    fake = healthy(FakeCluster.of(DUAL_STACK))
    second = fake.config.spec.vip.secondary_address
    assert second is not None
    fake.servers["cp-1"].answer("bash", "-c", preflight._KNOCK, "knock", second, with_=neighbour(second))
    assert problems(fake, "cp-1") == {
        "VipUnused": [f"{second} is in use by another machine; set spec.vip.secondaryAddress to an unused address"]
    }


STRAIGHT = {"dst": "fd00::10", "from": "::", "dev": "eth0", "prefsrc": "fd00::12", "metric": 100, "flags": []}


@pytest.mark.parametrize(
    ("way", "good"),
    [
        (STRAIGHT, True),
        ({"type": "local", "dst": "fd00::10", "from": "::", "dev": "lo"}, True),
        (STRAIGHT | {"gateway": "fe80::1"}, False),
        (STRAIGHT | {"via": {"family": "inet6", "host": "fe80::1"}}, False),
        (STRAIGHT | {"dev": "eth1"}, False),
        (None, False),
    ],
)
def test_a_single_address_tells_no_subnet(way: dict[str, object] | None, good: bool) -> None:
    """DHCPv6 gives one, and the network is in a route."""
    text = config.SMALLEST.replace("10.0.0.1", "fd00::1")
    fake = healthy(FakeCluster.of(text))
    server = fake.servers["cp-2"]
    shown = [{"ifname": "eth0", "addr_info": [{"local": "fd00::12", "prefixlen": 128}]}]
    server.answer("ip", "-json", "address", "show", with_=json.dumps(shown))
    server.answer("ip", "-json", "route", "get", "fd00::10", with_=2 if way is None else json.dumps([way]))
    found = problems(fake)
    if good:
        assert found == {}
        return
    [text] = found.pop("VipInSubnet")
    assert found == {}
    assert text.startswith("the address fd00::12/128 of eth0 has no subnet, and no route leads to the virtual IP fd00")


def test_an_address_that_the_server_does_not_have(good: FakeCluster) -> None:
    good.servers["cp-2"].answer("ip", "-json", "address", "show", with_="[]")
    [found] = problems(good)["VipInSubnet"]
    assert found.startswith("no interface has the address 10.0.0.12; set nodes[].address to an address of the node")


def test_an_address_that_the_kernel_will_replace() -> None:
    """As IPv6 hosts make them for privacy: `ip address` shows it before the one that stays."""
    fake = healthy(FakeCluster.of(config.SMALLEST.replace("10.0.0.1", "fd00::1")))
    made = {"local": "fd00::12", "prefixlen": 64, "temporary": True, "dynamic": True, "valid_life_time": 86397}
    fake.servers["cp-2"].answer(
        "ip", "-json", "address", "show", with_=json.dumps([{"ifname": "eth0", "addr_info": [made]}])
    )
    assert problems(fake) == {
        "VipInSubnet": [
            "fd00::12 is a temporary address of eth0, which the kernel replaces within days; set nodes[].address to an "
            "address that the node keeps"
        ]
    }


def test_a_vip_that_somebody_has(good: FakeCluster) -> None:
    leader = good.servers["cp-1"]
    leader.answer("bash", "-c", preflight._KNOCK, "knock", VIP, with_=neighbour(VIP))
    assert problems(good, "cp-1") == {
        "VipUnused": [f"{VIP} is in use by another machine; set spec.vip.address to an unused address"]
    }
    flushed = [command.argv for command in leader.log].index(("ip", "neigh", "flush", "to", VIP))
    assert flushed < [command.argv[0] for command in leader.log].index("bash"), "an old entry would mislead"


def test_a_vip_that_another_program_of_a_node_has(good: FakeCluster) -> None:
    """Such as that of the API server, by kube-vip or a keepalived of the site: ours would take it away from there."""
    show = ("ip", "-oneline", "address", "show", "-tentative", "to")
    good.servers["cp-2"].answer(*show, with_=lambda *_: f"2: eth0 inet {VIP}/32")
    assert problems(good, "cp-1") == {
        "VipUnused": [
            f"{VIP} is an address of cp-2 already, set by another program or the configuration of the network; "
            "set spec.vip.address to an unused address"
        ]
    }
    good.servers["cp-2"].put(unit_path(keepalived.UNIT), b"")
    assert problems(good, "cp-1") == {}


def test_a_vip_that_a_node_has_which_leaves(good: FakeCluster) -> None:
    left = FakeCluster.of(config.SMALLEST).servers["cp-3"]
    leader, show = good.servers["cp-1"], ("ip", "-oneline", "address", "show", "-tentative", "to")
    leader.answer("bash", "-c", preflight._KNOCK, "knock", VIP, with_=neighbour(VIP))
    change = MembersChange((), {}, retiring=(Host("cp-4", "10.0.0.14", left),))
    cluster = replace(good.cluster, change=change)
    assert list(preflight.vip_unused(cluster, cluster.hosts[0])) != []
    left.answer(*show, with_=lambda *_: f"2: eth0 inet {VIP}/32")
    assert list(preflight.vip_unused(cluster, cluster.hosts[0])) == []


def test_one_server_asks_for_the_vip_and_not_all(good: FakeCluster) -> None:
    problems(good, "cp-3")
    assert not [command for command in good.servers["cp-3"].log if command.argv[0] == "bash"]


@pytest.mark.parametrize(
    ("shown", "code"),
    [
        ('[{"dst":"192.0.2.9","lladdr":"52:54:00:12:34:56","state":["REACHABLE"]}]', 0),
        ('[{"dst":"192.0.2.9","state":["FAILED"]}]', 1),
        ('[{"dst":"192.0.2.9","state":["INCOMPLETE"]}]', 1),
        ("[]", 1),
    ],
)
def test_the_script_that_knocks(tmp_path: Path, shown: str, code: int) -> None:
    stub(tmp_path, "ip", f"echo '{shown}'")
    stub(tmp_path, "sleep", ":")
    assert here(tmp_path).query("bash", "-c", preflight._KNOCK, "knock", "127.0.0.1").code == code


def test_every_check_has_a_name_that_can_be_typed_and_says_what_it_wants() -> None:
    checks = {check for _, phase in leaves(INIT) for check in phase.checks}
    names = [check.name for check in checks]
    assert len(set(names)) == len(names) > 8
    for check in checks:
        assert check.name.isalnum()
        assert check.name[0].isupper()
        assert (check.probe.__doc__ or "").strip().endswith("."), check.name


def test_the_script_that_finds_an_interpreter_for_the_agent(tmp_path: Path) -> None:
    def says(version: str, program: str) -> str:
        return here().query("sh", "-c", agent._PYTHON, "python", version, program).text

    assert says("3, 9", sys.executable) == "True"
    assert says("99, 0", sys.executable) == "False"
    stub(tmp_path, "python3", "echo \"ModuleNotFoundError: No module named 'json'\" >&2; exit 1")
    assert says("3, 9", str(tmp_path / "python3")) == "", "such as Debian's python3-minimal"
    assert says("3, 9", str(tmp_path / "none")) == ""


def test_the_agent_runs_with_the_python_of_the_distribution(three: FakeCluster) -> None:
    """Services see no home: one of pyenv or conda, first in root's PATH, would not start there."""
    host = three.cluster.hosts[0]
    assert agent.python(three.cluster, host) == "/usr/bin/python3"
    three.servers[host.name].answer("sh", "-c", agent._PYTHON, "python", "3, 9", "/usr/bin/python3", with_=1)
    with pytest.raises(Error, match="neither this host nor the bundle has Python"):
        agent.python(three.cluster, host)


# ---- firewalls -------------------------------------------------------------------------------------------------------


def test_ports_that_a_firewall_closes_are_named_with_their_node(good: FakeCluster) -> None:
    good.servers["cp-2"].answer("sh", "-c", links.BLOCKED, "blocked", with_="10.0.0.13 5443\n10.0.0.13 3901\n")
    assert problems(good) == {
        "Firewall": [
            "cannot connect to cp-3 (10.0.0.13) on TCP ports 3901, 5443; open them in the firewall of cp-3, and UDP "
            "port 5444 and protocol 112 (VRRP) as well; see docs/requirements.md"
        ]
    }
    [asked] = [c.argv[4:] for c in good.servers["cp-2"].log if c.argv[:3] == ("sh", "-c", links.BLOCKED)]
    ports = ("3901", "5000", "5443", "5445")
    assert asked == tuple(word for node in ("10.0.0.11", "10.0.0.13") for port in ports for word in (node, port))


def test_second_addresses_are_for_clients_alone() -> None:
    dual = healthy(FakeCluster.of(DUAL_STACK))
    assert problems(dual, "cp-1") == {}
    [asked] = [c.argv[4:] for c in dual.servers["cp-1"].log if c.argv[:3] == ("sh", "-c", links.BLOCKED)]
    pairs = list(zip(asked[::2], asked[1::2], strict=True))
    assert ("fd00::12", "5000") in pairs
    assert ("10.0.0.12", "3901") in pairs
    assert ("fd00::12", "3901") not in pairs


def test_a_single_node_has_nobody_to_reach() -> None:
    alone = healthy(FakeCluster.of(ONE))
    assert problems(alone, "cp-1") == {}
    assert not any(links.BLOCKED in command.argv for command in alone.log())


def test_the_script_takes_a_port_on_which_nobody_listens_for_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as gone:
        here_it_is, nobody = taken.getsockname()[1], gone.getsockname()[1]
        gone.close()
        pairs = [("127.0.0.1", here_it_is), ("127.0.0.1", nobody), ("0100::1", 5000)]
        words = [str(word) for pair in pairs for word in pair]
        said = here().query("sh", "-c", links.BLOCKED, "blocked", *words).text.splitlines()
    assert said == ["0100::1 5000"], "the addresses of RFC 6666 lead nowhere"


# ---- large packets ---------------------------------------------------------------------------------------------------


def test_a_node_that_large_packets_do_not_reach_is_named(good: FakeCluster) -> None:
    good.servers["cp-2"].answer("sh", "-c", links.TOO_LARGE, "mtu", with_="10.0.0.13 9000 bond0\n")
    assert problems(good) == {
        "PathMTU": [
            "small packets reach cp-3 (10.0.0.13), but packets of 9000 bytes, the MTU of bond0, do not; set the same "
            "MTU on all nodes, one that every switch between them passes (`ip link set dev bond0 mtu 1500`, and in the "
            "network configuration), or enable jumbo frames on the switches"
        ]
    }
    [asked] = [c.argv[4:] for c in good.servers["cp-2"].log if c.argv[:3] == ("sh", "-c", links.TOO_LARGE)]
    assert asked == ("10.0.0.11", "10.0.0.13")


#: What ping says of packets of up to 1500 bytes, of larger ones, and how often each is sent; what the script finds.
PINGS = {
    "a switch drops them": ("exit 0", "exit 1", 2, ["10.0.0.12 9000 eth0", "fd00::12 9000 eth0"]),
    "they arrive": ("exit 0", "exit 0", 1, []),
    "one was lost": ("exit 0", 'mkdir "$F/$address" 2>/dev/null && exit 1; exit 0', 2, []),
    "the kernel knows": ("exit 0", "echo 'ping: local error: message too long, mtu=1400'; exit 1", 1, []),
    "a router says so": (
        "exit 0",
        "echo 'From 10.0.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1400)'; exit 1",
        1,
        [],
    ),
    "a router of IPv6 says so": ("exit 0", "echo 'From fd00::1 icmp_seq=1 Packet too big: mtu=1400'; exit 1", 1, []),
    "nothing is answered": ("exit 1", "exit 1", 0, []),
    "of busybox": ("echo 'unrecognized option: M'; exit 1", "exit 1", 0, []),
}


@pytest.mark.parametrize(("small", "large", "times", "found"), PINGS.values(), ids=PINGS)
def test_the_script_that_sends_large_packets(
    tmp_path: Path, small: str, large: str, times: int, found: list[str]
) -> None:
    stub(tmp_path, "ip", "case \"$*\" in *route*) echo \"$4 dev eth0 src 10.0.0.11\" ;; *link*) "
                         "echo '2: eth0: <UP> mtu 9000 qdisc mq state UP' ;; esac")  # fmt: skip
    stub(tmp_path, "ping", f'F={tmp_path}; shift 7; size=$2 address=$3; echo "$size $address" >> {tmp_path}/sent\n'
                           f'[ "$size" -gt 56 ] || {{ {small}; }}\n{large}')  # fmt: skip
    said = links.too_large(here(tmp_path), ["10.0.0.12", "fd00::12"])
    assert sorted(f"{address} {way.mtu} {way.interface}" for address, way in said.items()) == found
    sent = (tmp_path / "sent").read_text().splitlines()
    assert [sent.count("8972 10.0.0.12"), sent.count("8952 fd00::12")] == [times, times], "with the headers 9000 bytes"


def test_without_a_ping_nothing_is_known_of_large_packets(tmp_path: Path) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    assert Here(environment={"PATH": str(tmp_path)}).run(("/bin/sh", "-c", links.TOO_LARGE, "mtu", "10.0.0.12")) == (
        Result(("/bin/sh", "-c", links.TOO_LARGE, "mtu", "10.0.0.12"), 0, b"", b"")
    )
