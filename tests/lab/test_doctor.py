"""``doctor`` in broken rooms: it finds what was broken and nothing else, and the command that it names mends it."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kubeadm_registry import config, doctor, paths, pki, secrets
from kubeadm_registry.access import session
from kubeadm_registry.components.services import every_service
from kubeadm_registry.oci import canary
from kubeadm_registry.support.collection import items
from tests.lab.command import LabError
from tests.lab.host import Host
from tests.lab.reading import Object, reading
from tests.lab.registry import SERVERS, Registry, renew
from tests.lab.rooms import ROOMS, Room, words

pytest_plugins = ["tests.lab.registry"]
#: Run by `make day-two`.
pytestmark = pytest.mark.long

#: Seconds until what was broken has to be found, and until all is well again after it was mended.
FOUND, MENDED = 40, 60


def ask(registry: Registry) -> doctor.Diagnosis:
    """What doctor says now."""
    cluster = config.load(registry.file)
    with registry.lab.network():
        hosts, unreachable = session.attempt_all(cluster, session.Prompts())
        try:
            return doctor.diagnose(doctor.examine(cluster, hosts, unreachable))
        finally:
            for host in hosts:
                host.transport.close()


#: What init does not undo.
RESTORE = (
    f"rm -rf {paths.UNITS}/{paths.PREFIX}*.d; systemctl daemon-reload; nft delete table inet site 2>/dev/null || :"
)


def told(found: doctor.Diagnosis) -> str:
    """All of it, for the report of a failed test."""
    return "\n".join(str(one.to_dict()) for one in found.findings)


@pytest.fixture(scope="module")
def well(hosts_for_registry: Registry) -> Iterator[Registry]:
    """A registry that is whole, once for all rooms: each is mended before the next."""
    registry = hosts_for_registry
    if not registry.installed:
        registry.install()
    shutil.copy(registry.bundle, registry.directory / "kubeadm-registry-bundle.tar")
    registry.wait_whole()
    yield registry
    registry.lab.restore()


def test_before_the_first_init(hosts_for_registry: Registry) -> None:
    registry = hosts_for_registry
    if registry.installed:
        renew(registry, SERVERS)
    result = registry.cli("doctor", check=False)
    assert result.returncode == 1, result.stdout
    assert "[NotInstalled]" in result.stdout
    registry.cli("preflight", "--bundle", registry.bundle)
    found = ask(registry)
    assert [one.kind.code for one in found.findings] == ["NotInstalled"], told(found)
    registry.cli(
        "init", "--bundle", registry.bundle, "--skip-phases", "agent,vip,retention,helper,runbook,containerd,verify"
    )
    found = ask(registry)
    errors = {one.kind.code for one in found.findings if one.kind.severity == "error"}
    assert errors == {"InitIncomplete"}, told(found)
    registry.cli("init", "--bundle", registry.bundle)
    registry.installed = True
    began = time.monotonic()
    result = registry.cli("doctor", check=False)
    sys.stdout.write(f"\n  doctor right after init: {time.monotonic() - began:.1f} s, {result.stdout}\n")
    assert (result.returncode, result.stdout) == (0, "no problem found\n")


def test_a_healthy_registry_under_load_has_no_finding(well: Registry) -> None:
    held = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)
    with reading(well, held, period=0.02):
        for _ in range(3):
            found = ask(well)
            assert not found.findings, told(found)


def test_noise_is_no_finding(well: Registry) -> None:
    host = well.servers["h2"]
    host.sh("ln", "-sf", "/usr/share/zoneinfo/Pacific/Auckland", "/etc/localtime")
    host.sh("nft", "add table inet noise; add chain inet noise in { type filter hook input priority 5; }; "
            "add rule inet noise in tcp dport 8080 drop")  # fmt: skip
    host.sh("sh", "-c", "echo note > /etc/kubeadm-registry/note; echo '/dev/sdz /srv ext4 noauto 0 0' >> /etc/fstab")
    try:
        found = ask(well)
    finally:
        host.sh("sh", "-c", "nft delete table inet noise; rm /etc/localtime /etc/kubeadm-registry/note; : > /etc/fstab")
    assert not found.findings, told(found)


#: Logs the secrets of ``$1``, as they are and in base64, as a unit of the registry would.
PLANT = """
import base64, json, sys
for name, value in json.load(open(sys.argv[1])).items():
    if isinstance(value, str):
        print(name, value, base64.b64encode(("push:" + value).encode()).decode(), value.encode().hex(), flush=True)
