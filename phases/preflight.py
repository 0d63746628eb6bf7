"""The checks that protect the user before anything is changed. An installed, healthy host passes every one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network

from kubeadm_registry import paths
from kubeadm_registry.agent import reserve
from kubeadm_registry.bundle.programs import MACHINES, architecture_of
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.components import data, handover, network
from kubeadm_registry.components.links import is_direct, link
from kubeadm_registry.components.services import backend, frontend, services, vip_manager
from kubeadm_registry.engine.changes import unit_path, unit_state
from kubeadm_registry.engine.phase import Check, Phase
from kubeadm_registry.errors import Error
from kubeadm_registry.phases.firewall import REACHABLE, WHOLE
from kubeadm_registry.phases.immutable import LOST, OF_MEMBERS
from kubeadm_registry.pki import BACKDATE, RENEW_BEFORE
from kubeadm_registry.transport.host import Host, has_address, side_by_side

SUPPORTED = {
    "debian": ("12", "13"),
    "ubuntu": ("22.04", "24.04"),
    "rhel": ("9",),
    "rocky": ("9",),
    "almalinux": ("9",),
    "centos": ("9",),
}
TOOLS = (
    "bash", "ip", "ss", "nft", "systemctl", "useradd", "tar", "gzip", "sha256sum", "timeout", "flock", "base64",
    # Without these many a question has an answer that is wrong: a directory in which nothing is found is empty.
    "find", "grep", "sed",
)  # fmt: skip
DATA_FREE = 10 * 2**30
PROGRAMS_FREE = 2**30
#: Seconds. The agents let no server write whose clock is 0.5 s from the others'; this leaves room for drift.
CLOCK_SKEW = 0.3
#: Seconds. Good enough a measurement of a clock, and how often one is tried.
CLOCK_ERROR = 0.02
CLOCK_TRIES = 8


def operating_system(_: Cluster, host: Host) -> Iterator[str]:
    """The operating system is a supported release."""
    release = (host.read("/etc/os-release") or b"").decode(errors="replace")
    values = {k: v.strip('"') for k, v in re.findall(r"^([A-Z_]+)=(.*)$", release, re.MULTILINE)}
    name, version = values.get("ID", "unknown"), values.get("VERSION_ID", "")
    known = SUPPORTED.get(name, ())
    if version not in known and version.split(".")[0] not in known:
        tested = ", ".join(f"{name} {'/'.join(versions)}" for name, versions in SUPPORTED.items())
        yield f"{name} {version} is not supported; supported are {tested}"


def architecture(cluster: Cluster, host: Host) -> Iterator[str]:
    """The programs match the node's architecture."""
    machine = host.query("uname", "-m").text
    name = architecture_of(machine)
    if name is None:
        yield f"architecture {machine} is not supported; supported are {', '.join(MACHINES.values())}"
        return
    wrong = sorted(program.name for program in cluster.programs.values() if program.architecture != name)
    if wrong:
        yield (
            f"the bundle's {', '.join(wrong)} are not built for {name}; "
            f"create one with `kubeadm-registry bundle create --architecture {name}`"
        )


#: Those of the arguments that are no programs here.
_MISSING = 'for tool; do command -v "$tool" > /dev/null || echo "$tool"; done'


def tools(_: Cluster, host: Host) -> Iterator[str]:
    """systemd is running, and the required tools are installed."""
    if not host.query("test", "-d", "/run/systemd/system").ok:
        yield "systemd is not running; the services require it"
    missing = host.query("sh", "-c", _MISSING, "tools", *TOOLS).text.split()
    if missing:
        yield f"{', '.join(missing)} not found; install the packages that provide them (iproute2, nftables, ...)"


#: What the configuration of the kernel that runs says, below ``$1``: in /boot, beside its modules as on images of which
#: /boot is not there, or in the kernel itself.
_DIAG_DESTROY = """
release=$(uname -r)
for file in "$1/boot/config-$release" "$1/lib/modules/$release/config" "$1/proc/config.gz"; do
  [ -r "$file" ] || continue
  case $file in *.gz) gzip -dc < "$file" ;; *) cat -- "$file" ;; esac | grep CONFIG_INET_DIAG_DESTROY && break
done 2>/dev/null
"""


