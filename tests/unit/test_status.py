"""How the cluster is judged, from what servers say to the exit code."""

from __future__ import annotations

import inspect
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import config, paths, pki, status
from kubeadm_registry.access.presence import Presence
from kubeadm_registry.agent import conditions as agent_conditions
from kubeadm_registry.agent import served
from kubeadm_registry.cli.status import MEANINGS, exit_code, show
from kubeadm_registry.components.services import services
from kubeadm_registry.result import Result
from kubeadm_registry.status import NodeStatus, condition, judge
from kubeadm_registry.transport import host_python
from tests.unit.agent_sample import everything
from tests.unit.fake_cluster import authority
from tests.unit.fakes import FakeTransport

THREE = config.parse(config.SMALLEST, "x")
ONE = config.parse(
    config.SMALLEST.replace("    - {name: cp-2, address: 10.0.0.12}\n    - {name: cp-3, address: 10.0.0.13}\n", ""), "x"
)
NOW = datetime(2030, 1, 1, tzinfo=UTC)
VIP, VIP6 = THREE.spec.vip.address, "fd00::10"
DUAL = THREE.model_copy(
    update={
        "spec": THREE.spec.model_copy(update={"vip": THREE.spec.vip.model_copy(update={"secondary_address": VIP6})})
    }
)
SERVICES = dict.fromkeys([service.name for service in services(THREE.spec)], "active")


def well(name: str, *, vip: bool = False, of: int = 3) -> NodeStatus:
    agent = {"fit": True, "level": 3, "quorum": {"storage": of}, "conditions": [], "clock_off": 0.01}
    return NodeStatus(
        name, services=SERVICES, agent=agent, vip=(VIP,) * vip, certificate_ends=NOW + timedelta(days=900), guarded=True
    )


def unfit(one: NodeStatus) -> NodeStatus:
    return replace(one, agent={**(one.agent or {}), "fit": False, "conditions": ["CanaryUnreadable"]})


def sees(one: NodeStatus, count: int) -> NodeStatus:
    return replace(one, agent={**(one.agent or {}), "quorum": {"storage": count}})


def slow(one: NodeStatus) -> NodeStatus:
    return replace(one, agent={**(one.agent or {}), "conditions": ["ChainSlow"]})


def down(one: NodeStatus, service: str, state: str = "failed") -> NodeStatus:
    return replace(one, services={**one.services, service: state})


def gone(one: NodeStatus) -> NodeStatus:
    return NodeStatus(one.name, reachable=False, trouble="no route to host")


def silent(one: NodeStatus) -> NodeStatus:
    return replace(one, agent=None)


def ends(one: NodeStatus, days: int) -> NodeStatus:
    return replace(one, certificate_ends=NOW + timedelta(days=days))


def authority_ends(one: NodeStatus, days: int) -> NodeStatus:
    return replace(one, authority_ends=NOW + timedelta(days=days))


def flawed(one: NodeStatus, reason: str) -> NodeStatus:
    return replace(one, certificate_flaw=(reason, f"{one.name} has it"))


def keeps(one: NodeStatus) -> NodeStatus:
    return one


def holds(one: NodeStatus) -> NodeStatus:
    return replace(one, vip=(VIP,))


def drops(one: NodeStatus) -> NodeStatus:
    return replace(one, vip=())


