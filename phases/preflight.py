"""The checks that protect the user before anything is changed. An installed, healthy host passes every one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

from kubeadm_registry import paths
from kubeadm_registry.addresses import ip
from kubeadm_registry.changes import unit_state
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.components import data, keepalived
from kubeadm_registry.errors import Error
from kubeadm_registry.host import Host, has_address
from kubeadm_registry.phases.immutable import SAME_CLUSTER
from kubeadm_registry.workflow import Check, Phase

SUPPORTED = {
    "debian": ("12", "13"),
    "ubuntu": ("22.04", "24.04"),
    "rhel": ("9",),
    "rocky": ("9",),
    "almalinux": ("9",),
    "centos": ("9",),
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TOOLS = ("ip", "ss", "nft", "systemctl", "useradd", "tar", "gzip", "sha256sum", "timeout", "flock", "base64")
DATA_FREE = 10 * 2**30
PROGRAMS_FREE = 2**30
CLOCK_SKEW = 1.0


def operating_system(_: Cluster, host: Host) -> Iterator[str]:
    """The distribution and release are among those that were tested."""
    release = (host.read("/etc/os-release") or b"").decode(errors="replace")
    values = {k: v.strip('"') for k, v in re.findall(r"^([A-Z_]+)=(.*)$", release, re.MULTILINE)}
    name, version = values.get("ID", "unknown"), values.get("VERSION_ID", "")
    known = SUPPORTED.get(name, ())
    if version not in known and version.split(".")[0] not in known:
        tested = ", ".join(f"{name} {'/'.join(versions)}" for name, versions in SUPPORTED.items())
        yield f"{name} {version} was not tested; supported are {tested}"


def architecture(cluster: Cluster, host: Host) -> Iterator[str]:
    """The programs are built for this machine."""
    machine = host.query("uname", "-m").text
    name = ARCHITECTURES.get(machine)
    if name is None:
        yield f"machine {machine} is not supported; supported are {', '.join(ARCHITECTURES)}"
        return
    wrong = sorted(program.name for program in cluster.programs.values() if program.architecture != name)
    if wrong:
        yield f"the bundle's {', '.join(wrong)} are not for {name}; make a bundle on a machine of this architecture"


#: Those of the arguments that are no programs here.
_MISSING = 'for tool; do command -v "$tool" > /dev/null || echo "$tool"; done'


def tools(_: Cluster, host: Host) -> Iterator[str]:
    """systemd runs, and the ordinary tools are there."""
    if not host.query("test", "-d", "/run/systemd/system").ok:
        yield "systemd does not run this machine; the services need it"
    missing = host.query("sh", "-c", _MISSING, "tools", *TOOLS).text.split()
    if missing:
        yield f"{', '.join(missing)} missing; install the packages that hold them (iproute2, nftables, ...)"


_DIAG_DESTROY = 'grep -h "CONFIG_INET_DIAG_DESTROY" "/boot/config-$(uname -r)" 2>/dev/null'


def kernel(_: Cluster, host: Host) -> Iterator[str]:
    """The kernel can end the connections to a server that fell silent."""
    line = host.query("sh", "-c", _DIAG_DESTROY).text
    if line and "=y" not in line:
        yield (
            "the kernel lacks CONFIG_INET_DIAG_DESTROY: after the silent loss of a server pulls would hang for "
            "many seconds; use the distribution's standard kernel"
        )


def ports(cluster: Cluster, host: Host) -> Iterator[str]:
    """Nobody else listens where our services will."""
    tcp = (paths.REGISTRY_PORT, paths.INTERNAL_PORT, paths.AGENT_PORT, paths.FRONTEND_PORT, paths.S3_PORT,
           paths.RPC_PORT, paths.ADMIN_PORT)  # fmt: skip
    wanted = {*(("tcp", port) for port in tcp), ("udp", paths.HEARTBEAT_PORT)}
    for line in host.query("ss", "-Hltunp").stdout.decode(errors="replace").splitlines():
        fields = line.split()
        if len(fields) < 5:
            continue
        port = int(fields[4].rpartition(":")[2])
        if (fields[0], port) not in wanted:
            continue
        pids = re.findall(r'"([^"]*)",pid=(\d+)', line)
        strangers = [(name, pid) for name, pid in pids if not _ours(host, pid)]
        if strangers or not pids:
            who = ", ".join(f"{name} (pid {pid})" for name, pid in strangers) or "another program"
            yield f"port {port}/{fields[0]} is taken by {who} at {fields[4]}; stop it or move it"


def _ours(host: Host, pid: str) -> bool:
    # /proc files have size 0 and are read with cat, like any other answer.
    return f"/{paths.SLICE}" in host.query("cat", f"/proc/{pid}/cgroup").text


#: The line of df for the file system where ``$1`` is, or will be.
_FREE = 'p=$1; until [ -e "$p" ]; do p=$(dirname "$p"); done; df -P -B1 -- "$p" | tail -n 1'


def disk(cluster: Cluster, host: Host) -> Iterator[str]:
    """There is room for layers and programs."""
    for path, least in ((cluster.spec.data_directory, DATA_FREE), (paths.OPT, PROGRAMS_FREE)):
        fields = host.query("sh", "-c", _FREE, "free", path).text.split()
        free = int(fields[3])
        if free < least and not unit_state(host, paths.unit("garage")).active:
            yield (
                f"{path} has {free / 2**30:.1f} GiB free on {fields[5]}, at least {least / 2**30:.0f} are needed; "
                "give it a disk, or name another place in spec.dataDirectory"
            )


def clock(cluster: Cluster, host: Host) -> Iterator[str]:
    """The servers agree on the time: the storage orders versions by it, certificates begin and end by it."""
    here, here_error = _offset(host)
    there, there_error = _offset(cluster.leader)
    skew = here - there
    if abs(skew) - here_error - there_error > CLOCK_SKEW:
        yield (
            f"the clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} {cluster.leader.name}'s; "
            "run chrony or systemd-timesyncd on all servers against one of them"
        )


def _offset(host: Host) -> tuple[float, float]:
    """How far the host's clock is ahead of ours, and how wrong that may be: half of the round trip. Best of three."""
    answers = []
    for _ in range(3):
        before = time.time()
        there = float(host.query("date", "+%s.%N").text)
        after = time.time()
        answers.append((there - (before + after) / 2, (after - before) / 2))
    return min(answers, key=lambda answer: answer[1])


