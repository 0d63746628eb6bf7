"""Another kind of servers: IPv6 only, a user with sudo, sshd on another port; and restarts that a dead run still owed.

They have a lab of their own, with Distribution.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from kubeadm_registry import paths
from kubeadm_registry.cli.terminal import SUDO_PASSWORD
from kubeadm_registry.engine.changes import STARTED
from tests.lab import images
from tests.lab.command import wait_until
from tests.lab.fresh import fresh_lab, require_machine
from tests.lab.host import Host
from tests.lab.registry import Registry
from tests.lab.settings import Place, Settings

FRONTEND = "distribution"
SETTINGS = Settings(hosts=3, family="6", user="admin", ssh_port=2222, interface="ens3", gateway=True)
UNIT = paths.unit(FRONTEND)
UNIT_FILE = f"{paths.UNITS}/{UNIT}"
CONFIG = f"{paths.ETC}/{FRONTEND}/config.yml"
PROXY_CONFIG = f"{paths.ETC}/haproxy/haproxy.cfg"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Three such servers, up and bare."""
    require_machine()
    with fresh_lab(Place.default().beside("engine"), SETTINGS) as lab:
        yield Registry(lab, FRONTEND, tmp_path_factory.mktemp("engine"))


@pytest.fixture
def registry(servers: Registry) -> Registry:
    """A whole registry on them, made if there is none."""
    if not servers.installed:
        servers.install()
    servers.wait_whole()
    return servers


def last_line(registry: Registry, *arguments: str) -> str:
    """The result of a run, as it tells people."""
    return registry.cli(*arguments).stdout.splitlines()[-1]


def test_it_is_installed_over_ipv6_by_sudo(registry: Registry) -> None:
    registry.cli("verify")
    assert last_line(registry, "init") == "nothing to do"
    image = images.image(seed=50)
    images.push(registry, image, "tests/six")
    for host in registry.servers.values():
        assert ":" in host.address
        assert images.missing(registry, image, "tests/six", address=host.address) == [], host.name
        assert host.ssh("id", "-un").stdout == "admin\n"
        assert host.sh("ip", "-4", "-o", "address", "show", "scope", "global").stdout == ""
        owners = host.sh("find", paths.ETC, paths.OPT, "/var/lib/kubeadm-registry", "-user", "admin").stdout
        assert owners == "", host.name
    assert ":" in registry.vip
    assert images.missing(registry, image, "tests/six") == []


def test_a_server_without_python_runs_the_agent_by_the_bundles(registry: Registry) -> None:
    host = registry.servers["h3"]
    assert host.sh("sh", "-c", "command -v python3", check=False).returncode != 0
    pid = host.sh("systemctl", "show", "-P", "MainPID", paths.unit("agent")).stdout.strip()
    assert host.sh("readlink", f"/proc/{pid}/exe").stdout.startswith(paths.PROGRAMS)
    assert registry.state(host)["fit"]


def test_sudo_that_asks_for_a_password(registry: Registry) -> None:
    password, sudoers = "Sesame 'open\" $HOME", "/etc/sudoers.d/lab"

    def run(word: str | None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != SUDO_PASSWORD}
        if word is not None:
            environment[SUDO_PASSWORD] = word
        process = registry.popen("init", env=environment)
        output, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess((), process.returncode, output, errors)

    for host in registry.servers.values():
        host.sh("chpasswd", stdin=f"admin:{password}\n")
        host.sh("sh", "-c", 'echo "admin ALL=(ALL) ALL" > "$1"', "-", sudoers)
    try:
        without, wrong, right = run(None), run("Sesam"), run(password)
    finally:
        for host in registry.servers.values():
            host.sh("sh", "-c", 'echo "admin ALL=(ALL) NOPASSWD: ALL" > "$1"', "-", sudoers)
    assert (without.returncode, wrong.returncode, right.returncode) == (4, 4, 0), right.stderr
    assert "SudoNeeded" in without.stderr
    assert "SudoPasswordWrong" in wrong.stderr
    assert right.stdout.splitlines()[-1] == "nothing to do"
    for host in registry.servers.values():
        assert password not in host.sh("journalctl", "--no-pager", "--quiet", timeout=60).stdout


def append(host: Host, path: str, line: str) -> None:
    """Add a line to a file in place, as an editor would not: mode and owner stay."""
    host.sh("sh", "-c", 'printf "%s\\n" "$2" >> "$1"', "-", path, line)


def take_off(host: Host, path: str) -> None:
    """Take the last line of a file off again, in place."""
    host.sh("sh", "-c", 'text=$(sed "\\$d" "$1"); printf "%s\\n" "$text" > "$1"', "-", path)


