"""The hand-over of the virtual IP as planned: who has a connection keeps it, and new ones reach the new holder.

An address that moves takes all packets with it, and the new holder's kernel answers those of connections that it does
not know with RST: pushes and pulls in flight would fail. So the new holder passes them on to the old one, whose proxy
answers the client itself. All of it ends by itself, at the latest when HAProxy's old processes end as well.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kubeadm_registry import paths
from kubeadm_registry.addresses import endpoint, family
from kubeadm_registry.agent import gap, reopen
from kubeadm_registry.agent.formats import Damaged, Newer
from kubeadm_registry.agent.moving import FORMAT, Request
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.links import link
from kubeadm_registry.engine.changes import wait
from kubeadm_registry.engine.render import render
from kubeadm_registry.errors import CommandFailed, Error
from kubeadm_registry.transport import host_python
from kubeadm_registry.transport.host import Host

STAY = f"{paths.PREFIX}-stay"
"""The nft table of a server that had the VIP."""
PASS = f"{paths.PREFIX}-pass"
"""The nft table of one that got it."""
UNIT = f"{paths.PREFIX}-handover-end"
MEASURED = f"{paths.RUN}/handover-gap.json"
"""How long nobody answered, as a server saw it that took no part."""
AGAIN = 0.1
"""Seconds between two looks at that."""
LONGEST = 1800
"""Seconds after which connections of before are cut off, as HAProxy's ``hard-stop-after`` does."""
IDLE = 5.0
"""Seconds without a byte after which a client keeps a connection for later only. A busy one may be slow as well."""
_STATES = ("established", "syn-recv", "close-wait", "fin-wait-1", "last-ack", "closing")
"""Of connections on which something is still to come or to be acknowledged."""
MARK = "0x2082"
"""Of packets on a server that had the VIP. kube-proxy, Calico and Cilium use other bits."""

#: Undoes both sides, whichever there is.
_END = f"""
for family in ip ip6; do
  for table in {STAY} {PASS}; do nft delete table $family $table 2>/dev/null || :; done
done
for family in -4 -6; do
  while ip $family rule del priority {paths.HANDOVER_TABLE} 2>/dev/null; do :; done
  ip $family route flush table {paths.HANDOVER_TABLE} 2>/dev/null || :
done
"""
#: The same at once, in place of the timer of the unit ``$1``.
_FORGET = f'systemctl stop -- "$1.timer" 2>/dev/null\n{_END}'
#: Loads the rules on standard input, and makes the addresses ``$4...`` local for what has the mark; undone after
#: ``$2`` seconds by the script ``$3``, in a unit ``$1``.
_BEGIN = f"""
set -e
unit=$1 seconds=$2 end=$3; shift 3
systemctl stop -- "$unit.timer" 2>/dev/null </dev/null || :
systemd-run --quiet --collect --unit="$unit" --on-active="$seconds" --timer-property=AccuracySec=1s \\
  sh -c "$end" </dev/null
nft -f -
for address; do
  case $address in *:*) family=-6 ;; *) family=-4 ;; esac
  ip $family rule show | grep -q '^{paths.HANDOVER_TABLE}:' ||
    ip $family rule add priority {paths.HANDOVER_TABLE} fwmark {MARK} lookup {paths.HANDOVER_TABLE}
  ip $family route replace local "$address" dev lo table {paths.HANDOVER_TABLE}
done
"""
#: Removes the table ``$1``.
_UNPASS = 'for family in ip ip6; do nft delete table $family "$1" 2>/dev/null || :; done'
#: Runs ``$2...`` and goes on; what it says is in the file ``$1``. Without the lock (9), which ends with the run.
#: It is let go before the fork: a child that has not come as far as closing it would still hold it.
_BACKGROUND = 'out=$1; shift; rm -f -- "$out"; exec 9>&-; setsid "$@" >"$out" 2>/dev/null </dev/null &'
#: Asks the agent by the file ``$1``: until ``$3`` seconds from now the VIP is to go to ``$2``, and the one writer is to
#: give the lease up where ``$5`` is true; ``$4`` says which format that is. The directory is the agent's, so root opens
#: nothing there that is there already: it could be a link to elsewhere.
_ASK = """
set -e
read -r now rest < /proc/uptime
new=$(mktemp -u --suffix=.kubeadm-registry -- "$1.XXXXXXXXXX")
umask 022; set -C
printf '{"format": %s, "to": "%s", "yields": %s, "until": %s}\\n' "$4" "$2" "$5" "$((${now%%.*} + $3))" > "$new"
mv -f -T -- "$new" "$1"
"""


