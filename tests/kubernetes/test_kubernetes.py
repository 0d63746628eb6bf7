"""kubeadm init, join, a lost server, greedy pods, kubeadm reset and init again: every image comes from the registry.

One way through all of it, in this order: what a test needs of those before it, its fixtures make if it runs alone.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths
from kubeadm_registry.agent.pressure import PATH as PRESSURE
from kubeadm_registry.oci import canary
from tests.kubernetes import images
from tests.kubernetes.clients import pulling, pushed, say
from tests.kubernetes.cluster import Kubernetes, empty, images_of, pull, ways_out
from tests.kubernetes.workloads import AREA, KEEPS_NOTHING, KEEPS_THE_NEWEST, OPERATED, POLICY, Workloads
from tests.lab.command import LabError, run, wait_past, wait_until
from tests.lab.host import Host
from tests.lab.images import missing as images_missing
from tests.lab.images import push
from tests.lab.reading import Object, reading
from tests.lab.registry import Registry

#: Memory that a host has left before a pod takes it all.
SPARE = 512 << 20
CANARY = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)


def own_names(registry: Registry) -> tuple[str, list[str]]:
    """``imageRepository`` for the registry, and what kubeadm's images are called there."""
    repository = f"{registry.vip}:{paths.REGISTRY_PORT}/{images.UPSTREAM}"
    names = [name.replace("coredns/coredns", "coredns") for name in images.wanted()]
    return repository, [name.replace(images.UPSTREAM, repository) for name in names]


# Before Kubernetes


def test_no_server_has_a_way_out_or_an_image(seeded: Kubernetes) -> None:
    assert not any(seeded.on_each(ways_out).values())
    assert all(seeded.on_each(empty).values())


def test_the_bundle_has_what_the_hosts_containerd_starts_pods_with(seeded: Kubernetes) -> None:
    settings = seeded.first.sh("containerd", "config", "dump").stdout
    assert f'sandbox_image = "{images.SANDBOX}"' in settings


def test_kubeadm_pulls_its_images_on_every_server(seeded: Kubernetes) -> None:
    seconds = seeded.on_each(seeded.pull_all)
    say(seeded, "kubeadm config images pull: " + ", ".join(f"{took:.1f} s" for took in seconds.values()))
    for host in seeded.servers.values():
        only(host, images.wanted())
    wait_until("hosts without images", lambda: all(seeded.on_each(empty).values()), seconds=60, every=1)


def test_kubeadm_pulls_them_by_the_name_of_the_registry(seeded: Kubernetes) -> None:
    repository, names = own_names(seeded.registry)
    say(seeded, f"the same with imageRepository: {seeded.pull_all(seeded.first, repository):.1f} s")
    only(seeded.first, names)
    wait_until("a host without images", lambda: empty(seeded.first), seconds=60, every=1)


def only(host: Host, names: Iterable[str]) -> None:
    """*host* has the images of these *names* and no others; remove them."""
    assert sorted(images_of(host)) == sorted(names), host.name
    host.sh("crictl", "rmi", "--all")


def test_an_image_that_is_not_there_is_refused_at_once(seeded: Kubernetes) -> None:
    own = f"{seeded.registry.vip}:{paths.REGISTRY_PORT}"
    for name in (f"{images.UPSTREAM}/pause:0.0", "docker.io/library/nothing:v1", f"{own}/tests/nothing:v1"):
        seconds, error = pull(seeded.first, name, check=False)
        say(seeded, f"{name} is refused after {seconds:.2f} s")
        assert "not found" in error
        assert seconds < 15, "nobody is waited for"


# Kubernetes


def served(registry: Registry, since: float) -> set[tuple[str, str]]:
    """Who asked for which manifest since the time *since* and got it, by the proxies' logs: (address, repository)."""
    argv = ("journalctl", "--quiet", "--output=cat", "--identifier=haproxy", f"--since=@{int(since)}")
    found = set()
    for host in registry.servers.values():
        for line in host.sh(*argv).stdout.splitlines():
            if not line.startswith("{"):
                continue
            entry = json.loads(line)
            repository, manifests, _ = entry["path"].removeprefix("/v2/").rpartition("/manifests/")
            if manifests and entry["status"] == 200:
                found.add((entry["client"], repository))
    return found


def all_from_the_registry(kubernetes: Kubernetes, hosts: Sequence[Host], since: float) -> None:
    """Each of *hosts*, whose containerd was empty at the time *since*, has all images, and asked the registry for them.

    The server that has the virtual IP asks with that for its own address.
    """
    registry = kubernetes.registry
    asked = served(registry, since)
    for host in hosts:
        expected = {*images.wanted(), images.SANDBOX}
        assert set(images_of(host)) >= expected, host.name
        own = {host.address, registry.vip}
        for name in expected:
            repository = name.rpartition(":")[0]
            assert any((address, repository) in asked for address in own), f"{host.name} never asked for {name}"


