"""What init puts on each server, file by file; and that the programs which read the files could.

tests/golden/<case> has the cluster file, the whole state of the first server, and how each other one differs from it.
`pytest tests/unit/test_components.py --update-golden` writes them anew.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from kubeadm_registry import config, paths
from kubeadm_registry.agent import config as agent_config
from kubeadm_registry.agent.timings import Timings
from kubeadm_registry.cluster import holder_last
from kubeadm_registry.components import agent, distribution, garage, keepalived, network, programs, zot
from kubeadm_registry.components.haproxy import PUSHES_MAP, PUSHES_OPEN, login_digest
from kubeadm_registry.engine.changes import RECORD_START, STARTED
from kubeadm_registry.engine.render import render
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error
from kubeadm_registry.phases import base
from kubeadm_registry.phases.proxy import PROXY
from kubeadm_registry.phases.vip import one_holder
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.transport.host import FileState
from tests.unit import real_haproxy
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster, authority
from tests.unit.fake_cluster import program as program_of
from tests.unit.fakes import BARE, UNITS, Dir, FakeTransport
from tests.unit.test_workflow import Recorder

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("ipv4-zot", "ipv4-distribution", "dual-stack", "ipv6-only", "five-nodes", "no-anonymous-pull")
#: What differs from run to run, or is not ours to render.
LEFT_OUT = (
    "/opt/kubeadm-registry/programs/", "/run/", "/etc/kubeadm-registry/haproxy/node.pem",
    "/var/lib/kubeadm-registry/kubeadm-registry-agent/hardstate", "/srv/registry/kubeadm-registry-agent/hardstate",
)  # fmt: skip


@cache
def installed(case: str) -> FakeCluster:
    """The servers of a case after init. Shared: only to be read."""
    fake = FakeCluster.of((GOLDEN / case / "cluster.yaml").read_text())
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    return fake


def text_of(content: bytes) -> str:
    text = content.decode(errors="replace")
    if any(not character.isprintable() and character != "\n" for character in text):
        return f"<{content.hex()}>" if len(content) <= 64 else "<binary>"
    for value, name in ((authority().certificate, "ca certificate"), (authority().key, "ca key")):
        text = text.replace(value, f"<{name}>\n").replace(json.dumps(value)[1:-1], f"<{name}>")
    return text.removesuffix("\n")


def state(server: FakeTransport) -> str:
    """Users, folders and files of a server, each file under its name, mode and owner."""
    lines = []
    for user, groups in sorted(server.users.items()):
        if user != "root":
            lines.append(f"user {user} in {', '.join(sorted(groups))}")
    shown = {path: node for path, node in sorted(server.tree.items()) if not path.startswith(LEFT_OUT)}
    for path, node in shown.items():
        if isinstance(node, Dir) and path not in BARE:
            lines.append(f"directory {path} {node.mode:o} {node.owner}")

    lines += [f"unit {name} {unit.active}" for name, unit in sorted(server.units.items()) if unit.active != "inactive"]
    for path, node in shown.items():
        if isinstance(node, FileState):
            lines += ["", f"======== {path} {node.mode:o} {node.owner}", text_of(node.content)]
    return "\n".join(lines) + "\n"


def rendered(case: str) -> dict[str, str]:
    """The files of a case: the first server whole, each other one as what differs."""
    servers = installed(case).servers
    (first, whole), *others = ((name, state(server)) for name, server in servers.items())
    files = {f"{first}.txt": whole}
    for name, other in others:
        lines = difflib.unified_diff(whole.splitlines(), other.splitlines(), first, name, lineterm="", n=1)
        files[f"{name}.diff"] = "\n".join(lines) + "\n"
    return files


@pytest.mark.parametrize("case", CASES)
def test_servers_are_as_in_the_golden_files(case: str, request: pytest.FixtureRequest) -> None:
    made, folder = rendered(case), GOLDEN / case
    if request.config.getoption("--update-golden"):
        for path in folder.iterdir():
            if path.name != "cluster.yaml":
                path.unlink()
        for name, text in made.items():
            (folder / name).write_text(text)
    there = {path.name: path.read_text() for path in folder.iterdir() if path.name != "cluster.yaml"}
    assert made == there, f"if it is meant so: pytest {__file__} --update-golden"


def test_every_golden_case_is_tested() -> None:
    assert {path.parent.name for path in GOLDEN.glob("*/cluster.yaml")} == set(CASES)


# ---- those who read the files could ------------------------------------------------------------------------------


def all_files() -> dict[str, FileState]:
    return {
        f"{case}/{name}{path}": node
        for case in CASES
        for name, server in installed(case).servers.items()
        for path, node in server.files().items()
        if not path.startswith(LEFT_OUT)
    }


def distinct(suffixes: tuple[str, ...] = (), shebang: bytes = b"") -> dict[bytes, str]:
    """Each content once, with where it stands."""
    return {
        node.content: path
        for path, node in all_files().items()
        if (suffixes and path.endswith(suffixes)) or (shebang and node.content.startswith(shebang))
    }


def test_structured_files_parse() -> None:
    parsers: dict[str, Callable[[bytes], object]] = {
        ".json": json.loads,
        ".toml": lambda b: tomllib.loads(b.decode()),
        ".yml": yaml.safe_load,
    }
    parsed = []
    for content, path in distinct(tuple(parsers)).items():
        document = parsers[Path(path).suffix](content)
        assert isinstance(document, dict) and document, path
        parsed.append(Path(path).name)
    assert {"garage.toml", "config.yml", "writer.json", "agent.json", "secrets.json", "programs.json"} <= set(parsed)


def test_nothing_is_left_of_templates_and_lines_are_whole() -> None:
    for path, node in all_files().items():
        if b"\0" in node.content or path.endswith(
            (".pyz", ".py", "node_key.pub", "node_key", "_secret", "_token", ".key")
        ):
            continue
        text = node.content.decode()
        assert text.endswith("\n"), path
        assert "{{" not in text and "{%" not in text and "{#" not in text, path
        assert not any(word in text for word in ("None", "Undefined", "jinja")), path


def test_scripts_are_good_shell(tmp_path: Path) -> None:
    scripts = []
    for number, content in enumerate(distinct(shebang=b"#!/bin/sh")):
        scripts.append(tmp_path / f"{number}.sh")
        scripts[-1].write_bytes(content)
    assert len(scripts) >= 8
    for script in scripts:
        subprocess.run(["sh", "-n", script], check=True)
    if shutil.which("shellcheck"):
        result = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("case", ["ipv4-zot", "ipv4-distribution"])
def test_systemd_finds_nothing_to_say_about_the_units(case: str, tmp_path: Path) -> None:
    server = next(iter(installed(case).servers.values()))
    units = [path for path in server.files() if path.startswith(UNITS)]
    for path in units:
        # The programs are not on this machine; what systemd says of the words before and after them is asked.
        text = re.sub(r"^(Exec\w+=[+-]*)\S+", r"\1/bin/true", server.content(path).decode(), flags=re.MULTILINE)
        name = Path(path).name.replace("@.", "@1.")
        (tmp_path / name).write_text(text)
    assert len(units) >= 7
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(path) for path in tmp_path.iterdir())],
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    ours = [line for line in result.stderr.splitlines() if str(tmp_path) in line or "kubeadm-registry" in line]
    assert not ours


#: The most that `systemd-analyze security` may find: 0 is nothing left to an attacker, 10 everything.
EXPOSURE = {agent.UNIT: 2.5, keepalived.UNIT: 2.8}  # both need capabilities, and the agent looks at other processes
OTHERS = 2.3


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("case", ["ipv4-zot", "ipv4-distribution"])
def test_a_service_may_do_no_more_than_it_needs(case: str, tmp_path: Path) -> None:
    server = next(iter(installed(case).servers.values()))
    found = {}
    for path in server.files():
        if not path.startswith(UNITS) or not path.endswith(".service"):
            continue
        unit = tmp_path / Path(path).name.replace("@.", "@1.")
        unit.write_text(
            re.sub(r"^(Exec\w+=[+-]*)\S+", r"\1/bin/true", server.content(path).decode(), flags=re.MULTILINE)
        )
        said = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "unrecognized option" in said.stderr:
            pytest.skip("this systemd judges running units only")
        level = re.search(r"exposure level for .*: ([0-9.]+)", said.stdout)
        assert level is not None, said.stdout + said.stderr
        found[Path(path).name] = float(level[1])
    assert len(found) >= 7
    assert {name: level for name, level in found.items() if level > EXPOSURE.get(name, OTHERS)} == {}


def test_every_file_that_a_unit_names_is_there() -> None:
    """In Exec lines: the program, the script, the configuration; without it the unit would not start."""
    made_at_start = ("/run/kubeadm-registry", "/bin/", "/usr/bin/")
    for case in CASES:
        for server in installed(case).servers.values():
            for unit, node in server.files().items():
                if not unit.startswith(UNITS):
                    continue
                for line in node.content.decode().splitlines():
                    words = line.partition("=")[2].lstrip("+-").split() if line.startswith("Exec") else []
                    for word in words:
                        if word.startswith("/") and not word.startswith(made_at_start):
                            assert word in server.tree, f"{case}: {unit}: {line}"


def unit_lines(server: FakeTransport) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Each unit of a server with its settings, of which some come more than once."""
    for path, node in server.files().items():
        if path.startswith(UNITS):
            settings: dict[str, list[str]] = {}
            for line in node.content.decode().splitlines():
                key, equals, value = line.partition("=")
                if equals and not line.startswith("#"):
                    settings.setdefault(key, []).append(value)
            yield path, settings


