"""What the operator does, a round at a time: each reads everything anew, and writes what differs.

============  ================================================================================================
health        adopts the RegistryCluster, looks at the registry, writes conditions and Events
images        asks the cluster what its pods use, and the registry whether it has that
plans         asks the cluster for everything it uses, makes a plan by the policy, writes it, and has it carried out
approvals     takes up what people say of the plan
space         frees the space of what has gone for good, once a day at most
certificates  has nodes renew their certificates before they end
replacement   has a node replaced that ``spec.nodes`` does not list any more, or that is gone
clients       has new nodes of Kubernetes pull from the registry
============  ================================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from kubeadm_registry import config
from kubeadm_registry.access.collecting import Member
from kubeadm_registry.custom_resources.names import ANOTHER_OBJECT
from kubeadm_registry.errors import ConfigError, ConnectionFailed, Error
from kubeadm_registry.operator import carrying, freeing, health, images, looking, plans, probes, replacing
from kubeadm_registry.operator.clients import Clients
from kubeadm_registry.operator.clocks import compare_clocks
from kubeadm_registry.operator.conditions import Verdict, changes, failure, merged, seconds_of
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.objects import CUSTOM, Object, Objects
from kubeadm_registry.operator.plans import Made
from kubeadm_registry.operator.posting import post
from kubeadm_registry.operator.renewing import Renewals
from kubeadm_registry.operator.way import Way
from kubeadm_registry.registry import SILENCE
from kubeadm_registry.retention import Plan, Refused, RegistryPolicy, policy
from kubeadm_registry.retention.order import Caller
from kubeadm_registry.retention.record import Key
from kubeadm_registry.upkeep import clusters, planning, store
from kubeadm_registry.upkeep.api import Api
from kubeadm_registry.upkeep.clusters import Marker

CLUSTERS, POLICIES, PLANS = "registryclusters", "registrypolicies", "registryretentionplans"
#: How many plans are remembered until they are approved.
_MOST_SHOWN = 5


@dataclass(slots=True)
class Rounds:
    """The rounds of the replica *replica*. *apis* read whole clusters, one for the images and one for plans.

    *the_way* reads how the registry is reached. *caller* is as who orders are given, and raises Lost. *wake_health* is
    called when a round has found what health shows, *wake_plans* when a plan was approved, *wake_space* when one was
    carried out. *compare* raises Error if *clock* is not that of the nodes.
    """

    replica: str
    objects: Objects
    apis: tuple[Api, Api]
    the_way: Callable[[], Way]
    figures: Figures
    caller: Callable[[], Caller]
    wake_health: Callable[[], None] = lambda: None
    wake_plans: Callable[[], None] = lambda: None
    wake_space: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.time
    compare: Callable[[config.RegistryCluster, Way, Callable[[], float]], None] = compare_clocks
    _found: dict[str, Verdict] = field(default_factory=dict)
    _shown: dict[str, frozenset[Key]] = field(default_factory=dict)
    """What the newest plans delete, by digest: those that people may have read before they approve one."""
    _space: dict[str, Any] = field(default_factory=dict)
    """What was freed last, for the status."""
    _space_again: float = 0.0
    _deletable: int | None = None
    """How many images go by the newest plan or are in the trash; None: there is no plan."""
    _renewals: Renewals = field(default_factory=Renewals)
    _clients: Clients = field(default_factory=Clients)
    _replacement: dict[str, Any] = field(default_factory=dict)
    """Which node was replaced last, for the status."""

    def health(self) -> None:
        """Look at the registry, and write how it is. Raises Error, Lost."""
        now = self.clock()
        found = self.objects.list(CLUSTERS)
        if not found:
            self.figures.replace("condition", {})
            return
        mine, *others = found
        for other in others:
            text = f"there is another RegistryCluster, {mine['metadata']['name']}; delete this one"
            self._write(CLUSTERS, other, [Verdict("Adopted", False, ANOTHER_OBJECT, text)], now)
        try:
            cluster = config.from_object(mine)
        except ConfigError as error:
            told = [one for one in self._found.values() if one.kind == "RetentionHealthy"]
            adopted = Verdict("Adopted", False, "Invalid", str(error))
            self._write(CLUSTERS, mine, [adopted, *health.invalid(mine), *told], now)
            return
        adopted = Verdict("Adopted", True, "Adopted", "the operator manages this registry")
        try:
            the_way = self.the_way()
        except ConfigError as error:
            verdicts = [adopted, *health.unknown(error.code, error.advice), *self._later(mine)]
            self._write(CLUSTERS, mine, verdicts, now)
            return
        vip, seen = looking.look(cluster, the_way)
        authority_ends, moment = probes.authority_ends(the_way), datetime.fromtimestamp(now, UTC)
        verdicts = [adopted, *health.of_cluster(cluster, vip, seen, authority_ends, moment), *self._later(mine)]
        verdicts += self._stuck(mine, next(one.status for one in verdicts if one.kind == "StorageFilling"))
        of_nodes = {one.name: health.of_node(one, moment) for one in seen}
        holders = health.holders(seen, vip)
        before = {one["name"]: one.get("health") for one in mine.get("status", {}).get("nodes", ())}
        more = {
            "vip": {
                "address": cluster.spec.vip.address,
                **({"holder": holders[0]} if len(holders) == 1 and holders[0] in of_nodes else {}),
            },
            "nodes": [
                {
                    **looking.of_node(one, authority_ends, moment),
                    "health": merged(before.get(one.name), of_nodes[one.name], now, mine["metadata"]["generation"]),
                }
                for one in seen
            ],
        }
        self._write(CLUSTERS, mine, verdicts, now, more)
        for name, verdicts in of_nodes.items():
            for change in changes(before.get(name), verdicts):
                post(self.objects, self.replica, mine, change, name)
        self.figures.replace("node_serves", {(("node", one.name),): one.probe.serves for one in seen})

    def images(self) -> None:
        """Find images that pods use and the registry lacks. Raises Error, Lost."""
        try:
            found = self._adopted()
        except ConfigError as error:
            self._tell(Verdict("ImagesMissing", None, error.code, error.advice))
            return
        if found is None:
            return
        _, cluster, the_way = found
        connect = the_way.registry(cluster.spec.vip.address, timeout=SILENCE)
        self._tell(images.verdict(cluster, connect, clusters.running(self.apis[0])))

    def plans(self) -> None:
        """Make a plan by the policy, and write it. Raises Error, Lost."""
        now = self.clock()
        found = self.objects.list(POLICIES)
        self._without_policy({one["metadata"]["name"] for one in found}, now)
        if not found:
            text = "there is no RegistryPolicy, so nothing is planned"
            self._deletable = None
            for name in ("plan_deletions", "plan_freed_bytes", "plan_made_seconds"):
                self.figures.replace(name, {})
            self._tell(Verdict("RetentionHealthy", None, "NoPolicy", text))
            return
        mine, *others = found
        for other in others:
            text = f"there is another RegistryPolicy, {mine['metadata']['name']}; delete this one"
            self._write(POLICIES, other, [Verdict("Accepted", False, "AnotherObject", text)], now)
        name = mine["metadata"]["name"]
        try:
            rules = policy.from_object(mine)
        except ConfigError as error:
            verdict = Verdict("RetentionHealthy", False, "PolicyInvalid", f"the policy {name} is not valid")
            if (plan := self.objects.get(f"{CUSTOM}/{PLANS}/{name}")) is not None:
                self._empty(plan, replace(verdict, kind="Made"), now)
            self._write(POLICIES, mine, [Verdict("Accepted", False, "Invalid", str(error)), verdict], now)
            self._deletable = None
            self._tell(verdict)
            return
        plan = self._marked(name)
        said = plans.unused(plan)
        marker = plans.marker(plan or {})
        found_out = self._plan(rules, said, int(now), marker)
        made, approved = found_out.plan, (*said, *found_out.approved)
        verdict = plans.healthy(made)
        if plan is not None:
            generation = mine["metadata"]["generation"]
            published = self._publish(found_out)
            status = plans.status(
                made, rules, generation, plan, approved=approved, now=self.clock(), published=published
            )
            if found_out.look is not None and found_out.look.has(marker):
                marker = replace(marker, confirmed=marker.newest)
            self.objects.put_status(PLANS, plan, {**status, **plans.used(plan), **plans.remembered(marker)})
            verdict = self._carry_out(found_out, rules, said, mine) or verdict
        accepted = Verdict("Accepted", True, "Accepted", "the operator plans by this policy")
        look = found_out.look
        fitting = plans.fitting(made, look, rules, found_out.unmatched, mine)
        digest = {} if isinstance(made, Refused) else {"plan": made.digest}
        self._write(POLICIES, mine, [accepted, verdict, *fitting], self.clock(), digest)  # an hour later, if it ran
        self._deletable = plans.deletable(made, look.trash) if isinstance(made, Plan) and look is not None else None
        self._tell(verdict)
        if not isinstance(made, Refused):
            self.figures.set("plan_deletions", len(made.deletions))
            self.figures.set("plan_freed_bytes", made.freed)
            self.figures.set("plan_made_seconds", made.made)

    def _publish(self, found: Made) -> tuple[Verdict, str]:
        """Keep the whole plan in the registry; see ``plans.publish``. Raises Lost."""
        if isinstance(found.plan, Refused) or found.cluster is None or found.way is None:
            return plans.NOT_PUBLISHED, ""
        self.caller()
        connect = found.way.registry(found.cluster.spec.vip.address, timeout=SILENCE)
        return plans.publish(connect, found.way.key, found.plan)

    def _marked(self, name: str) -> Object | None:
        """The object of the plans of the policy *name*, made if need be, with what the cluster is to remember."""
        path = f"{CUSTOM}/{PLANS}/{name}"
        plan = self.objects.get(path) or self.objects.create(f"{CUSTOM}/{PLANS}", plans.new(name))
        if plan is None:
            return None
        status = {**plan.get("status", {}), **plans.remembered(plans.next_marker(plans.marker(plan)))}
        return self.objects.get(path) if self.objects.put_status(PLANS, plan, status) else plan

    def failed(self, kind: str, error: Exception) -> None:
        """Say that *error* has ended the round that finds the condition *kind*."""
        self._tell(failure(kind, None, error))

    def plans_failed(self, error: Exception) -> None:
        """Say that *error* has ended a round of plans, at the cluster and at the policy. Raises Lost."""
        if isinstance(error, Error) and error.code == "ObjectChanged":
            return  # somebody has just written to the plan, and the next round heeds it
        verdict = failure("RetentionHealthy", False, error)
        self._deletable = None
        self._tell(verdict)
        with suppress(Error, OSError):  # it may be the API server that fails
            for mine in self.objects.list(POLICIES)[:1]:
                self._write(POLICIES, mine, [verdict], self.clock())

    def _without_policy(self, policies: Collection[str], now: float) -> None:
        """Empty the plans of policies that are gone: such a plan is nobody's wish any more."""
        for plan in self.objects.list(PLANS):
            if (name := plan["spec"]["policy"]) not in policies:
                self._empty(plan, Verdict("Made", False, "NoPolicy", f"there is no RegistryPolicy {name}"), now)

    def _empty(self, plan: Object, why: Verdict, now: float) -> None:
        conditions = merged(plan.get("status", {}).get("conditions"), [why, plans.NOT_PUBLISHED], now, 1)
        status = {"conditions": conditions, **plans.used(plan), **plans.remembered(plans.marker(plan))}
        self.objects.put_status(PLANS, plan, status)

    def approvals(self) -> None:
        """Take up what people say of plans that are there. Raises Error, Lost."""
        asked = {one["metadata"]["name"]: one["spec"].get("approval", "Required")
                 for one in self.objects.list(POLICIES)}  # fmt: skip
        found = self.objects.list(PLANS)
        judged = [(plan["metadata"]["name"], verdict) for plan in found for verdict in plans.valid(plan)]
        for name, verdict in judged:
            self._say(name, verdict)
        for plan in self.objects.list(PLANS) if judged else found:
            status = plan.get("status", {})
            if "digest" not in status and plans.unused(plan):
                self.wake_plans()  # somebody accepts why there is no plan
            elif "digest" in status and (name := plan["spec"]["policy"]) in asked:
                written, used = plans.unused(plan), plans.used(plan)
                said, before = plans.approval(status, asked[name], written), status.get("approval", {})
                stays = (status["digest"], *used.get("usedApprovals", ()))
                if said["state"] == "Required" and before.get("digest") in stays:
                    said = before  # by `retention approve`, which only a plan looks for; or a run has begun by it
                changed = self.objects.put_status(PLANS, plan, {**plans.without(status), **used, "approval": said})
                if changed and (said["state"] == "Approved" or self._shown.keys() & set(written)):
                    self.wake_plans()

    def space(self) -> None:
        """Free the space of what has gone for good, if it is time to. Raises Error, Lost."""
        adopted, policies = self._adopted(), self.objects.list(POLICIES)
        if adopted is None:
            return
        mine, cluster, the_way = adopted
        if (members := the_way.members(cluster)) is not None:
            self.caller()
            # Whether or not it is time to free space again, or anybody wants it any more.
            if (completed := freeing.complete(cluster, members)) is not None:
                self._tell(completed)
        try:
            wanted = bool(policies) and policy.from_object(policies[0]).spec.free_space == "Daily"
        except ConfigError:
            return
        if not wanted and policies:
            self._tell(Verdict(freeing.KIND, None, "Disabled", "the policy says freeSpace: Never"))
        elif not wanted and freeing.failed(mine):
            self._tell(Verdict(freeing.KIND, None, "NoPolicy", "there is no RegistryPolicy, so no space is freed"))
        elif wanted and members is not None and the_way.key and the_way.login is not None:
            self._free(cluster, the_way, members, mine)

    def _free(self, cluster: config.RegistryCluster, the_way: Way, members: Sequence[Member], mine: Object) -> None:
        status = mine.get("status", {})
        last = (self._space or status.get("space", {})).get("began")
        filling = any(one["type"] == "StorageFilling" and one["status"] == "True"
                      for one in status.get("conditions", ()))  # fmt: skip
        connect = the_way.registry(cluster.spec.vip.address, timeout=SILENCE)
        with connect() as registry:
            history = store.read_history(registry, the_way.key)
        began = seconds_of(last) if last else None
        now = self.clock()
        if now < self._space_again or not freeing.due(began, history, filling=filling, now=now):
            return
        self._space_again = now + freeing.AGAIN
        self.caller()
        done = freeing.free(cluster, members, connect, self.clock)
        if done.report is not None:
            self._space = done.report
            freeing.note(self.objects, mine["metadata"]["name"], done.report)
            for name in ("before", "after", "freed"):
                self.figures.set(f"space_{name}_bytes", done.report[f"{name}Bytes"])
        self._tell(done.verdict)
        if done.report is not None and not list(changes(status.get("conditions"), [done.verdict])):
            post(self.objects, self.replica, mine, done.verdict)  # else health does

    def replacement(self) -> None:
        """Look whether a node is to be replaced, and have it done. Raises Error, Lost."""
        adopted = self._adopted()
        if adopted is None or not replacing.concerns(adopted[0], adopted[2]):
            return
        mine, cluster, the_way = adopted
        before = self._replacement or mine.get("status", {}).get("replacement") or {}
        done = replacing.Round(mine, cluster, the_way, self.objects, self.caller, self.clock(), before).turn()
        old = self._replacement, self._found.get(done.verdict.kind)
        self._replacement = done.report or {}
        for step in done.steps:
            post(self.objects, self.replica, mine, step)
        if (self._replacement, done.verdict) != old:  # it comes as often as health by itself
            self._tell(done.verdict)

    def certificates(self) -> None:
        """Have nodes renew certificates that end soon. Raises Error, Lost."""
        if (found := self._adopted()) is not None and (members := found[2].members(found[1])) is not None:
            mine = found[0]
            for name, verdict in self._renewals.turn(mine.get("status", {}), members, self.caller):
                post(self.objects, self.replica, mine, verdict, name)
                self.wake_health()

    def clients(self) -> None:
        """Have new client nodes pull from the registry. Raises Error, Lost."""
        if (found := self._adopted()) is not None:
            mine, cluster, the_way = found
            members, now = the_way.members(cluster), self.clock()
            for name, verdict in self._clients.turn(self.objects, cluster, the_way.ca, members, self.caller, now):
                post(self.objects, self.replica, mine, verdict, name)
            said = self._clients.verdict()
            if said is not None and said != self._found.get(said.kind):
                self._tell(said)

    def _plan(self, rules: RegistryPolicy, approved: Sequence[str], now: int, marker: Marker) -> Made:
        """The plan by *rules*, or why there is none; *approved* is what people have written to its object, *marker*
        what the cluster remembers."""
        try:
            found = self._adopted()
            if found is None:
                return Made(plans.no_plan("NotAdopted", "there is no valid RegistryCluster", "apply the cluster file"))
            _, cluster, the_way = found
            if not the_way.key or the_way.login is None:
                text = "the Secret of the operator lacks the push credentials or the key of the ledger"
                return Made(plans.no_plan("NoCredentials", text, "run `kubeadm-registry operator install`"))
            self.compare(cluster, the_way, self.clock)
            api = self.apis[1]
            report = replace(clusters.read(api, paths=[one.pair for one in rules.spec.image_paths]), marker=marker)
            connect = the_way.registry(cluster.spec.vip.address, timeout=SILENCE)
            sets = clusters.kubeadm_sets([cluster.spec.kubernetes.version, report.version])
            reports = {urlsplit(api.server).netloc: report}
            pulls = partial(looking.pulls, cluster, the_way)
            looked = planning.look(
                connect, the_way.key, rules, now, reports=reports, sets=sets, accepted=approved, pulls=pulls,
                pause=cluster.spec.containerd.sandbox_image,
            )  # fmt: skip
            made = looked.plan(rules, accepted=approved)
            known = (made.digest,) if isinstance(made, Plan) and looked.standing.approves(made) else ()
            return Made(made, known, looked, cluster, the_way, report.unmatched)
        except Error as error:
            return Made(plans.no_plan(error.code, error.message, error.hint))

    def _carry_out(self, made: Made, rules: RegistryPolicy, said: Sequence[str], asked: Object) -> Verdict | None:
        """Have the plan carried out as far as it may be by the policy *asked*, and say so at the plan's object.

        Returns what is wrong if that failed.
        """
        plan, look, cluster, the_way = made.plan, made.look, made.cluster, made.way
        name = asked["metadata"]["name"]
        if isinstance(plan, Refused) or look is None or cluster is None or the_way is None:
            self._say(name, Verdict(carrying.KIND, None, "NoPlan", "there is no plan to carry out"))
            return None
        if rules.spec.approval != "Automatic" or plan.needs_approval:
            self._shown.pop(plan.digest, None)
            shown = [*self._shown.items(), (plan.digest, plan.keys)]
            # An approval is for all of its plan, however many runs that takes.
            self._shown = dict([*(one for one in shown[:-_MOST_SHOWN] if one[0] in said), *shown[-_MOST_SHOWN:]])
        try:
            with the_way.registry(cluster.spec.vip.address, timeout=SILENCE)() as registry:
                prepared = carrying.prepare(registry, the_way.key, look, plan, rules, approved=said, shown=self._shown)
            now = self.objects.get(f"{CUSTOM}/{POLICIES}/{name}")
            if now is None or now["metadata"]["generation"] != asked["metadata"]["generation"]:
                return None  # the change has woken this round again
            if set(said) - set(plans.approvals(self.objects.get(f"{CUSTOM}/{PLANS}/{name}"))):
                self.wake_plans()  # somebody has withdrawn an approval by which this plan was made, or would go
                return None
            verdict = carrying.carry_out(
                prepared, the_way.nodes(cluster), self.caller(), partial(self._post, name), replaced=look.replaced,
                begins=partial(self._say, name, used=said),
            )  # fmt: skip
        except Error as error:
            verdict = Verdict(carrying.KIND, False, error.code, error.advice)
        self._say(name, verdict, left=said if verdict.reason in carrying.LEFT else ())
        if verdict.reason in (carrying.DONE, carrying.UNFINISHED):
            self.wake_space()
        if verdict.reason == carrying.UNFINISHED:
            self.wake_plans()
        failed = verdict.status is False
        return Verdict("RetentionHealthy", False, verdict.reason, verdict.message) if failed else None

    def _say(self, name: str, *verdicts: Verdict, used: Sequence[str] = (), left: Sequence[str] = ()) -> None:
        """Say at the plan *name* what came of it, that the approvals *used* are spent, and that those *left* stand."""
        for again in (True, False):
            shown = self.objects.get(f"{CUSTOM}/{PLANS}/{name}")
            if shown is None:
                return
            status = shown.get("status", {})
            conditions = merged(status.get("conditions"), verdicts, self.clock(), 1)
            after = {**plans.spent(status, used, left), "conditions": conditions}
            try:
                changed = self.objects.put_status(PLANS, shown, after)
            except ConnectionFailed as error:
                if again and error.code == "ObjectChanged":
                    continue
                raise
            for change in changes(status.get("conditions"), verdicts) if changed else ():
                post(self.objects, self.replica, shown, change)
            return

    def _post(self, name: str, said: Verdict) -> None:
        """Post an Event about the plan *name*."""
        if (shown := self.objects.get(f"{CUSTOM}/{PLANS}/{name}")) is not None:
            post(self.objects, self.replica, shown, said)

    def _adopted(self) -> tuple[Object, config.RegistryCluster, Way] | None:
        """The object that the operator looks after, its cluster, and the way there; None if there is no valid one.

        Raises ConfigError (NoCredentials).
        """
        found = self.objects.list(CLUSTERS)
        try:
            return (found[0], config.from_object(found[0]), self.the_way()) if found else None
        except ConfigError as error:
            if error.code == "NoCredentials":
                raise
            return None

    def _tell(self, verdict: Verdict) -> None:
        """Let the next round of health show *verdict*."""
        self._found[verdict.kind] = verdict
        self.wake_health()

    def _stuck(self, mine: Object, filling: bool | None) -> list[Verdict]:
        """Whether there is nothing to delete while a disk is *filling*. None before the first plan, and while that was
        never so."""
        if "RetentionHealthy" not in self._found:
            return []
        verdict = plans.stuck(self._deletable, filling)
        said = {one["type"] for one in mine.get("status", {}).get("conditions", ())}
        return [verdict] if verdict.status or verdict.kind in said else []

    def _later(self, mine: Object) -> list[Verdict]:
        """What the other rounds found; Unknown until the first one ends, unless an earlier replica has said more."""
        said = {one["type"] for one in mine.get("status", {}).get("conditions", ())}
        waiting = [
            Verdict(kind, None, "NotLookedYet", "the operator has just started")
            for kind in ("ImagesMissing", "RetentionHealthy")
            if kind not in said and kind not in self._found
        ]
        return [*self._found.values(), *waiting]

    def _write(
        self, plural: str, found: Object, verdicts: Sequence[Verdict], now: float, more: dict[str, Any] | None = None
    ) -> None:
        """Write the status with *verdicts* and *more*, and an Event for each change."""
        old = found.get("status", {}).get("conditions")
        generation = found["metadata"]["generation"]
        conditions = merged(old, verdicts, now, generation)
        status = {"observedGeneration": generation, "conditions": conditions, **(more or {})}
        for key, value in (("space", self._space), ("replacement", self._replacement)) if plural == CLUSTERS else ():
            if last := value or found.get("status", {}).get(key):
                status[key] = last
        if self.objects.put_status(plural, found, status):
            for change in changes(old, verdicts):
                post(self.objects, self.replica, found, change)
        if plural == CLUSTERS and ANOTHER_OBJECT not in [one.reason for one in verdicts]:
            self.figures.replace(
                "condition", {(("type", one["type"]), ("status", one["status"])): 1 for one in conditions}
            )
