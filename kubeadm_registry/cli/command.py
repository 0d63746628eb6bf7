"""What all commands share: options, how a run is shown, and how errors become exit codes."""

from __future__ import annotations

import errno
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from kubeadm_registry import __version__
from kubeadm_registry.disk import refusal
from kubeadm_registry.engine.console import Console
from kubeadm_registry.engine.logfile import Logged, log_to
from kubeadm_registry.engine.report import STANDARD_OUTPUT, JsonLines, Reporter
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.printable import printable
from kubeadm_registry.transport import commands

EXIT_DEGRADED = 5
EXIT_INTERRUPTED = 130
#: The variable that names a key, as --key does: for every command that reads a bundle.
BUNDLE_KEY = "KUBEADM_REGISTRY_BUNDLE_KEY"
#: The variable that names a log file, as --log-file does.
LOG_FILE = "KUBEADM_REGISTRY_LOG_FILE"


@dataclass
class Context:
    """What the options that every command takes have said."""

    debug: bool = False
    output: str = "text"
    diffs: bool = False
    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None
    _reporter: Reporter | None = None
    _log: JsonLines | None = None

    def reporter(self) -> Reporter:
        """How this run is shown: one for the whole of it, so that an error ends the live line too."""
        if self._reporter is None:
            if self.output == "json":
                self._reporter = JsonLines(verbose=self.verbose)
            else:
                self._reporter = Console(diffs=self.diffs, quiet=self.quiet, verbose=self.verbose)
        return self._reporter

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Keep a log meanwhile if there is to be one, and follow the commands on nodes. Raises OSError."""
        with ExitStack() as stack:
            if self.log_file is not None:
                self._log = stack.enter_context(log_to(self.log_file, sys.argv[1:], __version__))
                self._reporter = Logged(self.reporter(), self._log)
            if self.verbose or self.log_file is not None:
                stack.enter_context(commands.told(lambda ran: self.reporter().command(ran)))
            yield

    def end_log(self, error: Error) -> None:
        """Have the log, if there is one, end with *error*, which is not told in another way."""
        if self._log is not None:
            with suppress(OSError):
                self._log.error(error)


def command(
    name: str,
    *,
    parent: click.Group | None = None,
    cls: type[click.Command] = click.Command,
    help_after: str = "",
    writes_file: bool = False,
    **attributes: Any,
) -> Callable[[Callable[..., None]], click.Command]:
    """A command, of the group *parent* if there is one, that takes -o and --debug, and whose errors become exit codes.

    *help_after* stands below its help. One that *writes_file* has an option --output-file, the parameter ``file``, and
    -o also takes a file name. The other *attributes* are those of click.
    """

    def wrap(function: Callable[..., None]) -> click.Command:
        def call(*arguments: Any, **options: Any) -> None:
            options = merge_group_options(options)
            if writes_file:
                options = split_output(options)
            context = Context(
                debug=options.pop("debug"),
                output=options.pop("output"),
                diffs=options.pop("diff", False),
                quiet=options.pop("quiet"),
                verbose=options.pop("verbose"),
                log_file=options.pop("log_file"),
            )
            exit_on_error(context, lambda: function(context, *arguments, **options))

        update_wrapper(call, function)
        text = inspect.cleandoc(function.__doc__ or "") + (f"\n\n{help_after}" if help_after else "")
        decorated = click.option("--debug", is_flag=True, help="Print a traceback when a command fails.")(call)
        for option in (_log_option, _verbose_option, _quiet_option):
            decorated = option(decorated)
        decorated = _output_option(writes_file=writes_file)(decorated)
        made = click.command(name, cls, help=text, **attributes)(decorated)
        if parent is not None:
            parent.add_command(made)
        return made

    return wrap


_quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only warnings, errors and the result.")
_verbose_option = click.option("-v", "--verbose", is_flag=True, help="Also print each command that runs on a node.")
_log_option = click.option(
    "--log-file", type=click.Path(path_type=Path), metavar="FILE", envvar=LOG_FILE,
    help=f"Append all events and every command that runs on a node to FILE, as JSON lines.  [env: {LOG_FILE}]",
)  # fmt: skip
FORMATS = ("text", "json")
_OUTPUT_HELP = "Output format. json prints one JSON object per line; the last one is the result or the error."


class FormatOrFile(click.Choice[str]):
    """The output format; or the name of a file, for commands that write one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the format, or a Path for every other value."""
        return super().convert(value, param, ctx) if value in FORMATS else Path(value)


def _output_option(*, writes_file: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """-o, which means the output format for every command."""
    if not writes_file:
        return click.option(
            "-o", "--output", type=click.Choice(FORMATS), default="text", show_default=True, help=_OUTPUT_HELP
        )
    return click.option(
        # --format is the name that the option had here before 0.1.
        "-o", "--output", "--format", "output", type=FormatOrFile(FORMATS), metavar="[text|json]", multiple=True,
        help=f"{_OUTPUT_HELP} Any other value is a file name, as for --output-file.  [default: text]",
    )  # fmt: skip


def split_output(options: dict[str, Any]) -> dict[str, Any]:
    """Return *options* with one ``output``, and with the ``file`` that -o named. Raises click.UsageError for two."""
    given = options["output"]
    files = [one for one in given if isinstance(one, Path)]
    source = click.get_current_context().get_parameter_source("file")
    if len(files) + (source is ParameterSource.COMMANDLINE) > 1:
        raise click.UsageError("the output file is named twice: pass either -o FILE or --output-file FILE")
    formats = [one for one in given if not isinstance(one, Path)]
    return options | {"output": formats[-1] if formats else "text"} | ({"file": files[0]} if files else {})


def merge_group_options(options: dict[str, Any]) -> dict[str, Any]:
    """*options* of a subcommand, with those that stand before its name: ``init --dry-run phase vip`` is a dry run."""
    context = click.get_current_context()
    above = context.parent
    if above is None:
        return options
    absent = [name for name in options if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE]
    given = [name for name in absent if above.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    found = options | {name: above.params[name] for name in given}
    if isinstance(found.get("output"), tuple) and isinstance(options["output"], str):
        # A group that writes a file took several: a subcommand that writes none counts the last format.
        found["output"] = next((one for one in reversed(found["output"]) if one in FORMATS), options["output"])
    return found


def exit_on_error(context: Context, work: Callable[[], None]) -> None:
    """Do *work*; turn what it raises into a report and an exit code (see docs/reference.md)."""
    try:
        with context.logged():
            _exit_on_error(context, work)
    except OSError as error:  # of the log file
        told, code = meaning(error)
        tell(context.reporter(), told)
        sys.exit(code)


def _exit_on_error(context: Context, work: Callable[[], None]) -> None:
    reporter = context.reporter()
    try:
        work()
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nothing is left to say to it.
        let_go_of_output()
        context.end_log(Error("standard output was closed before the command was done", code="OutputClosed"))
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        told, code = meaning(error)
        if context.debug and told.code == "Bug":
            context.end_log(told)
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
        hint = "run the command again; it resumes where it stopped"
        return Error("interrupted", hint=hint, code="Interrupted"), EXIT_INTERRUPTED
    if isinstance(error, click.Abort):
        return Error("aborted; nothing was changed", hint="answer y, or pass --yes", code="Aborted"), 1
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, "")
    if isinstance(error, OSError) and (refused := refusal(error)) is not None:
        return refused, refused.exit_code
    text = f"unexpected {type(error).__name__}: {error}"
    return Error(text, hint="run the command again with --debug and report the output", code="Bug"), 1


def tell(reporter: Reporter, error: Error) -> None:
    """Report *error*; on standard error where standard output cannot be written to."""
    try:
        reporter.error(error)
    except OSError:
        with suppress(OSError):  # the exit code says it
            click.echo(f"error [{error.code}] {printable(str(error))}", err=True)
    let_go_of_output()


def let_go_of_output() -> None:
    """What cannot be written to standard output and error is not tried again when the program ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