def test_init_and_join_take_every_image_from_the_registry(kubernetes: Kubernetes) -> None:
    all_from_the_registry(kubernetes, list(kubernetes.servers.values()), kubernetes.begin)
    say(kubernetes, ", ".join(f"{what} {seconds:.1f} s" for what, seconds in kubernetes.took.items()))


_GET = """\
import sys, urllib.request
sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode().strip())
"""


def test_a_deployment_of_a_pushed_image(kubernetes: Kubernetes) -> None:
    image = pushed(kubernetes.registry, "deployment")
    begin = time.monotonic()
    kubernetes.deploy("guest", image, replicas=3)
    say(kubernetes, f"three pods of a pushed image after {time.monotonic() - begin:.1f} s")
    pods = kubernetes.get("pods", "--selector=app=guest")["items"]
    assert {pod["spec"]["nodeName"] for pod in pods} == set(kubernetes.servers)
    for pod in pods:
        host = kubernetes.servers[pod["spec"]["nodeName"]]
        for address in pod["status"]["podIPs"]:
            url = f"http://[{address['ip']}]:8080/" if ":" in address["ip"] else f"http://{address['ip']}:8080/"
            assert run(*host.network_argv(sys.executable, "-c", _GET, url)).stdout == pod["metadata"]["name"]


def test_a_plan_that_would_delete_everything_keeps_what_the_cluster_uses(
    kubernetes: Kubernetes, tmp_path: Path
) -> None:
    """A Deployment, what a rollback of it returns to, the control plane's static pods: all by what the API server says.

    Only the pause image is named by no object: the set kubeadm has it.
    """
    first, second, other = (pushed(kubernetes.registry, f"plan-{mark}") for mark in ("first", "second", "other"))
    kubernetes.deploy("planned", first, replicas=1)
    kubernetes.kubectl("set", "image", "deployment/planned", f"*={second}")
    kubernetes.kubectl("rollout", "status", "deployment/planned", "--timeout=110s", timeout=120)
    policy, config = tmp_path / "policy.yaml", kubernetes.admin_file(tmp_path)
    policy.write_text(KEEPS_NOTHING)

    def planned() -> dict[str, set[str]]:
        arguments = ("retention", "plan", "--policy", policy, "--kubeconfig", config)
        found = kubernetes.registry.json(*arguments)[-1]
        gone = {f"{one['repository']}:{one['tag']}" for one in found["deletions"]}
        used = {f"{one['repository']}:{tag}" for one in found["kept"] if one["cause"] == "InUse" for tag in one["tags"]}
        return {"gone": gone, "used": used}

    def name(image: str) -> str:
        return image.partition("/")[2]

    wait_until("what is older than a minute to go", lambda: name(other) in planned()["gone"], seconds=180, every=10)
    found = planned()
    running = {name for name in images.wanted() if "pause" not in name}
    assert {name(first), name(second), *running} <= found["used"]
    assert not found["gone"] & {name(first), name(second), *running}
    assert f"{canary.REPOSITORY}:{canary.TAG}" not in found["gone"]


@pytest.mark.long  # seven minutes, most of them until images are old enough
def test_after_retention_everything_that_is_used_is_pulled_and_rolled_back_to(
    kubernetes: Kubernetes, tmp_path: Path
) -> None:
    """A policy that keeps nothing by itself; the trash is emptied and the space is freed before anything is tried."""
    registry, config, policy = kubernetes.registry, kubernetes.admin_file(tmp_path), tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    work = Workloads(kubernetes)
    arguments = ("--policy", policy, "--kubeconfig", config)
    try:
        work.make()
        unused = {f"{AREA}:{mark}" for mark in work.unused}

        def planned() -> tuple[str, set[str]]:
            found = registry.json("retention", "plan", *arguments)[-1]
            return found["digest"], {f"{one['repository']}:{one['tag']}" for one in found["deletions"]}

        wait_until("what is older than a minute to go", lambda: planned()[1] >= unused, seconds=240, every=10)
        digest, gone = planned()
        assert not {name.partition("/")[2] for name in work.used.values()} & gone
        registry.cli("retention", "approve", digest)
        begin = time.monotonic()
        said = registry.cli("retention", "run", *arguments).stdout.splitlines()[-1]
        say(kubernetes, f"retention in {time.monotonic() - begin:.1f} s: {said}")

        def emptied() -> bool:
            registry.cli("retention", "run", *arguments)
            return not registry.json("retention", "trash")[-1]["images"]

        wait_until("the trash to be emptied", emptied, seconds=300, every=10)
        wait_past("the pushes to be older than the grace", time.time() + 61)
        freed = registry.json("images", "collect", "--grace", "1m")[-1]
        say(kubernetes, freed["summary"])
        assert freed["freed"] >= sum(len(blob) for image in work.unused.values() for blob in image.layers)

        for host in kubernetes.servers.values():
            host.sh("crictl", "rmi", "--prune", check=False, timeout=120)
        assert work.pull_all(kubernetes.servers["h2"]) == {}
        for mark, image in work.unused.items():
            assert "not found" in pull(kubernetes.first, f"{registry.vip}:5000/{AREA}:{mark}", check=False)[1]
            assert images_missing(registry, image, AREA)
        work.roll_back()
    finally:
        work.remove()


