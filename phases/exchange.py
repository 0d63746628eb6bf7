"""Replaces secrets that two sides share, in stages; continues at the stage at which an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kubeadm_registry import rotation, secrets
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.phase import Workflow
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import PreflightFailed
from kubeadm_registry.transport.host import Host

Stages = Mapping[rotation.Stage, Workflow]
"""What brings the nodes to each stage; see ``rotation``."""
Others = Callable[[Cluster], None]
"""Has every other known host do what the secrets of the cluster say. Raises Error, which names those that do not."""


def exchange(
    kind: rotation.Kind, stages: Stages, cluster: Cluster, reporter: Reporter, others: Others, *, keep: bool = False,
    dry_run: bool = False,
) -> list[Action]:  # fmt: skip
    """Replace the secrets of that *kind* on all nodes; return what was changed there.

    *keep*: stop while both are accepted. A *dry_run* shows the first stage that changes a node. Raises what ``run`` and
    *others* do; the next run goes on from that stage.
    """
    if rotation.stage(cluster.secrets, kind) == "":
        if any(_ending(host, kind) for host in cluster.hosts):
            # A run died while it stored that it was done: to begin anew would replace them twice.
            reporter.note("an earlier run is completed; run the command again to begin another one")
            return run(stages[""], cluster, reporter, dry_run=dry_run)
        cluster = _next(cluster, kind)
    actions: list[Action] = []
    while True:
        stage = rotation.stage(cluster.secrets, kind)
        actions += go_on(actions, stages[stage], cluster, reporter, dry_run=dry_run)
        if stage == "":
            return actions
        others(cluster)
        if keep and stage != "remove":
            return actions
        if dry_run and actions:  # a stage that is done, as that of `--trust-only`, is not all that is to come
            reporter.note(f"this is the stage `{stage}`; a dry run does not show the stages after it")
            return actions
        cluster = _next(cluster, kind)


def go_on(
    done: Sequence[Action], workflow: Workflow, cluster: Cluster, reporter: Reporter, *, dry_run: bool = False
) -> list[Action]:
    """``run`` after other runs of a command have *done* something, which the message of PreflightFailed denies."""
    try:
        return run(workflow, cluster, reporter, dry_run=dry_run)
    except PreflightFailed as error:
        if not done:
            raise
        raise error.under_way() from error


def _ending(host: Host, kind: rotation.Kind) -> bool:
    """Whether a run died while it stored that it was done: *host* still has the stage before."""
    content = host.read(secrets.PATH)
    if content is None:
        return False
    return rotation.stage_in(secrets.FORMAT.parse(content).values.get("overlap", {}), kind) == "remove"


def _next(cluster: Cluster, kind: rotation.Kind) -> Cluster:
    left = bool(cluster.members.left)
    return cluster.with_secrets(rotation.advance(cluster.secrets, cluster.config.metadata.name, kind, left=left))
