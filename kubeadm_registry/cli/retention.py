"""``retention plan | forget``, and what the other commands of retention share."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from kubeadm_registry.access.executor import on_hosts, pulls
from kubeadm_registry.access.retention_records import record_writer
from kubeadm_registry.bundle.lists import names_in, told_in
from kubeadm_registry.cli import retention_timer, terminal
from kubeadm_registry.cli.command import Context, command, file_option
from kubeadm_registry.cli.retention_records import Records, server_time
from kubeadm_registry.cli.tables import ago, columns, moment, wide_screen
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.report import Reporter, echo
from kubeadm_registry.errors import ConfigError, Error, Problem
from kubeadm_registry.formats import NewerFormat
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention import Plan, Refused, RegistryPolicy, Use, policy
from kubeadm_registry.retention.history import History
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.plan import silent
from kubeadm_registry.retention.pulls import Pulls
from kubeadm_registry.retention.standing import Spent, Standing
from kubeadm_registry.retention.trash import Trash
from kubeadm_registry.upkeep import clusters, planning, running, store
from kubeadm_registry.upkeep.clusters import ClusterReport
from kubeadm_registry.upkeep.kubeconfig import by_kubeconfig

DEFAULT_POLICY = Path("policy.yaml")
#: Deletions that are listed one by one unless all are asked for.
SHOWN = 20
_DAY = 86400


@click.group("retention", short_help="Delete images by a policy, never one in use")
def group() -> None:
    """Delete images by a policy, and never one that is in use. What was deleted can be restored."""


def look_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say by which policy, and what is in use."""
    for option in reversed(
        (
            click.option(
                "--policy", "policy_file", type=click.Path(path_type=Path), default=DEFAULT_POLICY, show_default=True,
                help="Policy file, a RegistryPolicy.",
            ),
            click.option(
                "--kubeconfig", "kubeconfigs", metavar="FILE", multiple=True, type=click.Path(path_type=Path),
                help="Ask this Kubernetes cluster what it uses. May be repeated, once for each cluster that uses the "
                "registry.",
            ),
            click.option(
                "--in-use", "lists", metavar="FILE", multiple=True, type=click.Path(path_type=Path),
                help="Keep the images in a list with one name per line, or in Kubernetes manifests. May be repeated.",
            ),
            click.option(
                "--no-cluster", is_flag=True, help="No Kubernetes cluster uses the registry, so none is queried."
            ),
            click.option(
                "--accept", "accepted", metavar="REASON", multiple=True,
                help="Plan despite this reason, as its hint spells it, such as UsesShrank=12. May be repeated.",
            ),
        )
    ):  # fmt: skip
        function = option(function)
    return function


#: Those options, where none of them is given.
_NOTHING_ASKED = {"policy_file": DEFAULT_POLICY, "kubeconfigs": (), "lists": (), "no_cluster": False, "accepted": ()}


@dataclass(frozen=True, slots=True)
class Asked:
    """What those options said: the policy, what is in use, and which clusters say more when a plan is made."""

    rules: RegistryPolicy
    uses: tuple[Use, ...]
    kubeconfigs: tuple[Path, ...]
    no_cluster: bool
    accepted: tuple[str, ...]

    @classmethod
    def of(
        cls, policy_file: Path, kubeconfigs: tuple[Path, ...], lists: tuple[Path, ...], no_cluster: bool,
        accepted: tuple[str, ...],
    ) -> Asked:  # fmt: skip
        """Read the files. Raises ConfigError."""
        uses = tuple(
            Use(name, users=(str(file),)) for file in lists for name in sorted({*names_in(file), *told_in(file)})
        )
        return cls(policy.load(policy_file), uses, kubeconfigs, no_cluster, accepted)

    def _pulls(self, cluster: Cluster, reporter: Reporter) -> Pulls:
        """What the nodes recorded of pulls; a warning for each that cannot say, if the policy asks for all of it."""

        def note(text: str) -> None:
            if self.rules.asks_for_pulls:
                reporter.note(f"pulls are not known, so pulledWithin keeps everything: {text}", level="warning")

        # A member that the file does not list serves pulls as well.
        listed = cluster.recorded.nodes if cluster.recorded is not None else {}
        return pulls(on_hosts(cluster), len({node.name for node in cluster.spec.nodes} | listed.keys()), note)

    def plan(self, cluster: Cluster, connect: Connect, reporter: Reporter) -> tuple[planning.Look, Plan]:
        """Ask the clusters, look at the registry, and make the plan. Raises Error (WorkloadsUnknown, PlanRefused)."""
        # The plan is as old as what is known of workloads, however long somebody was asked for a passphrase before.
        now = server_time(cluster)
        reports = _reports(self.kubeconfigs, self.rules)
        for name, report in reports.items():
            for unmatched in report.unmatched:
                reporter.note(f"{name}: spec.imagePaths finds no image: {unmatched}", level="warning")
        sets = clusters.kubeadm_sets([cluster.spec.kubernetes.version, *(one.version for one in reports.values())])
        found = planning.look(
            connect,
            cluster.secrets.retention_key,
            self.rules,
            now,
            reports=reports,
            uses=self.uses,
            sets=sets,
            accepted=self.accepted,
            pulls=partial(self._pulls, cluster, reporter),
            pause=cluster.spec.containerd.sandbox_image,
        )
        if not (found.after.clusters or reports or self.uses or self.no_cluster):
            raise Error(
                "it is not known which images are in use: no Kubernetes cluster was given",
                hint="pass --kubeconfig for each cluster that uses the registry, --in-use with a list of images, or "
                "--no-cluster if no cluster uses it",
                code="WorkloadsUnknown",
            )
        made = found.plan(self.rules, accepted=self.accepted)
        if isinstance(made, Refused):
            for reason in made.reasons:
                reporter.problem(Problem(reason.code, "", f"{reason.message}; {reason.hint}"))
            raise Error(
                f"there is no plan, for {counted(len(made.reasons), 'reason')}; nothing may be deleted",
                hint="remove the reasons listed above, then run it again", code="PlanRefused",
            )  # fmt: skip
        for idle in self.rules.spec.idle(found.holdings.repositories):
            reporter.note(idle, level="warning")
        for one in silent(found.after, {report.uid for report in reports.values()}):
            reporter.note(
                f"cluster {one.name} reported {ago(now - one.reported)}; what it used then is kept", level="warning"
            )
        return found, made