def operated(registry: Registry, tag: str) -> str:
    """Push an image that the operator's policy concerns; its name."""
    push(registry, images.guest(f"operated-{tag}"), OPERATED, tag)
    return f"{registry.vip}:{paths.REGISTRY_PORT}/{OPERATED}:{tag}"


def carried_out(kubernetes: Kubernetes, old: str, new: str) -> None:
    """The operator plans that *old* goes and *new* stays; somebody approves it by an annotation; it is done."""

    def plan() -> dict[str, Any]:
        status: dict[str, Any] = kubernetes.get("registryretentionplan", "retention").get("status", {})
        return status

    shares = itertools.count(50)

    def planned() -> bool:
        # Each change of the policy makes the operator plan.
        patch = json.dumps({"spec": {"maximumShare": next(shares)}})
        kubernetes.kubectl("patch", "registrypolicy", "retention", "--type=merge", f"--patch={patch}")
        return plan().get("deletions") == 1

    def said() -> dict[str, str]:
        found = [one for one in plan()["conditions"] if one["type"] == "CarriedOut"]
        return {one["reason"]: one["message"] for one in found}

    wait_until("what is older than a minute to go", planned, seconds=180, every=10)
    wait_until("the plan to wait", lambda: said().keys() == {"ApprovalRequired"}, seconds=120, every=1)
    digest, begin = plan()["digest"], time.monotonic()
    whole = kubernetes.registry.json("retention", "plan", "--digest", digest)[-1]
    assert (whole["digest"], [one["repository"] for one in whole["deletions"]]) == (digest, [OPERATED])
    kubernetes.kubectl("annotate", "registryretentionplan", "retention", f"kubeadm-registry.dev/approve={digest}")
    wait_until("the plan to be carried out", lambda: said().keys() == {"Done"}, seconds=240, every=1)
    say(kubernetes, f"an approved plan after {time.monotonic() - begin:.1f} s: {said()}")
    assert " 1 to the trash" in said()["Done"]
    for image, there in ((old, False), (new, True)):
        assert kubernetes.first.sh("crictl", "pull", image, check=False, timeout=60).returncode == (0 if there else 1)


def services(registry: Registry) -> dict[str, str]:
    """Which run of each service is going on; those for one question or order each come and go."""
    return {name: run for name, run in registry.invocations().items() if "@" not in name or "haproxy@" in name}