file_option = click.option(
    "-f", "--file", "path", type=click.Path(path_type=Path), help="Cluster file.  [default: ./cluster.yaml]"
)
bundle_option = click.option(
    "--bundle", type=click.Path(path_type=Path),
    help="Bundle to install from.  [default: ./kubeadm-registry-bundle.tar if it exists, else the programs already "
    "installed on the nodes]",
)  # fmt: skip
key_option = click.option(
    "--key", type=click.Path(path_type=Path), envvar=BUNDLE_KEY,
    help="Require a signature by this SSH key: a public key or an allowed-signers file.  "
    f"[env: {BUNDLE_KEY}]",
)  # fmt: skip
ignore_option = click.option(
    "--ignore-preflight-errors", "ignore", metavar="NAMES", default="",
    help="Comma-separated checks whose errors are shown as warnings, or 'all'.",
)  # fmt: skip
skip_option = click.option("--skip-phases", "skip", metavar="NAMES", default="", help="Comma-separated phases to skip.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would change on each node without changing anything."
)
#: Of commands that delete images and change no node.
dry_delete_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be deleted without deleting anything."
)
diff_option = click.option("--diff", is_flag=True, help="Show a diff for each change. Secrets are masked.")


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
                wrong = ConfigError(error.format_message(), hint="see the options with --help", code="UsageInvalid")
                tell(JsonLines(), wrong)
            else:
                with suppress(OSError):
                    error.show()
                let_go_of_output()
            sys.exit(error.exit_code)
        except (click.Abort, OSError) as error:  # before a command guards itself, and --help and --version
            if isinstance(error, OSError):
                error.filename = STANDARD_OUTPUT
            told, code = meaning(error)
            with suppress(OSError):
                click.echo(f"error [{told.code}] {printable(str(told))}", err=True)
            let_go_of_output()
        sys.exit(code if isinstance(code, int) else 0)
