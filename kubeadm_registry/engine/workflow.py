"""The engine: brings a cluster to the state that a workflow describes, or says what differs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from threading import Event

from kubeadm_registry import paths, whoami
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.look import Look, look
from kubeadm_registry.engine.memory import remembering
from kubeadm_registry.engine.phase import Check, Phase, Workflow, require_checks, select
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.errors import (
    ConnectionFailed,
    Error,
    HostBusy,
    NotYetKnown,
    PhaseFailed,
    PreflightFailed,
    Problem,
)
from kubeadm_registry.transport.host import UNFINISHED, Host, side_by_side


def run(
    workflow: Workflow,
    cluster: Cluster,
    reporter: Reporter,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    ignore: Sequence[str] = (),
    dry_run: bool = False,
    headings: bool = True,
) -> list[Action]:
    """Bring *cluster* to the state that *workflow* describes; return what differed.

    All checks of the selected phases run first, on all hosts; nothing is changed if one that is not in *ignore* finds a
    problem. In a *dry_run* the hosts refuse changes, and differences are only reported. Without *headings* the phases
    are not announced, as for a run that is one of many in parallel.

    Raises ConfigError (a phase or check does not exist), HostBusy, PreflightFailed, PhaseFailed.
    """
    selected = select(workflow, only, skip)
    require_checks(workflow, ignore)
    cluster = replace(cluster, progress=reporter.progress)
    if dry_run:
        cluster = cluster.for_dry_run()
    else:
        take_locks(cluster.everyone)
    unchanged = remembering(cluster)
    preflight(selected, unchanged, reporter, ignore=ignore)
    if not dry_run:
        sweep(cluster.everyone)
    # Before secrets exist everything would differ, so comparing in advance is of no use. A run that does not read the
    # secrets, as one that only restarts services, looks the same here.
    first = not cluster.vault.made
    seen = Look(0, {}) if first else look(selected, unchanged)
    actions: list[Action] = []
    given_up: set[Host] = set()
    for place, (path, phase) in enumerate(selected):
        if phase.steps is None:
            continue
        if headings:
            reporter.phase(path, phase.summary)
        if place < seen.settled:
            for host in cluster.everyone:
                for text in seen.notices.get((place, host.name), ()):
                    reporter.note(text, host=host.name)
        else:
            in_turn = phase.one_at_a_time and not (first and phase.first_at_once) and not dry_run
            given_up |= _run_phase(
                path, phase, cluster, reporter, dry_run=dry_run, actions=actions, but=given_up, in_turn=in_turn
            )
    if not dry_run:
        changed = {action.host for action in actions}
        flush(cluster, [host for host in cluster.everyone if host.name in changed and host not in given_up])
    return actions


#: Flushes the file systems of the directories ``$@`` only: others may hang.
_FLUSH = 'for directory; do [ ! -d "$directory" ] || sync -f -- "$directory"; done'


def flush(cluster: Cluster, hosts: Sequence[Host]) -> None:
    """Flush what programs wrote themselves, on all *hosts* in parallel, so that a completed run survives a power cut.

    Garage flushes none of its small files, and does not start when it finds an empty one in place of its marker.
    Source: garage_util/persister.rs and garage_block/layout.rs, check_markers, of Garage 2.3.
    """
    directories = (paths.ETC, paths.OPT, cluster.spec.data_directory)
    side_by_side(lambda host: host.run("sh", "-c", _FLUSH, "flush", *directories, timeout=120), hosts)


#: Removes unfinished files below the directories ``$@``, without crossing file systems: others may hang.
_SWEEP = f"""
for directory; do
  [ ! -d "$directory" ] || find "$directory" -xdev -type f -name '.*.??????????{UNFINISHED}*' -delete
