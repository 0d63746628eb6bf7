"""``init`` where all is as it should be, compared with Ansible and pyinfra for the same files and services.

Each is a whole process that finds nothing to change on three hosts. Ours does more meanwhile: the pre-flight checks,
Garage's layout, the virtual IP, containerd's configuration, and a read through each node and the virtual IP.
"""

from __future__ import annotations

import base64
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry import paths
from tests.bench.bundles import TAG, noise_images
from tests.bench.deployments import Command, ansible, pyinfra, work
from tests.lab import machine, programs
from tests.lab.command import locked, unwinding
from tests.lab.lab import Lab, sweep
from tests.lab.registry import Registry, repeat
from tests.lab.settings import Place, Settings

ROUNDS = repeat(3)
OURS = "kubeadm-registry init"
LIMIT = 600


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry on hosts that all have Python, without which Ansible does nothing."""
    if problems := machine.problems():
        pytest.skip("no lab on this machine: " + "; ".join(problems))
    default = Place.default()
    place = Place(default.directory.with_name(f"{default.name}-again"))
    with locked(place.lock, wait=False):
        sweep(place)
    with unwinding():
        lab = Lab.up(Settings(without_python=()), place=place, started_by="tests")
        try:
            registry = Registry(lab, "distribution", tmp_path_factory.mktemp("again"))
            registry.install()
            registry.cli("init")
            yield registry
        finally:
            lab.down()


def run(registry: Registry, command: Command) -> tuple[float, str]:
    """Seconds, and what it said."""
    environment = {**os.environ, **command.environment}
    argv = registry.lab.argv("env", *(f"{key}={value}" for key, value in command.environment.items()), *command.argv)
    begin = time.perf_counter()
    done = subprocess.run(
        argv, cwd=registry.directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    assert done.returncode == 0, f"{command.name}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return seconds, done.stdout + done.stderr


def changed_nothing(name: str, said: str) -> bool:
    """Whether it told that all was as it should be."""
    if name == OURS:
        return said.rstrip().endswith("nothing to do")
    if name == "pyinfra":
        totals = re.search(r"Grand total\s+(\d+)\s+(\d+|-)\s+(\d+|-)", said)
        return totals is not None and totals[2] == "-"
    return set(re.findall(r"changed=(\d+)", said)) == {"0"} and set(re.findall(r"failed=(\d+)", said)) == {"0"}


def test_a_run_that_finds_nothing_to_do(
    installed: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    todo = work(installed)
    ours = Command(OURS, installed.argv("init")[len(installed.lab.argv()) :], {})
    commands = [ours, *ansible(installed, todo, tmp_path / "ansible"), pyinfra(installed, todo, tmp_path / "pyinfra")]
    seconds: dict[str, list[float]] = {command.name: [] for command in commands}
    for _ in range(ROUNDS):
        for command in commands:
            took, said = run(installed, command)
            assert changed_nothing(command.name, said), f"{command.name}: {said[-3000:]}"
            seconds[command.name].append(took)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    with capsys.disabled():
        count = sum(one.count for one in todo.values())
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        print(f"\n{count} users, directories, files and services on 3 hosts; medians of {ROUNDS}, seconds; load {load}")
        for name, median in medians.items():
            print(f"  {name:<26} {median:7.2f} {median / medians[OURS]:6.2f}")
    assert min(median for name, median in medians.items() if name != OURS) > medians[OURS]


def test_a_seed_that_finds_nothing_to_do(
    installed: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 images that are there, by ``seed``, which proves each at three nodes and the virtual IP, and by crane."""
    images = noise_images(tmp_path / "images", [["base", 40_000, 15_000, 5_000]] * 20, {"base": 50_000})
    login = installed.login("push")
    auth = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
    at = f"{installed.vip}:{paths.REGISTRY_PORT}"
    (tmp_path / "config.json").write_text(json.dumps({"auths": {at: {"auth": auth}}}))
    lines = tmp_path / "lines"
    lines.write_text("".join(f"{layout} {at}/{name}:{TAG}\n" for name, layout in images.layouts.items()))
    environment = {"DOCKER_CONFIG": str(tmp_path), "SSL_CERT_FILE": str(installed.ca)}
    crane = [str(programs.program("crane")), "push"]
    prefix = len(installed.lab.argv())
    commands = [
        Command("kubeadm-registry seed", installed.argv("seed", "--bundle", images.bundle)[prefix:], {}),
        Command("crane push", ["xargs", f"--arg-file={lines}", "--max-lines=1", *crane], environment),
        Command("crane push, 6 at a time",
                ["xargs", f"--arg-file={lines}", "--max-lines=1", "--max-procs=6", *crane], environment),
    ]  # fmt: skip
    for command in commands:
        run(installed, command)
    seconds: dict[str, list[float]] = {command.name: [] for command in commands}
    for _ in range(ROUNDS):
        for command in commands:
            seconds[command.name].append(run(installed, command)[0])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    with capsys.disabled():
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        print(f"\n20 images that are there; medians of {ROUNDS}, seconds; load {load}")
        for name, median in medians.items():
            print(f"  {name:<26} {median:7.2f} {median / medians['kubeadm-registry seed']:6.2f}")
    assert medians["kubeadm-registry seed"] < 5 * medians["crane push"], "it finds its way by SSH, and asks four places"
