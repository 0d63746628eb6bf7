"""Lets clients of the virtual IP end what they do before it moves: else the new holder resets their connections.

It works on the holder alone, whatever release its agent is of. HAProxy takes up its configuration again, upon which the
processes before close idle connections, and the others after the answer in flight. That is done twice: first while new
connections are taken, so that long pulls end and nobody waits; then while the kernel drops the first packets of new
ones. Clients' kernels send these again, after 1, 3, 7 s, and meet the new holder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kubeadm_registry import paths
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.changes import wait
from kubeadm_registry.errors import CommandFailed, CommandTimeout
from kubeadm_registry.transport.host import Host

#: Seconds for which requests may go on: while others begin, and while new connections wait.
LONG, SHORT = 60.0, 5.0
#: Seconds after which new connections are taken again by themselves, when the run has died.
AT_MOST = 30.0
TABLE = f"{paths.PREFIX}-drain"
#: Has each of the units ``$@`` start its workers anew; with ``systemctl reload`` it would note other files as its own.
_RENEW = """
for unit; do
  pid=$(systemctl show --property=MainPID --value -- "$unit")
  [ "${pid:-0}" = 0 ] || kill -USR2 "$pid"
done
"""
#: Has the kernel drop new connections to port ``$3`` of the addresses ``$4...`` by the nft table ``$1``, for ``$2``
#: seconds at most; a timer of the table's name sees to that.
_HOLD = """
set -e
table=$1 seconds=$2 port=$3; shift 3
systemctl stop -- "$table.timer" 2>/dev/null || :
systemd-run --quiet --collect --unit="$table" --on-active="$seconds" --timer-property=AccuracySec=1s \\
  nft delete table inet "$table"
{
  echo "table inet $table"
  echo "delete table inet $table"
  echo "table inet $table { chain input { type filter hook input priority -5; policy accept;"
  for address; do
    case $address in *:*) family=ip6 ;; *) family=ip ;; esac
    echo "$family daddr $address tcp dport $port tcp flags & (fin | syn | rst | ack) == syn drop"
  done
  printf "%s\\n" "}" "}"
} | nft -f -
"""
#: Undoes that.
_RELEASE = """
systemctl stop -- "$1.timer" 2>/dev/null
nft delete table inet "$1" 2>/dev/null
:
"""


@contextmanager
def drained(cluster: Cluster, host: Host) -> Iterator[None]:
    """No client is connected to the virtual IP at *host*, and none can connect, for the length of a ``with``.

    Requests that take longer than LONG seconds are not waited for.
    """
    addresses = cluster.spec.vip.addresses
    _wait(host, addresses, LONG, known=_clients(host, addresses))
    host.run("sh", "-c", _HOLD, "hold", TABLE, f"{AT_MOST:.0f}", str(paths.REGISTRY_PORT), *addresses)
    try:
        _wait(host, addresses, SHORT)
        yield
    finally:
        host.run("sh", "-c", _RELEASE, "release", TABLE)


def _clients(host: Host, addresses: tuple[str, ...]) -> frozenset[str]:
    """Addresses and ports of the clients that are connected to the registry's port of *addresses*."""
    ours = " or ".join(f"src {endpoint(address, paths.REGISTRY_PORT)}" for address in addresses)
    said = host.query("ss", "-Htn", "state", "established", f"( {ours} )")
    if not said.ok:
        raise CommandFailed(said, host=host.name)
    return frozenset(line.split()[3] for line in said.text.splitlines() if len(line.split()) > 3)


def _wait(host: Host, addresses: tuple[str, ...], seconds: float, known: frozenset[str] | None = None) -> None:
    """Wait until no client is connected, or none of those that are *known*; *seconds* at most."""
    host.run("sh", "-c", _RENEW, "renew", *paths.HAPROXY_UNITS)

    def connected(_: Host) -> str | None:
        there = _clients(host, addresses)
        left = there if known is None else there & known
        return f"{len(left)} are" if left else None

    try:
        wait(host, connected, what="no client is connected to the virtual IP", timeout=seconds, interval=0.1)
    except CommandTimeout:
        return  # what takes longer is cut, as by any move