Spoil = Callable[[NodeStatus], NodeStatus]
#: What happens to cp-1 (which has the VIP), cp-2 and cp-3: exit code, then the reasons of Available, CanLoseANode,
#: StorageWhole and CertificatesValid.
CASES: dict[str, tuple[Sequence[Spoil], int, str]] = {
    "all is well": ((keeps, keeps, keeps), 0, "Serving Redundant AllServe Valid"),
    "the holder is unfit": ((unfit, keeps, keeps), 1, "HolderUnfit NodeUnfit AllServe Valid"),
    "another is unfit": ((keeps, unfit, keeps), 5, "Serving NodeUnfit AllServe Valid"),
    "the holder's agent is silent": ((silent, keeps, keeps), 1, "HolderUnfit NodeUnfit ServersMissing Valid"),
    "another's agent is silent": ((keeps, silent, keeps), 5, "Serving NodeUnfit ServersMissing Valid"),
    "two holders": ((keeps, holds, keeps), 1, "TwoHolders NoHolder AllServe Valid"),
    "no holder": ((drops, keeps, keeps), 1, "NoHolder NoHolder AllServe Valid"),
    "the holder cannot be reached": ((gone, keeps, keeps), 1, "HolderUnknown NodeUnreachable ServersMissing Valid"),
    "another cannot be reached": ((keeps, keeps, gone), 5, "Serving NodeUnreachable ServersMissing Valid"),
    "only the holder can be reached": ((keeps, gone, gone), 5, "Serving NodeUnreachable ServersMissing Valid"),
    "the holder is cut off from all others": (
        (lambda one: slow(sees(one, 1)), gone, gone), 1, "NoReadQuorum NodeUnreachable ServersMissing Valid",
    ),
    "the holder hears no other, and reads": (
        (lambda one: sees(one, 1), keeps, keeps), 5, "Serving StorageNotWhole ServersMissing Valid",
    ),
    "none can be reached": ((gone, gone, gone), 4, "HolderUnknown NodeUnreachable NoAgent NoCertificate"),
    "storage is partial": (
        (keeps, lambda one: sees(one, 2), keeps), 5, "Serving StorageNotWhole ServersMissing Valid",
    ),
    "a service failed": ((keeps, keeps, lambda one: down(one, "garage")), 5, "Serving ServiceDown AllServe Valid"),
    "the holder's proxy half failed": (
        (lambda one: down(one, "haproxy"), keeps, keeps), 5, "Serving ServiceDown AllServe Valid",
    ),
    "a certificate ends soon": ((keeps, lambda one: ends(one, 29), keeps), 0, "Serving Redundant AllServe EndsSoon"),
    "a renewed certificate is not served": (
        (keeps, lambda one: flawed(one, "NotLoaded"), keeps), 0, "Serving Redundant AllServe NotLoaded",
    ),
    "what is served cannot be seen": (
        (keeps, lambda one: flawed(one, "NotSeen"), keeps), 5, "Serving Redundant AllServe NotSeen",
    ),
    "another authority's certificate is served": (
        (lambda one: flawed(one, "NotLoaded"), lambda one: flawed(one, "OtherAuthority"), keeps), 5,
        "Serving Redundant AllServe OtherAuthority",
    ),
    "the authority ends within a year": (
        (keeps, keeps, lambda one: authority_ends(one, 364)), 0, "Serving Redundant AllServe AuthorityEndsSoon",
    ),
    "the authority has ended": (
        (lambda one: authority_ends(one, -1), keeps, keeps), 5, "Serving Redundant AllServe AuthorityEnded",
    ),
    "a certificate is expired": ((keeps, lambda one: ends(one, -1), keeps), 5, "Serving Redundant AllServe Expired"),
}  # fmt: skip


@pytest.mark.parametrize(("spoils", "code", "reasons"), CASES.values(), ids=CASES)
def test_judgement(spoils: Sequence[Spoil], code: int, reasons: str) -> None:
    seen = [spoil(well(f"cp-{i}", vip=i == 1)) for i, spoil in enumerate(spoils, 1)]
    found = judge(THREE, seen, NOW.timestamp())
    assert [one["type"] for one in found["conditions"]] == [
        "Available", "CanLoseANode", "StorageWhole", "CertificatesValid", "ClocksAgree",
        "LoopbackGuarded",
    ]  # fmt: skip
    assert [one["reason"] for one in found["conditions"]][:4] == reasons.split()
    assert exit_code(found) == code
    assert all(one["message"] for one in found["conditions"])
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("counts", "reason", "code"),
    [((None, None, None), "", 0), ((0, None, 0), "AllPresent", 0), ((0, 2, 3), "BlocksLost", 5)],
    ids=["agents of an older release", "none", "some"],
)
def test_lost_blocks_are_said_as_what_they_are(counts: Sequence[int | None], reason: str, code: int) -> None:
    """They take no redundancy away, and are not waited for."""
    seen = [
        replace(one, agent={**(one.agent or {}), "storage_lost": count, "storage_left": {"blocks": 0, "tables": 0}})
        for count, one in zip(counts, [well("cp-1", vip=True), well("cp-2"), well("cp-3")], strict=True)
    ]
    found = judge(THREE, seen, NOW.timestamp())
    assert condition(found, "CanLoseANode") == condition(found, "StorageWhole") == "True"
    told = [one for one in found["conditions"] if one["type"] == "BlocksPresent"]
    assert [one["reason"] for one in told] == [reason] * bool(reason)
    assert exit_code(found) == code
    if code:
        assert "no node has 3 blocks" in told[0]["message"]
        assert "`recover`" in told[0]["message"]
        assert found["nodes"][2]["toHeal"]["lost"] == 3


@pytest.mark.parametrize(
    ("loaded", "whole", "status_", "code"),
    [(True, True, "True", 0), (True, None, "True", 0), (False, None, "False", 5), (True, False, "False", 5)],
)
def test_a_server_without_the_guard_of_loopback_is_named(
    loaded: bool, whole: bool | None, status_: str, code: int
) -> None:
    """*loaded*: there are such rules in the kernel; *whole*: the agent says that they are all there."""
    second = well("cp-2")
    second = replace(second, guarded=loaded, agent={**(second.agent or {}), "guarded": whole})
    found = judge(THREE, [well("cp-1", vip=True), second, well("cp-3")], NOW.timestamp())
    assert condition(found, "LoopbackGuarded") == status_
    assert exit_code(found) == code
    assert ("are missing on cp-2: local users" in found["conditions"][-1]["message"]) is (status_ == "False")