@pytest.mark.parametrize("case", CASES)
def test_root_works_in_no_directory_that_a_service_may_change(case: str) -> None:
    """In a directory of its own a service's user can put a link in the place of what root writes or reads there."""
    server = next(iter(installed(case).servers.values()))
    units = dict(unit_lines(server))
    theirs = {
        path for path, node in server.tree.items() if isinstance(node, Dir) and not node.owner.startswith("root:")
    }
    theirs |= {f"/run/{name}" for unit in units.values() if "User" in unit for name in unit.get("RuntimeDirectory", ())}
    assert f"{paths.RUN}/agent" in theirs
    for name, unit in units.items():
        for key, values in unit.items():
            for value in values if key.startswith("Exec") else ():
                program, *words = value.split()
                if "User" in unit and "+" not in program[:3]:
                    continue
                within = [word for word in words if any(word.startswith(f"{one}/") for one in theirs)]
                assert not within, f"{name}: {key}={value}"


def test_zot_starts_as_a_standby_whatever_is_in_its_place(tmp_path: Path) -> None:
    """The lines of the unit, as this user: a link to a directory there led root into it."""
    server = installed("ipv4-zot").servers["cp-1"]
    unit = dict(unit_lines(server))[f"{UNITS}/{zot.UNIT}"]
    steps = [line.lstrip("+") for line in unit["ExecStartPre"] if "/install " in line]
    assert len(steps) == 2
    elsewhere, place = tmp_path / "manifests", tmp_path / "run"
    elsewhere.mkdir()
    place.mkdir()
    (place / "config.json").symlink_to(elsewhere)
    (tmp_path / "standby.json").write_text("{}\n")
    text = "\n".join(steps).replace(zot.STANDBY_CONFIG, str(tmp_path / "standby.json")).replace(zot.RUN, str(place))
    for step in re.sub(r"-o \S+ -g \S+", f"-o {os.getuid()} -g {os.getgid()}", text).splitlines():
        subprocess.run(step.split(), check=True)
    assert list(elsewhere.iterdir()) == []
    assert not (place / "config.json").is_symlink()
    assert (place / "config.json").read_text() == "{}\n"