done
:
"""


def sweep(hosts: Sequence[Host]) -> None:
    """Remove unfinished files of runs that were killed, or whose host lost power, from all *hosts* in parallel.

    Call it under the lock only: the files of a run in progress look the same. In other directories, such as another
    configuration directory of containerd, the next write removes them.
    """
    side_by_side(lambda host: host.run("sh", "-c", _SWEEP, "sweep", "/etc", paths.OPT), hosts)


def take_locks(hosts: Sequence[Host]) -> None:
    """Lock every host for this run, until its connection ends. Raises HostBusy, which names the other run."""
    who = f"{whoami.name()}@{socket.gethostname()} pid {os.getpid()}"
    # One after another in the same order, whatever that of the file, so that two runs that start together cannot each
    # lock some hosts.
    for host in sorted(hosts, key=lambda one: one.name):
        holder = host.transport.lock(who)
        if holder is not None:
            raise HostBusy(
                f"locked by another run: {holder}", host=host.name,
                hint="wait until it is done; if its connection hangs, kill the process with that id on the node",
            )  # fmt: skip


#: How many checks run in parallel on one host.
AT_ONCE = 8


def preflight(
    selected: Sequence[tuple[str, Phase]], cluster: Cluster, reporter: Reporter, *, ignore: Sequence[str] = ()
) -> list[Problem]:
    """Run each check of the *selected* phases once on each of its hosts, in parallel. Raises PreflightFailed."""
    # Not by name: a change of members has two checks of one name, for nodes that leave and for the others.
    checks = dict.fromkeys(check for _, phase in selected for check in phase.checks)
    jobs = [(host, check) for host in cluster.everyone for check in checks if host in check.on(cluster)]

    def ask(job: tuple[Host, Check]) -> list[str] | None:
        host, check = job
        try:
            return list(check.probe(cluster, host))
        except NotYetKnown:
            return None
        except ConnectionFailed:
            raise
        except Error as error:
            # A check that cannot be completed is a problem by itself; the others continue. It may have asked all nodes.
            return [error.advice if error.host in ("", host.name) else f"{error.host}: {error.advice}"]

    found: dict[tuple[str, Check], list[str] | None] = {}
    for turn in ([job for job in jobs if not job[1].alone], [job for job in jobs if job[1].alone]):
        answers = side_by_side(ask, turn, at_most=AT_ONCE * len(cluster.everyone))
        found |= {(host.name, check): texts for (host, check), texts in zip(turn, answers, strict=True)}
    problems = []
    for host, check in jobs:
        texts = found[host.name, check]
        if texts is None:
            continue
        reporter.check(host.name, check.name, ok=not texts)
        ignored = not check.mandatory and (check.name in ignore or "all" in ignore)
        problems += [Problem(check.name, host.name, text, ignored, check.mandatory) for text in texts]
    for problem in problems:
        reporter.problem(problem)
    if any(not problem.ignored for problem in problems):
        raise PreflightFailed(problems)
    return problems


def _run_phase(
    path: str, phase: Phase, cluster: Cluster, reporter: Reporter, *, dry_run: bool, actions: list[Action],
    but: Collection[Host], in_turn: bool,
) -> set[Host]:  # fmt: skip
    """Run one phase and return the hosts that it gives up. If it may give up hosts, it skips those in *but*."""
    hosts = [host for host in phase.on(cluster) if not (phase.gives_up and host in but)]

    stopping = Event()

    def interrupted() -> None:
        stopping.set()
        reporter.note(
            "interrupted: completing changes in progress; press Ctrl-C again to stop immediately", level="warning"
        )

    def work(host: Host) -> PhaseFailed | None:
        try:
            _run_host(path, phase, cluster, host, reporter, dry_run=dry_run, actions=actions, stopping=stopping)
        except PhaseFailed as error:
            return error
        return None

    if in_turn:
        # Most runs change little, so only hosts with differences are visited one at a time.
        differs = side_by_side(lambda host: _differs(phase, cluster, host), hosts)
        failures: list[PhaseFailed] = []
        for host in (host for host, turn in zip(hosts, differs, strict=True) if turn):
            if (failure := work(host)) is not None:
                failures.append(failure)
                if not phase.gives_up:
                    break
    else:
        failures = [failure for failure in side_by_side(work, hosts, interrupted=interrupted) if failure]
    if failures and not phase.gives_up:
        for failure in failures[1:]:
            reporter.note(f"also failed: {failure.message}", host=failure.host, level="warning")
        raise failures[0]
    for failure in failures:
        reporter.note(f"{failure.message}; {phase.gives_up}", host=failure.host, level="warning")
    failed = {failure.host for failure in failures}
    given_up = {host for host in hosts if host.name in failed}
    _tell(phase, cluster, [host for host in hosts if host not in given_up], reporter)
    return given_up


def _tell(phase: Phase, cluster: Cluster, hosts: Sequence[Host], reporter: Reporter) -> None:
    if phase.notices is None:
        return
    for host in hosts:
        try:
            for text in phase.notices(cluster, host):
                reporter.note(text, host=host.name)
        except NotYetKnown:
            continue


def _differs(phase: Phase, cluster: Cluster, host: Host) -> bool:
    """Whether *phase* would change anything on *host*; also true if it cannot be determined."""
    try:
        return any(change.diff(host) is not None for change in phase.changes(cluster, host.as_read_only()))
    except Error:
        return True


def _run_host(
    path: str, phase: Phase, cluster: Cluster, host: Host, reporter: Reporter, *, dry_run: bool, actions: list[Action],
    stopping: Event,
) -> None:  # fmt: skip
    """Apply what differs on *host*, one change after another, until *stopping* is set."""
    title = ""
    try:
        for change in phase.changes(cluster, host):
            if stopping.is_set():
                return
            title = change.title
            difference = change.diff(host)
            if difference is None:
                continue
            action = Action(path, host.name, title, cluster.vault.preview().redact(difference))
            actions.append(action)
            reporter.action(action, dry_run=dry_run)
            if dry_run:
                continue
            begin = time.monotonic()
            change.apply(host)
            remaining = change.diff(host)
            if remaining is not None:
                raise Error(f"still differs after it was applied: {remaining}", host=host.name, code="NotConverged")
            reporter.done(action, time.monotonic() - begin)
            title = ""
    except Error as error:
        # The error may contain output of other programs, which may quote secrets that they were given. So may what led
        # to it, which --debug shows too.
        redact = cluster.vault.preview().redact
        one: BaseException | None = error
        while one is not None:
            if isinstance(one, Error):
                one.message, one.hint = redact(one.message), redact(one.hint)
            one = one.__cause__ or one.__context__
        if not (dry_run and isinstance(error, NotYetKnown)):
            raise PhaseFailed(path, error, host=host.name, change=title) from error
        reporter.deferred(path, host.name, error.message)