@pytest.mark.parametrize(("off", "status_", "code"), [(0.4, "True", 0), (0.6, "False", 5), (None, "True", 0)])
def test_a_server_whose_clock_is_off_is_named(off: float | None, status_: str, code: int) -> None:
    second = well("cp-2")
    second = replace(second, agent={**(second.agent or {}), "clock_off": off})
    found = judge(THREE, [well("cp-1", vip=True), second, well("cp-3")], NOW.timestamp())
    assert condition(found, "ClocksAgree") == status_
    assert exit_code(found) == code
    text = next(one["message"] for one in found["conditions"] if one["type"] == "ClocksAgree")
    assert ("cp-2 is 0.6 s off" in text) is (status_ == "False")


def test_without_an_answer_nobody_knows_of_the_guard() -> None:
    assert condition(judge(THREE, [gone(well(f"cp-{i}")) for i in (1, 2, 3)]), "LoopbackGuarded") == "Unknown"


def test_one_server_is_never_called_redundant() -> None:
    found = judge(ONE, [well("cp-1", vip=True, of=1)], NOW.timestamp())
    assert condition(found, "Available") == "True"
    assert condition(found, "StorageWhole") == "True"
    assert found["conditions"][1]["reason"] == "OneServer"
    assert exit_code(found) == 5


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [((VIP, VIP6), (), "Serving"), ((VIP,), (), "AddressAstray"), ((VIP,), (VIP6,), "AddressAstray"),
     ((VIP, VIP6), (VIP6,), "AddressAstray"), ((VIP6,), (), "NoHolder")],
)  # fmt: skip
def test_each_address_of_the_vip_counts(first: tuple[str, ...], second: tuple[str, ...], reason: str) -> None:
    seen = [replace(well("cp-1"), vip=first), replace(well("cp-2"), vip=second), well("cp-3")]
    found = judge(DUAL, seen, NOW.timestamp())
    assert found["conditions"][0]["reason"] == reason


@pytest.mark.parametrize(
    ("count", "reached", "reason"),
    [(4, 3, "Serving"), (4, 2, "NoReadQuorum"), (5, 4, "Serving"), (5, 3, "NoReadQuorum")],
)
def test_of_more_nodes_than_copies_the_canary_image_does_not_speak_for_others(
    count: int, reached: int, reason: str
) -> None:
    """With two of five away three blocks of ten have one copy left, and those of the canary image may be others."""
    nodes = "".join(f"    - {{name: cp-{i}, address: 10.0.0.1{i}}}\n" for i in range(1, count + 1))
    head, _, rest = config.SMALLEST.partition("  nodes:\n")
    many = config.parse(f"{head}  nodes:\n{nodes}{rest[rest.index('  vip:') :]}", "x")
    seen = [well(f"cp-{i}", vip=i == 1, of=reached) for i in range(1, count + 1)]
    found = judge(many, [one if i < reached else gone(one) for i, one in enumerate(seen)], NOW.timestamp())
    assert (found["conditions"][0]["reason"], exit_code(found)) == (reason, 5 if reason == "Serving" else 1)


@pytest.mark.parametrize(
    ("reached", "here", "code", "reasons"),
    [
        (3, True, 5, "Serving NodeUnlisted ServersMissing"),
        (4, True, 5, "Serving NodeUnlisted NodeUnlisted"),
        (4, False, 1, "HolderUnlisted NodeUnlisted NodeUnlisted"),
    ],
    ids=["which is down", "which is up", "which holds the virtual IP"],
)
def test_a_file_of_before_a_node_joined(reached: int, here: bool, code: int, reasons: str) -> None:
    """Of four nodes the one that is down is not in it: all that it lists is well."""
    peers = {f"cp-{i}": {"address": f"10.0.0.1{i}", "presence": "fresh"} for i in (1, 2, 3, 4)}
    seen = [well(f"cp-{i}", vip=here and i == 1, of=reached) for i in (1, 2, 3)]
    seen = [replace(one, agent={**(one.agent or {}), "peers": peers}) for one in seen]
    found = judge(THREE, seen, NOW.timestamp())
    assert exit_code(found) == code
    assert " ".join(one["reason"] for one in found["conditions"][:3]) == reasons
    assert found["conditions"][1]["message"].startswith("cp-4: in the registry, but not in the cluster file")
    left = [replace(one, agent={**(one.agent or {}), "conditions": ["Removed"]}) for one in seen]
    assert not status.unlisted(THREE, left), "which knows the members of that time"


