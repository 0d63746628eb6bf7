"""What all commands share: options, how a run is shown, and how errors become exit codes."""

from __future__ import annotations

import errno
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from kubeadm_registry.cli import terminal
from kubeadm_registry.disk import refusal
from kubeadm_registry.engine.report import STANDARD_OUTPUT, Console, JsonLines, Reporter
from kubeadm_registry.engine.workflow import Workflow, leaves
from kubeadm_registry.errors import ConfigError, Error
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
    name: str,
    *,
    parent: click.Group | None = None,
    cls: type[click.Command] = click.Command,
    help_after: str = "",
    short: bool = True,
    **attributes: Any,
) -> Callable[[Callable[..., None]], click.Command]:
    """A command, of the group *parent* if there is one, that takes -o and --debug, and whose errors become exit codes.

    *help_after* stands below its help. The other *attributes* are those of click.
    """

    def wrap(function: Callable[..., None]) -> click.Command:
        def call(*arguments: Any, **options: Any) -> None:
            options = merge_group_options(options)
            context = Context(options.pop("debug"), options.pop("output"), options.pop("diff", False))
            exit_on_error(context, lambda: function(context, *arguments, **options))

        update_wrapper(call, function)
        text = inspect.cleandoc(function.__doc__ or "") + (f"\n\n{help_after}" if help_after else "")
        decorated = click.option("--debug", is_flag=True, help="Show a traceback when something fails.")(call)
        # `bundle create -o FILE` names its file so; there the format has only its long name.
        flags = ("-o", "--output") if short else ("--format", "output")
        decorated = click.option(
            *flags, type=click.Choice(["text", "json"]), default="text", show_default=True,
            help="text for people; json: one JSON object a line, the last one the result or the error.",
        )(decorated)  # fmt: skip
        made = click.command(name, cls, help=text, **attributes)(decorated)
        if parent is not None:
            parent.add_command(made)
        return made

    return wrap


def merge_group_options(options: dict[str, Any]) -> dict[str, Any]:
    """*options* of a subcommand, with those that stand before its name: ``init --dry-run phase vip`` is a dry run."""
    context = click.get_current_context()
    above = context.parent
    if above is None:
        return options
    absent = [name for name in options if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE]
    given = [name for name in absent if above.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return options | {name: above.params[name] for name in given}


def exit_on_error(context: Context, work: Callable[[], None]) -> None:
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
    "--key", type=click.Path(path_type=Path), envvar=terminal.BUNDLE_KEY,
    help="Use the bundle only if this SSH key signed it: a public key, or a file of allowed signers.  "
    f"[env: {terminal.BUNDLE_KEY}]",
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
