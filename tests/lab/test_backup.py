"""All three servers are lost: from a backup and the bundles the registry is there again, and no client is touched."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import secrets
from kubeadm_registry.bundle.make import FromLayout, create
from tests.lab import images
from tests.lab.carried import carried
from tests.lab.host import Host
from tests.lab.killing import killed
from tests.lab.listing import differences, listings
from tests.lab.registry import Registry
from tests.lab.test_init import report

pytest_plugins = ["tests.lab.registry"]
#: Run by `make day-two`.
pytestmark = pytest.mark.long

BROUGHT = "registry.k8s.io/tests/backup"
PUSHED = "team/backup"
CERTS = "/etc/containerd/certs.d"


def pull(client: Host) -> None:
    """Pull what the bundle brought by its upstream's name, as kubelet's containerd does. Raises LabError."""
    name = f"{BROUGHT}:v1"
    client.sh("ctr", "images", "rm", "--sync", name, check=False)
    client.sh("ctr", "content", "prune", "references", check=False)
    client.sh("ctr", "images", "pull", "--local", "--hosts-dir", CERTS, name, timeout=120)
    client.sh("ctr", "images", "rm", "--sync", name)


def backed_up(registry: Registry, folder: Path) -> list[str | Path]:
    """Make a backup in *folder*; how ``restore`` is called with it."""
    key, backup = folder / "backup-key", folder / "backup.tar"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    begin = time.monotonic()
    made = registry.json("backup", "-o", backup, "--recipients-file", f"{key}.pub", "--sign", key)[-1]
    report(f"{registry.frontend}: backup of {made['images']} images, {made['size']} bytes, "
           f"in {time.monotonic() - begin:.1f} s")  # fmt: skip
    return ["restore", backup, "--identity", key, "--ca", registry.ca, "--backup-key", f"{key}.pub",
            "--bundle", registry.bundle]  # fmt: skip


def restored(done: subprocess.CompletedProcess[str]) -> tuple[dict[str, Any], list[str]]:
    """The result of ``restore -o json``, and the names of what it misses."""
    assert done.returncode in (0, 5), done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    return last, [one["name"] for one in last["missing"]]


def restore_from(registry: Registry, host: Host, given: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Restore from *host*, to which only the files among *given* are carried."""
    there = {str(registry.bundle): "bundle.tar"}
    with carried(registry, host, registry.bundle) as tool:
        for one in given:
            if (path := str(one)).startswith("/") and path not in there:
                there[path] = tool.put(Path(path))
        return tool.run(*(there.get(str(one), str(one)) for one in given), "-o", "json", check=False)


def test_all_servers_are_lost_and_no_client_is_touched(registry: Registry, tmp_path: Path) -> None:
    brought, pushed = (images.image((8 * 2**20, 200_000), seed=time.time_ns() + turn) for turn in (1, 2))
    layout = brought.write_layout(tmp_path / "layout")
    bundle = create(tmp_path / "images.tar", {}, images=[FromLayout(layout, f"{BROUGHT}:v1")]).path
    registry.cli("seed", "--bundle", bundle)
    images.push(registry, pushed, PUSHED, tag="v1")
    registry.cli("images", "pin", f"{PUSHED}:v1", "--reason", "of the team")
    nodes = registry.directory / "nodes"
    nodes.write_text(f"{registry.client.name} {registry.client.address}\n")
    registry.cli("mirrors", "apply", "--nodes", nodes)
    pull(registry.client)
    # What clients have, and Registry keeps: none of it is asked for again below.
    login, ca = registry.login(), registry.ca.read_text()
    client = listings([registry.client])
    kept = registry.servers["h1"].sh("cat", secrets.PATH).stdout
    given = [*backed_up(registry, tmp_path), "--bundle", bundle]

    registry.installed = False
    for host in registry.servers.values():
        host.reinstall()
    killed(registry, given, r"h2 .*start kubeadm-registry-garage")
    begin = time.monotonic()
    _, missing = restored(restore_from(registry, registry.servers["h1"], given))
    report(f"{registry.frontend}: restored in {time.monotonic() - begin:.1f} s after a run that was killed")
    assert f"{PUSHED}:v1@{pushed.digest}" in missing
    assert not [name for name in missing if name.startswith(BROUGHT)]
    registry.installed = True
    registry.wait_whole()

    for host in registry.servers.values():
        assert host.sh("cat", secrets.PATH).stdout == kept, host.name
        assert host.sh("stat", "-c", "%a %U:%G", secrets.PATH).stdout == "600 root:root\n"
    assert registry.cli("ca").stdout == ca
    assert registry.json("credentials")[0] == {"username": login.username, "password": login.password}
    pull(registry.client)
    left = differences(client, listings([registry.client]))
    assert not left, "\n".join(left)
    images.push(registry, pushed, PUSHED, tag="v1")
    for host in registry.servers.values():
        assert not images.missing(registry, pushed, PUSHED, address=host.address)
        assert not images.missing(registry, brought, BROUGHT, address=host.address)
    again, rest = restored(registry.cli(*given, "-o", "json", check=False))
    assert (again["changed"], rest) == (0, [name for name in missing if not name.startswith(PUSHED)])
    assert registry.json("images", "pins")[0]["pins"] == [
        {"name": f"{PUSHED}:v1", "reason": "of the team", "until": None}
    ]
    registry.cli("mirrors", "remove", "--nodes", nodes)
