"""The operator frees space on real nodes by questions to their helpers, while others push and pull."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab import images
from tests.lab.clients import EVERY, pushing
from tests.lab.command import wait_until
from tests.lab.reading import reading
from tests.lab.registry import ROOT, Registry
from tests.lab.test_helper import Operator, operator  # noqa: F401  the fixture
from tests.lab.test_space import CANARY, COUNT, SIZE, bucket, invocation, older_than_the_grace, push_many, say

pytest_plugins = ["tests.lab.registry"]
#: Run by `make day-two`.
pytestmark = pytest.mark.long

#: Frees space as the operator does: cluster file, directory of the Secret, seconds of grace.
FREE = """
import json, logging, pathlib, sys, time
from kubeadm_registry import config
from kubeadm_registry.operator import freeing, way
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
path, folder, grace = sys.argv[1:]
freeing.space.GRACE = float(grace)
cluster, the_way = config.load(pathlib.Path(path)), way.read(pathlib.Path(folder))
connect = the_way.registry(cluster.spec.vip.address, timeout=60)
done = freeing.free(cluster, the_way.members(cluster), connect, time.time)
print(json.dumps({"reason": done.verdict.reason, "message": done.verdict.message, "report": done.report}))
"""


def argv(one: Operator) -> list[str | Path]:
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-c", FREE, one.registry.file, one.folder, "61"]


def free(one: Operator) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(one.registry.lab.run(*argv(one), timeout=600).stdout.splitlines()[-1])
    return said


def closed(registry: Registry) -> list[str]:
    """The nodes on which pushes are closed."""
    script = ("grep", "-q", "^closed [1-9]", "/etc/kubeadm-registry/haproxy/pushes.map")
    return [host.name for host in registry.servers.values() if host.sh(*script, check=False).returncode == 0]


def test_space_is_freed_by_questions_also_after_an_operator_was_killed(
    registry: Registry,
    operator: Operator,  # noqa: F811
    tmp_path: Path,
) -> None:
    login = registry.json("credentials", "--role", "push")[-1]
    for name in ("username", "password"):
        (operator.folder / name).write_text(login[name])
    area = f"tests/operator-space-{time.time_ns()}"
    made = push_many(registry, area)
    gone, stays = made[: COUNT // 2], made[COUNT // 2 :]
    names = [f"{area}/{number}@{one.digest}" for number, one in enumerate(gone)]
    if registry.frontend == "distribution":
        registry.cli("images", "delete", "--all-tags", "--yes", *names)
    older_than_the_grace(time.time())
    if registry.frontend == "distribution":
        with registry.lab.popen(*argv(operator)) as run:
            wait_until("pushes to close", lambda: len(closed(registry)) == 3, seconds=120, every=0.2)
            run.kill()
        assert closed(registry), "for a time"
    frontends = {host.name: invocation(registry, host) for host in registry.servers.values()}
    before = bucket(registry)["bytes"]
    with reading(registry, CANARY) as read:
        begun = time.monotonic()
        done = free(operator)
        took = time.monotonic() - begun
    after = bucket(registry)["bytes"]
    say(f"{done['message']} in {took:.1f} s; reads: {read}; the bucket: {before} bytes before, {after} after")
    assert done["report"] is not None, done
    assert not closed(registry)
    assert not read.failed
    for number, image in enumerate(stays, len(gone)):
        assert not images.missing(registry, image, f"{area}/{number}")
    if registry.frontend == "distribution":
        for host in registry.servers.values():
            assert invocation(registry, host) != frontends[host.name], "it remembers what has gone"
        with registry.lab.network(), images.client(registry) as at:
            for one in gone:
                assert not at.has_blob(f"{area}/1", images.digest_of(one.layers[0]))
        assert after <= before

    more = push_many(registry, area + "-more")
    names = [f"{area}-more/{number}@{one.digest}" for number, one in enumerate(more)]
    if registry.frontend == "distribution":
        registry.cli("images", "delete", "--all-tags", "--yes", *names)
    older_than_the_grace(time.time())
    with pushing(registry, tmp_path / "pushing", clients=EVERY) as pushed, reading(registry, CANARY) as read:
        wait_until("some pushes", lambda: len(pushed.done) > 5, seconds=60)
        done = free(operator)
        count = len(pushed.done)
        wait_until("more pushes", lambda: len(pushed.done) > count + 5, seconds=60)
    say(f"{done['message']}; {pushed}; reads: {read}")
    assert done["report"] is not None, done
    if registry.frontend == "distribution":
        assert done["report"]["freedBytes"] >= COUNT * SIZE
    assert not read.failed
    assert not pushed.failed, pushed.failed
    assert not pushed.lost(registry)
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"
