"""Nodes that are down or cut off, clocks that differ, and what the checks of preflight find."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from kubeadm_registry import paths
from kubeadm_registry.components.network import exposed
from kubeadm_registry.components.services import services
from kubeadm_registry.doctor.facts import FirewallRule
from kubeadm_registry.doctor.finding import WORKSTATION, Command, Finding, Kind, here, limited
from kubeadm_registry.doctor.snapshot import NodeSnapshot, Snapshot
from kubeadm_registry.errors import Problem
from kubeadm_registry.status import CLOCK_OFF

NODE_DOWN = Kind(
    "NodeDown",
    "error",
    "The others serve without it; none of them may fail meanwhile. It rejoins automatically.",
)
NO_QUORUM = Kind(
    "NoQuorum",
    "error",
    "Pushes fail, and images may be unreadable, until all nodes but one are back. If they are lost for good, rebuild "
    "the registry with `recover`.",
)
SSH_FAILS = Kind("SSHFails", "warning", "The registry works there, but no run can change or inspect the node.")
#: The same where nobody hears its agent.
SSH_REFUSED = Kind(
    SSH_FAILS.code, "error", "An SSH server answers there; nobody can tell whether the registry works on the node."
)
PEER_SILENT = Kind(
    "PeerSilent", "error", "The two treat each other as down; with zot there may be no writer. No node may fail."
)
PORT_BLOCKED = Kind("PortBlocked", "error", "The nodes cannot replicate images or pass requests on to each other.")
PORT_TAKEN = Kind("PortTaken", "error", "The registry service that needs the port cannot start.")
CLOCK_DIFFERS = Kind(
    "ClockOff", "error", "The node does not become writer, because the storage keeps the write with the later time."
)
CLUSTER_DIFFERS = Kind(
    "ClusterFileDiffers",
    "error",
    "init refuses the cluster file, which differs from that of the registry.",
)
PREFLIGHT = Kind("Preflight", "warning", "init refuses to run while preflight finds this.")

#: By either of the services that preflight names. That of systemd steps a clock that is 0.4 s off when it starts.
SET_CLOCK = "chronyc makestep || systemctl restart systemd-timesyncd  # docs/recovery.md, Clocks"
#: What has a rule of its own, or is only needed once: room for the programs is.
_ELSEWHERE = frozenset({"Ports", "Firewall", "SameCluster", "Clock", "DiskSpace", "Secrets", "Authority"})


#: How SSH says that a node is there and does not let this machine in.
_REFUSED = re.compile(
    r"unknown host key|host key verification failed|authentication failed|the login of \S+ at \S+ by"
    r"|sudo (?:failed|does not accept)|user \S+ (?:can log in|logged in|has no shell|has user id)"
    r"|\S+ and kubeadm-registry have no common algorithm"
)


def answering(snapshot: Snapshot) -> Iterator[Finding]:
    """Every node is up and can be reached."""
    lost = []
    for node in snapshot.unreachable:
        heard = snapshot.heard_by(node.name)
        shown = [f"ssh: {node.status.trouble}", *_told(snapshot, node)]
        if heard or _REFUSED.match(node.status.trouble):
            kind, words = (
                (SSH_FAILS, f"it cannot be reached by SSH, and the agent of {heard[0]} hears it")
                if heard
                else (SSH_REFUSED, "it answers by SSH, and does not let this machine in")
            )
            yield Finding(kind, node.name, words, limited(shown), (_login(snapshot, node),))
            continue
        lost.append(node)
        yield Finding(
            NODE_DOWN, node.name, "it does not answer by SSH, and no other node hears its agent",
            limited(shown),
            (Command("on site", f"power {node.name} on, check its cable and switch port"), here("status")),
        )  # fmt: skip
    count = len(snapshot.nodes)
    # Of three to five nodes: reads and writes need two of three copies, wherever these are.
    if len(lost) > 1:
        names = ", ".join(node.name for node in lost)
        yield Finding(NO_QUORUM, "", f"{len(lost)} of {count} nodes are down: {names}",
                      [f"{node.name}: {node.status.trouble}" for node in lost],
                      (Command("on site", f"power {names} on"), here("status")))  # fmt: skip


def _login(snapshot: Snapshot, node: NodeSnapshot) -> Command:
    """The command that shows how SSH to *node* fails."""
    ssh = snapshot.config.spec.node(node.name).ssh.over(snapshot.config.spec.ssh)
    options = ["-p", str(ssh.port)] if ssh.port else []
    options += ["-i", ssh.identity_file] if ssh.identity_file else []
    options += ["-o", f"UserKnownHostsFile={ssh.known_hosts_file}"] if ssh.known_hosts_file else []
    target = f"{ssh.user + '@' if ssh.user else ''}{node.address}"
    return Command(WORKSTATION, shlex.join(["ssh", "-v", *options, target, "true"]))


def _told(snapshot: Snapshot, node: NodeSnapshot) -> list[str]:
    """What the agents of others tell of *node*."""
    lines = []
    for other in snapshot.nodes:
        if told := other.peer(node.name):
            age = told.get("age")
            since = "" if age is None else f", last heard {age:.1f} s ago"
            lines.append(f"{other.name}: {paths.AGENT_STATE}: {node.name} is {told.get('presence')}{since}")
    return lines


def hearing(snapshot: Snapshot) -> Iterator[Finding]:
    """The agents of nodes that are up hear each other."""
    up = [node for node, _ in snapshot.answering if not node.silent and node.status.agent is not None]
    for place, one in enumerate(up):
        for other in up[place + 1 :]:
            deaf = [(here_, there) for here_, there in ((one, other), (other, one)) if here_.hears(there.name) is False]
            if not deaf:
                continue
            rules = [
                rule for node in (one, other) if node.facts for rule in _blocking(node, "udp", [paths.HEARTBEAT_PORT])
            ]
            evidence = [
                f"{node.name}: {paths.AGENT_STATE}: {there.name} is {node.peer(there.name).get('presence')}"
                for node, there in deaf
            ]
            # Who is not heard by another soon counts it as silent too, so both say so: a rule shows which one is deaf.
            blocked = {name for name, _ in rules}
            first, *more = [pair for pair in deaf if pair[0].name in blocked] or deaf
            heard = f"{first[0].name} does not hear the agent of {first[1].name}"
            yield Finding(
                PEER_SILENT, one.name,
                f"the agents of {one.name} and {other.name} do not hear each other" if more else heard,
                limited([*evidence, *(f"{node}: {rule.text}" for node, rule in rules)]),
                _unblock(rules) or (Command(first[0].name, f"ping -c 3 {first[1].address}"),
                                    *(_open(snapshot, here_) for here_, _ in deaf)),
                explains=frozenset({PORT_BLOCKED.code}),
            )  # fmt: skip


def _blocking(node: NodeSnapshot, protocol: str, ports: Sequence[int] = ()) -> list[tuple[str, FirewallRule]]:
    rules = () if node.facts is None else node.facts.firewall
    return [(node.name, rule) for rule in rules if rule.handle and rule.concerns(protocol, ports)]


def _unblock(rules: Sequence[tuple[str, FirewallRule]]) -> tuple[Command, ...]:
    return tuple(
        Command(name, f"nft delete rule {rule.table} {rule.chain} handle {rule.handle}") for name, rule in rules
    )


def _open(snapshot: Snapshot, node: NodeSnapshot) -> Command:
    """The command by which the firewall of *node* lets in the others, where no rule of it names what it keeps out."""
    found = services(snapshot.config.spec)
    tcp, udp = exposed(found), exposed(found, "udp")
    rules = () if node.facts is None else node.facts.firewall
    if any(rule.table.endswith(" firewalld") for rule in rules):
        ports = [*(f"{port}/tcp" for port in tcp), *(f"{port}/udp" for port in udp)]
        allow = " ".join([*(f"--add-port={port}" for port in ports), "--add-protocol=112"])
        return Command(node.name, f"firewall-cmd --permanent {allow} && firewall-cmd --reload")
    if any(rule.chain.startswith("ufw") for rule in rules):
        allow = f"ufw allow {','.join(map(str, tcp))}/tcp && ufw allow {','.join(map(str, udp))}/udp"
        return Command(node.name, f"{allow}  # and VRRP: docs/requirements.md, Ports")
    line = "nft list ruleset  # let in what docs/requirements.md, Ports, lists, here and on the way"
    return Command(node.name, line)


def blocking_vrrp(snapshot: Snapshot, names: Sequence[str]) -> tuple[list[str], tuple[Command, ...]]:
    """The firewall rules on the nodes *names* that drop VRRP, as evidence, and the commands that delete them."""
    rules = [
        found
        for node in snapshot.nodes
        if node.name in names
        for protocol in ("vrrp", "112")
        for found in _blocking(node, protocol)
    ]
    return [f"{name}: nft list ruleset: {rule.text}" for name, rule in rules], _unblock(rules)


def ports_open(snapshot: Snapshot) -> Iterator[Finding]:
    """No firewall is between the nodes."""
    for node in snapshot.nodes:
        for problem in node.problems:
            if problem.check != "Firewall":
                continue
            found = re.match(r"cannot connect to (\S+) \(\S+\) on TCP ports? ([\d, ]+);", problem.text)
            if found is None:
                continue
            name, ports = found[1], [int(one) for one in found[2].split(", ")]
            others = [one for one in snapshot.nodes if one.name in (name, node.name)]
            rules = [rule for one in others for rule in _blocking(one, "tcp", ports)]
            shown = [f"{who}: nft list ruleset: {rule.text}" for who, rule in rules]
            listen = ", ".join(map(str, ports))
            yield Finding(
                PORT_BLOCKED, node.name, f"it cannot connect to {name} on TCP port{'s' * (len(ports) > 1)} {listen}",
                limited([problem.text.partition(";")[0], *shown]),
                _unblock(rules) or [_open(snapshot, one) for one in others if one.name == name],
                subject=f"{PORT_BLOCKED.code} {name}",
            )  # fmt: skip


def ports_free(snapshot: Snapshot) -> Iterator[Finding]:
    """No other program has a port of the registry."""
    for node, facts in snapshot.answering:
        seen = set()
        for problem in node.problems:
            found = re.match(r"port (\d+)/(\w+) is in use by (.*?) at ", problem.text)
            if problem.check != "Ports" or found is None or found[1] in seen:
                continue
            seen.add(found[1])
            port = int(found[1])
            who = [one for one in facts.listeners if one.port == port and not one.ours]
            stops = dict.fromkeys(
                f"systemctl stop {one.unit}" if one.unit.endswith(".service") else f"kill {one.pid}"
                for one in who if one.unit or one.pid
            )  # fmt: skip
            owner = next((one for one in services(snapshot.config.spec)
                          if any(mine.number == port for mine in one.ports)), None)  # fmt: skip
            units = owner.units if owner is not None else ()
            restart = [Command(node.name, f"systemctl restart {' '.join(units)}")] if units else []
            yield Finding(
                PORT_TAKEN, node.name, f"port {found[1]}/{found[2]} is in use by {found[3]}",
                limited([one.line for one in who] or [problem.text]),
                [*(Command(node.name, stop) for stop in stops), *restart],
                explains=frozenset(units),
            )  # fmt: skip


def clocks(snapshot: Snapshot) -> Iterator[Finding]:
    """The clocks agree, as the agents measure them; or, where they do not run, as preflight does."""
    told = set()
    for node, _ in snapshot.answering:
        off = node.status.agent.get("clock_off") if node.status.agent is not None else None
        before = node.earlier.agent.get("clock_off") if node.earlier.agent is not None else None
        if isinstance(off, (int, float)) and isinstance(before, (int, float)) and min(off, before) > CLOCK_OFF:
            told.add(node.name)
            yield Finding(CLOCK_DIFFERS, node.name, f"its clock is {off:.1f} s off",
                          [f"{paths.AGENT_STATE}: clock_off={off}"],
                          (Command(node.name, SET_CLOCK),))  # fmt: skip
    if told:
        return
    for node in snapshot.nodes:
        for problem in node.problems:
            if problem.check == "Clock":
                found = re.match(r"the clock of (\S+) is", problem.text)
                name = found[1] if found else node.name
                yield Finding(CLOCK_DIFFERS, name, problem.text.partition(", and the limit")[0], [problem.text],
                              (Command(name, SET_CLOCK),))  # fmt: skip


def checks(snapshot: Snapshot) -> Iterator[Finding]:
    """The checks of preflight that have no rule of their own find nothing."""
    for node in snapshot.nodes:
        for problem in node.problems:
            if problem.check == "SameCluster":
                yield Finding(CLUSTER_DIFFERS, "", problem.text, [f"preflight: {problem.text}"],
                              (here("config validate"), here("preflight --checks-only")))  # fmt: skip
            elif problem.check not in _ELSEWHERE:
                yield _of(problem)


def _of(problem: Problem) -> Finding:
    kind = Kind(problem.check, PREFLIGHT.severity, PREFLIGHT.meaning)
    return Finding(kind, problem.host, problem.text, [f"preflight: {problem.check}: {problem.text}"],
                   (here("preflight --checks-only"),), subject=problem.check)  # fmt: skip


KINDS = (NODE_DOWN, NO_QUORUM, SSH_FAILS, PEER_SILENT, PORT_BLOCKED, PORT_TAKEN, CLOCK_DIFFERS, CLUSTER_DIFFERS,
         PREFLIGHT)  # fmt: skip