def kernel(_: Cluster, host: Host) -> Iterator[str]:
    """The kernel can destroy the connections to a node that stopped responding."""
    line = host.query("sh", "-c", _DIAG_DESTROY, "kernel", "").text
    if line and "=y" not in line:
        yield (
            "the kernel lacks CONFIG_INET_DIAG_DESTROY, so pulls would hang for many seconds when a node stops "
            "responding; use the distribution's standard kernel"
        )


def packet_filter(cluster: Cluster, host: Host) -> Iterator[str]:
    """nft and the kernel accept the rules that the registry needs."""
    rules = network.trial(cluster, host, services(cluster.spec), frontend(cluster.spec))
    tried = host.query("nft", "--check", "--file", "-", stdin=rules + handover.trial(cluster, host))
    if tried.ok or tried.code == 127:  # without nft: see tools
        return
    said = tried.stderr.decode(errors="replace").strip().splitlines()
    yield (
        f"the kernel or nft refuses the rules that the registry needs: {said[0] if said else f'status {tried.code}'}; "
        "use the distribution's standard kernel and its latest nftables, and restart the node if its kernel was "
        "upgraded since it started: the modules of the running kernel are removed then"
    )


def ports(cluster: Cluster, host: Host) -> Iterator[str]:
    """The ports of the services are free."""
    wanted = {(port.protocol, port.number) for service in services(cluster.spec) for port in service.ports}
    taken: list[tuple[str, str, list[tuple[str, str]]]] = []
    for line in host.query("ss", "-Hltunp").stdout.decode(errors="replace").splitlines():
        fields = line.split()
        if len(fields) < 5:
            continue
        port = int(fields[4].rpartition(":")[2])
        if (fields[0], port) not in wanted:
            continue
        taken.append((f"{port}/{fields[0]}", fields[4], re.findall(r'"([^"]*)",pid=(\d+)', line)))
    others = _others(host, sorted({pid for _, _, processes in taken for _, pid in processes}))
    for name, address, processes in taken:
        strangers = [f"{program} (pid {pid})" for program, pid in processes if pid in others]
        if strangers or not processes:
            who = ", ".join(strangers) or "another program"
            yield f"port {name} is in use by {who} at {address}; stop it or change its port"


#: The control groups of the processes ``$@``, those of each after a line ``= PID``. The shell reads them itself.
_CGROUPS = """
for pid; do
  echo "= $pid"
  while IFS= read -r line; do echo "$line"; done 2>/dev/null <"/proc/$pid/cgroup"
done
:
"""


def _others(host: Host, pids: Sequence[str]) -> set[str]:
    """Those of the processes *pids* that are not ours. One that has ended since, such as a worker of a HAProxy that was
    reloaded, listens no more."""
    if not pids:
        return set()
    said = host.query("sh", "-c", _CGROUPS, "groups", *pids).stdout.decode(errors="replace")
    shown = re.split(r"^= (\d+)\n", said, flags=re.MULTILINE)[1:]
    return {
        pid for pid, groups in zip(shown[::2], shown[1::2], strict=True) if groups and f"/{paths.SLICE}" not in groups
    }


#: Where the kernel takes the ports of outgoing connections from, and which of them it leaves out.
_PORT_RANGE = tuple(f"/proc/sys/net/ipv4/{name}" for name in ("ip_local_port_range", "ip_local_reserved_ports"))


def port_range(cluster: Cluster, host: Host) -> Iterator[str]:
    """No outgoing connection takes a port of the services: it is outside of the kernel's range, or reserved."""
    lines = [*host.query("cat", "--", *_PORT_RANGE).text.splitlines(), "", ""]
    if (found := re.fullmatch(r"(\d+)\s+(\d+)", lines[0])) is None:
        return
    first, last = int(found[1]), int(found[2])
    reserved = [tuple(map(int, one.split("-"))) for one in re.findall(r"\d+(?:-\d+)?", lines[1])]
    ours = sorted({port.number for service in services(cluster.spec) for port in service.ports})
    open_ = [
        str(port) for port in ours if first <= port <= last and not any(one[0] <= port <= one[-1] for one in reserved)
    ]
    if open_:
        value = ",".join([*filter(None, [lines[1].strip()]), *open_])
        yield (
            f"an outgoing connection may take port {', '.join(open_)} of a service, which then cannot start: "
            f"net.ipv4.ip_local_port_range is {first} {last}; "
            f"run `sysctl -w net.ipv4.ip_local_reserved_ports={value}`, and put that into a file in /etc/sysctl.d"
        )