def test_a_node_that_was_replaced_says_why_by_its_own_cluster_file(capsys: pytest.CaptureFixture[str]) -> None:
    """That of before: it lists the node that has left, and not the one in its place."""
    peers = {f"cp-{i}": {"address": f"10.0.0.1{i}", "presence": "fresh"} for i in (1, 3, 9)}
    seen = [replace(one, agent={**(one.agent or {}), "peers": peers}) for one in (well("cp-1", vip=True), well("cp-3"))]
    left = unfit(well("cp-2"))
    left = replace(left, agent={**(left.agent or {}), "conditions": ["Removed"]})
    found = judge(THREE, [seen[0], left, seen[1]], NOW.timestamp())
    assert (exit_code(found), found["nodes"][1]["conditions"]) == (5, ["Removed"])
    assert "cp-9: in the registry, but not in the cluster file" in found["conditions"][1]["message"]
    show(found)
    assert "cp-2: it has left the registry, which continues without it (Removed)" in capsys.readouterr().out


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    found = judge(THREE, [gone(well(f"cp-{i}")) for i in (1, 2, 3)], NOW.timestamp())
    assert condition(found, "Available") == "Unknown"
    assert condition(found, "CanLoseANode") == "False"
    assert condition(found, "StorageWhole") == "Unknown"
    assert condition(found, "CertificatesValid") == "Unknown"


def test_before_init_the_remedy_is_init() -> None:
    bare = [
        NodeStatus(name, services=dict.fromkeys(SERVICES, "inactive"), guarded=False)
        for name in ("cp-1", "cp-2", "cp-3")
    ]
    found = judge(THREE, bare, NOW.timestamp())["conditions"][0]
    assert (found["status"], found["reason"]) == ("False", "NotInstalled")
    assert found["message"].endswith("run `kubeadm-registry init`")
    one = replace(bare[0], services={**bare[0].services, "garage": "active"})
    assert judge(THREE, [one, *bare[1:]], NOW.timestamp())["conditions"][0]["reason"] == "NoHolder"


def test_each_server_is_described() -> None:
    found = judge(THREE, [well("cp-1", vip=True), unfit(well("cp-2")), gone(well("cp-3"))], NOW.timestamp())
    assert found["vip"] == {"address": "10.0.0.10", "holder": "cp-1"}
    first, second, third = found["nodes"]
    assert first == {
        "name": "cp-1", "reachable": True, "fit": True, "services": SERVICES, "level": 3, "conditions": [],
        "certificateExpires": "2032-06-19T00:00:00Z", "certificateDays": 900, "clockOff": 0.01,
    }  # fmt: skip
    assert (second["fit"], second["conditions"]) == (False, ["CanaryUnreadable"])
    assert third == {
        "name": "cp-3", "reachable": False, "fit": False, "services": {}, "message": "no route to host",
    }  # fmt: skip


def test_messages_name_the_server_and_the_number() -> None:
    found = judge(THREE, [well("cp-1", vip=True), sees(ends(well("cp-2"), -3), 1), well("cp-3")], NOW.timestamp())
    texts = {one["type"]: one["message"] for one in found["conditions"]}
    assert texts["StorageWhole"] == "cp-2 reaches 1 of 3 storage nodes"
    assert texts["CertificatesValid"] == "the certificate of cp-2 expires first, on 2029-12-29, in -3 days"
    found = judge(THREE, [authority_ends(well("cp-1", vip=True), 3000)], NOW.timestamp())
    assert found["conditions"][3]["message"].endswith("; the CA expires on 2038-03-20")
    assert found["nodes"][0]["authorityExpires"] == "2038-03-20T00:00:00Z"
    found = judge(THREE, [flawed(well("cp-1", vip=True), "NotLoaded")], NOW.timestamp())
    assert found["conditions"][3]["message"] == "cp-1 has it; run init"


def test_what_people_see(capsys: pytest.CaptureFixture[str]) -> None:
    show(judge(THREE, [well("cp-1", vip=True), unfit(well("cp-2")), gone(well("cp-3"))], NOW.timestamp()))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NODE", "FIT", "VIP", *(name.upper() for name in SERVICES), "CERTIFICATE"]
    assert lines[1].split() == ["cp-1", "yes", "10.0.0.10", *["active"] * 6, "900", "days"]
    assert lines[2].split() == ["cp-2", "no", *["active"] * 6, "900", "days"]
    assert lines[3].split() == ["cp-3", "unreachable"]
    assert "Tolerates node loss:       no  cp-3 cannot be reached" in lines
    assert "cp-3: no route to host" in lines
    assert "cp-2: CanaryUnreadable" in lines, "a newer agent's"
    late = replace(well("cp-1"), agent={**(well("cp-1").agent or {}), "conditions": ["StoragePartial", "ChainSlow"]})
    show(judge(THREE, [late], NOW.timestamp()))
    said = "the storage misses a node (StoragePartial); the canary image is read slowly, or not at all (ChainSlow)"
    assert f"cp-1: {said}" in capsys.readouterr().out.splitlines()


