"""The commands. Each one builds its arguments, calls the library once, and reports."""

from __future__ import annotations

import errno
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Any, NoReturn, cast

import click
from click.core import ParameterSource

from kubeadm_registry import __version__, config
from kubeadm_registry.cli import session, standard
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.disk import refusal
from kubeadm_registry.engine.report import STANDARD_OUTPUT, Console, JsonLines, Reporter, put
from kubeadm_registry.engine.workflow import Workflow, leaves, preflight, require_checks, run, select
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.phases.workflows import INIT, PREFLIGHT_ONLY, RESET, VERIFY_ONLY
from kubeadm_registry.printable import printable

EXIT_DEGRADED = 5
EXIT_INTERRUPTED = 130


@dataclass
class Context:
    """What the options that every command takes have said."""

    debug: bool = False
    output: str = "text"
    diffs: bool = False
    _reporter: Reporter | None = None

    def reporter(self) -> Reporter:
        """How this run is shown: one for the whole of it, so that an error ends the live line too."""
        if self._reporter is None:
            self._reporter = JsonLines() if self.output == "json" else Console(diffs=self.diffs)
        return self._reporter


def phase_table(workflow: Workflow) -> str:
    """The phases of *workflow* with their summaries, as help shows them; generated, so it cannot lie."""
    rows = [("  " * path.count("/") + path, phase.summary) for path, phase in leaves(workflow)]
    width = max(len(name) for name, _ in rows)
    return "\b\nPhases, in this order:\n" + "\n".join(f"  {name:<{width}}  {summary}" for name, summary in rows)


def command(
    group: click.Group, name: str, *, help_after: str = "", short: bool = True, **attributes: Any
) -> Callable[[Callable[..., None]], click.Command]:
    """A command of *group* that takes -o and --debug, and whose errors become exit codes."""

    def wrap(function: Callable[..., None]) -> click.Command:
        def call(*arguments: Any, **options: Any) -> None:
            options = given_above(options)
            context = Context(options.pop("debug"), options.pop("output"), options.pop("diff", False))
            guarded(context, lambda: function(context, *arguments, **options))

        update_wrapper(call, function)
        text = inspect.cleandoc(function.__doc__ or "") + (f"\n\n{help_after}" if help_after else "")
        decorated = click.option("--debug", is_flag=True, help="Show a traceback when something fails.")(call)
        # `bundle create -o FILE` names its file so; there the format has only its long name.
        flags = ("-o", "--output") if short else ("--format", "output")
        decorated = click.option(
            *flags, type=click.Choice(["text", "json"]), default="text", show_default=True,
            help="text for people; json: one JSON object a line, the last one the result or the error.",
        )(decorated)  # fmt: skip
        return group.command(name, help=text, **attributes)(decorated)

    return wrap


def given_above(options: dict[str, Any]) -> dict[str, Any]:
    """*options* of a subcommand, with those that stand before its name: ``init --dry-run phase vip`` is a dry run."""
    context = click.get_current_context()
    above = context.parent
    if above is None:
        return options
    absent = [name for name in options if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE]
    given = [name for name in absent if above.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return options | {name: above.params[name] for name in given}


def guarded(context: Context, work: Callable[[], None]) -> None:
    """Do *work*; turn what it raises into a report and an exit code (see docs/reference.md)."""
    reporter = context.reporter()
    try:
        work()
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nothing is left to say to it.
        let_go_of_output()
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        told, code = meaning(error)
        if context.debug and told.code == "Bug":
            raise
        tell(reporter, told)
        if context.debug and isinstance(error, Error | OSError):
            raise
        sys.exit(code)


def meaning(error: BaseException) -> tuple[Error, int]:
    """What users are told of *error*, and the exit code."""
    if isinstance(error, Error):
        return error, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        hint = "run it again: it goes on where it stopped"
        return Error("interrupted", hint=hint, code="Interrupted"), EXIT_INTERRUPTED
    if isinstance(error, click.Abort):
        return Error("not confirmed; nothing was changed", hint="answer y, or give --yes", code="Aborted"), 1
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, "")
    if isinstance(error, OSError) and (refused := refusal(error)) is not None:
        return refused, refused.exit_code
    text = f"unexpected {type(error).__name__}: {error}"
    return Error(text, hint="run it again with --debug, and report what it shows", code="Bug"), 1


def tell(reporter: Reporter, error: Error) -> None:
    """Report *error*; on standard error where standard output cannot be written to."""
    try:
        reporter.error(error)
    except OSError:
        click.echo(f"error [{error.code}] {printable(str(error))}", err=True)
    let_go_of_output()


