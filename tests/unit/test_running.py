"""Which versions run: by the process, else by the unit's file; not by what was uploaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kubeadm_registry import paths
from kubeadm_registry.components import retention, running
from kubeadm_registry.components.services import services
from kubeadm_registry.engine.changes import unit_path
from tests.unit.fake_cluster import FakeCluster
from tests.unit.test_upgrade import installed, newer, upgraded


def test_what_is_uploaded_does_not_run_yet() -> None:
    fake = installed()
    cluster = fake.cluster
    assert running.versions(cluster, cluster.leader)["garage"] == "1.0"
    newer(fake)
    assert running.versions(fake.cluster, cluster.leader)["garage"] == "1.0"
    upgraded(fake)
    assert running.versions(fake.cluster, cluster.leader)["garage"] == "1.0", "another build of the same version"


def test_opt_may_be_a_link() -> None:
    fake = installed()
    cluster = fake.cluster
    before = running.versions(cluster, cluster.leader)
    server = fake.servers[cluster.leader.name]
    units = [one.unit for one in services(cluster.spec) if one.program] + [retention.TEMPLATE]
    pairs = [word for unit in units for word in (unit, unit_path(unit))]
    said = cluster.leader.query("sh", "-c", running._ASK, "running", *pairs).text
    assert " /opt/" in said
    server.answer("sh", "-c", running._ASK, "running", with_=said.replace(" /opt/", " /srv/software/"))
    assert running.versions(cluster, cluster.leader) == before


def test_the_agent_says_its_version(three: FakeCluster) -> None:
    cluster = three.cluster
    assert running.versions(cluster, cluster.leader) == {}, "a bare host runs nothing"
    three.servers["cp-1"].put(paths.AGENT_STATE, '{"time": 1.0, "version": "0.1.0"}')
    assert running.versions(cluster, cluster.leader) == {"agent": "0.1.0"}


def test_python_is_of_no_interest_where_it_is_the_hosts_own() -> None:
    wanted = {"python": "3.13.5", "garage": "2.3.0"}
    assert running.relevant(wanted, {"garage"}) == {"garage": "2.3.0"}
    assert running.relevant(wanted, {"garage", "python"}) == wanted


@pytest.mark.parametrize("runs", [True, False])
def test_the_script_prefers_the_process_to_the_file(tmp_path: Path, runs: bool) -> None:
    unit = tmp_path / "x.service"
    unit.write_text("[Service]\nExecStartPre=+/opt/record\nExecStart=-/opt/programs/x/2.0-amd64-12345678/bin/x serve\n")
    # Without -P, which systemd before 246 does not have.
    asked = '[ "$1 $2 $3" = "show --property=MainPID --value" ] || return 1'
    stub = f"systemctl() {{ {asked}; echo {os.getpid() if runs else 0}; }}\n"
    argv = ["sh", "-c", stub + running._ASK, "running", "x.service", str(unit), "y.service", str(tmp_path / "none")]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    here = str(Path(f"/proc/{os.getpid()}/exe").readlink())
    assert said[0].split() == ["x.service", here if runs else "/opt/programs/x/2.0-amd64-12345678/bin/x"]
    assert said[1].split() == ["y.service", here] if runs else ["y.service"]


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="there is no shellcheck (Debian: apt-get install shellcheck)"
)
def test_the_script_is_good_shell() -> None:
    result = subprocess.run(
        ["shellcheck", "-s", "sh", "-"], input=running._ASK, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