"""


def test_the_archive_of_a_registry_with_a_node_away_has_no_secret(well: Registry) -> None:
    """Each node has logged all secrets; one node does not answer."""
    for name in ("h1", "h2"):  # which have a Python of their own
        well.servers[name].sh("systemd-run", "--quiet", "--wait", f"--unit={paths.PREFIX}-planted", "python3", "-c",
                              PLANT, secrets.PATH)  # fmt: skip
    known = json.loads(well.servers["h1"].sh("cat", secrets.PATH).stdout)
    public = ("generation", "made", "ca_certificate", "s3_key_id")
    hidden = {name: value for name, value in known.items() if isinstance(value, str) and name not in public}
    well.lab.hosts["h3"].cut(silent=True)
    try:
        result = well.cli("support-bundle", "-o", "support.tar.gz", "--since", "1h", check=False)
    finally:
        well.lab.restore()
    assert result.returncode == 5, result.stdout + result.stderr
    target = well.directory / "support.tar.gz"
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as tar:
        files = {one.name.removeprefix("support/"): tar.extractfile(one).read()  # type: ignore[union-attr]
                 for one in tar.getmembers()}  # fmt: skip
    sys.stdout.write(f"\n  {len(files)} files, {target.stat().st_size / 1e6:.2f} MB; {result.stdout}\n")
    for name, content in files.items():
        for secret, value in hidden.items():
            for line in pki.secret_lines(value) or [value]:
                forms = (line.encode(), line.encode().hex().encode(), base64.b64encode(f"push:{line}".encode())[8:-4])
                assert not any(form in content for form in forms), (name, secret)
    for name in ("h1", "h2"):
        assert b"push_password <secret push_password>" in files[f"nodes/{name}/journal.log"]
        for item in items(every_service()):
            if item.name == "journal-kernel.log":
                continue  # a host in a namespace has the machine's kernel, whose log it may not read
            assert f"nodes/{name}/{item.name}" in files, f"{item.name} is empty on {name}"
    assert "| h3 | " in files["index.md"].decode()
    well.wait_whole(MENDED)


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_room(well: Registry, room: Room) -> None:
    began = time.monotonic()
    host = well.servers[room.on or "h2"]
    finding: dict[str, Any] = {}
    try:
        room.strike(well, host)
        finding = until_found(well, room)
    finally:
        looked = time.monotonic()
        mend(well, room, host, finding)
    mended = until_well(well)
    sys.stdout.write(
        f"\n  {room}: found after {looked - began:.1f} s, mended after {mended - looked:.1f} s: "
        f"{finding['message']}; {finding['fix'][0]['command']}\n"
    )


def until_found(registry: Registry, room: Room) -> dict[str, Any]:
    """The finding, once it is there and no other error is. Fails with all that doctor said last."""
    end, state = time.monotonic() + FOUND, "down" if room.down else "degraded"
    while True:
        found = ask(registry)
        codes = {one.kind.code for one in found.findings}
        errors = {one.kind.code for one in found.findings if one.kind.severity == "error"}
        expected = {room.code, *room.also} if room.severity == "error" else set(room.also)
        if room.code in codes and errors <= expected and found.state == state:
            break
        assert time.monotonic() < end, f"{codes}, state {found.state}\n{told(found)}"
    named = [one.to_dict() for one in found.findings if one.kind.code == room.code]
    finding = next((one for one in named if one["node"] in (room.on, None)), named[0])
    assert finding["severity"] == room.severity
    assert any(room.fix in one["command"] for one in finding["fix"]), finding
    assert room.says in finding["message"]
    assert finding["evidence"]
    return finding


def mend(registry: Registry, room: Room, host: Host, finding: dict[str, Any]) -> None:
    """Undo what was broken, by the commands that doctor named where the room does not say otherwise."""
    if room.mend is not None:
        room.mend(registry, host)
        return
    if not finding:  # it was not found, and shall not spoil what follows
        host.sh("sh", "-c", RESTORE)
        registry.cli("init", check=False, timeout=180)
    for one in finding.get("fix", ()):
        if one["on"] == "workstation":
            registry.cli(*words(one["command"]), timeout=180)
        else:
            registry.servers[one["on"]].sh("sh", "-c", one["command"], timeout=60)


def until_well(registry: Registry) -> float:
    """When the registry was whole again. Fails with what still is not."""
    try:
        registry.wait_whole(MENDED)
    except LabError as error:
        pytest.fail(f"{error}\n{told(ask(registry))}")
    return time.monotonic()


def test_all_rooms_are_mended(well: Registry) -> None:
    """Nothing was left behind, and doctor sees that."""
    end = time.monotonic() + MENDED
    while (found := ask(well)).findings:
        assert time.monotonic() < end, told(found)
    result = well.cli("doctor")
    assert result.stdout == "no problem found\n"