#: inotify instances that root should have left: keepalived needs one, and so does whatever starts before it.
INOTIFY_LEFT = 8
#: How many inotify instances a user may have, and how many root has: the open files of that kind.
_INOTIFY = """
cat /proc/sys/fs/inotify/max_user_instances 2>/dev/null || exit 0
find /proc/[0-9]*/fd -maxdepth 1 -user root -lname anon_inode:inotify 2>/dev/null | wc -l
"""


def inotify_instances(_: Cluster, host: Host) -> Iterator[str]:
    """Root has some inotify instances left: keepalived needs one when it starts."""
    numbers = [int(one) for one in host.query("sh", "-c", _INOTIFY, "inotify").text.split()]
    if len(numbers) == 2 and numbers[0] - numbers[1] < INOTIFY_LEFT:
        yield (
            f"root uses {numbers[1]} of {numbers[0]} inotify instances, and keepalived cannot start without one; "
            "run `sysctl -w fs.inotify.max_user_instances=8192`, and put that into a file in /etc/sysctl.d"
        )


#: How ``/proc`` is mounted, by the table ``$1``: of several mounts the last one counts.
_PROC = """sed -n 's,^[^ ]* /proc proc ,,p' "$1" | tail -n 1"""


def processes(_: Cluster, host: Host) -> Iterator[str]:
    """The agent can see the processes of other users: /proc is mounted without hidepid."""
    options = host.query("sh", "-c", _PROC, "proc", "/proc/self/mounts").text
    if (found := re.search(r"\bhidepid=(\w+)", options)) is not None and found[1] not in ("0", "off"):
        yield (
            f"/proc is mounted with hidepid={found[1]}, so the agent cannot see the services' processes: it could not "
            "tell that the writer has ended, and no node might write; run `mount -o remount,hidepid=0 /proc`, and "
            "remove hidepid from what mounts it at boot, such as /etc/fstab"
        )


#: The line of df for the file system where ``$1`` is, or will be.
_FREE = 'p=$1; until [ -e "$p" ]; do p=$(dirname "$p"); done; df -P -B1 -- "$p" | tail -n 1'
#: Size, free bytes and mount point in it. What is mounted stands before, and may have blanks: a ZFS pool, an NFS share.
_DF = re.compile(r".* (\d+) +\S+ +(-?\d+) +\S+ (/.*)")


def _free(host: Host, path: str) -> tuple[int, int, str]:
    """The size of that file system and what is free there, in bytes, and where it is mounted. Raises Error."""
    result = host.query("sh", "-c", _FREE, "free", path)
    if (found := _DF.fullmatch(result.text)) is None:
        said = result.stderr.decode(errors="replace").strip() or result.text or "df says nothing"
        raise Error(f"cannot read the free space of {path}: {said}", host=host.name, hint=f"see `df -P {path}`")
    return int(found[1]), int(found[2]), found[3]


def disk(cluster: Cluster, host: Host) -> Iterator[str]:
    """Enough disk space is free for layers and programs."""
    for path, least in ((cluster.spec.data_directory, DATA_FREE), (paths.OPT, PROGRAMS_FREE)):
        _, free, mounted = _free(host, path)
        if free < least and not unit_state(host, backend(cluster.spec).SERVICE.unit).active:
            yield (
                f"{path} has {free / 2**30:.1f} GiB free on {mounted}, at least {least / 2**30:.0f} are required; "
                f"free or add disk space{'' if path == paths.OPT else ', or set spec.dataDirectory to another path'}"
            )