def let_go_of_output() -> None:
    """What cannot be written to standard output is not tried again when the program ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


file_option = click.option(
    "-f", "--file", "path", type=click.Path(path_type=Path), help="The cluster file.  [default: ./cluster.yaml]"
)
bundle_option = click.option(
    "--bundle", type=click.Path(path_type=Path),
    help="The bundle with the programs.  [default: ./kubeadm-registry-bundle.tar if it is there, else what the "
    "servers have already]",
)  # fmt: skip
key_option = click.option(
    "--key", type=click.Path(path_type=Path), envvar=session.BUNDLE_KEY,
    help="Use the bundle only if this SSH key signed it: a public key, or a file of allowed signers.  "
    f"[env: {session.BUNDLE_KEY}]",
)  # fmt: skip
ignore_option = click.option(
    "--ignore-preflight-errors", "ignore", metavar="NAMES", default="",
    help="Checks whose problems do not stop the run, separated by commas; 'all' for every one.",
)  # fmt: skip
skip_option = click.option(
    "--skip-phases", "skip", metavar="NAMES", default="", help="Phases to leave out, separated by commas."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would change on each server; touch nothing.")
diff_option = click.option("--diff", is_flag=True, help="Show what differs with each change. Secrets are masked.")


def names(text: str) -> tuple[str, ...]:
    """A comma-separated option as its parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Program(click.Group):
    """The group of all commands. A wrong command line is told as JSON where JSON was asked for."""

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> NoReturn:
        """Run, and exit. See click.BaseCommand.main."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(words, *arguments, **(options | {"standalone_mode": False}))
        except click.ClickException as error:
            if {"json", "-ojson", "--output=json", "--format=json"} & {*words}:
                wrong = ConfigError(error.format_message(), hint="see --help of that command", code="UsageInvalid")
                tell(JsonLines(), wrong)
            else:
                error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Aborted!", err=True)
            sys.exit(1)
        except OSError as error:  # --help and --version, which no command guards
            error.filename = STANDARD_OUTPUT
            told, code = meaning(error)
            click.echo(f"error [{told.code}] {printable(str(told))}", err=True)
            let_go_of_output()
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kubeadm-registry")
def cli() -> None:
    """A highly available container registry for bare-metal Kubernetes, there before the cluster is.

    \b
    First run:
      kubeadm-registry bundle create --program garage=PATH   # on a machine with internet
      kubeadm-registry preflight && kubeadm-registry init    # in the room, with ./cluster.yaml

    \b
    Exit codes: 0 done or nothing to do, 1 failed, 2 wrong file or command line (nothing was contacted),
    3 preflight found problems (nothing was changed), 4 a host cannot be reached or trusted, 5 done but degraded.
    """


def _run(
    context: Context, workflow: Workflow, path: Path | None, bundle: Path | None, *, key: Path | None = None,
    dry_run: bool = False,
    only: tuple[str, ...] = (), skip: tuple[str, ...] = (), ignore: tuple[str, ...] = (), need_programs: bool = True,
    may_miss: bool = False,
) -> None:  # fmt: skip
    reporter = context.reporter()
    cluster_file = config.load(path)
    # What the command line says is judged before any server is contacted.
    select(workflow, only, skip)
    require_checks(workflow, ignore)
    with session.cluster(cluster_file, reporter, bundle=bundle, key=key, may_miss=may_miss) as cluster:
        for name, why in cluster.absent.items():
            reporter.note(f"{why}; going on with the others, which cannot lose another server now", host=name)
        if need_programs:
            require_programs(cluster)
        actions = run(workflow, cluster, reporter, only=only, skip=skip, ignore=ignore, dry_run=dry_run)
    changed = len(actions)
    hosts = len({action.host for action in actions})
    if not changed:
        summary = "nothing to do"
    else:
        verb = "would change" if dry_run else "changed"
        summary = (
            f"{changed} {'thing' if changed == 1 else 'things'} {verb} on {hosts} {'host' if hosts == 1 else 'hosts'}"
        )
    phases = list(dict.fromkeys(action.phase for action in actions))
    for name in cluster.absent:
        what = f"{', '.join(phases)}, and what else" if phases else "what"
        reporter.note(f"owed: {what} changed since it was last reached; run init again when it is back", host=name)
    owed = {name: {"reason": why, "phases": phases} for name, why in cluster.absent.items()}
    reporter.result(summary, changed=changed, dryRun=dry_run, owed=owed)
    if cluster.absent:
        sys.exit(EXIT_DEGRADED)


def require_programs(cluster: Cluster) -> None:
    """Every program that the file needs is in the bundle or on the hosts. Raises Error (ProgramMissing)."""
    for name in session.wanted(cluster.config):
        if name != "python":
            cluster.program(name)


@command(cli, "init", help_after=phase_table(INIT), cls=click.Group, invoke_without_command=True)
@file_option
@bundle_option
@key_option
@dry_run_option
@diff_option
@ignore_option
@skip_option
def init(
    context: Context, path: Path | None, bundle: Path | None, key: Path | None, dry_run: bool, ignore: str, skip: str
) -> None:
    """Make the registry on the servers of the cluster file, or bring it to what the file says.

    Run it again at any time: what is right already is left alone, an interrupted run is made up, and a second run
    says "nothing to do".

    When a server of a registry that exists cannot be reached, the others are brought to what the file says, and the
    exit code is 5: run it again when the server is back. More than half of the servers must answer.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    _run(context, INIT, path, bundle, key=key, dry_run=dry_run, skip=names(skip), ignore=names(ignore), may_miss=True)