def test_each_condition_of_the_agent_has_words() -> None:
    source = inspect.getsource(agent_conditions.conditions)
    assert set(re.findall(r'"([A-Z][A-Za-z]+)":', source)) == MEANINGS.keys()


def test_80_columns_show_names_of_nodes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout", out := Wide())
    found = judge(THREE, [well("cp-1", vip=True), unfit(well("cp-2")), gone(well("cp-3"))], NOW.timestamp())
    for node in found["nodes"]:
        node["name"] = node["name"].replace("cp", "control-plane.site")
    found["nodes"][1]["services"]["zot"] = "failed"
    found["vip"]["holder"] = found["nodes"][0]["name"]
    show(found)
    lines = [line.split() for line in out.getvalue().splitlines()[:4]]
    assert lines[0] == ["NODE", "FIT", "VIP", "SERVICES", "CERTIFICATE"]
    assert lines[1] == ["control-plane.site-1", "yes", "yes", "all", "active", "900", "days"]
    assert lines[2] == ["control-plane.site-2", "no", "zot", "failed", "900", "days"]
    assert lines[3] == ["control-plane.site-3", "unreachable"]


# ---- asking a server ---------------------------------------------------------------------------------------------

AGENT = {"time": 1000.0, "fit": True, "quorum": {"storage": 3}}
DATA = THREE.spec.data_directory
UNITS = [unit for service in services(THREE.spec) for unit in service.units]


NOTHING_SERVED: dict[str, object] = {
    "file": None, "ca": [], "proxies": {}, "trusted": {}, "handshakes": {}, "agent": None, "trouble": [],
}  # fmt: skip
SCRIPT = host_python.command(served)


def server(
    *, agent: object = AGENT, now: float = 1001.5, states: dict[str, str] | None = None, vip: str = "", rules: int = 4,
    options: str = "rw,relatime",
) -> FakeTransport:  # fmt: skip
    fake = FakeTransport("cp-1")
    shown = "\n".join(f"Id={unit}\nActiveState={(states or {}).get(unit, 'active')}\n" for unit in UNITS)
    text = agent if isinstance(agent, str) else json.dumps(agent)
    said = f"{shown}---\n{now}\n{rules}\n{options}\n{text}"
    state = f"{paths.RUN}/agent/state.json"
    fake.answer("sh", "-c", status._ASK, "status", state, "kubeadm-registry", DATA, *UNITS, with_=said)
    fake.answer("ip", "-oneline", "address", "show", "-tentative", "to", "10.0.0.10/32", with_=vip)
    fake.answer(*SCRIPT, with_=json.dumps(NOTHING_SERVED))
    return fake


def observe(fake: FakeTransport) -> NodeStatus:
    return status.observe(THREE, fake.host())


def test_a_server_tells_everything() -> None:
    fake = server(vip="2: eth0    inet 10.0.0.10/32 scope global eth0\n")
    pair = pki.issue(authority(), "cp-1", ("cp-1",))
    fake.put(paths.NODE_PEM, pair.certificate + pair.key)
    assert observe(fake) == NodeStatus(
        "cp-1", services=SERVICES, agent=AGENT, vip=(VIP,), certificate_ends=pki.expiry(pair.certificate), guarded=True
    )


def test_a_bare_server_is_reachable_and_has_nothing() -> None:
    seen = observe(server(agent="", states=dict.fromkeys(UNITS, "inactive"), rules=0))
    assert seen == NodeStatus("cp-1", services=dict.fromkeys(SERVICES, "inactive"), guarded=False)


def test_a_server_whose_data_disk_is_read_only_stores_nothing() -> None:
    """Garage answers and the canary image is read, so its agent says that all is well."""
    assert observe(server(options="ro,relatime,errors=remount-ro")).read_only
    assert not observe(server(options="rw,relatime,errors=remount-ro")).read_only
    assert not observe(server(options="")).read_only
    found = judge(THREE, [well("cp-1", vip=True), replace(well("cp-2"), read_only=True), well("cp-3")], NOW.timestamp())
    assert (condition(found, "StorageWhole"), condition(found, "CanLoseANode")) == ("False", "False")
    assert condition(found, "Available") == "True"