def test_the_operator_runs_from_the_image_that_the_bundle_brought(kubernetes: Kubernetes, tmp_path: Path) -> None:
    """It adopts the registry by the very file that init was given, has a plan carried out that somebody approved, and
    another replica goes on when one is killed."""
    registry, config = kubernetes.registry, kubernetes.admin_file(tmp_path)
    old = operated(registry, "v1")
    begin = time.monotonic()
    registry.cli("operator", "install", "--kubeconfig", config)
    say(kubernetes, f"the operator leads after {time.monotonic() - begin:.1f} s")
    runs = services(registry)
    kubernetes.kubectl("apply", "--filename=-", stdin=registry.file.read_text())
    kubernetes.kubectl("apply", "--filename=-", stdin=KEEPS_THE_NEWEST)

    def status() -> dict[str, Any]:
        found: dict[str, Any] = registry.json("operator", "status", "--kubeconfig", config, check=False)[-1]
        return found

    def conditions() -> dict[str, str]:
        return {one["type"]: one["status"] for one in status()["conditions"]}

    well = {
        "Adopted": "True", "Available": "True", "Degraded": "False", "RedundancyComplete": "True",
        "CanLoseANode": "True", "CertificatesValid": "True", "SplitVIP": "False", "ImagesMissing": "False",
        "RetentionHealthy": "True",
    }  # fmt: skip
    try:
        wait_until("all conditions to be well", lambda: well.items() <= conditions().items(), seconds=240, every=5)
        say(kubernetes, f"all conditions are well {time.monotonic() - begin:.1f} s after the beginning")
        assert services(registry) == runs, "it adopts the registry without a restart of anything"
        # The newer one: what the first plan sees at once has one age.
        carried_out(kubernetes, old, operated(registry, "v2"))
        pods = kubernetes.get("pods", "--namespace=kubeadm-registry")["items"]
        assert {pod["spec"]["containers"][0]["image"].partition("/")[0] for pod in pods} == {f"{registry.vip}:5000"}
        leader = status()["leads"]
        kubernetes.kubectl("--namespace=kubeadm-registry", "delete", "pod", leader, "--force", "--grace-period=0")
        begin = time.monotonic()
        wait_until("another to lead", lambda: status()["leads"] not in ("", leader), seconds=180, every=1)
        say(kubernetes, f"another replica leads {time.monotonic() - begin:.1f} s after the leader was deleted")
    except LabError:
        namespaced = "--namespace=kubeadm-registry"
        sys.stdout.write(json.dumps(status(), indent=1))
        sys.stdout.write(kubernetes.kubectl(namespaced, "describe", "pods", check=False)[-6000:])
        sys.stdout.write(
            kubernetes.kubectl(
                namespaced,
                "logs",
                "--selector=app.kubernetes.io/name=kubeadm-registry-operator",
                "--tail=60",
                check=False,
            )
        )
        raise
    finally:
        registry.cli("operator", "uninstall", "--kubeconfig", config, "--yes")
        allow = "kubeadm-registry.dev/allow-data-loss=registry"
        kubernetes.kubectl("annotate", "registrycluster", "registry", allow)
        kubernetes.kubectl("delete", "registrycluster,registrypolicy,registryretentionplan", "--all")


# What goes wrong


def test_a_new_pod_starts_while_the_holder_is_without_power(kubernetes: Kubernetes) -> None:
    registry = kubernetes.registry
    image = pushed(registry, "after-the-cut")
    holder = registry.holder()
    survivor = registry.others(holder)[0]
    assert image not in images_of(survivor)
    holder.sh(
        "sync"
    )  # CNI does not flush its notes about a pod, and with an empty one that pod neither ends nor starts
    holder.power_cut()
    begin = time.monotonic()
    kubernetes.start("after-the-cut", image, survivor, at=survivor)
    kubernetes.wait_running("after-the-cut", at=survivor)
    say(kubernetes, f"{holder.name} is cut off; a pod of a new image runs {time.monotonic() - begin:.1f} s later")
    assert image in images_of(survivor)
    kubernetes.delete("after-the-cut", at=survivor)
    begin = time.monotonic()
    holder.power_on()
    kubernetes.wait_answering(holder)
    say(kubernetes, f"{holder.name} is back, with its API, after {time.monotonic() - begin:.1f} s")
    registry.wait_whole()
    kubernetes.wait_ready()


@pytest.mark.long  # five minutes in which the machine does little else
def test_a_pod_that_takes_all_memory_of_the_holder(kubernetes: Kubernetes) -> None:
    """The kernel ends that pod alone, and nobody takes what is slow until then for hung.

    The agent itself may stand still for longer than systemd waits for it, and a thread of HAProxy for longer than its
    own watchdog does: without control groups of version 2 no memory can be kept for them.
    """
    registry = kubernetes.registry
    greedy, other = pushed(registry, "greedy"), pushed(registry, "other")
    holder = registry.holder()
    others = registry.others(holder)
    pull(holder, greedy)
    before, on_holder, earlier = registry.invocations(others), registry.invocations([holder]), victims()
    with (
        pulling(others, other) as pulls,
        reading(registry, CANARY, period=0.1) as seen,
        holder.little_memory(SPARE),
    ):
        for _ in range(2):
            died = partial(more_victims, victims())
            # One that began anew by itself would take all memory again before anybody could delete it.
            with kubernetes.pod("greedy", greedy, holder, "memory", at=others[0], once=True):
                # One to four minutes on two processors: so long the kernel looks for memory that can be dropped. It is
                # the kernel that tells: the kubelet there has no memory either, and says nothing meanwhile.
                wait_until("the greedy pod's death", died, seconds=400)
    changed = [unit for unit, now in registry.invocations([holder]).items() if on_holder[unit] != now]
    say(kubernetes, f"all memory of {holder.name} taken twice: {pulls}; a client: {seen}; began anew: {changed}")
    assert {name for _, name in victims() - earlier} == {"guest"}
    assert steady(registry.invocations(others)) == steady(before)
    if Path(PRESSURE).exists():  # else the agent cannot know
        watched = {paths.unit(name) for name in ("agent", "haproxy@1", "haproxy@2")}
        assert steady(dict.fromkeys(changed, "")).keys() <= {f"{holder.name} {unit}" for unit in watched}
    assert len(pulls.seconds) >= 10
    assert len(pulls.failed) <= len(pulls.seconds) / 20, pulls.failed
    registry.wait_whole()