RETENTION = paths.RETENTION_UNIT.replace("@.", "@run-1.")


@pytest.mark.parametrize(
    ("case", "unit", "marked", "ended"),
    [
        ("ipv4-zot", zot.UNIT, True, True),
        ("ipv4-zot", zot.UNIT, False, False),
        ("ipv4-zot", RETENTION, False, True),
        ("ipv4-distribution", RETENTION, False, True),
        ("ipv4-distribution", distribution.UNIT, True, False),
    ],
)
def test_an_agent_that_is_gone_leaves_nothing_behind_that_could_act_under_its_lease(
    tmp_path: Path, case: str, unit: str, marked: bool, ended: bool
) -> None:
    """Its unit's first act, in a tree of control groups that has one process."""
    server = installed(case).servers["cp-1"]
    assert dict(unit_lines(server))[f"{UNITS}/{agent.UNIT}"]["ExecStopPost"][0] == f"-{agent.END_WRITER}"
    text = server.content(agent.END_WRITER).decode()
    script = tmp_path / "end-writer"
    script.write_text(text.replace("/sys/fs/cgroup", str(tmp_path / "cgroup")).replace(paths.RUN, str(tmp_path)))
    group = tmp_path / "cgroup" / "systemd" / paths.SLICE / unit
    group.mkdir(parents=True)
    (tmp_path / "agent").mkdir()
    if marked:
        (tmp_path / "agent" / "writer").write_text(f"{unit}\n")
    with subprocess.Popen(["sleep", "60"]) as process:
        (group / "cgroup.procs").write_text(f"0\n{process.pid}\n{2**22 + 1}\n")
        subprocess.run(["sh", script], check=True)
        assert (process.wait(20) == -signal.SIGKILL) if ended else (process.poll() is None)
        process.kill()


def test_an_older_nft_can_read_the_sets() -> None:
    """That of kube-proxy crashes on a set that a newer nft made of a plain type (kubernetes/kubernetes#136786)."""
    rules = b"\n".join(distinct((".nft",))).decode()
    sets = re.findall(r"^ *set \w+ \{(.*)", rules, re.MULTILINE)
    assert sets
    assert all(" typeof " in declaration for declaration in sets)
    for template in (Path(paths.__file__).parent / "templates").rglob("*.nft.j2"):
        assert not re.search(r"^\s*type (?!filter|nat|route)", template.read_text(), re.MULTILINE), template.name


def test_init_leaves_pushes_closed_that_a_dead_run_has_closed() -> None:
    fake = FakeCluster.of((GOLDEN / "ipv4-distribution" / "cluster.yaml").read_text())
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    server = fake.servers["cp-1"]
    closed = b"closed 1795813480\nfull 0\n"
    server.put(PUSHES_MAP, closed)
    assert run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE) == []
    server.put(PUSHES_MAP, b"clo")
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    assert server.content(PUSHES_MAP) == PUSHES_OPEN