def digest(host: Host, path: str) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(host.sh("cat", path).stdout.encode()).hexdigest()


def recorded(host: Host, unit: str) -> dict[str, str]:
    """The digests of the files with which *unit* was started, by their paths."""
    lines = host.sh("cat", f"{STARTED}/{unit}").stdout.splitlines()
    return {path: digest for digest, path in (line.split("  ", 1) for line in lines)}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Which units of which hosts run anew."""
    return {name for name in after if after[name] != before.get(name)}


def test_an_edit_by_hand_is_taken_back_and_nothing_restarts_for_it(registry: Registry) -> None:
    """The service runs with the right file all the time."""
    before = registry.invocations()
    host = registry.servers["h2"]
    wanted = digest(host, CONFIG)
    append(host, CONFIG, "# by hand")
    shown = registry.cli("init", "--dry-run").stdout
    assert f"would write {CONFIG}" in shown
    assert last_line(registry, "init") == "1 change on 1 node"
    assert digest(host, CONFIG) == wanted
    assert registry.invocations() == before


@pytest.mark.long
def test_a_restart_that_a_dead_run_owed_is_made_up(registry: Registry) -> None:
    """The files are right and the service was started with earlier ones: as after a death between write and restart."""
    host = registry.servers["h3"]
    append(host, CONFIG, "# of an earlier version")
    host.sh("systemctl", "restart", UNIT)
    take_off(host, CONFIG)
    registry.wait_whole()
    before = registry.invocations()
    shown = registry.cli("init", "--dry-run").stdout
    assert f"{UNIT}: restarts, because it runs with earlier versions of {CONFIG}" in shown
    assert registry.invocations() == before
    assert last_line(registry, "init") == "1 change on 1 node"
    assert changed(before, registry.invocations()) == {f"h3 {UNIT}"}
    assert recorded(host, UNIT)[CONFIG] == digest(host, CONFIG)
    assert last_line(registry, "init") == "nothing to do"


@pytest.mark.long
def test_a_reload_that_a_dead_run_owed_is_made_up(registry: Registry) -> None:
    """The proxy reads a changed file without being started anew."""
    host = registry.servers["h1"]
    units = [f"{paths.PREFIX}-haproxy@{number}.service" for number in (1, 2)]
    append(host, PROXY_CONFIG, "# of an earlier version")
    host.sh("systemctl", "reload", *units)
    take_off(host, PROXY_CONFIG)
    settle(host, units)
    before = registry.invocations()
    shown = registry.cli("init", "--dry-run").stdout
    assert f"{units[0]}: reloads, because it runs with earlier versions of {PROXY_CONFIG}" in shown
    assert last_line(registry, "init") == "2 changes on 1 node"
    assert registry.invocations() == before
    for unit in units:
        assert recorded(host, unit)[PROXY_CONFIG] == digest(host, PROXY_CONFIG)
    assert last_line(registry, "init") == "nothing to do"


def settle(host: Host, units: list[str]) -> None:
    """Wait until no reload is under way."""
    wait_until(
        "the end of a reload",
        lambda: host.sh("systemctl", "is-active", *units, check=False).stdout.split() == ["active"] * len(units),
        seconds=20,
    )


@pytest.mark.long
def test_a_run_killed_at_a_restart_is_made_up(registry: Registry) -> None:
    """The same with a real death: SIGKILL when the run says that it starts the unit whose file it has just written."""
    host = registry.servers["h1"]
    append(host, UNIT_FILE, "# of an earlier version")
    host.sh("systemctl", "daemon-reload")
    host.sh("systemctl", "restart", UNIT)
    registry.wait_whole()
    process = registry.popen("init")
    assert process.stdout is not None
    try:
        assert any(re.search(rf"h1 .*start {re.escape(UNIT)}", line) for line in process.stdout)
    finally:
        process.kill()
        process.communicate()
    wait_until(
        "the lock of the killed run to be gone",
        lambda: host.sh("flock", "-n", "/run/kubeadm-registry.lock", "true", check=False).returncode == 0,
        seconds=20,
    )
    registry.cli("init")
    assert recorded(host, UNIT)[UNIT_FILE] == digest(host, UNIT_FILE)
    assert "earlier version" not in host.sh("systemctl", "cat", UNIT).stdout
    assert last_line(registry, "init") == "nothing to do"
    registry.wait_whole()


def test_a_reboot_owes_nothing(registry: Registry) -> None:
    host = registry.servers["h3"]
    host.reboot()
    registry.wait_whole()
    before = registry.invocations()
    assert last_line(registry, "init") == "nothing to do"
    assert registry.invocations() == before
