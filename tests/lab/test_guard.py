"""The guard's rules in a real kernel: who reaches frontend and storage on loopback, and whose VRRP is heard."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubeadm_registry import config, paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import keepalived
from kubeadm_registry.engine.changes import File, Steps
from kubeadm_registry.phases import network as phase
from kubeadm_registry.transport.host import Host
from tests.lab.command import wait_until
from tests.lab.namespaces import Namespace, network
from tests.lab.programs import there
from tests.unit.fake_cluster import FakeCluster

#: The users of the services, which this machine does not have, and two that are not the registry's.
NAMES = ("haproxy", "agent", "zot", "garage", "retention", "distribution")
USERS = {paths.user(name): 64000 + number for number, name in enumerate(NAMES)}
NOBODY, ADMINISTRATOR = 65534, 0
ROOT = Path(__file__).parents[2]
#: Where frontend, S3 and the storage's admin interface listen.
DOORS = {
    "frontend": (paths.LOOPBACK, paths.FRONTEND_PORT),
    "s3": (paths.S3_ADDRESS, paths.S3_PORT),
    "admin": (paths.LOOPBACK, paths.ADMIN_PORT),
}
LISTEN = textwrap.dedent("""
    import socket, sys
    listeners = [socket.create_server((at, int(port))) for at, port in zip(sys.argv[1::2], sys.argv[2::2])]
    print("ready", flush=True)
    sys.stdin.read()
""")
CONNECT = textwrap.dedent("""
    import os, socket, sys
    if int(sys.argv[3]):
        os.setuid(int(sys.argv[3]))
    door = socket.socket()
    door.settimeout(1.0)
    try:
        door.connect((sys.argv[1], int(sys.argv[2])))
        print("open")
    except ConnectionRefusedError:
        print("refused")
    except OSError:
        print("silent")
""")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft", path="/usr/sbin:/sbin"), reason="needs root and nft"
)


def written(install: Callable[[Cluster, Host], Steps], path: str, frontend: str = "zot") -> str:
    """The file *path* that *install* gives to cp-1."""
    cluster = FakeCluster.of(f"{config.SMALLEST}  frontend: {{type: {frontend}}}\n").cluster
    steps = install(cluster, cluster.leader)
    return next(one.content.decode() for one in steps if isinstance(one, File) and one.path == path)


def rules(folder: Path, frontend: str = "zot") -> Path:
    """The file that cp-1 loads, with numbers for the users that this machine does not have."""
    text = written(phase.install, paths.GUARD, frontend)
    file = folder / "guard.nft"
    file.write_text(re.sub(rf"{paths.PREFIX}-\w+", lambda found: str(USERS.get(found[0], found[0])), text))
    return file


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Namespace]]:
    """A node whose services listen, and a neighbor that routes the node's loopback addresses to it."""
    with network({"node": "10.0.0.11/24", "neighbor": "10.0.0.99/24"}) as made:
        node, neighbor = made["node"], made["neighbor"]
        for host in made.values():
            host.run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")  # as kube-proxy does in iptables mode
        neighbor.run("ip", "address", "flush", "dev", "lo")
        neighbor.run("ip", "route", "flush", "table", "local", "dev", "lo")
        neighbor.run("ip", "route", "add", "127.0.0.0/8", "via", "10.0.0.11", "src", "10.0.0.99")
        arguments = [str(word) for door in DOORS.values() for word in door]
        services = node.start(sys.executable, "-I", "-c", LISTEN, *arguments, stdin=-1, stdout=-1)
        assert services.stdout is not None
        assert services.stdout.readline() == "ready\n"
        yield made
        services.communicate()


@pytest.fixture
def guarded(hosts: dict[str, Namespace], tmp_path: Path) -> Iterator[dict[str, Namespace]]:
    """The same with the guard's rules on the node; loading them again changes nothing."""
    file = str(rules(tmp_path))
    for _ in range(2):
        hosts["node"].run("nft", "-f", file)
    yield hosts
    hosts["node"].run("nft", "flush", "ruleset")


