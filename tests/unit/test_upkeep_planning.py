"""From a look at the registry to a plan: what is found because something in use names it, or because it was known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from kubeadm_registry.registry import Api
from kubeadm_registry.retention import Plan, Reason, Refused, Use, policy
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.standing import Pin, Standing
from kubeadm_registry.upkeep import planning, store
from kubeadm_registry.upkeep.clusters import ClusterReport, kubeadm_sets
from kubeadm_registry.upkeep.object_images import of_text
from tests.unit.fake_images import Repositories, within

KEY = "the key of the ledger"
NOW, DAY = 1_800_000_000, 86400
HEAD = "apiVersion: kubeadm-registry.dev/v1alpha1\nkind: RegistryPolicy\nspec:\n"
RULES = policy.parse(
    f"{HEAD}  sets: []\n  rules: [{{name: apps, repositories: [app], keep: {{within: 30d}}}}]\n", "policy.yaml"
)


class Site:
    """A registry where two indexes have the same part. Of one the tag moved to the other before anybody looked."""

    def __init__(self) -> None:
        self.registry = Repositories()
        self.registry.image("kubeadm-registry/canary", "v1")
        shared = self.registry.image("app", layer=b"part")
        self.part = shared.digest
        self.first = self.registry.index("app", "v1", first=shared).digest
        self.second = self.registry.index("app", "v1", second=shared).digest
        self.look(NOW - 90 * DAY)

    def look(self, now: int, *uses: Use, reports: tuple[ClusterReport, ...] = ()) -> planning.Look:
        said = {one.uid: one for one in reports}
        return planning.look(within(self.registry), KEY, RULES, now, sets={}, uses=uses, reports=said)

    def going(self, *uses: Use, reports: tuple[ClusterReport, ...] = ()) -> set[str]:
        """The digests that a plan deletes now."""
        made = self.look(NOW, *uses, reports=reports).plan(RULES)
        assert isinstance(made, Plan), made
        return {one.digest for one in made.deletions}

    def state(self, change: Callable[[Standing], Standing]) -> None:
        with within(self.registry)() as at:
            store.restate(at, KEY, change)


@pytest.fixture
def site() -> Site:
    return Site()


def test_an_image_that_nothing_uses_goes_with_its_parts(site: Site) -> None:
    assert site.going() == {site.second, site.part}


@pytest.mark.parametrize("host", ["", "10.0.0.10:5000/"])
def test_what_no_look_has_found_is_found_if_a_workload_names_it(site: Site, host: str) -> None:
    """By its digest. Then what it needs stays, although all that was known of that belongs to an image that goes."""
    used = Use(f"{host}app@{site.first}")
    assert site.going(used) == set()


def test_what_no_look_has_found_is_found_if_a_cluster_has_named_it(site: Site) -> None:
    report = ClusterReport("uid", "v1.36.3", (Use(f"10.0.0.10:5000/app@{site.first}"),))
    assert site.going(reports=(report,)) == set()
    assert site.going() == set(), "it is silent now"


def test_what_no_look_has_found_is_found_if_a_container_runs_it(site: Site) -> None:
    """Its tag has moved on since the pod began. What runs is known then, and no other image has to stay for it."""
    other = site.registry.image("app", "v0", layer=b"v0").digest
    site.look(NOW - 80 * DAY)
    running = Use("10.0.0.10:5000/app:v1", f"10.0.0.10:5000/app@{site.first}")
    assert site.going(running) == {other}
    assert site.first in site.look(NOW, running).holdings.repositories["app"].manifests
    never = Use("10.0.0.10:5000/app:v1", f"10.0.0.10:5000/app@sha256:{'0' * 64}")
    assert site.going(never) == set(), "what runs may be any image that had this name"


def test_of_a_chart_that_a_url_names_without_a_tag_all_tags_stay(site: Site) -> None:
    """Flux has the tag in a field of its own."""
    site.registry.image("app", "v2", layer=b"v2")
    site.registry.image("other", "v2", layer=b"other")
    site.look(NOW - 80 * DAY)

    def going(url: str) -> set[str]:
        reference, image_id = of_text(url)
        made = site.look(NOW, Use(reference, image_id)).plan(RULES)
        assert isinstance(made, Plan), made
        return {one.tag for one in made.deletions if one.tag}

    assert going("oci://10.0.0.10:5000/other") == {"v1", "v2"}
    assert going("oci://10.0.0.10:5000/app:v2") == {"v1"}
    assert going("oci://10.0.0.10:5000/app") == set()


def silent(look: planning.Look, *accepted: str) -> list[Reason]:
    """Why there is no plan from *look*."""
    made = look.plan(RULES, accepted=accepted)
    return list(made.reasons) if isinstance(made, Refused) else []


def test_a_cluster_that_is_silent_for_more_than_a_day_gives_no_plan(site: Site) -> None:
    mine, other = ClusterReport("mine", "v1.36.3"), ClusterReport("other", "v1.36.3")
    site.look(NOW, reports=(mine, other))
    assert silent(site.look(NOW + DAY)) == []
    assert [one.code for one in silent(site.look(NOW + DAY + 1))] == ["ClusterSilent"] * 2
    assert silent(site.look(NOW + 7 * DAY, reports=(mine, other))) == [], "its own silence stops no report"
    [reason] = silent(site.look(NOW + 9 * DAY, reports=(mine,)))
    assert reason.message.startswith("the cluster other reported last at 2027-01-22 08:00 UTC, 2 days ago")
    assert "forget other`" in reason.hint


@pytest.mark.parametrize("pushed", [False, True], ids=["a pod is gone", "an image is new"])
def test_a_look_during_which_another_cluster_reports_gives_a_plan(site: Site, pushed: bool) -> None:
    """What that one has seen came after the look began, and the clocks are right."""
    site.look(NOW - DAY, reports=(ClusterReport("other", "v1.36.3", (Use("app:v1"), Use("app:old"))),))
    connected = itertools.count()

    def connect() -> Api:
        if next(connected) == 1:
            if pushed:
                with within(site.registry)() as at:
                    store.write(at, KEY, Ledger())  # what was known went for good, and was pushed again
            site.look(NOW + 90, reports=(ClusterReport("other", "v1.36.3", (Use("app:v1"),)),))
        return within(site.registry)()

    look = planning.look(connect, KEY, RULES, NOW, sets={}, reports={"mine": ClusterReport("mine", "v1.36.3")})
    assert isinstance(look.plan(RULES), Plan)
    uses = {use.reference: use.last_seen for use in look.after.clusters["other"].uses}
    assert uses == {"app:v1": None, **({} if pushed else {"app:old": NOW})}


def test_a_cluster_with_the_name_of_another_is_named_by_its_uid(site: Site) -> None:
    """It was made anew, at the same address."""
    for uid in ("old", "new one"):
        report = ClusterReport(uid, "v1.36.3")
        look = planning.look(within(site.registry), KEY, RULES, NOW, sets={}, reports={"prod": report})
    assert silent(look) == []
    found = {one.message.split(" reported")[0]: one.hint for one in silent(site.look(NOW + 2 * DAY))}
    assert "forget old`" in found["the cluster prod (old)"]
    assert "forget 'new one'`" in found["the cluster prod (new one)"]


def test_the_silence_of_a_cluster_is_accepted_for_that_cluster_and_that_day(site: Site) -> None:
    site.look(NOW, reports=(ClusterReport("mine", "v1.36.3"), ClusterReport("other", "v1.36.3")))
    later = site.look(NOW + 2 * DAY)
    first, second = silent(later)
    assert silent(later, first.approval) == [second]
    assert silent(later, first.approval, second.approval) == []
    both = first.approval, second.approval
    assert silent(site.look(NOW + 3 * DAY - 1), *both) == []
    assert len(silent(site.look(NOW + 3 * DAY), *both)) == 2
    site.look(NOW + 4 * DAY, reports=(ClusterReport("mine", "v1.36.3"), ClusterReport("other", "v1.36.3")))
    assert len(silent(site.look(NOW + 6 * DAY), *both)) == 2, "it was for another silence"


def using(uid: str, images: int) -> ClusterReport:
    return ClusterReport(uid, "v1.36.3", tuple(Use(f"x.example/{uid}/{number}:v1") for number in range(images)))


def test_far_fewer_uses_of_one_cluster_give_no_plan_however_many_others_have(site: Site) -> None:
    site.look(NOW, reports=(using("mine", 60), using("other", 100)))
    assert silent(site.look(NOW + 60, reports=(using("mine", 30), using("other", 100)))) == []
    assert silent(site.look(NOW + 60, reports=(using("mine", 60), using("other", 100)))) == []
    for reports in ((using("mine", 0), using("other", 100)), (using("mine", 0),), (using("other", 101),), ()):
        look = site.look(NOW + 120, reports=reports)
        [reason] = silent(look)
        assert reason.code == "UsesShrank"
        assert reason.message.startswith("the cluster mine: 0 images in use, and 60 the last time"), "not of no report"
        assert f"pass --accept {reason.approval}" in reason.hint
        assert silent(look, "UsesShrank=0") == [reason]
    other = site.look(NOW + 180, reports=(using("mine", 2),))
    assert silent(other, reason.approval) != [], "an approval is for the number that was seen"
    assert silent(site.look(NOW + 240, reports=(using("mine", 55), using("other", 51)))) == []
    site.look(NOW + 300, reports=(using("other", 20),))
    assert {one.message[:18] for one in silent(site.look(NOW + 300))} == {"the cluster other:"}, "75 of 106 in all"


def test_far_fewer_uses_of_one_cluster_are_accepted_once(site: Site) -> None:
    site.look(NOW, reports=(using("mine", 60), using("other", 100)))
    fewer = using("mine", 0), using("other", 100)
    [reason] = silent(site.look(NOW + 60, reports=fewer))
    said = {one.uid: one for one in fewer}
    accepted = planning.look(
        within(site.registry), KEY, RULES, NOW + 60, sets={}, reports=said, accepted=[reason.approval]
    )
    assert silent(accepted, reason.approval) == []
    assert silent(site.look(NOW + 120, reports=fewer)) == []
    site.look(NOW + 180, reports=(using("mine", 60),))
    assert [one.code for one in silent(site.look(NOW + 240, reports=fewer))] == ["UsesShrank"]


def test_what_shrank_in_a_cluster_is_not_forgotten_when_a_second_one_reports(site: Site) -> None:
    site.look(NOW, reports=(using("mine", 60),))
    [reason] = silent(site.look(NOW + 60, reports=(using("mine", 0),)))
    assert reason.approval == "UsesShrank=0", "there is no other cluster"
    [reason] = silent(site.look(NOW + 120, reports=(using("other", 100),)))
    assert reason.message.startswith("the cluster mine: 0 images in use, and 60 the last time")


def test_far_fewer_uses_are_accepted_for_good_also_with_a_pin(site: Site) -> None:
    """The ledger has no pins of the last time."""
    site.state(lambda standing: standing.pinned(Pin("app:v1", "a customer has it", NOW)))
    site.look(NOW, reports=(using("mine", 60),))
    [reason] = silent(site.look(NOW + 60, reports=(using("mine", 3),)))
    assert reason.approval == "UsesShrank=3"
    planning.look(
        within(site.registry), KEY, RULES, NOW + 60, sets={}, reports={"mine": using("mine", 3)},
        accepted=[reason.approval],
    )  # fmt: skip
    assert silent(site.look(NOW + 120, reports=(using("mine", 3),))) == []


def test_what_no_look_has_found_is_found_if_it_is_pinned(site: Site) -> None:
    site.state(lambda standing: standing.pinned(Pin(f"app@{site.first}", "a customer has it", NOW)))
    assert site.going() == set()


def test_what_kubeadm_needs_in_a_cluster_that_is_silent_stays() -> None:
    """Of two operators each reads its own cluster, and the images of the other one's next version look unused."""
    registry = Repositories()
    registry.image("kubeadm-registry/canary", "v1")
    for version in ("v1.30.2", "v1.32.2", "v1.34.2", "v1.36.2"):
        registry.image("registry.k8s.io/kube-proxy", version, layer=version.encode())
    rules = policy.parse(
        f"{HEAD}  sets: [kubeadm]\n"
        "  rules: [{name: kubernetes, repositories: [registry.k8s.io/*], keep: {within: 30d}}]\n", "policy.yaml",
    )  # fmt: skip

    def outcome(now: int, version: str, sets: str | None = None) -> Plan | Refused:
        """By the operator of the cluster that has this *version*."""
        report = {version: ClusterReport(version, version)}
        found = kubeadm_sets([sets or version])
        return planning.look(within(registry), KEY, rules, now, reports=report, sets=found).plan(rules)

    def going(now: int, version: str) -> list[str]:
        made = outcome(now, version)
        assert isinstance(made, Plan), made
        return [one.tag for one in made.deletions]

    assert going(NOW - 90 * DAY, "v1.35.0") == []
    assert going(NOW, "v1.35.0") == ["v1.30.2", "v1.32.2"]
    assert going(NOW, "v1.33.0") == ["v1.30.2"]
    assert going(NOW, "v1.35.0") == ["v1.30.2"]
    refused = outcome(NOW, "v1.30.0", "v1.35.0")
    assert isinstance(refused, Refused)
    assert [one.code for one in refused.reasons] == ["SetMissing"], "what kubeadm needs there is not known"