def steady(invocations: dict[str, str]) -> dict[str, str]:
    """*invocations* without those of zot, which ends whenever it stops being the writer."""
    return {unit: invocation for unit, invocation in invocations.items() if not unit.endswith(paths.unit("zot"))}


def more_victims(known: set[tuple[str, str]]) -> bool:
    """Whether the kernel has killed more than the *known* ones."""
    return bool(victims() - known)


def victims() -> set[tuple[str, str]]:
    """Whom the kernel of this machine has killed for want of memory: (time, name)."""
    killed = r"^\[ *([0-9.]+)\] .*[Oo]ut of memory: Killed process \d+ \((\S+)\)"
    return set(re.findall(killed, run("dmesg").stdout, re.MULTILINE))


def test_a_pod_that_fills_the_disk_of_the_holders_containerd(kubernetes: Kubernetes) -> None:
    registry = kubernetes.registry
    filler, other = pushed(registry, "filler"), pushed(registry, "another")
    holder = registry.holder()
    others = registry.others(holder)
    pull(holder, filler)

    def serving() -> dict[str, str]:
        # Who records the pulls cannot write on a full disk: it is started again, and goes on where its record ends.
        return {unit: life for unit, life in registry.invocations().items() if not unit.endswith("-pulls.service")}

    before = serving()

    def free() -> int:
        return int(holder.sh("df", "--output=avail", "--block-size=1", "/var/lib/containerd").stdout.split()[-1])

    with (
        pulling(others, other) as pulls,
        reading(registry, CANARY, period=0.1) as seen,
        kubernetes.pod("filler", filler, holder, "disk", "/filler", at=others[0]),
    ):
        wait_until("a full disk", lambda: free() < 1 << 20, seconds=180)
        full, done = time.monotonic(), len(pulls.seconds)
        wait_until("more pulls", lambda: len(pulls.seconds) >= done + 4, seconds=180)
        wait_until("the kubelet to make room", lambda: free() > 100 << 20, seconds=300)
        seconds = time.monotonic() - full
    say(kubernetes, f"{holder.name}'s disk full for {seconds:.1f} s: {pulls}; a client: {seen}")
    assert serving() == before
    assert not pulls.failed
    registry.wait_whole()
    active = ("systemctl", "is-active", "--quiet", "kubeadm-registry-pulls.service")
    wait_until("a recorder of pulls", lambda: not holder.sh(*active, check=False).returncode, seconds=60)


# Once more


def test_the_registry_outlives_kubernetes_and_serves_the_next_one(kubernetes: Kubernetes) -> None:
    registry, first = kubernetes.registry, kubernetes.first
    before = registry.invocations()
    # One that has just had a full disk may still be starting; kubeadm reset tries for minutes to reach it.
    etcd = ("--namespace=kube-system", "wait", "pod", "--selector=component=etcd", "--for=condition=Ready")
    kubernetes.kubectl(*etcd, "--timeout=180s", timeout=200)
    # As patient as containerd, and no load of its own: kubeadm does this three times on processors that all share.
    with reading(registry, CANARY, period=0.1, deadline=20) as seen:
        for host in reversed(kubernetes.servers.values()):
            kubernetes.reset(host)
    say(kubernetes, f"kubeadm reset on three servers, a client meanwhile: {seen}")
    assert not seen.failed
    assert registry.invocations() == before
    registry.wait_whole()
    said = registry.cli("init").stdout.splitlines()
    assert said[-1] == "nothing to do", "the agents have loaded the guard again, which went with the firewall"
    assert all(kubernetes.on_each(empty).values())
    kubernetes.init()
    say(kubernetes, f"kubeadm init once more: {kubernetes.took['kubeadm init']:.1f} s")
    all_from_the_registry(kubernetes, [first], kubernetes.begin)
    image = pushed(registry, "once-more")
    kubernetes.kubectl("taint", "nodes", "--all", "node-role.kubernetes.io/control-plane-")
    kubernetes.start("once-more", image, first)
    kubernetes.wait_running("once-more")
    assert registry.invocations() == before