def test_a_frontend_that_is_told_to_stop_is_back_before_the_virtual_ip_is_given_up() -> None:
    """It takes no connection while it finishes what is in hand, which a slow pull makes as long as it may."""
    server = next(iter(installed("ipv4-distribution").servers.values()))
    takes = yaml.safe_load(server.content(distribution.CONFIG))["http"]["draintimeout"]
    assert float(takes.removesuffix("s")) + 1 <= Timings().give_up


def test_a_file_with_a_secret_is_closed_to_others() -> None:
    texts = (b"the-rpc", b"the-admin", b"the-s3", b"the-push", b"the-pull", b"the-upload", b"the-heartbeat",
             b"the-retention", b"PRIVATE")  # fmt: skip
    seeds = [bytes([2 * number]) * 32 for number in range(5)]
    values = (*texts, *seeds, *(seed.hex().encode() for seed in seeds))
    closed = set()
    for path, node in all_files().items():
        if any(value in node.content for value in values):
            assert node.mode & 0o027 == 0, path
            closed.add(Path(path).name)
    assert closed == {"rpc_secret", "admin_token", "node_key", "secrets.json", "writer.json", "standby.json",
                      "config.yml", "heartbeat.key", "config.json"}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_agent_accepts_its_configuration(case: str, tmp_path: Path) -> None:
    for name, server in installed(case).servers.items():
        document = json.loads(server.content(agent.CONFIG))
        for key in ("heartbeat_key_file", "garage_admin_token_file"):
            content = server.content(document[key])
            document[key] = str(tmp_path / key)
            (tmp_path / key).write_bytes(content)
        path = tmp_path / "agent.json"
        path.write_text(json.dumps(document))
        settings = agent_config.load(path)
        assert settings.name == name
        assert len(settings.peers) == len(installed(case).servers) - 1


# ---- scripts, run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["kubeadm-registry-zot.service", garage.UNIT])
def test_record_start_notes_what_a_service_compares(tmp_path: Path, unit: str) -> None:
    """The real script against what the fake host, and with it every test of a restart, takes it to do."""
    server = installed("ipv4-zot").servers["cp-1"]
    script = tmp_path / "record-start"
    script.write_bytes(base._RECORD_START.replace(b"/run/kubeadm-registry", str(tmp_path).encode()))
    line = next(line for line in server.content(f"{UNITS}/{unit}").decode().splitlines() if f"+{RECORD_START} " in line)
    paths = line.split()[2:]
    local = []
    for path in paths:
        local.append(tmp_path / path.replace("/", "_"))
        local[-1].write_bytes(server.content(path))
    subprocess.run(["sh", str(script), unit, *map(str, local)], check=True, umask=0o077)
    noted = (tmp_path / "started" / unit).read_text()
    for path, mine in zip(paths, local, strict=True):
        noted = noted.replace(str(mine), path)
    assert noted == server.content(f"{STARTED}/{unit}").decode()
    assert (tmp_path / "started" / unit).stat().st_mode & 0o777 == 0o644


def test_record_start_of_a_missing_file_fails_and_leaves_the_old_note(tmp_path: Path) -> None:
    script = tmp_path / "record-start"
    script.write_bytes(base._RECORD_START.replace(b"/run/kubeadm-registry", str(tmp_path).encode()))
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "x.service").write_text("old")
    result = subprocess.run(["sh", script, "x.service", tmp_path / "gone"], capture_output=True, check=False)
    assert result.returncode != 0
    assert (tmp_path / "started" / "x.service").read_text() == "old"


@pytest.mark.parametrize("there", [True, False], ids=["no room for the note", "nor for its directory"])
def test_a_service_starts_where_there_is_no_room_for_its_note(tmp_path: Path, there: bool) -> None:
    """Something else may have filled /run when the storage must start again. What it started with is unknown then."""
    script, file, notes = tmp_path / "record-start", tmp_path / "conf", tmp_path / "started"
    script.write_bytes(base._RECORD_START.replace(b"/run/kubeadm-registry", str(tmp_path).encode()))
    file.write_text("a\n")
    if there:
        notes.mkdir()
        (notes / "x.service").write_text("old")
        (notes / ".x.service").symlink_to("/dev/full")
    else:
        notes.touch()
    result = subprocess.run(["sh", script, "x.service", file], capture_output=True, check=False)
    assert result.returncode == 0
    assert not there or list(notes.iterdir()) == []


