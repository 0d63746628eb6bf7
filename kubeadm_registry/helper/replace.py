"""``python -m kubeadm_registry.helper.replace``: put another node in the place of one, as `replace` does, as root.

systemd starts it for the helper. It comes to the other nodes by the key that they all have (``components/replacing``),
and takes programs and secrets from this node. What was begun, on this node or another, it completes.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from pydantic import ValidationError

from kubeadm_registry.access import membership, questions
from kubeadm_registry.access.membership import Request
from kubeadm_registry.access.replacing import Work
from kubeadm_registry.access.session import Note, Prompts
from kubeadm_registry.cluster import Cluster, arriving
from kubeadm_registry.components import helper, replacing
from kubeadm_registry.components.programs import RECORD
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.engine.report import Action, Silent
from kubeadm_registry.errors import Error, PreflightFailed, Problem
from kubeadm_registry.formats import Damaged, kept
from kubeadm_registry.helper.replacing import last
from kubeadm_registry.phases.changing import carry_out
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS
from kubeadm_registry.printable import Level
from kubeadm_registry.transport.host import Host
from kubeadm_registry.transport.local import Local

#: The images stay on a node that leaves, as with the command.
SKIP = ("uninstall/data",)
Open = Callable[[RegistryCluster, Request, Note], AbstractContextManager[Cluster]]


def opened(config: RegistryCluster, request: Request, note: Note) -> AbstractContextManager[Cluster]:
    """The cluster as it is to become, reached from this node. It raises Error as ``membership.changing``."""
    return membership.changing(config, request, Prompts(), note)


def work(here: Host, open_: Open = opened) -> None:
    """Do what *here* was asked for, and leave what came of it. Raises NewerFormat if it may not be left."""
    try:
        old, new = asked(here)
    except Error as error:
        _Progress(here, last(here) or Work("", "", time.time())).ended(error)
        return
    progress = _Progress(here, Work(old, new.name, time.time()))
    try:
        config = wanted(here, progress.work.old, new)
        with open_(config, Request(joins=new.name, leaves=progress.work.old), progress.note) as cluster:
            require_same_settings(cluster)
            carry_out(CHANGE_MEMBERS, cluster, progress, skip=SKIP)
    except Error as error:
        progress.ended(error)
    except Exception as error:
        hint = f"see `journalctl -u {replacing.UNIT}` on that node"
        progress.ended(Error(f"[Bug] {error!r}", host=here.name, code="ReplacingFailed", hint=hint))
        raise
    else:
        progress.ended()


def asked(here: Host) -> tuple[str, Node]:
    """Which node is to go, and which one takes its place. Raises Error (RequestDamaged), NewerFormat."""
    try:
        values = replacing.REQUESTED.parse(here.read(replacing.REQUEST) or b"").values
        return str(values["old"]), Node.model_validate(values["new"])
    except (Damaged, KeyError, ValidationError) as error:
        raise Error(
            f"{replacing.REQUEST}: {error}", host=here.name, code="RequestDamaged",
            hint="request the replacement again, which rewrites the file",
        ) from error  # fmt: skip


def wanted(here: Host, old: str, new: Node) -> RegistryCluster:
    """The cluster file of *here* with *new* after *old*, and with the way that nodes have to each other.

    Raises Error (HelperUnknown).
    """
    _, config = helper.read_settings(here.read(helper.NODE), here.name)
    nodes: list[Node] = []
    for node in config.spec.nodes:
        if node.name != new.name:
            nodes.append(node)
        if node.name in (old, new.name):
            nodes.append(new)
    ssh = config.spec.ssh.model_copy(update={"identity_file": replacing.KEY})
    return config.with_spec(nodes=tuple(nodes), ssh=ssh)


def require_same_settings(cluster: Cluster) -> None:
    """All members have the same cluster file, apart from its nodes, and programs. Raises Error (SettingsDiffer).

    One that was away when these changed would give the others what it has.
    """
    new = {host.name for host in arriving(cluster)}
    programs = {found for host in cluster.hosts if host.name not in new and (found := host.read(RECORD)) is not None}
    if len(programs) > 1:
        raise Error("the nodes have different programs, as in the middle of an upgrade", code="SettingsDiffer",
                    hint="complete it: run `kubeadm-registry upgrade`")  # fmt: skip
    known = {host.name: found for host in cluster.hosts if (found := host.read(helper.NODE)) is not None}
    files = {name: _apart(helper.read_settings(found, name)[1]) for name, found in known.items()}
    for name, file in files.items():
        if file != _apart(cluster.config):
            raise Error(
                f"{name} has a different cluster file from this node", host=name, code="SettingsDiffer",
                hint="run `kubeadm-registry init`, which gives all nodes the same",
            )  # fmt: skip


def _apart(config: RegistryCluster) -> RegistryCluster:
    """*config* without its nodes, and files that only one machine has."""
    return config.with_spec(nodes=(), ssh=config.spec.ssh.without_files())


class _Progress(Silent):
    """A Reporter that leaves on *here* how far the *work* is, and tells the journal."""

    def __init__(self, here: Host, work: Work) -> None:
        self.here, self.work = here, work
        self._found = replacing.WORKED.over(here.read(replacing.WORK))
        self._write()

    def ended(self, error: Error | None = None) -> None:
        """It is over; *error* is what it failed with."""
        failed = None if error is None else questions.told(error)["error"]
        if failed is not None and isinstance(error, PreflightFailed):
            found = (f"{one.host}: {one.text}" for one in error.problems if not one.ignored)
            failed = {**failed, "message": f"{failed['message']}: {'; '.join(found)}"}
        self.work = replace(self.work, ended=time.time(), error=failed)
        self._write()
        _say("done" if error is None else f"[{error.code}] {error}; {error.hint}")

    def _write(self) -> None:
        content = replacing.WORKED.render(kept(self.work.values(), self._found), self._found)
        self.here.write(replacing.WORK, content, mode=0o600)

    def phase(self, path: str, summary: str) -> None:
        """A step of it."""
        self.work = replace(self.work, steps=(*self.work.steps, path), step=summary)
        self._write()
        _say(f"{path}: {summary}")

    def note(self, text: str, *, host: str = "", level: Level = "info") -> None:
        """What is worth knowing."""
        _say(f"{level}: {host}{': ' * bool(host)}{text}")

    def action(self, action: Action, *, dry_run: bool) -> None:
        """A change."""
        _say(f"{action.phase}: {action.host}: {action.title}")

    def problem(self, problem: Problem) -> None:
        """What a check found."""
        _say(f"{problem.host}: {problem.check}: {problem.text}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> int:
    """Do what was asked for; the exit status."""
    with contextlib.closing(Local("this node")) as local:
        work(Host("this node", "", local))
    return 0


if __name__ == "__main__":
    sys.exit(main())