def attempt(host: Namespace, door: str, user: int) -> str:
    """What becomes of a connection: open, refused or silent."""
    address, port = DOORS[door]
    return host.python(CONNECT, address, str(port), str(user)).stdout.strip()


@pytest.mark.parametrize("door", DOORS)
def test_without_the_guard_all_doors_are_open(hosts: dict[str, Namespace], door: str) -> None:
    """Else the tests below would show nothing."""
    assert attempt(hosts["node"], door, NOBODY) == "open"
    assert attempt(hosts["neighbor"], door, ADMINISTRATOR) == "open"


@pytest.mark.parametrize("door", DOORS)
def test_a_neighbor_reaches_no_loopback_address(guarded: dict[str, Namespace], door: str) -> None:
    assert attempt(guarded["neighbor"], door, ADMINISTRATOR) == "silent"


@pytest.mark.parametrize(
    ("door", "users"),
    [("frontend", {"haproxy", "agent"}), ("s3", {"zot"}), ("admin", {"agent"})],
)
def test_only_the_services_before_it_and_root_reach_a_door(
    guarded: dict[str, Namespace], door: str, users: set[str]
) -> None:
    found = {name: attempt(guarded["node"], door, uid) for name, uid in {**USERS, "nobody": NOBODY, "root": 0}.items()}
    wanted = {paths.user(name) for name in users} | {"root"}
    assert found == {name: "open" if name in wanted else "refused" for name in found}


#: The agent's part, in the node's namespace; ``$1`` the file. It says what it does, and runs until its input ends.
AGENT = textwrap.dedent("""
    import asyncio, sys, threading, time
    from kubeadm_registry.agent.clock import clock
    from kubeadm_registry.agent.config import Guard as Settings
    from kubeadm_registry.agent.guard import Guard

    async def course():
        def changed():
            print("whole" if guard.whole else "lost", flush=True)
        tables = tuple(sys.argv[2:])
        guard = Guard(Settings(tables, sys.argv[1]), changed, lambda *_: None, lambda _, text: print(text))
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        while not ended.done():
            guard.tick(clock())
            await asyncio.sleep(0.02)
        guard.close()
        print(f"{guard.losses} losses", flush=True)

    asyncio.run(course())
""")


@pytest.mark.parametrize(
    "loss",
    [
        "flush ruleset",
        *(f"delete table inet {table}" for table in paths.TABLES),
        f"flush chain inet {paths.PREFIX} input",
    ],
)
def test_the_agent_loads_what_somebody_flushed(guarded: dict[str, Namespace], tmp_path: Path, loss: str) -> None:
    node = guarded["node"]
    arguments = (str(tmp_path / "guard.nft"), *paths.TABLES)
    whole = listed(node)
    with node.start(sys.executable, "-c", AGENT, *arguments, stdin=-1, stdout=-1, cwd=ROOT) as agent:
        assert agent.stdout is not None
        try:
            assert agent.stdout.readline() == "whole\n"
            node.run("nft", *loss.split())
            assert agent.stdout.readline() == "lost\n"
            assert agent.stdout.readline() == "whole\n"
            assert listed(node) == whole
            node.run("nft", "add", "table", "inet", "other")  # a change that is not ours to mend
            node.run("nft", "delete", "table", "inet", "other")
            assert agent.communicate(timeout=30)[0] == "1 losses\n"
        finally:
            agent.kill()


def listed(node: Namespace) -> list[str]:
    """Our tables as the kernel has them."""
    return [node.run("nft", "list", "table", "inet", table).stdout for table in paths.TABLES]