def test_of_two_processes_the_worse_one_counts() -> None:
    seen = observe(server(states={"kubeadm-registry-haproxy@2.service": "activating"}))
    assert seen.services == {**SERVICES, "haproxy": "activating"}
    assert observe(server(states={"kubeadm-registry-haproxy@2.service": "reloading"})).services == SERVICES


@pytest.mark.parametrize(
    ("agent", "now"),
    [
        (AGENT, 1005.1),
        # The clock went back since: the agent that wrote it would have written again.
        (AGENT, 900.0),
        ('{"time": 1000.0, "fi', 1001),
        ("null", 1001),
        ("[]", 1001),
        ({"time": None, "fit": True}, 1001),
        ({"fit": True}, 1001),
    ],
)
def test_an_agent_that_does_not_write_sense_now_is_not_believed(agent: object, now: float) -> None:
    seen = observe(server(agent=agent, now=now))
    assert seen.reachable
    assert seen.agent is None


def test_a_server_that_fails_to_answer_is_an_observation_too() -> None:
    fake = server()
    fake.closed = True
    seen = observe(fake)
    assert not seen.reachable
    assert "the connection is closed" in seen.trouble


def says(fake: FakeTransport, *certificates_: str, **said: object) -> FakeTransport:
    """A server whose proxies say this; the handshakes bring those certificates."""
    shown = {str(number): pem for number, pem in enumerate(certificates_)}
    whole = NOTHING_SERVED | {"file": "0", "proxies": {"1.sock": "0", "2.sock": "0"}, "handshakes": shown} | said
    fake.answer(*SCRIPT, with_=json.dumps(whole))
    return fake


def test_the_end_is_that_of_the_certificate_that_is_served() -> None:
    fake = server()
    stored = pki.issue(authority(), "cp-1", ("cp-1",))
    older = pki.issue(authority(), "cp-1", ("cp-1",), lifetime=timedelta(days=3))
    fake.put(paths.NODE_PEM, stored.certificate + stored.key)
    fake.put(paths.CA, authority().certificate)
    seen = observe(says(fake, stored.certificate))
    assert (seen.certificate_ends, seen.certificate_flaw) == (pki.expiry(stored.certificate), None)
    assert seen.authority_ends == pki.expiry(authority().certificate)
    seen = observe(says(fake, stored.certificate, older.certificate, proxies={"1.sock": "0", "2.sock": "1"}))
    assert seen.certificate_ends == pki.expiry(older.certificate)
    words = f"cp-1 serves an older certificate than {paths.NODE_PEM} (2.sock)"
    assert seen.certificate_flaw == ("NotLoaded", words)


