"""The registry is lost, and a bundle's file on one server stands in: containerd on a worker pulls as before."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from kubeadm_registry.bundle.make import FromLayout, choose, create
from kubeadm_registry.bundle.tool import NAME as TOOL
from tests.lab import images
from tests.lab.command import cache, wait_until
from tests.lab.host import Host
from tests.lab.listing import differences, listings
from tests.lab.registry import Registry
from tests.lab.test_runbook import Book

pytest_plugins = ["tests.lab.registry"]

NAME = "registry.k8s.io/tests/rescue:v1"
REPOSITORY = "registry.k8s.io/tests/rescue"
CERTS = "/etc/containerd/certs.d"
#: It has no Python of its own: all that serves comes from the bundle.
HOST = "h3"
FOLDER = "/root/carried"
#: One layer that is larger than what is sent in one piece.
SIZES = (20 * 2**20, 200_000)


def pull(client: Host) -> tuple[int, float, str]:
    """Pull by the upstream's name on *client*: exit code, seconds, what it said."""
    client.sh("ctr", "images", "rm", "--sync", NAME, check=False)
    client.sh("ctr", "content", "prune", "references", check=False)
    begin = time.monotonic()
    done = client.sh("ctr", "images", "pull", "--local", "--hosts-dir", CERTS, NAME, check=False, timeout=120)
    return done.returncode, time.monotonic() - begin, done.stdout + done.stderr


def others_pull_too(registry: Registry, image: images.Image, scratch: Path) -> None:
    """crictl, by containerd's own configuration, and skopeo, where they are; and our own client, every byte."""
    client, crictl = registry.client, cache() / "build" / "crictl-1.36.0" / "bin" / "crictl"
    if crictl.exists():
        client.put(crictl, "/run/crictl", mode="755")
        socket = "unix:///run/containerd/containerd.sock"
        client.sh("/run/crictl", "--runtime-endpoint", socket, "--image-endpoint", socket, "pull", NAME)
        assert image.digest in client.sh("ctr", "-n", "k8s.io", "images", "ls", f"name=={NAME}").stdout
        client.sh("ctr", "-n", "k8s.io", "images", "rm", "--sync", NAME)
        client.sh("rm", "/run/crictl")
    if shutil.which("skopeo"):
        trusted = scratch / "certificates"
        trusted.mkdir()
        shutil.copy(registry.ca, trusted / "ca.crt")
        where = f"docker://{registry.vip}:5000/{REPOSITORY}:v1"
        shown = registry.lab.run("skopeo", "inspect", "--cert-dir", trusted, where).stdout
        assert json.loads(shown)["Digest"] == image.digest
        assert json.loads(shown)["RepoTags"] == ["v1"]
    assert not images.missing(registry, image, REPOSITORY)


def test_a_worker_pulls_from_a_bundle_while_the_registry_is_away(registry: Registry, tmp_path: Path) -> None:
    image = images.image(SIZES, seed=time.time_ns())
    layout = image.write_layout(tmp_path / "layout")
    create(tmp_path / "bundle.tar", choose([TOOL]), images=[FromLayout(layout, NAME)])
    client, chosen = registry.client, registry.servers[HOST]
    assert chosen.sh("which", "python3", check=False).returncode != 0, "a host with Python proves nothing"
    nodes = registry.directory / "nodes"
    nodes.write_text(f"{client.name} {client.address}\n")
    before = listings([client])
    applied = registry.json("mirrors", "apply", "--nodes", nodes)[-1]
    assert (applied["done"], applied["owed"]) == (1, {})
    books = {name: Book(host, tmp_path) for name, host in registry.servers.items()}
    book = books[HOST]
    chosen.sh("mkdir", "-m", "700", FOLDER)
    chosen.put(tmp_path / "bundle.tar", f"{FOLDER}/kubeadm-registry-bundle.tar")
    bundle, unpack = book.lines(8)[:2]
    begun, journal = book.lines(8, "systemd-run")[0], book.lines(8, "journalctl")[0]
    stop = [line for line in book.lines(8, "systemctl stop") if "rescue" not in line]
    try:
        for one in books.values():
            one.run(*stop)
        assert registry.holders() == []
        assert pull(client)[0] != 0
        begin = time.monotonic()
        book.run(bundle, unpack, folder=FOLDER)
        book.run(*book.lines(8, "address add"), *book.lines(5, "arping"), *book.lines(5, "ping -6"))
        book.run(bundle, begun, folder=FOLDER)
        # The second one is the operator's, which comes with the tool.
        wait_until("it serves", lambda: "2 images of" in book.run(journal), seconds=60, every=0.2)
        print(
            f"\n  {registry.frontend}: a bundle serves {time.monotonic() - begin:.1f} s after the registry was stopped"
        )
        code, seconds, said = pull(client)
        assert code == 0, said
        print(f"  ctr pulls {sum(SIZES) / 1e6:.0f} MB from it in {seconds:.1f} s")
        assert image.digest in client.sh("ctr", "images", "ls", f"name=={NAME}").stdout
        others_pull_too(registry, image, tmp_path)
        client.sh("ctr", "images", "rm", "--sync", NAME)
    finally:
        book.run(*book.lines(8, "stop kubeadm-registry-rescue"), check=False)
        book.run(*book.lines(8, "address del"), check=False)
        chosen.sh("rm", "-rf", FOLDER)
        for one in books.values():
            one.run(*one.lines(4, "start"))
    registry.wait_whole(120)
    assert [line for line in book.lines(8) if line not in book.ran] == [], "every command of this section was run"

    removed = registry.json("mirrors", "remove", "--nodes", nodes)[-1]
    assert (removed["done"], removed["owed"]) == (1, {})
    left = differences(before, listings([client]))
    assert not left, "\n".join(left)