#: Send a VRRP advertisement (RFC 5798) to ``$2`` from ``$1``, with TTL ``$3`` and for virtual router ``$4``.
ADVERT = textwrap.dedent("""
    import socket, struct, sys, time
    source, target, ttl, router, times = *sys.argv[1:3], *map(int, sys.argv[3:])
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    def vrrp(checksum):
        return struct.pack("!BBBBHH", 0x31, router, 255, 1, 15, checksum) + socket.inet_aton("10.0.0.10")
    total = sum(struct.unpack("!12H", ends + struct.pack("!HH", 112, 12) + vrrp(0)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 32, 1, 0, ttl, 112, 0) + ends + vrrp(~total & 0xFFFF)
    wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for _ in range(times):
        wire.sendto(packet, (target, 0))
        time.sleep(0.05)
""")
HEAR = textwrap.dedent("""
    import socket, sys
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 112) as ear:
        print("ready", flush=True)
        sys.stdin.readline()
        ear.settimeout(0.3)
        while True:
            try:
                packet, (source, _) = ear.recvfrom(2048)
            except TimeoutError:
                break
            print(source, packet[8], packet[21], flush=True)
""")
SENT = (
    ("10.0.0.12", 255, 111),
    ("10.0.0.12", 63, 111),  # as if routed
    ("10.0.0.99", 255, 111),
    ("10.0.0.99", 255, 51),  # another virtual router, which is not ours to guard
    ("10.0.0.99", 63, 51),
)


def heard(hosts: dict[str, Namespace]) -> list[str]:
    node, neighbor = hosts["node"], hosts["neighbor"]
    ear = node.start(sys.executable, "-I", "-c", HEAR, stdin=-1, stdout=-1)
    assert ear.stdout is not None
    assert ear.stdout.readline() == "ready\n"
    for source, ttl, router in SENT:
        neighbor.python(ADVERT, source, "10.0.0.11", str(ttl), str(router), "1")
    return ear.communicate("\n", timeout=30)[0].splitlines()


def test_without_the_guard_all_vrrp_is_heard(hosts: dict[str, Namespace]) -> None:
    assert heard(hosts) == [" ".join(map(str, one)) for one in SENT]


def test_vrrp_of_this_router_comes_from_peers_that_are_on_the_link(guarded: dict[str, Namespace]) -> None:
    assert heard(guarded) == ["10.0.0.12 255 111", "10.0.0.99 255 51", "10.0.0.99 63 51"]


@pytest.fixture
def holder(hosts: dict[str, Namespace], tmp_path: Path) -> Iterator[Namespace]:
    """The node with a keepalived that holds the VIP, and without the guard: both look at VRRP."""
    program = there("keepalived")
    if program is None:
        pytest.skip("there is no keepalived here: run `make lab`, or name one in KUBEADM_REGISTRY_KEEPALIVED")
    text = written(keepalived.install, keepalived.CONFIG)
    for path, content in ((paths.FIT, "1\n"), (paths.ALONE, "0\n")):
        file = tmp_path / Path(path).name
        file.write_text(content)
        text = text.replace(path, str(file))
    (tmp_path / "keepalived.conf").write_text(text)
    node = hosts["node"]
    files = ("-f", tmp_path / "keepalived.conf", "-p", tmp_path / "pid", "-r", tmp_path / "vrrp.pid")
    command = (program, "--dont-fork", "--log-console", "--no-syslog", "--vrrp", *map(str, files))
    with (tmp_path / "said").open("w") as said, node.start(*command, stdout=said, stderr=said) as process:
        try:
            wait_until("the VIP", lambda: holds(node), seconds=30, every=0.1)
            yield node
        finally:
            process.terminate()


def holds(node: Namespace) -> bool:
    return "10.0.0.10/32" in node.run("ip", "-oneline", "address", "show", "dev", "eth0").stdout


def test_keepalived_hears_no_peer_through_a_router(hosts: dict[str, Namespace], holder: Namespace) -> None:
    """Adverts of a second, with the highest priority and a peer's address."""
    hosts["neighbor"].python(ADVERT, "10.0.0.12", "10.0.0.11", "63", "111", "20")
    assert holds(holder)
    # A neighbor can still forge both; docs/how-it-works.md says so.
    forged = ("10.0.0.12", "10.0.0.11", "255", "111", "2000")
    with hosts["neighbor"].start(sys.executable, "-I", "-c", ADVERT, *forged) as neighbor:
        try:
            wait_until("the VIP to be given up", lambda: not holds(holder), seconds=30)
        finally:
            neighbor.kill()
