"""The disk on which a node keeps images: there, mounted, writable, with room; whether pushes are closed; and the
routes between the storages."""

from __future__ import annotations

from collections.abc import Iterator

from kubeadm_registry import paths
from kubeadm_registry.agent import reserve, volume
from kubeadm_registry.components import agent, haproxy, network
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.doctor.facts import Facts
from kubeadm_registry.doctor.finding import Command, Finding, Kind, here, limited
from kubeadm_registry.doctor.snapshot import NodeSnapshot, Snapshot
from kubeadm_registry.printable import counted

NOT_MOUNTED = Kind(
    "DataNotMounted", "error", "The storage of this node is empty, and fills the disk below the mount point."
)
DATA_MISSING = Kind(
    "DataMissing", "error", "The node lost its copies of the images; the others have theirs, and none may fail."
)
READ_ONLY = Kind("DataReadOnly", "error", "The node stores nothing: pushes lack a copy here, or fail.")
DISK_FULL = Kind(
    "DiskFull", "error", "Pushes through this node get 507; pulls continue. A node that returns cannot catch up here."
)
DISK_FILLS = Kind("DiskFills", "warning", "When less than 5 % or 2 GiB are free, pushes are refused.")
INODES = Kind("InodesExhausted", "error", "No file can be created, so the storage accepts no data; pulls continue.")
PUSHES_CLOSED = Kind(
    "PushesClosed",
    "warning",
    "Pulls continue; pushes wait, or fail with 503, and reopen automatically at that time.",
)
BLOCKS_LOST = Kind("BlocksLost", "error", "The images that they are part of cannot be pulled; all others can.")
ROUTES_MISSING = Kind(
    "RoutesMissing", "warning",
    "Each small exchange between storage nodes waits 40 ms; without the loopback address this node does not serve.",
)  # fmt: skip


def there(snapshot: Snapshot) -> Iterator[Finding]:
    """The data directory has the storage that was installed, and can be written to."""
    data = snapshot.config.spec.data_directory
    unit = backend(snapshot.config.spec).SERVICE.unit
    formed = any(node.stores for node in snapshot.nodes)
    for node, facts in snapshot.answering:
        options = facts.mount.rpartition(" ")[2]
        if "ro" in options.split(","):
            yield Finding(
                READ_ONLY, node.name, f"{data} is on a file system that is mounted read-only",
                [f"findmnt --target {data}: {facts.mount}"],
                (Command(node.name, f"mount -o remount,rw {facts.mount.partition(' ')[0]}"),
                 Command(node.name, f"systemctl restart {unit}")),
                explains=_users(snapshot),
            )  # fmt: skip
        elif node.stores and all(volume.refuses(options, seen.agent) for seen in (node.earlier, node.status)):
            tried = [f"the agent cannot create a file below {data}"] if volume.refuses("", node.status.agent) else []
            yield Finding(
                READ_ONLY, node.name, f"{data} cannot be written, for example because of disk errors",
                [f"findmnt --target {data}: {facts.mount}", *tried],
                (Command(node.name, "journalctl -k --grep='EXT4-fs|XFS|BTRFS|I/O error'"),
                 Command(node.name, "reboot  # checks the file system; replace the disk if it is broken")),
                explains=_users(snapshot),
            )  # fmt: skip
        if node.installed and node.made and formed and not node.stores:
            yield _lost(snapshot, node, facts)


def _users(snapshot: Snapshot) -> frozenset[str]:
    """The units that write to the data directory."""
    spec = snapshot.config.spec
    return frozenset({backend(spec).SERVICE.unit, frontend(spec).SERVICE.unit, agent.UNIT})


def _lost(snapshot: Snapshot, node: NodeSnapshot, facts: Facts) -> Finding:
    data, unit = snapshot.config.spec.data_directory, backend(snapshot.config.spec).SERVICE.unit
    entries = ", ".join(facts.entries) or "nothing"
    shown = [f"ls -A {data}: {entries}", f"findmnt --target {data}: {facts.mount}"]
    if facts.unmounted:
        target = facts.unmounted[0].split()[0]
        mount = (Command(node.name, f"systemctl stop {unit} && mount {target} && systemctl start {unit}"),)
        return Finding(
            NOT_MOUNTED, node.name, f"{target} is not mounted, so {data} is empty",
            [f"/etc/fstab: {facts.unmounted[0]}", *shown], mount,
            explains=_users(snapshot) | {"ConfigChanged", "DataMounted"},
        )  # fmt: skip
    return Finding(
        DATA_MISSING, node.name, f"{data} does not contain the storage that this node had",
        shown, (Command(node.name, f"findmnt {data}  # mount its disk, if it had one of its own"), here("init")),
        explains=_users(snapshot) | {"ConfigChanged"},
    )  # fmt: skip


