"""A node is asked to put another node in the place of one (``access/replacing.py``): what is checked before it begins.

The work takes as long as the storage copies. So it is a unit with a fixed name, which goes on whoever asks, or does not
any more; what it says of itself stands in a file.
"""

from __future__ import annotations

import time
from dataclasses import replace

from pydantic import ValidationError

from kubeadm_registry.access.collecting import invalid
from kubeadm_registry.access.replacing import Standing, Work
from kubeadm_registry.cluster import members_at
from kubeadm_registry.components import replacing
from kubeadm_registry.config import Node
from kubeadm_registry.config.values import ELSEWHERE
from kubeadm_registry.engine.changes import runs
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged
from kubeadm_registry.members import Members
from kubeadm_registry.transport.host import Host


def standing(host: Host) -> Standing:
    """How *host* is. Raises NewerFormat."""
    work = last(host)
    if work is not None:
        work = replace(work, runs=runs(host, replacing.UNIT))
    return Standing(host.query("test", "-e", replacing.KEY).ok, members_at(host), work, time.time())


def begin(host: Host, old: object, new: object) -> Standing:
    """Begin to put *new* in the place of *old*; how *host* is then.

    Raises Error: ReplacingForbidden, QuestionInvalid, HostKeyMissing, NodeUnknown, MembersDiffer, ReplacingBusy; and
    NewerFormat.
    """
    now = standing(host)
    if not now.allowed:
        raise Error(
            "the nodes may not replace each other", host=host.name, code="ReplacingForbidden",
            hint="run `kubeadm-registry operator install --replace-nodes`, or `replace` yourself",
        )  # fmt: skip
    if not isinstance(old, str):
        raise invalid("old")
    node = _node(new)
    _require_fitting(host, now.members, old, node)
    if now.work is not None and now.work.runs:
        if (now.work.old, now.work.new) != (old, node.name):
            raise Error(
                f"{now.work.old} is being replaced by {now.work.new}", host=host.name, code="ReplacingBusy",
                hint="wait until that has ended",
            )  # fmt: skip
        return now
    asked = {"old": old, "new": node.model_dump(by_alias=True, exclude_none=True, mode="json")}
    begun = Work(old, node.name, time.time())
    # What a newer release has added to an earlier request, or said of its work, is not about this one.
    request = replacing.REQUESTED.render(asked, replacing.REQUESTED.over(host.read(replacing.REQUEST)))
    work = replacing.WORKED.render(begun.values(), replacing.WORKED.over(host.read(replacing.WORK)))
    host.write(replacing.REQUEST, request, mode=0o600)
    host.write(replacing.WORK, work, mode=0o600)
    host.run("systemctl", "start", "--no-block", "--", replacing.UNIT, timeout=30)
    return standing(host)


def _node(described: object) -> Node:
    """The node that is to come; files of a workstation are not for here."""
    try:
        node = Node.model_validate(described, context={ELSEWHERE: True})
    except ValidationError as error:
        raise invalid("new") from error
    if node.host_key is None:
        raise Error(
            f"no SSH host key is set for {node.name}", host=node.name, code="HostKeyMissing",
            hint="set hostKey of that node: its /etc/ssh/ssh_host_ed25519_key.pub without the comment",
        )  # fmt: skip
    return node.model_copy(update={"ssh": node.ssh.without_files()})


def _require_fitting(host: Host, listed: Members | None, old: str, new: Node) -> None:
    """The members are such that *new* may take the place of *old*, or are becoming so. Raises Error."""
    if listed is None:
        raise Error("this node has no list of members", host=host.name, code="NotInstalled", hint="run init first")
    if old not in {*listed.nodes, *listed.before, *listed.former}:
        raise Error(
            f"{old} is not a member of the registry, which consists of {', '.join(sorted(listed.nodes))}",
            host=host.name, code="NodeUnknown", hint="name one of its members; `status` lists them",
        )  # fmt: skip
    if listed.nodes.get(new.name) == new.address and old not in listed.nodes:
        return  # it was begun, or is done; the work says which
    taken = [name for name, at in listed.nodes.items() if name != old and (name == new.name or at == new.address)]
    if taken or not listed.settled:
        why = f"{taken[0]} has the name or the address of {new.name}" if taken else "another change is not finished"
        raise Error(
            f"{new.name} cannot take the place of {old}: {why}", host=host.name, code="MembersDiffer",
            hint="run `kubeadm-registry status`; finish what was begun with `init`",
        )  # fmt: skip


def last(host: Host) -> Work | None:
    """What *host* does or did last; None if that is not known. Raises NewerFormat."""
    content = host.read(replacing.WORK)
    try:
        return None if content is None else Work.of(replacing.WORKED.parse(content).values)
    except (Damaged, AttributeError, KeyError, TypeError, ValueError):
        return None