@pytest.mark.parametrize(
    ("case", "shown", "way"),
    [
        ("ipv4-zot", "10.0.0.12 dev eth0 src 10.0.0.11 uid 0 \\    cache", "dev eth0"),
        ("ipv4-zot", "10.0.0.12 via 10.0.0.1 dev bond0.7 src 10.0.0.11 uid 0 \\", "via 10.0.0.1 dev bond0.7"),
        ("ipv6-only", "fd00::12 from :: dev eth0 proto kernel src fd00::11 metric 256 pref medium", "dev eth0"),
        ("ipv6-only", "fd00::12 from :: via fe80::1 dev eth0 proto ra src fd00::11", "via fe80::1 dev eth0"),
    ],
)
def test_the_network_script_takes_the_way_of_the_main_table(tmp_path: Path, case: str, shown: str, way: str) -> None:
    calls = network_script(tmp_path, case, shown)
    family, peers = ("-4", ("10.0.0.12", "10.0.0.13")) if case == "ipv4-zot" else ("-6", ("fd00::12", "fd00::13"))
    for peer in peers:
        own = "10.0.0.11" if family == "-4" else "fd00::11"
        assert f"ip {family} route replace {peer} {way} src {own} table 3901 quickack 1" in calls
        for end in ("dport", "sport"):
            assert f"ip {family} rule add to {peer} ipproto 6 {end} 3901 lookup 3901 priority 3901" in calls


def test_a_server_that_was_made_anew_makes_no_second_bucket() -> None:
    """Its storage has joined, but does not know yet what the others know."""
    fake = FakeCluster.of((GOLDEN / "ipv4-zot" / "cluster.yaml").read_text())
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    call = (fake.programs["garage"].executable, "-c", garage.CONFIG, "json-api")
    fake.servers["cp-1"].answer(*call, "ListBuckets", with_="[]")
    assert garage.Bucket(fake.cluster).diff(fake.cluster.leader) is None
    [bucket] = fake.garage.buckets.values()
    bucket["keys"] = []
    garage.Bucket(fake.cluster).apply(fake.cluster.leader)
    assert len(fake.garage.buckets) == 1
    assert bucket["keys"]


def test_the_network_script_goes_on_without_a_way_to_a_peer(tmp_path: Path) -> None:
    calls = network_script(tmp_path, "ipv4-zot", "")
    assert not [call for call in calls if "rule add" in call]
    assert "ip address replace 127.0.0.39/32 dev lo" in calls


def network_script(folder: Path, case: str, shown: str) -> list[str]:
    """What the script calls when it goes up, where `ip route get` says *shown*."""
    calls = folder / "calls"
    for program in ("ip", "nft"):
        stub = folder / program
        stub.write_text(
            f'#!/bin/sh\necho "{program} $*" >> {calls}\n'
            f"case \"$*\" in *'route get'*) echo '{shown}' ;; *'rule del'*|*' del '*|*delete*) exit 1 ;; esac\n"
        )
        stub.chmod(0o755)
    script = folder / "network"
    script.write_bytes(installed(case).servers["cp-1"].content(network.SCRIPT))
    path = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["sh", str(script), "up"], check=True, env=path)
    usage = subprocess.run(["sh", str(script)], check=False, capture_output=True, env=path)
    assert (usage.returncode, usage.stderr) == (2, b"Written by kubeadm-registry. Usage: network up|down|missing\n")
    return calls.read_text().splitlines()


#: An interface with a network of either family, one of them by a gateway; *script* is the script of a node.
LOSSES = """
set -e
ip link set lo up
ip link add eth0 type veth peer name other
ip addr add 10.0.0.11/24 dev eth0
ip addr add fd00::11/64 dev eth0 nodad
ip link set other up; ip link set eth0 up
"$script" up; echo "up: $("$script" missing)"
ip link set eth0 down; ip link set eth0 up; ip addr add fd00::11/64 dev eth0 nodad
echo "down and up: $("$script" missing)"
"$script" up; echo "again: $("$script" missing)"
ip rule del priority 3901; ip -6 rule del priority 3901
echo "no rules: $("$script" missing)"
"$script" up; ip addr flush dev lo
echo "no address: $("$script" missing)"
"$script" up; echo "again: $("$script" missing)"
ip route add 10.0.0.12 via 10.0.0.13
echo "another way: $("$script" missing)"
ip addr flush dev eth0; ip route flush table main; "$script" up
echo "no way: $("$script" missing)"
"""


@pytest.mark.skipif(os.geteuid() != 0 and "CI" not in os.environ, reason="needs root: makes a network namespace")
def test_the_network_script_says_what_is_missing(tmp_path: Path) -> None:
    addresses = ["10.0.0.12", "fd00:0::12"]
    done = with_network_script(tmp_path, LOSSES, own="10.0.0.11", peers=addresses)
    assert done.returncode == 0, done.stderr
    said = dict(re.findall(r"^([a-z ]+):((?: .*)?(?:\n(?![a-z ]+:).*)*)", done.stdout, re.MULTILINE))
    lost = {what: [line.strip() for line in text.strip().splitlines()] for what, text in said.items()}
    assert lost == {
        "up": [],
        "down and up": [f"route to {one} in table 3901" for one in addresses],
        "again": [],
        "no rules": [f"rule for dport 3901 to {one}" for one in addresses],
        "no address": ["address 127.0.0.39 on lo", "local route to 127.0.0.39"],
        "another way": ["route to 10.0.0.12 in table 3901"],
        "no way": [],
    }


