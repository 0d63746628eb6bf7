"""Everything on a host that an installation could leave behind, as lines that can be compared."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from tests.lab.command import wait_until
from tests.lab.host import Host

#: What changes by itself: kernel, run-time state, logs, caches, containerd's images; and the copies that useradd makes
#: of the user database before it changes that, with its lock. What is ours in there is looked for by name.
VOLATILE = (
    "/dev", "/proc", "/sys", "/run", "/tmp", "/var/tmp", "/var/log", "/var/cache",
    "/var/lib/containerd", "/var/lib/systemd",
    "/etc/passwd-", "/etc/shadow-", "/etc/group-", "/etc/gshadow-", "/etc/.pwd.lock",
)  # fmt: skip

#: Kind, mode, owner, path and target or digest of everything below / and /var, which are file systems of their own.
#: Nothing writes a file back into /usr, where nearly all bytes are: its size and time tell whether somebody wrote it.
#: $@: find's words that leave the volatile paths out.
_FILES = r"""
find / /var -xdev \( "$@" \) -prune -o ! -type f -printf '%y %m %U:%G %p %l\n'
find / /var -xdev \( "$@" \) -prune -o -type f -printf '%y %m %U:%G %p\n'
find /usr -xdev -type f -printf '%s %T@ %p\n'
find / /var -xdev \( "$@" -o -path /usr \) -prune -o -type f -print0 | xargs -0 sha256sum
"""

#: containerd takes another port for its streams at each start.
_REST = r"""
part() { echo "== $1"; shift; "$@" 2>&1 | sed "s/ *$//"; }
part packages dpkg-query -W
part users getent passwd
part shadow cut -d: -f1,2 /etc/shadow
part groups getent group
part "unit files" systemctl list-unit-files --no-legend --no-pager
part units sh -c "systemctl list-units --all --plain --no-legend --no-pager --type=service,slice,socket,path,timer |
  awk '{print \$1, \$2, \$3}' | grep -Ev '^(session-|user-|user@|run-|systemd-tmpfiles-clean)'"
part failed systemctl list-units --failed --plain --no-legend --no-pager
part links sh -c "ip -o link | sed 's/^[0-9]*: //'"
part addresses sh -c "ip -o address | sed 's/^[0-9]*: //; s/ *valid_lft.*//'"
part "routes IPv4" ip -4 route show table all
part "routes IPv6" sh -c "ip -6 route show table all | sed 's/ expires [^ ]*//'"
part "rules IPv4" ip -4 rule
part "rules IPv6" ip -6 rule
part nftables nft list ruleset
part listening sh -c "ss -Hltunp | grep -v '\"containerd\"' | awk '{print \$1, \$5}'"
part "processes of ours" sh -c "ps -eo user:32,comm,cgroup | grep -E '^kubeadm-|kubeadm[-_]registry'"
part "run-time files of ours" find /run /tmp /var/tmp /dev/shm -name '*kubeadm-registry*'
"""


def listing(host: Host) -> list[str]:
    """The lines, sorted within each part and each with the name of its part."""
    tentative = ("ip", "-o", "-6", "address", "show", "tentative")  # for a second or two after a boot
    wait_until("the kernel's own addresses", lambda: not host.sh(*tentative).stdout, seconds=30)
    prune = [word for path in VOLATILE for word in ("-path", path, "-o")][:-1]
    lines = sorted(
        f"files: {line}" for line in host.sh("sh", "-c", _FILES, "-", *prune, timeout=120).stdout.split("\n")
    )
    part, found = "", []
    for line in host.sh("sh", "-c", _REST, timeout=60).stdout.splitlines():
        if line.startswith("== "):
            part = line.removeprefix("== ")
        else:
            found.append(f"{part}: {line}")
    return lines + sorted(found)


def listings(hosts: Iterable[Host]) -> dict[str, list[str]]:
    """The listing of each host by its name; two at a time, for each reads all files."""
    hosts = list(hosts)
    with ThreadPoolExecutor(2) as pool:
        return {host.name: found for host, found in zip(hosts, pool.map(listing, hosts), strict=True)}


def differences(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> list[str]:
    """What is gone (-) and what is new (+), with the host's name in front."""
    return [
        f"{name}: {line}"
        for name in before
        for line in difflib.unified_diff(before[name], after[name], lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]


def packages(host: Host) -> str:
    """The host's packages with their versions and states."""
    return host.sh("dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n").stdout