def vip_in_subnet(cluster: Cluster, host: Host) -> Iterator[str]:
    """The VIP lies in the subnet of the node's address, on an interface that is there."""
    node = cluster.node(host)
    for own, vip in zip(node.addresses, cluster.spec.vip.addresses, strict=False):
        try:
            link = keepalived.link(host, own)
        except Error as error:
            yield f"{error.message}; {error.hint}"
            continue
        if not _same_subnet(own, vip, link.prefix_length):
            yield (
                f"the virtual IP {vip} is not in the subnet {own}/{link.prefix_length} of {link.interface}; "
                "take an unused address of that subnet as spec.vip.address"
            )


def _same_subnet(one: str, other: str, prefix_length: int) -> bool:
    first, second = ip(one), ip(other)
    if first is None or second is None or first.version != second.version:
        return False
    shift = first.max_prefixlen - prefix_length
    return int(first) >> shift == int(second) >> shift


def vip_unused(cluster: Cluster, host: Host) -> Iterator[str]:
    """Nobody but our own servers answers at the VIP."""
    for vip in cluster.spec.vip.addresses:
        # A server that cannot be reached by SSH may well have it.
        if cluster.absent or any(has_address(member, vip) for member in cluster.hosts):
            continue
        if _answers(host, vip):
            yield f"{vip} is in use by another machine; take an unused address as spec.vip.address"


#: Any datagram makes the kernel ask who has the address; the port is "discard" (RFC 863). Two tries of 1 s.
_KNOCK = """
for _ in 1 2 3 4; do
  (echo > "/dev/udp/$1/9") 2>/dev/null || :
  sleep 0.5
  state=$(ip -json neigh show to "$1")
  case "$state" in *'"lladdr"'*) echo "$state"; exit 0 ;; *FAILED*) exit 1 ;; esac
done
exit 1
"""


def _answers(host: Host, address: str) -> bool:
    # An entry of an earlier holder would mislead, so it is asked for anew.
    host.query("ip", "neigh", "flush", "to", address)
    result = host.query("bash", "-c", _KNOCK, "knock", address)
    return result.ok and any("lladdr" in entry for entry in json.loads(result.stdout or b"[]"))


CHECKS = (
    SAME_CLUSTER,
    Check("OperatingSystem", operating_system),
    Check("Architecture", architecture),
    Check("Tools", tools),
    Check("Kernel", kernel),
    Check("Ports", ports),
    Check("DataDirectory", data.suitable),
    Check("DiskSpace", disk),
    Check("Clock", clock),
    Check("VipInSubnet", vip_in_subnet),
    Check("VipUnused", vip_unused, on=leader),
)
PREFLIGHT = Phase("preflight", "Check that nothing stands in the way", checks=CHECKS)