def with_network_script(folder: Path, commands: str, *, own: str, peers: list[str]) -> subprocess.CompletedProcess[str]:
    """What *commands* say in a network namespace of their own, with the script of the node *own*."""
    script = folder / "network"
    values = {"s3_address": "127.0.0.39", "rpc_table": 3901, "rpc_port": 3901}
    script.write_bytes(render("network/network.sh.j2", own=own, peers=peers, **values))
    script.chmod(0o755)
    return subprocess.run(
        ["unshare", "--net", "sh", "-c", commands], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "script": str(script)},
    )  # fmt: skip


#: An interface with two addresses in one network, of which the kernel would take the other; then the own one is away.
SEVERAL = """
set -e
ip link set lo up
ip link add eth0 type veth peer name other
ip link set other up; ip link set eth0 up
for address in $addresses; do ip addr add "$address" dev eth0 nodad; done
"$script" up; "$script" missing
ip -o route get "$peer" ipproto tcp dport 3901
ip addr del "$own" dev eth0; ip route replace "$peer" dev eth0
"$script" up; "$script" missing
"""


@pytest.mark.skipif(os.geteuid() != 0 and "CI" not in os.environ, reason="needs root: makes a network namespace")
@pytest.mark.parametrize(
    ("addresses", "peer"), [("10.0.0.5/24 10.0.0.11/24", "10.0.0.12"), ("fd00::11/64 fd00::5/64", "fd00::12")]
)
def test_the_storage_speaks_from_the_nodes_own_address(tmp_path: Path, addresses: str, peer: str) -> None:
    """A firewall of the other nodes may let in that one alone, and preflight tries it from there."""
    [own] = [one for one in addresses.split() if "11/" in one]
    values = f"addresses='{addresses}' own={own} peer={peer}\n"
    done = with_network_script(tmp_path, values + SEVERAL, own=own.partition("/")[0], peers=[peer])
    assert done.returncode == 0, done.stderr
    [said] = done.stdout.splitlines()
    assert f" src {own.partition('/')[0]} " in said, "and nothing is missing, before and after"


