"""What a newer release has left on one node is refused before anything is changed on any of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kubeadm_registry import members, pki
from kubeadm_registry.agent import promised
from kubeadm_registry.cluster import read_members
from kubeadm_registry.components import agent, programs, replacing
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import PreflightFailed
from kubeadm_registry.phases.helper import allow
from kubeadm_registry.phases.workflows import INIT
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.installed import fresh
from tests.unit.test_workflow import Recorder

HARDSTATE = "hardstate"


def left(fake: FakeCluster, path: str, stamp: dict[str, int], **more: Any) -> None:
    """A release with this *stamp* has written the record on cp-3."""
    server = fake.servers["cp-3"]
    if path != HARDSTATE:
        server.put(path, json.dumps({**json.loads(server.content(path)), **more, "format": stamp}), 0o600)
        return
    said = {"format": stamp, "generation": 1, "epoch": 3}
    record = json.dumps({**said, "sha256": promised.checksum(said)}, sort_keys=True).encode()
    server.put(agent.hardstate(fake.cluster), record.ljust(promised.RECORD - 1) + b"\n", 0o600)


@pytest.mark.parametrize(("reader", "verb"), [(9, "read"), (1, "write")])
@pytest.mark.parametrize("path", [members.PATH, programs.RECORD, replacing.USERS, HARDSTATE])
def test_a_record_that_may_not_be_read_or_written_is_told_before_anything_is_changed(
    path: str, reader: int, verb: str
) -> None:
    if (path, verb) == (members.PATH, "read"):
        return  # nothing can be asked for without the list
    fake = fresh()
    run(allow("ssh-ed25519 AAAA", pki.ssh_key()[0]), fake.cluster, Recorder())
    fake.another_build("garage")
    left(fake, path, {"version": 9, "minReader": reader, "minWriter": 9})
    before = fake.snapshot()
    with pytest.raises(PreflightFailed) as caught:
        run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    (problem,) = caught.value.problems
    assert (problem.check, problem.host, problem.mandatory) == ("Records", "cp-3", True)
    assert path in problem.text
    assert f"version 9 of its format is needed to {verb} it" in problem.text
    assert "use a newer kubeadm-registry" in problem.text
    assert fake.snapshot() == before


def test_what_a_newer_release_has_added_to_the_list_of_members_on_one_node_is_kept() -> None:
    fake = fresh()
    stamp = {"version": 9, "minReader": 1, "minWriter": 1}
    left(fake, members.PATH, stamp, zones={"cp-1": "a"})
    found = read_members(fake.config, fake.cluster.hosts)
    assert found is not None
    assert found.render() == members.parse(fake.servers["cp-3"].content(members.PATH)).render()
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    for server in fake.servers.values():
        said = json.loads(server.content(members.PATH))
        assert (said["zones"], said["format"]) == ({"cp-1": "a"}, stamp)
