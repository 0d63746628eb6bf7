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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kubeadm_registry import paths
from tests.bench.bundles import TAG, noise_images
from tests.bench.deployments import Command, ansible, pyinfra, work
from tests.bench.turns import in_turn
from tests.lab import programs
from tests.lab.fresh import fresh_lab, require_machine
from tests.lab.registry import Registry, repeat
from tests.lab.settings import Place, Settings

ROUNDS = repeat(3)
OURS = "kubeadm-registry init"
SEED = "kubeadm-registry seed"
LIMIT = 600


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry on hosts that all have Python, without which Ansible does nothing."""
    require_machine()
    with fresh_lab(Place.default().beside("again"), Settings(without_python=())) as lab:
        registry = Registry(lab, "distribution", tmp_path_factory.mktemp("again"))
        registry.install()
        registry.cli("init")
        yield registry


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


def compare(
    registry: Registry, commands: Sequence[Command], of: Callable[[str, str], bool] = lambda name, said: True
) -> dict[str, float]:
    """The medians of all *commands* in seconds, each beginning a round in turn.

    What each says must be *of* the kind that is compared.
    """
    seconds: dict[str, list[float]] = {command.name: [] for command in commands}
    for number in range(ROUNDS):
        for command in in_turn(commands, number):
            took, said = run(registry, command)
            assert of(command.name, said), f"{command.name}: {said[-3000:]}"
            seconds[command.name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(what: str, medians: dict[str, float], ours: str) -> None:
    """Print them, and each as a multiple of *ours*."""
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\n{what}; medians of {ROUNDS}, seconds; load {load}")
    for name, median in medians.items():
        print(f"  {name:<26} {median:7.2f} {median / medians[ours]:6.2f}")


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
    medians = compare(installed, commands, changed_nothing)
    count = sum(one.count for one in todo.values())
    with capsys.disabled():
        show(f"{count} users, directories, files and services on 3 hosts", medians, OURS)
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
        Command(SEED, installed.argv("seed", "--bundle", images.bundle)[prefix:], {}),
        Command("crane push", ["xargs", f"--arg-file={lines}", "--max-lines=1", *crane], environment),
        Command("crane push, 6 at a time",
                ["xargs", f"--arg-file={lines}", "--max-lines=1", "--max-procs=6", *crane], environment),
    ]  # fmt: skip
    for command in commands:
        run(installed, command)
    medians = compare(installed, commands)
    with capsys.disabled():
        show("20 images that are there", medians, SEED)
    assert medians[SEED] < 5 * medians["crane push"], "it finds its way by SSH, and asks four places"