group.add_command(retention_timer.group)


@command("plan", parent=group, short_help="Show which images a policy would delete")
@file_option
@look_options
@click.option(
    "--digest",
    metavar="DIGEST",
    help="Show the plan with this digest instead of making one: the newest of this command, the timer or the operator.",
)
@click.option("--all", "everything", is_flag=True, help=f"List every deletion, not only the largest {SHOWN}.")
def plan_command(context: Context, path: Path | None, digest: str | None, everything: bool, **options: Any) -> None:
    """Show which images the policy would delete, and why. Deletes nothing.

    The plan needs to know since when an image has been there. That is remembered in the registry, from one plan to the
    next: an image that this run sees for the first time was first seen now. The plan is kept there as well, so that it
    can be approved.

    With --digest, such a plan is read again: that of the operator has its digest in the status of its object, and
    twelve digits are enough.

    Exits with code 1 if there can be no plan, because something that may be in use is not known.
    """
    reporter = context.reporter()
    if digest is not None:
        if options != _NOTHING_ASKED:
            raise ConfigError(
                "--digest shows a plan that was made before; it cannot be used with options that make one",
                hint="leave out --policy, --kubeconfig, --in-use, --no-cluster and --accept, or --digest",
                code="UsageInvalid",
            )
        with terminal.registry(path, reporter) as (cluster, connect, _), connect() as registry:
            made = running.find(registry, cluster.secrets.retention_key, digest)
    else:
        asked = Asked.of(**options)
        with terminal.registry(path, reporter) as (cluster, connect, _):
            _, made = asked.plan(cluster, connect, reporter)
            _keep(cluster, made, reporter)
    if context.output == "json":
        echo(json.dumps(made.to_dict()))
        return
    show(made, most=sys.maxsize if everything else SHOWN)
    for reason in made.needs_approval:
        reporter.note(f"{reason.message}: such a plan always needs an approval", level="warning")
    gone, kept = made.images
    done = "nothing was deleted" if digest is None else f"made {moment(made.made)} UTC by the policy {made.policy}"
    reporter.result(
        f"plan {made.digest}: deletes {gone} of {counted(gone + kept, 'image')}, frees "
        f"{made.freed / 1e6:.1f} MB; {done}"
    )


def _keep(cluster: Cluster, made: Plan, reporter: Reporter) -> None:
    """Keep the plan in the registry, for an approval."""
    try:
        with record_writer(cluster)() as registry:
            running.keep(registry, cluster.secrets.retention_key, made)
    except Error as error:
        reporter.note(f"this plan cannot be approved: {error.message}", level="warning")


def _reports(kubeconfigs: Sequence[Path], rules: RegistryPolicy) -> dict[str, ClusterReport]:
    """What clusters say, by the addresses of their servers; if several have the same, as behind proxies, by the files
    as well."""
    found = dict[str, ClusterReport]()
    for file in kubeconfigs:
        name, report = _report(file, rules)
        found[f"{name} ({file})" if name in found else name] = report
    return found


def _report(kubeconfig: Path, rules: RegistryPolicy) -> tuple[str, ClusterReport]:
    """The name of a cluster, and what it says, also by the paths in *rules*."""
    api = by_kubeconfig(kubeconfig)
    return urlsplit(api.server).netloc, clusters.read(api, paths=[one.pair for one in rules.spec.image_paths])


