"""What the operator has done on the nodes, by their helpers: the real executor at a registry in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from kubeadm_registry.access import executor
from kubeadm_registry.access.executor import ByHelper, Node, OnHost
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.helper.__main__ import answered
from kubeadm_registry.operator import carrying, posting
from kubeadm_registry.operator.conditions import Verdict
from kubeadm_registry.retention import Plan, RegistryPolicy, policy
from kubeadm_registry.retention.order import Caller, Order
from kubeadm_registry.retention.record import Key
from kubeadm_registry.retention.standing import Pin, Standing
from kubeadm_registry.upkeep import planning, running, store
from kubeadm_registry.upkeep.planning import Look
from tests.unit.fake_cluster import FakeCluster, fixed_secrets
from tests.unit.fake_images import Repositories
from tests.unit.fake_registry import connector
from tests.unit.image_site import NAMES
from tests.unit.test_cli_retention_runs import Site, asked, takes_long

pytest_plugins = ["tests.unit.image_site"]

KEY = fixed_secrets(NAMES).retention_key
AUTOMATIC = "  approval: Automatic\n  maximumShare: 100\n"


@dataclass
class Operator:
    """Makes plans of *site* and has them carried out, as a replica that leads for the *epoch*-th time."""

    site: Site
    epoch: int = 5
    lease: str = "uid-1"
    shown: dict[str, Collection[Key]] = field(default_factory=dict)
    away: tuple[str, ...] = ()
    told: list[Verdict] = field(default_factory=list)

    def push(self, tag: str, day: float) -> None:
        """Push a newer image, which a plan sees; then it is that *day*."""
        self.site.registry.image("app", tag, layer=tag.encode())
        self.plan()
        self.site.at(day)

    def standing(self, change: Callable[[Standing], Standing] = lambda one: one) -> Standing:
        """What people have said, after this *change*."""
        with connector(self.site.registry)() as registry:
            store.restate(registry, KEY, change)
            return store.read_standing(registry, KEY)

    def plan(self) -> tuple[Look, Plan, RegistryPolicy]:
        rules = policy.load(self.site.folder / "policy.yaml")
        nodes = partial(executor.pulls, self.nodes(), len(NAMES))
        looked = planning.look(connector(self.site.registry), KEY, rules, int(self.site.now()), sets={}, pulls=nodes)
        made = looked.plan(rules)
        assert isinstance(made, Plan)
        self.shown[made.digest] = made.keys
        return looked, made, rules

    def nodes(self) -> list[Node]:
        return [self._node(name) for name in NAMES]

    def _node(self, name: str) -> Node:
        host = next(one for one in self.site.servers.cluster.hosts if one.name == name)

        def ask(content: bytes, _: float) -> bytes:
            if name in self.away:
                raise ConnectionFailed("no route to host", host=name, code="HostUnreachable", hint="switch it on")
            return answered(content, OnHost(host))

        return ByHelper(name, ask)

    def round(self, *approved: str, shown: Mapping[str, Collection[Key]] | None = None) -> Verdict:
        looked, made, rules = self.plan()
        with connector(self.site.registry)() as registry:
            prepared = carrying.prepare(
                registry, KEY, looked, made, rules, approved=approved, shown=self.shown if shown is None else shown
            )
        return carrying.carry_out(prepared, self.nodes(), Caller(self.lease, self.epoch), self.told.append)


@pytest.fixture
def operator(three: FakeCluster, fake: Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    monkeypatch.setattr(executor, "INTERVAL", 0.0)
    return Operator(Site(three, fake, tmp_path))


def test_a_policy_that_needs_no_approval_is_carried_out(operator: Operator) -> None:
    operator.site.policy(AUTOMATIC)
    done = operator.round()
    assert (done.status, done.reason) == (True, "Done")
    assert done.message.startswith("cp-2: 2 to the trash")
    assert operator.site.tags() == ["v3"]
    again = operator.round()
    assert (again.status, again.reason) == (True, "NothingToDo")


def test_what_a_node_asks_for_in_vain_comes_back_with_the_next_plan(operator: Operator) -> None:
    operator.site.policy(AUTOMATIC)
    assert "2 to the trash" in operator.round().message
    asked(operator.site, "app:v1", day=40.5)
    operator.site.at(41)
    operator.away = ("cp-1",)  # what the others say is enough
    assert "1 restored" in operator.round().message
    assert operator.site.tags() == ["v1", "v3"]
    [said] = operator.told
    assert (said.status, said.reason) == (True, "Restored")
    assert said.message == "restored app:v1: used by a pull by 10.0.0.77 as 'app:v1'"
    assert re.fullmatch(r"[a-z0-9.-]+", posting.name_of({"metadata": {"uid": "5-6"}}, said, ""))
    assert operator.round().reason == "NothingToDo"
    assert len(operator.told) == 1


def test_what_waits_for_an_approval_is_not_carried_out(operator: Operator) -> None:
    waits = operator.round()
    assert (waits.status, waits.reason) == (None, "ApprovalRequired")
    assert operator.site.tags() == ["v1", "v2", "v3"]
    _, made, _ = operator.plan()
    assert operator.round("sha256:" + "0" * 64).reason == "ApprovalRequired"
    assert operator.round(made.digest).reason == "Done"
    assert operator.site.tags() == ["v3"]


def test_of_an_earlier_plan_goes_only_what_the_present_one_deletes_as_well(operator: Operator) -> None:
    _, read, _ = operator.plan()
    operator.push("v4", 50)
    assert operator.round(read.digest).reason == "Done"
    assert operator.site.tags() == ["v3", "v4"], "v3 was in no plan that somebody read"
    operator.push("v5", 52)
    assert operator.round(read.digest, shown={}).reason == "ApprovalRequired", "nobody remembers that plan"


def test_what_there_is_no_time_for_is_left_to_the_next_plan(operator: Operator) -> None:
    _, read, _ = operator.plan()
    takes_long(operator.site)
    first = operator.round(read.digest)
    assert (first.status, first.reason) == (True, carrying.UNFINISHED)
    assert "1 left for the next run" in first.message
    assert operator.site.tags() == ["v2", "v3"]
    assert operator.round(read.digest).reason == carrying.DONE
    assert operator.site.tags() == ["v3"]


def test_without_a_key_nothing_is_asked(operator: Operator) -> None:
    operator.site.policy(AUTOMATIC)
    looked, made, rules = operator.plan()
    with connector(operator.site.registry)() as registry:
        prepared = carrying.prepare(registry, KEY, looked, made, rules, approved=(), shown={})
    said = carrying.carry_out(prepared, None, Caller("uid-1", 1))
    assert (said.status, said.reason) == (None, "NoHelper")
    assert operator.site.tags() == ["v1", "v2", "v3"]


def test_a_failure_is_told_with_its_code(operator: Operator) -> None:
    operator.site.policy(AUTOMATIC)
    operator.site.executor.lease = None
    said = operator.round()
    assert (said.status, said.reason) == (False, "NoExecutor")
    assert "no node holds the lease" in said.message


@pytest.mark.parametrize(
    ("lease", "epoch", "code"), [("uid-1", 4, "CallerOutdated"), ("uid-2", 9, "CallerUnknown")], ids=["older", "other"]
)
def test_an_operator_that_may_know_less_than_one_before_deletes_nothing_unapproved(
    operator: Operator, lease: str, epoch: int, code: str
) -> None:
    """A replica that woke up late, an etcd of before, a cluster that was made anew."""
    operator.site.policy(AUTOMATIC)
    assert operator.round().reason == "Done"
    operator.push("v4", 60)
    operator.lease, operator.epoch = lease, epoch
    said = operator.round()
    assert (said.status, said.reason) == (False, "OrderRefused")
    assert code in said.message
    assert operator.site.tags() == ["v3", "v4"]
    assert operator.round().reason == "OrderRefused", "it is not known for having asked"
    _, made, _ = operator.plan()
    assert operator.round(made.digest).reason == "Done", "somebody has read it"
    operator.push("v5", 90)
    assert operator.round().reason == "Done", "and the next one is trusted again"


def test_what_is_used_again_comes_back_whoever_asks(operator: Operator) -> None:
    operator.site.policy(AUTOMATIC)
    assert operator.round().reason == "Done"
    operator.standing(lambda one: one.pinned(Pin("10.0.0.10:5000/app:v1", "needed", 1)))
    operator.push("v4", 60)
    operator.lease = "uid-2"
    assert operator.round().reason == "OrderRefused"
    assert operator.site.tags() == ["v1", "v3", "v4"], "v1 is back, nothing went"
    assert operator.round().reason == "OrderRefused", "a restoration makes nobody known"


def test_an_approval_by_the_command_is_found_with_an_automatic_policy_too(operator: Operator) -> None:
    operator.site.policy(AUTOMATIC)
    assert operator.round().reason == "Done"
    operator.site.registry.image("app", "v4", layer=b"v4")
    operator.plan()
    operator.site.at(40 + 5)
    operator.site.registry.image("app", "v5", layer=b"v5")
    operator.lease = "uid-2"
    operator.plan()
    operator.site.at(48)
    _, made, _ = operator.plan()
    with connector(operator.site.registry)() as registry:
        running.approve(registry, KEY, made, int(operator.site.now()))
    assert operator.round().reason == "Done"
    assert operator.standing().approved == {}, "it was for once"


def test_the_executor_writes_nothing_that_people_write(operator: Operator) -> None:
    """So a pin or an approval of the same moment is not lost: the registry cannot compare before it writes."""
    _, made, _ = operator.plan()
    with connector(operator.site.registry)() as registry:
        running.approve(registry, KEY, made, int(operator.site.now()))
    asked = len(operator.site.registry.requests)
    assert operator.round().reason == "Done"
    written = [one.path.rpartition("/")[2] for one in operator.site.registry.requests[asked:] if one.method == "PUT"]
    assert {"spent", "trash", "history"} <= set(written)
    assert "standing" not in written
    with connector(operator.site.registry)() as registry:
        assert store.read_standing(registry, KEY).approved == {}, "it was for once"
        running.approve(registry, KEY, made, int(operator.site.now()) + 1)
        assert store.read_standing(registry, KEY).approves(made), "and may be given again"


def test_a_used_annotation_does_not_stand_in_the_way_of_what_needs_none(operator: Operator) -> None:
    operator.site.policy("  approval: Required\n")
    _, made, _ = operator.plan()
    assert operator.round(made.digest).reason == "Done"
    operator.site.policy(AUTOMATIC)
    operator.push("v4", 60)
    assert operator.round(made.digest).reason == "Done"
    assert operator.site.tags() == ["v4"]


def test_an_order_sweeps_nothing_but_tombstones_and_touches_no_records(operator: Operator) -> None:
    """Whatever the owner of the key writes into it."""
    operator.site.policy(AUTOMATIC)
    order = Order(
        int(operator.site.now()), approved=True, sweep={"app": ("v1",), "kubeadm-registry/retention": ("ledger",)}
    )
    outcome = executor.run(operator.nodes(), order.to_json(), deadline=60)
    assert "run" in outcome.result
    assert operator.site.tags() == ["v1", "v2", "v3"]
    with connector(operator.site.registry)() as registry:
        assert store.read(registry, KEY).repositories


def test_a_node_that_is_away_is_done_without(operator: Operator) -> None:
    operator.site.policy(AUTOMATIC)
    operator.away = ("cp-1",)
    assert operator.round().reason == "Done"
    operator.away = NAMES
    said = operator.round()
    assert (said.status, said.reason) == (True, "NothingToDo")
    operator.push("v4", 60)
    assert operator.round().reason == "HostUnreachable"


def test_an_operator_whose_lease_went_on_is_trusted(operator: Operator) -> None:
    operator.site.policy(AUTOMATIC)
    assert operator.round().reason == "Done"
    operator.push("v4", 60)
    operator.epoch += 3
    assert operator.round().reason == "Done"


def test_an_order_with_a_shorter_window_deletes_for_good_a_day_later(operator: Operator) -> None:
    """Whoever has the operator's key says how long the trash is kept; a day is left to notice it."""
    operator.site.policy(AUTOMATIC)
    assert operator.round().reason == "Done"
    gone = operator.site.registry.store["app"].tags
    operator.site.policy(AUTOMATIC + "  trash: {window: 1m}\n")
    operator.push("v4", 41)
    said = operator.round()
    assert "0 deleted permanently" in said.message, said
    assert [tag for tag in gone if tag.startswith("trash-")]
    operator.site.at(42.5)
    assert "3 deleted permanently" in operator.round().message