@pytest.mark.parametrize(
    ("kind", "most", "words"),
    [
        ("instances", 1, ""),
        ("instances", 0, "keepalived needs inotify, and root has used up fs.inotify.max_user_instances, "),
        ("watches", 0, "keepalived needs inotify, and root has used up fs.inotify.max_user_watches, "),
    ],
)
def test_keepalived_does_not_start_without_inotify(tmp_path: Path, kind: str, most: int, words: str) -> None:
    """The limits of a user namespace of its own, for others use those of this machine. Run as the unit does it."""
    server = installed("ipv4-zot").servers["cp-1"]
    unit = server.content(f"{paths.UNITS}/{keepalived.UNIT}").decode()
    [how] = re.findall(r"^ExecStartPre=\+\S+ (.*inotify.*)$", unit, re.MULTILINE)
    assert how == f"-I -B {keepalived.INOTIFY} /run/kubeadm-registry/agent"
    script = tmp_path / "inotify.py"
    script.write_bytes(server.content(keepalived.INOTIFY))
    limited = f'echo {most} > /proc/sys/user/max_inotify_{kind} && exec "$@"'
    argv = ["unshare", "--map-root-user", "sh", "-c", limited, "sh", sys.executable, "-I", "-B", str(script)]
    done = subprocess.run([*argv, str(tmp_path)], capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr or "sh:" in done.stderr:
        pytest.skip("this user may have no namespace with limits of its own")
    assert done.returncode == (1 if words else 0), done.stderr
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == (1 if words else 0)
    if not words:
        gone = subprocess.run([*argv, str(tmp_path / "gone")], capture_output=True, text=True, check=False)
        assert (gone.returncode, gone.stderr) == (
            1, f"cannot watch {tmp_path}/gone, as keepalived must: No such file or directory\n",
        )  # fmt: skip


def test_dropping_the_vip_fails_nowhere(tmp_path: Path) -> None:
    """It runs before each start, when the address is not there."""
    stub = tmp_path / "ip"
    stub.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\nexit 2\n')
    stub.chmod(0o755)
    script = tmp_path / "drop"
    script.write_bytes(installed("dual-stack").servers["cp-1"].content(keepalived.DROP))
    subprocess.run(["sh", script], check=True, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (tmp_path / "calls").read_text().splitlines() == [
        "address del 10.0.0.10/32 dev eth0",
        "address del fd00::10/128 dev eth0",
    ]


def layer(folder: Path, text: str) -> tuple[Path, str]:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "x").write_text(text)
    archive = folder / "layer.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder / "bin", "bin")
    return archive, hashlib.sha256(archive.read_bytes()).hexdigest()


def unpack(archive: Path, digest: str, target: Path, note: str = "", names: Sequence[Path] = ()) -> int:
    argv = ["sh", "-c", programs._UNPACK, "unpack", str(archive), digest, str(target), note or digest, *map(str, names)]
    return subprocess.run(argv, check=False, capture_output=True).returncode


def test_a_node_gives_another_what_it_has_of_a_program_itself(tmp_path: Path) -> None:
    """In place of a bundle: the same files, under the digest of the layer that they came from."""
    archive, digest = layer(tmp_path / "bundle", "program")
    mine, other = tmp_path / "mine" / "1", tmp_path / "other" / "1"
    assert unpack(archive, digest, mine) == 0
    (mine / "bin" / "x").chmod(0o755)
    one = replace(program_of("garage"), prefix=str(mine), digest=f"sha256:{digest}")
    server = FakeTransport("cp-9")
    sent: list[tuple[bytes, str]] = []

    def unpacked(argv: tuple[str, ...], _: bytes) -> bytes:
        archive = argv[4]
        content = server.content(archive)
        sent.append((content, argv[5]))
        (tmp_path / "sent.tar.gz").write_bytes(content)
        assert unpack(tmp_path / "sent.tar.gz", argv[5], other, argv[7]) == 0
        return b""

    server.answer("sh", "-c", programs._UPLOADED, with_=1)
    server.answer("sh", "-c", programs._UNPACK, with_=unpacked)
    programs.Installed(one, None).apply(server.host())
    assert {path.relative_to(other).as_posix(): path.read_text() for path in other.rglob("*") if path.is_file()} == {
        "bin/x": "program", ".digest": f"{digest}\n",
    }  # fmt: skip
    assert (other / "bin" / "x").stat().st_mode & 0o777 == 0o755
    (mine / ".digest").write_text("another\n")
    with pytest.raises(Error) as caught:
        programs.Installed(one, None).apply(server.host())
    assert caught.value.code == "BundleMissing"
    assert len(sent) == 1


def test_a_program_is_unpacked_whole_in_place_of_another_build(tmp_path: Path) -> None:
    target = tmp_path / "programs" / "x" / "1"
    for left in (".new.0123456789", ".new.0123456789.old"):
        (target.parent / left / "bin").mkdir(parents=True)  # of runs that were killed
    for text in ("one", "two"):
        archive, digest = layer(tmp_path / text, text)
        assert unpack(archive, digest, target) == 0
        assert (target / "bin" / "x").read_text() == text
        assert (target / ".digest").read_text() == f"{digest}\n"
        assert not archive.exists()
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_builds_of_before_that_nothing_uses_go_when_another_is_unpacked(tmp_path: Path) -> None:
    """Every release and every update of a library is another build: nobody else would ever remove one."""
    programs_of_x, link = tmp_path / "disk" / "x", tmp_path / "opt"
    names = (tmp_path / "programs.json", tmp_path / "units", tmp_path / "etc")
    for old in ("unused", "recorded", "in-a-unit", "in-etc", "runs"):
        (programs_of_x / old).mkdir(parents=True)
    link.symlink_to(tmp_path / "disk")
    target = link / "x" / "new"
    archive, digest = layer(tmp_path / "bundle", "new")
    copy = archive.read_bytes()
    assert unpack(archive, digest, target, names=names) == 0
    assert len(list(programs_of_x.iterdir())) == 6, "where a file cannot be read nothing is known"
    names[0].write_text(json.dumps({"programs": {"x": {"prefix": f"{link}/x/recorded"}}}))
    for folder, old in zip(names[1:], ("in-a-unit", "in-etc"), strict=True):
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "file").write_text(f"ExecStart={link}/x/{old}/bin/x\n")
    shutil.copy("/bin/sleep", programs_of_x / "runs")
    with subprocess.Popen([link / "x" / "runs" / "sleep", "60"]) as process:
        archive.write_bytes(copy)
        assert unpack(archive, digest, target, names=names) == 0
        process.kill()
    assert {path.name for path in programs_of_x.iterdir()} == {"new", "recorded", "in-a-unit", "in-etc", "runs"}


