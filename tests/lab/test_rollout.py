"""A changed setting goes from server to server: never are two down at once, and readers at the VIP notice nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kubeadm_registry import paths
from kubeadm_registry.oci import canary
from tests.lab.reading import Object, Reading, reading
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

#: Run by `make day-two`.
pytestmark = pytest.mark.long
SAMPLER = Path(__file__).with_name("sampler.py")
PERIOD = 0.05
MOVES, IN_HAND = 2, 4
"""How often the address may move when all restarts, and how many requests may be in hand then (50 begin a second)."""
KNOWN = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)


@dataclass
class Outages:
    """When which services of which server did not answer; complete once the ``with`` of ``sampled`` has ended."""

    found: dict[str, list[tuple[float, float, list[str]]]] = field(default_factory=dict)
    """By server: begin, end and services. An outage lasts until the first look that found nothing wrong."""
    looks: int = 0

    def together(self) -> list[str]:
        """Each moment in which two servers were down, in words."""
        names = list(self.found)
        return [
            f"{one}: {'/'.join(what)} and {other}: {'/'.join(also)} for {min(end, until) - max(begin, since):.2f} s"
            for index, one in enumerate(names)
            for other in names[index + 1 :]
            for begin, end, what in self.found[one]
            for since, until, also in self.found[other]
            if min(end, until) > max(begin, since)
        ]

    def __str__(self) -> str:
        return "; ".join(
            f"{name} down {sum(end - begin for begin, end, _ in outages):.2f} s in {len(outages)} outages"
            + "".join(f", {'/'.join(what)} {end - begin:.2f}" for begin, end, what in outages)
            for name, outages in self.found.items()
        )


@contextmanager
def sampled(registry: Registry) -> Iterator[Outages]:
    """Look at the services of every server, 20 times a second, for the length of a ``with``."""
    processes = {}
    for host in registry.servers.values():
        argv = host.network_argv(sys.executable, SAMPLER, host.address, str(PERIOD))
        processes[host.name] = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    outages = Outages()
    try:
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield outages
        for name, process in processes.items():
            looks = [json.loads(line) for line in process.communicate(timeout=60)[0].splitlines()]
            outages.looks += len(looks)
            outages.found[name] = list(_outages(looks))
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def _outages(looks: list[dict[str, object]]) -> Iterator[tuple[float, float, list[str]]]:
    begin, what = 0.0, set[str]()
    for look in looks:
        moment, down = float(str(look["time"])), look["down"]
        assert isinstance(down, list)
        if down:
            begin = begin or moment
            what |= set(down)
        elif begin:
            yield begin, moment, sorted(what)
            begin, what = 0.0, set()
    if begin:
        yield begin, float("inf"), sorted(what)


def rolled_out(registry: Registry, file: Path) -> tuple[Outages, Reading]:
    """Run ``init`` with *file* under the eyes of samplers and of a reader who logs in."""
    registry.wait_whole()
    login = registry.login("pull")
    begin = time.time()
    with reading(registry, KNOWN, login=login) as result, sampled(registry) as outages:
        said = registry.cli("init", "-f", file, "--bundle", registry.bundle).stdout
    sys.stdout.write(f"\n{said}\n  {registry.frontend}: {result}\n  {outages}; {outages.looks} looks\n")
    if result.failed or outages.together():
        for request in result.failed:
            sys.stdout.write(f"  {request}\n")
        sys.stdout.write(registry.journals(begin))
    return outages, result


def test_a_setting_of_the_proxy(registry: Registry) -> None:
    """Who may pull is changed, and changed back."""
    file = registry.write_file({"proxy.anonymousPull": False}, name="closed.yaml")
    runs = []
    try:
        runs.append(rolled_out(registry, file))
    finally:
        runs.append(rolled_out(registry, registry.file))
    for outages, result in runs:
        assert not outages.together()
        assert not result.failed


def renewed(registry: Registry, forget: str) -> tuple[Reading, set[str]]:
    """Run ``init`` after *forget*, a script, took away what the directory ``$1`` says of how services were started.

    What a reader saw, and which units run anew; never were two servers down at once.
    """
    before = registry.invocations()
    for host in registry.servers.values():
        host.sh("sh", "-c", forget, "-", f"{paths.RUN}/started")
    outages, result = rolled_out(registry, registry.file)
    assert not outages.together()
    after = registry.invocations()
    return result, {name.partition(" ")[2] for name in before if after[name] != before[name]}


def test_new_files_for_everything(registry: Registry) -> None:
    """As if every configuration had changed, and the agent: what can take up new files as it runs does not restart."""
    result, restarted = renewed(registry, 'sed -i "/\\/etc\\/systemd\\//! s/^[0-9a-f]*/0/" "$1"/*')
    assert not result.failed
    assert restarted == {f"{paths.PREFIX}-{name}.service" for name in ("garage", registry.frontend)}
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"


def test_new_programs_for_everything(registry: Registry) -> None:
    """All units restart. Where agent and keepalived do, the address moves once, and what was in hand then is lost."""
    services = {name.partition(" ")[2] for name in registry.invocations() if name.endswith(".service")}
    result, restarted = renewed(registry, 'rm -f -- "$1"/*')
    assert len(result.failed) <= MOVES * IN_HAND
    assert restarted == services
