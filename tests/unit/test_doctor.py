"""The rules of ``doctor``: a healthy registry has no finding, and each thing that is spoiled has its own."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from kubeadm_registry import config, doctor, paths, secrets, status
from kubeadm_registry.agent.document import State
from kubeadm_registry.cli import doctor as command
from kubeadm_registry.components import garage, haproxy, network, programs, retention
from kubeadm_registry.containerd.survey import UNIT as CONTAINERD
from kubeadm_registry.doctor import facts as facts_module
from kubeadm_registry.doctor.diagnosis import KINDS
from kubeadm_registry.doctor.facts import Facts, FileSystem, FirewallRule, Listener, Unit, parse, units
from kubeadm_registry.doctor.rules import nodes as node_rules
from kubeadm_registry.doctor.snapshot import NodeSnapshot, Snapshot
from kubeadm_registry.engine.changes import File, Running
from kubeadm_registry.engine.look import Difference
from kubeadm_registry.engine.report import JsonLines
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import ConnectionFailed, Problem
from kubeadm_registry.members import PATH as MEMBERS
from kubeadm_registry.members import Members
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.status import NodeStatus
from tests.unit import doctor_page
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.healthy import healthy
from tests.unit.here import here, stub
from tests.unit.test_docs import refusal

THREE = config.parse(config.SMALLEST, "x")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
VIP = THREE.spec.vip.address
DATA = THREE.spec.data_directory
CLOCK = NOW.timestamp()
NAMES = ("cp-1", "cp-2", "cp-3")
SERVICES = dict.fromkeys(("network", "garage", "zot", "haproxy", "agent", "keepalived"), "active")


def unit(name: str, **properties: str) -> Unit:
    there = {"Id": name, "LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success",
             "UnitFileState": "enabled", "DropInPaths": ""}  # fmt: skip
    return Unit(name, there | properties, ("its last words",) if properties else ())


def agent(name: str, **changes: Any) -> State:
    peers = {other: {"presence": "fresh", "age": 0.1} for other in NAMES if other != name}
    told = {"fit": True, "level": 0, "quorum": {"storage": 3}, "conditions": [], "clock_off": 0.01, "guarded": True,
            "peers": peers, "time": CLOCK}  # fmt: skip
    return cast(State, told | changes)


def well(name: str) -> NodeSnapshot:
    seen = NodeStatus(name, services=SERVICES, agent=agent(name), vip=(VIP,) * (name == "cp-1"),
                      certificate_ends=NOW + timedelta(days=900), authority_ends=NOW + timedelta(days=3000),
                      guarded=True)  # fmt: skip
    known = {one: unit(one) for one in units(THREE)} | {
        retention.DAILY: unit(retention.DAILY, ActiveState="inactive", SubState="dead")
    }
    says = Facts(
        clock=CLOCK, units=known, space=FileSystem(500 * 2**30, 300 * 2**30, "/", "df"), secrets="600 root:root",
        inodes=FileSystem(10**6, 900_000, "/", "df"), mount="/ /dev/sda1 ext4 rw,relatime",
        pushes={"closed": 0, "full": 0},
        tree=frozenset(facts_module._TREE), hardware=frozenset({f"02:00:00:00:00:0{name[-1]}"}),
        answers={VIP: ["02:00:00:00:00:01"]}, vrrp={"10.0.0.11": "02:00:00:00:00:01"},
    )  # fmt: skip
    return NodeSnapshot(name, THREE.spec.node(name).address, seen, seen, says, stores=True, made=True)


def snapshot(*, heard: bool = False, **changed: NodeSnapshot) -> Snapshot:
    """Three nodes, of which those given (``cp_2``) are others than healthy. *heard*: by their agents, if by nobody."""
    nodes = [changed.get(name.replace("-", "_"), well(name)) for name in NAMES]
    away = {one.name for one in nodes if one.facts is None and not heard}
    peers = {name: {"presence": "silent" if name in away else "fresh", "age": 9.0} for name in NAMES}
    if away:
        nodes = [with_agent(one, peers=peers) if one.facts is not None else one for one in nodes]
    judged, earlier = (
        status.judge(THREE, [getattr(one, which) for one in nodes], CLOCK) for which in ("status", "earlier")
    )
    return Snapshot(THREE, nodes, judged, earlier, moment=NOW)


def with_facts(node: NodeSnapshot, **changes: Any) -> NodeSnapshot:
    assert node.facts is not None
    return replace(node, facts=replace(node.facts, **changes))


def with_unit(node: NodeSnapshot, name: str, **properties: str) -> NodeSnapshot:
    assert node.facts is not None
    return with_facts(node, units={**node.facts.units, name: unit(name, **properties)})


def with_status(node: NodeSnapshot, **changes: Any) -> NodeSnapshot:
    return replace(node, status=replace(node.status, **changes), earlier=replace(node.earlier, **changes))


def with_agent(node: NodeSnapshot, **changes: Any) -> NodeSnapshot:
    return with_status(node, agent=agent(node.name, **changes))


def gone(node: NodeSnapshot) -> NodeSnapshot:
    silent = NodeStatus(node.name, reachable=False, trouble="no route to host")
    return replace(node, status=silent, earlier=silent, facts=None, stores=False, made=False)


def differs(node: NodeSnapshot, *changes: Difference) -> NodeSnapshot:
    return replace(node, differences=changes)


def file(path: str, phase: str = "proxy", text: str = "--- a\n+++ b\n-old\n+new") -> Difference:
    return Difference(phase, "cp-2", File(path, b""), text)


def problem(check: str, text: str) -> Problem:
    return Problem(check, "cp-2", text)


def restarts(name: str, count: int = 3) -> list[str]:
    return [f"{CLOCK - number:.6f} cp-2 systemd[1]: {name}: Scheduled restart job, restart counter is at {number}."
            for number in range(count)]  # fmt: skip


HAPROXY = paths.HAPROXY_UNITS[0]
AGENT, DROP_IN = paths.unit("agent"), "/etc/systemd/system/kubeadm-registry-agent.service.d/x.conf"
TAKEN = "port 5000/tcp is in use by python3 (pid 77) at 0.0.0.0:5000; stop it or change its port"
BLOCKED = "cannot connect to cp-3 (10.0.0.13) on TCP port 3901; open it in the firewall of cp-3"
DROPS = FirewallRule("inet site", "in", "tcp dport 3901 drop # handle 4")
NO_VRRP = FirewallRule("inet site", "in", "meta l4proto vrrp drop # handle 5")
NO_HEARTBEATS = FirewallRule("inet site", "in", "ip saddr 10.0.0.11 udp dport 5444 drop # handle 6")
HTTP = Listener(5000, "0.0.0.0:5000", "python3", "77", "site.service", "ss -ltnp: 0.0.0.0:5000")
Spoil = Callable[[NodeSnapshot], NodeSnapshot]
#: What is spoiled on cp-2; the code of the finding, and words of its command.
CASES: dict[str, tuple[Spoil, str, str]] = {
    "stopped": (lambda one: with_unit(one, AGENT, ActiveState="inactive", SubState="dead"), "ServiceStopped",
                f"systemctl start {AGENT}"),
    "masked": (lambda one: with_unit(one, AGENT, LoadState="masked", ActiveState="inactive", UnitFileState="masked"),
               "ServiceMasked", f"systemctl unmask {AGENT}"),
    "failed": (lambda one: with_unit(one, AGENT, ActiveState="failed", Result="exit-code"), "ServiceFailed",
               f"systemctl restart {AGENT}"),
    "no unit file": (lambda one: with_unit(one, AGENT, LoadState="not-found", ActiveState="inactive"), "UnitMissing",
                     "kubeadm-registry init"),
    "crash loop": (lambda one: with_unit(one, AGENT, ActiveState="activating", SubState="auto-restart"),
                   "ServiceCrashLoops", "journalctl"),
    "crash loop, seen while it runs": (lambda one: with_facts(one, manager=restarts(AGENT)), "ServiceCrashLoops", ""),
    "broken by a drop-in": (
        lambda one: with_unit(one, AGENT, ActiveState="failed", DropInPaths=DROP_IN), "UnitBroken", f"rm {DROP_IN}"),
    "a drop-in": (lambda one: with_unit(one, AGENT, DropInPaths=DROP_IN), "UnitOverridden", f"rm {DROP_IN}"),
    "containerd": (lambda one: with_unit(one, CONTAINERD, ActiveState="inactive"), "ContainerdStopped",
                   "systemctl start containerd"),
    "disabled": (
        lambda one: differs(with_unit(one, AGENT, UnitFileState="disabled"),
                            Difference("agent", "cp-2", Running(AGENT, ()), f"{AGENT}: is enabled")),
        "ServiceDisabled", f"systemctl enable {AGENT}"),
    "stale": (
        lambda one: differs(one, Difference("agent", "cp-2", Running(AGENT, ()),
                                            f"{AGENT}: restarts, because it runs with earlier versions of x")),
        "ServiceStale", "kubeadm-registry init"),
    "out of memory": (
        lambda one: with_facts(one, manager=[
            f"{CLOCK} cp-2 systemd[1]: {AGENT}: A process of this unit has been killed by the OOM killer."]),
        "OutOfMemory", "systemd-cgtop"),
    "nothing logged": (lambda one: with_facts(one, requests=False), "RequestsNotLogged",
                       "systemctl restart systemd-journald"),
    "short of memory": (lambda one: with_facts(one, pressure={"some": 60.0, "full": 40.0}), "MemoryPressure", ""),
    "retention failed": (lambda one: with_unit(one, retention.DAILY, ActiveState="failed", Result="exit-code"),
                         "RetentionFailed", "retention plan"),
    "reinstalled": (lambda one: replace(with_facts(one, tree=frozenset(), secrets=""), stores=False, made=False),
                    "NodeNotInstalled", "init --bundle"),
    "init incomplete": (
        lambda one: with_unit(with_unit(one, AGENT, LoadState="not-found", ActiveState="inactive"),
                              paths.unit("keepalived"), LoadState="not-found", ActiveState="inactive"),
        "InitIncomplete", "kubeadm-registry init"),
    "configuration removed": (
        lambda one: differs(with_facts(one, tree=frozenset({paths.PROGRAMS, f"{paths.UNITS}/{AGENT}"}), secrets=""),
                            file(haproxy.CONFIG)),
        "ConfigurationRemoved", "kubeadm-registry init"),
    "configuration damaged": (
        lambda one: differs(with_unit(one, paths.HAPROXY_UNITS[0], ActiveState="failed", Result="exit-code"),
                            file(haproxy.CONFIG)),
        "ConfigDamaged", "kubeadm-registry init"),
    "configuration damaged, while it starts again": (
        lambda one: differs(with_facts(with_unit(one, HAPROXY, ActiveState="activating", SubState="start"),
                                       manager=restarts(HAPROXY)), file(haproxy.CONFIG)),
        "ConfigDamaged", "kubeadm-registry init"),
    "stopped and killed": (lambda one: with_unit(one, garage.UNIT, ActiveState="failed", Result="timeout"),
                           "ServiceStopped", f"systemctl start {garage.UNIT}"),
    "configuration edited": (lambda one: differs(one, file(haproxy.CONFIG)), "ConfigChanged", "init --dry-run --diff"),
    "unit edited": (lambda one: differs(one, file(f"{paths.UNITS}/{AGENT}", "agent")), "UnitChanged", "init"),
    "mirrors": (lambda one: differs(one, file("/etc/containerd/certs.d/x/hosts.toml", "containerd")),
                "MirrorsChanged", "init phase containerd"),
    "secrets missing": (lambda one: with_facts(one, secrets=""), "SecretsMissing", "kubeadm-registry init"),
    "secrets exposed": (lambda one: with_facts(one, secrets="644 root:root"), "SecretsExposed", "chmod 600"),
    "password exposed": (
        lambda one: differs(one, file("x", "containerd", "/etc/containerd/certs.d/x/hosts.toml: mode 644 -> 600")),
        "SecretsExposed", "init phase containerd"),
    "certificate of another CA": (
        lambda one: with_status(one, certificate_flaw=("OtherAuthority", "cp-2 serves another")), "CertificateWrong",
        "kubeadm-registry init"),
    "certificate expired": (lambda one: with_status(one, certificate_ends=NOW - timedelta(days=1)),
                            "CertificateExpired", "kubeadm-registry init"),
    "certificate ends": (lambda one: with_status(one, certificate_ends=NOW + timedelta(days=9)), "CertificateExpires",
                         "kubeadm-registry init"),
    "certificate not loaded": (lambda one: with_status(one, certificate_flaw=("NotLoaded", "cp-2 serves an older")),
                               "CertificateNotLoaded", "systemctl reload"),
    "CA ends": (lambda one: with_status(one, authority_ends=NOW + timedelta(days=90)), "CAExpires", ""),
    "run killed": (lambda one: with_facts(one, unfinished=["/etc/x/.y.abcdefghij.kubeadm-registry"]),
                   "RunInterrupted", "kubeadm-registry init"),
    "run hangs": (
        lambda one: with_facts(one, running=True, lock="me@there pid 1, since 2029-12-31T20:00:00Z, process 4711"),
        "RunHangs", "kill 4711  # unless me@there pid 1 still works"),
    "not mounted": (lambda one: replace(with_facts(one, unmounted=[f"{DATA} /dev/sdb1"]), stores=False),
                    "DataNotMounted", f"mount {DATA}"),
    "data gone": (lambda one: replace(one, stores=False), "DataMissing", "findmnt"),
    "read-only": (lambda one: with_facts(one, mount=f"{DATA} /dev/sdb1 ext4 ro,relatime"), "DataReadOnly",
                  f"mount -o remount,rw {DATA}"),
    "refuses writes": (lambda one: with_facts(one, mount=f"{DATA} /dev/sdb1 ext4 rw,abort,emergency_ro"),
                       "DataReadOnly", "reboot"),
    "cannot be written": (lambda one: with_agent(one, data={"writable": False}), "DataReadOnly", "journalctl -k"),
    "full": (lambda one: with_facts(one, space=FileSystem(500 * 2**30, 2**30, "/", "df")), "DiskFull",
             "images delete"),
    "fills": (lambda one: with_facts(one, space=FileSystem(500 * 2**30, 50 * 2**30, "/", "df")), "DiskFills",
              "images delete"),
    "no inodes": (lambda one: with_facts(one, inodes=FileSystem(10**6, 3, "/", "df")), "InodesExhausted",
                  "du --inodes"),
    "pushes closed": (lambda one: with_facts(one, pushes={"closed": int(CLOCK) + 300, "full": 0}), "PushesClosed",
                      "images collect"),
    "no routes": (
        lambda one: differs(one, Difference("network", "cp-2", network.Routes(), "route to cp-3: made (missing)")),
        "RoutesMissing", f"systemctl reload {network.UNIT}"),
    "down": (gone, "NodeDown", "power cp-2 on"),
    "clock": (lambda one: with_agent(one, clock_off=2.0), "ClockOff", "chronyc makestep"),
    "port taken": (
        lambda one: replace(with_facts(one, listeners=[HTTP]), problems=[problem("Ports", TAKEN)]),
        "PortTaken", "systemctl stop site.service"),
    "port blocked": (
        lambda one: replace(with_facts(one, firewall=[DROPS]), problems=[problem("Firewall", BLOCKED)]),
        "PortBlocked", "nft delete rule inet site in handle 4"),
    "peer silent": (
        lambda one: with_agent(one, peers={"cp-1": {"presence": "silent"}, "cp-3": {"presence": "fresh"}}),
        "PeerSilent", "ping"),
    "two holders": (lambda one: with_status(one, vip=(VIP,)), "VIPTwice", ""),
    "foreign holder": (lambda one: with_facts(one, answers={VIP: ["02:00:00:00:00:01", "02:99:00:00:00:01"]}),
                       "VIPForeign", "ip address del"),
    "router id": (lambda one: with_facts(one, vrrp={"10.0.0.99": "02:99:00:00:00:01"}), "RouterIDTaken",
                  "virtual_router_id"),
    "unguarded": (lambda one: with_status(with_agent(one, guarded=False), guarded=False), "Unguarded",
                  f"systemctl restart {network.GUARD_UNIT}"),
    "time not synchronized": (lambda one: replace(one, problems=[problem("TimeSync", "no time service is running")]),
                              "TimeSync", "preflight"),
    "another cluster file": (lambda one: replace(one, problems=[problem("SameCluster", "spec.nodes: differ")]),
                             "ClusterFileDiffers", "config validate"),
    "agent silent": (lambda one: with_status(one, agent=None), "AgentSilent", f"systemctl restart {AGENT}"),
    "storage hangs": (lambda one: with_agent(one, conditions=["StorageDown"], fit=False), "ServiceHangs",
                      f"systemctl restart {garage.UNIT}"),
    "unfit": (lambda one: with_agent(one, fit=False), "NodeUnfit", "journalctl"),
    "adverts lost": (
        lambda one: with_facts(with_agent(one, conditions=["AdvertsLost"]), firewall=[NO_VRRP]),
        "AdvertsLost", "nft delete rule inet site in handle 5"),
    "copying": (lambda one: with_agent(one, conditions=["StorageCopying"]), "StorageCopying", "status"),
    "lost blocks": (lambda one: with_agent(one, storage_lost=3), "BlocksLost", "kubeadm-registry recover"),
    "canary": (lambda one: with_agent(one, conditions=["CanaryMissing"]), "CanaryMissing", "kubeadm-registry verify"),
}  # fmt: skip


def codes(found: doctor.Diagnosis) -> list[str]:
    return [one.kind.code for one in found.findings]


@pytest.mark.parametrize("name", [HAPROXY, AGENT])
def test_a_log_without_requests_is_a_finding_only_where_something_writes_it(name: str) -> None:
    spoilt = with_unit(with_facts(well("cp-2"), requests=False), name, ActiveState="inactive", SubState="dead")
    assert codes(doctor.diagnose(snapshot(cp_2=spoilt))) == ["ServiceStopped"]


def test_routes_that_no_unit_has_made_are_no_finding_of_their_own() -> None:
    lost = differs(well("cp-2"), Difference("network", "cp-2", network.Routes(), "route to cp-3: made (it is missing)"))
    stopped = with_unit(lost, network.UNIT, ActiveState="inactive", SubState="dead")
    assert codes(doctor.diagnose(snapshot(cp_2=stopped))) == ["ServiceStopped"]


def test_an_agent_that_cannot_write_is_not_restarted_before_there_is_room() -> None:
    """It goes on as it is where /run is full; a new one cannot say that its node is fit, and the VIP would move."""
    (finding,) = doctor.diagnose(snapshot(cp_2=with_status(well("cp-2"), agent=None))).findings
    assert [str(one).partition("# ")[2].split("  #")[0] for one in finding.fix] == [
        f"df {paths.RUN}", f"systemctl restart {AGENT}",
    ]  # fmt: skip


def test_a_healthy_registry_has_no_finding() -> None:
    found = doctor.diagnose(snapshot())
    assert (found.state, found.findings) == ("healthy", [])


@pytest.mark.parametrize(("spoil", "code", "fix"), CASES.values(), ids=CASES)
def test_what_is_spoiled_is_found_alone(spoil: Spoil, code: str, fix: str) -> None:
    found = doctor.diagnose(snapshot(cp_2=spoil(well("cp-2"))))
    assert codes(found) == [code]
    (finding,) = found.findings
    assert any(fix in str(one) for one in finding.fix)
    assert finding.evidence
    assert finding.node in ("cp-2", "") or code == "PeerSilent", "which is about two nodes"
    assert found.state == ("down" if code == "VIPTwice" else "degraded")


@pytest.mark.parametrize("service", ["chronyc", "systemctl"])
def test_a_clock_is_set_by_either_time_service(tmp_path: Path, service: str) -> None:
    """Debian and Ubuntu have systemd-timesyncd unless somebody installs chrony."""
    measured = with_agent(well("cp-2"), clock_off=2.0)
    seen = replace(well("cp-2"), problems=[problem("Clock", "the clock of cp-2 is 2.0 s ahead of that of cp-1, and")])
    for node in (measured, seen):
        (finding,) = doctor.diagnose(snapshot(cp_2=node)).findings
        stub(tmp_path, service, 'echo "$@" > "$0.said"')
        sh = subprocess.run(["/bin/sh", "-c", finding.fix[0].line], env={"PATH": str(tmp_path)}, check=False)
        assert sh.returncode == 0
        said = (tmp_path / f"{service}.said").read_text()
        assert said == {"chronyc": "makestep\n", "systemctl": "restart systemd-timesyncd\n"}[service]


@pytest.mark.parametrize("ruled", [True, False])
def test_of_two_that_count_each_other_silent_the_one_with_the_rule_is_deaf(ruled: bool) -> None:
    """Who is not heard is not answered either, so a filter of one way looks the same from both sides."""
    one = with_agent(well("cp-1"), peers={"cp-2": {"presence": "silent"}, "cp-3": {"presence": "fresh"}})
    two = with_agent(well("cp-2"), peers={"cp-1": {"presence": "silent"}, "cp-3": {"presence": "fresh"}})
    if ruled:
        two = with_facts(two, firewall=[NO_HEARTBEATS])
    (finding,) = doctor.diagnose(snapshot(cp_1=one, cp_2=two)).findings
    said = "cp-2 does not hear the agent of cp-1" if ruled else "the agents of cp-1 and cp-2 do not hear each other"
    assert (finding.kind.code, finding.message) == ("PeerSilent", said)
    assert ("nft delete rule inet site in handle 6" in str(finding.fix[0])) == ruled


@pytest.mark.parametrize(
    ("rule", "fix"),
    [
        (FirewallRule("inet firewalld", "filter_INPUT", "reject with icmpx admin-prohibited # handle 180"),
         "cp-2# firewall-cmd --permanent --add-port=3901/tcp --add-port=5000/tcp --add-port=5443/tcp "
         "--add-port=5445/tcp --add-port=5444/udp --add-protocol=112 && firewall-cmd --reload"),
        (FirewallRule("ip filter", "ufw-skip-to-policy-input", "counter packets 0 bytes 0 drop # handle 60"),
         "cp-2# ufw allow 3901,5000,5443,5445/tcp && ufw allow 5444/udp  # and VRRP"),
        (FirewallRule("inet filter", "input", "type filter hook input priority filter; policy drop;"),
         "cp-2# nft list ruleset  # let in what docs/requirements.md, Ports"),
    ],
)  # fmt: skip
def test_a_firewall_that_names_no_port_of_ours_is_opened(rule: FirewallRule, fix: str) -> None:
    """By its own program: what lets in only what it names has no rule that could be deleted."""
    two = with_facts(well("cp-2"), firewall=[rule])
    one = replace(well("cp-1"), problems=[Problem("Firewall", "cp-1", BLOCKED.replace("cp-3", "cp-2"))])
    (blocked,) = doctor.diagnose(snapshot(cp_1=one, cp_2=two)).findings
    assert (blocked.kind.code, len(blocked.fix)) == ("PortBlocked", 1)
    assert str(blocked.fix[0]).startswith(fix)
    deaf = with_agent(two, peers={"cp-1": {"presence": "silent"}, "cp-3": {"presence": "fresh"}})
    (silent,) = doctor.diagnose(snapshot(cp_2=deaf)).findings
    ping, allow = map(str, silent.fix)
    assert (silent.kind.code, ping) == ("PeerSilent", "cp-2# ping -c 3 10.0.0.11")
    assert allow.startswith(fix)


@pytest.mark.parametrize("spoil", [spoil for spoil, _, _ in CASES.values()], ids=CASES)
def test_each_command_for_the_workstation_has_all_that_it_requires(spoil: Spoil) -> None:
    for finding in doctor.diagnose(snapshot(cp_2=spoil(well("cp-2")))).findings:
        for one in finding.fix:
            if one.line.startswith("kubeadm-registry "):
                words = shlex.split(one.with_file(Path("a site.yaml")).line, comments=True)
                assert refusal(words[1:]) == ""
                assert words[-2:] == ["-f", "a site.yaml"]
            else:
                assert one.with_file(Path("a site.yaml")) == one


def test_every_kind_is_tried() -> None:
    tried = {code for _, code, _ in CASES.values()}
    elsewhere = {
        "NotInstalled", "ProgramsMissing", "SecretsUnusable", "CAExpired", "NoQuorum", "SSHFails", "VIPNowhere",
        "RetentionPaused", "Preflight", "StoragePartial", "CanaryBroken", "NoMajority", "MembersDiffer", "NoTimer",
        "HiddenHolder", "StatusNotHealthy",
    }  # fmt: skip
    assert {kind.code for kind in KINDS} - tried == elsewhere
    assert len({kind.code for kind in KINDS}) == len(KINDS), "a code stands for one kind"


def test_a_virtual_ip_that_moves_meanwhile_is_no_finding() -> None:
    first, second = well("cp-1"), well("cp-2")
    moved = snapshot(
        cp_1=replace(first, status=replace(first.status, vip=())),
        cp_2=replace(second, status=replace(second.status, vip=(VIP,))),
    )
    assert codes(doctor.diagnose(moved)) == []


def test_no_node_holds_the_virtual_ip() -> None:
    found = doctor.diagnose(snapshot(cp_1=with_status(well("cp-1"), vip=())))
    assert (codes(found), found.state) == (["VIPNowhere"], "down")


def test_what_the_agent_reports_for_a_moment_only_is_no_finding() -> None:
    node = well("cp-2")
    flickers = replace(node, status=replace(node.status, agent=agent("cp-2", fit=False, conditions=["StorageDown"])))
    assert codes(doctor.diagnose(snapshot(cp_2=flickers))) == []


def test_a_symptom_elsewhere_is_a_warning_behind_the_error_that_may_cause_it() -> None:
    stopped = with_unit(well("cp-2"), garage.UNIT, ActiveState="inactive", SubState="dead")
    partial = with_agent(well("cp-1"), conditions=["StoragePartial"])
    found = doctor.diagnose(snapshot(cp_1=partial, cp_2=stopped))
    assert [(one.kind.code, one.kind.severity) for one in found.findings] == [
        ("ServiceStopped", "error"),
        ("StoragePartial", "warning"),
    ]


@pytest.mark.parametrize("spoil", ["containerd", "mirrors", "secrets exposed", "secrets missing"])
def test_what_serves_without_it_explains_no_symptom(spoil: str) -> None:
    """Who saw only that containerd is stopped would look no further for why nothing serves."""
    two = CASES[spoil][0](with_agent(well("cp-2"), conditions=["StorageDown"], fit=False))
    found = doctor.diagnose(snapshot(cp_1=with_status(well("cp-1"), vip=()), cp_2=two))
    assert found.state == "down"
    assert {one.kind.code for one in found.findings if one.kind.severity == "error"} >= {"VIPNowhere", "ServiceHangs"}


def test_what_status_reports_of_a_registry_that_is_down_is_told_beside_what_serves_without() -> None:
    seen = snapshot(cp_2=CASES["containerd"][0](well("cp-2")))
    for judged in (seen.judged, seen.judged_earlier):
        available = next(one for one in judged["conditions"] if one["type"] == "Available")
        available |= {"status": "False", "reason": "AddressAstray"}
    found = doctor.diagnose(seen)
    assert (found.state, codes(found)) == ("down", ["ContainerdStopped", "StatusNotHealthy"])


def test_that_nobody_holds_the_virtual_ip_is_told_beside_what_may_be_the_cause() -> None:
    two = CASES["stopped"][0](well("cp-2"))
    found = doctor.diagnose(snapshot(cp_1=with_status(well("cp-1"), vip=()), cp_2=two))
    assert [(one.kind.code, one.kind.severity) for one in found.findings] == [
        ("ServiceStopped", "error"),
        ("VIPNowhere", "warning"),
    ]


@pytest.mark.parametrize(("stores", "found"), [(False, ["DataNotMounted"]), (True, ["DataMounted"])])
def test_a_disk_that_is_not_mounted_is_told_once_and_also_where_old_data_is_below(
    stores: bool, found: list[str]
) -> None:
    spoilt = replace(
        with_facts(well("cp-2"), unmounted=[f"{DATA} /dev/sdb1"]), stores=stores,
        problems=[problem("DataMounted", f"{DATA} is in /etc/fstab and is not mounted")],
    )  # fmt: skip
    assert codes(doctor.diagnose(snapshot(cp_2=spoilt))) == found


def test_two_nodes_down_are_no_quorum() -> None:
    found = doctor.diagnose(snapshot(cp_2=gone(well("cp-2")), cp_3=gone(well("cp-3"))))
    assert sorted(codes(found)) == ["NoQuorum", "NodeDown", "NodeDown"]


def test_two_of_five_nodes_down_are_too_many_as_well() -> None:
    """More than half of them is there, and some of what has three copies has two of these on the others."""
    names = (*NAMES, "cp-4", "cp-5")
    more = "".join(f"    - {{name: {name}, address: 10.0.0.1{name[-1]}}}\n" for name in names[3:])
    five = config.parse(config.SMALLEST.replace("  vip:", f"{more}  vip:"), "x")
    for down in ((), ("cp-5",), ("cp-4", "cp-5")):
        nodes = [replace(well("cp-1"), name=name) for name in names]
        nodes = [gone(one) if one.name in down else one for one in nodes]
        found = [one.kind.code for one in node_rules.answering(Snapshot(five, nodes, {}, {}, moment=NOW))]
        assert found == ["NodeDown"] * len(down) + ["NoQuorum"] * (len(down) > 1)


def test_two_nodes_that_lost_everything_are_no_work_for_init() -> None:
    """It fills them from the third, and says nothing of images that this lacks, nor pauses retention."""
    bare = {
        name: replace(with_facts(well(name.replace("_", "-")), tree=frozenset(), secrets=""), stores=False, made=False)
        for name in ("cp_2", "cp_3")
    }
    found = doctor.diagnose(snapshot(**bare)).findings
    assert [one.kind.code for one in found] == ["NodeNotInstalled", "NodeNotInstalled"]
    assert all("recover --bundle" in one.fix[0].line and "`recover`" in one.kind.meaning for one in found)
    kept = {name: replace(one, stores=True) for name, one in bare.items()}
    assert all("init --bundle" in one.fix[0].line for one in doctor.diagnose(snapshot(**kept)).findings)


def test_a_node_that_only_ssh_does_not_reach_is_not_down() -> None:
    found = doctor.diagnose(snapshot(heard=True, cp_3=gone(well("cp-3"))))
    assert codes(found) == ["SSHFails"]


@pytest.mark.parametrize(
    "trouble",
    [
        "unknown host key: 10.0.0.13:22 presented the ed25519 key SHA256:x (compare the fingerprint)",
        "host key verification failed: 10.0.0.13:22 presented the ed25519 key SHA256:x, but y line 1 has another",
        "authentication failed for root at 10.0.0.13:22; tried: no key found",
        "the login of root at 10.0.0.13:22 by /root/.ssh/id_ed25519 was not answered within 60 s",
        "user admin can log in, but cannot run commands: This account is not available",
        "sudo failed for user admin: a password is required",
    ],
)
def test_a_node_that_lets_nobody_in_is_not_to_be_powered_on(trouble: str) -> None:
    """As all of them from a machine that does not know their keys yet."""
    away = NodeStatus("cp-3", reachable=False, trouble=trouble)
    refusing = {name: replace(gone(well(name.replace("_", "-"))), status=away, earlier=away)
                for name in ("cp_1", "cp_2", "cp_3")}  # fmt: skip
    found = doctor.diagnose(snapshot(**refusing))
    assert [(one.kind.code, one.kind.severity) for one in found.findings] == [("SSHFails", "error")] * 3
    assert [(one.fix[0].where, one.fix[0].line) for one in found.findings] == [
        ("workstation", f"ssh -v 10.0.0.1{number} true") for number in (1, 2, 3)
    ]
    assert found.state == "unknown"
    (single,) = doctor.diagnose(snapshot(cp_3=refusing["cp_3"])).findings
    assert (single.kind.code, "does not let this machine in" in single.message) == ("SSHFails", True)


def test_ssh_is_tried_as_the_cluster_file_says() -> None:
    ssh = "{user: me, port: 2222, identityFile: /my keys/id, knownHostsFile: ~/known}"
    spec = config.parse(f"{config.SMALLEST}  ssh: {ssh}\n", "x")
    seen = snapshot(heard=True, cp_3=gone(well("cp-3")))
    (found,) = doctor.diagnose(replace(seen, config=spec)).findings
    assert shlex.split(found.fix[0].line) == [
        "ssh", "-v", "-p", "2222", "-i", "/my keys/id", "-o", "UserKnownHostsFile=~/known", "me@10.0.0.13", "true",
    ]  # fmt: skip


def test_a_holder_that_only_ssh_does_not_reach_still_serves() -> None:
    peers = {name: {"presence": "fresh", "level": 0} for name in NAMES}
    others = {name: with_agent(well(name.replace("_", "-")), peers=peers) for name in ("cp_2", "cp_3")}
    found = doctor.diagnose(snapshot(heard=True, cp_1=gone(well("cp-1")), **others))
    assert (codes(found), found.state) == (["SSHFails"], "degraded")
    unheard = {name: with_facts(one, answers={VIP: []}) for name, one in others.items()}
    assert doctor.diagnose(snapshot(heard=True, cp_1=gone(well("cp-1")), **unheard)).state == "down"


def test_a_node_that_the_file_does_not_list_is_no_foreign_machine() -> None:
    """It holds the virtual IP: whoever took that away from it, as the fix said, would end the registry."""
    peers = {name: {"address": "10.0.0.14", "presence": "fresh", "level": 0} for name in (*NAMES, "cp-4")}
    on_wire = {"answers": {VIP: ["02:00:00:00:00:04"]}, "vrrp": {"10.0.0.14": "02:00:00:00:00:04"}}
    nodes = {
        name.replace("-", "_"): with_facts(
            with_status(with_agent(well(name), peers=peers, quorum={"storage": 4}), vip=()), **on_wire
        )
        for name in NAMES
    }
    nodes["cp_1"] = replace(nodes["cp_1"], problems=[problem("SameCluster", "spec.nodes: the file omits cp-4")])
    found = doctor.diagnose(snapshot(**nodes))
    assert (codes(found), found.state) == (["ClusterFileDiffers"], "degraded")


def test_no_node_answers() -> None:
    found = doctor.diagnose(snapshot(**{name.replace("-", "_"): gone(well(name)) for name in NAMES}))
    assert found.state == "unknown"
    assert set(codes(found)) == {"NodeDown", "NoQuorum"}


def test_nothing_installed() -> None:
    bare = {name: replace(with_facts(well(name), tree=frozenset(), secrets=""), stores=False, made=False)
            for name in NAMES}  # fmt: skip
    nodes = [with_status(one, agent=None, vip=(), services=dict.fromkeys(SERVICES, "inactive"), certificate_ends=None)
             for one in bare.values()]  # fmt: skip
    judged = status.judge(THREE, [one.status for one in nodes], CLOCK)
    found = doctor.diagnose(Snapshot(THREE, nodes, judged, judged, made=False, moment=NOW))
    assert codes(found) == ["NotInstalled"]
    assert found.state == "down"


def test_a_node_that_does_not_answer_before_the_first_init_is_named() -> None:
    bare = [replace(with_facts(well(name), tree=frozenset(), secrets=""), stores=False, made=False) for name in NAMES]
    nodes = [with_status(one, agent=None, vip=()) for one in bare[:2]] + [gone(bare[2])]
    judged = status.judge(THREE, [one.status for one in nodes], CLOCK)
    found = doctor.diagnose(Snapshot(THREE, nodes, judged, judged, made=False, moment=NOW))
    assert codes(found) == ["NotInstalled", "NodeDown"]


@pytest.mark.parametrize("condition", ["ClocksAgree", "CanLoseANode"])
def test_what_status_reports_is_never_no_problem(condition: str) -> None:
    seen = snapshot()
    for judged in (seen.judged, seen.judged_earlier):
        next(one for one in judged["conditions"] if one["type"] == condition)["status"] = "False"
    assert codes(doctor.diagnose(seen)) == ["StatusNotHealthy"]


SAID = """\
=== clock
1893456000
=== units
Id=kubeadm-registry-agent.service
LoadState=loaded
ActiveState=failed