def room(snapshot: Snapshot) -> Iterator[Finding]:
    """There is room for what is pushed."""
    # By digest: with zot a tag that goes alone frees nothing.
    delete = here("images delete NAME@DIGEST  # docs/space.md, A full disk")
    fixes = (here("images list"), delete, here("images collect"))
    for node, facts in snapshot.answering:
        space, inodes = facts.space, facts.inodes
        if space is not None and node.installed:
            closed = facts.pushes.get("full", 0) > facts.clock
            if closed or reserve.nearly_full(space.free, space.size, was=False):
                free = f"{space.free / 2**30:.1f} GiB ({space.free / space.size:.0%})"
                shown = [space.line]
                if facts.pushes.get("full"):
                    shown.append(f"{haproxy.PUSHES_MAP}: full {facts.pushes['full']}")
                yield Finding(DISK_FULL, node.name, f"{free} of the data disk is free, so pushes are refused", shown,
                              fixes, explains=_users(snapshot))  # fmt: skip
            elif space.free < reserve.FILLS * space.size:
                yield Finding(DISK_FILLS, node.name, f"{space.free / space.size:.0%} of the data disk is free",
                              [space.line], fixes)  # fmt: skip
        if inodes is not None and inodes.size and inodes.free < reserve.FEW_INODES * inodes.size:
            yield Finding(
                INODES, node.name, f"{inodes.free} inodes are free on the data disk", [f"{inodes.line} (inodes)"],
                (Command(node.name, f"du --inodes -xS {inodes.mount} | sort -n | tail  # remove unrelated files"),),
                explains=_users(snapshot),
            )  # fmt: skip


def present(snapshot: Snapshot) -> Iterator[Finding]:
    """Each block is on a node at least."""
    lost = {node.name: node.lost for node in snapshot.nodes if node.lost}
    if lost:
        yield Finding(
            BLOCKS_LOST, "", f"no node has {counted(max(lost.values()), 'block')} that images need",
            limited([f"{name}: {paths.AGENT_STATE}: storage_lost={count}" for name, count in lost.items()]),
            (
                here("images check"),
                here("recover --bundle BUNDLE  # every bundle that has some of them; then push again what it lists"),
            ),
        )  # fmt: skip


def open_for_pushes(snapshot: Snapshot) -> Iterator[Finding]:
    """Pushes are not closed by a collection that died."""
    closed: list[tuple[NodeSnapshot, str, float]] = []
    for node, facts in snapshot.answering:
        if facts.running:  # the collection that closed them
            return
        if (left := facts.pushes.get("closed", 0) - facts.clock) > 0:
            closed.append((node, f"{node.name}: {haproxy.PUSHES_MAP}: closed {facts.pushes['closed']}", left))
    if closed:
        seconds = max(left for *_, left in closed)
        names = ", ".join(node.name for node, *_ in closed)
        yield Finding(
            PUSHES_CLOSED, closed[0][0].name if len(closed) == 1 else "",
            f"pushes are closed on {names} for another {seconds:.0f} s, and the run that closed them is gone",
            limited([line for _, line, _ in closed]), (here("images collect"),),
        )  # fmt: skip


def routed(snapshot: Snapshot) -> Iterator[Finding]:
    """The routes and rules that the unit has made are there still."""
    for node, _ in snapshot.answering:
        unit = node.unit(network.UNIT)
        if unit is None or not unit.active:
            continue  # which is a finding itself
        for one in node.differences:
            if isinstance(one.change, network.Routes) and one.error is None:
                yield Finding(
                    ROUTES_MISSING, node.name, "the routes between the storage nodes were changed or lost",
                    limited([f"{network.SCRIPT} missing: {line.partition(': ')[0]}" for line in one.text.splitlines()]),
                    (Command(node.name, f"systemctl reload {network.UNIT}"),),
                )  # fmt: skip


KINDS = (NOT_MOUNTED, DATA_MISSING, READ_ONLY, DISK_FULL, DISK_FILLS, INODES, PUSHES_CLOSED, BLOCKS_LOST,
         ROUTES_MISSING)  # fmt: skip
