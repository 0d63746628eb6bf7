"""Does the lab do what it says? A lie here would make every other test on it worthless."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import paramiko
import pytest

from tests.lab import cgroups, machine
from tests.lab.command import LabError, mounts, run, wait_until
from tests.lab.host import Host
from tests.lab.lab import Lab, sweep
from tests.lab.settings import Place, Settings

#: Says that it is ready, then what datagram it got, or "nothing" after the seconds given.
RECEIVE = """
import socket, sys
receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
receiver.bind(("", 9999))
receiver.settimeout(float(sys.argv[1]))
print("ready", flush=True)
try:
    print(receiver.recv(9).decode())
except TimeoutError:
    print("nothing")
"""


def pings(source: Host, address: str) -> bool:
    return source.sh("ping", "-c", "2", "-i", "0.2", "-W", "1", address, check=False).returncode == 0


def datagram_arrives(source: Host, target: Host) -> bool:
    """Whether one UDP datagram gets from *source* to *target*, two hosts with Python."""
    with subprocess.Popen(target.sh_argv("python3", "-c", RECEIVE, "3"), stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        source.sh("bash", "-c", 'echo -n hello > "/dev/udp/$1/9999"', "-", target.address)
        answer = receiver.stdout.readline().strip()
    assert answer in ("hello", "nothing")
    return answer == "hello"


def has_carrier(host: Host) -> bool:
    return "NO-CARRIER" not in host.sh("ip", "link", "show", "dev", "eth0").stdout


@contextmanager
def ticking(host: Host) -> Iterator[None]:
    """Let the host write a file every 50 ms meanwhile."""
    script = "while :; do date +%s.%N > /run/tick; sleep 0.05; done"
    host.sh("systemd-run", "--quiet", "--collect", "--unit=tick", "sh", "-c", script)
    wait_until("the first tick", lambda: host.sh("test", "-s", "/run/tick", check=False).returncode == 0, seconds=30)
    try:
        yield
    finally:
        host.resume()
        host.sh("systemctl", "stop", "tick")


def stands_still(host: Host) -> bool:
    before = host.sh("cat", "/run/tick").stdout
    time.sleep(0.6)
    return host.sh("cat", "/run/tick").stdout == before


@pytest.mark.parametrize(("source", "target"), [*itertools.permutations(("h1", "h2", "h3", "h4"), 2)])
def test_every_host_reaches_every_other_by_ipv4_and_ipv6(lab: Lab, source: str, target: str) -> None:
    other = lab.hosts[target]
    assert other.address6 is not None
    assert ":" not in other.address
    assert pings(lab.hosts[source], other.address)
    assert pings(lab.hosts[source], other.address6)


def test_there_is_no_way_out(lab: Lab) -> None:
    for host in lab.hosts.values():
        for address in ("192.0.2.1", "2001:db8::1"):
            result = host.sh("ping", "-c", "1", "-W", "1", address, check=False)
            assert result.returncode != 0
            assert "unreachable" in result.stderr
        assert host.sh("ip", "route", "show", "default").stdout == ""


@pytest.mark.parametrize("name", ["h1", "h2", "h3", "h4"])
def test_a_host_is_a_clean_server(lab: Lab, name: str) -> None:
    host = lab.hosts[name]
    assert host.sh("systemctl", "is-system-running", "--wait").stdout.strip() == "running"
    assert host.sh("systemctl", "is-active", "containerd", "ssh").stdout.split() == ["active", "active"]
    assert host.sh("systemctl", "is-enabled", "containerd").stdout.strip() == "enabled"
    assert host.sh("dpkg", "--verify", "containerd").stdout == ""
    assert host.sh("hostname").stdout.strip() == name
    names = ("garage", "zot", "haproxy", "keepalived", "kubeadm", "kubelet")
    assert host.sh("sh", "-c", 'for name; do command -v "$name"; done; true', "-", *names).stdout == ""


def test_h3_has_no_python_and_the_others_have(lab: Lab) -> None:
    for name, host in lab.hosts.items():
        found = host.sh("sh", "-c", "command -v python3", check=False).returncode == 0
        assert found == host.python == (name != "h3")
    assert lab.hosts["h1"].sh("python3", "-c", "import ssl, json; print(6 * 7)").stdout == "42\n"


def test_each_host_has_a_disk_of_its_own(lab: Lab) -> None:
    sources = set()
    for host in lab.hosts.values():
        source, size = host.sh("df", "--output=source,size", "--block-size=1G", "/var").stdout.split()[-2:]
        sources.add(source)
        assert int(size) == 12
    assert len(sources) == len(lab.hosts)


def test_ssh_checks_the_hosts_keys(lab: Lab) -> None:
    host = lab.hosts["h3"]
    assert host.ssh("echo", "a  b; $HOME").stdout == "a  b; $HOME\n"
    config = str(lab.place.ssh_config)
    stranger = lab.run("ssh", "-F", config, "-o", "UserKnownHostsFile=/dev/null", "h3", "true", check=False)
    assert stranger.returncode == 255
    assert "Host key verification failed" in stranger.stderr


def test_a_python_program_enters_the_network_and_knows_the_hosts(lab: Lab) -> None:
    client = paramiko.SSHClient()
    client.load_host_keys(str(lab.place.known_hosts))
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    for address in (lab.hosts["h2"].address, lab.hosts["h2"].address6):
        with lab.network():
            client.connect(str(address), username="root", key_filename=str(lab.place.key), allow_agent=False)
        with client:
            assert client.exec_command("hostname")[1].read() == b"h2\n"


def test_only_the_calling_thread_enters_the_network(lab: Lab) -> None:
    def namespace() -> int:
        return Path("/proc/thread-self/ns/net").stat().st_ino

    home = namespace()
    with ThreadPoolExecutor(max_workers=1) as another:
        assert another.submit(namespace).result() == home
        with lab.network():
            assert namespace() == lab.namespace.stat().st_ino != home
            assert another.submit(namespace).result() == home
        assert namespace() == home
    assert lab.address(1) in lab.run("ip", "address").stdout


def test_a_link_is_cut_one_way(healthy_lab: Lab) -> None:
    h1, h2, h3 = (healthy_lab.hosts[name] for name in ("h1", "h2", "h3"))
    assert pings(h1, h2.address)  # so that each knows the other's hardware address before the cut
    healthy_lab.cut_link("h1", "h2", one_way=True)
    assert not datagram_arrives(h1, h2)
    wait_until("a datagram the other way", lambda: datagram_arrives(h2, h1), seconds=30)
    assert pings(h1, h3.address)
    assert pings(h2, h3.address)
    healthy_lab.heal_links()
    wait_until("a datagram again", lambda: datagram_arrives(h1, h2), seconds=30)


def test_a_link_is_cut_both_ways(healthy_lab: Lab) -> None:
    h1, h2, h3 = (healthy_lab.hosts[name] for name in ("h1", "h2", "h3"))
    healthy_lab.cut_link("h2", "h3")
    assert not pings(h2, h3.address)
    assert not pings(h3, str(h2.address6))
    assert pings(h1, h2.address)
    assert pings(h1, h3.address)
    healthy_lab.heal_links()
    assert pings(h2, h3.address)


@pytest.mark.parametrize("silent", [False, True])
def test_a_host_is_cut_off(healthy_lab: Lab, silent: bool) -> None:
    h1, h2 = healthy_lab.hosts["h1"], healthy_lab.hosts["h2"]
    h1.cut(silent=silent)
    assert not pings(h2, h1.address)
    assert healthy_lab.run("ssh", "-F", healthy_lab.place.ssh_config, "h1", "true", check=False).returncode != 0
    assert has_carrier(h1) is silent
    h1.heal()
    wait_until("h1's answer to h2", lambda: pings(h2, h1.address), seconds=30)
    assert has_carrier(h1)


def test_a_paused_host_stands_still_and_its_kernel_answers(healthy_lab: Lab) -> None:
    h1, h2 = healthy_lab.hosts["h1"], healthy_lab.hosts["h2"]
    with ticking(h1):
        wait_until("a tick", lambda: not stands_still(h1), seconds=30)
        h1.pause()
        assert h1.state == "paused"
        assert stands_still(h1)
        assert pings(h2, h1.address)
        with healthy_lab.network():
            connection = socket.create_connection((h1.address, 22), timeout=5)
        with connection, pytest.raises(TimeoutError):  # accepted by the kernel, no banner from sshd
            connection.recv(4)
        h1.resume()
        wait_until("a tick again", lambda: not stands_still(h1), seconds=30)
    assert h1.ssh("true").returncode == 0


def test_a_power_cut_loses_what_was_not_synced(healthy_lab: Lab) -> None:
    h1, h2 = healthy_lab.hosts["h1"], healthy_lab.hosts["h2"]
    h1.sh(
        "sh", "-c", "echo x | tee /var/lib/synced > /etc/synced; sync; echo x | tee /var/lib/unsynced > /etc/unsynced"
    )
    h1.power_cut()
    assert h1.state == "off"
    assert not pings(h2, h1.address)
    h1.power_on()
    assert pings(h2, h1.address)
    files = ("/var/lib/synced", "/etc/synced", "/var/lib/unsynced", "/etc/unsynced")
    left = h1.sh("sh", "-c", 'for file; do [ ! -e "$file" ] || echo "$file"; done', "-", *files).stdout.split()
    assert left == ["/var/lib/synced", "/etc/synced"]
    assert h1.sh("systemctl", "is-system-running", "--wait").stdout.strip() == "running"
    h1.sh("rm", "/var/lib/synced", "/etc/synced")


def test_nobody_outside_holds_a_hosts_disk(healthy_lab: Lab) -> None:
    """A process with a mount namespace of its own, as many services have, keeps all that was mounted at its start."""
    h1 = healthy_lab.hosts["h1"]
    directory = str(healthy_lab.place.directory)
    with subprocess.Popen(["unshare", "--mount", "sleep", "infinity"]) as bystander:
        try:
            wait_until("its namespace", lambda: namespace(bystander.pid) != namespace("self"), seconds=30, every=0.02)
            assert [path for path in mounts(bystander.pid) if path.startswith(directory)] == []
            h1.power_cut()
            h1.power_on()
        finally:
            bystander.kill()
    assert h1.ssh("true").returncode == 0


def namespace(pid: int | str) -> int:
    """The mount namespace of a process."""
    return Path(f"/proc/{pid}/ns/mnt").stat().st_ino


def test_a_power_cut_tells_the_peers_nothing(healthy_lab: Lab) -> None:
    h2 = healthy_lab.hosts["h2"]
    with healthy_lab.network(), socket.create_connection((h2.address, 22), timeout=30) as connection:
        assert connection.recv(4) == b"SSH-"
        connection.recv(1000)
        connection.settimeout(3)
        h2.power_cut()
        with pytest.raises(TimeoutError):  # an end of the stream would be b"", a reset ConnectionResetError
            connection.recv(1000)
    h2.power_on()


def test_a_reboot_is_one(healthy_lab: Lab) -> None:
    h3 = healthy_lab.hosts["h3"]
    h3.sh("touch", "/run/before", "/etc/kept")
    h3.reboot()
    assert h3.sh("test", "-e", "/run/before", check=False).returncode == 1
    h3.sh("rm", "/etc/kept")
    assert h3.sh("systemctl", "is-system-running", "--wait").stdout.strip() == "running"
    assert pings(healthy_lab.hosts["h1"], h3.address)


def test_a_reinstalled_host_is_a_new_one(healthy_lab: Lab) -> None:
    h4 = healthy_lab.hosts["h4"]
    h4.sh("sh", "-c", "touch /etc/old /var/lib/old; sync")
    known = healthy_lab.place.known_hosts.read_text().splitlines()
    h4.reinstall()
    assert h4.ssh("ls", "/etc/old", "/var/lib/old", check=False).stdout == ""
    now = healthy_lab.place.known_hosts.read_text().splitlines()
    assert len(now) == len(known)
    assert {line.partition(",")[0] for line in set(known) ^ set(now)} == {"h4"}


def test_a_signal_reaches_all_processes_of_a_unit(healthy_lab: Lab) -> None:
    h3 = healthy_lab.hosts["h3"]
    h3.sh("systemd-run", "--quiet", "--collect", "--unit=pair", "sh", "-c", "sleep 1000 & sleep 1001")

    def processes() -> list[str]:
        return h3.sh("ps", "-o", "stat=", "-C", "sleep", check=False).stdout.split()

    wait_until("two sleepers", lambda: len(processes()) == 2, seconds=30)
    h3.kill("pair.service", signal.SIGSTOP)
    # Each has to be run once more until it stops.
    wait_until("them to stand still", lambda: [state[0] for state in processes()] == ["T", "T"], seconds=30)
    h3.kill("pair.service")
    wait_until("their end", lambda: not processes(), seconds=30)


def test_what_cannot_be_is_refused_in_plain_words(lab: Lab) -> None:
    with pytest.raises(LabError, match="family is 4, 6 or dual"):
        Settings(family="5")  # type: ignore[arg-type]
    with pytest.raises(LabError, match=r"h1 is on"):
        lab.hosts["h1"].power_on()
    with pytest.raises(LabError, match=f"process {os.getpid()} works with"):
        Lab.up(place=lab.place)
    with pytest.raises(LabError, match="ended with status 3: oh"):
        lab.hosts["h1"].sh("sh", "-c", "echo oh >&2; exit 3")


def test_the_last_lab_puts_the_machines_settings_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SETTINGS", tmp_path / "settings")
    monkeypatch.setattr(machine, "NOTES", tmp_path / "notes")
    nr_open = tmp_path / "settings/fs/nr_open"
    nr_open.parent.mkdir(parents=True)
    nr_open.write_text("1024\n")
    machine.save_sysctls("one")
    nr_open.write_text("4096\n")
    machine.save_sysctls("two")
    machine.restore_sysctls("one")
    assert nr_open.read_text() == "4096\n"
    machine.restore_sysctls("never up")
    machine.restore_sysctls("two")
    assert nr_open.read_text() == "1024"


def remains(place: Place) -> list[str]:
    """What is left of a lab on this machine."""
    directory = str(place.directory)
    found = [path for path in mounts() if path.startswith(directory)]
    found += [
        line
        for line in run("losetup", "--list", "--noheadings", "--output", "BACK-FILE").stdout.split("\n")
        if directory in line
    ]
    found += [group.name for group in cgroups.of_lab(place.name)]
    found += [str(path) for path in (Path("/run/netns") / place.name,) if path.exists()]
    found += [line for line in run("ps", "-eo", "args").stdout.splitlines() if f"{directory}/" in line]
    found += [str(path) for path in place.directory.iterdir() if path != place.lock]
    return found


def test_another_lab_of_another_kind_stands_beside_and_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    settings = Settings(
        hosts=1, user="ops", ssh_port=2222, interface="ens3", family="6", gateway=True, disk="2G", without_python=()
    )
    place = Place(tmp_path / "another-lab")
    try:
        other = Lab.up(settings, place=place)
        host = other.hosts["h1"]
        assert host.address == host.address6 == "fd88::11"
        assert host.ssh("whoami").stdout == "ops\n"
        assert host.ssh("sudo", "-n", "whoami").stdout == "root\n"
        assert "via fd88::1 dev ens3" in host.sh("ip", "-6", "route", "show", "default").stdout
        assert "inet 10." not in host.sh("ip", "address").stdout
        host.power_cut()
        host.power_on()
        assert Lab.open(place).hosts["h1"].ssh("hostname").stdout == "h1\n"
        assert remains(place)
        other.down()
        assert remains(place) == []
    finally:
        sweep(place)
    assert pings(lab.hosts["h1"], lab.hosts["h2"].address)


@pytest.mark.parametrize("broken", ["no directory", "no state", "no keeper", "another's mounts"])
def test_down_mends_what_a_broken_run_left(lab: Lab, tmp_path: Path, broken: str) -> None:
    """A lab with one host, whose process was killed, and of which a part is gone; that of a registry."""
    place = Place(tmp_path / "broken-lab").beside("zot")
    Lab.up(Settings(hosts=1, without_python=()), place=place, started_by="tests").forsake()
    keeper = cgroups.Cgroups(f"{place.name}-mounts")
    match broken:
        case "no directory":
            shutil.rmtree(place.directory)
        case "no state":
            place.state.unlink()
        case "no keeper":
            keeper.kill()
        case _:  # as a lab of an earlier version had them
            run("mount", "--bind", place.hosts, place.hosts)
    environment = {**os.environ, "KUBEADM_REGISTRY_LAB": str(tmp_path / "broken-lab")}
    subprocess.run([sys.executable, "-m", "tests.lab", "down"], env=environment, check=True, timeout=180)
    assert remains(place) == []
    assert pings(lab.hosts["h1"], lab.hosts["h2"].address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_start_that_is_ended_leaves_nothing(lab: Lab, tmp_path: Path, number: signal.Signals) -> None:
    """Also SIGKILL, after which ``down`` finds what is left."""
    place = Place(tmp_path / "ended-lab")
    environment = {**os.environ, "KUBEADM_REGISTRY_LAB": str(place.directory)}
    command = [sys.executable, "-m", "tests.lab"]
    # A shell's background job ignores SIGINT, and so would what it starts.
    heeding = ["env", "--default-signal=INT", *command, "up", "--hosts", "1"]
    with subprocess.Popen(heeding, env=environment, start_new_session=True) as starting:
        wait_until("a half started lab", lambda: cgroups.of_lab(place.name), seconds=120, every=0.02)
        starting.send_signal(number)
    try:
        if number == signal.SIGKILL:
            assert remains(place)
            subprocess.run([*command, "down"], env=environment, check=True, timeout=180)
        else:
            assert starting.returncode == 130
        assert remains(place) == []
    finally:
        sweep(place)
