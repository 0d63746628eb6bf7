"""README's quick start, command by command as it is printed there: from three bare hosts to a pod.

What differs is what a lab must have: names and addresses; the bundle, which is the lab's since there is no internet;
the pod network, which the hosts have already; and what kubeadm does not like about a host in a namespace.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry.config.kubeadm import CA_HASH, CERTIFICATE_KEY, TOKEN
from tests.kubernetes import images
from tests.kubernetes.cluster import IGNORED, MACHINE, Kubernetes, empty, write
from tests.kubernetes.conftest import machine_as_it_was
from tests.kubernetes.readme import Reader, blocks, commands, section, shell
from tests.lab import programs
from tests.lab.command import wait_until
from tests.lab.fresh import fresh_lab
from tests.lab.programs import KUBERNETES
from tests.lab.registry import ROOT, SERVERS, VIP_NUMBER, Registry, bundle, skip_without
from tests.lab.settings import FRONTENDS, Place, Settings

pytestmark = pytest.mark.long
NODES = ("cp-1", "cp-2", "cp-3")
#: A network plugin's manifest as far as this lab needs one.
PLUGIN = "apiVersion: v1\nkind: Namespace\nmetadata: {name: network}\n"
#: Runs a command on the workstation, whose administrator has a home and a directory of programs of her own.
WORKSTATION = """\
mount --bind "$1" /root
mount --bind "$2" /usr/local/bin
cd /root
shift 2
exec env -i HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@"
"""
README = (ROOT / "README.md").read_text()
QUICK_START, POLICY = section(README, "Quick start"), section(README, "A policy for the images")


@pytest.fixture(scope="module", params=FRONTENDS)
def bare(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    """Three hosts with kubeadm, kubelet and kubectl, and nothing of ours."""
    frontend: str = request.param
    skip_without(frontend)
    bundle(frontend, layout=images.layout())
    with machine_as_it_was(), fresh_lab(Place.default().beside("readme"), Settings(hosts=len(SERVERS))) as lab:
        kubernetes = Kubernetes(Registry(lab, frontend, tmp_path_factory.mktemp("readme"), layout=images.layout()))
        kubernetes.on_each(kubernetes.prepare)
        yield kubernetes


@pytest.fixture(scope="module")
def home(bare: Kubernetes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workstation's administrator's own directory."""
    return tmp_path_factory.mktemp(f"home-{bare.registry.frontend}")


@pytest.fixture(scope="module")
def reader(bare: Kubernetes, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Somebody at the workstation, who can log in to the nodes, and has what the connected machine gave."""
    lab, frontend = bare.registry.lab, bare.registry.frontend
    local = tmp_path_factory.mktemp("bin")
    made: list[str | Path] = [sys.executable, "-m", "kubeadm_registry.bundle.make.onefile", home]
    subprocess.run(made, cwd=ROOT, check=True, timeout=900)
    shutil.copy(bare.registry.bundle, home / "kubeadm-registry-bundle.tar")
    (home / "cni.yaml").write_text(PLUGIN)
    (home / ".ssh").mkdir(mode=0o700)
    shutil.copy(lab.place.key, home / ".ssh/id_ed25519")
    shutil.copy(programs.program("kubectl"), local)
    private = ("unshare", "--mount", "--propagation=private")
    hosts = dict(zip(NODES, bare.servers.values(), strict=True))
    values = {f"10.0.0.1{number}": host.address for number, host in enumerate(hosts.values(), start=1)}
    values |= {name: host.name for name, host in hosts.items()}
    values |= {"10.0.0.10": lab.address(VIP_NUMBER), "zot": frontend}
    values |= {f"kubeadm {verb}": f"kubeadm {verb} {IGNORED}" for verb in ("init", "join")}
    machines = {name: shell(host.sh_argv("env", "--chdir=/root"), "/run/readme") for name, host in hosts.items()}
    machines["workstation"] = shell(lab.argv(*private, "sh", "-ec", WORKSTATION, "sh", home, local), "/root/.state")
    [file] = blocks(QUICK_START, "yaml")
    found = Reader(machines, values)
    written = found.here(file)
    assert f"version: {KUBERNETES}" in written, "the lab builds another Kubernetes than README names"
    if frontend != "zot":
        written += f"  frontend: {{type: {frontend}}}\n"
    (home / "cluster.yaml").write_text(written)
    return found


def test_from_bare_hosts_to_a_pod(bare: Kubernetes, reader: Reader, home: Path) -> None:
    assert all(bare.on_each(empty).values()), "an image that is there already proves nothing"
    typed = [command for command in commands(QUICK_START) if command.machine != "connected"]
    assert len(typed) > 12
    for command in typed:
        if command.text.startswith("scp "):
            edited(home, reader)
        if command.text.startswith("kubeadm join"):
            filled(bare, reader, command.machine)
        reader.type(command)
    again = reader.machines["workstation"]("kubeadm-registry init")
    assert again.splitlines()[-1] == "nothing to do", again
    ready = bare.kubectl("get", "nodes", "--no-headers").splitlines()
    assert [line.split()[0] for line in ready] == list(SERVERS)


def test_a_policy_for_the_images(bare: Kubernetes, reader: Reader, home: Path) -> None:
    """On the cluster of the test before, with one of the examples."""
    shutil.copy(ROOT / "manifests/examples/policies/ci-newest-10.yaml", home / "policy.yaml")
    for command in commands(POLICY):
        if command.text.startswith("kubectl annotate"):
            wait_until("the operator's first plan", lambda: digest(bare), seconds=240, every=1)
        reader.type(command)
    wait_until("the plan to be carried out", lambda: carried_out(bare), seconds=240, every=1)


def digest(bare: Kubernetes) -> str:
    """Of the plan; empty while there is none."""
    return bare.kubectl("get", "regplan", "retention", "--output=jsonpath={.status.digest}", check=False)


def carried_out(bare: Kubernetes) -> bool:
    """Whether the plan was, as the operator says."""
    conditions = bare.get("regplan", "retention").get("status", {}).get("conditions", [])
    return any(one["type"] == "CarriedOut" and one["status"] == "True" for one in conditions)


def edited(home: Path, reader: Reader) -> None:
    """Edit kubeadm's files where this site needs it, as README says."""
    for name in NODES:
        file = home / f"{reader.here(name)}.yaml"
        file.write_text(file.read_text() + MACHINE)


def filled(bare: Kubernetes, reader: Reader, node: str) -> None:
    """Put the token, the hash and the key that ``kubeadm init`` printed in place of the zeros."""
    printed = reader.printed["kubeadm init"]
    host = bare.servers[reader.here(node)]
    path = f"/root/{host.name}.yaml"
    text = host.sh("cat", path).stdout
    for zeros, option in (
        (CA_HASH, "--discovery-token-ca-cert-hash"), (CERTIFICATE_KEY, "--certificate-key"), (TOKEN, "--token"),
    ):  # fmt: skip
        found = re.search(rf"{option} (\S+)", printed)
        assert found, printed
        assert zeros in text, f"{path} has no place for {option}"
        text = text.replace(zeros, found[1])
    write(host, path, text, mode="600")