@command(cast(click.Group, init), "phase", help_after=phase_table(INIT))
@click.argument("phase", metavar="NAME[/SUB]")
@file_option
@bundle_option
@key_option
@dry_run_option
@diff_option
@ignore_option
@skip_option
def init_phase(
    context: Context, phase: str, path: Path | None, bundle: Path | None, key: Path | None, dry_run: bool,
    ignore: str, skip: str,
) -> None:  # fmt: skip
    """Run one phase of init, with the phases below it."""
    _run(
        context, INIT, path, bundle, key=key,
        dry_run=dry_run, only=(phase,), skip=names(skip), ignore=names(ignore), may_miss=True,
    )  # fmt: skip


@command(cli, "preflight")
@file_option
@bundle_option
@key_option
@ignore_option
def preflight_command(context: Context, path: Path | None, bundle: Path | None, key: Path | None, ignore: str) -> None:
    """Check that nothing stands in the way of init, on every server. Exit code 3 if something does."""
    reporter = context.reporter()
    cluster_file = config.load(path)
    require_checks(INIT, names(ignore))
    with session.cluster(cluster_file, reporter, bundle=bundle, key=key) as cluster:
        require_programs(cluster)
        problems = preflight(select(INIT), cluster, reporter, ignore=names(ignore))
        run(PREFLIGHT_ONLY, cluster, reporter)
        count = len(cluster.hosts)
    suffix = f", {len(problems)} problems ignored" if problems else ""
    reporter.result(
        f"{count} {'host is' if count == 1 else 'hosts are'} ready for init{suffix}", problems=len(problems)
    )


@command(cli, "verify")
@file_option
def verify(context: Context, path: Path | None) -> None:
    """Prove that the registry works: push a small image, pull it by digest through every server and the VIP."""
    _run(context, VERIFY_ONLY, path, None)


@command(cli, "reset", help_after=phase_table(RESET))
@file_option
@click.option("--purge-data", is_flag=True, help="Delete the images and all secrets as well.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@diff_option
@ignore_option
def reset(context: Context, path: Path | None, purge_data: bool, yes: bool, dry_run: bool, ignore: str) -> None:
    """Take everything of ours off the servers again; containerd's files come back as they were.

    Image data stays in spec.dataDirectory, and a later init finds it again, unless --purge-data is given.
    """
    cluster_file = config.load(path)
    if not (yes or dry_run or not sys.stdin.isatty()):
        where = ", ".join(node.name for node in cluster_file.spec.nodes)
        what = "the registry AND ALL ITS IMAGES" if purge_data else "the registry (its images stay)"
        click.confirm(f"Remove {what} from {where}?", abort=True)
    skip = () if purge_data else ("data",)
    _run(context, RESET, path, None, dry_run=dry_run, skip=skip, ignore=names(ignore), need_programs=False)


# ---- reading what the cluster has -------------------------------------------------------------------------------


@command(cli, "credentials")
@file_option
@click.option(
    "--role", type=click.Choice(["push", "pull"]), default="push", show_default=True, help="Whose login to show."
)
def credentials(context: Context, path: Path | None, role: str) -> None:
    """Show user and password of a role: what `podman login` and `skopeo login` need."""
    secrets = session.secrets(config.load(path), context.reporter())
    password = secrets.password(role)
    if context.output == "json":
        put(json.dumps({"username": role, "password": password}) + "\n")
    else:
        put(f"username: {role}\npassword: {password}\n")


@command(cli, "ca")
@file_option
def ca(context: Context, path: Path | None) -> None:
    """Show the certificate of the cluster's authority, PEM: what clients must trust."""
    certificate = session.secrets(config.load(path), context.reporter()).ca_certificate
    put(json.dumps({"ca": certificate}) + "\n" if context.output == "json" else certificate)


def load_commands() -> Program:
    """The command line with all its commands: those of other modules register when they are imported."""
    from kubeadm_registry.cli import bundle, configuration, images, mirrors, rescue, seed, status  # noqa: F401, PLC0415

    return cli


def main() -> NoReturn:
    """Entry point of the program."""
    standard.complete()
    load_commands().main(prog_name="kubeadm-registry")