Id=containerd.service
LoadState=loaded
ActiveState=active
=== words
--- kubeadm-registry-agent.service
cannot read it
=== manager
1893455999.5 cp-1 systemd[1]: kubeadm-registry-agent.service: Scheduled restart job, restart counter is at 1.
=== requests
none
=== space
Filesystem 1-blocks Used Available Capacity Mounted on
/dev/sda1 1000 400 600 40% /var
=== fstab
/ /dev/sda1
/var/lib/kubeadm-registry /dev/sdb1
/srv /dev/sdc1
=== mounts
/
=== tree
/etc/kubeadm-registry
=== secrets
600 root:root
=== lock
root@there pid 1, since 2029-12-31T20:00:00Z, process 4711
running
=== pushes
closed 7
full 0
=== pressure
some avg10=1.00 avg60=2.50 avg300=0 total=1
full avg10=1.00 avg60=1.50 avg300=0 total=1
=== links
2: eth0: <UP> mtu 1500 state UP\\    link/ether 02:00:00:00:00:01 brd ff:ff:ff:ff:ff:ff
=== listeners
0.0.0.0:5000 users:(("python3",pid=77,fd=3)) 0::/system.slice/site.service
10.0.0.11:5000 users:(("haproxy",pid=78,fd=3)) 0::/kubeadm_registry.slice/kubeadm-registry-haproxy@1.service
=== firewall
inet site|in|tcp dport { 3901, 5443 } drop # handle 4
=== wire
{"answers": {"10.0.0.10": ["02:00:00:00:00:09"]}, "vrrp": {"10.0.0.99": "02:00:00:00:00:09"}, "trouble": ""}
"""


@pytest.mark.parametrize(
    ("journal", "requests"),
    [
        ('echo \'x\'; echo \'{"client":"10.0.0.1","who":"anonymous"}\'', True),
        ("echo 'backend reads has no server available!'", False),
        (":", False),
        ("exit 1", None),
    ],
)
def test_the_part_of_the_question_that_looks_for_requests(tmp_path: Path, journal: str, requests: bool | None) -> None:
    begin, end = (facts_module._ASK.index(f'echo "=== {name}"') for name in ("requests", "space"))
    stub(tmp_path, "journalctl", f'case "$*" in *--since=-150s*@1.service*@2.service*) {journal} ;; *) exit 2 ;; esac')
    said = here(tmp_path).query("sh", "-c", facts_module._ASK[begin:end]).text
    assert parse(said, DATA).requests is requests


def test_an_answer_is_read() -> None:
    found = parse(SAID, "/var/lib/kubeadm-registry")
    assert found.units["kubeadm-registry-agent.service"].words == ["cannot read it"]
    assert found.units["containerd.service"].active
    assert found.space == FileSystem(1000, 600, "/var", "df /dev/sda1 1000 400 600 40% /var")
    assert found.unmounted == ["/var/lib/kubeadm-registry /dev/sdb1"]
    assert found.running
    assert found.requests is False
    assert found.pushes == {"closed": 7, "full": 0}
    assert found.pressure == {"some": 2.5, "full": 1.5}
    assert found.hardware == {"02:00:00:00:00:01"}
    assert [one.unit for one in found.listeners] == ["site.service", "kubeadm-registry-haproxy@1.service"]
    assert [one.ours for one in found.listeners] == [False, True]
    assert found.firewall[0].handle == "4"
    assert found.firewall[0].concerns("tcp", [5443])
    assert not found.firewall[0].concerns("tcp", [5000])
    assert found.answers == {"10.0.0.10": ["02:00:00:00:00:09"]}


@pytest.mark.parametrize(
    ("line", "space"),
    [
        ("tank a/b 1000 400 600 40% /var", FileSystem(1000, 600, "/var", "df tank a/b 1000 400 600 40% /var")),
        ("/dev/sda1  0 0   0   - /my disk ", FileSystem(0, 0, "/my disk", "df /dev/sda1 0 0 0 - /my disk")),
        ("nas:/a share - - - - /srv", None),
    ],
)
def test_a_disk_that_is_full_is_seen_whatever_its_name(line: str, space: FileSystem | None) -> None:
    assert parse(f"=== space\nFilesystem 1-blocks\n{line}\n", DATA).space == space


def test_of_several_mounts_on_one_directory_the_last_one_counts() -> None:
    """findmnt shows them in this order: an automount point, and the disk on it."""
    said = f"=== mount\n{DATA} systemd-1 autofs rw,relatime\n{DATA} /dev/sdb1 ext4   ro,relatime\n"
    assert parse(said, DATA).mount == f"{DATA} /dev/sdb1 ext4 ro,relatime"


def test_a_node_that_says_nothing_is_read_as_well() -> None:
    assert parse("", DATA) == parse("=== nothing\n", DATA)
    assert parse("", DATA).units == {}


#: containerd's phase asks what these hosts do not know.
COMPARED = tuple(phase for phase in INIT if phase.name not in ("containerd", "verify"))


def examine(fake: FakeCluster) -> Snapshot:
    return doctor.examine(fake.config, fake.cluster_hosts(), {}, COMPARED)


@pytest.fixture
def said(installed: FakeCluster) -> FakeCluster:
    """An installed cluster in memory whose nodes answer the question of ``facts``."""
    fake = healthy(installed)
    for name, server in fake.servers.items():
        text = "=== clock\n1\n=== units\n" + "\n\n".join(
            "\n".join(f"{key}={value}" for key, value in unit(one).properties.items()) for one in units(fake.config)
        )
        tree = "\n=== tree\n" + "\n".join(facts_module._TREE) + f"\n=== secrets\n600 root:root\n=== name\n{name}\n"
        server.answer("sh", "-c", facts_module._ASK, "doctor", with_=text + tree)
    return fake


def test_an_examination_changes_nothing(said: FakeCluster) -> None:
    acts = [list(server.acts) for server in said.servers.values()]
    seen = examine(said)
    assert [list(server.acts) for server in said.servers.values()] == acts
    assert all(node.facts is not None for node in seen.nodes)
    assert [one.text for node in seen.nodes for one in node.differences if isinstance(one.change, File)] == []


def test_an_examination_sees_what_was_edited(said: FakeCluster) -> None:
    said.servers["cp-2"].put(haproxy.CONFIG, "edited")
    seen = examine(said)
    differ = {(one.host, one.change.path) for node in seen.nodes for one in node.differences
              if isinstance(one.change, File)}  # fmt: skip
    assert ("cp-2", haproxy.CONFIG) in differ


@pytest.mark.parametrize("spoil", ["gone", "readable"])
def test_the_file_of_a_certificate_that_proxies_hold_in_memory_is_missed(said: FakeCluster, spoil: str) -> None:
    """They start no more without it, and with other modes anybody may read the key."""
    server = said.servers["cp-2"]
    if spoil == "gone":
        del server.tree[paths.NODE_PEM]
    else:
        server.put(paths.NODE_PEM, server.content(paths.NODE_PEM), 0o644)
    found = doctor.diagnose(examine(said)).findings
    assert [(one.kind.code, one.node) for one in found] == [("ConfigChanged", "cp-2")]
    assert f"{paths.NODE_PEM} differs" in found[0].message


@pytest.mark.parametrize("path", [haproxy.CONFIG, paths.NODE_PEM, paths.CA, f"{paths.UNITS}/{AGENT}"])
def test_a_file_that_cannot_be_read_is_a_finding_and_its_node_is_not_down(said: FakeCluster, path: str) -> None:
    """As where the disk has errors, or a directory was put in its place."""
    tree = said.servers["cp-2"].tree
    tree[path] = tree[paths.ETC]
    (found,) = doctor.diagnose(examine(said)).findings
    assert (found.kind.code, found.node) == ("UnitChanged" if path.endswith(AGENT) else "ConfigChanged", "cp-2")
    assert any(f"cannot read {path}: is not a regular file" in line for line in found.evidence)


def test_proxies_that_fail_without_their_certificate_are_explained_by_it() -> None:
    cluster = cast(Any, None)
    issued = Difference("secrets/certificates", "cp-2", haproxy.NodeCertificate(cluster), f"{paths.NODE_PEM}: new")
    failed = differs(with_unit(well("cp-2"), HAPROXY, ActiveState="failed", Result="exit-code"), issued)
    (found,) = doctor.diagnose(snapshot(cp_2=failed)).findings
    assert (found.kind.code, [str(one) for one in found.fix]) == (
        "ConfigDamaged", ["workstation$ kubeadm-registry init"],
    )  # fmt: skip


def test_a_damaged_record_of_programs_hides_nothing(said: FakeCluster) -> None:
    """Everything was compared as if no node had a program: nothing was found, and no problem."""
    said.servers["cp-1"].put(programs.RECORD, "{")
    said.servers["cp-2"].put(haproxy.CONFIG, "edited")
    found = doctor.diagnose(examine(said)).findings
    assert [(one.kind.code, one.node) for one in found] == [("ConfigChanged", "cp-1"), ("ConfigChanged", "cp-2")]
    assert f"{programs.RECORD} differs" in found[0].message


def listing(fake: FakeCluster, name: str, generation: int, former: str) -> None:
    """The server *name* has a list of *generation*, after a node left the address *former*."""
    nodes = {node.name: node.address for node in fake.config.spec.nodes if node.address != former}
    fake.servers[name].put(MEMBERS, Members(generation, nodes, former={"cp-9": former}).render())


def test_after_a_node_has_left_nothing_differs(said: FakeCluster) -> None:
    for name in said.servers:
        listing(said, name, 2, "10.0.0.19")
    run(INIT, said.cluster, JsonLines(io.StringIO()), skip=ELSEWHERE)
    assert [one.text for node in examine(said).nodes for one in node.differences if isinstance(one.change, File)] == []


def test_where_the_lists_of_members_contradict_each_other_that_is_said_alone(said: FakeCluster) -> None:
    listing(said, "cp-1", 2, "10.0.0.19")
    listing(said, "cp-2", 2, "10.0.0.13")
    seen = examine(said)
    assert not any(node.differences for node in seen.nodes)
    assert any("different member lists" in one.text for node in seen.nodes for one in node.problems)


def test_a_node_that_breaks_off_is_not_reachable(said: FakeCluster) -> None:
    def lost(*_: object) -> bytes:
        raise ConnectionFailed("the connection broke", host="cp-3")

    said.servers["cp-3"].answer("sh", "-c", facts_module._ASK, "doctor", with_=lost)
    seen = examine(said)
    assert [node.name for node in seen.unreachable] == ["cp-3"]


def test_before_the_first_init_nothing_is_compared(three: FakeCluster) -> None:
    for server in three.servers.values():
        server.answer("sh", "-c", facts_module._ASK, "doctor", with_="=== clock\n1\n")
    found = doctor.diagnose(examine(three))
    assert codes(found) == ["NotInstalled"]


def test_damaged_secrets_are_the_only_finding_and_are_had_from_another_node(said: FakeCluster) -> None:
    """Without secrets all data look like another's, which preflight wants moved away: the images would be lost."""
    said.servers["cp-2"].put(secrets.PATH, "{", 0o600)
    (found,) = doctor.diagnose(examine(said)).findings
    assert (found.kind.code, found.node) == ("SecretsUnusable", "cp-2")
    assert [str(one) for one in found.fix] == [
        f"cp-2# mv {secrets.PATH} /root/  # init takes the file of another node", "workstation$ kubeadm-registry init",
    ]  # fmt: skip