def show(made: Plan, *, most: int, err: bool = False) -> None:
    """Print what *made* deletes: sums, and the *most* largest deletions; with *err* to standard error."""
    console = wide_screen(err=err)
    table = columns("REPOSITORY")
    for title in ("KEPT", "DELETED", "FREED"):
        table.add_column(title, overflow="fold", justify="right")
    kept = Counter(one.repository for one in made.kept)
    gone = Counter(repository for repository, _ in {(one.repository, one.digest) for one in made.deletions})
    freed: Counter[str] = Counter()
    for one in made.deletions:
        freed[one.repository] += one.freed
    for name in sorted(gone):
        table.add_row(name, str(kept[name]), str(gone[name]), f"{freed[name] / 1e6:.1f} MB")
    if gone:
        console.print(table)
    largest = sorted(made.deletions, key=lambda one: (-one.freed, one.key))
    for one in sorted(largest[:most], key=lambda one: one.key):
        where = f"{one.repository}:{one.tag}" if one.tag else f"{one.repository}@{one.digest[:19]}"
        console.print(f"delete {where}  {one.why}; first seen {one.age // _DAY} days ago, {one.size / 1e6:.1f} MB")
    if len(largest) > most:
        console.print(f"and {len(largest) - most} more, smaller ones; --all lists them")


#: What each record is, for people, and what an empty one is written as.
_RECORDS = {
    "ledger": ("the ledger, with the ages of all images", store.LEDGER, Ledger),
    "trash": ("what is in the trash, so that none of it can be restored", store.TRASH, Trash),
    "standing": ("all pins and approvals", store.STANDING, Standing),
    "history": ("what retention has done", store.HISTORY, History),
}


@command("forget", parent=group, short_help="Forget a deleted cluster or a record")
@file_option
@click.option("--ledger", "records", flag_value="ledger", help="Start a new ledger, even if it is damaged.")
@click.option("--trash", "records", flag_value="trash", help="Start a new record of the trash; images keep trash tags.")
@click.option("--standing", "records", flag_value="standing", help="Start a new record of pins and approvals.")
@click.option("--history", "records", flag_value="history", help="Start a new history.")
@click.option("--yes", is_flag=True, help="Do not prompt for confirmation.")
@click.argument("name", required=False)
def forget(context: Context, path: Path | None, records: str | None, yes: bool, name: str | None) -> None:
    """Forget the deleted cluster NAME: images that it used last are no longer kept for it.

    With --ledger, discard all ages: the next plan counts each image as first seen then. Each of the other options
    replaces that record by an empty one. With --standing, a pause of retention remains.
    """
    if (records is None) == (name is None):
        raise ConfigError(
            "pass either a cluster NAME or one of --ledger, --trash, --standing, --history", code="UsageInvalid"
        )
    reporter = context.reporter()
    what, record, empty = _RECORDS[records or "ledger"]
    if not yes and sys.stdin.isatty():
        click.confirm(f"Forget {what if records else f'the cluster {name}'}?", abort=True, err=True)
    with terminal.registry(path, reporter) as (cluster, connect, _):
        key = cluster.secrets.retention_key
        # Who looks writes the ledger, and nobody but the executor's login the others.
        with (connect if record is store.LEDGER else record_writer(cluster))() as registry:
            if records is None:
                content = _without(retry(lambda: store.read(registry, key), store.PATIENCE), name).to_json()
            elif record is store.STANDING:
                Records(cluster, registry, key, server_time(cluster)).alone()
                anew = _still_paused(registry, key)
                if anew.paused is not None:
                    reporter.note(f"retention stays paused: {anew.why}; `retention resume` ends that", level="warning")
                content = anew.to_json()
            else:
                content = empty().to_json()
            retry(lambda: record.write(registry, key, content), store.PATIENCE)
            if record is store.STANDING and records is not None:
                store.SPENT.write(registry, key, Spent().to_json())
    reporter.result(f"forgot {what}" if records else f"forgot the cluster {name}")


def _still_paused(registry: Api, key: str) -> Standing:
    """A new record of pins and approvals, by which retention is paused if it is now: `recover` may have done that."""
    try:
        said = retry(lambda: store.read_said(registry, key), store.PATIENCE)
    except Error as error:
        if error.code not in (store.STANDING.code, NewerFormat.code):
            raise
        return Standing()
    return Standing(paused=said.paused, why=said.why)


def _without(ledger: Ledger, name: str | None) -> Ledger:
    found = [uid for uid, one in ledger.clusters.items() if name in (one.name, uid)]
    if len(found) != 1:
        raise ConfigError(
            f"{'no' if not found else 'more than one'} cluster {name} ever reported",
            hint=f"choose one of: {_listed(ledger)}" if ledger.clusters else "no cluster ever reported",
            code="ClusterUnknown",
        )  # fmt: skip
    return ledger.forgotten(found[0])


def _listed(ledger: Ledger) -> str:
    pairs: Sequence[tuple[str, str]] = sorted((one.name, uid) for uid, one in ledger.clusters.items())
    return ", ".join(f"{name} ({uid})" for name, uid in pairs)
