"""``reset`` leaves the hosts as they were before ``init``, which a full listing of each shows."""

from __future__ import annotations

import time

import pytest

from tests.lab import images
from tests.lab.listing import differences, listings, packages
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

DATA = "/var/lib/kubeadm-registry"
CONFIG = "/etc/containerd/config.toml"
IMAGE = images.image((2 * 2**20,), seed=30)
REPOSITORY = "tests/outlives"


def test_all_is_removed_and_nothing_left(bare: Registry) -> None:
    servers = bare.servers
    before = listings(servers.values())
    original = servers["h1"].sh("cat", CONFIG).stdout
    installed = {name: packages(host) for name, host in servers.items()}

    bare.install()
    assert differences(before, listings(servers.values())), "the listing sees an installation"
    assert {name: packages(host) for name, host in servers.items()} == installed
    images.push(bare, IMAGE, REPOSITORY)
    added = edit(bare)
    dry = bare.cli("reset", "--purge-data", "--dry-run").stdout
    assert f"would remove {DATA}" in dry
    assert bare.flaws() == []

    said = bare.cli("reset", "--yes", "--purge-data").stdout
    bare.forget()
    assert said.splitlines()[-1].endswith("changes on 3 nodes")
    assert servers["h1"].sh("cat", CONFIG).stdout == added + original
    servers["h1"].sh("sh", "-c", 'printf "%s" "$2" > "$1"', "-", CONFIG, original)
    left = differences(before, listings(servers.values()))
    assert not left, "\n".join(left)
    assert bare.cli("reset", "--yes", "--purge-data").stdout.splitlines()[-1] == "nothing to do"


@pytest.mark.long  # two more installations
def test_the_data_stays_if_not_told_to_purge_and_is_served_again(bare: Registry) -> None:
    servers = bare.servers
    before = listings(servers.values())
    bare.install()
    images.push(bare, IMAGE, REPOSITORY)
    authority, passwords = bare.ca.read_text(), (bare.login("push"), bare.login("pull"))
    bare.cli("reset", "--yes")
    bare.forget()
    left = [line for line in differences(before, listings(servers.values())) if DATA not in line]
    assert not left, "\n".join(left)
    for host in servers.values():
        assert host.sh("ls", "-A", DATA).stdout.split() == ["garage", "members.json", "secrets.json"]
        assert host.sh("stat", "-c", "%a %U:%G", f"{DATA}/secrets.json").stdout.strip() == "600 root:root"

    bare.install()
    assert bare.ca.read_text() == authority
    assert (bare.login("push"), bare.login("pull")) == passwords
    for host in servers.values():
        assert images.missing(bare, IMAGE, REPOSITORY, address=host.address) == [], host.name
        assert host.sh("test", "-e", f"{DATA}/secrets.json", check=False).returncode == 1
    assert bare.cli("init").stdout.splitlines()[-1] == "nothing to do"


def edit(registry: Registry) -> str:
    """Edit containerd's configuration on h1 after init, as a user would; what was added, at the top of the file."""
    added = f"# mine, of {time.time():.0f}\noom_score = -998\n"
    script = 'printf "%s" "$2" | cat - "$1" > "$1.new" && mv "$1.new" "$1"'
    registry.servers["h1"].sh("sh", "-c", script, "-", CONFIG, added)
    return added