def test_secrets_that_no_node_has_are_had_from_a_copy() -> None:
    """`init` refuses to make new ones over data (SecretsLost)."""
    lost = {name: with_facts(well(name.replace("_", "-")), secrets="") for name in ("cp_1", "cp_2", "cp_3")}
    for found in doctor.diagnose(snapshot(**lost)).findings:
        assert found.kind.code == "SecretsMissing"
        assert f"{found.node}# install -m 600 COPY {secrets.PATH}" in str(found.fix[0])
    one, two = lost["cp_1"], lost["cp_2"]
    for left in (snapshot(cp_1=one, cp_2=two), snapshot(cp_1=one, cp_2=two, cp_3=gone(well("cp-3")))):
        first = next(one for one in doctor.diagnose(left).findings if one.kind.code == "SecretsMissing")
        assert [str(one) for one in first.fix] == ["workstation$ kubeadm-registry init"]


def output(found: doctor.Diagnosis, capsys: pytest.CaptureFixture[str]) -> str:
    command.show(found)
    return capsys.readouterr().out


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(doctor.diagnose(snapshot()), capsys) == "no problem found\n"
    spoiled = doctor.diagnose(snapshot(cp_2=CASES["stopped"][0](well("cp-2"))))
    assert output(spoiled, capsys) == (
        f"error [ServiceStopped] cp-2: {AGENT} is stopped\n"
        "  meaning:   The node lacks a part of the registry; the others serve without it, and none of them may fail.\n"
        f"  evidence:  systemctl show {AGENT}: LoadState=loaded ActiveState=inactive SubState=dead Result=success "
        "UnitFileState=enabled\n"
        f"             journalctl -u {AGENT}: its last words\n"
        f"  fix:       cp-2# systemctl start {AGENT}\n"
        "\n"
        "1 error; the registry serves, but is degraded\n"
    )


def test_json() -> None:
    found = doctor.diagnose(snapshot(cp_2=CASES["full"][0](well("cp-2")))).to_dict()
    assert json.loads(json.dumps(found)) == found
    (finding,) = found["findings"]
    assert (found["state"], finding["code"], finding["node"], finding["severity"]) == (
        "degraded", "DiskFull", "cp-2", "error",
    )  # fmt: skip
    assert finding["fix"][0] == {"on": "workstation", "command": "kubeadm-registry images list"}


def test_the_page_has_every_code_and_room() -> None:
    page = doctor_page.PAGE.read_text()
    assert page == doctor_page.written(page), "run: .venv/bin/python -m tests.unit.doctor_page"