def test_what_kubeadm_needs_is_known_from_a_cluster_that_reported_before() -> None:
    """As to `retention plan` beside an operator, where the cluster file does not say a version."""
    registry = Repositories()
    registry.image("kubeadm-registry/canary", "v1")
    rules = policy.parse(f"{HEAD}  sets: [kubeadm]\n", "policy.yaml")

    def codes(version: str | None, *reports: ClusterReport) -> list[str]:
        said = {one.uid: one for one in reports}
        sets = kubeadm_sets([version, *(one.version for one in reports)])
        made = planning.look(within(registry), KEY, rules, NOW, sets=sets, reports=said).plan(rules)
        return [one.code for one in made.reasons] if isinstance(made, Refused) else []

    assert codes(None) == ["SetMissing"], "nobody has said a version"
    assert codes(None, ClusterReport("mine", "v1.36.3")) == []
    assert codes(None) == []
    assert codes("v1.30.0") == ["SetMissing"], "one whose images are not known"


def test_a_plan_by_a_policy_with_a_shorter_grace_forgets_nothing_that_another_one_keeps(site: Site) -> None:
    """As `retention plan` does beside an operator, or the operators of two clusters."""
    patient = RULES.model_copy(update={"spec": RULES.spec.model_copy(update={"workload_grace": "30d"})})

    def look(by: policy.RegistryPolicy, now: int, *uses: Use) -> planning.Look:
        reports = {"mine": ClusterReport("mine", "v1.36.3", uses)}
        return planning.look(within(site.registry), KEY, by, now, sets={}, reports=reports)

    def deletions(found: planning.Look, by: policy.RegistryPolicy) -> int:
        made = found.plan(by)
        assert isinstance(made, Plan), made
        return len(made.deletions)

    look(patient, NOW, Use("10.0.0.10:5000/app:v1"))
    look(patient, NOW + DAY)
    assert deletions(look(RULES, NOW + 9 * DAY), RULES) > 0, "a week is over"
    assert deletions(look(patient, NOW + 10 * DAY), patient) == 0
    assert deletions(look(patient, NOW + 32 * DAY), patient) > 0
    known = look(RULES, NOW + 33 * DAY).after.clusters["mine"].uses
    for day in range(34, 70):
        known = look(RULES, NOW + day * DAY, Use(f"app:{day}")).after.clusters["mine"].uses
    assert len(known) == 9, "those of a week, once nothing is planned by the longer one"
