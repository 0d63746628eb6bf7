"""The registry is lost, and a bundle's file on one server stands in: containerd on a worker pulls as before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kubeadm_registry import paths
from kubeadm_registry.bundle import FromLayout, create
from tests.lab import images
from tests.lab.command import cache, wait_until
from tests.lab.host import Host
from tests.lab.listing import differences, listings
from tests.lab.registry import ROOT, Registry
from tests.lab.test_runbook import Book

pytest_plugins = ["tests.lab.registry"]

NAME = "registry.k8s.io/tests/rescue:v1"
REPOSITORY = "registry.k8s.io/tests/rescue"
CERTS = "/etc/containerd/certs.d"
#: One layer that is larger than what is sent in one piece.
SIZES = (20 * 2**20, 200_000)


@contextmanager
def serving(registry: Registry, host: Host, bundle: Path) -> Iterator[None]:
    """``rescue serve`` in the network of *host*, with its certificate, until the end."""
    pem = f"{host.var.parent}/root{paths.NODE_PEM}"
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "kubeadm_registry",
        "rescue",
        "serve",
        bundle,
        "--cert",
        pem,
        "-o",
        "json",
    ]
    process = subprocess.Popen(
        host.network_argv(*argv), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        begun = process.stdout.readline()
        assert "can be pulled" in begun, begun or process.communicate()
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=20)


def pull(client: Host) -> tuple[int, float, str]:
    """Pull by the upstream's name on *client*: exit code, seconds, what it said."""
    client.sh("ctr", "images", "rm", NAME, check=False)
    client.sh("ctr", "content", "prune", "references", check=False)
    begin = time.monotonic()
    done = client.sh("ctr", "images", "pull", "--local", "--hosts-dir", CERTS, NAME, check=False, timeout=120)
    return done.returncode, time.monotonic() - begin, done.stdout + done.stderr


def test_a_worker_pulls_from_a_bundle_while_the_registry_is_away(registry: Registry, tmp_path: Path) -> None:
    image = images.image(SIZES, seed=time.time_ns())
    create(tmp_path / "images.tar", {}, images=[FromLayout(image.write_layout(tmp_path / "layout"), NAME)])
    client, chosen = registry.client, registry.servers["h2"]
    nodes = registry.directory / "nodes"
    nodes.write_text(f"{client.name} {client.address}\n")
    before = listings([client])
    applied = registry.json("mirrors", "apply", "--nodes", nodes)[-1]
    assert applied["summary"] == "1 of 1 node pull from the registry, 1 changed"
    books = {name: Book(host, tmp_path) for name, host in registry.servers.items()}

    for book in books.values():
        book.run(*book.lines(8, "systemctl stop kubeadm-registry-")[:4])
    assert registry.holders() == []
    assert pull(client)[0] != 0
    book = books[chosen.name]
    book.run(*book.lines(8, "address add"), *book.lines(5, "arping"))
    with serving(registry, chosen, tmp_path / "images.tar"):
        code, seconds, said = pull(client)
        assert code == 0, said
        print(f"\n  {registry.frontend}: ctr pulls {sum(SIZES) / 1e6:.0f} MB from a bundle in {seconds:.1f} s")
        assert client.sh("ctr", "images", "ls", f"name=={NAME}").stdout.count(image.digest) == 1
        assert not images.missing(registry, image, REPOSITORY)
        crictl = cache() / "build" / "crictl-1.36.0" / "bin" / "crictl"
        if crictl.exists():
            client.put(crictl, "/run/crictl", mode="755")
            socket = "unix:///run/containerd/containerd.sock"
            client.sh("/run/crictl", "--runtime-endpoint", socket, "--image-endpoint", socket, "pull", NAME)
            client.sh("ctr", "-n", "k8s.io", "images", "rm", NAME, "--sync")
            client.sh("rm", "/run/crictl")
        if shutil.which("skopeo"):
            certificates = tmp_path / "certificates"
            certificates.mkdir()
            shutil.copy(registry.ca, certificates / "ca.crt")
            shown = registry.lab.run(
                "skopeo",
                "inspect",
                "--no-tags",
                "--cert-dir",
                certificates,
                f"docker://{registry.vip}:5000/{REPOSITORY}:v1",
            )
            assert json.loads(shown.stdout)["Digest"] == image.digest
    client.sh("ctr", "images", "rm", NAME, "--sync")
    book.run(*book.lines(8, "address del"))
    for book in books.values():
        book.run(*book.lines(4, "start"))
    registry.wait_whole(60)

    removed = registry.json("mirrors", "remove", "--nodes", nodes)[-1]
    assert (removed["done"], removed["owed"]) == (1, {})
    left = differences(before, listings([client]))
    assert not left, "\n".join(left)
    wait_until("the registry is whole", lambda: registry.flaws() == [], seconds=30)