def test_a_damaged_archive_leaves_the_program_that_was_there(tmp_path: Path) -> None:
    target = tmp_path / "programs" / "x" / "1"
    archive, digest = layer(tmp_path / "one", "one")
    assert unpack(archive, digest, target) == 0
    archive, digest = layer(tmp_path / "two", "two")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1])
    assert unpack(archive, digest, target) != 0
    assert unpack(archive, hashlib.sha256(whole[:-1]).hexdigest(), target) != 0, "cut before its digest was taken"
    assert (target / "bin" / "x").read_text() == "one"
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_the_login_in_the_map_is_what_a_client_sends() -> None:
    """As haproxy.cfg computes it: the SHA-256 of the second word of the header, as it came."""
    header = "Basic cHVzaDp0aGUtcHVzaC1wYXNzd29yZA=="  # push:the-push-password
    line = f"{hashlib.sha256(header.split()[1].encode()).hexdigest()} push"
    assert line in installed("ipv4-zot").servers["cp-1"].content("/etc/kubeadm-registry/haproxy/auth.map").decode()
    assert login_digest("push", "the-push-password") == line.split(maxsplit=1)[0]


@pytest.mark.parametrize("case", CASES)
def test_haproxy_accepts_its_configuration(case: str, tmp_path: Path) -> None:
    program = real_haproxy.program()
    server = next(iter(installed(case).servers.values()))
    for path, file in server.files().items():
        if path.startswith(paths.ETC):
            target = Path(f"{tmp_path}{path}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.content.replace(paths.ETC.encode(), f"{tmp_path}{paths.ETC}".encode()))
    config = f"{tmp_path}{paths.ETC}/haproxy/haproxy.cfg"
    done = subprocess.run(
        [program, "-c", "-f", config], capture_output=True, text=True, check=False, env={**os.environ, "INSTANCE": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr


def test_keepalived_restarts_last_where_the_address_is() -> None:
    fake = FakeCluster.of(config.SMALLEST)
    cluster = fake.cluster
    assert [host.name for host in holder_last(cluster)] == ["cp-1", "cp-2", "cp-3"], "nobody has it"
    fake.servers["cp-1"].answer(
        "ip", "-oneline", "address", "show", "-tentative", "to", "10.0.0.10/32", with_="2: eth0 inet ..."
    )
    assert [host.name for host in holder_last(cluster)] == ["cp-2", "cp-3", "cp-1"]


def test_what_must_be_steady_begins_anew_after_each_flaw(monkeypatch: pytest.MonkeyPatch) -> None:
    course = {0.0: "apart", 0.5: None, 1.0: None, 1.4: "apart", 2.0: None, 2.9: None, 3.0: None}
    stable = garage.Stable(lambda _: course[garage.time.monotonic()], 1.0)
    said = {}
    for now in course:
        monkeypatch.setattr(garage.time, "monotonic", lambda now=now: now)
        said[now] = stable(FakeTransport().host())
    wait = "healthy; waiting another {} s to confirm".format
    assert list(said.values()) == ["apart", wait("1.0"), wait("0.5"), "apart", wait("1.0"), wait("0.1"), None]


@pytest.mark.parametrize("changed", ["proxy: {anonymousPull: false}", "vip: {address: 10.0.0.9}"])
def test_a_setting_of_the_proxy_is_taken_up_without_a_restart(changed: str) -> None:
    """A restart would cut every transfer that is under way."""
    fake = FakeCluster.of(config.SMALLEST)
    host = fake.cluster.leader
    server = fake.servers[host.name]
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    before = len(server.acts)
    key = changed.partition(":")[0]
    text = "".join(line for line in config.SMALLEST.splitlines(keepends=True) if not line.strip().startswith(key))
    fake.config = config.parse(f"{text}  {changed}\n", "cluster.yaml")
    run((PROXY,), fake.cluster, Recorder())
    acts = [act for act in server.acts[before:] if "haproxy" in act and act.startswith(("reload", "restart", "start"))]
    assert acts == [f"reload {unit}" for unit in paths.HAPROXY_UNITS]


@pytest.mark.parametrize(
    ("holders", "absent", "said"),
    [
        (("cp-1",), False, None),
        (("cp-1",), True, None),
        ((), False, "no node holds 10.0.0.10"),
        # It may be at the server that does not answer by SSH.
        ((), True, None),
        (("cp-1", "cp-2"), False, "cp-1, cp-2 hold 10.0.0.10"),
        (("cp-1", "cp-2"), True, "cp-1, cp-2 hold 10.0.0.10"),
    ],
)
def test_one_server_has_the_virtual_ip_or_may_have_it(holders: tuple[str, ...], absent: bool, said: str | None) -> None:
    fake = FakeCluster.of(config.SMALLEST)
    for name, server in fake.servers.items():
        shown = "2: eth0 inet 10.0.0.10/32" if name in holders else ""
        server.answer("ip", "-oneline", "address", "show", "-tentative", "to", "10.0.0.10/32", with_=shown)
    cluster = fake.cluster
    if absent:
        cluster = replace(cluster, hosts=cluster.hosts[:2], absent={"cp-3": "no route"})
    [wait] = one_holder(cluster, cluster.leader)
    assert wait.diff(cluster.leader) == said