def test_what_clients_would_refuse_is_told() -> None:
    fake = server()
    other = pki.issue(pki.make_ca("registry"), "cp-1", ("cp-1",))
    fake.put(paths.NODE_PEM, other.certificate + other.key)
    fake.put(paths.CA, authority().certificate)
    seen = observe(says(fake, other.certificate))
    assert seen.certificate_flaw == (
        "OtherAuthority", "cp-1 serves a certificate that the cluster CA did not issue",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (json.dumps({"file": "0", "proxies": {}, "handshakes": {}, "trouble": ["no answer"]}),
         "cp-1 cannot be queried for the certificate it serves: no answer"),
        (Result(("sh",), 127, b"", b"there is no Python 3.9 or newer\n"),
         "cp-1 cannot be queried for the certificate it serves: there is no Python 3.9 or newer"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_not_called_valid(answer: str | Result, words: str) -> None:
    fake = server()
    pair = pki.issue(authority(), "cp-1", ("cp-1",))
    fake.put(paths.NODE_PEM, pair.certificate + pair.key)
    fake.answer(*SCRIPT, with_=answer)
    seen = observe(fake)
    assert (seen.reachable, seen.certificate_ends) == (True, pki.expiry(pair.certificate))
    assert seen.certificate_flaw == ("NotSeen", words)


def test_a_damaged_certificate_hides_nothing_else() -> None:
    fake = server()
    fake.put(paths.NODE_PEM, "-----BEGIN CERTIFICATE-----\nAAAA\n")
    seen = observe(fake)
    assert (seen.reachable, seen.services, seen.agent) == (True, SERVICES, AGENT)
    assert seen.certificate_ends is None
    assert seen.trouble.startswith(f"{paths.NODE_PEM} is damaged: ")


def test_servers_are_listed_in_the_order_of_the_file() -> None:
    third = server()
    third.name = "cp-3"
    seen = status.gather(THREE, [third.host()], {"cp-1": "no key", "cp-2": "no route"})
    assert [(one.name, one.reachable, one.trouble) for one in seen] == [
        ("cp-1", False, "no key"),
        ("cp-2", False, "no route"),
        ("cp-3", True, ""),
    ]


def test_all_may_be_unreachable() -> None:
    reasons: dict[str, Any] = dict.fromkeys(("cp-1", "cp-2", "cp-3"), "no route")
    assert not any(one.reachable for one in status.gather(THREE, [], reasons))


def test_a_command_that_fails_is_no_answer() -> None:
    fake = server()
    fake.answer("sh", "-c", status._ASK, with_=Result(("sh",), 127, b"", b"sh: not found"))
    assert not observe(fake).reachable


# ---- agents of other releases ------------------------------------------------------------------------------------

FORMATS = Path(__file__).parents[1] / "golden" / "formats"
SAMPLE = FORMATS / "0.1" / "agent-state.json"
#: As the first release wrote it that tells of moves, of what is queued, and how the disk fills.
LATER = FORMATS / "agent-state.json"


def test_the_state_of_an_agent_of_release_0_1_is_understood() -> None:
    said = json.loads(SAMPLE.read_text())
    seen = observe(server(agent=said, now=said["time"] + 1))
    assert seen.agent == said
    its = config.parse(config.SMALLEST.replace("cp-2", "b").replace("cp-3", "c"), "x")
    found = judge(its, [replace(well("cp-1", vip=True), agent=said), well("b"), well("c")], NOW.timestamp())
    assert exit_code(found) == 0
    assert (found["nodes"][0]["fit"], found["nodes"][0]["level"]) == (True, 0)


@pytest.mark.parametrize(
    ("sample", "key"), [(sample, key) for sample in (SAMPLE, LATER) for key in json.loads(sample.read_text())]
)
def test_one_key_less_or_more_in_it_hides_nothing_else(sample: Path, key: str) -> None:
    """An agent without it is not believed, or counts as unfit, or lacks what only people read; status never fails."""
    whole = json.loads(sample.read_text())
    less = {name: value for name, value in whole.items() if name != key}
    for said in (less, less | {key: {"of a newer release": 1}}, whole | {"of_a_newer_release": [1]}):
        seen = observe(server(agent=said, now=whole["time"] + 1))
        assert seen.reachable
        found = judge(THREE, [replace(seen, vip=(VIP,)), well("cp-2"), well("cp-3")], NOW.timestamp())
        assert [node["name"] for node in found["nodes"]] == ["cp-1", "cp-2", "cp-3"]
        assert json.dumps(found)
        show(found)


def tells(one: NodeStatus, *conditions: str, **more: object) -> NodeStatus:
    return replace(one, agent={**(one.agent or {}), "conditions": list(conditions), **more})


def test_no_node_may_be_lost_while_one_still_copies() -> None:
    """A replaced node answers long before it has the images."""
    seen = [
        well("cp-1", vip=True),
        tells(well("cp-2"), "StorageCopying", storage_left={"blocks": 293, "tables": 1}),
        well("cp-3"),
    ]
    found = judge(THREE, seen, NOW.timestamp())
    assert (condition(found, "StorageWhole"), condition(found, "CanLoseANode")) == ("False", "False")
    assert condition(found, "Available") == "True"
    [text] = {one["message"] for one in found["conditions"] if one["type"] in ("StorageWhole", "CanLoseANode")}
    assert text == "cp-2 is still copying what it missed: 293 blocks and 1 part of tables left"
    assert exit_code(found) == 5


def test_no_node_may_be_lost_while_lists_of_members_differ() -> None:
    """A change of members that was interrupted: of three votes one does not count already."""
    seen = [well("cp-1", vip=True), tells(well("cp-2"), "MembersDiffer"), well("cp-3")]
    found = judge(THREE, seen, NOW.timestamp())
    assert (condition(found, "Available"), condition(found, "CanLoseANode")) == ("True", "False")
    assert found["conditions"][1]["reason"] == "MembersDiffer"
    assert exit_code(found) == 5


@pytest.mark.parametrize(
    ("mode", "roles", "barred", "reason"),
    [
        ("single", "writer standby standby", 1, "Redundant"),
        ("single", "standby standby standby", 0, "NoWriter"),
        ("single", "writer standby standby", 2, "OneWriter"),
        ("all", "standby standby standby", 2, "Redundant"),
    ],
)
def test_where_one_node_writes_another_must_be_able_to(mode: str, roles: str, barred: int, reason: str) -> None:
    """*barred*: so many of the last nodes do not take the lease."""
    seen = [
        tells(well(f"cp-{at}", vip=at == 1), *["NoTimer"] * (at > 3 - barred), writer={"mode": mode, "role": role})
        for at, role in enumerate(roles.split(), 1)
    ]
    found = judge(THREE, seen, NOW.timestamp())
    assert found["conditions"][1]["reason"] == reason
    assert exit_code(found) == (0 if reason == "Redundant" else 5)


@pytest.mark.parametrize("name", ["CanaryBroken", "CanaryMissing"])
def test_a_node_that_cannot_read_the_canary_image_makes_no_node_dispensable(name: str) -> None:
    well_off = [well("cp-1", vip=True), well("cp-2")]
    found = judge(THREE, [*well_off, tells(well("cp-3"), name)], NOW.timestamp())
    assert (condition(found, "Available"), condition(found, "CanLoseANode")) == ("True", "False")
    assert exit_code(found) == 5
    found = judge(THREE, [tells(one, name) for one in (*well_off, well("cp-3"))], NOW.timestamp())
    assert condition(found, "Available") == "False"
    assert exit_code(found) == 1


def test_an_agent_that_tells_more_is_shown_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads(LATER.read_text())
    seen = observe(server(agent=said, now=said["time"] + 1))
    found = judge(THREE, [replace(seen, vip=(VIP,)), well("cp-2"), well("cp-3")], NOW.timestamp())
    node = found["nodes"][0]
    assert node["toHeal"] == {"blocks": 3, "bytes": 3 << 20, "tables": 4, "lost": 2, "errors": 6, "entries": 7}
    assert node["disk"] == {
        "free": 40 * 10**9, "size": 100 * 10**9, "bytesPerDay": 4_320_000_000, "since": "2030-03-11T17:46:40Z",
        "full": "2030-03-27T00:00:00Z",
    }  # fmt: skip
    show(found)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    words = (
        "cp-1  40.0 GB of 100.0 GB  about 2030-03-27  "
        "3 blocks, up to 3.1 MB; 4 parts of tables; 2 blocks lost; 6 blocks failed"
    )
    assert any(line.startswith(words) for line in lines), lines
    assert "2030-03-17 17:46:40  virtual IP  b     cp-1  0.6 s    no heartbeat of b for 0.6 s" in lines


def moved(one: NodeStatus, *moves: dict[str, object]) -> NodeStatus:
    return tells(one, moves=[{"what": "vip", "exact": True, "other": "", "seconds": None, **move} for move in moves])


def test_failovers_are_merged_over_the_nodes_and_the_one_that_lost_it_says_why() -> None:
    seen = [
        moved(
            well("cp-1"),
            {"time": 1000.0, "here": True, "why": "no other node was heard to have it"},
            {"time": 2000.0, "here": False, "why": "this node may not hold it: ProxyDown", "other": ""},
            {"time": 2000.1, "here": False, "why": "the virtual IP left", "what": "lease"},
        ),
        moved(
            well("cp-2", vip=True),
            {"time": 2000.4, "here": True, "why": "cp-1 gave it up", "other": "cp-1", "seconds": 0.41},
            {"time": 5000.0, "here": False, "why": "not exact", "exact": False},
        ),
        moved(well("cp-3"), {"time": 4000.0, "here": True, "why": "no heartbeat of cp-2 for 0.6 s", "other": "cp-2"}),
    ]
    found = judge(THREE, seen, NOW.timestamp())["failovers"]
    assert [(one["to"], one["from"], one["seconds"], one["cause"]) for one in found] == [
        ("cp-3", "cp-2", None, "no heartbeat of cp-2 for 0.6 s"),
        ("cp-2", "cp-1", 0.41, "cp-1: this node may not hold it: ProxyDown"),
        ("cp-1", None, None, "no other node was heard to have it"),
    ]
    assert found[1]["time"] == "1970-01-01T00:33:20Z"


def test_the_newest_failovers_are_told() -> None:
    many = [{"time": float(second), "here": True, "why": "x"} for second in range(100, 200)]
    twice = {"time": 199.0, "here": True, "why": "x", "what": "lease"}
    found = judge(THREE, [moved(well("cp-1", vip=True), *many, twice)], NOW.timestamp())["failovers"]
    assert {one["what"] for one in found[:2]} == {"vip", "lease"}, "of the same moment"
    assert len(found) == status.FAILOVERS
    assert found[0]["time"] == "1970-01-01T00:03:19Z"


def test_each_field_that_programs_get_is_on_its_page(root: Path) -> None:
    full = replace(well("cp-1"), agent=everything(), trouble="x", authority_ends=NOW)
    move = {"time": 0.0, "what": "vip", "here": True}
    found = judge(THREE, [full, *(replace(one, agent={"moves": [move]}) for one in (well("cp-2"), well("cp-3")))])
    found["images"] = [Presence("app:v1", 1, {}, 3).to_dict()]
    page = (root / "docs/status.md").read_text()
    for kind in ("nodes", "failovers", "images"):
        table = page.partition(f"| field of `{kind}[]` |")[2].partition("\n\n")[0]
        first = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
        assert first == found[kind][0].keys(), kind
