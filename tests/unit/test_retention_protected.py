"""What must stay: from what stands in pods to digests and tags, and when it cannot be known."""

from __future__ import annotations

import time

import pytest

from kubeadm_registry.oci import canary
from kubeadm_registry.retention import Protected, Reason, Refused, Use, Workloads, grouped, plan, protect
from kubeadm_registry.retention.names import digest_in, wanted
from kubeadm_registry.retention.uses import PAUSE
from kubeadm_registry.upkeep.object_images import of_text
from tests.unit.retention_registry import DAY, NOW, SETS, Registry, digest, gone, keep, rules

EVERYTHING = keep("{newest: 1}")


def codes(found: Protected) -> list[str]:
    return [problem.code for problem in found.problems]


@pytest.mark.parametrize(
    ("reference", "repository", "tag"),
    [
        ("nginx", "docker.io/library/nginx", "latest"),
        ("nginx:1.25", "docker.io/library/nginx", "1.25"),
        ("docker.io/nginx", "docker.io/library/nginx", "latest"),
        ("docker.io/library/nginx:latest", "docker.io/library/nginx", "latest"),
        ("index.docker.io/library/nginx:1", "docker.io/library/nginx", "1"),
        ("index.docker.io/nginx", "docker.io/library/nginx", "latest"),
        ("10.0.0.10:5000/docker.io/library/nginx", "docker.io/library/nginx", "latest"),
        ("10.0.0.10:5000/docker.io/nginx:1", "docker.io/library/nginx", "1"),
        ("registry.example/docker.io/library/nginx:1", "docker.io/library/nginx", "1"),
        ("nginx", "docker.io/nginx", "latest"),
        ("nginx", "nginx", "latest"),
        ("bitnami/redis:7", "docker.io/bitnami/redis", "7"),
        ("team/app:v1", "team/app", "v1"),
        ("10.0.0.10:5000/team/app:v1", "team/app", "v1"),
        ("[fd00::10]:5000/team/app:v1", "team/app", "v1"),
        ("registry.example:5000/team/app:v1", "team/app", "v1"),
        ("localhost/app:v1", "localhost/app", "v1"),
        ("host:5000/x:1", "host_5000/x", "1"),
        ("10.0.0.10:5000/host_5000/x:1", "host_5000/x", "1"),
        ("host.example_5000/x:1", "host.example_5000/x", "1"),
        ("team.a_b/app:v1", "team.a_b/app", "v1"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause", "3.10"),
        ("Registry.K8s.io/pause:3.10", "registry.k8s.io/pause", "3.10"),
        ("registry.k8s.io/coredns/coredns:v1.14.2", "registry.k8s.io/coredns", "v1.14.2"),
        ("10.0.0.10:5000/registry.k8s.io/coredns:v1.14.2", "registry.k8s.io/coredns/coredns", "v1.14.2"),
        ("10.0.0.10:5000/kube-apiserver:v1.36.3", "kube-apiserver", "v1.36.3"),
    ],
)
def test_the_repositories_that_a_name_stands_for(reference: str, repository: str, tag: str) -> None:
    asked = wanted(reference)
    assert asked is not None
    assert repository in asked.repositories
    assert (asked.tag, asked.digest) == (tag, "")
    registry = Registry()
    image = registry.image(repository, tag)
    found = registry.protected(Use(reference))
    assert image in found.digests
    assert (repository, tag) in found.tags


def test_a_name_with_tag_and_digest_protects_both() -> None:
    registry = Registry()
    old, new = registry.image("team/app", name="old"), registry.image("team/app", "v1")
    found = registry.protected(Use(f"team/app:v1@{old}"))
    assert {old, new} <= set(found.digests)
    assert ("team/app", "v1") in found.tags
    assert set(registry.protected(Use(f"team/app@{old}")).digests) == {old}


def test_a_name_that_means_nothing_yet_is_protected_all_the_same() -> None:
    registry = Registry()
    registry.image("team/app", "v1")
    found = registry.protected(Use("team/app:v2"))
    assert ("team/app", "v2") in found.tags
    assert found.digests == {}


@pytest.mark.parametrize(
    "image_id",
    ["10.0.0.10:5000/other@{}", "docker-pullable://docker.io/team/app@{}", "docker://{}", "{}", "team/app:v1@{}"],
)
def test_the_digest_of_an_image_id_counts_in_every_repository(image_id: str) -> None:
    registry = Registry()
    used = registry.image("team/app", name="x")
    registry.also("team/other", "old", of=used)
    registry.image("team/other", "new", days=2)
    use = Use("elsewhere.example/app:v1", image_id.format(used))
    assert used in registry.protected(use).digests
    assert gone(registry.plan(EVERYTHING, use)) == []
    assert gone(registry.plan(EVERYTHING)) == ["team/other:old"]


@pytest.mark.parametrize("form", ["{}", "docker://{}", "elsewhere.example/app@{}"])
def test_a_configuration_stands_for_every_manifest_that_has_it(form: str) -> None:
    registry = Registry()
    first = registry.image("team/app", "a", config="same")
    second = registry.image("team/other", "b", config="same")
    registry.image("team/app", "c")
    found = registry.protected(Use("x.example/x:1", form.format(digest("same"))))
    assert set(found.digests) == {first, second}


def test_crio_writes_a_configuration_without_its_algorithm() -> None:
    assert digest_in("ab" * 32) == f"sha256:{'ab' * 32}"
    assert digest_in("team/app:v1") == digest_in("") == digest_in("sha256:abc") == ""


@pytest.mark.parametrize("image_id", [digest("never pushed"), "team/app@" + digest("never pushed"), "team/app:v1", "?"])
def test_an_image_id_that_matches_nothing_protects_all_tags_of_the_name(image_id: str) -> None:
    registry = Registry()
    images = {registry.image("team/app", tag) for tag in ("v1", "v2", "v3")}
    untagged = registry.image("team/app", name="untagged")
    other = registry.image("team/other", "v1")
    found = registry.protected(Use("10.0.0.10:5000/team/app:v1", image_id))
    assert set(found.digests) == images
    assert codes(found) == []
    assert not {untagged, other} & set(found.digests)
    assert set(registry.protected(Use("10.0.0.10:5000/team/app:v1", "")).digests) < images


@pytest.mark.parametrize(
    "reference", ["", "UPPER/case", "a b", "nginx:", f"x@sha512:{'a' * 128}", "x@sha256:1", "./x y"]
)
@pytest.mark.parametrize("image_id", ["", digest("never pushed")])
def test_a_name_that_cannot_be_read_gives_no_plan(reference: str, image_id: str) -> None:
    registry = Registry()
    registry.image("team/app", "v1")
    outcome = registry.outcome(EVERYTHING, Use(reference, image_id, ("Pod default/web",), 12))
    assert isinstance(outcome, Refused)
    [reason] = outcome.reasons
    assert reason.code == "ImageNotUnderstood"
    assert reason.message.startswith(f"Pod default/web and 11 more uses {reference!r}")
    assert reason.hint == "correct the image name, or delete what uses it"


@pytest.mark.parametrize(
    ("reference", "image_id"), [("UPPER/case", ""), of_text("https://charts.example/stable"), of_text("oci://UP/x")]
)
def test_a_name_that_cannot_be_read_is_no_reason_any_more_when_its_workload_is_gone(
    reference: str, image_id: str
) -> None:
    """The hint says to correct it, or to delete what uses it. What ran, by a name that others can read, may still."""
    registry = Registry()
    registry.image("team/app", "v1")
    assert codes(registry.protected(Use(reference, image_id))) == ["ImageNotUnderstood"]
    assert codes(registry.protected(Use(reference, image_id, last_seen=NOW - DAY))) == []
    ran = Use(f"x@sha512:{'a' * 128}", digest("never pushed"), last_seen=NOW - DAY)
    assert codes(registry.protected(ran)) == ["ImageNotUnderstood"]


def test_a_digest_alone_is_understood_if_it_is_known() -> None:
    registry = Registry()
    image = registry.image("team/app", "v1", config="c")
    assert set(registry.protected(Use(digest("c"))).digests) == {image}
    assert set(registry.protected(Use(image)).digests) == {image}
    assert codes(registry.protected(Use(digest("never pushed")))) == ["ImageNotUnderstood"]


def test_an_index_protects_its_children_and_a_child_its_indexes() -> None:
    registry = Registry()
    amd, arm = registry.image("team/app", name="amd"), registry.image("team/app", name="arm")
    inner = registry.index("team/app", children=[arm, digest("absent")])
    outer = registry.index("team/app", "v1", children=[amd, inner])
    registry.image("team/app", "v2")
    for used in (amd, arm, inner, outer):
        assert set(registry.protected(Use("x.example/x:1", used)).digests) == {amd, arm, inner, outer, digest("absent")}


def test_referrers_follow_their_subject_and_protect_it() -> None:
    registry = Registry()
    image = registry.image("team/app", "v1")
    signature = registry.image("team/app", name="signature", subject=image)
    attestation = registry.image("team/app", name="attestation", subject=signature)
    for used in (image, signature, attestation):
        assert set(registry.protected(Use(f"team/app@{used}")).digests) == {image, signature, attestation}


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
def test_a_tag_made_of_a_digest_follows_its_subject(suffix: str) -> None:
    registry = Registry()
    image = registry.image("team/app", "v1")
    listed = registry.image("team/app", f"sha256-{image[7:]}{suffix}", name="signatures")
    other = registry.image("team/app", f"sha256-{digest('absent')[7:]}", name="of another")
    found = registry.protected(Use("team/app:v1"))
    assert set(found.digests) == {image, listed}
    # An empty list is the same manifest for every subject: with one, not all of them are in use.
    assert set(registry.protected(Use(f"team/app@{listed}")).digests) == {listed}
    assert other not in found.digests


def test_the_images_of_the_project_itself_are_protected() -> None:
    registry = Registry()
    known = registry.image(canary.REPOSITORY, canary.TAG, days=400)
    registry.also("team/copy", "of-it", of=known, days=400)
    registry.image("team/copy", "new")
    waiting = registry.image("kubeadm-registry/trash", "trash-1", name="waiting")
    registry.trash["kubeadm-registry/trash"] = {"trash-1"}
    found = registry.protected()
    assert known in found.digests
    assert waiting not in found.digests, "what waits to be deleted must not keep itself alive"
    assert gone(registry.plan(EVERYTHING)) == []
    assert {one.cause for one in registry.plan(EVERYTHING).kept if one.repository == canary.REPOSITORY} == {"Own"}


def test_sets_that_the_policy_names_are_protected() -> None:
    registry = Registry()
    pause = registry.image("registry.k8s.io/pause", "3.10")
    sets = {"kubeadm": ("registry.k8s.io/pause:3.10",), "bundle": ()}
    found = protect(registry.inventory(), Workloads(sets=sets), EVERYTHING, NOW)
    assert found.digests[pause].who() == "set kubeadm"
    without = rules("[]", sets="[bundle]")
    assert protect(registry.inventory(), Workloads(sets=sets), without, NOW).digests == {}


@pytest.mark.parametrize("name", ["10.0.0.10:5000/infra/pause:1", "registry.example:5000/infra/pause:1"])
def test_pause_images_are_protected_whatever_the_policy_says(name: str) -> None:
    registry = Registry()
    pause = registry.image("infra/pause", "1")
    workloads = Workloads(sets={PAUSE: (name,)})
    found = protect(registry.inventory(), workloads, rules("[]", sets="[]"), NOW)
    assert found.digests[pause].who() == "set pause"
    assert found.current == 0, "as many images are in use as before, so UsesShrank notices as much"


@pytest.mark.parametrize("repository", ["k8s/kube-proxy", "registry.aliyuncs.com/google_containers/kube-proxy"])
def test_the_images_of_kubeadm_are_protected_below_any_name(repository: str) -> None:
    """That is what ``imageRepository`` of kubeadm's ClusterConfiguration is for."""
    registry = Registry()
    mine = registry.image(repository, "v1.36.3")
    other, another = registry.image(repository, "v1.20.0"), registry.image("team/my-kube-proxy", "v1.36.3")
    sets = {"kubeadm": ("registry.k8s.io/kube-proxy:v1.36.3",), "bundle": ()}
    found = protect(registry.inventory(), Workloads(sets=sets), EVERYTHING, NOW)
    assert found.digests[mine].who() == "set kubeadm"
    assert not {other, another} & found.digests.keys()
    assert protect(registry.inventory(), Workloads(sets=sets), rules("[]", sets="[bundle]"), NOW).digests == {}


@pytest.mark.parametrize("repository", ["pause", "k8s/pause", "registry.aliyuncs.com/google_containers/pause"])
def test_pause_images_are_protected_below_any_name(repository: str) -> None:
    """Only the configuration of containerd on each node says which it is; kubeadm asks for it as well."""
    registry = Registry()
    pause = registry.image(repository, "3.10")
    coredns = registry.image("k8s/coredns", "v1.14.2")
    workloads = Workloads(sets={PAUSE: ("registry.k8s.io/pause:3.10",)})
    found = protect(registry.inventory(), workloads, rules("[]", sets="[]"), NOW)
    assert found.digests[pause].who() == "set pause"
    assert coredns not in found.digests


def test_a_set_that_is_not_known_gives_no_plan() -> None:
    found = protect(Registry().inventory(), Workloads(sets={"bundle": ()}), EVERYTHING, NOW)
    assert codes(found) == ["SetMissing"]
    assert "set spec.kubernetes.version" in found.problems[0].hint
    assert "if no Kubernetes uses the registry, remove kubeadm from spec.sets" in found.problems[0].hint
    [bundle] = protect(Registry().inventory(), Workloads(), rules("[]", sets="[bundle]"), NOW).problems
    assert bundle.hint == "seed the newest bundle of each line again, or remove bundle from spec.sets"
    assert codes(protect(Registry().inventory(), Workloads(), rules("[]", sets="[]"), NOW)) == []


def test_a_list_that_failed_gives_no_plan() -> None:
    registry = Registry()
    registry.image("team/app", "v1")
    failed = Reason("UsesIncomplete", "cannot list Pods: 403 Forbidden")
    outcome = plan(registry.inventory(), registry.protected(problems=(failed,)), EVERYTHING, NOW)
    assert outcome == Refused((failed,))


@pytest.mark.parametrize(("days", "protects"), [(6.9, True), (7, True), (7.1, False)])
def test_a_workload_that_is_gone_counts_for_a_time(days: float, protects: bool) -> None:
    registry = Registry()
    image = registry.image("team/app", "v1")
    found = registry.protected(Use("team/app:v1", last_seen=NOW - int(days * DAY)))
    assert (image in found.digests) == protects
    assert found.current == 0


def test_a_workload_seen_in_the_future_makes_the_clock_doubtful() -> None:
    assert codes(Registry().protected(Use("a:1", last_seen=NOW + 60))) == []
    assert codes(Registry().protected(Use("a:1", last_seen=NOW + 61))) == ["ClockDoubtful"]


def test_uses_of_one_image_are_one() -> None:
    pods = [("nginx", "", f"Pod default/web-{number:02}") for number in reversed(range(12))]
    [one, other] = grouped([*pods, ("nginx", "id", "Pod a/b")])
    assert one == Use("nginx", "", ("Pod default/web-00", "Pod default/web-01", "Pod default/web-02"), 12)
    assert one.who() == "Pod default/web-00, Pod default/web-01, Pod default/web-02 and 9 more"
    assert str(other) == "'nginx' (imageID 'id')"
    assert grouped(reversed([*pods, ("nginx", "id", "Pod a/b")])) == (one, other)


def test_who_is_named_does_not_depend_on_the_order() -> None:
    registry = Registry()
    image = registry.image("docker.io/library/nginx", "latest")
    uses = (Use("nginx", users=("Pod a/a",)), Use("docker.io/nginx", users=("Pod b/b",)))
    assert registry.protected(*uses).digests[image] == registry.protected(*reversed(uses)).digests[image]
    late = Use("a.example/nginx", last_seen=NOW - DAY)
    assert registry.protected(late, *uses).digests[image].users == ("Pod b/b",), "who is there now comes first"


def test_many_pods_of_a_large_repository_whose_images_are_not_known_take_a_moment() -> None:
    registry = Registry()
    for number in range(5000):
        registry.image("team/app", f"v{number}", layers=("one",))
    inventory = registry.inventory()
    uses = tuple(Use(f"team/app:v{number}", f"x@{digest(str(number))}") for number in range(2000))
    begin = time.process_time()
    found = protect(inventory, Workloads(uses, SETS), keep("{newest: 1}"), NOW)
    assert time.process_time() - begin < 2, "it took 6 s"
    assert len(found.digests) == 5000