def room(cluster: Cluster, host: Host) -> Iterator[str]:
    """What a changed list of members gives a node to store fits on its disk."""
    taken = backend(cluster.spec).incoming(cluster, host)
    if taken <= 0:
        return
    path = cluster.spec.data_directory
    size, free, mounted = _free(host, path)
    kept = reserve.of(size)
    if free - kept < taken:
        yield (
            f"{path} must take {taken / 2**30:.1f} GiB of images, but has {free / 2**30:.1f} GiB free on {mounted}, "
            f"of which {kept / 2**30:.1f} GiB are reserved for deletions; add disk space, or delete images first"
        )


def clock(cluster: Cluster, _: Host) -> Iterator[str]:
    """The nodes' clocks differ by at most 0.3 s: the storage orders writes by time."""
    measured = dict(zip((host.name for host in cluster.hosts), side_by_side(_offset, cluster.hosts), strict=True))
    in_order = sorted(measured, key=lambda name: measured[name][0])
    middle = in_order[len(in_order) // 2]
    for name in in_order:
        if (words := _apart(measured, name, middle)) is not None:
            yield words
            break
    else:
        # Each is near enough to the middle one, and the first is too far from the last.
        if (words := _apart(measured, in_order[-1], in_order[0])) is not None:
            yield words


def _apart(measured: Mapping[str, tuple[float, float]], one: str, other: str) -> str | None:
    """How far the clocks of two servers are apart, if it is certain that it is too far."""
    (here, here_error), (there, there_error) = measured[one], measured[other]
    skew = here - there
    if abs(skew) - here_error - there_error <= CLOCK_SKEW:
        return None
    return (
        f"the clock of {one} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} that of {other}, and the "
        f"limit is {CLOCK_SKEW} s; {KEEP_TIME}"
    )


def _offset(host: Host) -> tuple[float, float]:
    """How far the host's clock is ahead of ours, and how wrong that may be: half of the round trip. The best of some.

    Both in seconds. The host is asked until the round trip is short, for a busy one answers late now and then.
    """
    best = (0.0, float("inf"))
    for _ in range(CLOCK_TRIES):
        best = min(best, _one_offset(host), key=lambda answer: answer[1])
        if best[1] <= CLOCK_ERROR:
            break
    return best


def _one_offset(host: Host) -> tuple[float, float]:
    """The same by one question."""
    before = time.time()
    there = float(host.live.query("date", "+%s.%N").text)
    after = time.time()
    return there - (before + after) / 2, (after - before) / 2


def signing_clock(_: Cluster, host: Host) -> Iterator[str]:
    """The certificates that this machine signs are valid by the nodes' clocks, and renewed in time."""
    ahead, error = _one_offset(host)  # days count here
    limit, then = (RENEW_BEFORE, "expire before they are renewed") if ahead > 0 else (BACKDATE, "are not valid yet")
    if abs(ahead) - error > limit.total_seconds():
        where = "ahead of" if ahead > 0 else "behind"
        yield (
            f"the clock of {host.name} is {abs(ahead) / 86400:.1f} days {where} that of this machine, and the limit "
            f"is {limit.days} day{'s' * (limit.days > 1)}: the certificates that it signs {then} on the "
            "nodes; set the clock that is wrong, here or on all nodes"
        )


KEEP_TIME = (
    "run chrony (or systemd-timesyncd) on all nodes, on an air-gapped site with one of them as the source; "
    "see docs/recovery.md, Clocks"
)
#: "container" where the clock is another system's, else the kernel's opinion, chrony's, and the time services that run.
_TIME = """
! systemd-detect-virt --quiet --container || { echo container; exit; }
timedatectl show --property=NTPSynchronized 2>/dev/null
chronyc -n tracking 2>/dev/null | grep '^Leap status'
for unit in chronyd chrony systemd-timesyncd ntpd ntp ntpsec openntpd; do
  ! systemctl is-active --quiet "$unit" || echo "running $unit"
done
"""


def time_sync(_: Cluster, host: Host) -> Iterator[str]:
    """The clock is synchronized by a time service; a container uses the clock of its host."""
    said = host.query("sh", "-c", _TIME, "time").text
    # chrony as the room's own reference (its directive "local") is right by definition; the kernel counts it as alone.
    by_chrony = re.search(r"^Leap status *: (?!Not synchronised)", said, re.MULTILINE)
    if by_chrony or "container" in said.split() or "NTPSynchronized=yes" in said.split():
        return
    services = re.findall(r"^running (\S+)$", said, re.MULTILINE)
    if services:
        yield f"{services[0]} is running, but the clock is not synchronized; {KEEP_TIME}"
    else:
        yield f"no time service is running; {KEEP_TIME}"


def vip_in_subnet(cluster: Cluster, host: Host) -> Iterator[str]:
    """The virtual IP is in the subnet of the node's address, which an interface has for good."""
    node = cluster.node(host)
    for own, vip in zip(node.addresses, cluster.spec.vip.addresses, strict=False):
        try:
            found = link(host, own)
        except Error as error:
            yield error.advice
            continue
        if found.temporary:
            yield (
                f"{own} is a temporary address of {found.interface}, which the kernel replaces within days; "
                "set nodes[].address to an address that the node keeps"
            )
        subnet, field = ip_network(f"{own}/{found.prefix_length}", strict=False), _field(cluster, vip)
        if ip_address(vip) in subnet:
            if subnet.version == 4 and subnet.num_addresses > 2 and vip == str(subnet.broadcast_address):
                yield (
                    f"the virtual IP {vip} is the broadcast address of {subnet}, to which no client can connect; "
                    f"set {field} to an unused address of that subnet"
                )
            continue
        if subnet.num_addresses > 1:
            yield (
                f"the virtual IP {vip} is not in the subnet {own}/{found.prefix_length} of {found.interface}; "
                f"set {field} to an unused address of that subnet"
            )
        elif not is_direct(host, vip, found.interface):  # a single address, as DHCPv6 gives one, tells no subnet
            yield (
                f"the address {own}/{found.prefix_length} of {found.interface} has no subnet, and no route leads to "
                f"the virtual IP {vip} straight out of {found.interface}; set {field} to an unused address of "
                "the nodes' own network, or give the address the prefix length of that network"
            )


def _field(cluster: Cluster, vip: str) -> str:
    """Where the cluster file has the address *vip*."""
    return f"spec.vip.{'address' if vip == cluster.spec.vip.address else 'secondaryAddress'}"


def vip_unused(cluster: Cluster, host: Host) -> Iterator[str]:
    """No other machine and no other program uses the virtual IP."""
    unit = vip_manager(cluster.spec).SERVICE.unit
    for vip in cluster.spec.vip.addresses:
        holders = [member for member in cluster.everyone if has_address(member, vip)]
        # One that has never had our keepalived has the address from another program, such as that of the API server.
        for other in holders:
            if other in cluster.hosts and other.read(unit_path(unit)) is None:
                yield (
                    f"{vip} is an address of {other.name} already, set by another program or the configuration of the "
                    f"network; set {_field(cluster, vip)} to an unused address"
                )
        # A node that cannot be reached by SSH may well have it, and one that leaves gives it up in this run.
        if cluster.absent or holders:
            continue
        if _answers(host, vip):
            yield f"{vip} is in use by another machine; set {_field(cluster, vip)} to an unused address"


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


ROOM = Check("StorageSpace", room)
CHECKS = (
    *OF_MEMBERS,
    LOST,
    Check("OperatingSystem", operating_system),
    Check("Architecture", architecture),
    Check("Tools", tools),
    Check("Kernel", kernel),
    Check("PacketFilter", packet_filter),
    Check("Ports", ports),
    Check("PortRange", port_range),
    Check("Inotify", inotify_instances),
    Check("Processes", processes),
    REACHABLE,
    WHOLE,
    Check("ProgramDirectory", data.programs_reachable),
    Check("DataMounted", data.mounted),
    Check("DataDirectory", data.suitable),
    Check("DataFileSystem", data.on_a_disk),
    Check("DiskSpace", disk),
    Check("Clock", clock, on=leader, alone=True),
    Check("SigningClock", signing_clock, on=leader),
    Check("TimeSync", time_sync),
    Check("VipInSubnet", vip_in_subnet),
    Check("VipUnused", vip_unused, on=leader),
)
PREFLIGHT = Phase("preflight", "Run the pre-flight checks", checks=CHECKS)