def ask(host: Host, target: str, seconds: int, *, yields: bool = False) -> None:
    """Ask the agent of *host* to see to it, for *seconds*, that *target* has the VIP (empty: whoever has it).

    *yields*: as the one writer it gives up the lease, once no write is in flight, and keeps the VIP.
    """
    words = (paths.MOVE, target, str(seconds), json.dumps(FORMAT.stamp()), json.dumps(yields))
    host.run("sh", "-c", _ASK, "ask", *words)


def asked(host: Host) -> Request | None:
    """What the agent of *host* was asked for, whether or not that has ended; None if nothing."""
    try:
        values = FORMAT.parse(host.read(paths.MOVE) or b"").values
        return Request(str(values["to"]), values.get("yields") is True)
    except (Damaged, Newer, KeyError):
        return None


def withdraw(host: Host) -> None:
    """Ask for it no longer."""
    host.run("rm", "-f", "--", paths.MOVE)


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets to *vip* go on by *interface*: those of new clients, and of the clients in *own*, stay here.

    Those of clients in *earlier* go to servers that had the VIP before the last one, by address, all others to that
    one, *gateway*.
    """

    vip: str
    gateway: str
    interface: str
    own: Sequence[str]
    earlier: Mapping[str, Sequence[str]]


def pass_on(cluster: Cluster, host: Host, old: Host) -> None:
    """Let *host*, which gets the VIP, pass on to *old* what belongs to connections of before.

    Who has clients of an earlier turn gets no new ones, so what is asked now holds until these have gone.
    """
    own, gateways = cluster.node(host), cluster.node(old)
    routes = []
    for place, (vip, here) in enumerate(zip(cluster.spec.vip.addresses, own.addresses, strict=False)):
        others = [one for one in cluster.hosts if one.name not in (host.name, old.name)]
        found = {cluster.node(one).addresses[place]: clients(one, vip) for one in others}
        earlier = {address: there for address, there in found.items() if there}
        interface = link(host, here).interface
        routes.append(Route(vip, gateways.addresses[place], interface, clients(host, vip), earlier))
    rules = render("handover/pass.nft.j2", routes=routes, table=PASS, port=paths.REGISTRY_PORT, seconds=2 * LONGEST)
    host.run("sh", "-c", _BEGIN, "begin", UNIT, str(LONGEST), _END, stdin=rules)


def trial(cluster: Cluster, host: Host) -> bytes:
    """Such rules as ``pass_on`` loads, for whoever wants to know whether they can be loaded."""
    gateways = cluster.peers(host)[0].addresses if cluster.peers(host) else ()
    routes = [
        Route(vip, gateway, "lo", (), {}) for vip, gateway in zip(cluster.spec.vip.addresses, gateways, strict=False)
    ]
    return render("handover/pass.nft.j2", routes=routes, table=PASS, port=paths.REGISTRY_PORT, seconds=2 * LONGEST)


def pass_no_more(host: Host) -> None:
    """Let *host*, which does not have the VIP any more, pass nothing on: whoever has it knows where all belongs."""
    host.run("sh", "-c", _UNPASS, "unpass", PASS)


def stay(cluster: Cluster, host: Host) -> None:
    """Let *host*, which loses the VIP, go on with the connections of its clients. Raises Error (ConnectionsOpen)."""
    vips = cluster.spec.vip.addresses
    _sockets(host, "keep", "keep", str(paths.REGISTRY_PORT), *vips)
    rules = render("handover/stay.nft.j2", vips=vips, table=STAY, port=paths.REGISTRY_PORT, mark=MARK)
    host.run("sh", "-c", _BEGIN, "begin", UNIT, str(LONGEST), _END, *vips, stdin=rules)


def passes_on(cluster: Cluster, host: Host, old: Host | None = None) -> bool:
    """Whether *host* passes on to *old*, or anything to anybody."""
    where = f"dup to {cluster.node(old).address} " if old is not None else "dup to"
    return where in host.query("nft", "list", "table", family(cluster.spec.vip.address), PASS).text


def stays(cluster: Cluster, host: Host) -> bool:
    """Whether *host* goes on with the connections of its clients."""
    return host.query("nft", "list", "table", family(cluster.spec.vip.address), STAY).ok


def end(host: Host) -> None:
    """Undo all that; what still needs it is cut off."""
    host.run("sh", "-c", _FORGET, "forget", UNIT)


def clients(host: Host, vip: str, *, but: Collection[str] = ()) -> list[str]:
    """Whoever has a connection to *host* by *vip*, as nft writes it: ``10.0.0.9 . 40001``.

    Not *host* itself, whose own connections have *vip* at both ends, and no address of *but*.
    """
    where = endpoint(vip, paths.REGISTRY_PORT)
    states = [word for state in _STATES for word in ("state", state)]
    shown = host.query("ss", "-Htn", *states, "src", where)
    if not shown.ok:
        raise CommandFailed(shown, host=host.name)
    found = []
    for line in shown.text.splitlines():
        address, _, port = line.split()[-1].rpartition(":")
        client = address.strip("[]").removeprefix("::ffff:")
        if client != vip and client not in but:
            found.append(f"{client} . {port}")
    return found


def reopen_own(cluster: Cluster, host: Host) -> None:
    """End the reading of the connections that *host* itself has to the VIP, so that their owners open new ones.

    Raises Error (ConnectionsOpen).
    """
    _sockets(host, "end", "own", str(paths.REGISTRY_PORT), *cluster.spec.vip.addresses)


def close_idle(cluster: Cluster, host: Host) -> None:
    """End the connections to the VIP that clients keep open with *host* for their next request.

    Raises Error (ConnectionsOpen).
    """
    where = (str(paths.REGISTRY_PORT), str(IDLE), ",".join(paths.HAPROXY_SOCKETS))
    _sockets(host, "end", "idle", *where, *cluster.spec.vip.addresses)


_HINTS = {
    "keep": "nothing has moved; run the command again",
    "end": "repeat what this node itself pulls or pushes at this moment",
}


def _sockets(host: Host, what: str, *words: str) -> None:
    shown = json.loads(host.run(*host_python.command(reopen, *words), timeout=30).stdout)
    if shown["trouble"]:
        raise Error(
            f"cannot {what} connections to the virtual IP: {'; '.join(shown['trouble'])}", host=host.name,
            code="ConnectionsOpen", hint=_HINTS[what],
        )  # fmt: skip


def measure(cluster: Cluster, host: Host, patience: float) -> None:
    """Begin to watch the VIP from *host* while it is asked for a move, *patience* seconds at most.

    It goes on by itself: a host is asked one thing at a time.
    """
    where = (cluster.spec.vip.address, str(paths.REGISTRY_PORT), paths.MOVE, str(patience))
    host.run("sh", "-c", _BACKGROUND, "measure", MEASURED, *host_python.command(gap, *where))


def measured(host: Host, patience: float) -> float | None:
    """What *host* has seen, once it is not asked for the move any more: it is waited for *patience* seconds.

    Returns the longest time in seconds without an answer; None if it saw none. Raises CommandTimeout, Error.
    """

    def silent(one: Host) -> str | None:
        return None if one.read(MEASURED) else "it has not told yet"

    wait(host, silent, what="the gap is measured", timeout=patience, interval=AGAIN)
    found = json.loads(host.read(MEASURED) or b"{}").get("gap")
    host.run("rm", "-f", "--", MEASURED)
    return None if found is None else float(found)
