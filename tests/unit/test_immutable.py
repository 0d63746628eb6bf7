"""What cannot be changed in place is found before anything is touched, in a dry-run as well, and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kubeadm_registry import config, secrets
from kubeadm_registry.cluster import MembersChange
from kubeadm_registry.config import immutable
from kubeadm_registry.config.immutable import Immutable
from kubeadm_registry.engine.phase import leaves
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import PreflightFailed
from kubeadm_registry.phases.immutable import OF_MEMBERS, nodes_lost, same_cluster
from kubeadm_registry.phases.workflows import INIT, RESET
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.healthy import healthy
from tests.unit.test_workflow import Recorder

FIVE = config.SMALLEST.replace(
    "  vip:", "    - {name: cp-4, address: 10.0.0.14}\n    - {name: cp-5, address: 10.0.0.15}\n  vip:"
)
ONE = "".join(line for line in config.SMALLEST.splitlines(True) if "cp-2" not in line and "cp-3" not in line)
SET_UP = "spec.nodes: the registry consists of cp-1, cp-2, cp-3, and the file "
CHANGES: dict[str, tuple[str, list[str], list[Immutable]]] = {
    "the name of the cluster": (
        config.SMALLEST.replace("name: registry", "name: other"),
        ["metadata.name is registry and cannot be changed to other in place; "],
        [immutable.NAME],
    ),
    "servers added": (FIVE, [SET_UP + "adds cp-4, cp-5; "], [immutable.MEMBERS]),
    "one server of three left": (
        ONE,
        [SET_UP + "omits cp-2, cp-3; ", "the number of copies is 3, and the file requires 1; "],
        [immutable.MEMBERS, immutable.COPIES],
    ),
    "a server renamed": (
        config.SMALLEST.replace("cp-2", "cp-9"),
        [SET_UP + "adds cp-9 and omits cp-2; "],
        [immutable.MEMBERS],
    ),
    "an address": (
        config.SMALLEST.replace("10.0.0.12", "10.0.0.22"),
        ["spec.nodes[].address of cp-2 is 10.0.0.12 and cannot be changed to 10.0.0.22 in place; "],
        [immutable.ADDRESS],
    ),
    "two addresses exchanged": (
        config.SMALLEST.replace("0.12", "0.x").replace("0.13", "0.12").replace("0.x", "0.13"),
        [
            "spec.nodes[].address of cp-2 is 10.0.0.12 and cannot be changed to 10.0.0.13 in place; ",
            "spec.nodes[].address of cp-3 is 10.0.0.13 and cannot be changed to 10.0.0.12 in place; ",
        ],
        [immutable.ADDRESS, immutable.ADDRESS],
    ),
    "the data directory": (
        config.SMALLEST + "  dataDirectory: /srv/registry\n",
        ["spec.dataDirectory is /var/lib/kubeadm-registry and cannot be changed to /srv/registry in place; "],
        [immutable.DIRECTORY],
    ),
}


def put_up(fake: FakeCluster) -> FakeCluster:
    """Install the registry of *fake*, which keeps something from then on."""
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    for server in fake.servers.values():
        server.put(f"{fake.config.spec.data_directory}/garage/meta/cluster_layout", b"a layout")
    return healthy(fake)


def with_file(fake: FakeCluster, text: str) -> FakeCluster:
    return healthy(fake.with_file(text))


def refused(fake: FakeCluster, only: tuple[str, ...] = (), **options: Any) -> list[str]:
    """What SameCluster finds; nothing is changed anywhere."""
    before, recorder = fake.snapshot(), Recorder()
    acts = fake.acts()
    with pytest.raises(PreflightFailed) as caught:
        run(INIT, fake.cluster, recorder, only=only, skip=() if only else ("containerd", "verify"), **options)
    assert (fake.snapshot(), fake.acts()) == (before, acts)
    assert {problem.check for problem in caught.value.problems} == {"SameCluster"}
    return [problem.text for problem in caught.value.problems]


@pytest.mark.parametrize("options", [{}, {"dry_run": True}], ids=["init", "dry-run"])
@pytest.mark.parametrize(("text", "words", "rules"), CHANGES.values(), ids=CHANGES)
def test_it_is_refused_with_what_to_do(
    three: FakeCluster, text: str, words: list[str], rules: list[Immutable], options: dict[str, bool]
) -> None:
    found = refused(with_file(put_up(three), text), **options)
    assert len(found) == len(words)
    for problem, begin, rule in zip(found, words, rules, strict=True):
        assert problem.startswith(begin)
        assert rule.why in problem
        assert problem.endswith(f"restore the old value, or run {rule.remedy}")


#: What gives nodes nothing that follows from the members.
ALIKE = {"programs", "base", "backend/joined", "vip/holder", "settle/stored", "verify/push", "verify/pull"}
STEPS = {path: phase for path, phase in leaves(INIT) if phase.steps is not None}


def test_every_phase_that_gives_nodes_more_compares_them() -> None:
    assert {path for path, phase in STEPS.items() if not {*OF_MEMBERS} <= {*phase.checks}} == ALIKE


@pytest.mark.parametrize("phase", sorted(STEPS.keys() - ALIKE - {"containerd"}))
def test_a_phase_by_itself_is_refused_too(three: FakeCluster, phase: str) -> None:
    """Also with the file of before a replacement, and for whoever ignores what is found."""
    assert refused(with_file(put_up(three), config.SMALLEST.replace("cp-2", "cp-9")), only=(phase,), ignore=("all",))


def test_another_kind_of_storage(three: FakeCluster) -> None:
    """There is but one kind now; the file of a later release may name another."""
    put_up(three)
    spec = three.config.spec
    backend = spec.backend.model_copy(update={"type": "seaweed"})
    three.config = three.config.model_copy(update={"spec": spec.model_copy(update={"backend": backend})})
    [found] = list(same_cluster(three.cluster, three.cluster.leader))
    assert found.startswith("spec.backend.type is garage and cannot be changed to seaweed in place; ")


def test_every_rule_is_tested() -> None:
    tested = [rule for _, _, rules in CHANGES.values() for rule in rules] + [immutable.BACKEND]
    assert set(tested) == set(immutable.TABLE)


# ---- what may be changed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("10.0.0.10}", "10.0.0.99}"),
        lambda text: text + "  frontend: {type: distribution}\n",
        lambda text: text + "  proxy: {anonymousPull: false}\n",
        lambda text: text.replace("10.0.0.11}", "10.0.0.11, secondaryAddress: 'fd00::1'}"),
    ],
    ids=["nothing", "the VIP", "the frontend", "who may pull", "a second address"],
)
def test_everything_else(three: FakeCluster, change: Callable[[str], str]) -> None:
    fake = with_file(put_up(three), change(config.SMALLEST))
    assert list(same_cluster(fake.cluster, fake.cluster.leader)) == []


def test_what_could_not_be_stored_yet_may_all_be_changed(three: FakeCluster) -> None:
    """The first init failed, as with a data directory that cannot be written: the next one has another."""
    three.servers["cp-2"].broken["kubeadm-registry-garage.service"] = "cannot write"
    with pytest.raises(Exception, match="cannot write"):
        run(INIT, three.cluster, Recorder(), skip=ELSEWHERE)
    three.servers["cp-2"].broken.clear()
    fake = with_file(three, config.SMALLEST + "  dataDirectory: /srv/registry\n")
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    assert fake.servers["cp-1"].content("/srv/registry/garage/meta/node_key")


def test_a_server_that_was_set_up_anew_is_no_other_one(three: FakeCluster) -> None:
    put_up(three)
    del three.servers["cp-2"]
    fake = with_file(three, config.SMALLEST)
    assert list(same_cluster(fake.cluster, fake.cluster.leader)) == []


def test_where_half_of_the_nodes_lost_everything_recover_is_what_fills_them(three: FakeCluster) -> None:
    """A node more, or one of which a reset has left the images, is no reason to refuse."""
    put_up(three)
    del three.servers["cp-3"]
    fake = with_file(three, config.SMALLEST)
    assert list(nodes_lost(fake.cluster, fake.cluster.leader)) == []
    del fake.servers["cp-1"]
    fake = with_file(fake, config.SMALLEST)
    [found] = nodes_lost(fake.cluster, fake.cluster.leader)
    assert found.startswith("cp-1, cp-3 lost everything, and cp-2 may lack images")
    nobody = replace(fake.cluster, change=MembersChange((), {}))
    assert list(nodes_lost(nobody, nobody.leader)) == [found], "also in a `join` of a member"
    run(RESET, fake.cluster, Recorder(), skip=("containerd", "data"))
    assert list(nodes_lost(fake.cluster, fake.cluster.leader)) == []


# ---- after a reset that left the images -----------------------------------------------------------------------------


@pytest.fixture
def left(three: FakeCluster) -> FakeCluster:
    run(RESET, put_up(three).cluster, Recorder(), skip=("containerd", "data"))
    return three


def test_after_a_reset_addresses_may_be_others(left: FakeCluster) -> None:
    fake = with_file(left, config.SMALLEST.replace("10.0.0.12", "10.0.0.22"))
    assert list(same_cluster(fake.cluster, fake.cluster.leader)) == []


def test_after_a_reset_the_data_may_have_been_moved(left: FakeCluster) -> None:
    for server in left.servers.values():
        for path in [path for path in server.tree if path.startswith("/var/lib/kubeadm-registry")]:
            server.tree[path.replace("/var/lib/kubeadm-registry", "/srv/registry")] = server.tree.pop(path)
    fake = with_file(left, config.SMALLEST + "  dataDirectory: /srv/registry\n")
    kept = fake.servers["cp-1"].content("/srv/registry/secrets.json")
    cluster = fake.cluster
    assert list(same_cluster(cluster, cluster.leader)) == []
    run(INIT, cluster, Recorder(), only=("base", "secrets"))
    assert fake.servers["cp-1"].content(secrets.PATH) == kept


@pytest.mark.parametrize("text", [FIVE, ONE, config.SMALLEST.replace("cp-2", "cp-9")], ids=["more", "fewer", "renamed"])
def test_after_a_reset_the_servers_must_still_be_the_same(left: FakeCluster, text: str) -> None:
    [found] = refused(with_file(left, text))
    assert found.startswith(SET_UP)


# ---- what cannot be told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["not toml", "x = 1\n", "metadata_dir = 7\nbootstrap_peers = []\n"])
def test_a_configuration_that_somebody_spoilt(three: FakeCluster, content: str) -> None:
    put_up(three).servers["cp-2"].put("/etc/kubeadm-registry/garage/garage.toml", content)
    [found] = refused(three)
    assert found.startswith("cp-2: /etc/kubeadm-registry/garage/garage.toml was changed since init wrote it: ")
    assert found.endswith("restore the file from another node, with this node's own addresses")


@pytest.mark.parametrize("ignore", ["SameCluster", "all"])
def test_nobody_goes_on_regardless(three: FakeCluster, ignore: str) -> None:
    """Also in a dry-run, where a server has no key yet."""
    fake = with_file(put_up(three), FIVE)
    for options in ({}, {"dry_run": True}):
        assert refused(fake, ignore=(ignore,), **options)
